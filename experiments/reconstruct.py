"""The tokenizer on clips it never saw: PSNR, codebook usage, causality, how far back it sees
(Fig. 10, Sec. 3.1).

    python experiments/reconstruct.py                       # 100 toy clips of 65 frames
    python experiments/reconstruct.py --picture FILE.png    # and a picture of the first four
    python experiments/reconstruct.py --films DIR           # your own, by tools/prepare.py --index
"""
import argparse
import copy
import os
import sys

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from data import Clips, latent_frames, to_float, to_uint8, toy_clip, video_frames  # noqa: E402
from tokenizer import VideoTokenizer, load_tokenizer  # noqa: E402
from tools.films import check_writable  # noqa: E402
from tools.machine import run_script  # noqa: E402


def psnr(a, b):
    """Peak signal-to-noise ratio of two uint8 arrays, in dB."""
    error = np.mean((a.astype(np.float64) - b) ** 2)
    return 10 * np.log10(255 ** 2 / max(error, 1e-9))


@torch.inference_mode()
def receptive_field(tokenizer, x):
    """How many latent frames change with the first frame of x (1, 3, T, H, W),
    counted in float64."""
    encoder = copy.deepcopy(tokenizer.encoder).double()
    other = x.double()
    other[:, :, :1] = -other[:, :, :1]
    change = (encoder(x.double()) - encoder(other)).abs().amax((0, 1, 3, 4))
    return int(change.nonzero().max()) + 1


@torch.inference_mode()
def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--ckpt", help="folder of a tokenizer (default: the shipped toy weights)")
    p.add_argument("--clips", type=int, default=100, help="how many")
    p.add_argument("--films", metavar="DIR", help="clips of these films, not the storybook's")
    p.add_argument("--frames", type=int, help="of each clip, 1 + 4k (default: the tokenizer's)")
    p.add_argument("--picture", help="write originals above reconstructions here")
    args = p.parse_args()
    if args.picture:
        check_writable(args.picture)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer, _ = load_tokenizer(args.ckpt, device)
    frames = args.frames or tokenizer.config.frames
    films = args.films and Clips(args.films, args.films, 777, 0, tokenizer.config.resolution)
    frame, box, used, rows = [], [], set(), []
    flips, compared, future, fresh = 0, 0, 0, []
    for i in tqdm(range(args.clips)):
        if films:
            video = films[0, i, frames][0]
        else:
            video, _, attributes = toy_clip(np.random.default_rng([777, i]), frames)
        x = to_float(video)[None].to(device)
        tokens = tokenizer.encode(x)
        decoded = tokenizer.decode(tokens)
        recon = to_uint8(decoded)[0]
        frame.append(psnr(video, recon))
        if not films:
            x0, y0, x1, y1 = attributes["box"]
            box.append(psnr(video[:, y0:y1, x0:x1], recon[:, y0:y1, x0:x1]))
        used |= set(tokens.unique().tolist())
        # the first frames of the clip have its first tokens, and its first decoded frames
        for n in (1, 5, 9, min(17, frames)):
            first = tokens[:, :latent_frames(n)]
            flips += (tokenizer.encode(x[:, :, :n]) != first).sum().item()
            compared += first.numel()
            difference = tokenizer.decode(first) - decoded[:, :, :n]
            future = max(future, difference.abs().max().item())
        # encoded afresh from frame 32 on, as when a clip is extended
        half = video_frames(latent_frames(frames) // 2 + 1) - 1  # such as 32
        again = tokenizer.encode(x[:, :, half:])
        old = tokens[:, latent_frames(half + 1) - 1:]
        fresh.append((again != old).float().mean((0, 2, 3)).tolist())
        if i < 4:
            rows += [np.concatenate(v[::16], 1) for v in (video, recon)]

    codes = tokenizer.config.codebook_size
    traveller = f", {np.mean(box):.2f} dB in the traveller's box" if box else ""
    print(f"PSNR {np.mean(frame):.2f} dB over the frame{traveller}; "
          f"{len(used)} of {codes} codes used ({len(used) / codes:.1%})")
    print(f"prefixes of 1, 5, 9, 17 frames: {flips} of {compared} tokens differ; decoded frames "
          f"differ by at most {future:.1e} without the future tokens")
    print(f"encoded afresh from frame {half}, tokens that change, by latent frame: "
          + " ".join(f"{share:.0%}" for share in np.mean(fresh, axis=0)))
    if isinstance(tokenizer, VideoTokenizer):  # an adopted one cannot compute in float64
        print(f"the first frame is seen in {receptive_field(tokenizer, x)} latent frames")
    if args.picture:
        picture = np.concatenate(rows, 0).repeat(2, 0).repeat(2, 1)
        Image.fromarray(picture).save(args.picture)


if __name__ == "__main__":
    run_script(main)
