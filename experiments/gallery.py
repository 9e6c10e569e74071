"""The GIF on top of the README: three minutes of the storybook world, at 256 pixels and four times
their speed, with a clock: one re-encoded; the same prompt from old tokens; three scenes (--at),
from day through sunset to night.

    python experiments/gallery.py assets/minute.gif
"""
import argparse
import sys

import numpy as np
from PIL import Image, ImageDraw

# metrics first: it puts the five files on the path
from metrics import DEVICE

# isort: split
from data import FPS
from sample import generate, load
from tools.machine import set_threads

DAY, SUNSET, NIGHT = (f"a red balloon drifts right slowly past green hills {sky}"
                      for sky in ("by day", "at sunset", "at night"))


def save_gif(path, videos, scale):
    """Videos uint8 (T, H, W, 3) side by side, `scale` times as large, every second frame, with a
    clock."""
    pictures = []
    for i, frames in enumerate(zip(*(video[::2] for video in videos))):
        row = [np.pad(frame.repeat(scale, 0).repeat(scale, 1), ((0, 0), (0, 4), (0, 0)),
                      constant_values=255) for frame in frames]
        picture = Image.fromarray(np.concatenate(row, axis=1))
        seconds = int(2 * i / FPS)
        clock = f"{seconds // 60}:{seconds % 60:02d}"
        ImageDraw.Draw(picture).text((6, 4), clock, "white", stroke_width=1,
                                     stroke_fill="black", font_size=16)
        pictures.append(picture)
    # one palette for all frames, and no dither, keep the file small
    sheet = Image.fromarray(np.concatenate([np.asarray(p) for p in pictures[::20]]))
    palette = sheet.quantize(96)
    first, *others = [p.quantize(palette=palette, dither=Image.Dither.NONE)
                      for p in pictures]
    first.save(path, save_all=True, append_images=others, loop=0, duration=80)


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("gif", help="the file to write")
    p.add_argument("--seconds", type=float, default=60)
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args()
    world = load(None, DEVICE)
    set_threads(world[0])

    def film(prompts, reencode=True):
        return np.concatenate([clip for prompt in prompts for clip in generate(
            *world, prompt, args.seconds / len(prompts), args.seed, reencode=reencode)])

    save_gif(args.gif, [film([DAY]), film([DAY], False), film([DAY, SUNSET, NIGHT])], scale=4)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as e:
        sys.exit(f"gallery.py: {e}")
