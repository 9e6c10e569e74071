"""Figure 6: videos extended with and without token re-encoding.

Decides: the loss of the true continuation of 256 drawn clips, paired, frames 66-125, encoded from
frame 61 on, given frames 61-65 by their old tokens, which were encoded with all that went before,
minus given the tokens that this encoding begins with. Inside +-0.02 nats per token there is no
difference to speak of; else above 0 is a yes.
Also: the same for the first two latent frames of the continuation, and for old tokens followed by
the continuation's own old tokens (other tokens, so the losses compare less well);
and sampled minutes of --n prompts, both ways, by what is seen in the last ten seconds.

    python experiments/fig6.py
"""
import functools

import numpy as np
import torch

from common import (
    DEVICE,
    all_kept,
    arguments,
    caption,
    direct_labels,
    drawn,
    drawn_videos,
    frame_losses,
    over_time,
    pyplot,
    ready,
    result,
    sampled,
    save_picture,
    strips,
)
from data import latent_frames, to_float
from sample import CONTEXT
from tools.machine import run_script

KNOWN = latent_frames(CONTEXT)
WAYS = {"re-encoded": True, "old tokens": False}


@torch.inference_mode()
def continuations(world, i, attributes):
    """The losses by latent frame of one clip's continuation, 15 each."""
    model, tokenizer, text = world
    video = to_float(drawn_videos([attributes], 125, i)).to(DEVICE)
    old = tokenizer.encode(video)[:, 17 - KNOWN:]
    new = tokenizer.encode(video[:, :, 65 - CONTEXT:])
    mixed = torch.cat([old[:, :KNOWN], new[:, KNOWN:]], 1)
    found = frame_losses(model, text, torch.cat([new, old, mixed]), [caption(attributes)] * 3)
    return dict(zip(("new", "old", "mixed"), found[:, KNOWN:].tolist()))


def main():
    args = arguments(__doc__, clips=256, n=50)
    world = ready()
    losses = all_kept("fig6", {("loss", i): functools.partial(continuations, world, i, a)
                               for i, a in enumerate(drawn(6, args.clips))}).values()
    new, old, mixed = (np.array([line[name] for line in losses])
                       for name in ("new", "old", "mixed"))

    wanted = drawn(7, args.n)

    def look(a, i, reencode):
        return over_time(sampled(world, caption(a), 60, i, reencode=reencode), a)

    found = all_kept("fig6", {("seen", way, i): functools.partial(look, a, i, reencode)
                              for way, reencode in WAYS.items() for i, a in enumerate(wanted)})
    seen = {way: [found["seen", way, i] for i in range(args.n)] for way in WAYS}
    share = {what: {way: np.array([line[what] for line in lines], bool)  # (n, 6)
                    for way, lines in seen.items()} for what in ("as prompted", "one piece")}
    result("fig6", f"{args.clips} clips",
           {"loss of the continuation: old tokens minus re-encoded": (mixed - new).mean(1)},
           {"loss of frames 66-73: old tokens minus re-encoded": (mixed - new)[:, :2].mean(1),
            "loss of the continuation: old tokens all through minus re-encoded":
            (old - new).mean(1)} |
           {f"{what} after a minute: re-encoded minus old tokens":
            x["re-encoded"][:, -1] * 1.0 - x["old tokens"][:, -1] for what, x in share.items()},
           {f"{what} after a minute": {way: y[:, -1] for way, y in x.items()}
            for what, x in share.items()}, margin=0.02)

    figure = pyplot.figure(figsize=(6.4, 5), layout="constrained")
    above, below = figure.subfigures(2, height_ratios=(3, 2))
    left, right = above.subplots(1, 2)
    frames = 65 + 4 * np.arange(1, 16)
    direct_labels(left, {name: (frames, (x - new).mean(0)) for name, x in
                         {"old tokens": mixed, "all through": old}.items()})
    left.set(xlabel="frame", ylabel="loss minus the re-encoded one, nats")
    right.set(xlabel="second", ylabel="share as prompted", ylim=(0, 1))
    direct_labels(right, {way: (10 * np.arange(1, 7), x.mean(0))
                          for way, x in share["as prompted"].items()})
    strips(below.subplots(2), {way: sampled(world, caption(wanted[0]), 60, 0,
                                            reencode=reencode)[64::65]
                               for way, reencode in WAYS.items()})
    save_picture(figure, "fig6")


if __name__ == "__main__":
    run_script(main)
