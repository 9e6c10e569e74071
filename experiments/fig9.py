"""Figure 9: sentences longer and denser than any that was trained.

    python experiments/fig9.py
"""
import numpy as np

from common import DEVICE, arguments, better, caption, drawn, load, plot, result, right, sampled

SENTENCES = ["on {background}: a {size} {shape}, all {color}, that {speed} moves {motion}",
             "here {speed} moves {motion} a {color} {shape} of {size} size before a {background} background",
             "watch how a {size} {color} {shape} moves {motion} {speed}, over and over, on a {background} wall"]

args = arguments(__doc__, n=24, seconds=10)
world = load(None, DEVICE)
shares = []
for seed in range(args.seeds):
    wanted = drawn(seed, args.n)
    texts = [[caption(a) for a in wanted]] + [[s.format(**a) for a in wanted] for s in SENTENCES]
    shares.append([right(sampled(world, t, args.seconds, seed), wanted) for t in texts])
shares = np.array(shares)
plot("fig9", "wording (0: trained)", "videos as prompted", {"first 10 s": (range(shares.shape[1]), shares)})
result("fig9", "long and dense descriptions are followed", "pictures only",
       {name: shares[:, i] for i, name in enumerate(["trained wording", *(f"new wording {i + 1}" for i in range(3))])},
       not better(shares[:, 0], shares[:, 1:].mean(1)))
