"""Figure 7: greedy decoding, top-k sampling, sampling from all codes: quality, motion and diversity.

    python experiments/fig7.py
"""
import numpy as np

from common import DEVICE, arguments, caption, drawn, drawn_videos, load, plot, result, right, sampled
from metrics import critic, critic_features, frechet_distance
from prompts import changes, in_motion, speed

DRAWS = 4  # videos of each prompt, to see how they differ

args = arguments(__doc__, n=8, seconds=10)
world = load(None, DEVICE)
looks = critic()
every_code = world[0].config.video_vocab
choices = (1, 5, 50, every_code)
MEASURES = ("as prompted", "in motion", "change between frames", "diversity", "Fréchet distance")
found = {what: [] for what in MEASURES}
for seed in range(args.seeds):
    wanted = [a for a in drawn(seed, args.n) for _ in range(DRAWS)]
    real = critic_features(drawn_videos(wanted * 2, 16, seed), looks)
    rows = {what: [] for what in found}
    for top_k in choices:
        videos = sampled(world, [caption(a) for a in wanted], args.seconds, seed, top_k=top_k, temperature=1.0)
        features = critic_features(videos, looks)
        rows["as prompted"].append(right(videos, wanted))
        rows["in motion"].append(np.mean([in_motion(v, speed(a)) for v, a in zip(videos, wanted)]))
        rows["change between frames"].append(np.mean([changes(v)[1] for v in videos]))
        first = videos[:, 0].reshape(args.n, DRAWS, -1).astype(np.float32)  # of one prompt, draw beside draw
        rows["diversity"].append(np.abs(first[:, :, None] - first[:, None]).mean() * DRAWS / (DRAWS - 1))
        rows["Fréchet distance"].append(frechet_distance(real, features))
    for what in found:
        found[what].append(rows[what])
names = ["greedy", "top-5", "top-50", "all codes"]
shown = {what: np.array(found[what]) for what in found}  # (seeds, choices)
plot("fig7", "top-k", "share of videos", {what: (choices, shown[what]) for what in MEASURES[:2]}, xscale="log",
     ylim=(0, 1.03))
result("fig7", "greedy decoding loses motion, sampling from all codes loses quality; top-k keeps both",
       "greedy: stable and still; all codes: dynamic and poor; top-k between (pictures only)",
       {f"{what}, {name}": shown[what][:, i] for what in shown for i, name in enumerate(names)},
       {f"{what}, top-50 minus {names[i]}": shown[what][:, 2] - shown[what][:, i]
        for what, i in (("change between frames", 0), ("as prompted", 3))})
