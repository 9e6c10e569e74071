"""Figure 6: videos extended with and without token re-encoding, quality against time. Half the
prompts are held out.

    python experiments/fig6.py
"""
import numpy as np

from common import (WINDOW, arguments, caption, drawn, drawn_videos, plot, ready, result, right,
                    sampled)
from metrics import critic, critic_features, frechet_distance

args = arguments(__doc__, seeds=8, n=8, seconds=120)  # n: of trained and of held-out triples
world = ready()
looks = critic()
shares, distances = {}, {}
for how, reencode in (("re-encoded", True), ("old tokens", False)):
    shares[how], distances[how] = [], []
    for seed in range(100, 100 + args.seeds):  # not the seeds that this script was developed on
        wanted = drawn(seed, args.n) + drawn(seed, args.n, held=True)
        videos = sampled(world, [caption(a) for a in wanted], args.seconds, seed,
                         reencode=reencode)
        starts = range(0, videos.shape[1] - WINDOW + 1, WINDOW)
        shares[how].append([right(videos[:, i:], wanted) for i in starts])
        real = critic_features(drawn_videos(wanted * 4, 16, seed), looks)
        # Each window from a multiple of 4 frames on: there the land is on the grid of tokens,
        # as it is at the start of a drawn clip
        distances[how].append([
            frechet_distance(real, critic_features(videos[:, i // 4 * 4:], looks))
            for i in starts])
shares = {how: np.array(rows) for how, rows in shares.items()}  # (seeds, windows)
distances = {how: np.array(rows) for how, rows in distances.items()}

ends = 10 * np.arange(1, shares["old tokens"].shape[1] + 1)
plot("fig6", "seconds", "videos as prompted in the last 10 s",
     {how: (ends, y) for how, y in shares.items()}, ylim=(0, 1.03))
last = {how: rows[:, -6:].mean(1) for how, rows in shares.items()}
values = {f"as prompted in the last minute, {how}": rows for how, rows in last.items()}
for when, i in (("start", 0), ("end", -1)):
    for how, rows in distances.items():
        values[f"Fréchet distance at the {when}, {how}"] = rows[:, i]
result("fig6", "without re-encoding, quality falls off as the video is extended",
       "re-encoding keeps quality and consistency (pictures only)", values,
       {"as prompted in the last minute, re-encoded minus old tokens":
        last["re-encoded"] - last["old tokens"]})
