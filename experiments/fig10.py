"""Figure 10 and Sec. 4.1: the tokenizer's codebook and reconstructions, with Clustering VQ and
without.

Small trainings of the tokenizer from nothing: with CVQ as here, whose anchors are drawn by their
error; with anchors as published, where a code's anchor is a latent like it; and plain VQ, whose
codes are moved to latents at the first step only.

Decides: the share of codes in use on 512 fresh clips of 17 frames, CVQ as here minus plain VQ; over
5 trainings, paired by seed. Above 0 is a yes.
Also: CVQ as published minus plain VQ, as here minus as published, and the same for the PSNR.

    python experiments/fig10.py
"""
import functools
import os
import sys

import numpy as np
import torch

from common import (
    DEVICE,
    FRESH,
    arguments,
    direct_labels,
    drawn,
    drawn_videos,
    kept,
    pyplot,
    result,
    save_picture,
    trained,
)
from data import to_float, to_uint8
from reconstruct import psnr
from tokenizer import ClusteringVQ, load_tokenizer
from tools.machine import run_script

KINDS = "CVQ", "CVQ as published", "plain VQ"


def published_anchors(self, latents, codes, tokens, generator):
    """Of each code a latent, drawn by softmax over their cosine."""
    return latents[torch.multinomial((codes @ latents.T).softmax(1), 1, generator=generator)[:, 0]]


def train(kind, flags):
    """train.py with this kind of codebook, counting the codes of each step."""
    import train
    out, move = flags[flags.index("--out") + 1], ClusteringVQ.reinitialize

    def count_and_move(self, seed, step, *rest):
        codes = len(torch.cat([tokens for _, tokens in self.seen]).unique())
        with open(os.path.join(out, "codes.txt"), "a") as f:
            f.write(f"{step} {codes}\n")
        if kind == "plain VQ" and step > 0:
            self.seen = []
        else:
            move(self, seed, step, *rest)

    ClusteringVQ.reinitialize = count_and_move
    if kind == "CVQ as published":
        ClusteringVQ.anchors = published_anchors
    sys.argv = ["train.py", *flags]
    train.main()


@functools.cache
def fresh_videos():
    return drawn_videos(drawn(2024, FRESH), 17, 0)


@torch.inference_mode()
def measure(kind, seed, steps):
    os.environ["KIND"] = kind  # for the training
    out = trained(f"{kind.replace(' ', '-')}{seed}", 0, seed, steps, "--batch-size", 1,
                  script="experiments/fig10.py")
    tokenizer, _ = load_tokenizer(out, DEVICE)
    used, errors = set(), []
    for video in np.split(fresh_videos(), FRESH // 4):
        tokens = tokenizer.encode(to_float(video).to(DEVICE))
        errors.append(psnr(video, to_uint8(tokenizer.decode(tokens))))
        used |= set(tokens.unique().tolist())
    # by step: after a kill some are there twice
    codes = [*dict(np.loadtxt(os.path.join(out, "codes.txt"))).values()]
    return {"share": len(used) / tokenizer.config.codebook_size, "psnr": np.mean(errors),
            "codes": [part.mean() for part in np.array_split(codes, 40)]}


def main():
    args = arguments(__doc__, seeds=5, steps=400)
    lines = {kind: [kept("fig10", [kind, seed], lambda: measure(kind, seed, args.steps))
                    for seed in range(args.seeds)] for kind in KINDS}
    share, quality, codes = ({kind: np.array([line[what] for line in some])
                              for kind, some in lines.items()}
                             for what in ("share", "psnr", "codes"))
    here, published, plain = KINDS
    result("fig10", f"{args.seeds} trainings",
           {"share of codes in use: CVQ minus plain VQ": share[here] - share[plain]},
           {"share of codes in use: as published minus plain VQ": share[published] - share[plain],
            "share of codes in use: CVQ minus as published": share[here] - share[published],
            "PSNR, dB: CVQ minus plain VQ": quality[here] - quality[plain]},
           {"share of codes in use": share, "PSNR, dB": quality})
    figure, axes = pyplot.subplots(figsize=(5, 2.8), layout="constrained")
    middle = args.steps * (np.arange(40) + 0.5) / 40
    direct_labels(axes, {kind: (middle, x.mean(0)) for kind, x in codes.items()})
    axes.set(xlabel="step", ylabel="codes in use in a step", ylim=0)
    save_picture(figure, "fig10")


if __name__ == "__main__":
    if "--stage" in sys.argv:
        train(os.environ["KIND"], sys.argv[1:])
    else:
        run_script(main)
