"""Figure 9: long, dense captions, and wordings that training never used.

Decides: the share of videos of ten seconds that show all six attributes as prompted, dense
captions, with more clauses than any in training, minus trained ones that state everything, paired
by attributes and seed, over --n prompts. Down to -0.1 is a yes.
Also: wordings that training held out minus trained ones.

    python experiments/fig9.py
"""
import numpy as np
from tqdm import tqdm

from common import (
    arguments,
    as_prompted,
    drawn,
    exact_bars,
    kept,
    pyplot,
    ready,
    result,
    sampled,
    save_picture,
)
from data import ATTRIBUTES, caption_of, wording


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
    for kind in ("trained wordings", "new wordings", "dense captions"):
        lines = [kept("fig9", [kind, i], lambda: {"right": as_prompted(sampled(
            world, worded(a, kind, np.random.default_rng([6, i])), 10, i), a)})
            for i, a in enumerate(tqdm(drawn(9, args.n), desc=kind))]
        right[kind] = np.array([line["right"] for line in lines])
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
    main()
