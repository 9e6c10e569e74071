"""The GIF on top of the README: three videos of five minutes of the storybook world, at 256 pixels
and sixteen times their speed, with a clock: as sample.py writes them; by the paper's top-k alone,
at the same guidance and temperature (--floor 0); with a prompt that changes three times (--at).

    python experiments/gallery.py assets/minutes.gif
"""
import argparse

import numpy as np
from PIL import Image, ImageDraw

# metrics first: it puts the five files on the path
from metrics import DEVICE

# isort: split
from data import FPS
from sample import CONTEXT, generate, load
from tools.films import check_writable
from tools.machine import run_script, set_threads

PROMPTS = ["a red balloon drifts right slowly past green hills by day",
           "a blue balloon drifts right slowly past green hills by day",
           "a blue bird flies right slowly past green hills by day",
           "a blue bird flies right slowly past green hills at night"]


def save_gif(path, videos, scale, faster):
    """Videos uint8 (T, H, W, 3) side by side, `scale` times as large and `faster`,
    with a clock."""
    pictures, every = [], faster // 2  # 13 pictures per second
    for i, frames in enumerate(zip(*(video[::every] for video in videos))):
        row = [np.pad(frame.repeat(scale, 0).repeat(scale, 1), ((0, 0), (0, 4), (0, 0)),
                      constant_values=255) for frame in frames]
        picture = Image.fromarray(np.concatenate(row, axis=1))
        seconds = int(every * i / FPS)
        clock = f"{seconds // 60}:{seconds % 60:02d}"
        ImageDraw.Draw(picture).text((6, 4), clock, "white", stroke_width=1,
                                     stroke_fill="black", font_size=16)
        pictures.append(picture)
    # one palette for all frames, and no dither, keep the file small; half of it is for colors
    # however rare they are
    often = np.concatenate([np.asarray(p) for p in pictures[::20]]).reshape(-1, 3)
    rare = np.unique(often // 8 * 8 + 4, axis=0)
    some = np.concatenate([often, rare.repeat(1 + len(often) // len(rare), 0)])
    palette = Image.fromarray(some[None]).quantize(255)
    first, *others = [p.quantize(palette=palette, dither=Image.Dither.NONE)
                      for p in pictures]
    # a GIF counts hundredths of a second
    ends = np.round(100 * every / FPS / faster * np.arange(len(pictures) + 1))
    first.save(path, save_all=True, append_images=others, loop=0,
               duration=(10 * np.diff(ends)).astype(int).tolist())


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("gif", help="the file to write")
    p.add_argument("--seconds", type=float, default=300)
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args()
    check_writable(args.gif)
    world = load(None, DEVICE)
    set_threads(world[0])

    def film(prompts, **options):
        start, clips = None, []
        for i, prompt in enumerate(prompts):
            clips += generate(*world, prompt, args.seconds / len(prompts), args.seed + i,
                              start=start, **options)
            start = clips[-1][-CONTEXT:]
        return np.concatenate(clips)

    videos = [film(PROMPTS[:1]), film(PROMPTS[:1], floor=0.0), film(PROMPTS)]
    save_gif(args.gif, videos, scale=4, faster=16)


if __name__ == "__main__":
    run_script(main)
