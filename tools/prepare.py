"""tools/prepare.py: captioned videos and images -> token shards (Sec. 4.1).

    python tools/prepare.py --source toy --clips 8192 --out data/toy
    python tools/prepare.py --source folder --input my_files --out data/mine
    python tools/prepare.py --source csv --input webvid.csv --root videos \
        --out data/webvid
    python tools/prepare.py --source tar --input cc12m --out data/cc12m
    python tools/prepare.py --inspect data/webvid

    files -> clips uint8 (T, H, W, 3), T = 65, 17 or 1 at 6.5 frames/s
          -> tokens uint16 (N, t, h, w), t = 17, 5 or 1

Each clip is encoded once, at its full length, and serves all three stages
(see data.py). The files are divided into parts, and a part is written whole
or not at all, so after a kill the same command continues. Files that cannot
be used are listed in skipped.jsonl. docs/data.md has the shard format.

This file knows nothing about the language model.
"""
import argparse
import contextlib
import csv
import ctypes
import io
import itertools
import json
import os
import sys
import tarfile
import warnings
from collections import Counter
from dataclasses import dataclass

import av
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from tqdm import tqdm

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from data import (FPS, IMAGES, SIZE, VIDEOS, TokenShards, ending,  # noqa: E402
                  read_frames, read_image, read_meta, to_float, to_uint8,
                  toy_clip, video_frames)
from sample import autocast, fast_dtype  # noqa: E402
from tokenizer import load_tokenizer  # noqa: E402

LENGTHS = (65, 17, 1)  # frames of the clips of stages 3, 2 and 1 (Sec. 3.2)

# ---------------------------------------------------------------------------
# reading: the one place that deals with whatever a file may be

class Skipped(ValueError):
    """Why a file cannot be used."""

@dataclass
class Item:
    """A captioned video or image: a file at `path`, or its bytes, `data`."""
    name: str
    caption: str = ""
    path: str = ""
    data: bytes = b""
    reason: str = ""  # why it cannot be used, if that is known already

    def __post_init__(self):
        self.caption = " ".join(self.caption[:4096].split())

    def read(self, frames, size, count=1):
        """-> list of up to `count` clips, uint8 (T, size, size, 3), one after
        the other. Raises Skipped, whatever is wrong with the file."""
        try:
            if self.reason or not self.caption:
                raise Skipped(self.reason or "no caption")
            if not (os.path.getsize(self.path) if self.path else self.data):
                raise Skipped("empty file")
            if ending(self.name) in IMAGES:
                return self.image(size)
            return self.clips(frames, size, count)
        except Skipped:
            raise
        except Exception as e:  # ffmpeg and Pillow raise nearly anything
            # not str(e), which may hold an address: each run another
            reason = getattr(e, "strerror", None)
            raise Skipped(reason or f"unreadable ({type(e).__name__})") from e

    def file(self):
        return self.path or io.BytesIO(self.data)

    def image(self, size):
        with warnings.catch_warnings():  # Pillow only warns of smaller bombs
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            check_size(*Image.open(self.file()).size)
            return [read_image(self.file(), size)]

    def clips(self, frames, size, count):
        with av.open(self.file()) as film:
            if film.format.name.endswith("_pipe"):
                raise Skipped("a picture named as a video")
            if not film.streams.video:
                raise Skipped("no video in it")
            stream = film.streams.video[0]
            check_size(stream.width, stream.height)
        pictures, clips = read_frames(self.file(), FPS, size), []
        while len(clips) < count:
            clip = list(itertools.islice(pictures, frames))
            if len(clip) < frames and clips:
                break
            # only a video too short for one whole clip gives a shorter one
            fit = [n for n in (frames, *LENGTHS) if n <= len(clip)]
            if not fit:
                raise Skipped("no frame in it")
            clips.append(np.stack(clip[:fit[0]]))
        return clips

def check_size(width, height):
    """Before anything is decoded: small files may hold huge pictures."""
    if min(width, height) < 8 or width * height > 100_000_000:
        raise Skipped(f"{width}x{height} pixels: too small or too large")

@dataclass
class ToyItem:
    """A clip of the toy world; its name is its number."""
    name: str
    seed: int
    caption: str = ""

    def read(self, frames, size, count=1):
        # the 17 keeps these clips apart from those that train.py draws
        rng = np.random.default_rng([self.seed, int(self.name), 17])
        clip, self.caption, _ = toy_clip(rng, frames)
        return [clip]

# ---------------------------------------------------------------------------
# sources: what --input holds, as Items in a fixed order

def folder_items(folder):
    """Every video and image under a folder, its caption from NAME.txt, or
    from captions.jsonl at the top: {"file": ..., "caption": ...} per line."""
    if not os.path.isdir(folder):
        raise ValueError(f"{folder} is no folder")
    table, unreadable = {}, []
    if os.path.exists(path := os.path.join(folder, "captions.jsonl")):
        with open(path, errors="replace") as f:
            try:
                for row in map(json.loads, f):
                    table[row["file"]] = str(row["caption"] or "")
            except (ValueError, KeyError, TypeError) as e:
                raise ValueError(f'{path}: each line must be {{"file": ..., '
                                 '"caption": ...}') from e
    for where, folders, names in os.walk(folder, onerror=unreadable.append):
        folders.sort()
        for file in sorted(names):
            if ending(file) in VIDEOS | IMAGES:
                path = os.path.join(where, file)
                name = os.path.relpath(path, folder)
                yield Item(name, table.get(name) or caption_of(path), path)
    for e in unreadable:
        yield Item(os.path.relpath(e.filename, folder), reason=e.strerror)

def caption_of(path):
    text = os.path.splitext(path)[0] + ".txt"
    if os.path.isfile(text):
        with contextlib.suppress(OSError), open(text, errors="replace") as f:
            return f.read(4096)
    return ""

def csv_items(path, root, columns):
    """WebVid's table: a row's video is ROOT/page_dir/videoid.mp4, and its
    caption is in the column `name`."""
    csv.field_size_limit(1 << 24)
    with open(path, newline="", errors="replace") as f:
        rows = csv.DictReader(f)
        if missing := set(columns) - set(rows.fieldnames or ()):
            raise ValueError(f"{path}: no column {', '.join(sorted(missing))}"
                             "; name them by --columns")
        for row in rows:
            video, folder, caption = (row[c] or "" for c in columns)
            name = os.path.normpath(os.path.join(folder, video + ".mp4"))
            reason = "outside --root" if name.startswith(("..", "/")) else ""
            yield Item(name, caption, os.path.join(root, name), reason=reason)

@dataclass
class Tar:
    """The Items of a tar file in webdataset's layout: files with the same
    key, their name up to its first dot, are a video or image and its .txt,
    or its .json with a "caption". Nothing is unpacked to disk, and links are
    left out."""
    path: str

    def __iter__(self):
        import webdataset
        tar, seen = os.path.basename(self.path), set()
        for sample in webdataset.tarfile_samples(
                [{"url": self.path}], webdataset.ignore_and_continue):
            key = sample["__key__"]
            yield sample_item(f"{tar}/{key}", sample, key in seen)
            seen.add(key)
        if problem := damage(self.path):
            yield Item(tar, reason=f"broken tar ({problem})")

def sample_item(name, sample, again):
    """sample: {ending: bytes}."""
    media = [e for kinds in (VIDEOS, IMAGES) for e in sample
             if ending("x." + e) in kinds]
    if again or not media:
        reason = "duplicate key" if again else "no video or image"
        return Item(name, reason=reason)
    caption = sample.get("txt", b"").decode(errors="replace")
    if not caption.strip():
        # what is no json, or no object, or nested absurdly, is no caption
        with contextlib.suppress(ValueError, AttributeError, RecursionError):
            caption = json.loads(sample.get("json", "")).get("caption")
    kind = media[0]
    return Item(f"{name}.{kind}", str(caption or ""), data=sample[kind])

def damage(path):
    """What is wrong with a tar file, or "". webdataset reads tars by tarfile,
    which silently stops at a damaged header as if it were the end; but the
    true end is a blank block."""
    try:
        with tarfile.open(path, "r:") as tar:
            tar.getmembers()
            tar.fileobj.seek(tar.offset)
            blank = tar.fileobj.read(512) == bytes(512)
        return "" if blank else "damaged or cut"
    except Exception as e:
        return getattr(e, "strerror", None) or str(e)

def parts(args):
    """All Items in parts: lists of --part Items, or Tars."""
    if args.source == "tar":
        import webdataset  # noqa: F401  (if there is none, fail at once)
        tars = [args.input]
        if os.path.isdir(args.input):
            tars = [os.path.join(args.input, name)
                    for name in sorted(os.listdir(args.input))
                    if ending(name) == "tar"]
        yield from (Tar(os.path.abspath(tar)) for tar in tars)
        return
    if args.source == "toy":
        items = (ToyItem(str(i), args.seed) for i in range(args.clips))
    elif args.source == "folder":
        items = folder_items(args.input)
    else:
        items = csv_items(args.input, args.root, args.columns.split(","))
    while part := list(itertools.islice(items, args.part)):
        yield part

# ---------------------------------------------------------------------------
# encoding

class Reader(IterableDataset):
    """Items -> (name, caption, clips, reason if there are none).

    Worker i of n reads every n-th Item from the i-th on (of a Tar, too: it
    passes over the others). The DataLoader takes turns among the workers, so
    the Items stay in order, whatever the number of workers.
    """

    def __init__(self, items, *how):
        self.items, self.how = items, how

    def __iter__(self):
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for item in itertools.islice(self.items, first, None, step):
            clips, reason = [], ""
            try:
                clips = item.read(*self.how)
            except Skipped as e:
                reason = str(e)
            yield item.name, item.caption, clips, reason

def encode_part(reader, encode, batch_size, workers, bar):
    """Encode clips of one length together, as they come in -> {t: (list of
    tokens (n, t, h, w), captions)}, list of what was skipped."""
    done, waiting, skipped = {}, {}, []

    def encode_waiting(length):
        clips, captions = zip(*waiting.pop(length))
        tokens = encode(np.stack(clips))
        rows = done.setdefault(tokens.shape[1], ([], []))
        rows[0].append(tokens)
        rows[1].extend(captions)

    # collate_fn: as tensors, clips would come through shared memory, of
    # which containers have little
    for name, caption, clips, reason in DataLoader(
            reader, batch_size=None, num_workers=workers, collate_fn=tuple):
        if reason:
            skipped.append({"file": name, "reason": reason})
        for clip in clips:
            waiting.setdefault(len(clip), []).append((clip, caption))
            full = batch_size * LENGTHS[0] // len(clip)  # equal in frames
            if len(waiting[len(clip)]) == full:
                encode_waiting(len(clip))
        bar.update()
    for length in list(waiting):
        encode_waiting(length)
    return done, skipped

def write_part(path, done, skipped):
    """path: OUT/PART. PART.json comes last: without it there is no part."""
    for t, (tokens, captions) in done.items():
        array = io.BytesIO()
        np.save(array, np.concatenate(tokens))
        write(f"{path}.t{t}.tokens.npy", array.getvalue())
        write(f"{path}.t{t}.captions.jsonl",
              json_lines({"caption": caption} for caption in captions))
    counts = {t: len(captions) for t, (_, captions) in done.items()}
    write(path + ".json", json_lines([{"clips": counts, "skipped": skipped}]))

def json_lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()

def write(path, content):
    """The whole file or none."""
    try:
        with open(path + ".tmp", "wb") as f:
            f.write(content)
        os.replace(path + ".tmp", path)
    except OSError as e:
        if os.path.exists(path + ".tmp"):
            os.remove(path + ".tmp")
        raise ValueError(
            f"cannot write {path} ({e.strerror}); the parts before it are "
            "whole, and the same command goes on from there") from e

def totals(folder):
    """What the finished parts hold -> {frames: number of clips}, list of
    what was skipped."""
    clips, skipped = Counter(), []
    for name in sorted(os.listdir(folder)):
        if name.endswith(".json") and name != "meta.json":
            with open(os.path.join(folder, name)) as f:
                part = json.load(f)
            skipped += part["skipped"]
            for t, n in part["clips"].items():
                clips[video_frames(int(t))] += n
    return dict(sorted(clips.items())), skipped

# ---------------------------------------------------------------------------
# plumbing

def inspect(folder, ckpt, device):
    """Print what a folder of shards holds, and draw contact.png: the first,
    middle and last frame of 16 clips."""
    meta, shards = read_meta(folder), TokenShards(folder)
    clips, skipped = totals(folder)
    for frames, n in clips.items():
        print(f"{n} clips of {frames} frames, {frames / FPS:.1f} s each, "
              f"{n * frames / FPS / 3600:.2f} hours")
    print(f"{len(skipped)} files skipped")
    reasons = Counter(s["reason"] for s in skipped)
    for reason, n in reasons.most_common(10):
        print(f"    {n} x {reason}")
    tokenizer, digest = load_tokenizer(ckpt, device)
    if digest != meta["tokenizer_hash"]:
        raise ValueError(f"{folder} was encoded by another tokenizer: name "
                         "its folder by --ckpt")
    used = np.zeros(tokenizer.config.codebook_size, bool)
    for path, _ in shards.files:
        used[np.unique(np.load(path + ".tokens.npy"))] = True
    print(f"{used.sum()} of {len(used)} codes used ({used.mean():.1%})")
    if not len(shards):
        return
    triples = []
    for i in np.linspace(0, len(shards) - 1, 16).astype(int):
        tokens, caption = shards[i]
        tokens = torch.as_tensor(tokens, device=device)
        video = to_uint8(tokenizer.decode(tokens[None]))[0]
        triples.append(np.hstack(video[[0, len(video) // 2, -1]]))
        print("   ", caption[:100])
    rows = [np.hstack(triples[i:i + 4]) for i in range(0, 16, 4)]
    path = os.path.join(folder, "contact.png")
    Image.fromarray(np.vstack(rows)).save(path)
    print(f"contact sheet: {path}")

def start(out, meta):
    """Write meta.json, or check that the one in `out` is of the same clips,
    settings and tokenizer -> what it says."""
    os.makedirs(out, exist_ok=True)
    path = os.path.join(out, "meta.json")
    if not os.path.exists(path):
        write(path, json_lines([meta]))
    with open(path) as f:
        found = json.load(f)
    # The dtype is chosen by a short measurement. Later runs and other jobs
    # keep to the first one's choice, or some of their tokens would differ.
    if found != meta | {"dtype": found.get("dtype")}:
        raise ValueError(f"{out} holds shards of other clips, settings or "
                         "tokenizer; choose another --out")
    return found

def parse():
    p = argparse.ArgumentParser(description="Captioned clips -> token shards.")
    add, cuda = p.add_argument, torch.cuda.is_available()
    add("--source", choices=["toy", "folder", "csv", "tar"], default="toy")
    add("--input", help="the folder, csv file, tar file or folder of tars")
    add("--root", default="", help="csv: the folder of the videos")
    add("--columns", default="videoid,page_dir,name",
        help="csv: those of video, its folder, its caption")
    add("--clips", type=int, default=8192, help="toy: how many")
    add("--clips-per-video", type=int, default=1, help="at most")
    add("--ckpt", help="folder of tokenizer.pt (default: the shipped toy's)")
    add("--out", help="folder to write; finished parts in it are kept")
    add("--shard", default="0/1", metavar="I/N",
        help="job I of N: every N-th part, from the I-th on")
    add("--part", type=int, default=1000,
        help="files per part (each tar is one part)")
    add("--batch-size", type=int, default=4, help="clips of 65 frames at once")
    add("--workers", type=int, default=max(1, (os.cpu_count() or 1) - 1),
        help="processes that read files")
    add("--seed", type=int, default=0, help="toy")
    add("--device", default="cuda" if cuda else "cpu")
    add("--inspect", metavar="DIR", help="tell what a folder of shards holds")
    args = p.parse_args()
    job, _, jobs = args.shard.partition("/")
    if not (job.isdecimal() and jobs.isdecimal() and int(job) < int(jobs)):
        raise ValueError("--shard must be I/N with I < N")
    args.job, args.jobs = int(job), int(jobs)
    if min(args.clips, args.clips_per_video, args.part, args.batch_size,
           args.workers + 1, args.seed + 1) < 1:
        raise ValueError("sizes must be at least 1, --workers and --seed 0")
    if args.columns.count(",") != 2:
        raise ValueError("--columns must name three columns")
    if not args.inspect and not args.out:
        raise ValueError("--out is needed")
    if args.source != "toy" and not args.input and not args.inspect:
        raise ValueError(f"--source {args.source} needs --input")
    if args.input and not os.path.exists(args.input):
        raise ValueError(f"{args.input} does not exist")
    return args

def main():
    args = parse()
    device = torch.device(args.device)
    if args.inspect:
        return inspect(args.inspect, args.ckpt, device)
    tar = args.source == "tar"
    sizes = [1 if tar else len(part) for part in parts(args)]
    if not sizes:
        raise ValueError(f"{args.input} holds nothing to encode")
    if sys.platform == "linux":
        # M_MMAP_MAX 0, M_TRIM_THRESHOLD 2 GB: keep freed memory. Without it
        # encoding on a CPU takes 1.5 to 2 times as long, as large blocks
        # are cleared whenever they are taken again.
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)
        libc.mallopt(-1, 2 ** 31 - 1)
    tokenizer, digest = load_tokenizer(args.ckpt, device)
    config = tokenizer.config
    if args.source == "toy" and config.resolution != SIZE:
        raise ValueError(f"the toy world is {SIZE} pixels wide, this "
                         f"tokenizer's clips are {config.resolution}")
    meta = start(args.out, {
        "codebook_size": config.codebook_size, "frames": config.frames,
        "fps": FPS, "resolution": config.resolution, "tokenizer_hash": digest,
        "dtype": fast_dtype(device.type),
        "items": sum(sizes), "part": args.part,
        "from": [args.source, args.input, args.clips_per_video, args.seed]})

    @torch.no_grad()
    def encode(clips):
        with autocast(device, meta["dtype"]):
            tokens = tokenizer.encode(to_float(clips).to(device))
        return tokens.cpu().numpy().astype(np.uint16)

    bar = tqdm(total=None if tar else sum(sizes), unit="item", smoothing=0.01)
    for i, items in enumerate(parts(args)):
        path = os.path.join(args.out, f"{i:06d}")
        bar.set_description(f"part {i + 1} of {len(sizes)}")
        if i % args.jobs != args.job or os.path.exists(path + ".json"):
            bar.update(sizes[i])
            continue
        reader = Reader(items, config.frames, config.resolution,
                        args.clips_per_video)
        write_part(path, *encode_part(reader, encode, args.batch_size,
                                      args.workers, bar))
    bar.close()

    clips, skipped = totals(args.out)
    write(os.path.join(args.out, "skipped.jsonl"), json_lines(skipped))
    counts = [f"{n} clips of {frames} frames" for frames, n in clips.items()]
    print(f"{args.out}: {', '.join(counts) or 'no clips'}; "
          f"{len(skipped)} skipped, see skipped.jsonl")
    if not clips and args.jobs == 1:  # others may still be at work
        raise ValueError("no clip could be encoded")

if __name__ == "__main__":
    try:
        main()
    except ModuleNotFoundError as e:
        sys.exit(f"prepare.py: pip install {e.name}")
    # the last two: memory ran out, a worker was killed, no such device
    except (ValueError, OSError, csv.Error, RuntimeError, AssertionError) as e:
        sys.exit("prepare.py: " + str(e).partition("\n")[0])
    except KeyboardInterrupt:
        sys.exit(130)
