"""Make the small checkpoints that ship: bfloat16 weights without optimizer, from a folder that train.py wrote.

    python experiments/ship.py out checkpoints/toy
"""
import os
import shutil
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from tokenizer import read_checkpoint  # noqa: E402
from train import save_atomically  # noqa: E402


def ship(source, target):
    """Write tokenizer.pt, stage3.pt and metrics.jsonl of folder `source`, made small, to folder `target`."""
    if os.path.realpath(source) == os.path.realpath(target):
        raise ValueError("source and target are the same folder")
    files = {}
    for name in ("tokenizer", "stage3"):
        checkpoint = read_checkpoint(os.path.join(source, name + ".pt"), name)
        small = {k: checkpoint[k] for k in ("kind", "config", "step", "args", "tokenizer_hash")}
        weights = {k: v.bfloat16() for k, v in checkpoint["weights"].items()}
        files[name] = small | {"weights": weights}
    os.makedirs(target, exist_ok=True)
    for name, small in files.items():
        save_atomically(os.path.join(target, name + ".pt"), small)
    shutil.copy(os.path.join(source, "metrics.jsonl"), target)


if __name__ == "__main__":
    try:
        ship(*sys.argv[1:])
    except (ValueError, OSError, TypeError) as e:
        sys.exit(f"ship.py: {e}")
