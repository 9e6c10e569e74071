"""Figure 3: when a model of images is trained directly on 65-frame clips, which frames have the
smaller loss, and do they rule the gradient?

The trainings are direct ones of fig5.py, with its best rate.

Decides: the loss on 512 fresh clips at the end of training, of frames 1-17 minus frames 18-65; over
3 trainings. Above 0 is a yes.
Also, the claim's consequence: the gradient's norm from late tokens over that from early ones, on 32
fresh clips, over training; and the loss of frames 1-17 with late tokens counting 1 (lambda 0), half
(lambda 1) and nothing (lambda 10,000; AdamW does not mind a loss that is larger throughout).

    python experiments/fig3.py
"""
import shutil
import sys

import numpy as np
import torch

from common import (
    arguments,
    by_range,
    direct_labels,
    early_and_late,
    frame_losses,
    fresh_clips,
    kept,
    logged,
    pyplot,
    ready,
    result,
    save_picture,
)
from data import latent_frames
from tools import machine
from tools.machine import run_script
from train import EARLY, FRAME_RANGES


def moments(steps):
    """Six steps of a round, the last of them its end."""
    return [steps * i // 6 for i in range(1, 7)]


def train_and_keep(flags):
    """train.py, keeping the weights of a few moments as stageN.stepM.pt."""
    import train
    save = machine.save

    def save_and_keep(args, kind, step, *rest):
        save(args, kind, step, *rest)
        path = args.out / f"{kind}.pt"
        shutil.copy(path, path.with_suffix(f".step{step}.pt"))

    machine.save = save_and_keep
    steps = int(flags[flags.index("--steps") + 1])
    sys.argv = ["train.py", *flags, "--save-every", str(max(1, steps // 6))]
    train.main()


def gradient_norms(path, clips=32):
    """Of the mean loss of early tokens, and of that of late ones, each as it
    counts in Eq. (1)."""
    model, _, text = ready(path)
    model.requires_grad_(True)
    tokens, captions = fresh_clips()
    norms = []
    for part in (slice(0, latent_frames(EARLY)), slice(latent_frames(EARLY), None)):
        model.zero_grad()
        for i in range(0, clips, 4):
            losses = frame_losses(model, text, tokens[i:i + 4], captions[i:i + 4])
            (losses[:, part].sum() / losses.shape[1] / clips).backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9)))
    return norms


def over_training(seed, rate, *steps):
    """Of a direct training, lambda 0: at some steps the norms of both
    gradients, and the loss of each frame range in 40 parts of its time."""
    from fig5 import images, two_rounds
    rounds = two_rounds(seed, 3, rate, 0, *steps)
    paths = [f"{images(seed, steps[1])}/stage1.pt"]
    paths += [f"{folder}/stage3.step{step}.pt" for folder in rounds for step in moments(steps[0])]
    curves = [[m["loss_" + name] for name in FRAME_RANGES]
              for folder in rounds for m in logged(folder, 3)]
    return {"norms": [gradient_norms(path) for path in paths],
            "curves": [part.mean(0) for part in np.array_split(curves, 40)]}


def main():
    from fig5 import best_rate, losses
    args = arguments(__doc__, seeds=3, images=150, steps=300)
    steps, seeds = (args.steps, args.images), range(args.seeds)
    rate = best_rate(3, 0, *steps)
    loss = {x: np.array([losses(seed, 3, rate, x, *steps) for seed in seeds])
            for x in (0, 1, 10_000)}
    lines = [kept("fig3", [rate, seed], lambda: over_training(seed, rate, *steps))
             for seed in seeds]
    norms = np.array([line["norms"] for line in lines])  # (seeds, moments, early and late)
    at = [0, *(i * args.steps + step for i in (0, 1) for step in moments(args.steps))]
    ratio = norms[..., 1] / norms[..., 0]
    early, late = early_and_late(loss[0])
    alone = {x: early_and_late(y)[0] for x, y in loss.items()}
    what = "loss of frames 1-17: late tokens count 1 minus "
    result("fig3", f"{args.seeds} trainings",
           {"loss of frames 1-17 minus that of frames 18-65": early - late},
           {what + "1/2": alone[0] - alone[1], what + "nothing": alone[0] - alone[10_000],
            "gradient of late tokens over that of early ones, minus 1, mean over training":
            ratio.mean(1) - 1},
           {"loss at the end": {f"frames {r}": x for r, x in by_range(loss[0]).items()},
            "gradient of late tokens over that of early ones":
            {f"after {step} steps": x for step, x in zip(at, ratio.T)}})
    curves = np.mean([line["curves"] for line in lines], axis=0)  # (40, ranges)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(7.6, 3), layout="constrained")
    middle = 2 * args.steps * (np.arange(40) + 0.5) / 40
    direct_labels(left, {f"frames {name}": (middle, curves[:, i])
                         for i, name in enumerate(FRAME_RANGES)})
    left.set(xlabel="step", ylabel="loss, nats per token", ylim=0)
    right.plot(at, ratio.T)
    right.axhline(1, color="gray", linewidth=0.5)
    right.set(xlabel="step", ylabel="gradient, late / early", ylim=0)
    save_picture(figure, "fig3")


if __name__ == "__main__":
    if "--stage" in sys.argv:
        train_and_keep(sys.argv[1:])
    else:
        run_script(main)
