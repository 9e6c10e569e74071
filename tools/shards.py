"""tools/shards.py: clips on disk, as tools/prepare.py writes them, and how
training draws from them. It imports none of the five."""
import functools
import json
from pathlib import Path

import numpy as np


class Shards:
    """The clips of t latent frames in a folder: shards[i] -> a dict with the
    caption and, for stage 0, the file; shards.tokens(i) -> int64 (t, h, w).

    index.json           {"17": {PART: clips, ...}, "5": ..., "1": ...}
    PART.t17.jsonl       the dicts, one per line
    PART.t17.ends.npy    where these lines end in bytes, int64
    PART.t17.tokens.npy  uint16 (clips, t, h, w)

    Files are opened when they are needed, so that any number of clips takes
    no time or memory at the start.
    """

    def __init__(self, folder, t, parts):
        self.stems = [f"{folder}/{part}.t{t}" for part in parts]
        self.counts = np.cumsum(list(parts.values()))

    def __len__(self):
        return int(self.counts[-1])

    def place(self, i):
        part = int(np.searchsorted(self.counts, i, side="right"))
        return self.stems[part], i - (self.counts[part - 1] if part else 0)

    def __getitem__(self, i):
        stem, row = self.place(i)
        ends = np.load(stem + ".ends.npy", mmap_mode="r")
        with open(stem + ".jsonl", "rb") as f:
            f.seek(ends[row - 1] if row else 0)
            return json.loads(f.readline())

    def tokens(self, i):
        stem, row = self.place(i)
        return np.load(stem + ".tokens.npy", mmap_mode="r")[row].astype(np.int64)


def shards_of(folder, t=1):
    """The Shards of a folder with clips of at least t latent frames."""
    index = json.loads(Path(folder, "index.json").read_text())
    return [Shards(folder, n, parts) for n, parts in index.items() if int(n) >= t]


@functools.cache
def shards_in(folders, t):
    every = [shards for folder in folders.split(",") for shards in shards_of(folder, t)]
    if not every:
        raise ValueError(f"{folders}: no clip has {t} latent frames; make longer ones "
                         "with tools/prepare.py")
    return every


def draw(rng, folders, t, validation=False):
    """Draw a clip of at least t latent frames -> its Shards, its number.
    folders: "A,B". validation: one of the last 64th, which others never are."""
    every = shards_in(folders, t)
    counts = np.array([len(shards) for shards in every])
    shards = every[rng.choice(len(every), p=counts / counts.sum())]
    n, kept = len(shards), max(1, len(shards) // 64)
    first, end = (n - kept, n) if validation else (0, max(1, n - kept))
    return shards, rng.integers(first, end)


def random_tokens(rng, folders, t, validation=False):
    """-> int64 (t, h, w) and a caption."""
    shards, i = draw(rng, folders, t, validation)
    return shards.tokens(i)[:t], shards[i]["caption"]


def random_pixels(rng, folders, frames, t, fps, size, validation=False):
    """-> frames of a file from a random start, uint8 (frames, size, size, 3)."""
    from tools.films import read_media  # needs av, which tokens do not
    for _ in range(100):  # broken files are passed over
        shards, i = draw(rng, folders, t, validation)
        clip = shards[i]
        if "file" not in clip:
            raise ValueError(f"{folders} holds tokens of the toy, no files: use --videos toy")
        try:
            start = rng.integers(max(1, clip["frames"] - frames + 1)) / fps
            return read_media(clip, frames, fps, size, start)
        except Exception as e:  # Pillow raises nearly anything
            reason = f"{type(e).__name__}: {e}"
    raise ValueError(f"{folders}: 100 files cannot be read, the last for {reason}")


def read_meta(folder):
    """What describes the clips and the tokenizer of a folder of shards."""
    path = Path(folder, "meta.json")
    if not path.exists():
        raise ValueError(f"no {path}: make such a folder with tools/prepare.py")
    return json.loads(path.read_text())
