"""The GIF on top of the README: four prompts side by side, a minute each, at 25
frames/s, four times their speed.

    python experiments/gallery.py assets/minute.gif
"""
import argparse
import sys

import numpy as np
from PIL import Image

# metrics first: it puts the five files on the path
from metrics import DEVICE
from sample import generate_batch, load, set_threads

PROMPTS = ["a large yellow square moves up and down slowly on a navy background",
           "a small red circle moves left and right quickly on a gray background",
           "a large green triangle moves diagonally slowly on a black background",
           "a small white square moves diagonally quickly on a navy background"]


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("gif", help="the file to write")
    p.add_argument("--seconds", type=float, default=60)
    args = p.parse_args()
    model, tokenizer, text = load(None, DEVICE)
    set_threads(model)
    clips = generate_batch(model, tokenizer, text, PROMPTS, args.seconds,
                           seeds=range(len(PROMPTS)))
    videos = np.concatenate(list(clips), axis=1)  # (B, T, H, W, 3)
    videos = videos.repeat(2, 2).repeat(2, 3)
    videos[:, :, :, -2:] = 255  # a line between neighbours
    pictures = [Image.fromarray(np.concatenate(frames, axis=1)) for frames in videos.swapaxes(0, 1)]
    # one palette for all frames, and no dither, keep the file small
    palette = pictures[0].quantize(64)
    first, *others = [p.quantize(palette=palette, dither=Image.Dither.NONE) for p in pictures]
    first.save(args.gif, save_all=True, append_images=others, loop=0,
               duration=40)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as e:
        sys.exit(f"gallery.py: {e}")
