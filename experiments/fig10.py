"""Figure 10 and Sec. 4.1: the tokenizer's reconstructions, and its codebook with and without
Clustering VQ.

Trains small tokenizers from nothing, for each seed one as train.py does and one whose codebook is
moved to latents at the first step only (plain VQ after a data-dependent start), and compares them
on clips that neither was trained on.

    python experiments/fig10.py
"""
import sys

import numpy as np
import torch

# common first: it puts the five files on the path
from common import DEVICE, arguments, drawn, drawn_videos, note, picture, result, trained
from data import to_float, to_uint8
from metrics import critic, critic_features, frechet_distance
from reconstruct import psnr
from tokenizer import ClusteringVQ, load_tokenizer

SCRIPTS = {"CVQ": "train.py", "plain VQ": "experiments/fig10.py"}


def train_plain(flags):
    """train.py with codes that are moved once and never again."""
    import train
    move = ClusteringVQ.reinitialize

    def first_time(self, seed, step, finite):
        if step == 0:
            move(self, seed, step, finite)
        self.seen = []

    ClusteringVQ.reinitialize = first_time
    sys.argv = ["train.py", *flags]
    train.main()


def ssim(a, b):
    """Structural similarity of uint8 (..., H, W, 3) in windows of 8x8, mean
    over all (Wang et al., 2004)."""
    def blocks(x):
        H, W = x.shape[-3:-1]
        x = x.astype(np.float64).reshape(-1, H // 8, 8, W // 8, 8, 3)
        return x.transpose(0, 1, 3, 5, 2, 4).reshape(-1, 64)

    a, b = blocks(a), blocks(b)
    m_a, m_b = a.mean(1), b.mean(1)
    covariance = ((a - m_a[:, None]) * (b - m_b[:, None])).mean(1)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    above = (2 * m_a * m_b + c1) * (2 * covariance + c2)
    below = (m_a ** 2 + m_b ** 2 + c1) * (a.var(1) + b.var(1) + c2)
    return float(np.mean(above / below))


def main():
    args = arguments(__doc__, steps=800, n=48)
    looks, values, shown = critic(), {}, {}
    for seed in range(args.seeds):
        video = drawn_videos(drawn(100 + seed, args.n), 17, seed)
        real = critic_features(video, looks)
        for kind, script in SCRIPTS.items():
            run = f"{kind.split()[0]}{seed}"
            tokenizer, _ = load_tokenizer(trained(run, 0, seed, args.steps, script=script), DEVICE)
            with torch.inference_mode():
                tokens = torch.cat([tokenizer.encode(to_float(v).to(DEVICE))
                                    for v in np.split(video, len(video) // 4)])
                again = np.concatenate([to_uint8(tokenizer.decode(t)) for t in tokens.split(4)])
            if not seed:
                shown |= {"clips": video[:8, -1], kind: again[:8, -1]}
            note(values, kind, {
                "PSNR, dB": psnr(video, again), "SSIM": ssim(video, again),
                "Fréchet distance": frechet_distance(real, critic_features(again, looks)),
                "share of codes used": len(tokens.unique()) / tokenizer.config.codebook_size})
    picture("fig10", shown)
    cvq, plain = (np.array(values[f"share of codes used, {kind}"]) for kind in SCRIPTS)
    result("fig10", "Clustering VQ uses more of the codebook than plain VQ",
           "higher codebook usage (no number)", values,
           {"share of codes used, CVQ minus plain VQ": cvq - plain})


if __name__ == "__main__":
    if "--stage" in sys.argv:
        train_plain(sys.argv[1:])
    else:
        main()
