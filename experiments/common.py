"""What the scripts of Section 4 share: trainings and their losses, prompts and their videos,
intervals and answers, pictures.

A script says in its docstring which difference decides. Each measurement becomes a line of
experiments/results/NAME.jsonl, so a killed script goes on where it was, and a second call takes
seconds; delete lines to measure them anew. What follows is in results/NAME.json and
assets/NAME.png; reproduce.py writes it into README.md and docs/results.md.
"""
import argparse
import functools
import json
import os
import platform
import subprocess
import sys
import time

import numpy as np
import torch
from tqdm import tqdm

try:  # before all else, so that each script says what it lacks
    import matplotlib
    from scipy import stats
except ModuleNotFoundError as e:
    sys.exit(f"pip install {e.name}")

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402, F401

# metrics first: it puts the five files on the path
from metrics import DEVICE

# isort: split
from data import ATTRIBUTES, caption_of, latent_frames, to_float, toy_attributes, toy_clip
from model import prefix_tokens, token_losses
from prompts import WINDOW, analyse, is_one_piece
from reproduce import number
from sample import generate, load
from tokenizer import SHIPPED, load_tokenizer
from tools.machine import check_compiler, set_threads
from train import EARLY, FRAME_RANGES

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
pyplot.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
RUNS = os.path.join(ROOT, "experiments", "runs")
RESULTS = os.path.join(ROOT, "experiments", "results")
FRESH = 512  # clips that no training saw
# the same videos in two thirds of the time, where there is a C++ compiler
try:
    check_compiler(DEVICE)
    FASTEST = {"window": 16, "compile": True}
except ValueError:
    FASTEST = {}


def arguments(doc, **numbers):
    """The flags of every script: its numbers with their defaults."""
    p = argparse.ArgumentParser(description=doc.split("\n\n")[0])
    for name, value in numbers.items():
        p.add_argument("--" + name, type=type(value), default=value)
    return p.parse_args()


@functools.cache
def lines_of(name):
    """results/NAME.jsonl -> {key: line}"""
    path = os.path.join(RESULTS, name + ".jsonl")
    if not os.path.exists(path):
        return {}
    with open(path) as f:
        return {json.dumps(line["key"]): line for line in map(json.loads, f)}


def kept(name, key, measure):
    """measure() -> a dict, once: from then on what results/NAME.jsonl has
    under this key, a list."""
    if json.dumps(key) not in lines_of(name):
        lines_of.cache_clear()  # another process may have measured it
    lines, began = lines_of(name), time.time()
    if json.dumps(key) not in lines:
        found = {k: np.round(np.asarray(x, np.float64), 4).tolist() for k, x in measure().items()}
        line = {"key": key, **found, "minutes": round((time.time() - began) / 60, 2)}
        lines[json.dumps(key)] = line
        os.makedirs(RESULTS, exist_ok=True)
        with open(os.path.join(RESULTS, name + ".jsonl"), "a") as f:
            f.write(json.dumps(line) + "\n")
    return lines[json.dumps(key)]


def all_kept(name, tasks):
    """tasks: {key, a tuple: measure} -> {key: line}. Several processes of a script share
    the work: each goes through it in an order of its own."""
    keys = list(tasks)
    for i in tqdm(np.random.default_rng().permutation(len(keys)), desc=name):
        kept(name, list(keys[i]), tasks[keys[i]])
    return {key: kept(name, list(key), tasks[key]) for key in keys}


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
    """The model of a folder or checkpoint, None for the shipped one, ready to
    sample: (Llama, VideoTokenizer, TextTokenizer)."""
    model, tokenizer, text = load(folder, DEVICE)
    set_threads(model)
    return model, tokenizer, text


def sampled(world, prompt, seconds, seed, **options):
    """A video, uint8 (T, 64, 64, 3). world: of `ready`."""
    options = FASTEST | options
    return np.concatenate(list(generate(*world, prompt, seconds, seed, **options)))


def as_prompted(video, attributes, said=tuple(ATTRIBUTES)):
    """Does it show all of this, in its first ten seconds?"""
    found = analyse(video[:WINDOW])
    return all(found[name] == attributes[name] for name in said)


def ten_seconds(video):
    """-> the first ten seconds of a video, the next ten, and so on."""
    return [video[i:i + WINDOW] for i in range(0, len(video) - WINDOW + 1, WINDOW)]


def over_time(video, attributes):
    """For each 10 s of a video: is all as prompted, and is the land in one
    piece? -> {what: bools}"""
    parts = ten_seconds(video)
    return {"as prompted": [as_prompted(part, attributes) for part in parts],
            "one piece": [is_one_piece(part, attributes["speed"], attributes["way"])
                          for part in parts]}


# ---------------------------------------------------------------------------
# trainings and their losses

@functools.cache
def drawn_clips(name="clips", n=8192, ckpt=SHIPPED):
    """A folder of token shards of n drawn clips, for all trainings."""
    folder = os.path.join(RUNS, f"{name}{n}")
    command = [sys.executable, os.path.join(ROOT, "tools", "prepare.py"), "--source", "toy",
               "--clips", str(n), "--ckpt", ckpt, "--out", folder]
    subprocess.run(command, check=True)
    return folder


def trained(run, stage, seed, steps, *flags, script="train.py"):
    """The folder experiments/runs/RUN after train.py (or a script that wraps
    it) has finished a stage there. A finished stage is not repeated, an
    interrupted one continues."""
    out = os.path.join(RUNS, run)
    command = [sys.executable, os.path.join(ROOT, script), "--stage", stage, "--out", out,
               "--resume", "--seed", seed, "--steps", steps, *flags]
    subprocess.run([str(x) for x in command], check=True)
    return out


def logged(folder, stage):
    """The lines of metrics.jsonl of one stage."""
    with open(os.path.join(folder, "metrics.jsonl")) as f:
        return [m for m in map(json.loads, f) if m["stage"] == stage]


@functools.cache
def fresh_clips(frames=65):
    """Tokens (FRESH, t, h, w) of clips that no training saw, and their
    captions, which state everything."""
    tokenizer, digest = load_tokenizer(None, DEVICE)
    path = os.path.join(RUNS, f"fresh{frames}-{digest[:8]}.npy")
    wanted = drawn(2024, FRESH)
    if not os.path.exists(path):
        with torch.inference_mode():
            parts = [tokenizer.encode(to_float(drawn_videos([a], frames, i)).to(DEVICE)).cpu()
                     for i, a in enumerate(wanted)]
        os.makedirs(RUNS, exist_ok=True)
        np.save(path, torch.cat(parts).numpy())
    return torch.as_tensor(np.load(path)), [caption(a) for a in wanted]


def frame_losses(model, text, tokens, captions):
    """-log p of tokens (B, t, h, w), the mean over each latent frame: (B, t)."""
    c, device = model.config, model.lm_head.weight.device
    targets = tokens.flatten(1).to(device) + c.text_vocab
    prefix = prefix_tokens(c, [text.encode(x) for x in captions]).to(device)
    states = model.model(torch.cat([prefix, targets[:, :-1]], 1))[:, -targets.shape[1]:]
    losses = token_losses(states, model.lm_head.weight, targets)
    return losses.view(*tokens.shape[:2], -1).mean(-1)


@torch.inference_mode()
def fresh_losses(folder, frames=65):
    """The loss of the model of a folder on the fresh clips: float64 (FRESH, t)."""
    model, _, text = ready(folder)
    tokens, captions = fresh_clips(frames)
    parts = [frame_losses(model, text, tokens[i:i + 8], captions[i:i + 8])
             for i in range(0, FRESH, 8)]
    return torch.cat(parts).double().cpu().numpy()


def early_and_late(losses):
    """Losses by latent frame (..., 17) -> of frames 1-17, of frames 18-65."""
    early = latent_frames(EARLY)
    return losses[..., :early].mean(-1), losses[..., early:].mean(-1)


def by_range(losses):
    """Losses by latent frame (..., 17) -> {"1": (...), "2-17": ...}"""
    return {name: losses[..., a:b].mean(-1) for name, (a, b) in FRAME_RANGES.items()}


# ---------------------------------------------------------------------------
# results

def interval(values):
    """Mean and 95 % interval -> mean, low, high. Of bools: exact (Clopper and Pearson); of fewer
    than 30 numbers: Student's t; of more: by the bootstrap."""
    values = np.asarray(values)
    if len(values) < 2:
        bounds = [values[0]] * 2
    elif values.dtype == bool:
        bounds = stats.binomtest(int(values.sum()), len(values)).proportion_ci()
    elif values.std() == 0:
        bounds = values[:2]
    elif len(values) < 30:
        bounds = stats.t(len(values) - 1, values.mean(), stats.sem(values)).interval(0.95)
    else:
        bounds = stats.bootstrap((values,), np.mean, method="percentile",
                                 random_state=np.random.default_rng(0)).confidence_interval
    return values.mean(), *bounds


def detectable(values):
    """The least true mean that so many numbers, spread as these are, find in
    80 of 100 cases (two-sided, 5 %)."""
    t = stats.t(len(values) - 1)
    return (t.ppf(0.975) + t.ppf(0.8)) * stats.sem(values)


def answer(low, high, floor, margin):
    if -margin < low and high < margin:
        return "no difference"
    return "yes" if low > floor else "no" if high < floor else "cannot tell"


def machine():
    if DEVICE.type == "cuda":
        return torch.cuda.get_device_name()
    return f"{os.cpu_count()} CPU cores, {platform.machine()}"


def result(name, sample, decides, also, measured, floor=0.0, margin=0.0, intervals=None):
    """Print and write what was found.

    decides, also: {what: differences, one for each of the `sample`, e.g. "5 trainings"}. A 95 %
    interval of the one that decides inside +-margin shows that there is no difference to speak
    of; above `floor` the claim holds, below it fails. measured: {what: {arm: numbers}}.
    intervals: {what: {arm: (mean, low, high)}}, where numbers alone do not give one.
    """
    def rounded(numbers):
        return [round(float(x), 4) for x in numbers]

    differences = {what: {"interval": rounded(interval(x)),
                          "detectable": round(float(detectable(x)), 4)}
                   for what, x in (decides | also).items()}
    _, low, high = differences[next(iter(decides))]["interval"]
    content = {
        "answer": answer(low, high, floor, margin), "sample": sample, "floor": floor,
        "margin": margin, "differences": differences,
        "measured": {what: {arm: rounded(interval(x)) for arm, x in arms.items()}
                     for what, arms in measured.items()} | {
            what: {arm: rounded(x) for arm, x in arms.items()}
            for what, arms in (intervals or {}).items()},
        "command": " ".join(["python", os.path.relpath(sys.argv[0], ROOT), *sys.argv[1:]]),
        "minutes": round(sum(line["minutes"] for line in lines_of(name).values())),
        "machine": machine()}
    with open(os.path.join(RESULTS, name + ".json"), "w") as f:
        json.dump(content, f, indent=1, ensure_ascii=False)
        f.write("\n")
    print(json.dumps(content, indent=1, ensure_ascii=False))


def save_picture(figure, name):
    """assets/NAME.png; its title is what was found."""
    with open(os.path.join(RESULTS, name + ".json")) as f:
        (what, row), *_ = json.load(f)["differences"].items()
    figure.suptitle(f"{what}:\n{number(row['interval'])}", fontsize=9)
    figure.savefig(os.path.join(ROOT, "assets", name + ".png"), dpi=110)


def direct_labels(axes, curves):
    """Plot curves {label: (x, y)}, each with its label at its end, the labels
    apart from each other. Limits of y, if any, are to be set before."""
    lines = {label: axes.plot(x, y)[0] for label, (x, y) in curves.items()}
    gap, height = 0.08 * np.ptp(axes.get_ylim()), -np.inf
    for label, (x, y) in sorted(curves.items(), key=lambda curve: curve[1][1][-1]):
        height = max(y[-1], height + gap)
        axes.annotate(" " + label, (x[-1], height), color=lines[label].get_color(), va="center",
                      fontsize=8, annotation_clip=False)


def exact_bars(axes, shares):
    """shares: {label: 0s and 1s}: a dot with its exact interval for each."""
    for i, (label, x) in enumerate(shares.items()):
        mean, low, high = interval(np.array(x, bool))
        axes.plot([low, high], [-i, -i], color="gray")
        axes.plot(mean, -i, "o")
    axes.set_yticks(range(0, -len(shares), -1), shares)
    axes.set(xlim=(0, 1), ylim=(0.5 - len(shares), 0.5))


def strips(axes, rows):
    """rows: {label: frames, uint8 (n, H, W, 3)}: a strip of frames under each label."""
    for axis, (label, frames) in zip(axes, rows.items()):
        # a white line after each frame
        lined = np.pad(frames, ((0, 0), (0, 0), (0, 3), (0, 0)), constant_values=255)
        axis.imshow(np.concatenate(lined, axis=1))
        axis.set_title(label, fontsize=8, loc="left", pad=2)
        axis.axis("off")
