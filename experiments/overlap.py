"""How many of the last frames should condition the next clip? The paper takes 5. (Sec. 4.1)

Decides: the windows of ten seconds as prompted, 17 frames minus 5, over --n prompts of two minutes,
paired; within 0.05 there is no difference to speak of.
Also: 1, 9 and 33 frames minus 5; the seam (how much more a pixel changes at the borders between
clips than inside them); the clips that a minute takes.

    python experiments/overlap.py
"""
import functools

import numpy as np

from common import (
    all_kept,
    arguments,
    caption,
    drawn,
    over_time,
    pyplot,
    ready,
    result,
    sampled,
    save_picture,
)
from prompts import changes
from tools.machine import run_script

CONTEXTS = 1, 5, 9, 17, 33


def measure(world, a, i, context):
    video = sampled(world, caption(a), 120, 2000 + i, context=context)
    border, inside = changes(video, context)
    return over_time(video, a) | {"seam": border / inside}


def main():
    args = arguments(__doc__, n=30)
    world, wanted = ready(), drawn(26, args.n)
    found = all_kept("overlap", {
        (context, i): functools.partial(measure, world, a, i, context)
        for context in CONTEXTS for i, a in enumerate(wanted)})
    lines = {c: [found[c, i] for i in range(args.n)] for c in CONTEXTS}
    share = {c: np.array([np.mean(line["as prompted"]) for line in x]) for c, x in lines.items()}
    seams = {c: [line["seam"] for line in x] for c, x in lines.items()}
    what = "windows as prompted: {} frames of overlap minus 5"
    result("overlap", f"{args.n} prompts of two minutes",
           {what.format(17): share[17] - share[5]},
           {what.format(c): share[c] - share[5] for c in (1, 9, 33)},
           {"windows as prompted": share, "seam": seams,
            "clips per minute": {c: [390 / (65 - c)] for c in CONTEXTS}}, margin=0.05)
    figure, (above, below) = pyplot.subplots(2, figsize=(3.6, 3.6), sharex=True,
                                             layout="constrained")
    above.plot(CONTEXTS, [x.mean() for x in share.values()], "o-")
    below.plot(CONTEXTS, [np.mean(x) for x in seams.values()], "o-")
    above.set(ylabel="windows as prompted", xscale="log", ylim=(0, 1))
    below.set(ylabel="seam", xlabel="frames of overlap", xticks=CONTEXTS, xticklabels=CONTEXTS)
    below.minorticks_off()
    save_picture(figure, "overlap")


if __name__ == "__main__":
    run_script(main)
