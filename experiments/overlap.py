"""How many of the last frames should condition the next clip? The paper takes 5. (Sec. 4.1)

Decides: the loss of the next 32 frames of --clips drawn clips, given the 5 frames before, minus
given 17; paired by clips. Inside +-0.02 nats there is no difference to speak of.
Also: given 1, 9 and 33 frames; over --n prompts of a minute the windows of ten seconds as prompted,
and the seam (how much more a pixel changes at the borders between clips than inside them); the
clips that a minute takes.

    python experiments/overlap.py
"""
import functools

import numpy as np
import torch

from common import (
    DEVICE,
    all_kept,
    arguments,
    caption,
    drawn,
    drawn_videos,
    frame_losses,
    over_time,
    pyplot,
    ready,
    result,
    sampled,
    save_picture,
)
from data import latent_frames, to_float
from prompts import changes
from tools.machine import run_script

CONTEXTS = 1, 5, 9, 17, 33


def measure(world, a, i, context):
    video = sampled(world, caption(a), 60, 2000 + i, context=context)
    border, inside = changes(video, context)
    return over_time(video, a) | {"seam": border / inside}


@torch.inference_mode()
def look(world, a, i):
    """The loss of frames 34-65 of a drawn clip, for each context."""
    model, tokenizer, text = world
    video, found = to_float(drawn_videos([a], 65, i)).to(DEVICE), []
    for context in CONTEXTS:
        tokens = tokenizer.encode(video[:, :, 33 - context:])
        losses = frame_losses(model, text, tokens, [caption(a)])
        found.append(losses[0, latent_frames(context):].mean())
    return {"loss": found}


def main():
    args = arguments(__doc__, n=8, clips=64)
    world, wanted = ready(), drawn(26, args.n)
    found = all_kept("overlap", {
        ("loss", i): functools.partial(look, world, a, i)
        for i, a in enumerate(drawn(27, args.clips))} | {
        (context, i): functools.partial(measure, world, a, i, context)
        for context in CONTEXTS for i, a in enumerate(wanted)})
    lines = {c: [found[c, i] for i in range(args.n)] for c in CONTEXTS}
    share = {c: np.array([np.mean(line["as prompted"]) for line in x]) for c, x in lines.items()}
    seams = {c: [line["seam"] for line in x] for c, x in lines.items()}
    loss = dict(zip(CONTEXTS, np.transpose([found["loss", i]["loss"] for i in range(args.clips)])))
    what = "loss of the next 32 frames: {}-frame overlap minus 17"
    result("overlap", f"{args.clips} clips", {what.format(5): loss[5] - loss[17]},
           {what.format(c): loss[c] - loss[17] for c in (1, 9, 33)} | {
            f"windows as prompted, {args.n} prompts of a minute: 17 frames minus 5":
            share[17] - share[5]},
           {"loss of the next 32 frames": loss, "windows as prompted": share, "seam": seams,
            "clips of a minute": {c: [1 + np.ceil(325 / (65 - c))] for c in CONTEXTS}}, margin=0.02)
    figure, (above, below) = pyplot.subplots(2, figsize=(4.4, 3.6), sharex=True,
                                             layout="constrained")
    above.plot(CONTEXTS, [x.mean() for x in loss.values()], "o-")
    below.plot(CONTEXTS, [np.mean(x) for x in seams.values()], "o-")
    above.set(ylabel="loss, nats", xscale="log")
    below.set(ylabel="seam", xlabel="frames of overlap", xticks=CONTEXTS, xticklabels=CONTEXTS)
    below.minorticks_off()
    save_picture(figure, "overlap")


if __name__ == "__main__":
    run_script(main)
