"""Inference length: trained on 10 seconds, how good are videos after up to 5 minutes? (Sec. 4.2)

    python experiments/length.py
"""
import numpy as np

from common import WINDOW, arguments, caption, drawn, plot, ready, result, right, sampled
from data import FPS

LENGTHS = (10, 30, 60, 120, 180, 240, 300)  # seconds

args = arguments(__doc__, n=8, seconds=300)
world = ready()
lengths = [s for s in LENGTHS if s <= args.seconds]
shares = []
for seed in range(args.seeds):
    wanted = drawn(seed, args.n)
    videos = sampled(world, [caption(a) for a in wanted], args.seconds, seed)
    ends = [round(s * FPS) for s in lengths]
    shares.append([right(videos[:, end - WINDOW:end], wanted) for end in ends])
shares = np.array(shares)  # (seeds, lengths)

plot("length", "seconds", "videos as prompted in the last 10 s", {"re-encoded": (lengths, shares)},
     ylim=(0, 1.03))
result("length", "videos many times longer than those trained on keep their quality, within 10 "
       "points", "pictures only",
       {f"as prompted in the 10 s before {s} s": shares[:, i] for i, s in enumerate(lengths)},
       {"last 10 s minus first 10 s, plus 0.1": shares[:, -1] - shares[:, 0] + 0.1})
