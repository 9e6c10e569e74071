"""Figure 6, when it matters: how far back may a tokenizer look before old tokens are a poor start?

Three tokenizers alike but for the past that their encoder can see. Each begins with the shipped
one's weights, new ones as if they were not there, and is trained for --steps steps more; then the
shipped decoder is trained on its tokens, --decoder steps.

    none         a latent frame sees its own frames only
    as shipped   kernels in time where the picture is halved and at its coarsest, 2 blocks there
    whole clip   kernels in time at all levels, 6 blocks at the coarsest

Of --clips drawn clips of 125 frames, encoded from frame 0 or from frame 61 on ("fresh"): the share
of tokens that differ, by latent frame; the PSNR of frames 61-65 decoded from old tokens as the
start of a clip, minus from fresh ones; the loss of the continuation's tokens (fresh, frames 66-125)
given old tokens of frames 61-65, minus given fresh ones. And the seam of --n videos of 20 s,
extended with old tokens, minus re-encoded ones.
Decides: that loss for frames 66-73, whole clip minus none, paired by clips. Inside +-0.02
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
from prompts import changes
from reconstruct import psnr
from sample import CONTEXT
from tokenizer import SHIPPED, CausalConv3d, VideoTokenizer, load_tokenizer
from tools.machine import read_checkpoint, run_script

KNOWN = latent_frames(CONTEXT)
KINDS = {"none": (), "as shipped": (),
         "whole clip": ("--encoder-kernels", 3, 3, 3, 3, "--encoder-blocks", 0, 1, 1, 6)}


class Begun(VideoTokenizer):
    """Begins with the shipped weights: longer kernels have zeros for the frames that are new, more
    blocks add zero."""

    def __init__(self, config):
        super().__init__(config)
        for name, x in self.state_dict().items():
            if name in self.shipped:
                own = self.shipped[name]
                if x.ndim == 5:  # a kernel
                    x[:, :, :-own.shape[2]] = 0
                    x = x[:, :, -own.shape[2]:]
                x[:] = own
            elif "conv2" in name:
                x[:] = 0


class Forgetful(Begun):
    """Its encoder's kernels see nothing of an earlier latent frame: their weights of the past are
    zero and get no gradient, but for the frame that halving joins to the next."""

    def __init__(self, config):
        super().__init__(config)
        for conv in self.encoder.modules():
            if isinstance(conv, CausalConv3d):
                past = conv.kernel_size[0] - conv.stride[0]
                conv.weight.data[:, :, :past] = 0
                conv.weight.register_hook(functools.partial(self.without, past))

    @staticmethod
    def without(past, gradient):
        return torch.cat([0 * gradient[:, :, :past], gradient[:, :, past:]], 2)


def train(kind, flags):
    """train.py with a tokenizer of this kind."""
    import train
    Begun.shipped = load_tokenizer()[0].state_dict()
    train.VideoTokenizer = Forgetful if kind == "none" else Begun
    sys.argv = ["train.py", *flags]
    train.main()


@functools.cache
def world_of(kind, steps, decoder):
    """A tokenizer and the decoder on its tokens, trained."""
    os.environ["KIND"] = kind  # for the training
    run = f"memory-{kind.replace(' ', '-')}"
    out = trained(run, 0, 0, steps, "--batch-size", 1, "--lr", 1e-3, "--adversarial-weight", 0,
                  *KINDS[kind], script="experiments/memory.py")
    _, digest = load_tokenizer(out)
    shipped = read_checkpoint(f"{SHIPPED}/stage3.pt", "stage3")
    torch.save(shipped | {"tokenizer_hash": digest}, f"{out}/shipped.pt")
    trained(run, 3, 0, decoder, "--returns", 0, "--init", f"{out}/shipped.pt")
    return ready(out)


@torch.inference_mode()
def look(world, i, attributes):
    """One drawn clip of 125 frames."""
    model, tokenizer, text = world()
    frames = drawn_videos([attributes], 125, i)
    video = to_float(frames).to(DEVICE)
    old = tokenizer.encode(video)[:, 17 - KNOWN:]
    new = tokenizer.encode(video[:, :, 65 - CONTEXT:])
    mixed = torch.cat([old[:, :KNOWN], new[:, KNOWN:]], 1)
    losses = frame_losses(model, text, torch.cat([new, mixed]), [caption(attributes)] * 2)
    start = frames[0, 65 - CONTEXT:65]
    db = [psnr(start, to_uint8(tokenizer.decode(x[:, :KNOWN]))[0]) for x in (old, new)]
    return {"clean": losses[0, KNOWN:].mean(), "dB": db[0] - db[1],
            "changed": (old != new).float().mean((0, 2, 3)).tolist(),
            "nats": (losses[1] - losses[0])[KNOWN:].tolist()}


def seam(world, i, attributes):
    seams = []
    for reencode in (False, True):
        video = sampled(world(), caption(attributes), 20, i, reencode=reencode)
        border, inside = changes(video)
        seams.append(border / inside)
    return {"seam": seams[0] - seams[1]}


def main():
    args = arguments(__doc__, steps=250, decoder=120, clips=64, n=10)
    found = {}
    for kind in KINDS:
        world = functools.partial(world_of, kind, args.steps, args.decoder)
        found |= all_kept("memory", {
            (kind, i): functools.partial(look, world, i, a)
            for i, a in enumerate(drawn(23, args.clips))} | {
            (kind, "seam", i): functools.partial(seam, world, i, a)
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
            "loss of frames 66-125, nats: re-encoded": of("clean"),
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
