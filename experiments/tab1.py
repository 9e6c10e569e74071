"""Table 1: three sizes of the decoder, equal numbers of steps.

    python experiments/tab1.py
"""
import numpy as np

from common import (arguments, caption, drawn, drawn_videos, logged, note, picture, ready, result,
                    sampled, trained)
from metrics import critic, critic_features, frechet_distance, text_match

# dim, layers, heads, ffn
SIZES = {"0.4 M": (64, 4, 2, 172), "1.9 M": (128, 8, 4, 344), "5.8 M": (192, 12, 6, 512)}

args = arguments(__doc__, images=300, steps=600, n=48)
looks, values, shown = critic(), {}, {}
for seed in range(args.seeds):
    wanted = drawn(seed, args.n)
    real = critic_features(drawn_videos(wanted * 4, 17, seed), looks)
    if not seed:
        shown["as asked"] = drawn_videos(wanted[:8], 17, seed)[:, -1]
    for name, (dim, layers, heads, ffn) in SIZES.items():
        run = f"size{name.split()[0]}-{seed}"
        flags = ["--dim", dim, "--n-layers", layers, "--n-heads", heads, "--ffn-dim", ffn]
        trained(run, 1, seed, args.images, *flags)
        folder = trained(run, 2, seed, args.steps, *flags)
        videos = sampled(ready(folder), [caption(a) for a in wanted], 17 / 6.5, seed)
        if not seed:
            shown[name] = videos[:8, -1]
        note(values, name, {
            "Fréchet distance": frechet_distance(real, critic_features(videos, looks)),
            "text match": text_match(videos, wanted, looks).mean(),
            "validation loss": logged(folder, 2)[-1]["val_loss"]})

small, _, large = SIZES
picture("tab1", shown)
gain = np.subtract(values[f"text match, {large}"], values[f"text match, {small}"])
result("tab1", "larger models are better at equal steps",
       "FVD 633, 572, 432; text match 21.5, 22.8, 24.1 (700M, 3B, 7B)", values,
       {f"text match, {large} minus {small}": gain})
