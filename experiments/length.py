"""Inference length: trained on 10 seconds, how good are videos after 5 minutes? (Sec. 4.2)

Decides: the share of videos that are as prompted, the last ten seconds minus the first, paired,
over --n prompts. Down to -0.1 is a yes.
Also: the same for land in one piece, and after one minute.

    python experiments/length.py
"""
import numpy as np
from matplotlib import pyplot
from tqdm import tqdm

from common import (
    arguments,
    caption,
    drawn,
    interval,
    kept,
    over_time,
    ready,
    result,
    sampled,
    save_picture,
)


def main():
    args = arguments(__doc__, n=100)
    world = ready()
    lines = [kept("length", [i], lambda: over_time(
        sampled(world, caption(a), 300, i), a)) for i, a in
        enumerate(tqdm(drawn(10, args.n)))]
    right, pieces = (np.array([line[what] for line in lines]) for what in
                     ("as prompted", "one piece"))  # (n, 30)
    result("length", f"{args.n} prompts",
           {"as prompted: last 10 s minus first": right[:, -1] - right[:, 0]},
           {"as prompted: after a minute minus first": right[:, 5] - right[:, 0],
            "land in one piece: last 10 s minus first": pieces[:, -1] - pieces[:, 0]},
           {what: {f"{10 * i}-{10 * i + 10} s": x[:, i] > 0 for i in (0, 2, 5, 11, 17, 23, 29)}
            for what, x in {"as prompted": right, "land in one piece": pieces}.items()},
           floor=-0.1)
    figure, axes = pyplot.subplots(figsize=(4.4, 2.8), layout="constrained")
    seconds = 10 * np.arange(1, 31)
    for name, x in {"as prompted": right, "land in one piece": pieces}.items():
        _, low, high = np.transpose([interval(column > 0) for column in x.T])
        line, = axes.plot(seconds, x.mean(0))
        axes.fill_between(seconds, low, high, alpha=0.2)
        axes.annotate(" " + name, (seconds[-1], x[:, -1].mean()), color=line.get_color())
    axes.set(xlabel="second", ylabel="share of videos", ylim=(0, 1))
    save_picture(figure, "length")


if __name__ == "__main__":
    main()
