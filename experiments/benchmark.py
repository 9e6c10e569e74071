"""Real data: the long benchmark of Sec. 4.2 (Table 1) and the MSR-VTT protocol of Table 2, for whoever has the data.

--input is a folder as tools/prepare.py reads it, videos beside their captions. A video is generated for each caption, and set
against the real ones: FVD through I3D on 16 frames, and CLIP score of the generated frames, in percent (Table 1's VTM is
by ViT-L/14; Table 2's CLIPSIM is by ViT-B/32 as a rule, and not in percent). Figure 8, a user study, cannot be reproduced
by a program.

    # the paper's own benchmark: the 1000 longest clips of WebVid's validation set, cut to the shortest one's 27 seconds
    python experiments/benchmark.py --input webvid_val --longest 1000 --seconds 27 --ckpt runs/7b --i3d i3d_torchscript.pt
    # MSR-VTT, zero-shot: its 2990 test videos, one caption each, 16 frames
    python experiments/benchmark.py --input msrvtt_test --seconds 2.5 --ckpt runs/7b --i3d i3d_torchscript.pt \
        --clip openai/clip-vit-base-patch32
"""
import argparse
import json
import sys

import numpy as np
from tqdm import tqdm

from metrics import DEVICE, FRAMES, clip, clip_score, frechet_distance, i3d, i3d_features  # first: it finds the others
from data import FPS
from prepare import folder_items
from sample import generate_batch, load


def longest_first(items):
    import av
    def length(item):
        try:
            with av.open(item.path) as film:
                return film.duration or 0
        except (av.FFmpegError, OSError):
            return 0
    return sorted(items, key=length, reverse=True)


def windows(video):
    """16 frames from every whole 16 of a video (T, H, W, 3): the whole of a long one counts."""
    return np.stack(np.split(video[:len(video) // FRAMES * FRAMES], len(video) // FRAMES))


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--input", required=True, help="folder of videos beside NAME.txt, or with captions.jsonl")
    p.add_argument("--i3d", required=True, help="the I3D torchscript of FVD")
    p.add_argument("--clip", default="openai/clip-vit-large-patch14", help="CLIP's weights, or 'none'")
    p.add_argument("--ckpt", help="checkpoint folder (default: the shipped toy weights)")
    p.add_argument("--longest", type=int, default=0, help="take that many of the longest videos (0: all)")
    p.add_argument("--seconds", type=float, default=27)
    p.add_argument("--batch-size", type=int, default=16)
    p.add_argument("--cfg-scale", type=float)
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args()
    model, tokenizer, text = load(args.ckpt, DEVICE)
    frames, size = round(args.seconds * FPS), tokenizer.config.resolution
    if frames < FRAMES:
        raise ValueError(f"--seconds must be {FRAMES / FPS:.1f} or more: FVD looks at {FRAMES} frames")
    i3d(args.i3d), args.clip == "none" or clip(args.clip)  # if they cannot be had, say so now
    items = [item for item in folder_items(args.input) if item.caption]
    items = longest_first(items)[:args.longest] if args.longest else items
    real, generated, scores, captions = [], [], [], []
    for item in tqdm(items, desc="real"):
        try:
            video = item.read(frames, size)[0]
        except ValueError:
            continue
        if len(video) == frames:
            real.append(i3d_features(windows(video), args.i3d))
            captions.append(item.caption)
    for i in tqdm(range(0, len(captions), args.batch_size), desc="generated"):
        batch = captions[i:i + args.batch_size]
        made = np.concatenate(list(generate_batch(model, tokenizer, text, batch, args.seconds, args.cfg_scale,
                                                  seeds=range(args.seed + i, args.seed + i + len(batch)))), 1)
        generated += [i3d_features(windows(video), args.i3d) for video in made]
        if args.clip != "none":
            scores.extend(clip_score(made, batch, args.clip))
    if not captions:
        raise ValueError(f"{args.input}: no captioned video of {args.seconds} seconds")
    distance = frechet_distance(np.concatenate(real), np.concatenate(generated))
    print(json.dumps({"videos": len(captions), "passed over": len(items) - len(captions), "seconds": args.seconds,
                      "FVD": round(distance, 3), **({"CLIP score": round(float(np.mean(scores)), 3)} if scores else {})}))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as e:
        sys.exit(f"benchmark.py: {e}")
