"""Table 1: three sizes of the decoder, equal numbers of steps and tokens.

Each trains on images, then on 17-frame clips, 20 latent frames a step; its rate is the best of
three by the loss of training 0.

Decides: the loss on 512 fresh clips of 17 frames, smallest minus largest, over 5 trainings, paired
by seed. Above 0 is a yes. (3 trainings left it open, -.05 to .38; by their spread 5 would find such
a difference in 80 of 100 cases.)
Also: both differences of neighbours; the Fréchet distance of 512 sampled videos.

    python experiments/tab1.py
"""
import numpy as np

from common import (
    FRESH,
    arguments,
    caption,
    direct_labels,
    drawn,
    drawn_clips,
    drawn_videos,
    fresh_losses,
    kept,
    pyplot,
    ready,
    result,
    save_picture,
    trained,
)
from data import FPS
from metrics import classifier, classifier_features, frechet_distance
from sample import generate_batch
from tools.machine import run_script

# millions of parameters: width, layers, heads, inner width
SIZES = {0.7: (96, 4, 3, 256), 2.4: (144, 8, 4, 384), 7.7: (256, 9, 8, 684)}
RATES = 1e-3, 2e-3, 4e-3


def run(seed, size, rate, images, steps):
    """-> the folder of a training."""
    names = "--dim", "--n-layers", "--n-heads", "--ffn-dim"
    flags = [x for pair in zip(names, SIZES[size]) for x in pair]
    flags += ["--lr", rate, "--image-every", 0, "--videos", drawn_clips()]
    name = f"size{size}-{rate}-{seed}"
    trained(name, 1, seed, images, *flags, "--batch-size", 20)
    return trained(name, 2, seed, steps, *flags, "--batch-size", 4)


def main():
    args = arguments(__doc__, seeds=5, images=150, steps=400)

    def loss(seed, size, rate):
        return kept("tab1", ["loss", size, rate, seed], lambda: {"loss": fresh_losses(
            run(seed, size, rate, args.images, args.steps), 17).mean()})["loss"]

    rates = {size: min(RATES, key=lambda rate: loss(0, size, rate)) for size in SIZES}
    losses = np.array([[loss(seed, *pair) for seed in range(args.seeds)]
                       for pair in rates.items()])  # (sizes, seeds)

    def distance(size):
        """Fréchet, of training 0's videos of the fresh prompts."""
        world, network = ready(run(0, size, rates[size], args.images, args.steps)), classifier()
        prompts = [caption(a) for a in drawn(2024, FRESH)]
        made = [next(generate_batch(*world, prompts[i:i + 16], 17 / FPS, seeds=range(i, i + 16)))
                for i in range(0, FRESH, 16)]
        real = drawn_videos(drawn(2025, FRESH), 17, 0)
        return {"distance": frechet_distance(classifier_features(real, network),
                                             classifier_features(np.concatenate(made), network))}

    names = [f"{size} M" for size in SIZES]
    small, middle, large = losses
    result("tab1", f"{args.seeds} trainings",
           {f"loss: {names[0]} minus {names[2]}": small - large},
           {f"loss: {names[0]} minus {names[1]}": small - middle,
            f"loss: {names[1]} minus {names[2]}": middle - large},
           {"loss": dict(zip(names, losses)),
            "Fréchet distance": {name: [kept("tab1", ["distance", size], lambda: distance(size))
                                        ["distance"]] for name, size in zip(names, SIZES)}})
    figure, axes = pyplot.subplots(figsize=(4.4, 2.8), layout="constrained")
    axes.plot(list(SIZES), losses, ".", color="gray")
    direct_labels(axes, {"loss on fresh clips": (list(SIZES), losses.mean(1))})
    axes.set(xscale="log", xlabel="million parameters", ylabel="nats per token")
    axes.set_xticks(list(SIZES), SIZES, minor=False)
    axes.minorticks_off()
    save_picture(figure, "tab1")


if __name__ == "__main__":
    run_script(main)
