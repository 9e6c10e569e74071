"""Figure 6: videos extended with and without token re-encoding, quality against time. Half the prompts are held out.

    python experiments/fig6.py
"""
import numpy as np

from common import DEVICE, WINDOW, arguments, caption, drawn, drawn_videos, load, plot, result, right, sampled
from metrics import critic, critic_features, frechet_distance

args = arguments(__doc__, seeds=8, n=8, seconds=120)  # n: of trained and of held-out triples
world = load(None, DEVICE)
looks = critic()
shares, distances = {}, {}
for how, reencode in (("re-encoded", True), ("old tokens", False)):
    for seed in range(100, 100 + args.seeds):  # not the ones with which this script was tried
        wanted = drawn(seed, args.n) + drawn(seed, args.n, held=True)
        videos = sampled(world, [caption(a) for a in wanted], args.seconds, seed, reencode=reencode)
        starts = range(0, videos.shape[1] - WINDOW + 1, WINDOW)
        shares.setdefault(how, []).append([right(videos[:, i:], wanted) for i in starts])
        real = critic_features(drawn_videos(wanted * 4, 16, seed), looks)
        distances.setdefault(how, []).append(  # from a fourth frame on, where objects are on a grid, as in clips at 0
            [frechet_distance(real, critic_features(videos[:, i // 4 * 4:], looks)) for i in starts])
shares, distances = ({how: np.array(y) for how, y in found.items()} for found in (shares, distances))  # (seeds, windows)
ends = 10 * np.arange(1, shares["old tokens"].shape[1] + 1)
plot("fig6", "seconds", "videos as prompted in the last 10 s", {how: (ends, y) for how, y in shares.items()}, ylim=(0, 1.03))
last = {how: rows[:, -6:].mean(1) for how, rows in shares.items()}
result("fig6", "without re-encoding, quality falls off as the video is extended",
       "re-encoding keeps quality and consistency (pictures only)",
       {f"as prompted in the last minute, {how}": rows for how, rows in last.items()}
       | {f"Fréchet distance {when}, {how}": rows[:, i] for i, when in ((0, "at the start"), (-1, "at the end"))
          for how, rows in distances.items()},
       {"as prompted in the last minute, re-encoded minus old tokens": last["re-encoded"] - last["old tokens"]})
