"""What do clips that contradict their caption for a while cost, and what do they teach? (--returns)

The decoder of --before, which never saw one, is trained for --steps steps more, on 17-frame clips,
three times. None contradicts its caption; three quarters show another clip's tokens for a while,
which works on any shard; three quarters were drawn so that another traveller, color ... fades into
what the caption says, as in the toy. One training each, so the answer is for these three.
Decides: the loss of --clips fresh clips that agree with their captions, drawn minus none, paired.
Inside +-0.02 nats it costs nothing to speak of; above it is a yes.
Also: tokens minus none; and of --n switches of color, and of traveller, each (switch.py's measure,
other pairs) the share that is followed.

    git show 6fc163c:checkpoints/toy/stage3.pt > FOLDER/stage3.pt  # and so tokenizer.pt
    python experiments/returns.py --before FOLDER
"""
import functools
import os
import shutil

import numpy as np
import torch

from common import (
    DEVICE,
    RUNS,
    all_kept,
    arguments,
    caption,
    drawn,
    drawn_clips,
    drawn_videos,
    exact_bars,
    frame_losses,
    pyplot,
    ready,
    result,
    save_picture,
    trained,
)
from data import to_float
from switch import measure
from tools.machine import run_script

ARMS = {"none": 0.0, "tokens": 0.75, "drawn": 0.75}


@functools.cache
def world_of(arm, before, steps):
    run = f"returns-{arm}"
    os.makedirs(f"{RUNS}/{run}", exist_ok=True)
    shutil.copy(f"{before}/tokenizer.pt", f"{RUNS}/{run}")
    videos = "toy" if arm == "drawn" else drawn_clips("before", 1024, before)
    return ready(trained(run, 2, 0, steps, "--batch-size", 5, "--lr", 1e-3, "--returns", ARMS[arm],
                         "--init", f"{before}/stage3.pt", "--videos", videos))


@torch.inference_mode()
def clean(world, i, attributes):
    model, tokenizer, text = world()
    tokens = tokenizer.encode(to_float(drawn_videos([attributes], 17, i)).to(DEVICE))
    return {"loss": frame_losses(model, text, tokens, [caption(attributes)]).mean()}


def switch(world, name, i):
    return measure(world(), name, i)


def main():
    args = arguments(__doc__, before="", steps=300, clips=256, n=30)
    found = {}
    for arm in ARMS:
        world = functools.partial(world_of, arm, args.before, args.steps)
        found |= all_kept("returns", {
            (arm, "clean", i): functools.partial(clean, world, i, a)
            for i, a in enumerate(drawn(25, args.clips))} | {
            (arm, name, i): functools.partial(switch, world, name, 100 + i)
            for name in ("color", "traveller") for i in range(args.n)})
    loss = {arm: np.array([found[arm, "clean", i]["loss"] for i in range(args.clips)])
            for arm in ARMS}
    right = {name: {arm: np.array([found[arm, name, i]["right"] for i in range(args.n)], bool)
                    for arm in ARMS} for name in ("color", "traveller")}
    what = "loss of clips that agree with their captions: {} minus none"
    result("returns", f"{args.clips} clips", {what.format("drawn"): loss["drawn"] - loss["none"]},
           {what.format("tokens"): loss["tokens"] - loss["none"]} | {
            f"as prompted after another {name}, {args.n} pairs: drawn minus tokens":
            1.0 * right[name]["drawn"] - right[name]["tokens"] for name in right},
           {"loss of clips that agree with their captions": loss} | {
            f"as prompted after another {name}": arms for name, arms in right.items()},
           margin=0.02)
    figure, both = pyplot.subplots(1, 2, figsize=(7, 2), layout="constrained", sharey=True)
    for axes, (name, arms) in zip(both, right.items()):
        axes.set_title(f"followed to another {name}", fontsize=9)
        exact_bars(axes, arms)
    save_picture(figure, "returns")


if __name__ == "__main__":
    run_script(main)
