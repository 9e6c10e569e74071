"""How many passes does a minute take, and does guessing ever change a token? (sample.jacobi)

For each of 20 prompts, a minute clip by clip: each clip is written by guessing with several
windows and, from the same frames and noise, one token at a time. Counted are tokens per pass,
passes for each latent frame, and the first token of a clip that differs: in exact arithmetic
none would, but a pass of another shape may round differently. What follows a difference differs
for that reason alone, so tokens up to the first one are counted.

    python experiments/passes.py    # -> results/passes-float32.json, assets/passes.png
    python experiments/passes.py --dtype bfloat16 --windows 32 --prompts 10
"""
import argparse
import json

import numpy as np
import torch
from tqdm import tqdm

from common import ROOT, caption, drawn, pyplot, ready
from data import FPS
from sample import CONTEXT, generate
from tools.machine import run_script

CLIPS = 7  # of a minute: 65 frames, then 60 each
CLIP = 65 / FPS  # seconds


def write(world, prompt, seed, start, window):
    """A clip -> its frames, its codes (n,), and how many there were after each pass."""
    written = []  # after each pass
    seconds = CLIP if start is None else CLIP - CONTEXT / FPS
    frames = next(generate(*world, prompt, seconds, seed, start=start, window=window,
                           watch=lambda codes, n: written.append(codes)))
    return frames, written[-1][0], [codes.shape[1] for codes in written]


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--prompts", type=int, default=20)
    p.add_argument("--windows", type=int, nargs="+", default=[32, 8, 16, 64],
                   help="the first one's frames are gone on from")
    p.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    args = p.parse_args()
    world = ready()
    world[0].to(getattr(torch, args.dtype))
    path = f"{ROOT}/experiments/results/passes-{args.dtype}.json"
    passes = {window: 0 for window in args.windows}
    found = {"prompts": 0, "tokens": 0, "compared": 0, "differ": 0, "by frame": []}
    by_frame = []  # for each minute the passes of each latent frame
    for i, a in enumerate(tqdm(drawn(0, args.prompts))):
        start, minute = None, []
        for clip in range(CLIPS):
            seed = CLIPS * i + clip
            plain = write(world, caption(a), seed, start, 1)[1]
            for window in args.windows:
                frames, codes, done = write(world, caption(a), seed, start, window)
                passes[window] += len(done)
                differ = (codes != plain).nonzero()
                found["differ"] += len(differ) > 0
                found["compared"] += int(differ[0]) + 1 if len(differ) else len(codes)
                if window == args.windows[0]:
                    first = np.array([0, *done[:-1]]) // 64  # the frame of a pass's first token
                    minute += np.bincount(first, minlength=len(codes) // 64).tolist()
                    after = frames[-CONTEXT:]
            start = after
            found["tokens"] += len(plain)
        by_frame.append(minute)
        found |= {"prompts": i + 1, "by frame": np.mean(by_frame, axis=0).round(2).tolist(),
                  "tokens per pass": {w: round(found["tokens"] / n, 2)
                                      for w, n in passes.items()}}
        with open(path, "w") as f:
            json.dump(found, f, indent=1)
    print({name: x for name, x in found.items() if name != "by frame"})
    if args.dtype == "float32":
        picture(found["by frame"])


def picture(by_frame):
    """Mean passes for each latent frame of the minute: four frames of video."""
    seconds = np.append(0, 4 * np.arange(1, len(by_frame)) - 1.5) / FPS
    figure, axes = pyplot.subplots(figsize=(6.4, 2.8), layout="constrained")
    axes.step(seconds, by_frame, where="mid", linewidth=1)
    axes.axhline(64, color="gray", linewidth=1)
    axes.text(60, 62, "one token at a time", ha="right", va="top", color="gray", fontsize=8)
    axes.set(xlim=(0, 60), ylim=(0, 70), xlabel="second of the video",
             ylabel="passes for its 64 tokens")
    axes.set_title("The first frame is the hardest to guess; "
                   "the first of each clip is a little harder", fontsize=10)
    figure.savefig(f"{ROOT}/assets/passes.png", dpi=120)


if __name__ == "__main__":
    run_script(main)
