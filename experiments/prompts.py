"""Prompts against pixels: does the video show what the prompt says, and still after a minute? (Sec. 4.2, Fig. 6)

An analyser that sees frames only reads off shape, size, colour, background and motion; the script samples prompts of
the toy world, half with a (shape, color, motion) triple that training showed and half held out, and counts. "seam" is
how much more changes from frame to frame across clip borders than inside clips.

    python experiments/prompts.py                       # 100 + 100 prompts, a minute each
    python experiments/prompts.py --no-reencode         # Fig. 6's comparison
"""
import argparse
import json
import os
import sys
import time

import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from data import BACKGROUNDS, COLORS, FPS, RADII, SPEEDS, TOY, WORDINGS, toy_attributes, toy_cover  # noqa: E402
from sample import generate_batch, load  # noqa: E402

LOOKS = ("shape", "size", "color", "background")
MIN_AREA = 40  # pixels; the smallest object, a small triangle, covers 83


def nearest(colors, table):
    """Mean distance of colours (T, 3) to each named colour of a table -> the nearest name."""
    distance = {name: np.linalg.norm(colors - np.float32(c), axis=-1).mean() for name, c in table.items()}
    return min(distance, key=distance.get)


def locate(video):
    """video uint8 (T, H, W, 3) -> ground colours (T, 3), object mask (T, H, W) bool, centres (T, 2), nan where the
    object is missing."""
    pixels = video.astype(np.float32)
    ground = np.median(pixels.reshape(len(video), -1, 3), axis=1)  # the object covers at most a sixth of a frame
    contrast = np.linalg.norm(pixels - ground[:, None, None], axis=-1)
    half = [np.median(c[c > 46]) / 2 if (c > 46).any() else 0 for c in contrast]  # 46: half the toy world's least contrast
    mask = contrast > np.maximum(half, 46)[:, None, None]  # pixels that are more object than ground
    area = mask.sum((1, 2))
    grid = np.arange(mask.shape[1]) + 0.5
    with np.errstate(invalid="ignore", divide="ignore"):
        centre = np.stack([(mask.sum(1) * grid).sum(1) / area, (mask.sum(2) * grid).sum(1) / area], 1)
    centre[area < MIN_AREA] = np.nan
    return ground, mask, centre


def analyse(video):
    """video uint8 (T, H, W, 3) -> the attributes it shows, each a name of data.TOY or None where nothing is clear.

    Shape and size are those of the drawn template that overlaps the object best (mean IoU over the frames, at least
    0.7: two objects, or a smear, match none). Speed is left out.
    """
    ground, mask, centre = locate(video)
    found = dict.fromkeys(["shape", "size", "color", "motion"]) | {"background": nearest(ground, BACKGROUNDS)}
    seen = ~np.isnan(centre[:, 0])
    if seen.mean() < 0.9:
        return found
    video, mask, centre = video[seen], mask[seen], centre[seen]
    overlap = {}
    for shape in TOY["shape"]:
        for size, radius in RADII.items():
            template = toy_cover(shape, radius, centre) > 0.5
            overlap[shape, size] = ((mask & template).sum((1, 2)) / (mask | template).sum((1, 2))).mean()
    shape, size = max(overlap, key=overlap.get)
    if overlap[shape, size] >= 0.7:
        found |= {"shape": shape, "size": size}
    inside = toy_cover("circle", 4, centre) > 0.5  # well inside the smallest object
    found["color"] = nearest(np.stack([np.median(f[m], axis=0) for f, m in zip(video, inside)]), COLORS)
    smooth = np.stack([np.convolve(centre[:, i], np.ones(5) / 5, "valid") for i in range(2)], 1)
    dx, dy = np.abs(np.diff(smooth, axis=0)).sum(0)
    if dx + dy > 0.25 * len(smooth):
        found["motion"] = "left and right" if dy < 0.3 * dx else "up and down" if dx < 0.3 * dy else "diagonally"
    return found


def speed(attributes):
    """Pixels a frame, along the way the object goes."""
    return SPEEDS[attributes["speed"]] * (2 ** 0.5 if attributes["motion"] == "diagonally" else 1)


def in_motion(video, speed):
    """True if the centre of what differs from the ground moves through the whole video (T, H, W, 3) without a jump of over
    three times its speed (pixels a frame) between two frames and without a standstill of over a second (a quarter of the way
    it should make)."""
    _, _, centre = locate(video)
    if np.isnan(centre).any() or np.linalg.norm(np.diff(centre, axis=0), axis=1).max() > 3 * speed:
        return False
    window = int(FPS) + 2  # frames that span just over a second
    spans = np.lib.stride_tricks.sliding_window_view(centre, window, axis=0)  # (T - window + 1, 2, window)
    extent = np.linalg.norm(spans.max(-1) - spans.min(-1), axis=1)
    return bool(extent.min() >= 0.25 * speed * (window - 1))


def changes(video):
    """Mean change of a pixel (0-255) from one frame to the next -> (across clip borders, inside clips). A seam shows as
    more at the borders."""
    change = np.abs(np.diff(video.astype(np.int16), axis=0)).mean((1, 2, 3))
    borders = np.arange(64, len(change), 60)  # the first clip has 65 frames, the others add 60
    return change[borders].mean(), np.delete(change, borders).mean()


def judge(video, attributes):
    """One sampled minute against its prompt's attributes -> dict of bools."""
    ten = round(10 * FPS)
    first, last = analyse(video[:ten]), analyse(video[-ten:])
    verdict = {name: first[name] == attributes[name] for name in (*LOOKS, "motion")}
    return verdict | {"first 10 s": all(verdict.values()),
                      "last 10 s": all(last[name] == attributes[name] for name in ("shape", "color", "background")),
                      "in motion": in_motion(video, speed(attributes))}


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
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, tokenizer, text = load(args.ckpt, device)
    began, results = time.time(), {}
    for kind, held in (("trained", False), ("held-out", True)):
        rng = np.random.default_rng([2024, held])
        wanted = [toy_attributes(rng, held) for _ in range(args.n)]
        verdicts, seams = [], []
        for i in tqdm(range(0, args.n, args.batch_size), desc=kind):
            batch = wanted[i:i + args.batch_size]
            clips = generate_batch(model, tokenizer, text, [WORDINGS[0].format(**a) for a in batch], args.seconds,
                                   args.cfg_scale, args.top_k, args.temperature, range(i, i + len(batch)),
                                   not args.no_reencode)
            videos = np.concatenate(list(clips), axis=1)  # (B, T, H, W, 3)
            verdicts += [judge(v, a) for v, a in zip(videos, batch)]
            seams += [changes(v) for v in videos]
            if args.keep:
                np.save(f"{args.keep}.{kind}.{i}.npy", videos)
        results[kind] = {name: round(float(np.mean([v[name] for v in verdicts])), 4) for name in verdicts[0]}
        border, inside = np.mean(seams, axis=0)
        results[kind]["seam"] = round(float(border / inside), 3)
        print(kind, results[kind], flush=True)
        wrong = [(i, [k for k, ok in v.items() if not ok]) for i, v in enumerate(verdicts) if not all(v.values())]
        for i, what in wrong:
            print("   ", WORDINGS[0].format(**wanted[i]), "->", ", ".join(what))
    if args.out:
        with open(args.out, "w") as f:
            json.dump(results | {"prompts": args.n, "seconds": args.seconds, "reencode": not args.no_reencode,
                                 "minutes": round((time.time() - began) / 60, 1)}, f, indent=1)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as e:
        sys.exit(f"prompts.py: {e}")
