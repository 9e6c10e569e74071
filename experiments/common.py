"""What the scripts of Section 4 share: prompts and their videos, the share of videos that is as
prompted, intervals, pictures.

A script measures with several seeds and writes experiments/results/NAME.json and assets/NAME.png;
reproduce.py runs the scripts and writes what they found into README.md and docs/results.md.
"""
import argparse
import json
import os
import platform
import subprocess
import sys
import time

import numpy as np
import torch

try:
    import matplotlib
    from matplotlib import pyplot
except ModuleNotFoundError as e:
    sys.exit(f"pip install {e.name}")

# metrics first: it puts the five files on the path
from metrics import DEVICE
from data import TOY, caption_of, toy_attributes, toy_clip
from prompts import LOOKS, WINDOW, analyse, invention, is_one_piece, new_land
from sample import generate_batch, load, set_threads

matplotlib.use("Agg")
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BEGAN = time.time()
T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447,
       8: 2.365, 9: 2.306, 10: 2.262}  # Student's t, 95 %


def arguments(doc, seeds=3, **numbers):
    """The flags of every script: --seeds, and its own numbers with their
    defaults."""
    p = argparse.ArgumentParser(description=doc.split("\n\n")[0])
    p.add_argument("--seeds", type=int, default=seeds, choices=T95,
                   help="repetitions, each with other prompts, draws and initial weights")
    for name, value in numbers.items():
        p.add_argument("--" + name, type=type(value), default=value)
    return p.parse_args()


# ---------------------------------------------------------------------------
# prompts, videos, and whether they show what was asked

def drawn(seed, n, held=False):
    """The attributes of n clips, of training triples or of held-out ones.
    Every seed draws others."""
    rng = np.random.default_rng([4, seed])
    return [toy_attributes(rng, held) for _ in range(n)]


def caption(attributes):
    return caption_of(attributes)[0]


def drawn_videos(wanted, frames, seed):
    """What the toy world itself shows of these attributes: uint8
    (B, T, 64, 64, 3)."""
    rng = np.random.default_rng([5, seed])
    return np.stack([toy_clip(rng, frames, a)[0] for a in wanted])


def ready(folder=None):
    """The model of a folder, None for the shipped one, ready to sample:
    (Llama, VideoTokenizer, TextTokenizer)."""
    model, tokenizer, text = load(folder, DEVICE)
    set_threads(model)
    return model, tokenizer, text


def sampled(world, captions, seconds, seed, cfg_scale=None, top_k=50, temperature=None,
            reencode=True):
    """A video of each caption: uint8 (B, T, 64, 64, 3). world: of `ready`."""
    seeds = range(1000 * seed, 1000 * seed + len(captions))
    clips = generate_batch(*world, captions, seconds, cfg_scale, top_k, temperature, seeds,
                           reencode)
    return np.concatenate(list(clips), axis=1)


def in_one_piece(videos, wanted):
    """Share of videos whose land moves as asked and as one piece in 95 % of
    their frames."""
    return float(np.mean([is_one_piece(v, a["speed"], a["way"])
                          for v, a in zip(videos, wanted)]))


def invented(videos, wanted):
    """How far the heights of new land are from the world's own, in pixels:
    `invention`, the mean over the lands asked for."""
    new = {}
    for v, a in zip(videos, wanted):
        new.setdefault(a["land"], []).append(new_land(v, a["speed"], a["way"]))
    return float(np.mean([invention(parts, land) for land, parts in new.items()]))


def right(videos, wanted, what=tuple(TOY)):
    """Share of videos that show all of this as asked, in their first ten
    seconds."""
    found = [analyse(v[:WINDOW]) for v in videos]
    return float(np.mean([all(f[name] == a[name] for name in what)
                          for f, a in zip(found, wanted)]))


# ---------------------------------------------------------------------------
# trainings and their losses

def trained(run, stage, seed, steps, *flags, script="train.py"):
    """The folder experiments/runs/RUN after train.py (or a script that wraps
    it) has finished a stage there. A finished stage is not repeated, an
    interrupted one continues. The time that earlier calls took counts as
    this script's."""
    global BEGAN
    out = os.path.join(ROOT, "experiments", "runs", run)
    record, spent = os.path.join(out, f"stage{stage}.seconds"), 0.0
    if os.path.exists(record):
        with open(record) as f:
            spent = float(f.read())
    began, BEGAN = time.time() - spent, BEGAN - spent
    command = [sys.executable, os.path.join(ROOT, script), "--stage", stage, "--out", out,
               "--resume", "--seed", seed, "--steps", steps, *flags]
    subprocess.run([str(x) for x in command], check=True)
    with open(record, "w") as f:
        f.write(str(time.time() - began))
    return out


def logged(folder, stage):
    """The lines of metrics.jsonl of one stage."""
    with open(os.path.join(folder, "metrics.jsonl")) as f:
        return [m for m in map(json.loads, f) if m["stage"] == stage]


def early_and_late(losses):
    """Losses of train.py's FRAME_RANGES (..., 5) -> those of frames 1-17 and
    of frames 18-65, each (...). Frame 1 is one latent frame, every other
    range is four."""
    return losses[..., :2] @ [0.2, 0.8], losses[..., 2:].mean(-1)


# ---------------------------------------------------------------------------
# results

def note(values, name, measured):
    """Append each number of {what: number} to values["WHAT, NAME"]."""
    for what, number in measured.items():
        values.setdefault(f"{what}, {name}", []).append(number)


def interval(values):
    """Mean over seeds and half the width of its 95 % interval (Student's t),
    along the first axis."""
    values = np.asarray(values, np.float64)
    half = T95[len(values)] * values.std(0, ddof=1) / len(values) ** 0.5
    return values.mean(0), half


def machine():
    if DEVICE.type == "cuda":
        return torch.cuda.get_device_name()
    return f"{os.cpu_count()} CPU cores, {platform.machine()}"


def result(name, claim, paper, values, decisive):
    """Print and write what was found.

    values: {what: one number per seed}. decisive: the same for differences
    that are above 0 if the claim holds. It holds if all are above 0 by more
    than their 95 % interval, and fails if one is below 0 by more than that;
    otherwise the verdict is None.
    """
    found, differences = ({what: interval(v) for what, v in rows.items()}
                          for rows in (values, decisive))
    verdict = None
    if any(mean < -half for mean, half in differences.values()):
        verdict = False
    elif all(mean > half for mean, half in differences.values()):
        verdict = True
    content = {
        "claim": claim, "paper": paper,
        "measured": {k: round(float(m), 4) for k, (m, _) in found.items()},
        "interval": {k: round(float(h), 4) for k, (_, h) in found.items()},
        "values": {k: np.round(np.float64(v), 4).tolist() for k, v in values.items()},
        "decisive": {k: [round(float(m), 4), round(float(h), 4)]
                     for k, (m, h) in differences.items()},
        "seeds": len(next(iter(values.values()))), "same_direction": verdict,
        "command": " ".join(["python", os.path.relpath(sys.argv[0], ROOT), *sys.argv[1:]]),
        "minutes": round((time.time() - BEGAN) / 60, 1), "machine": machine()}
    path = os.path.join(ROOT, "experiments", "results", name + ".json")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as f:
        json.dump(content, f, indent=1)
        f.write("\n")
    print(json.dumps(content, indent=1))


def picture(name, rows):
    """rows: {label: frames, uint8 (n, H, W, 3)} -> assets/NAME.png, a strip
    of frames under each label."""
    figure, axes = pyplot.subplots(len(rows), figsize=(6, 0.95 * len(rows)), dpi=100)
    for axis, (label, frames) in zip(axes, rows.items()):
        # a white line after each frame
        lined = np.pad(frames, ((0, 0), (0, 0), (0, 3), (0, 0)), constant_values=255)
        axis.imshow(np.concatenate(lined, axis=1))
        axis.set_title(label, fontsize=8, loc="left", pad=2)
        axis.axis("off")
    figure.tight_layout(pad=0.3)
    figure.savefig(os.path.join(ROOT, "assets", name + ".png"))


def plot(name, xlabel, ylabel, curves, **axis):
    """curves: {label: (x, one row of y per seed)} -> assets/NAME.png, means
    with their intervals as bands. axis: what matplotlib's Axes.set takes."""
    figure, axes = pyplot.subplots(figsize=(6, 3.2), dpi=100)
    for label, (x, y) in curves.items():
        mean, half = interval(y)
        axes.plot(x, mean, marker="o", label=label)
        axes.fill_between(x, mean - half, mean + half, alpha=0.2)
    axes.set(xlabel=xlabel, ylabel=ylabel, **axis)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(os.path.join(ROOT, "assets", name + ".png"))
