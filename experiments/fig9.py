"""Figure 9: prompts in wordings that training never used, two of the three also longer.

    python experiments/fig9.py
"""
import numpy as np

from common import WORDINGS, arguments, drawn, plot, ready, result, right, sampled

SENTENCES = [
    "on {background}: a {size} {shape}, all {color}, that {speed} moves {motion}",
    "here {speed} moves {motion} a {color} {shape} of {size} size before a {background} background",
    "watch how a {size} {color} {shape} moves {motion} {speed}, over and over, on a {background} "
    "wall"]

args = arguments(__doc__, n=16, seconds=10)
world = ready()
shares = []
for seed in range(args.seeds):
    wanted = drawn(seed, args.n)
    texts = [[wording.format(**a) for a in wanted] for wording in WORDINGS + SENTENCES]
    shares.append([right(sampled(world, t, args.seconds, seed), wanted) for t in texts])
shares = np.array(shares)  # (seeds, wordings)

known = len(WORDINGS)
names = [f"trained wording {i + 1}" for i in range(known)]
names += [f"new wording {i + 1}" for i in range(len(SENTENCES))]
plot("fig9", f"wording (1-{known} were trained)", "videos as prompted",
     {"first 10 s": (range(1, len(names) + 1), shares)}, ylim=(0, 1.03))
difference = shares[:, known:].mean(1) - shares[:, :known].mean(1)
result("fig9", "long and dense descriptions are followed; here: other wordings, with at most 10 "
       "points less than trained ones", "pictures only",
       {name: shares[:, i] for i, name in enumerate(names)},
       {"new wordings minus trained ones, plus 0.1": difference + 0.1})
