"""tools/shards.py: clips on disk, as tools/prepare.py writes them. It imports none of the five."""
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


def read_meta(folder):
    """What describes the clips and the tokenizer of a folder of shards."""
    return json.loads(Path(folder, "meta.json").read_text())
