"""Figure 7: greedy decoding, the best 5 and 50 codes, all codes: quality and diversity.

What differs from frame to frame is the new land: greedy decoding should make it dull, sampling from
all codes should tear it. Temperature 1, guidance 1.5 (our choice: it does without a floor).

Decides: the distance of a video's new land from the world's own, in pixels (prompts.invention),
greedy minus top-50; over --n prompts, paired, bootstrapped. Above 0 is a yes.
Also: land in one piece and as prompted, top-50 minus all codes; as prompted, greedy minus top-50;
and all codes that are, with the caption, at least a tenth as likely as the best one (--floor 0.1).

    python experiments/fig7.py
"""
import functools

import numpy as np

from common import (
    all_kept,
    arguments,
    as_prompted,
    caption,
    direct_labels,
    drawn,
    pyplot,
    ready,
    result,
    sampled,
    save_picture,
    strips,
)
from prompts import invention, is_one_piece, new_land
from tools.machine import run_script

CODES = {"greedy": (1, 0.0), "top-5": (5, 0.0), "top-50": (50, 0.0), "all codes": (1024, 0.0),
         "floor 0.1": (1024, 0.1)}  # top_k, floor


def video(world, i, attributes, name):
    top_k, floor = CODES[name]
    return sampled(world, caption(attributes), 10, i, top_k=top_k, floor=floor, temperature=1.0,
                   cfg_scale=1.5)


def look(world, i, attributes, name):
    shown = video(world, i, attributes, name)
    heights = new_land(shown, attributes["speed"], attributes["way"])
    return {"right": as_prompted(shown, attributes),
            "one piece": is_one_piece(shown, attributes["speed"], attributes["way"]),
            "distance": invention([heights], attributes["land"])}


def main():
    args = arguments(__doc__, n=100)
    world, wanted = ready(), drawn(8, args.n)
    found = all_kept("fig7", {(name, i): functools.partial(look, world, i, a, name)
                              for name in CODES for i, a in enumerate(wanted)})
    lines = {name: [found[name, i] for i in range(args.n)] for name in CODES}

    def of(what):
        return {name: np.array([line[what] for line in some]) for name, some in lines.items()}

    distance, pieces, seen = map(of, ("distance", "one piece", "right"))
    result("fig7", f"{args.n} prompts",
           {"distance of new land, pixels: greedy minus top-50":
            distance["greedy"] - distance["top-50"]},
           {"land in one piece: top-50 minus all codes": pieces["top-50"] - pieces["all codes"],
            "as prompted: top-50 minus all codes": seen["top-50"] - seen["all codes"],
            "as prompted: greedy minus top-50": seen["greedy"] - seen["top-50"]},
           {"distance of new land, pixels": distance,
            "land in one piece": {k: v > 0 for k, v in pieces.items()},
            "as prompted": {k: v > 0 for k, v in seen.items()}})
    figure = pyplot.figure(figsize=(6.4, 6), layout="constrained")
    above, below = figure.subfigures(2, height_ratios=(2, 3))
    left, right = above.subplots(1, 2)
    left.set(ylabel="distance of new land, pixels", ylim=(0, 4))
    right.set(ylabel="share of videos", ylim=(0, 1))
    shares = {"as prompted": seen, "in one piece": pieces}
    for axes, curves in (left, {"": distance}), (right, shares):
        direct_labels(axes, {what: (range(5), [x[name].mean() for name in CODES])
                             for what, x in curves.items()})
        axes.set_xticks(range(5), CODES, fontsize=8, rotation=20)
    strips(below.subplots(5), {name: video(world, 0, wanted[0], name)[4::10]
                               for name in CODES})
    save_picture(figure, "fig7")


if __name__ == "__main__":
    run_script(main)
