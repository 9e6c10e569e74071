"""Figure 10 and Sec. 4.1: the tokenizer's reconstructions, and its codebook with and without Clustering VQ.

Trains small tokenizers from nothing, each seed once as train.py does and once with the codebook moved to features at the
first step only (plain VQ after a data-dependent start), and looks at them on clips that neither saw.

    python experiments/fig10.py
"""
import sys

import numpy as np
import torch

from common import DEVICE, arguments, drawn, drawn_videos, picture, result, trained
from data import to_float, to_uint8
from metrics import critic, critic_features, frechet_distance
from reconstruct import psnr
from tokenizer import ClusteringVQ, load_tokenizer


def train_plain(flags):
    """train.py with codes that are moved once and never again."""
    import train
    move = ClusteringVQ.reinitialize

    def first_time(self, seed, step):
        move(self, seed, step) if step == 0 else self.seen.clear()

    ClusteringVQ.reinitialize = first_time
    sys.argv = ["train.py", *flags]
    train.main()


def ssim(a, b):
    """Structural similarity of uint8 (..., H, W, 3) in windows of 8x8, mean over all (Wang et al., 2004)."""
    def blocks(x):
        x = x.astype(np.float64).reshape(-1, x.shape[-3] // 8, 8, x.shape[-2] // 8, 8, 3)
        return x.transpose(0, 1, 3, 5, 2, 4).reshape(-1, 64)
    a, b = blocks(a), blocks(b)
    covariance = ((a - a.mean(1, keepdims=True)) * (b - b.mean(1, keepdims=True))).mean(1)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return float(np.mean((2 * a.mean(1) * b.mean(1) + c1) * (2 * covariance + c2)
                         / ((a.mean(1) ** 2 + b.mean(1) ** 2 + c1) * (a.var(1) + b.var(1) + c2))))


def main():
    args = arguments(__doc__, steps=800, n=48)
    looks, values, shown = critic(), {}, {}
    for seed in range(args.seeds):
        video = drawn_videos(drawn(100 + seed, args.n), 17, seed)
        for kind, script in (("CVQ", "train.py"), ("plain VQ", "experiments/fig10.py")):
            folder = trained(f"{kind.split()[0]}{seed}", 0, seed, args.steps, script=script)
            tokenizer, _ = load_tokenizer(folder, DEVICE)
            with torch.inference_mode():
                tokens = torch.cat([tokenizer.encode(to_float(v).to(DEVICE)) for v in np.split(video, len(video) // 4)])
                again = np.concatenate([to_uint8(tokenizer.decode(t)) for t in tokens.split(4)])
            if not seed:
                shown |= {"clips": video[:8, -1], kind: again[:8, -1]}
            for what, value in (("PSNR, dB", psnr(video, again)), ("SSIM", ssim(video, again)),
                                ("Fréchet distance", frechet_distance(*(critic_features(v, looks) for v in (video, again)))),
                                ("share of codes used", len(tokens.unique()) / tokenizer.config.codebook_size)):
                values.setdefault(f"{what}, {kind}", []).append(value)
    picture("fig10", shown)
    used = [np.array(values[f"share of codes used, {kind}"]) for kind in ("CVQ", "plain VQ")]
    result("fig10", "Clustering VQ uses more of the codebook than plain VQ", "higher codebook usage (no number)", values,
           {"share of codes used, CVQ minus plain VQ": used[0] - used[1]})


if __name__ == "__main__":
    train_plain(sys.argv[1:]) if "--stage" in sys.argv else main()
