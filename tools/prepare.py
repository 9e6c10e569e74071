"""tools/prepare.py: captioned videos and images -> token shards (Sec. 4.1).

Every clip is encoded once, at up to 65 frames, and kept as tokens; the causal
tokenizer makes one shard serve all three stages of training (see data.py).

    python tools/prepare.py --source toy --clips 8192 --out data/toy
    python tools/prepare.py --source folder --input my_videos --out data/mine
    python tools/prepare.py --source csv --input webvid.csv --root videos --out data/webvid
    python tools/prepare.py --source tar --input cc12m --out data/cc12m
    python tools/prepare.py --inspect data/webvid

A part of --part items is written whole or not at all, so the same command
continues after a kill. What cannot be used is listed in skipped.jsonl, with
its reason. This file knows nothing about the language model.
"""
import argparse
import csv
import ctypes
import io
import itertools
import json
import math
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
from tqdm import tqdm

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from data import (FPS, IMAGES, SIZE, VIDEOS, TokenShards, ending,  # noqa: E402
                  latent_frames, read_frames, read_image, to_float, to_uint8,
                  toy_clip, video_frames)
from sample import autocast  # noqa: E402
from tokenizer import load_tokenizer  # noqa: E402

LENGTHS = (65, 17, 1)  # frames of a clip, the three stages'
LARGEST = 100_000_000  # pixels; a larger picture is a decompression bomb

# ---------------------------------------------------------------------------
# reading: the one place where a file may be anything


def clips_of(file, name, frames, size, count):
    """Up to `count` clips of a video, one after the other, or an image as a
    clip of one frame: a list of uint8 (T, size, size, 3). A video too short
    for a clip of `frames` gives one of 17 frames or of 1. file: a path or a
    binary file. Raises ValueError with the reason if there are none."""
    image = ending(name) in IMAGES
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            check_size(file, image)
            if image:
                return [read_image(file, size)]
            stream, clips = read_frames(file, FPS, size), []
            while len(clips) < count:
                clip = list(itertools.islice(stream, frames))
                if not clip or clips and len(clip) < frames:
                    break
                longest = next(n for n in (frames, *LENGTHS) if n <= len(clip))
                clips.append(np.stack(clip[:longest]))
    except Exception as e:  # Pillow, ffmpeg and imageio raise nearly anything
        reason = str(e).strip().partition("\n")[0][:200] or type(e).__name__
        kind = "image" if image else "video"
        raise ValueError(f"not a readable {kind} ({reason})") from e
    if not clips:
        raise ValueError("not a readable video (no frame in it)")
    return clips


def check_size(file, image):
    """Before anything is decoded."""
    if image:
        with Image.open(file) as picture:
            width, height = picture.size
    else:
        with av.open(file) as film:
            if film.format.name.endswith("_pipe"):
                raise ValueError("a picture that is named as a video")
            stream = film.streams.video[0]
            width, height = stream.width, stream.height
    if hasattr(file, "seek"):
        file.seek(0)
    if min(width, height) < 8 or width * height > LARGEST:
        raise ValueError(f"{width}x{height} pixels")


# ---------------------------------------------------------------------------
# sources: what --input holds, as a stream of Items in a fixed order


@dataclass
class Item:
    """One captioned file, or the reason why it cannot be used."""
    name: str
    caption: str = ""
    path: str = ""
    offset: int = 0  # where it lies in `path`, if that is a tar file
    size: int = -1
    reason: str = ""

    def __post_init__(self):
        self.caption = " ".join(self.caption[:4096].split())

    def read(self, frames, size, count=1):
        """-> list of clips, uint8 (T, size, size, 3). Raises ValueError with the reason if there are none."""
        if self.reason:
            raise ValueError(self.reason)
        file = self.path
        try:
            if self.size >= 0:
                with open(self.path, "rb") as tar:
                    tar.seek(self.offset)
                    file = io.BytesIO(tar.read(self.size))
            elif not os.path.getsize(file):
                raise ValueError("empty file")
        except OSError as e:
            raise ValueError(e.strerror) from e
        return clips_of(file, self.name, frames, size, count)


@dataclass
class ToyItem:
    """A clip of the toy world; its name is its number, its caption is drawn with it."""
    name: str
    seed: int
    caption: str = None

    def read(self, frames, size, count=1):
        # the last number keeps these clips apart from those that train.py draws on the spot
        video, self.caption, _ = toy_clip(np.random.default_rng([self.seed, int(self.name), 17]), frames)
        return [video]


def folder_items(folder):
    """Every video and image under a folder, its caption from NAME.txt or from captions.jsonl at the top, one
    {"file": ..., "caption": ...} a line."""
    table = {}
    if os.path.exists(path := os.path.join(folder, "captions.jsonl")):
        with open(path, errors="replace") as f:
            try:
                table = {row["file"]: str(row["caption"] or "") for row in map(json.loads, f)}
            except (ValueError, KeyError, TypeError) as e:
                raise ValueError(f'{path}: every line must be {{"file": ..., "caption": ...}}') from e
    elif not os.path.isdir(folder):
        raise ValueError(f"{folder}: no such folder")
    closed = []  # folders that may not be read
    for where, folders, names in os.walk(folder, onerror=closed.append):
        folders.sort()
        for name in sorted(names):
            if ending(name) in VIDEOS | IMAGES:
                path = os.path.join(where, name)
                name = os.path.relpath(path, folder)
                caption = table.get(name, "")
                if not caption and os.path.exists(text := os.path.splitext(path)[0] + ".txt"):
                    with open(text, errors="replace") as f:
                        caption = f.read(4096)
                yield Item(name, caption, path)
    yield from (Item(os.path.relpath(e.filename, folder), reason=e.strerror) for e in closed)


def csv_items(path, root, columns):
    """WebVid's table: the video of a row is ROOT/page_dir/videoid.mp4, its caption the column `name`."""
    csv.field_size_limit(1 << 24)
    with open(path, newline="", errors="replace") as f:
        rows = csv.DictReader(f)
        if missing := set(columns) - set(rows.fieldnames or ()):
            raise ValueError(f"{path}: no column {', '.join(sorted(missing))}; name them by --columns")
        for row in rows:
            number, folder, caption = (row[c] or "" for c in columns)
            name = os.path.normpath(os.path.join(folder, number + ".mp4"))
            outside = name.startswith(("..", "/"))
            yield Item(name, caption, os.path.join(root, name), reason="outside --root" if outside else "")


def tar_items(folder):
    """webdataset's layout: the members of a tar file that share a key (the name up to its first dot) are one sample, a
    video or image beside its txt, or its json with a "caption". Nothing is unpacked: a member is bytes at an offset."""
    tars = [folder]
    if not os.path.exists(folder):
        raise ValueError(f"{folder}: no such file or folder")
    if os.path.isdir(folder):
        tars = [os.path.join(folder, n) for n in sorted(os.listdir(folder)) if ending(n) == "tar"]
    for path in tars:
        name, seen = os.path.basename(path), set()
        try:
            with tarfile.open(path, "r:") as file:
                files = (m for m in file if not m.isdir())
                for key, group in itertools.groupby(files, key_of):
                    members = {ending(m.name): m for m in group}
                    yield tar_item(f"{name}/{key}", members, file, path, key in seen)
                    seen.add(key)
        except (tarfile.TarError, OSError, EOFError) as e:
            yield Item(name, reason=f"broken tar ({e})")


def key_of(member):
    """webdataset's: the name up to the first dot of its last part."""
    folder, name = os.path.split(member.name)
    return os.path.join(folder, name.split(".")[0])


def tar_item(name, members, file, path, again):
    media = next((e for e in (*sorted(VIDEOS), *sorted(IMAGES)) if e in members), None)
    if media is None or again:
        return Item(name, reason="duplicate key" if again else "no video or image")
    if not members[media].isreg():
        return Item(name, reason="a link, not a file")
    caption = ""
    for kind in ("json", "txt"):
        if kind in members and members[kind].isreg():
            text = file.extractfile(members[kind]).read(1 << 20).decode(errors="replace")
            try:
                caption = text if kind == "txt" else str(json.loads(text).get("caption") or "")
            except (ValueError, AttributeError, RecursionError):
                pass  # json that is none, or not an object
    m = members[media]
    return Item(f"{name}.{media}", caption, path, m.offset_data, m.size)


# ---------------------------------------------------------------------------
# encoding, part by part

def parts(folder):
    """The finished parts of a folder of shards -> {name: what PART.json says}, in order."""
    finished = {}
    for name in sorted(n for n in os.listdir(folder) if n.endswith(".json") and n != "meta.json"):
        with open(os.path.join(folder, name)) as f:
            finished[name.removesuffix(".json")] = json.load(f)
    return finished


def totals(folder):
    """What the finished parts hold together -> ({frames of a clip: how many}, shortest first, skipped items)."""
    finished, clips = parts(folder).values(), Counter()
    for part in finished:
        clips.update({int(t): n for t, n in part["clips"].items()})
    skipped = [s for p in finished for s in p["skipped"]]
    return {video_frames(t): n for t, n in sorted(clips.items())}, skipped


class Reader(torch.utils.data.Dataset):
    """What worker processes do: Items -> (name, caption, clips, reason why there are none)."""

    def __init__(self, items, frames, size, count):
        self.items, self.how = items, (frames, size, count)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        item, clips, reason = self.items[i], [], ""
        try:
            if item.caption == "" and not item.reason:
                raise ValueError("no caption")
            clips = item.read(*self.how)
        except ValueError as e:
            reason = str(e)
        return item.name, item.caption, clips, reason


def encode_part(reader, tokenizer, device, batch_size, workers, bar):
    """Encode a part's items, clips of one length together -> {t: ([tokens (n, t, h, w)], [captions])}, skipped items."""
    done, waiting, skipped = {}, {}, []

    def encode(length):
        clips, captions = zip(*waiting.pop(length))
        with torch.no_grad(), autocast(device):
            tokens = tokenizer.encode(to_float(np.stack(clips)).to(device))
        tokens = tokens.cpu().numpy().astype(np.uint16)
        rows = done.setdefault(tokens.shape[1], ([], []))
        rows[0].append(tokens)
        rows[1].extend(captions)

    loader = torch.utils.data.DataLoader(reader, batch_size=None, num_workers=workers,
                                         collate_fn=tuple)
    for name, caption, clips, reason in loader:
        if reason:
            skipped.append({"file": name, "reason": reason})
        for clip in clips:
            waiting.setdefault(len(clip), []).append((clip, caption))
            if len(waiting[len(clip)]) == batch_size * LENGTHS[0] // len(clip):
                encode(len(clip))
        bar.update()
    for length in list(waiting):
        encode(length)
    return done, skipped


def write_part(out, part, done, skipped):
    """Files first under another name, PART.json last: a part is whole or it is not there."""
    files = {}
    for t, (tokens, captions) in done.items():
        array = io.BytesIO()
        np.save(array, np.concatenate(tokens))
        files[f"{part}.t{t}.tokens.npy"] = array.getvalue()
        files[f"{part}.t{t}.captions.jsonl"] = "".join(json.dumps({"caption": c}) + "\n" for c in captions).encode()
    counts = {t: len(captions) for t, (_, captions) in done.items()}
    files[f"{part}.json"] = json.dumps({"clips": counts, "skipped": skipped}).encode()
    for name, content in files.items():
        path = os.path.join(out, name)
        try:
            with open(path + ".tmp", "wb") as f:
                f.write(content)
            os.replace(path + ".tmp", path)
        except OSError as e:
            raise ValueError(f"cannot write {path} ({e.strerror}); the parts before it are "
                             "whole, and the same command goes on from there") from e
        finally:
            if os.path.exists(path + ".tmp"):
                os.remove(path + ".tmp")


def inspect(folder, ckpt, device):
    """Print what a folder of shards holds, and draw contact.png: first, middle and last frame of sixteen clips."""
    shards = TokenShards(folder, 1)
    shards.latents = latent_frames(LENGTHS[0])  # clips at their full length
    counts, skipped = totals(folder)
    reasons = Counter(s["reason"] for s in skipped)
    used = np.zeros(shards.meta["codebook_size"], bool)
    for path, _ in shards.files:
        used[np.unique(np.load(path + ".tokens.npy", mmap_mode="r"))] = True
    for frames, n in counts.items():
        print(f"{n} clips of {frames} frames, {frames / FPS:.1f} s each, {n * frames / FPS / 3600:.2f} hours")
    print(f"{len(skipped)} files skipped")
    for why, n in reasons.most_common(10):
        print(f"    {n} x {why}")
    print(f"{used.sum()} of {len(used)} codes used ({used.mean():.1%})")
    tokenizer, tokenizer_hash = load_tokenizer(ckpt, device)
    if tokenizer_hash != shards.meta["tokenizer_hash"]:
        raise ValueError(f"{folder} was encoded by another tokenizer: name its folder by --ckpt")
    sheet = []
    for i in np.linspace(0, len(shards) - 1, 16).astype(int):
        tokens, caption = shards[i]
        video = tokenizer.decode(torch.as_tensor(tokens)[None].to(device))
        video = to_uint8(video)[0]
        sheet.append(np.concatenate(video[[0, len(video) // 2, -1]], axis=1))
        print("   ", caption[:100])
    path = os.path.join(folder, "contact.png")
    rows = [np.concatenate(sheet[row:row + 4], 1) for row in range(0, 16, 4)]
    Image.fromarray(np.concatenate(rows)).save(path)
    print(f"contact sheet: {path}")


def main():
    p = argparse.ArgumentParser(description="Encode captioned clips into token shards.")
    p.add_argument("--source", choices=["toy", "folder", "csv", "tar"], default="toy")
    p.add_argument("--input", help="the folder, the csv file, or the tar file or folder of them")
    p.add_argument("--root", default="", help="csv: the folder of the videos")
    p.add_argument("--columns", default="videoid,page_dir,name", help="csv: columns of video, its folder, its caption")
    p.add_argument("--clips", type=int, default=8192, help="toy: how many clips")
    p.add_argument("--clips-per-video", type=int, default=1, help="how many clips of full length a long video gives")
    p.add_argument("--ckpt", help="folder with tokenizer.pt (default: the shipped toy weights)")
    p.add_argument("--out", help="folder to write to; parts that are there already are kept")
    p.add_argument("--shard", default="0/1", metavar="I/N", help="do every n-th part, from the i-th: one of n jobs")
    p.add_argument("--part", type=int, default=1000, help="items a part")
    p.add_argument("--batch-size", type=int, default=4, help="clips of full length encoded at once")
    p.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 1) - 1), help="processes that read files")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--inspect", metavar="DIR", help="say what a folder of shards holds, and draw a contact sheet")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = p.parse_args()
    device = torch.device(args.device)
    if args.inspect:
        return inspect(args.inspect, args.ckpt, device)
    mine, jobs = (int(n) if n.isdecimal() else -1 for n in (args.shard + "/").split("/")[:2])
    if min(args.clips, args.batch_size, args.part, args.clips_per_video) < 1 or not 0 <= mine < jobs:
        raise ValueError("--clips, --clips-per-video, --part and --batch-size must be at "
                         "least 1, --shard I/N with I < N")
    if not args.out or (args.source != "toy" and not args.input):
        raise ValueError("--out is needed" if not args.out else f"--source {args.source} needs --input")
    sources = {"toy": lambda: (ToyItem(str(i), args.seed) for i in range(args.clips)),
               "folder": lambda: folder_items(args.input), "tar": lambda: tar_items(args.input),
               "csv": lambda: csv_items(args.input, args.root, args.columns.split(","))}
    total = sum(1 for _ in sources[args.source]())
    if not total:
        raise ValueError(f"{args.input}: no videos or images in it")
    if sys.platform == "linux":  # M_MMAP_MAX 0, M_TRIM_THRESHOLD 2 GB: keep freed memory,
        libc = ctypes.CDLL(None)  # as clearing it anew costs more than the convolutions
        libc.mallopt(-4, 0), libc.mallopt(-1, 2 ** 31 - 1)
    tokenizer, tokenizer_hash = load_tokenizer(args.ckpt, device)
    config = tokenizer.config
    if args.source == "toy" and config.resolution != SIZE:
        raise ValueError(f"the toy world is {SIZE}x{SIZE}, this tokenizer's clips are {config.resolution} wide")
    meta = {"codebook_size": config.codebook_size, "frames": config.frames, "fps": FPS,
            "resolution": config.resolution, "tokenizer_hash": tokenizer_hash,
            "items": total, "part": args.part,
            "from": [args.source, args.input, args.clips_per_video, args.seed]}
    os.makedirs(args.out, exist_ok=True)
    path = os.path.join(args.out, "meta.json")
    if os.path.exists(path):
        with open(path) as f:
            if json.load(f) != meta:
                raise ValueError(f"{args.out} holds shards of other clips, settings or "
                                 "tokenizer; choose another --out")
    else:
        with open(path, "w") as f:
            json.dump(meta, f)

    items, bar = sources[args.source](), tqdm(total=total, unit="item", desc="encoding", smoothing=0.01)
    for number in range(math.ceil(total / args.part)):
        part, batch = f"{number:06d}", list(itertools.islice(items, args.part))
        if number % jobs != mine or os.path.exists(os.path.join(args.out, part + ".json")):
            bar.update(len(batch))
            continue
        reader = Reader(batch, config.frames, config.resolution, args.clips_per_video)
        encoded = encode_part(reader, tokenizer, device, args.batch_size, args.workers, bar)
        write_part(args.out, part, *encoded)
    bar.close()
    clips, skipped = totals(args.out)
    with open(os.path.join(args.out, "skipped.jsonl"), "w") as f:
        f.writelines(json.dumps(s) + "\n" for s in skipped)
    found = ", ".join(f"{n} clips of {frames} frames" for frames, n in clips.items())
    print(f"{args.out}: {found or 'no clips'}; {len(skipped)} skipped, see skipped.jsonl")
    if not clips and len(parts(args.out)) == math.ceil(total / args.part):  # other jobs may still be at theirs
        raise ValueError("no clip could be encoded")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as e:
        sys.exit(f"prepare.py: {e}")
