"""Figure 3: the loss per frame range when a model of images is trained directly on 65-frame clips.

    python experiments/fig3.py
"""
import numpy as np

from common import arguments, better, logged, plot, result, trained
from train import FRAME_RANGES

args = arguments(__doc__, images=600, steps=2000)  # steps of either training
curves = []
for seed in range(args.seeds):
    start = trained(f"images{seed}", 1, seed, args.images)
    folder = trained(f"direct{seed}", 3, seed, args.steps, "--init", f"{start}/stage1.pt", "--early-weight", 1, "--image-every", 0)
    lines = logged(folder, 3)
    bins = np.array_split(np.array([[m["loss_" + r] for r in FRAME_RANGES] for m in lines]), min(30, len(lines)))
    curves.append([b.mean(0) for b in bins])
curves = np.array(curves)  # (seeds, bins, ranges)
middle = args.steps * (np.arange(curves.shape[1]) + 0.5) / curves.shape[1]
plot("fig3", "step", "loss, nats a token", {f"frames {r}": (middle, curves[:, :, i]) for i, r in enumerate(FRAME_RANGES)})
last = dict(zip(FRAME_RANGES, curves[:, -1].T))
result("fig3", "trained directly on long clips, late frames have less loss than early ones, and the first frame's stays high",
       "at the end about 6.5 for the first frame, 4 for frames 50-65 (read off the curve)",
       {f"loss of frames {r}": v for r, v in last.items()}, better(last["1"], last["50-65"]))
