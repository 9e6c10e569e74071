"""tools/prepare.py: captioned videos and images -> token shards (Sec. 4.1).

    python tools/prepare.py --source toy --clips 8192 --out data/toy
    python tools/prepare.py --source folder --input my_files --out data/mine
    python tools/prepare.py --source csv --input webvid.csv --root videos \
        --out data/webvid
    torchrun --nproc-per-node 8 tools/prepare.py --source tar --input cc12m \
        --out data/cc12m
    python tools/prepare.py --inspect data/webvid

    files -> clips uint8 (T, H, W, 3), T = 65, 17 or 1 at 6.5 frames/s
          -> tokens uint16 (N, t, h, w), t = 17, 5 or 1

Each clip is encoded once, at its full length, and serves stages 1 to 3. The
place of its file is written, too, which is all that stage 0 needs:
with --index nothing is encoded. A part of the files is written whole or not at
all, so after a kill the same command continues. Files that cannot be used are
listed in skipped.jsonl. docs/data.md has the format.

This file knows nothing about the language model.
"""
import argparse
import contextlib
import csv
import ctypes
import glob
import hashlib
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

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from data import (  # noqa: E402
    FPS,
    SIZE,
    latent_frames,
    to_float,
    to_uint8,
    toy_clip,
    video_frames,
)
from tokenizer import load_tokenizer  # noqa: E402
from tools.films import (  # noqa: E402
    IMAGES,
    VIDEOS,
    NoFilm,
    duration,
    ending,
    open_film,
    open_media,
    read_frames,
    read_image,
)
from tools.machine import (  # noqa: E402
    autocast,
    check_cudnn,
    check_device,
    check_seed,
    fast_dtype,
    reading_workers,
    run_script,
)
from tools.shards import read_meta, shards_of  # noqa: E402

LENGTHS = (65, 17, 1)  # frames of the clips of stages 3, 2 and 1 (Sec. 3.2)
PACKED = {"gz", "tgz", "bz2", "xz", "zst"}  # tars in which no place can be read by itself
# of torchrun, or set by hand for jobs that share the work
RANK, RANKS = (int(os.environ.get(name, default)) for name, default in
               (("RANK", 0), ("WORLD_SIZE", 1)))

# ---------------------------------------------------------------------------
# reading: the one place that deals with whatever a file may be

class Skipped(ValueError):
    """Why a file cannot be used."""

@dataclass
class Item:
    """A captioned video or image: a file, or a part of one."""
    name: str
    caption: str | None = ""  # by `as_caption`; None: see NAME.txt beside the file
    file: str = ""
    place: dict | None = None  # its "offset" and "size" in a tar
    reason: str = ""  # why it cannot be used, if that is known already

    def row(self):
        """What data.Clips needs to find it."""
        return {"caption": self.caption, "name": self.name,
                "file": os.path.abspath(self.file), **(self.place or {})}

    def read(self, size, count=1):
        """-> list of (row, clip uint8 (T, size, size, 3)) of up to `count`
        clips, one after the other, or of (row, None) if count is 0. Raises
        Skipped, whatever is wrong with the file."""
        try:
            if self.caption is None:
                self.caption = caption_beside(self.file)
            if self.reason or count and not self.caption:
                raise Skipped(self.reason or "no caption")
            if not (self.place["size"] if self.place else os.path.getsize(self.file)):
                raise Skipped("empty file")
            row = self.row() | {"frames": self.frames()}
            if not count:
                clips = [None]
            elif ending(self.name) in IMAGES:
                clips = [read_image(self.open(), size)]
            else:
                clips = self.clips(size, count)
            return [(row, clip) for clip in clips]
        except Skipped:
            raise
        except Exception as e:  # ffmpeg and Pillow raise nearly anything
            # not str(e), which may hold an address: each run another
            reason = getattr(e, "strerror", None)
            raise Skipped(reason or f"unreadable ({type(e).__name__})") from e

    def open(self):
        return open_media(self.row())

    def frames(self):
        """1, or those of a video at 6.5 frames/s: as its header says, or counted."""
        if ending(self.name) in IMAGES:
            with warnings.catch_warnings():  # Pillow only warns of smaller bombs
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                check_size(*Image.open(self.open(), formats=("JPEG", "PNG", "WEBP")).size)
            return 1
        try:
            with open_film(self.open()) as (film, stream):
                if film.format.name.endswith("_pipe"):
                    raise Skipped("a picture named as a video")
                check_size(stream.width, stream.height)
                # one at 0, 1/FPS, ...; a header may say a little too much
                return max(1, math.ceil(duration(film, stream) * FPS - 0.01))
        except NoFilm as e:
            raise Skipped(str(e)) from e

    def clips(self, size, count):
        pictures, clips = read_frames(self.open(), FPS, size), []
        while len(clips) < count:
            clip = list(itertools.islice(pictures, LENGTHS[0]))
            if len(clip) < LENGTHS[0] and clips:
                break
            # only a video too short for one whole clip gives a shorter one
            if not clip:
                raise Skipped("no frame in it")
            clips.append(np.stack(clip[:longest(len(clip))]))
        return clips

def longest(frames):
    """Of the lengths of clips, that which fits into so many frames."""
    return next(n for n in LENGTHS if n <= frames)

def check_size(width, height):
    """Before anything is decoded: small files may hold huge pictures."""
    if min(width, height) < 8 or width * height > 100_000_000:
        raise Skipped(f"{width}x{height} pixels: too small or too large")

@dataclass
class ToyItem:
    """A clip of the toy world; its name is its number."""
    name: str
    seed: int

    def read(self, size, count=1):
        # the 17 keeps these clips apart from those that train.py draws
        rng = np.random.default_rng([self.seed, int(self.name), 17])
        clip, caption, _ = toy_clip(rng)
        return [({"caption": caption}, clip)]

# ---------------------------------------------------------------------------
# sources: what --input holds, as Items in a fixed order

def as_text(file):
    """A binary file, also one in a tar, as text: UTF-8, or UTF-16 and the like
    by its first bytes; a byte order mark is no part of the text."""
    encoding = json.detect_encoding(file.peek(4)[:4])
    return io.TextIOWrapper(file, encoding, errors="replace", newline="")

def as_caption(found):
    """-> one line of at most 4096 characters. A NaN, as tables have it for
    nothing, and whatever else is no text are no caption: ""."""
    if not isinstance(found, str):
        return ""
    line = " ".join(found[:4096].split())
    # half a surrogate pair, which JSON can hold, becomes U+FFFD
    line = line.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return "" if line.lower() == "nan" else line

def caption_beside(path):
    text = os.path.splitext(path)[0] + ".txt"
    if os.path.isfile(text):
        with contextlib.suppress(OSError), open(text, "rb") as f:
            return as_caption(as_text(f).read(4096))
    return ""

def caption_in(tar, sample):
    texts = {kind: as_text(tar.extractfile(sample[kind])).read(1 << 20)
             for kind in ("txt", "json") if kind in sample}
    caption = as_caption(texts.get("txt"))
    # what is no json, or no object, or nested absurdly, is no caption
    with contextlib.suppress(ValueError, AttributeError, RecursionError):
        caption = caption or as_caption(json.loads(texts.get("json", "")).get("caption"))
    return caption

def folder_items(folder):
    """Every video and image under a folder and the folders it links to, its
    caption from NAME.txt, or from captions.jsonl at the top: {"file": ...,
    "caption": ...} per line."""
    if not os.path.isdir(folder):
        raise ValueError(f"{folder} is no folder")
    table, left_out = {}, []
    if os.path.exists(path := os.path.join(folder, "captions.jsonl")):
        with open(path, "rb") as f:
            try:
                for n, line in enumerate(as_text(f), 1):
                    if line.strip():
                        row = json.loads(line)
                        name = os.path.normpath(row["file"])  # ./a.mp4 is a.mp4
                        table[name] = as_caption(row["caption"])
            except (ValueError, KeyError, TypeError, RecursionError) as e:
                raise ValueError(f'{path}: line {n} must be {{"file": ..., '
                                 '"caption": ...}') from e
    tops, seen = [folder], set()
    for top in tops:  # links are added at the end: real folders come first
        for where, folders, names in os.walk(
                top, onerror=lambda e: left_out.append((e.filename, e.strerror))):
            if (real := os.path.realpath(where)) in seen:
                left_out.append((where, "a folder that was read already"))
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            tops += filter(os.path.islink, (os.path.join(where, name) for name in folders))
            for file in sorted(names):
                path = os.path.join(where, file)
                if ending(file) in VIDEOS | IMAGES and not file.startswith("."):
                    name = os.path.relpath(path, folder)
                    yield Item(name, table.get(name) or None, path)
                elif not ending(file) and not os.path.exists(path):
                    left_out.append((path, "a link to nothing"))
    for path, reason in left_out:
        yield Item(os.path.relpath(path, folder), reason=reason)

def csv_rows(path):
    csv.field_size_limit(1 << 24)
    with open(path, "rb") as f:
        rows, done = csv.reader(as_text(f), strict=True, skipinitialspace=True), 0
        try:
            for row in rows:
                yield row
                done = rows.line_num
        except csv.Error as e:
            raise ValueError(f"{path}: the row of line {done + 1}: {e}: is a quote not "
                             "closed, or not doubled?") from e

def csv_items(path, root, columns):
    """A table. columns: of a video, with or without its suffix, of its folder
    under `root`, which may be "", and of its caption. WebVid's videos are
    ROOT/page_dir/videoid.mp4, their captions in the column `name`."""
    rows = csv_rows(path)
    header = [name.strip() for name in next(rows, [])]
    if missing := set(columns) - {"", *header}:
        raise ValueError(f"{path}: no column {', '.join(sorted(missing))}"
                         "; name them by --columns")
    for row in filter(None, rows):  # no blank lines
        cells = dict(zip(header, row)) | {"": ""}  # pandas leaves its index without a name
        video, folder, caption = (cells.get(name, "") for name in columns)
        file, kind = os.path.join(root, folder, video), ending(video)
        if kind not in VIDEOS | IMAGES and not (kind and os.path.isfile(file)):
            file += ".mp4"
        name = os.path.relpath(file, root or os.curdir)
        reason = "outside --root" if name.startswith("../") else ""
        yield Item(name, as_caption(caption), file, reason=reason)

def tar_items(path):
    """The layout of webdataset: files with the same key, their name up to its
    first dot, are a video or image and its .txt, or its .json with a
    "caption". Nothing is unpacked to disk. Links and hidden files, such as
    those of macOS, are left out."""
    tar, seen = os.path.basename(path), set()

    def files(members):
        for member in members:
            if member.size < 0:  # tarfile would go back, for ever
                raise tarfile.TarError("damaged or cut")
            folder, name = os.path.split(member.name)
            key, _, kind = name.partition(".")
            if member.isfile() and key:
                yield os.path.join(folder, key), kind.lower(), member

    try:
        with tarfile.open(path, "r:") as file:
            for key, members in itertools.groupby(files(file), lambda x: x[0]):
                sample = {kind: member for _, kind, member in members}
                media = [e for kinds in (VIDEOS, IMAGES) for e in sample if e in kinds]
                if not media or key in seen:
                    reason = "no video or image" if not media else "duplicate key"
                    yield Item(f"{tar}/{key}", reason=reason)
                else:
                    m = sample[media[0]]
                    place = {"offset": m.offset_data, "size": m.size}
                    yield Item(f"{tar}/{key}.{media[0]}", caption_in(file, sample),
                               path, place)
                seen.add(key)
            # tarfile takes a damaged header for the end, which is a blank block
            file.fileobj.seek(file.offset)
            if file.fileobj.read(512) != bytes(512):
                raise tarfile.TarError("damaged or cut")
    except Exception as e:  # a hostile header raises nearly anything
        reason = getattr(e, "strerror", None) or e
        yield Item(tar, reason=f"broken tar ({reason})")

def parts(args):
    """All Items in parts, of --part Items or a tar each -> names, Items."""
    if args.source == "tar":
        tars = [args.input]
        if os.path.isdir(args.input):
            tars = sorted(glob.glob(os.path.join(glob.escape(args.input), "*")))
            tars = [path for path in tars if ending(path) in PACKED | {"tar"}]
        if all(ending(path) in PACKED for path in tars):
            raise ValueError(f"{args.input}: no .tar; packed ones, such as .tar.gz, "
                             "must be unpacked first")
        yield from (([os.path.basename(path)], tar_items(path)) for path in tars)
        return
    if args.source == "toy":
        items = (ToyItem(str(i), args.seed) for i in range(args.clips))
    elif args.source == "folder":
        items = folder_items(args.input)
    else:
        items = csv_items(args.input, args.root, args.columns)
    while part := list(itertools.islice(items, args.part)):
        yield [item.name for item in part], part

# ---------------------------------------------------------------------------
# encoding

class Reader(Dataset):
    """(part, Item) -> part, name, what `Item.read` gives, reason if nothing."""

    def __init__(self, *how):
        self.how = how

    def __getitem__(self, key):
        part, item = key
        if item is None:  # the end of the part
            return part, "", [], ""
        try:
            return part, item.name, item.read(*self.how), ""
        except Skipped as e:
            return part, item.name, [], str(e)

class Part:
    """What a part holds so far: {t: tokens of batches, rows}. Clips of one
    length are encoded together, as they come in."""

    def __init__(self, encode, batch_size):
        self.encode, self.batch_size = encode, batch_size
        self.tokens, self.rows, self.waiting, self.skipped = {}, {}, {}, []

    def add(self, row, clip):
        frames = longest(row["frames"] if clip is None else len(clip))
        self.rows.setdefault(latent_frames(frames), []).append(row)
        if clip is not None:
            waiting = self.waiting.setdefault(frames, [])
            waiting.append(clip)
            # equal in frames
            if len(waiting) == self.batch_size * LENGTHS[0] // frames:
                self.encode_waiting(frames)

    def encode_waiting(self, frames):
        tokens = self.encode(np.stack(self.waiting.pop(frames)))
        self.tokens.setdefault(tokens.shape[1], []).append(tokens)

    def save(self, path, files):
        """path: OUT/PART. PART.json comes last: without it there is no part.
        files: a hash of the names that it was made of."""
        for frames in list(self.waiting):
            self.encode_waiting(frames)
        for t, rows in self.rows.items():
            lines = [json_lines([row]) for row in rows]
            write(f"{path}.t{t}.jsonl", b"".join(lines))
            write_array(f"{path}.t{t}.ends.npy", np.cumsum([len(x) for x in lines]))
            if t in self.tokens:
                write_array(f"{path}.t{t}.tokens.npy", np.concatenate(self.tokens[t]))
        counts = {t: len(rows) for t, rows in self.rows.items()}
        write(path + ".json", json_lines([
            {"clips": counts, "skipped": self.skipped, "files": files}]))

def json_lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()

def write_array(path, array):
    content = io.BytesIO()
    np.save(content, array)
    write(path, content.getvalue())

def write(path, content):
    """The whole file or none."""
    temporary = f"{path}.{RANK}.tmp"
    try:
        with open(temporary, "wb") as f:
            f.write(content)
        os.replace(temporary, path)
    except OSError as e:
        if os.path.exists(temporary):
            os.remove(temporary)
        raise ValueError(
            f"cannot write {path} ({e.strerror}); the parts before it are "
            "whole, and the same command goes on from there") from e

def totals(folder):
    """What the finished parts hold -> index {t: {part: clips}}, list of what
    was skipped."""
    index, skipped = {}, []
    for name in sorted(os.listdir(folder)):
        part, dot, kind = name.partition(".")
        if kind == "json" and part.isdecimal():
            with open(os.path.join(folder, name)) as f:
                found = json.load(f)
            skipped += found["skipped"]
            for t, clips in found["clips"].items():
                index.setdefault(t, {})[part] = clips
    return dict(sorted(index.items(), key=lambda x: int(x[0]))), skipped

def write_totals(folder):
    """index.json and skipped.jsonl, again if another rank has finished a part
    meanwhile -> what they hold."""
    written = None
    while written != (found := totals(folder)):
        index, skipped = written = found
        write(os.path.join(folder, "index.json"), json_lines([index]))
        write(os.path.join(folder, "skipped.jsonl"), json_lines(skipped))
    return written

# ---------------------------------------------------------------------------
# plumbing

def inspect(folder, ckpt, device):
    """Print what a folder of shards holds, and draw contact.png: the first,
    middle and last frame of 16 clips."""
    meta, (index, skipped) = read_meta(folder), write_totals(folder)
    shards = shards_of(folder)
    for t, clips in index.items():
        n, frames = sum(clips.values()), video_frames(int(t))
        print(f"{n} clips of {frames} frames, {frames / FPS:.1f} s each, "
              f"{n * frames / FPS / 3600:.2f} hours")
    print(f"{len(skipped)} files skipped")
    reasons = Counter(s["reason"] for s in skipped)
    for reason, n in reasons.most_common(10):
        print(f"    {n} x {reason}")
    if "tokenizer_hash" not in meta:  # --index
        return
    tokenizer, digest = load_tokenizer(ckpt, device)
    if digest != meta["tokenizer_hash"]:
        raise ValueError(f"{folder} was encoded by another tokenizer: name "
                         "its folder by --ckpt")
    used = np.zeros(tokenizer.config.codebook_size, bool)
    for stem in (stem for some in shards for stem in some.stems):
        used[np.unique(np.load(stem + ".tokens.npy"))] = True
    print(f"{used.sum()} of {len(used)} codes used ({used.mean():.1%})")
    every = [(some, i) for some in shards for i in range(len(some))]
    if not every:
        return
    triples, encoding = [], sys.stdout.encoding or "utf-8"  # which may lack some letters
    for at in np.linspace(0, len(every) - 1, 16).astype(int):
        some, i = every[at]
        tokens = torch.as_tensor(some.tokens(i), device=device)
        video = to_uint8(tokenizer.decode(tokens[None]))[0]
        triples.append(np.hstack(video[[0, len(video) // 2, -1]]))
        caption = some[i]["caption"][:100].encode(encoding, "replace")
        print("   ", caption.decode(encoding))
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
        mine = f"{path}.{RANK}"
        write(mine, json_lines([meta]))
        try:
            os.link(mine, path)
            os.remove(mine)
        except FileExistsError:  # another rank was faster
            os.remove(mine)
        except OSError:  # a disk without links
            os.replace(mine, path)
    with open(path) as f:
        found = json.load(f)
    # The dtype is chosen by a short measurement. Later runs and other ranks
    # keep to the first one's choice, or some of their tokens would differ.
    if found != meta | {"dtype": found.get("dtype")}:
        raise ValueError(f"{out} holds shards of other clips, settings or "
                         "tokenizer; choose another --out")
    return found

def parse():
    p = argparse.ArgumentParser(description="Captioned clips -> token shards.")
    add, cuda = p.add_argument, torch.cuda.is_available()
    gpu = int(os.environ.get("LOCAL_RANK", 0))
    add("--source", choices=["toy", "folder", "csv", "tar"], default="toy",
        help="where clips come from: drawn by the toy world, files beside their captions, "
             "WebVid's csv, img2dataset's tars (%(default)s)")
    add("--input", help="that folder, csv file, tar file or folder of tars")
    add("--root", default="", help="csv: the folder of the videos")
    add("--columns", default="videoid,page_dir,name",
        help="csv: those of video, its folder (may be blank), its caption (%(default)s)")
    add("--clips", type=int, default=8192, help="toy: how many (%(default)s)")
    add("--clips-per-video", type=int, default=1,
        help="taken from one video, one after the other, at most (%(default)s)")
    add("--ckpt", help="folder of the tokenizer (the shipped toy's)")
    add("--out", help="folder to write; finished parts in it are kept")
    add("--index", action="store_true",
        help="list the files, for stage 0, instead of encoding them")
    add("--part", type=int, default=1000,
        help="files that make one shard (%(default)s); each tar is one")
    add("--batch-size", type=int, default=4,
        help="clips of 65 frames encoded at once (%(default)s)")
    add("--workers", type=int, default=reading_workers(),
        help="processes that read files (%(default)s here)")
    add("--seed", type=int, default=0, help="toy: of the draws (%(default)s)")
    add("--device", default=f"cuda:{gpu}" if cuda else "cpu",
        help="cpu, cuda, cuda:1, mps (%(default)s here)")
    add("--inspect", metavar="DIR", help="tell what a folder of shards holds, and draw some of it")
    args = p.parse_args()
    if min(args.clips, args.clips_per_video, args.part, args.batch_size,
           args.workers + 1) < 1:
        raise ValueError("sizes must be at least 1, --workers 0")
    check_seed(args.seed)
    if not 0 <= RANK < RANKS:
        raise ValueError(f"RANK is {RANK}, not below WORLD_SIZE {RANKS}")
    args.columns = [name.strip() for name in args.columns.split(",")]
    if len(args.columns) != 3 or not args.columns[0]:
        raise ValueError("--columns must name three columns; that of the folder may be blank: a,,c")
    if not args.inspect and not args.out:
        raise ValueError("--out is needed")
    if args.source != "toy" and not args.input and not args.inspect:
        raise ValueError(f"--source {args.source} needs --input")
    if args.source == "toy" and args.index:
        raise ValueError("the toy world has no files: --index needs a --source")
    if args.input and not os.path.exists(args.input):
        raise ValueError(f"{args.input} does not exist")
    return args

def main():
    args = parse()
    check_device(args.device)
    check_cudnn(args.device)
    device = torch.device(args.device)
    if args.inspect:
        return inspect(args.inspect, args.ckpt, device)
    if sys.platform == "linux" and device.type == "cpu":
        # M_MMAP_MAX 0, M_TRIM_THRESHOLD 2 GB: keep freed memory. Without it
        # encoding on a CPU takes 1.5 to 2 times as long, as large blocks
        # are cleared whenever they are taken again.
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)
        libc.mallopt(-1, 2 ** 31 - 1)
    meta = {"fps": FPS, "part": args.part, "dtype": fast_dtype(device.type),
            "from": [args.source, args.input, args.clips_per_video, args.seed,
                     args.clips, *([args.root, *args.columns] if args.source == "csv" else [])]}
    size = None
    if not args.index:
        tokenizer, digest = load_tokenizer(args.ckpt, device, finished=True)
        config, size = tokenizer.config, tokenizer.config.resolution
        if args.source == "toy" and size != SIZE:
            raise ValueError(f"the toy world is {SIZE} pixels wide, this "
                             f"tokenizer's clips are {size}")
        meta |= {"codebook_size": config.codebook_size, "frames": config.frames,
                 "resolution": size, "tokenizer_hash": digest}

    @torch.no_grad()
    def encode(clips):
        with autocast(device, meta["dtype"]):
            tokens = tokenizer.encode(to_float(torch.as_tensor(clips).to(device)))
        return tokens.cpu().numpy().astype(np.uint16)

    def todo():
        """(part, Item) of this rank, and (part, None) at a part's end."""
        for i, (names, items) in enumerate(parts(args)):
            path = os.path.join(args.out, f"{i:06d}")
            files = hashlib.sha256(json.dumps(names).encode()).hexdigest()
            if os.path.exists(path + ".json"):
                with open(path + ".json") as f:
                    if json.load(f).get("files", files) != files:
                        raise ValueError(f"{path}.json holds other files than there are now; "
                                         "choose another --out")
            elif i % RANKS == RANK:
                yield from (((path, files), item) for item in items)
                yield (path, files), None

    work = todo()
    first = list(itertools.islice(work, 1))  # a bad --input fails before --out is touched
    meta = start(args.out, meta)
    # collate_fn: as tensors, clips would come through shared memory, of
    # which containers have little
    reader = Reader(size, 0 if args.index else args.clips_per_video)
    loader = DataLoader(reader, batch_size=None, sampler=itertools.chain(first, work),
                        num_workers=args.workers, collate_fn=tuple)
    part, bar = Part(encode, args.batch_size), tqdm(unit="item", disable=RANK > 0)
    for path, name, clips, reason in loader:
        if reason:
            part.skipped.append({"file": name, "reason": reason})
        for row, clip in clips:
            part.add(row, clip)
        if name:
            bar.update()
        else:
            part.save(*path)
            part = Part(encode, args.batch_size)
    bar.close()

    index, skipped = write_totals(args.out)
    counts = [f"{sum(clips.values())} clips of {video_frames(int(t))} frames"
              for t, clips in index.items()]
    print(f"{args.out}: {', '.join(counts) or 'no clips'}; "
          f"{len(skipped)} skipped, see skipped.jsonl")
    if not index and RANKS == 1:  # others may still be at work
        raise ValueError("no clip could be encoded")

if __name__ == "__main__":
    # the last two: memory ran out, a worker was killed, no such device
    run_script(main, RuntimeError, AssertionError)
