"""Prompts that change: ten seconds of one prompt go on with another that differs in one attribute.

Decides: the share of switches of color after which the video shows all that the new prompt says, in
its last 5.2 seconds of 9.2; 60 pairs of prompts. An interval above 50 of 60 (0.83) is a yes.
Also: the same for traveller, sky, land, way and speed, and with the weights of --before, which saw
no clip that contradicts its caption.

The ten seconds before are drawn by the toy world, so they are what the first prompt says.

    python experiments/switch.py --before FOLDER
"""
import functools

import numpy as np

from common import (
    all_kept,
    arguments,
    as_prompted,
    caption,
    direct_labels,
    lines_of,
    pyplot,
    ready,
    result,
    sampled,
    save_picture,
    strips,
)
from data import ATTRIBUTES, FPS, draw_clip, held_out, toy_attributes
from tools.machine import run_script

SECONDS = 60 / FPS  # a clip that goes on from five frames
SETTLED = 26  # frames: what is seen in the first four seconds does not count


def pair(name, i):
    """Attributes before and after: another value of one; the last frames before."""
    rng = np.random.default_rng([11, list(ATTRIBUTES).index(name), i])
    while True:
        before = toy_attributes(rng)
        after = before | {name: str(rng.choice([x for x in ATTRIBUTES[name] if x != before[name]]))}
        if not held_out(after):
            return before, after, draw_clip(rng.integers(2 ** 62), 65, before)[0][-17:]


def switched(world, name, i):
    """The frames after the switch, and what they should show."""
    _, after, frames = pair(name, i)
    return sampled(world, caption(after), SECONDS, i, start=frames), after


def measure(world, name, i):
    video, after = switched(world, name, i)
    return {"right": as_prompted(video[SETTLED:], after),
            "frames": [as_prompted(video[j:j + 12], after) for j in range(0, 49, 12)]}


def main():
    args = arguments(__doc__, n=60, before="")
    arms, before = {"with returns": None}, sum('"without"' in x for x in lines_of("switch"))
    if args.before or before == args.n * len(ATTRIBUTES):  # measured already
        arms["without"] = args.before
    right, curves, worlds = {}, {}, {arm: ready(folder) for arm, folder in arms.items()}
    for arm, world in worlds.items():
        found = all_kept("switch", {
            (arm, name, i): functools.partial(measure, world, name, i)
            for name in ATTRIBUTES for i in range(args.n)})
        for name in ATTRIBUTES:
            lines = [found[arm, name, i] for i in range(args.n)]
            right[arm, name] = np.array([line["right"] for line in lines], bool)
            curves[arm, name] = np.mean([line["frames"] for line in lines], axis=0)
    result("switch", f"{args.n} pairs of each kind",
           {"as prompted after another color": right["with returns", "color"]},
           {f"as prompted after another {name}": right["with returns", name]
            for name in ATTRIBUTES if name != "color"},
           {f"as prompted, {arm}": {name: right[arm, name] for name in ATTRIBUTES} for arm in arms},
           floor=50 / 60)

    figure = pyplot.figure(figsize=(7, 5), layout="constrained")
    above, below = figure.subfigures(2, height_ratios=(3, 4))
    for axes, arm in zip(above.subplots(1, len(arms), squeeze=False)[0], arms):
        axes.set(xlabel="second after the switch", ylabel="share as prompted", ylim=(0, 1))
        axes.set_title(arm, fontsize=9)
        middle = (np.arange(0, 49, 12) + 6) / FPS
        direct_labels(axes, {name: (middle, curves[arm, name]) for name in ATTRIBUTES})
    world = worlds["with returns"]
    strips(below.subplots(4), {
        f"{pair(name, 0)[0][name]} -> {pair(name, 0)[1][name]}": np.concatenate(
            [pair(name, 0)[2][-1:], switched(world, name, 0)[0][::4]])
        for name in ("color", "traveller", "sky", "land")})
    save_picture(figure, "switch")


if __name__ == "__main__":
    run_script(main)
