"""The tokenizer on clips it never saw: PSNR, codebook usage, strict causality (Fig. 10, Sec. 3.1).

    python experiments/reconstruct.py                       # 100 toy clips of 65 frames
    python experiments/reconstruct.py --picture FILE.png    # and a picture of the first four
"""
import argparse
import os
import sys

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from data import RADII, SIZE, latent_frames, to_float, to_uint8, toy_clip  # noqa: E402
from tokenizer import load_tokenizer  # noqa: E402


def psnr(a, b):
    """Peak signal-to-noise ratio of two uint8 arrays, in dB."""
    error = np.mean((a.astype(np.float64) - b) ** 2)
    return 10 * np.log10(255 ** 2 / max(error, 1e-9))


def boxes(videos, attributes):
    """The pixels in the object's bounding box (centre +- radius) over all
    frames: of each video uint8 (T, H, W, 3) -> uint8 (N,)."""
    radius, cut = RADII[attributes["size"]], []
    for t, (x, y) in enumerate(attributes["path"]):
        rows, columns = (slice(max(0, int(c - radius)), min(SIZE, int(np.ceil(c + radius))))
                         for c in (y, x))
        cut.append([video[t, rows, columns].ravel() for video in videos])
    return [np.concatenate(parts) for parts in zip(*cut)]


@torch.inference_mode()
def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--ckpt", help="folder with tokenizer.pt (default: the shipped toy weights)")
    p.add_argument("--clips", type=int, default=100)
    p.add_argument("--picture", help="write originals above reconstructions here")
    args = p.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer, _ = load_tokenizer(args.ckpt, device)
    frame, box, used, rows = [], [], set(), []
    flips, compared, future = 0, 0, 0
    for i in tqdm(range(args.clips)):
        rng = np.random.default_rng([777, i])
        video, _, attributes = toy_clip(rng, tokenizer.config.frames)
        x = to_float(video)[None].to(device)
        tokens = tokenizer.encode(x)
        decoded = tokenizer.decode(tokens)
        recon = to_uint8(decoded)[0]
        frame.append(psnr(video, recon))
        box.append(psnr(*boxes([video, recon], attributes)))
        used |= set(tokens.unique().tolist())
        # the first frames of the clip have its first tokens, and its first decoded frames
        for n in (1, 5, 9, 17):
            first = tokens[:, :latent_frames(n)]
            flips += (tokenizer.encode(x[:, :, :n]) != first).sum().item()
            compared += first.numel()
            difference = tokenizer.decode(first) - decoded[:, :, :n]
            future = max(future, difference.abs().max().item())
        if i < 4:
            rows += [np.concatenate(v[::16], 1) for v in (video, recon)]

    codes = tokenizer.config.codebook_size
    print(f"PSNR {np.mean(frame):.2f} dB over the frame, {np.mean(box):.2f} dB in the object's "
          f"box; {len(used)} of {codes} codes used ({len(used) / codes:.1%})")
    print(f"prefixes of 1, 5, 9, 17 frames: {flips} of {compared} tokens differ; decoded frames "
          f"differ by at most {future:.1e} without the future tokens")
    if args.picture:
        picture = np.concatenate(rows, 0).repeat(2, 0).repeat(2, 1)
        Image.fromarray(picture).save(args.picture)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as e:
        sys.exit(f"reconstruct.py: {e}")
