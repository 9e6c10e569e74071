"""The guidance scale (Sec. 4.1: 7.5): do videos follow their prompts better?

No claim of the paper, which shows no comparison: a curve, with its best point. The prompts are of
two kinds: full ones state everything, sparse ones only traveller, color and land.

Decides: the share of videos of ten seconds that are as prompted, on full prompts: the best scale,
chosen on 50 other prompts, minus scale 1; paired, over --n prompts. Inside +-0.05 there is no
difference to speak of.
Also: the same on sparse prompts, and scale 7.5 minus scale 1.

    python experiments/guidance.py
"""
import functools

import numpy as np

from common import (
    all_kept,
    arguments,
    as_prompted,
    direct_labels,
    drawn,
    pyplot,
    ready,
    result,
    sampled,
    save_picture,
)
from data import CANONICAL, caption_of
from tools.machine import run_script

SCALES = 1.0, 1.5, 3.5, 7.5
FORMS = {"full": CANONICAL, "sparse": "a {color} {traveller} {verb0} {land0}"}


def look(world, i, attributes, form, scale):
    prompt, said = caption_of(attributes, form)
    return {"right": as_prompted(sampled(world, prompt, 10, i, cfg_scale=scale), attributes, said)}


def main():
    args = arguments(__doc__, n=100)
    world, wanted = ready(), drawn(11, args.n + 50, held=True)
    found = all_kept("guidance", {
        (kind, scale, i): functools.partial(look, world, i, a, form, scale)
        for kind, form in FORMS.items() for scale in SCALES for i, a in enumerate(wanted)})
    right = {(kind, scale): np.array([found[kind, scale, i]["right"] for i in range(len(wanted))])
             for kind in FORMS for scale in SCALES}
    best = {kind: max(SCALES, key=lambda scale: right[kind, scale][args.n:].mean())
            for kind in FORMS}
    gain = {f"{kind} prompts, as prompted: scale {scale:g} minus scale 1":
            (right[kind, scale] - right[kind, 1.0])[:args.n]
            for kind in FORMS for scale in dict.fromkeys((best[kind], 7.5))}
    first = next(iter(gain))
    result("guidance", f"{args.n} prompts", {first: gain.pop(first)}, gain,
           {f"{kind} prompts, as prompted": {f"scale {scale:g}": right[kind, scale][:args.n] > 0
                                             for scale in SCALES} for kind in FORMS}, margin=0.05)
    figure, axes = pyplot.subplots(figsize=(4.4, 2.8), layout="constrained")
    axes.set(xlabel="guidance scale", ylabel="share of videos as prompted", ylim=(0, 1))
    direct_labels(axes, {f"{kind} prompts": (SCALES, [right[kind, scale][:args.n].mean()
                                                      for scale in SCALES]) for kind in FORMS})
    save_picture(figure, "guidance")


if __name__ == "__main__":
    run_script(main)
