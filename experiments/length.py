"""Inference length: trained on 10 seconds, how good are videos after 5 minutes, and do lost ones
come back? (Sec. 4.2)

Decides: the share of videos that are as prompted, the last ten seconds minus the first, paired,
over --n trained prompts. Down to -0.1 is a yes.
Also: the same for held-out triples, for ten minutes of --ten prompts, and for the weights that
never saw a clip contradict its caption (results/length-before.jsonl, measured until 28 November);
and for each the hazard (of the videos that are as prompted in one window of ten seconds, the share
that is not in the next) and the return (of those that are not, the share that is in the next).
Their intervals resample videos, not windows. In the long run return / (return + hazard) are right.

    python experiments/length.py
"""
import functools

import numpy as np

from common import (
    all_kept,
    arguments,
    caption,
    direct_labels,
    drawn,
    lines_of,
    over_time,
    pyplot,
    ready,
    result,
    sampled,
    save_picture,
)
from tools.machine import run_script


def hazard_and_return(right):
    """right (n, windows) bools -> of each video how often it was lost and came back, per window
    in which it could: two lists of (n,) sums and counts."""
    now, then = right[:, :-1], right[:, 1:]
    return {"hazard": ((now & ~then).sum(1), now.sum(1)),
            "return": ((~now & then).sum(1), (~now).sum(1))}


def resampled(events, chances, times=2000):
    """The ratio of two sums over videos, and 95 % of it over resampled videos."""
    rows = np.random.default_rng(0).integers(len(events), size=(times, len(events)))
    ratios = events[rows].sum(1) / np.maximum(chances[rows].sum(1), 1)
    return events.sum() / max(chances.sum(), 1), *np.quantile(ratios, (0.025, 0.975))


def main():
    args = arguments(__doc__, n=100, held=100, ten=30)
    world = ready()

    def look(a, seconds, i):
        return over_time(sampled(world, caption(a), seconds, i), a)

    arms = {"trained": (drawn(10, args.n), 300), "held-out": (drawn(12, args.held, held=True), 300),
            "ten minutes": (drawn(13, args.ten), 600)}
    found = all_kept("length", {
        (arm, i): functools.partial(look, a, seconds, i)
        for arm, (wanted, seconds) in arms.items() for i, a in enumerate(wanted)})
    lines = {arm: [line for (name, _), line in found.items() if name == arm] for arm in arms}
    lines["without returns"] = list(lines_of("length-before").values())
    right = {arm: np.array([line["as prompted"] for line in some], bool)
             for arm, some in lines.items()}
    rates = {}
    for arm, x in right.items():
        for name, counts in hazard_and_return(x).items():
            rates.setdefault(f"{name} per ten seconds", {})[arm] = resampled(*counts)
            print(f"{arm}: {name} {counts[0].sum()} of {counts[1].sum()} windows")
    differences = {arm: x[:, -1] * 1.0 - x[:, 0] for arm, x in right.items()}
    result("length", f"{args.n} prompts",
           {"as prompted: last 10 s minus first": differences.pop("trained")},
           {f"as prompted: last 10 s minus first, {arm}": x for arm, x in differences.items()},
           {"as prompted in the first 10 s": {arm: x[:, 0] for arm, x in right.items()},
            "as prompted after a minute": {arm: x[:, 5] for arm, x in right.items()},
            "as prompted in the last 10 s": {arm: x[:, -1] for arm, x in right.items()}},
           floor=-0.1, intervals=rates)
    figure, axes = pyplot.subplots(figsize=(4.4, 2.8), layout="constrained")
    axes.set(xlabel="second", ylabel="share as prompted", ylim=(0, 1))
    direct_labels(axes, {arm: (10 * np.arange(1, x.shape[1] + 1), x.mean(0))
                         for arm, x in right.items()})
    save_picture(figure, "length")


if __name__ == "__main__":
    run_script(main)
