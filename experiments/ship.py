"""Make the small checkpoints that ship: bfloat16 weights without optimizer, from a folder that
train.py wrote.

    python experiments/ship.py out checkpoints/toy
"""
import argparse
import os
import sys

import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from tools.machine import read_checkpoint, run_script  # noqa: E402

KEPT = ("kind", "config", "step", "args", "tokenizer_hash")


def ship(source, target):
    """Write tokenizer.pt, stage3.pt and metrics.jsonl of folder `source`, made
    small, to folder `target`. Of the log, every 19th line and those with a
    val_loss: every 20th might be an image step each time."""
    if os.path.realpath(source) == os.path.realpath(target):
        raise ValueError("source and target are the same folder")
    files = {}
    for kind in ("tokenizer", "stage3"):
        checkpoint = read_checkpoint(os.path.join(source, kind + ".pt"), kind)
        files[kind] = {name: checkpoint[name] for name in KEPT}
        files[kind]["weights"] = {name: weight.bfloat16()
                                  for name, weight in checkpoint["weights"].items()}
    os.makedirs(target, exist_ok=True)
    for kind, small in files.items():
        torch.save(small, os.path.join(target, kind + ".pt"))
    with open(os.path.join(source, "metrics.jsonl")) as f:
        lines = [line for i, line in enumerate(f) if i % 19 == 0 or "val_loss" in line]
    with open(os.path.join(target, "metrics.jsonl"), "w") as f:
        f.writelines(lines)


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("source", help="folder that train.py wrote")
    p.add_argument("target", help="folder to write to")
    args = p.parse_args()
    ship(args.source, args.target)


if __name__ == "__main__":
    run_script(main)
