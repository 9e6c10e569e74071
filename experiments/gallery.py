"""The GIF on top of the README: four prompts side by side, a minute each, at four times their speed.

    python experiments/gallery.py assets/minute.gif
"""
import os
import sys

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from data import FPS  # noqa: E402
from sample import generate_batch, gif_durations, load  # noqa: E402

PROMPTS = ["a large yellow square moves up and down slowly on a navy background",
           "a small red circle moves left and right quickly on a gray background",
           "a large green triangle moves diagonally slowly on a black background",
           "a small white square moves diagonally quickly on a navy background"]


def main():
    if len(sys.argv) != 2:
        raise ValueError("name the GIF to write")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    clips = generate_batch(*load(None, device), PROMPTS, seconds=60, seeds=range(len(PROMPTS)))
    videos = np.concatenate(list(clips), axis=1).repeat(2, 2).repeat(2, 3)  # (B, T, H, W, 3)
    videos[:, :, :, -2:] = 255  # a line between neighbours
    pictures = [Image.fromarray(np.concatenate(frames, axis=1)) for frames in videos.swapaxes(0, 1)]
    palette = pictures[0].quantize(64)  # one for all frames, and no dither, keep the file small
    first, *others = [p.quantize(palette=palette, dither=Image.Dither.NONE) for p in pictures]
    first.save(sys.argv[1], save_all=True, append_images=others, duration=gif_durations(len(pictures), 4 * FPS), loop=0)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as e:
        sys.exit(f"gallery.py: {e}")
