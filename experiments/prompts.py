"""Prompts against pixels: does the video show what the prompt says, and still after a minute?
(Sec. 4.2, Fig. 6)

An analyser that sees nothing but frames reads off shape, size, color, background and motion. The
script samples prompts of the toy world, half with a (shape, color, motion) triple that training
showed and half held out, and counts. "seam" is how much more changes from frame to frame at the
borders between clips than inside clips.

    python experiments/prompts.py                       # 100 + 100 prompts, a minute each
    python experiments/prompts.py --no-reencode         # Fig. 6's comparison
"""
import argparse
import json
import sys
import time

import numpy as np
from tqdm import tqdm

# metrics first: it puts the five files on the path
from metrics import DEVICE
from data import (BACKGROUNDS, COLORS, FPS, RADII, SPEEDS, TOY, WORDINGS, toy_attributes,
                  toy_cover)
from sample import generate_batch, load, set_threads

LOOKS = ("shape", "size", "color", "background")
MIN_AREA = 40  # pixels; the smallest object, a small triangle, covers 83
CONTRAST = 46  # half the least distance of the toy world's object and background colors


# ---------------------------------------------------------------------------
# the analyser

def nearest(colors, table):
    """The name in a table of named colors that is nearest to colors (T, 3) on
    average."""
    distance = {name: np.linalg.norm(colors - np.float32(color), axis=-1).mean()
                for name, color in table.items()}
    return min(distance, key=distance.get)


def locate(video):
    """video uint8 (T, H, W, 3) -> background colors (T, 3), object mask
    (T, H, W) bool, centres (T, 2), nan where the object is missing."""
    pixels = video.astype(np.float32)
    # the median is the background: the object covers at most a sixth of a frame
    ground = np.median(pixels.reshape(len(video), -1, 3), axis=1)
    contrast = np.linalg.norm(pixels - ground[:, None, None], axis=-1)
    # the mask has the pixels that are more object than background
    half = [np.median(c[c > CONTRAST]) / 2 if (c > CONTRAST).any() else 0 for c in contrast]
    mask = contrast > np.maximum(half, CONTRAST)[:, None, None]
    area = mask.sum((1, 2))
    grid = np.arange(mask.shape[1]) + 0.5
    with np.errstate(invalid="ignore", divide="ignore"):
        x, y = ((mask.sum(axis) * grid).sum(1) / area for axis in (1, 2))
    centre = np.stack([x, y], 1)
    centre[area < MIN_AREA] = np.nan
    return ground, mask, centre


def shape_and_size(mask, centre):
    """Those of the drawn template that overlaps the object best, if the mean
    IoU over the frames is at least 0.7 (two objects, or a smear, match none),
    else (None, None)."""
    overlap = {}
    for shape in TOY["shape"]:
        for size, radius in RADII.items():
            template = toy_cover(shape, radius, centre) > 0.5
            both, either = (mask & template).sum((1, 2)), (mask | template).sum((1, 2))
            overlap[shape, size] = (both / either).mean()
    best = max(overlap, key=overlap.get)
    return best if overlap[best] >= 0.7 else (None, None)


def motion_of(centre):
    """The motion of centres (T, 2), a name of data.TOY, or None if they
    hardly move."""
    smooth = np.stack([np.convolve(centre[:, i], np.ones(5) / 5, "valid") for i in range(2)], 1)
    dx, dy = np.abs(np.diff(smooth, axis=0)).sum(0)
    if dx + dy <= 0.25 * len(smooth):
        return None
    if dy < 0.3 * dx:
        return "left and right"
    if dx < 0.3 * dy:
        return "up and down"
    return "diagonally"


def analyse(video):
    """video uint8 (T, H, W, 3) -> the attributes that it shows, each a name
    of data.TOY or None where nothing is clear. Speed is left out."""
    ground, mask, centre = locate(video)
    found = dict.fromkeys(["shape", "size", "color", "motion"])
    found["background"] = nearest(ground, BACKGROUNDS)
    seen = ~np.isnan(centre[:, 0])
    if seen.mean() < 0.9:
        return found
    video, mask, centre = video[seen], mask[seen], centre[seen]
    found["shape"], found["size"] = shape_and_size(mask, centre)
    inside = toy_cover("circle", 4, centre) > 0.5  # well inside the smallest object
    colors = np.stack([np.median(frame[m], axis=0) for frame, m in zip(video, inside)])
    found["color"] = nearest(colors, COLORS)
    found["motion"] = motion_of(centre)
    return found


def speed(attributes):
    """Pixels per frame, along the direction of the motion."""
    diagonal = 2 ** 0.5 if attributes["motion"] == "diagonally" else 1
    return SPEEDS[attributes["speed"]] * diagonal


def in_motion(video, speed):
    """True if the object's centre moves throughout the video (T, H, W, 3):

    no jump of more than three times its speed (pixels per frame) between two
    frames, and in every stretch of just over a second at least a quarter of
    the distance that it should cover.
    """
    _, _, centre = locate(video)
    steps = np.linalg.norm(np.diff(centre, axis=0), axis=1)
    if np.isnan(centre).any() or steps.max() > 3 * speed:
        return False
    window = int(FPS) + 2  # frames that span just over a second
    spans = np.lib.stride_tricks.sliding_window_view(centre, window, axis=0)
    extent = np.linalg.norm(spans.max(-1) - spans.min(-1), axis=1)  # (T - window + 1,)
    return bool(extent.min() >= 0.25 * speed * (window - 1))


def changes(video):
    """Mean change of a pixel (0-255) from one frame to the next -> (at the
    borders between clips, inside clips). A seam shows as more at the
    borders."""
    change = np.abs(np.diff(video.astype(np.int16), axis=0)).mean((1, 2, 3))
    borders = np.arange(64, len(change), 60)  # the first clip has 65 frames, the others add 60
    return change[borders].mean(), np.delete(change, borders).mean()


def judge(video, attributes):
    """One sampled video against its prompt's attributes -> dict of bools."""
    ten = round(10 * FPS)
    first, last = analyse(video[:ten]), analyse(video[-ten:])
    verdict = {name: first[name] == attributes[name] for name in (*LOOKS, "motion")}
    verdict["first 10 s"] = all(verdict.values())
    verdict["last 10 s"] = all(last[name] == attributes[name]
                               for name in ("shape", "color", "background"))
    verdict["in motion"] = in_motion(video, speed(attributes))
    return verdict


# ---------------------------------------------------------------------------
# the script

def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--ckpt", help="checkpoint folder (default: the shipped toy weights)")
    p.add_argument("--n", type=int, default=100, help="prompts of each kind")
    p.add_argument("--seconds", type=float, default=60)
    p.add_argument("--batch-size", type=int, default=50)
    p.add_argument("--cfg-scale", type=float)
    p.add_argument("--top-k", type=int, default=50)
    p.add_argument("--temperature", type=float)
    p.add_argument("--no-reencode", action="store_true")
    p.add_argument("--out", help="write the numbers here as JSON")
    p.add_argument("--keep", help="write the videos here, as .npy")
    args = p.parse_args()
    model, tokenizer, text = load(args.ckpt, DEVICE)
    set_threads(model)
    began, results = time.time(), {}
    for kind, held in (("trained", False), ("held-out", True)):
        rng = np.random.default_rng([2024, held])
        wanted = [toy_attributes(rng, held) for _ in range(args.n)]
        captions = [WORDINGS[0].format(**a) for a in wanted]
        verdicts, seams = [], []
        for i in tqdm(range(0, args.n, args.batch_size), desc=kind):
            batch = slice(i, i + args.batch_size)
            seeds = range(args.n)[batch]
            clips = generate_batch(model, tokenizer, text, captions[batch], args.seconds,
                                   args.cfg_scale, args.top_k, args.temperature, seeds,
                                   not args.no_reencode)
            videos = np.concatenate(list(clips), axis=1)  # (B, T, H, W, 3)
            verdicts += [judge(v, a) for v, a in zip(videos, wanted[batch])]
            seams += [changes(v) for v in videos]
            if args.keep:
                np.save(f"{args.keep}.{kind}.{i}.npy", videos)

        shares = {name: float(np.mean([v[name] for v in verdicts])) for name in verdicts[0]}
        border, inside = np.mean(seams, axis=0)
        results[kind] = {name: round(share, 4) for name, share in shares.items()}
        results[kind]["seam"] = round(float(border / inside), 3)
        print(kind, results[kind], flush=True)
        for prompt, verdict in zip(captions, verdicts):
            wrong = [name for name, ok in verdict.items() if not ok]
            if wrong:
                print("   ", prompt, "->", ", ".join(wrong))
    if args.out:
        minutes = round((time.time() - began) / 60, 1)
        results |= {"prompts": args.n, "seconds": args.seconds,
                    "reencode": not args.no_reencode, "minutes": minutes}
        with open(args.out, "w") as f:
            json.dump(results, f, indent=1)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as e:
        sys.exit(f"prompts.py: {e}")
