"""Figure 6, when it matters: how far back may a tokenizer look before old tokens are a poor start?

Four tokenizers alike but for the past that their encoder can see, --steps steps each, and on the
tokens of each a decoder of 0.7 M parameters, short to long:

    none         a latent frame sees its own frames only
    as shipped   kernels in time where time is halved and at the coarsest level, 2 blocks there
    all levels   kernels in time at all levels
    deeper       the same, and 6 blocks at the coarsest level

Of --clips drawn clips of 125 frames, encoded from frame 0 or from frame 61 on ("fresh"): the share
of tokens that differ, by latent frame; the PSNR of frames 61-65 decoded from old tokens as the
start of a clip, minus from fresh ones; the loss of the continuation's tokens (fresh, frames 66-125)
given old tokens of frames 61-65, minus given fresh ones. And the seam of --n videos of 20 s,
extended with old tokens, minus re-encoded ones.
Decides: that loss for frames 66-73, the longest memory minus none, paired by clips. Inside +-0.02
nats there is no difference to speak of; else above 0 is a yes.

    python experiments/memory.py
"""
import functools
import os
import sys

import numpy as np
import torch

from common import (
    DEVICE,
    all_kept,
    arguments,
    caption,
    direct_labels,
    drawn,
    drawn_clips,
    drawn_videos,
    frame_losses,
    pyplot,
    ready,
    result,
    sampled,
    save_picture,
    trained,
)
from data import latent_frames, to_float, to_uint8
from fig5 import SMALL
from prompts import changes
from reconstruct import psnr
from sample import CONTEXT
from tokenizer import CausalConv3d, VideoTokenizer
from tools.machine import run_script

KNOWN = latent_frames(CONTEXT)
KINDS = {"none": (), "as shipped": (), "all levels": ("--encoder-kernels", 3, 3, 3, 3),
         "deeper": ("--encoder-kernels", 3, 3, 3, 3, "--encoder-blocks", 0, 1, 1, 6)}


class Forgetful(VideoTokenizer):
    """Its encoder's kernels see nothing of an earlier latent frame: their weights of the past,
    which start from zero, get no gradient, but for the frame that halving joins to the next."""

    def __init__(self, config):
        super().__init__(config)
        for conv in self.encoder.modules():
            if isinstance(conv, CausalConv3d):
                past = conv.kernel_size[0] - conv.stride[0]
                conv.weight.register_hook(functools.partial(self.without, past))

    @staticmethod
    def without(past, gradient):
        return torch.cat([0 * gradient[:, :, :past], gradient[:, :, past:]], 2)


def train(kind, flags):
    """train.py with a tokenizer of this kind."""
    import train
    if kind == "none":
        train.VideoTokenizer = Forgetful
    sys.argv = ["train.py", *flags]
    train.main()


def trained_world(kind, steps):
    """The folder of a tokenizer and of the decoder on its tokens."""
    os.environ["KIND"] = kind  # for the training
    run = f"memory-{kind.replace(' ', '-')}"
    out = trained(run, 0, 0, steps, "--batch-size", 1, *KINDS[kind],
                  script="experiments/memory.py")
    clips = drawn_clips(f"{run}-clips", 2048, out)
    for stage, n, batch in ((1, 150, 85), (2, 300, 17), (3, 300, 5)):
        trained(run, stage, 0, n, *SMALL, "--batch-size", batch, "--videos", clips)
    return out


@functools.cache
def world_of(kind, steps):
    return ready(trained_world(kind, steps))


@torch.inference_mode()
def look(kind, steps, i, attributes):
    """One drawn clip of 125 frames."""
    model, tokenizer, text = world_of(kind, steps)
    frames = drawn_videos([attributes], 125, i)
    video = to_float(frames).to(DEVICE)
    old = tokenizer.encode(video)[:, 17 - KNOWN:]
    new = tokenizer.encode(video[:, :, 65 - CONTEXT:])
    mixed = torch.cat([old[:, :KNOWN], new[:, KNOWN:]], 1)
    losses = frame_losses(model, text, torch.cat([new, mixed]), [caption(attributes)] * 2)
    start = frames[0, 65 - CONTEXT:65]
    db = [psnr(start, to_uint8(tokenizer.decode(x[:, :KNOWN]))[0]) for x in (old, new)]
    return {"changed": (old != new).float().mean((0, 2, 3)).tolist(), "dB": db[0] - db[1],
            "nats": (losses[1] - losses[0])[KNOWN:].tolist()}


def seam(kind, steps, i, attributes):
    seams = []
    for reencode in (False, True):
        video = sampled(world_of(kind, steps), caption(attributes), 20, i, reencode=reencode)
        border, inside = changes(video)
        seams.append(border / inside)
    return {"seam": seams[0] - seams[1]}


def main():
    args = arguments(__doc__, steps=1000, clips=128, n=20)
    found = {}
    for kind in KINDS:
        found |= all_kept("memory", {
            (kind, i): functools.partial(look, kind, args.steps, i, a)
            for i, a in enumerate(drawn(23, args.clips))} | {
            (kind, "seam", i): functools.partial(seam, kind, args.steps, i, a)
            for i, a in enumerate(drawn(24, args.n))})

    def of(what):
        return {kind: np.array([found[kind, i][what] for i in range(args.clips)])
                for kind in KINDS}

    changed, db, nats = map(of, ("changed", "dB", "nats"))
    seams = {kind: [found[kind, "seam", i]["seam"] for i in range(args.n)] for kind in KINDS}
    near = {kind: x[:, :2].mean(1) for kind, x in nats.items()}
    what = "loss of frames 66-73, old tokens minus re-encoded: {} minus none"
    first, *others = [kind for kind in reversed(KINDS) if kind != "none"]
    result("memory", f"{args.clips} clips", {what.format(first): near[first] - near["none"]},
           {what.format(kind): near[kind] - near["none"] for kind in others},
           {"tokens that a fresh start changes, first latent frame":
            {kind: x[:, 0] for kind, x in changed.items()},
            "the same, third latent frame": {kind: x[:, 2] for kind, x in changed.items()},
            "PSNR of frames 61-65, dB: old tokens minus re-encoded": db,
            "loss of frames 66-73, nats: old tokens minus re-encoded": near,
            "loss of frames 66-125, nats: old tokens minus re-encoded":
            {kind: x.mean(1) for kind, x in nats.items()},
            f"seam of {args.n} videos: old tokens minus re-encoded": seams}, margin=0.02)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(7, 2.8), layout="constrained")
    left.set(xlabel="latent frame after a fresh start", ylabel="tokens that change, %",
             ylim=(0, 100))
    direct_labels(left, {kind: (range(17), 100 * x.mean(0)) for kind, x in changed.items()})
    right.set(xlabel="frame", ylabel="loss by old tokens, nats more")
    direct_labels(right, {kind: (65 + 4 * np.arange(1, 16), x.mean(0))
                          for kind, x in nats.items()})
    save_picture(figure, "memory")


if __name__ == "__main__":
    if "--stage" in sys.argv:
        train(os.environ["KIND"], sys.argv[1:])
    else:
        run_script(main)
