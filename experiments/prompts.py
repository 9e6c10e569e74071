"""Prompts against pixels: does the video show what the prompt says, and still after a minute?
(Sec. 4.2, Fig. 6, Fig. 9)

An analyser that sees nothing but frames reads off the six attributes and the
skyline, the height of the land in each column. The script samples trained and
held-out triples (traveller, color, land), then trained and held-out wordings.
It counts the videos that are as prompted and whose land moves as one piece,
and measures how far the heights of new land are from the world's own. "seam"
is how much more changes at the borders between clips than inside clips.

    python experiments/prompts.py                       # 4 x 100 prompts, a minute each
    python experiments/prompts.py --no-reencode         # from old tokens, see fig6.py
"""
import argparse
import collections
import functools
import itertools
import json
import time

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch.nn.functional import max_pool2d
from tqdm import tqdm

# metrics first: it puts the five files on the path
from metrics import DEVICE

# isort: split
from data import (
    ATTRIBUTES,
    CANONICAL,
    COLORS,
    FPS,
    LANDS,
    SIZE,
    SKIES,
    SPEEDS,
    caption_of,
    land_heights,
    toy_attributes,
    toy_clip,
    wording,
)
from sample import CONTEXT, generate_batch, load
from tools.films import check_writable
from tools.machine import run_script, set_threads

WINDOW = round(10 * FPS)  # frames that are judged together: ten seconds
ROAD = 8  # pixels: the height of the road, on which the land stands
LOW, HIGH = 12, 36  # pixels: where to look for the skyline; drawn at 16 to 32
SHIFTS = range(-6, 7)  # pixels per frame to the right: how the land may move


# ---------------------------------------------------------------------------
# sky, land and skyline

def land_colors():
    """Three colors for each sky and land, (3, 3, 3, RGB): the land itself, its
    snow or windows, and a blur of both. Windows are a quarter of a city."""
    land = np.float32(list(LANDS.values()))
    by_sky = []
    for sky, (_, _, brightness) in SKIES.items():
        windows = (445, 390, 200) if sky == "night" else (120, 120, 145)
        other = np.float32([LANDS["hills"], (245, 245, 245), windows])
        blur = 0.75 * land + 0.25 * other
        by_sky.append(brightness * np.stack([land, other, blur], axis=1))
    return np.stack(by_sky)


def nearest(colors, tables):
    """colors (T, 3), tables (n, 3) or (T, n, 3) -> the index of the nearest
    color, (T,), -1 if even that is far."""
    distance = np.linalg.norm(colors[:, None] - tables, axis=-1)
    return np.where(distance.min(1) < 60, distance.argmin(1), -1)


def sky_and_land(video):
    """video uint8 (T, H, W, 3) -> the color of its sky (T, 3), and the indices
    of its sky and land in data.ATTRIBUTES, (T,) each, -1 where that is unclear."""
    T = len(video)
    sky_color = np.median(video[:, :24].reshape(T, -1, 3), axis=1)
    sky = nearest(sky_color, np.float32([color for color, _, _ in SKIES.values()]))
    # the lowest land, in squares of 4x4 pixels: each has 2x2 of a window
    squares = video[:, -ROAD - 8:-ROAD].reshape(T, 2, 4, SIZE // 4, 4, 3).mean((2, 4))
    land_color = np.median(squares.reshape(T, -1, 3), axis=1)
    land = nearest(land_color, land_colors()[sky][:, range(3), [0, 0, 2]])
    return sky_color, sky, land


def skyline(video):
    """video uint8 (T, H, W, 3) -> the height of the land in each column, in
    pixels above the bottom, (T, W), nan where something stands before it."""
    sky_color, sky, land = sky_and_land(video)
    rows = video[:, -LOW - 1:-HIGH - 1:-1].astype(np.float32)  # from LOW up to HIGH
    references = [sky_color, *land_colors()[sky, land].swapaxes(0, 1)]
    to_sky, *to_land = [np.square(rows - c[:, None, None]).sum(-1) for c in references]
    vote = np.where(np.min(to_land, axis=0) < to_sky, 1, -1)  # land: 1, sky: -1
    # cut each column where most below is land and most above is sky
    total = np.pad(vote.cumsum(1), ((0, 0), (1, 0), (0, 0)))
    height = LOW + total.argmax(1)
    lead = 2 * total.max(1) - total[:, -1]  # 24 if no pixel votes against it
    clear = (lead >= HIGH - LOW - 8) & (height < HIGH)
    return np.where(clear, height, np.nan)


# ---------------------------------------------------------------------------
# motion

def velocity(speed, way):
    """The land's, in pixels per frame to the right: it goes against the way
    of the traveller."""
    return SPEEDS[speed] * (1 if way == "left" else -1)


def mismatch(heights, shift):
    """How far each row of a skyline (T, W) is from the row before, moved to
    the right by `shift` pixels: (T - 1,), the mean over the columns that both
    show, in pixels, or inf if these are too few."""
    if shift < 0:
        return mismatch(heights[:, ::-1], -shift)
    difference = np.abs(heights[1:, shift:] - heights[:-1, :SIZE - shift])
    seen = ~np.isnan(difference)
    mean = np.nansum(difference, axis=1) / np.maximum(seen.sum(1), 1)
    return np.where(seen.mean(1) > 0.5, mean, np.inf)


def motion_of(video):
    """-> (way, speed), (None, None) if no motion fits clearly best."""
    heights = skyline(video)[::2]  # the land moves further in two frames
    fit = {shift: np.median(mismatch(heights, 2 * shift)) for shift in SHIFTS}
    best = min(fit, key=fit.get)
    if fit[best] < 0.7 * np.median(list(fit.values())):
        for way, speed in itertools.product(ATTRIBUTES["way"], SPEEDS):
            if velocity(speed, way) == best:
                return way, speed
    return None, None


def moves_as_one(video, speed, way):
    """For each frame but the first, (T - 1,) bool: is the land that of the
    frame before, moved as asked? So moved, the skyline differs by less than
    1.5 pixels, and over a second no other motion fits better."""
    heights = skyline(video)
    fit = np.stack([mismatch(heights, shift) for shift in SHIFTS])
    padded = np.pad(fit, ((0, 0), (3, 3)), mode="edge")
    second = sliding_window_view(padded, 7, axis=1).mean(-1)
    asked = SHIFTS.index(velocity(speed, way))
    return (fit[asked] < 1.5) & (second[asked] < second.min(0) + 0.1)


def is_one_piece(video, speed, way):
    """Does the land move as asked and as one piece in 95 % of the frames?"""
    return bool(moves_as_one(video, speed, way).mean() >= 0.95)


def new_land(video, speed, way):
    """The heights of the columns that scroll into each frame but the first:
    (T - 1, pixels per frame)."""
    heights, shift = skyline(video)[1:], velocity(speed, way)
    return heights[:, :shift] if shift > 0 else heights[:, shift:]


@functools.cache
def own_heights(land):
    """The heights of the world's own land, at 1001 quantiles, in pixels."""
    own = [ROAD + land_heights(np.random.default_rng(i), land, 1000) for i in range(50)]
    return np.quantile(own, np.linspace(0, 1, 1001))


def invention(new, land):
    """How far heights of new land are from the world's own: the Wasserstein
    distance, in pixels. new: any number of parts of `new_land`."""
    new = np.concatenate([heights.ravel() for heights in new])
    at = np.linspace(0, 1, 1001)
    return float(np.abs(np.nanquantile(new, at) - own_heights(land)).mean())


# ---------------------------------------------------------------------------
# the traveller, and all attributes

@functools.cache
def silhouettes():
    """The colored part of every traveller at every place on the grid of tokens,
    in four frames, a flap of the wings -> their kinds (n,), the pixels inside
    and the pixels around, (n, 4 H W), 0 or 1. A rim of two pixels is in
    neither, as blur takes it."""
    def grow(masks, by):
        return max_pool2d(masks, 2 * by + 1, stride=1, padding=by)

    kinds, masks = [], []
    for kind, way in itertools.product(ATTRIBUTES["traveller"], ATTRIBUTES["way"]):
        looks = {"traveller": kind, "way": way}
        red, blue = [toy_clip(np.random.default_rng(0), 5, looks | {"color": color})[0]
                     for color in ("red", "blue")]
        mask = (red != blue).any(-1)[:4]
        at = np.argwhere(mask)[:, 1:]  # (y, x) of its pixels
        for shift in itertools.product(range(-SIZE, SIZE, 8), repeat=2):
            if (at + shift).min() >= 0 and (at + shift).max() < SIZE:
                kinds.append(kind)
                masks.append(np.roll(mask, shift, (1, 2)))
    masks = torch.tensor(np.stack(masks)).float()
    inside = 1 - grow(1 - masks, 1)
    around = grow(masks.amax(1, keepdim=True), 3) - grow(masks, 1)
    return kinds, inside.flatten(1).numpy(), around.flatten(1).numpy()


def traveller_of(video, sky, land):
    """-> (traveller, color), (None, None) unless there is just one: a
    silhouette that overlaps (IoU) by half with the pixels of a color."""
    kinds, inside, around = silhouettes()
    color, light, _ = list(SKIES.values())[sky]
    table = np.float32([*COLORS.values(), color, light, *land_colors()[sky, land]])
    label = (video @ table.T - np.square(table).sum(1) / 2).argmax(-1)  # the nearest
    # how often each pixel has a color, for each frame of a flap
    n = len(COLORS)
    share = np.float32([[(label[i::4] == c).mean(0) for i in range(4)]
                        for c in range(n)])  # (colors, 4, H, W)
    # a video may begin with any of them
    share = np.stack([np.roll(share, i, axis=1) for i in range(4)])
    share = share.reshape(4 * n, -1).T
    both = inside @ share  # (silhouettes, 4 * colors)
    iou = both / (inside.sum(1, keepdims=True) + around @ share)
    best, color = np.unravel_index(iou.argmax(), iou.shape)
    elsewhere = iou[inside @ inside[best] == 0].max()
    if iou.max() < 0.5 or elsewhere > 0.7 * iou.max():
        return None, None
    return kinds[best], list(COLORS)[color % n]


def usual(indices):
    """The index that three quarters of the frames have, or -1."""
    index, count = collections.Counter(indices.tolist()).most_common(1)[0]
    return index if count >= 0.75 * len(indices) else -1


def analyse(video):
    """video uint8 (T, H, W, 3) -> the attributes that it shows, each a name
    of data.ATTRIBUTES, or None where nothing is clear."""
    _, sky, land = sky_and_land(video)
    sky, land = usual(sky), usual(land)
    traveller, color = traveller_of(video, sky, land)
    way, speed = motion_of(video)
    return {"traveller": traveller, "color": color, "land": [*LANDS, None][land],
            "sky": [*SKIES, None][sky], "way": way, "speed": speed}


def changes(video, context=CONTEXT):
    """Mean change of a pixel (0-255) from one frame to the next -> (at the
    borders between clips that go on from `context` frames, inside clips)."""
    change = np.abs(np.diff(video.astype(np.int16), axis=0)).mean((1, 2, 3))
    borders = np.arange(64, len(change), 65 - context)  # 65 frames, then 60 per clip
    return change[borders].mean(), np.delete(change, borders).mean()


def judge(video, attributes, said=tuple(ATTRIBUTES)):
    """One video against what its prompt says of the attributes -> bools."""
    first, last = analyse(video[:WINDOW]), analyse(video[-WINDOW:])
    verdict = {name: first[name] == attributes[name] for name in said}
    verdict["first 10 s"] = all(verdict.values())
    verdict["last 10 s"] = all(last[name] == attributes[name] for name in said)
    # where the prompt leaves speed or way open, the video decides
    speed, way = [(attributes if name in said else first)[name]
                  for name in ("speed", "way")]
    return verdict | {"one piece": bool(speed and way) and is_one_piece(video, speed, way)}


# ---------------------------------------------------------------------------
# the script

def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--ckpt", help="checkpoint folder (default: the shipped one)")
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
    for path in filter(None, (args.out, args.keep)):
        check_writable(path)
    world = load(args.ckpt, DEVICE)
    set_threads(world[0])
    began, results = time.time(), {}
    for kind in ("trained", "held-out", "trained wordings", "held-out wordings"):
        held = kind == "held-out"
        rng = np.random.default_rng([2024, held])
        wanted = [toy_attributes(rng, held) for _ in range(args.n)]
        forms = [wording(rng, kind == "held-out wordings") if "wordings" in kind
                 else CANONICAL for _ in wanted]
        captions, said = zip(*map(caption_of, wanted, forms))
        verdicts, seams, new = [], [], {land: [] for land in LANDS}
        for i in tqdm(range(0, args.n, args.batch_size), desc=kind):
            batch = slice(i, i + args.batch_size)
            clips = generate_batch(
                *world, captions[batch], args.seconds, range(args.n)[batch],
                reencode=not args.no_reencode, cfg_scale=args.cfg_scale, top_k=args.top_k,
                temperature=args.temperature)
            videos = np.concatenate(list(clips), axis=1)  # (B, T, H, W, 3)
            for video, a, names in zip(videos, wanted[batch], said[batch]):
                verdicts.append(judge(video, a, names))
                seams.append(changes(video))
                if {"land", "way", "speed"} <= set(names):
                    new[a["land"]].append(new_land(video, a["speed"], a["way"]))
            if args.keep:
                np.save(f"{args.keep}.{kind}.{i}.npy", videos)

        found = results[kind] = {}
        for name in (*ATTRIBUTES, "first 10 s", "last 10 s", "one piece"):
            right = [v[name] for v in verdicts if name in v]
            found[name] = round(float(np.mean(right)), 4) if right else None
        border, inside = np.mean(seams, axis=0)
        found["seam"] = round(float(border / inside), 3)
        for land, heights in new.items():
            if heights:
                first = invention([h[:WINDOW] for h in heights], land)
                last = invention([h[-WINDOW:] for h in heights], land)
                found[f"new {land}, first 10 s"] = round(first, 2)
                found[f"new {land}, last 10 s"] = round(last, 2)
        print(kind, found, flush=True)
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
    run_script(main)
