"""Real data: the long benchmark of Sec. 4.2 (Table 1) and the MSR-VTT protocol of Table 2, for
whoever has the data.

--input is a folder of videos NAME.mp4 (or .webm, .mkv ...), each beside its caption NAME.txt. A
video is generated for each caption and compared with the real ones: FVD through I3D on 16 frames,
and the CLIP score of the generated frames, in percent (Table 1's VTM is by ViT-L/14; Table 2's
CLIPSIM is usually by ViT-B/32, and not in percent). Figure 8 is a user study, which no program
can reproduce.

    # the paper's own benchmark: the 1000 longest clips of WebVid's validation set, cut to 27 s
    python experiments/benchmark.py --input webvid_val --longest 1000 --seconds 27 \
        --ckpt runs/7b --i3d i3d_torchscript.pt
    # MSR-VTT, zero-shot: its 2990 test videos, one caption each, 16 frames
    python experiments/benchmark.py --input msrvtt_test --seconds 2.5 \
        --ckpt runs/7b --i3d i3d_torchscript.pt --clip openai/clip-vit-base-patch32
"""
import argparse
import json
import math
import sys

import av
import numpy as np
import torch
from tqdm import tqdm

# metrics first: it puts the five files on the path
from metrics import DEVICE, FRAMES, clip, clip_score, frechet_distance, i3d, i3d_features

# isort: split
from data import FPS
from sample import generate_batch, load
from tools.films import VIDEOS, NoFilm, duration, ending, open_film, read_clip
from tools.machine import run_script, set_threads
from tools.prepare import caption_beside, folder_items


def captioned(folder):
    """The videos under a folder that have a caption -> [(path, caption)]."""
    return [(item.file, caption) for item in folder_items(folder)
            if ending(item.name) in VIDEOS
            and (caption := item.caption or caption_beside(item.file))]


def length(path):
    """Of a video file, in seconds; 0 if it cannot be read."""
    try:
        with open_film(path) as (film, stream):
            return duration(film, stream)
    except (av.FFmpegError, NoFilm, OSError):
        return 0


def windows(video):
    """(T, H, W, 3) -> (T // 16, 16, H, W, 3): the whole of a long video counts."""
    n = len(video) // FRAMES
    return video[:n * FRAMES].reshape(n, FRAMES, *video.shape[1:])


def videos_that_fit(config, free):
    """How many guided videos a bfloat16 cache of 80 % of `free` bytes holds:
    keys and values of every layer, with the caption and without. At most 16."""
    video = 2 * 2 * config.n_layers * config.max_len * config.dim * 2
    return int(max(1, min(16, 0.8 * free / video)))


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--input", required=True, help="folder of videos beside NAME.txt")
    p.add_argument("--i3d", required=True, help="the I3D torchscript of FVD")
    p.add_argument("--clip", default="openai/clip-vit-large-patch14",
                   help="CLIP's weights, or 'none'")
    p.add_argument("--ckpt", help="checkpoint folder (default: the shipped toy weights)")
    p.add_argument("--longest", type=int, default=0,
                   help="take this many of the longest videos (0: all)")
    p.add_argument("--seconds", type=float, default=27)
    p.add_argument("--batch-size", type=int, help="videos at once (default: 16, or as many "
                   "as fit into the GPU's memory)")
    p.add_argument("--cfg-scale", type=float)
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args()
    model, tokenizer, text = load(args.ckpt, DEVICE)
    set_threads(model)
    free = torch.cuda.mem_get_info()[0] if DEVICE.type == "cuda" else math.inf
    at_once = args.batch_size or videos_that_fit(model.config, free)
    print(f"{at_once} videos at once", file=sys.stderr)
    frames, size = round(args.seconds * FPS), tokenizer.config.resolution
    if frames < FRAMES:
        raise ValueError(f"--seconds must be at least {FRAMES / FPS:.1f}: "
                         f"FVD needs {FRAMES} frames")
    i3d(args.i3d)  # if a network cannot be loaded, say so now
    if args.clip != "none":
        clip(args.clip)

    videos = captioned(args.input)
    if args.longest:
        videos.sort(key=lambda video: length(video[0]), reverse=True)
        videos = videos[:args.longest]
    real, captions = [], []
    for path, caption in tqdm(videos, desc="real"):
        try:
            video = read_clip(path, frames, FPS, size)
        except ValueError:  # too short, or damaged
            continue
        real.append(i3d_features(windows(video), args.i3d))
        captions.append(caption)
    if not captions:
        raise ValueError(f"{args.input}: no captioned video of {args.seconds} seconds")

    generated, scores = [], []
    for i in tqdm(range(0, len(captions), at_once), desc="generated"):
        batch = captions[i:i + at_once]
        seeds = range(args.seed + i, args.seed + i + len(batch))
        made = np.concatenate(list(generate_batch(
            model, tokenizer, text, batch, args.seconds, seeds, cfg_scale=args.cfg_scale)), 1)
        generated += [i3d_features(windows(video), args.i3d) for video in made]
        if args.clip != "none":
            scores.extend(clip_score(made, batch, args.clip))

    distance = frechet_distance(np.concatenate(real), np.concatenate(generated))
    found = {"videos": len(captions), "passed over": len(videos) - len(captions),
             "seconds": args.seconds, "FVD": round(distance, 3)}
    if scores:
        found["CLIP score"] = round(float(np.mean(scores)), 3)
    print(json.dumps(found))


if __name__ == "__main__":
    run_script(main)
