"""Figure 9: prompts in wordings that training never used, and with more clauses than any there.

Decides: the share of videos of ten seconds that show all six attributes as prompted, wordings that
training held out minus trained ones, both stating everything, paired by attributes and seed, over
--n prompts. Down to -0.1 is a yes.
Also: captions with two clauses more than any in training, minus trained ones.

    python experiments/fig9.py
"""
import numpy as np
from matplotlib import pyplot
from tqdm import tqdm

from common import (
    arguments,
    as_prompted,
    drawn,
    exact_bars,
    kept,
    ready,
    result,
    sampled,
    save_picture,
)
from data import CANONICAL, TOY, caption_of, wording


def worded(attributes, kind, rng):
    """A caption that states everything."""
    if kind == "more clauses":
        return caption_of(attributes, CANONICAL + ", {land[2]}, {speed[1]}")[0]
    while True:
        caption, said = caption_of(attributes, wording(rng, kind == "new wordings"))
        if said == tuple(TOY):
            return caption


def main():
    args = arguments(__doc__, n=300)
    world, right = ready(), {}
    for kind in ("trained wordings", "new wordings", "more clauses"):
        lines = [kept("fig9", [kind, i], lambda: {"right": as_prompted(sampled(
            world, worded(a, kind, np.random.default_rng([6, i])), 10, i), a)})
            for i, a in enumerate(tqdm(drawn(9, args.n), desc=kind))]
        right[kind] = np.array([line["right"] for line in lines])
    trained, new, more = right.values()
    result("fig9", f"{args.n} prompts", {"as prompted: new wordings minus trained": new - trained},
           {"as prompted: more clauses minus trained": more - trained},
           {"as prompted": {kind: x > 0 for kind, x in right.items()}}, floor=-0.1)
    figure, axes = pyplot.subplots(figsize=(4, 1.6), layout="constrained")
    exact_bars(axes, right)
    axes.set_xlabel("share of videos as prompted")
    save_picture(figure, "fig9")


if __name__ == "__main__":
    main()
