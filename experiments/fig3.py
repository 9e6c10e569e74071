"""Figure 3: the loss per frame range when a model of images is trained directly on 65-frame clips.

The paper's imbalance needs first frames that the text does not determine and later ones that
follow from them. In the plain toy world the caption determines all of the first frame but a
position, so here the background is a mosaic that stands still and that no caption mentions. The
shipped tokenizer is first trained on it for a while.

    python experiments/fig3.py
"""
import sys

import numpy as np

# common first: it puts the five files on the path
from common import arguments, early_and_late, logged, plot, result, trained
from tokenizer import SHIPPED
from train import FRAME_RANGES


def train_on_mosaics(flags):
    """train.py in a toy world whose backgrounds are mosaics: 8x8 tiles of a
    token each, in the three background colors."""
    import data
    import train
    plain_clip = data.toy_clip

    def mosaic_clip(rng, frames):
        _, caption, a = plain_clip(rng, frames)
        colors = np.float32(list(data.BACKGROUNDS.values()))
        tiles = colors[rng.integers(len(colors), size=(8, 8))]
        ground = tiles.repeat(8, 0).repeat(8, 1)  # (64, 64, 3)
        cover = data.toy_cover(a["shape"], data.RADII[a["size"]], a["path"])[..., None]
        video = ground + cover * (data.COLORS[a["color"]] - ground)
        return np.rint(video).astype(np.uint8), caption, a

    data.toy_clip = mosaic_clip
    sys.argv = ["train.py", *flags]
    train.main()


def main():
    args = arguments(__doc__, tokenizer=400, images=400, steps=1000)  # steps of each training
    curves = []
    for seed in range(args.seeds):
        def train_on(stage, steps, *flags):
            return trained(f"mosaic{seed}", stage, seed, steps, *flags,
                           script="experiments/fig3.py")

        train_on(0, args.tokenizer, "--init", f"{SHIPPED}/tokenizer.pt")
        start = train_on(1, args.images)
        folder = train_on(3, args.steps, "--init", f"{start}/stage1.pt",
                          "--lambda", 0, "--image-every", 0)
        losses = np.array([[m["loss_" + r] for r in FRAME_RANGES] for m in logged(folder, 3)])
        bins = np.array_split(losses, min(30, len(losses)))
        curves.append([b.mean(0) for b in bins])
    curves = np.array(curves)  # (seeds, bins, ranges)
    bins = curves.shape[1]
    middle = args.steps * (np.arange(bins) + 0.5) / bins
    plot("fig3", "step", "loss on mosaics, nats per token",
         {f"frames {r}": (middle, curves[:, :, i]) for i, r in enumerate(FRAME_RANGES)},
         yscale="log")
    last = curves[:, -1]
    early, late = early_and_late(last)
    result("fig3", "trained directly on long clips (here on mosaics), frames 18-65 have less loss "
           "than frames 1-17", "the later the frames, the smaller the loss (curves only)",
           {f"loss of frames {r}": last[:, i] for i, r in enumerate(FRAME_RANGES)},
           {"loss of frames 1-17 minus that of 18-65": early - late})


if __name__ == "__main__":
    if "--stage" in sys.argv:
        train_on_mosaics(sys.argv[1:])
    else:
        main()
