"""Figure 6: videos extended with and without token re-encoding, quality against time. Half the prompts are held-out triples.

    python experiments/fig6.py
"""
import numpy as np

from common import DEVICE, WINDOW, arguments, better, caption, drawn, drawn_videos, load, plot, result, right, sampled
from metrics import critic, critic_features, frechet_distance

args = arguments(__doc__, seeds=8, n=8, seconds=120)  # n: of trained and of held-out triples
world = load(None, DEVICE)
looks = critic()
shares, distances = {}, {}
for how, reencode in (("re-encoded", True), ("old tokens", False)):
    shares[how], distances[how] = [], []
    for seed in range(args.seeds):
        wanted = drawn(seed, args.n) + drawn(seed, args.n, held=True)
        videos = sampled(world, [caption(a) for a in wanted], args.seconds, seed, reencode=reencode)
        real = critic_features(drawn_videos(wanted * 4, 16, seed), looks)
        windows = [videos[:, i:i + WINDOW] for i in range(0, videos.shape[1] - WINDOW + 1, WINDOW)]
        shares[how].append([right(w, wanted) for w in windows])
        distances[how].append(frechet_distance(real, critic_features(windows[-1], looks)))
ends = 10 * np.arange(1, len(shares["old tokens"][0]) + 1)
plot("fig6", "seconds", "videos as prompted in the last 10 s", {how: (ends, y) for how, y in shares.items()})
last = {how: [np.mean(row[-6:]) for row in rows] for how, rows in shares.items()}
result("fig6", "without re-encoding, quality falls off as the video is extended",
       "re-encoding keeps quality and consistency (pictures only)",
       {f"as prompted in the last minute, {how}": rows for how, rows in last.items()}
       | {f"Fréchet distance of the last 10 s, {how}": row for how, row in distances.items()},
       better(last["re-encoded"], last["old tokens"]))
