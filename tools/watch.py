"""tools/watch.py: a training as one picture, OUT/watch.png, drawn each minute until stage 3 ends.

    python tools/watch.py out

A row per stage: losses by range of frames (stage 0: PSNR, codes in use); beside them videos that
its newest checkpoint makes (stage 0: clips above their reconstructions). pip install matplotlib
"""
import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from data import FPS, Clips, to_float, to_uint8  # noqa: E402
from sample import generate, load  # noqa: E402
from tokenizer import load_tokenizer  # noqa: E402
from tools.machine import read_checkpoint, run_script  # noqa: E402
from train import FRAME_RANGES, FRAMES, NAMES  # noqa: E402


def curve(axes, lines, name, **look):
    """The means of up to a hundred parts of the training so far."""
    points = [(line["step"], line[name]) for line in lines if name in line]
    if points:
        parts = np.array_split(points, min(100, len(points)))
        axes.plot(*np.array([part.mean(0) for part in parts]).T, **look)


def videos(folder, stage, args):
    """What the checkpoint of a stage makes, uint8 (T, H, W, 3) each."""
    if stage:
        model, tokenizer, text = load(folder / f"{NAMES[stage]}.pt")
    else:
        tokenizer, _ = load_tokenizer(folder)
    size = tokenizer.config.resolution
    clips = Clips(args["images"], args["videos"], 0, stage, size, validation=True)
    some = [clips[0, i, min(17, FRAMES[stage])] for i in range(3)]
    if stage:
        return [next(generate(model, tokenizer, text, caption, FRAMES[stage] / FPS))
                for _, caption, _ in some]
    recons = [tokenizer.decode(tokenizer.encode(to_float(clip)[None])) for clip, _, _ in some]
    return [x for pair in zip(some, recons) for x in (pair[0][0], to_uint8(pair[1])[0])]


def draw(folder):
    """Write watch.png -> whether the last stage has ended."""
    from matplotlib.figure import Figure
    stages = {}
    written = (folder / "metrics.jsonl").read_text().rpartition("\n")[0]  # lines that are whole
    for line in map(json.loads, written.splitlines()):
        stages.setdefault(line["stage"], []).append(line)
    figure = Figure(figsize=(9, 3 * len(stages)), layout="constrained")
    rows = figure.subplots(len(stages), 2, squeeze=False)
    for (left, right), (stage, lines) in zip(rows, sorted(stages.items())):
        left.set(title=NAMES[stage], xlabel="step", ylabel="nats" if stage else "PSNR, dB")
        if stage:
            left.set_yscale("log")
            left.yaxis.set(major_formatter="{x:g}", minor_formatter="{x:g}")
            for name in FRAME_RANGES:
                curve(left, lines, f"loss_{name}", label=name)
            curve(left, lines, "val_loss", color="k", marker=".", linewidth=0, label="validation")
            left.legend(fontsize=7, title="frames")
        else:
            curve(left, lines, "psnr")
            used = left.twinx()
            used.set(ylim=(0, 1), ylabel="share of codes in use (gray)")
            curve(used, lines, "codes_used", color="gray")
        right.axis("off")
        path = folder / f"{NAMES[stage]}.pt"
        saved = path.exists() and read_checkpoint(path, NAMES[stage])
        if saved:
            made = videos(folder, stage, saved["args"])
            right.imshow(np.vstack([np.hstack(x[::max(1, len(x) // 6)][:6]) for x in made]))
    figure.savefig(folder / "watch.png", dpi=100)
    return stage == 3 and saved and saved["step"] == saved["args"]["steps"]


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("folder", nargs="?", type=Path, default="out", help="--out of train.py (out)")
    folder = p.parse_args().folder
    while not draw(folder):
        time.sleep(60)


if __name__ == "__main__":
    run_script(main)
