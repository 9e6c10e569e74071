"""Figure 7: greedy decoding, top-k sampling, sampling from all codes: quality, diversity between
frames and between videos.

What differs from frame to frame is the new land: greedy decoding should make it dull, sampling
from all codes should tear it.

    python experiments/fig7.py
"""
import numpy as np

from common import (arguments, caption, drawn, drawn_videos, in_one_piece, invented, note, plot,
                    ready, result, right, sampled)
from metrics import critic, critic_features, frechet_distance
from prompts import changes

DRAWS = 2  # videos of each prompt, to see how they differ

args = arguments(__doc__, n=16, seconds=10)
world = ready()
looks = critic()
choices = {"greedy": 1, "top-5": 5, "top-50": 50, "all codes": world[0].config.video_vocab}
values = {}
for seed in range(args.seeds):
    wanted = [a for a in drawn(seed, args.n) for _ in range(DRAWS)]
    real = critic_features(drawn_videos(wanted * 2, 16, seed), looks)
    for name, top_k in choices.items():
        videos = sampled(world, [caption(a) for a in wanted], args.seconds, seed, top_k=top_k,
                         temperature=1.0)
        # the first frames of one prompt's draws, each draw beside each
        first = videos[:, 0].reshape(args.n, DRAWS, -1).astype(np.float32)
        between = np.abs(first[:, :, None] - first[:, None]).mean()
        note(values, name, {
            "as prompted": right(videos, wanted),
            "land in one piece": in_one_piece(videos, wanted),
            # of one draw per prompt, as those of greedy decoding are all the same
            "distance of new land, pixels": invented(videos[::DRAWS], wanted[::DRAWS]),
            "change between frames": np.mean([changes(v)[1] for v in videos]),
            "diversity": between * DRAWS / (DRAWS - 1),
            "Fréchet distance": frechet_distance(real, critic_features(videos, looks))})


def of(what):
    """-> (seeds, choices)"""
    return np.transpose([values[f"{what}, {name}"] for name in choices])


plot("fig7", "top-k", "share of videos",
     {what: (list(choices.values()), of(what)) for what in ("as prompted", "land in one piece")},
     xscale="log", ylim=(0, 1.03))
land, pieces = of("distance of new land, pixels"), of("land in one piece")
result("fig7", "greedy decoding makes dull land, sampling from all codes torn land; top-k keeps "
       "the world's own", "greedy: stable, no diversity between frames; all codes: dynamic and "
       "poor; top-k between (pictures only)", values,
       {"distance of new land, greedy minus top-50": land[:, 0] - land[:, 2],
        "land in one piece, top-50 minus all codes": pieces[:, 2] - pieces[:, 3]})
