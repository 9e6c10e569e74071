"""Figure 3: the loss per frame range when a model of images is trained directly on 65-frame clips.

These are the direct trainings of Figure 5; what either script has trained, the other does not
repeat.

    python experiments/fig3.py
"""
import numpy as np

from common import arguments, early_and_late, logged, plot, result, trained
from train import FRAME_RANGES

args = arguments(__doc__, images=600, steps=2000)  # as in fig5.py
curves = []
for seed in range(args.seeds):
    start = trained(f"images{seed}", 1, seed, args.images)
    folder = trained(f"direct{seed}", 3, seed, args.steps, "--init", f"{start}/stage1.pt",
                     "--lambda", 0, "--image-every", 0)
    losses = np.array([[m["loss_" + r] for r in FRAME_RANGES] for m in logged(folder, 3)])
    bins = np.array_split(losses, min(30, len(losses)))
    curves.append([b.mean(0) for b in bins])
curves = np.array(curves)  # (seeds, bins, ranges)
bins = curves.shape[1]
middle = args.steps * (np.arange(bins) + 0.5) / bins
plot("fig3", "step", "loss, nats per token",
     {f"frames {r}": (middle, curves[:, :, i]) for i, r in enumerate(FRAME_RANGES)}, yscale="log")
last = curves[:, -1]
early, late = early_and_late(last)
result("fig3", "trained directly on long clips, frames 18-65 have less loss than frames 1-17",
       "the later the frames, the smaller the loss (curves only)",
       {f"loss of frames {r}": last[:, i] for i, r in enumerate(FRAME_RANGES)},
       {"loss of frames 1-17 minus that of 18-65": early - late})
