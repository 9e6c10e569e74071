"""What do clips that contradict their caption for a while cost, and what do they teach? (--returns)

Small decoders (0.7 M parameters), after the same images --steps steps of 17-frame clips each: none
contradicts its caption; three quarters show another clip's tokens for a while, which works on any
shard; three quarters were drawn so that another traveller, color ... fades into what the caption
says, as in the toy.
Decides: the loss of 512 fresh clips that agree with their captions, tokens minus none, over --seeds
trainings, paired by seed. Inside +-0.02 nats it costs nothing to speak of; above it is a yes.
Also: drawn minus none; and the loss of frames 6-17 after five frames of another color or traveller,
for --clips clips.

    python experiments/returns.py
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
    drawn_clips,
    frame_losses,
    fresh_losses,
    pyplot,
    ready,
    result,
    save_picture,
    trained,
)
from data import ATTRIBUTES, draw_clip, held_out, to_float
from fig5 import BATCH, SMALL, images
from tools.machine import run_script

ARMS = {"none": (0.0, None), "tokens": (0.75, None), "drawn": (0.75, "toy")}


def training(arm, seed, steps):
    share, source = ARMS[arm]
    return trained(f"returns-{arm}-{seed}", 2, seed, steps, *SMALL, "--batch-size", BATCH[2],
                   "--returns", share, "--init", f"{images(seed, 150)}/stage1.pt",
                   "--videos", source or drawn_clips())


@functools.cache
def contradicted(name, n):
    """Tokens (n, 5, 8, 8) of clips whose first five frames show another value of one attribute;
    their captions."""
    rng, clips, captions = np.random.default_rng([25, name == "color"]), [], []
    _, tokenizer, _ = ready()
    for i, a in enumerate(drawn(25, n)):
        b = a
        while b == a or held_out(b):
            b = a | {name: str(rng.choice(ATTRIBUTES[name]))}
        before, after = (draw_clip(i, 17, x)[0] for x in (b, a))
        with torch.inference_mode():
            video = to_float(np.concatenate([before[:5], after[5:]]))
            clips.append(tokenizer.encode(video[None].to(DEVICE)).cpu())
        captions.append(caption(a))
    return torch.cat(clips), captions


@torch.inference_mode()
def measure(arm, seed, steps, n):
    folder = training(arm, seed, steps)
    model, _, text = ready(folder)
    found = {"clean": fresh_losses(folder, 17).mean()}
    for name in ("color", "traveller"):
        tokens, captions = contradicted(name, n)
        losses = [frame_losses(model, text, tokens[i:i + 16], captions[i:i + 16])[:, 2:].mean()
                  for i in range(0, n, 16)]
        found[name] = np.mean([float(x) for x in losses])
    return found


def main():
    args = arguments(__doc__, seeds=3, steps=600, clips=128)
    found = all_kept("returns", {
        (arm, seed): functools.partial(measure, arm, seed, args.steps, args.clips)
        for seed in range(args.seeds) for arm in ARMS})
    loss = {what: {arm: np.array([found[arm, seed][what] for seed in range(args.seeds)])
                   for arm in ARMS} for what in ("clean", "color", "traveller")}

    def differences(what, label):
        return {f"{label}: {arm} minus none": loss[what][arm] - loss[what]["none"]
                for arm in ("tokens", "drawn")}

    first, *others = differences("clean", "loss of clips that agree").items()
    result("returns", f"{args.seeds} trainings", dict([first]),
           dict(others) | differences("color", "loss after another color")
           | differences("traveller", "loss after another traveller"),
           {"loss of clips that agree": loss["clean"], "loss after another color": loss["color"],
            "loss after another traveller": loss["traveller"]}, margin=0.02)
    figure, axes = pyplot.subplots(figsize=(4.4, 2.4), layout="constrained")
    for i, (what, arms) in enumerate(loss.items()):
        for j, (arm, x) in enumerate(arms.items()):
            axes.plot(x - arms["none"].mean(), [-i - 0.2 * j] * len(x), "o", color=f"C{j}",
                      label=arm if i == 0 else None)
    axes.set_yticks([0, -1, -2], ["clips that agree", "after another color", "... traveller"])
    axes.set(xlabel="loss minus the mean without returns, nats")
    axes.legend(fontsize=8, frameon=False)
    save_picture(figure, "returns")


if __name__ == "__main__":
    run_script(main)
