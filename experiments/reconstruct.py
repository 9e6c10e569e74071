"""The tokenizer on clips it never saw: PSNR, codebook usage, strict causality (Fig. 10, Sec. 3.1).

    python experiments/reconstruct.py            # 100 toy clips of 65 frames; a picture with --picture FILE.png
"""
import argparse
import os
import sys

import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from data import RADII, SIZE, toy_clip, to_float, to_uint8  # noqa: E402
from tokenizer import load_tokenizer  # noqa: E402


def psnr(a, b):
    """Peak signal-to-noise ratio of two uint8 arrays, in dB."""
    return 10 * np.log10(255 ** 2 / max(np.mean((a.astype(np.float64) - b) ** 2), 1e-9))


def box_psnr(a, b, attributes):
    """PSNR inside the object's bounding box (centre +- radius), over all frames of uint8 (T, H, W, 3)."""
    radius, error = RADII[attributes["size"]], []
    for t, (x, y) in enumerate(attributes["path"]):
        rows, columns = (slice(max(0, int(c - radius)), min(SIZE, int(np.ceil(c + radius)))) for c in (y, x))
        error.append(((a[t, rows, columns].astype(np.float64) - b[t, rows, columns]) ** 2).ravel())
    return 10 * np.log10(255 ** 2 / max(np.concatenate(error).mean(), 1e-9))


@torch.inference_mode()
def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--ckpt", help="folder with tokenizer.pt (default: the shipped toy weights)")
    p.add_argument("--clips", type=int, default=100)
    p.add_argument("--picture", help="write originals above reconstructions here")
    args = p.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer, _ = load_tokenizer(args.ckpt, device)
    frame, box, used, flips, compared, future, rows = [], [], set(), 0, 0, 0, []
    for i in tqdm(range(args.clips)):
        video, _, attributes = toy_clip(np.random.default_rng([777, i]), tokenizer.config.frames)
        x = to_float(video)[None].to(device)
        tokens = tokenizer.encode(x)
        decoded = tokenizer.decode(tokens)
        recon = to_uint8(decoded)[0]
        frame.append(psnr(video, recon))
        box.append(box_psnr(video, recon, attributes))
        used |= set(tokens.unique().tolist())
        for n in (1, 5, 9, 17):  # a prefix of the clip has the prefix of its tokens, and of its reconstruction
            t = 1 + (n - 1) // 4
            flips += (tokenizer.encode(x[:, :, :n]) != tokens[:, :t]).sum().item()
            compared += tokens[:, :t].numel()
            future = max(future, (tokenizer.decode(tokens[:, :t]) - decoded[:, :, :n]).abs().max().item())
        if i < 4:
            rows += [np.concatenate(v[::16], 1) for v in (video, recon)]
    print(f"PSNR {np.mean(frame):.2f} dB over the frame, {np.mean(box):.2f} dB in the object's box; "
          f"{len(used)} of {tokenizer.config.codebook_size} codes used ({len(used) / tokenizer.config.codebook_size:.1%})")
    print(f"prefixes of 1, 5, 9, 17 frames: {flips} of {compared} tokens differ; "
          f"decoded frames differ by at most {future:.1e} without the future tokens")
    if args.picture:
        import imageio.v3
        picture = np.concatenate(rows, 0).repeat(2, 0).repeat(2, 1)
        imageio.v3.imwrite(args.picture, picture)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as e:
        sys.exit(f"reconstruct.py: {e}")
