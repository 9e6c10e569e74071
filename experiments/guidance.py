"""The guidance scale (Sec. 4.1: 7.5): do videos follow their prompts better?

The prompts are triples of traveller, color and land that training never showed.

    python experiments/guidance.py
"""
import numpy as np

from common import arguments, caption, drawn, drawn_videos, plot, ready, result, right, sampled
from metrics import critic, critic_features, frechet_distance, text_match

SCALES = (1.0, 1.5, 2.0, 3.0, 5.0, 7.5)

args = arguments(__doc__, n=24, seconds=10)
world = ready()
looks = critic()
share, match, distance = [], [], []
for seed in range(args.seeds):
    wanted = drawn(seed, args.n, held=True)
    real = critic_features(drawn_videos(wanted * 4, 16, seed), looks)
    videos = [sampled(world, [caption(a) for a in wanted], args.seconds, seed, cfg_scale=scale)
              for scale in SCALES]
    share.append([right(v, wanted) for v in videos])
    match.append([text_match(v, wanted, looks).mean() for v in videos])
    distance.append([frechet_distance(real, critic_features(v, looks)) for v in videos])
share, match, distance = map(np.array, (share, match, distance))  # (seeds, scales)

plot("guidance", "guidance scale", "share / probability",
     {"as prompted": (SCALES, share), "critic's probability of the prompt": (SCALES, match)},
     ylim=(0, 1.03))
measured = {"as prompted": share, "text match": match, "Fréchet distance": distance}
result("guidance", "guidance makes videos follow the text", "scale 7.5 is used, no sweep is shown",
       {f"{what}, scale {scale:g}": rows[:, i] for what, rows in measured.items()
        for i, scale in enumerate(SCALES)},
       {"text match, scale 7.5 minus scale 1": match[:, -1] - match[:, 0]})
