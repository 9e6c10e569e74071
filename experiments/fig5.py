"""Figure 5: 65-frame clips directly after images, against short to long; and lambda = 0, 1, 3.

All arms train on the same images, then for two rounds of --steps steps, each with its own warm-up
and cosine decay to 0. A step has 85 latent frames: 5 clips of 65 frames, or 17 clips of 17 frames.
The direct arm sees 65 frames in both rounds, short-to-long ones 17 frames in the first. Rates: the
best of three for direct and for short to long, by what decides, on training 0.

Decides: the loss of frames 1-17 on 512 fresh clips, directly trained with lambda 0 minus short to
long with lambda 1; over 5 trainings, paired by seed. Inside +-0.02 nats per token there is no
difference to speak of; else above 0 is a yes.
Also: the same for direct minus short to long with lambda 0, and for lambda 0 minus 1 and 3, both
short to long; the loss of frames 18-65; and how many of the six attributes are as prompted in
videos of 17 frames.

    python experiments/fig5.py
"""
import numpy as np

from common import (
    arguments,
    caption,
    direct_labels,
    drawn,
    drawn_clips,
    early_and_late,
    fresh_losses,
    kept,
    pyplot,
    ready,
    result,
    sampled,
    save_picture,
    trained,
)
from data import ATTRIBUTES
from prompts import analyse
from tools.machine import run_script

RATES = 1e-3, 2e-3, 4e-3
SMALL = "--dim", 96, "--n-layers", 4, "--n-heads", 3, "--ffn-dim", 256, "--image-every", 0
BATCH = {1: 85, 2: 17, 3: 5}  # clips of a step: 85 latent frames


def images(seed, steps):
    return trained(f"images{seed}", 1, seed, steps, *SMALL, "--batch-size", BATCH[1],
                   "--videos", drawn_clips())


def two_rounds(seed, first, rate, lambda_, steps, image_steps):
    """Train after images: clips of stage `first` (2 or 3), then of stage 3 ->
    the folders of both rounds."""
    def round_of(run, stage, init):
        flags = ["--lambda", lambda_] if stage == 3 else []  # nothing to 17 frames
        return trained(run, stage, seed, steps, *SMALL, "--batch-size", BATCH[stage], "--lr", rate,
                       *flags, "--init", f"{init}.pt", "--videos", drawn_clips(),
                       script="experiments/fig3.py")

    run = f"{'short' if first == 2 else f'direct-lambda{lambda_}'}-{rate}-{seed}"
    once = round_of(run, first, f"{images(seed, image_steps)}/stage1")
    return once, round_of(f"{run}-lambda{lambda_}", 3, f"{once}/stage{first}")


def losses(seed, first, rate, lambda_, *steps):
    """On the fresh clips, by latent frame: float64 (17,)."""
    line = kept("fig5", ["loss", first, rate, lambda_, seed], lambda: {
        "loss": fresh_losses(two_rounds(seed, first, rate, lambda_, *steps)[1]).mean(0)})
    return np.array(line["loss"])


def best_rate(first, lambda_, *steps):
    return min(RATES, key=lambda rate: early_and_late(losses(0, first, rate, lambda_, *steps))[0])


def main():
    args = arguments(__doc__, seeds=5, images=150, steps=300, n=64)
    steps, seeds = (args.steps, args.images), range(args.seeds)
    direct, short = best_rate(3, 0, *steps), best_rate(2, 1, *steps)
    print(f"rates: {direct} directly, {short} short to long")
    arms = {"direct": (3, direct, 0)}
    arms |= {f"short to long, λ = {x}": (2, short, x) for x in (0, 1, 3)}
    loss = {arm: np.array([losses(seed, *how, *steps) for seed in seeds])  # (seeds, 17)
            for arm, how in arms.items()}
    early, late = ({arm: early_and_late(x)[i] for arm, x in loss.items()} for i in (0, 1))

    def look(seed, how):
        world, wanted = ready(two_rounds(seed, *how, *steps)[1]), drawn(seed, args.n)
        found = [analyse(sampled(world, caption(a), 17 / 6.5, i)) for i, a in enumerate(wanted)]
        return {"right": np.mean([x[name] == a[name] for x, a in zip(found, wanted)
                                  for name in ATTRIBUTES])}

    seen = {arm: [kept("fig5", ["seen", *how, seed], lambda: look(seed, how))["right"]
                  for seed in seeds] for arm, how in arms.items()}
    what, plain, weighted = "loss of frames 1-17: ", *list(arms)[1:3]
    result("fig5", f"{args.seeds} trainings",
           {what + "direct minus short to long, λ = 1": early["direct"] - early[weighted]},
           {what + "direct minus short to long, λ = 0": early["direct"] - early[plain],
            what + "λ = 0 minus λ = 1": early[plain] - early[weighted],
            what + "λ = 0 minus λ = 3": early[plain] - early["short to long, λ = 3"],
            "loss of frames 18-65: λ = 0 minus λ = 1": late[plain] - late[weighted],
            "attributes as prompted: short to long, λ = 1, minus direct":
            np.subtract(seen[weighted], seen["direct"])},
           {"loss of frames 1-17": early, "loss of frames 18-65": late,
            "attributes as prompted": seen},
           margin=0.02)
    figure, axes = pyplot.subplots(figsize=(5, 3), layout="constrained")
    frames = 4 * np.arange(17) + 1
    direct_labels(axes, {arm: (frames, (x - loss["direct"]).mean(0)) for arm, x in loss.items()})
    axes.set(xlabel="frame", ylabel="loss minus the direct arm's, nats")
    save_picture(figure, "fig5")


if __name__ == "__main__":
    run_script(main)
