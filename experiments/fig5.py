"""Figure 5: 65-frame clips directly after images, against short-to-long training with lambda = 0,
1, 3, at equal tokens.

Every model first trains on the same images. The direct one then trains --steps steps on 65-frame
clips; the others spend half of these tokens on 17-frame clips, and the other half on 65-frame
clips. They are judged by the first 17 frames that they sample.

    python experiments/fig5.py
"""
import numpy as np

from common import (LOOKS, arguments, caption, drawn, drawn_videos, early_and_late, logged,
                    note, picture, ready, result, right, sampled, trained)
from metrics import critic, critic_features, frechet_distance
from train import FRAME_RANGES

args = arguments(__doc__, images=600, steps=2000, n=48)  # images, steps: as in fig3.py
looks, values, shown = critic(), {}, {}
for seed in range(args.seeds):
    start = trained(f"images{seed}", 1, seed, args.images)

    def clips(run, stage, steps, init, lambda_=0):
        return trained(run, stage, seed, steps, "--init", init, "--lambda", lambda_,
                       "--image-every", 0)

    # a step has 2 x 17 latent frames in stage 3, 4 x 5 in stage 2
    short = clips(f"short{seed}", 2, args.steps * 17 // 20, f"{start}/stage1.pt")
    runs = {"direct": clips(f"direct{seed}", 3, args.steps, f"{start}/stage1.pt")}
    for lambda_ in (0, 1, 3):
        runs[f"short to long, lambda {lambda_}"] = clips(
            f"long{seed}-lambda{lambda_}", 3, args.steps // 2, f"{short}/stage2.pt", lambda_)

    wanted = drawn(seed, args.n)
    real = critic_features(drawn_videos(wanted * 4, 17, seed), looks)
    if not seed:
        shown["as asked"] = drawn_videos(wanted[:8], 17, seed)[:, -1]
    for name, folder in runs.items():
        videos = sampled(ready(folder), [caption(a) for a in wanted], 17 / 6.5, seed)
        if not seed:
            shown[name] = videos[:8, -1]
        losses = [[m["loss_" + r] for r in FRAME_RANGES] for m in logged(folder, 3)[-100:]]
        early, late = early_and_late(np.mean(losses, axis=0))
        note(values, name, {
            "looks as prompted": right(videos, wanted, LOOKS),
            "Fréchet distance": frechet_distance(real, critic_features(videos, looks)),
            "loss of frames 1-17": early, "loss of frames 18-65": late})

picture("fig5", shown)
reweighted = values["looks as prompted, short to long, lambda 1"]
direct = values["looks as prompted, direct"]
result("fig5", "short-to-long training with re-weighting keeps the appearance of the first 17 "
       "frames", "direct training degrades objects (pictures only)", values,
       {"looks as prompted, lambda 1 minus direct": np.subtract(reweighted, direct)})
