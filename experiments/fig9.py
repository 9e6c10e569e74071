"""Figure 9: long, dense captions, and wordings that training never used.

Decides: the share of videos of ten seconds that show all six attributes as prompted, dense
captions, with more clauses than any in training, minus trained ones that state everything, paired
by attributes and seed, over --n prompts. Down to -0.1 is a yes.
Also: wordings that training held out minus trained ones.

    python experiments/fig9.py
"""
import functools

import numpy as np

from common import (
    all_kept,
    arguments,
    as_prompted,
    drawn,
    exact_bars,
    pyplot,
    ready,
    result,
    sampled,
    save_picture,
)
from data import ATTRIBUTES, caption_of, wording
from tools.machine import run_script


def worded(attributes, kind, rng):
    """A caption that states everything."""
    if kind == "dense captions":
        return caption_of(attributes, wording(rng, dense=True))[0]
    while True:
        caption, said = caption_of(attributes, wording(rng, kind == "new wordings"))
        if said == tuple(ATTRIBUTES):
            return caption


def main():
    args = arguments(__doc__, n=300)
    world, right = ready(), {}

    def look(a, kind, i):
        prompt = worded(a, kind, np.random.default_rng([6, i]))
        return {"right": as_prompted(sampled(world, prompt, 10, i), a)}

    kinds = "trained wordings", "new wordings", "dense captions"
    found = all_kept("fig9", {(kind, i): functools.partial(look, a, kind, i)
                              for kind in kinds for i, a in enumerate(drawn(9, args.n))})
    for kind in kinds:
        right[kind] = np.array([found[kind, i]["right"] for i in range(args.n)])
    trained, new, dense = right.values()
    result("fig9", f"{args.n} prompts",
           {"as prompted: dense captions minus trained": dense - trained},
           {"as prompted: new wordings minus trained": new - trained},
           {"as prompted": {kind: x > 0 for kind, x in right.items()}}, floor=-0.1)
    figure, axes = pyplot.subplots(figsize=(4, 1.6), layout="constrained")
    exact_bars(axes, right)
    axes.set_xlabel("share of videos as prompted")
    save_picture(figure, "fig9")


if __name__ == "__main__":
    run_script(main)
