"""data.py - what goes in: captions and clips (Sec. 4.1 "Training").

Three things live here, and nothing else:

1. The text tokenizer: caption -> ids, a tiktoken `Encoding`.
2. Clips: the toy world, drawn from rules, and a reader of real video files. A clip is uint8 (T, H, W, 3) with
   T = 1 + 4k frames at 6.5 frames/s; the paper's longest has 65 frames = 10 s.
3. Token shards: clips encoded once at their full length and kept as tokens (N, t, h, w), t = 1 + (T-1)/4. The video
   tokenizer is strictly causal, so the first 1 or 5 latent frames of a shard row are exactly what encoding the first
   1 or 17 frames would give: one shard serves all three stages of the short-to-long training (Sec. 3.2).

This file knows nothing about networks; only its command line, which writes shards, asks `sample.py` for a tokenizer.

    python data.py --source toy --clips 8192 --out data/toy
    python data.py --source folder --input my_videos --out data/mine       # NAME.mp4, NAME.jpg ... beside NAME.txt
    python data.py --source csv --input webvid.csv --root videos --out data/webvid
    python data.py --source tar --input cc12m --out data/cc12m             # img2dataset's, video2dataset's tar shards
    python data.py --inspect data/webvid
"""
import argparse
import contextlib
import csv
import ctypes
import functools
import io
import itertools
import json
import math
import os
import sys
import tarfile
import warnings
from collections import Counter, deque
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from tqdm import tqdm

FPS = 6.5  # 65 frames cover 10 seconds (Sec. 3.1)
LENGTHS = (65, 17, 1)  # frames of a clip, the three stages'

# ---------------------------------------------------------------------------------------------------------------------
# text

class TextTokenizer:
    """Caption -> list of ids, by byte-pair encoding (tiktoken).

    kind: "bytes" is one id a byte (256 ids, the toy preset: no download), "gpt2" the first 32000 ranks of tiktoken's
    GPT-2 table (the paper's text vocabulary size); a prefix of a BPE rank table is itself a valid BPE. tiktoken
    fetches that table once and caches it. Raises ValueError for another kind, or if the table cannot be fetched.
    """

    def __init__(self, kind="bytes"):
        import tiktoken
        self.kind = kind
        if kind == "bytes":
            ranks, pattern = {bytes([i]): i for i in range(256)}, r"[\s\S]"
        elif kind == "gpt2":
            try:
                gpt2 = tiktoken.get_encoding("gpt2")
            except Exception as e:
                raise ValueError(f"cannot fetch tiktoken's gpt2 table ({type(e).__name__}): go online once, or point "
                                 "TIKTOKEN_CACHE_DIR at a folder that holds it") from e
            ranks, pattern = {k: r for k, r in gpt2._mergeable_ranks.items() if r < 32000}, gpt2._pat_str
        else:
            raise ValueError(f"unknown text tokenizer {kind!r}: choose bytes or gpt2")
        self.n_vocab = len(ranks)
        self.bpe = tiktoken.Encoding(f"loong-{kind}", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})

    def encode(self, caption):
        """str -> ids in 0..n_vocab-1. Absurdly long captions are cut first: no model here reads past 128 ids."""
        return self.bpe.encode_ordinary(caption[:4096])

# ---------------------------------------------------------------------------------------------------------------------
# the toy world: one object on a plain ground, moving for ever by a rule that its caption states

SIZE = 64  # pixels
COLORS = {"red": (220, 50, 40), "green": (60, 180, 75), "blue": (50, 90, 220), "yellow": (235, 215, 60),
          "purple": (150, 60, 190), "white": (240, 240, 240)}
BACKGROUNDS = {"black": (10, 10, 10), "gray": (110, 110, 110), "navy": (20, 30, 70)}
STEP = 8  # pixels: every fourth frame, the last of a latent frame, finds the object on a grid of one token
RADII = {"small": 8, "large": 12}  # pixels
SPEEDS = {"slowly": 2, "quickly": 4}  # pixels a frame, along each axis of the motion
TOY = {"shape": ["circle", "square", "triangle"], "size": list(RADII), "color": list(COLORS),
       "background": list(BACKGROUNDS), "motion": ["left and right", "up and down", "diagonally"], "speed": list(SPEEDS)}
WORDINGS = ["a {size} {color} {shape} moves {motion} {speed} on a {background} background",  # the canonical one
            "a {size} {color} {shape} {speed} moving {motion}, {background} background",
            "on a {background} background a {size} {color} {shape} moves {speed} {motion}",
            "{size} {color} {shape}, {motion}, {speed}, {background}"]
HELD_OUT = {("circle", "red", "up and down"), ("circle", "purple", "diagonally"), ("square", "green", "left and right"),
            ("square", "white", "up and down"), ("triangle", "blue", "diagonally"), ("triangle", "yellow", "left and right")}


def held_out(attributes):
    """True for the 6 of 54 (shape, color, motion) triples that no training clip shows; each single value is shown."""
    return (attributes["shape"], attributes["color"], attributes["motion"]) in HELD_OUT


def toy_attributes(rng, held=False):
    """Draw one of the toy world's objects: a dict of the six attributes, of a training triple or of a held-out one."""
    while True:
        attributes = {name: values[rng.integers(len(values))] for name, values in TOY.items()}
        if held_out(attributes) == held:
            return attributes


def toy_cover(shape, radius, path):
    """The share of each pixel that the object covers, its centres along `path` (T, 2): float32 (T, H, W) in [0, 1]."""
    grid = np.arange(SIZE, dtype=np.float32) + 0.5  # pixel centres
    dx = (grid - path[:, :1].astype(np.float32))[:, None, :]  # (T, 1, W)
    dy = (grid - path[:, 1:].astype(np.float32))[:, :, None]  # (T, H, 1)
    if shape == "circle":
        distance = np.sqrt(dx ** 2 + dy ** 2) - radius
    elif shape == "square":
        distance = np.maximum(np.abs(dx), np.abs(dy)) - 0.9 * radius
    else:  # equilateral, apex up: three half-planes at radius / 2 from the centre
        distance = np.maximum(dy, 0.75 ** 0.5 * np.abs(dx) - 0.5 * dy) - 0.5 * radius
    return np.clip(0.5 - distance, 0, 1)


def toy_clip(rng, frames=65, attributes=None):
    """One clip of the toy world from a random phase of its endless motion.

    rng: numpy Generator. attributes: as `toy_attributes` gives them (drawn from the training triples when None).
    Returns video uint8 (T, 64, 64, 3), caption str, and the attributes with "path", the centre (x, y) of the object
    in pixels at every frame, float (T, 2).
    """
    a = dict(attributes or toy_attributes(rng))
    radius, speed = RADII[a["size"]], SPEEDS[a["speed"]]
    moves = {"left and right": (1, 0), "up and down": (0, 1), "diagonally": (1, 1)}[a["motion"]]
    span = SIZE - 2 * radius  # the centre travels this far, then mirrors at the wall: a triangle wave of period 2 span
    phase = STEP * rng.integers(2 * span // STEP, size=2)
    travelled = phase + speed * np.arange(frames)[:, None] * np.array(moves)
    a["path"] = path = radius + np.abs(travelled % (2 * span) - span)  # (T, 2)

    cover = toy_cover(a["shape"], radius, path)[..., None]  # (T, H, W, 1)
    ground, color = np.float32(BACKGROUNDS[a["background"]]), np.float32(COLORS[a["color"]])
    video = np.rint(ground + cover * (color - ground)).astype(np.uint8)
    wording = WORDINGS[0] if rng.random() < 0.6 else WORDINGS[rng.integers(1, len(WORDINGS))]
    return video, wording.format(**a), a

# ---------------------------------------------------------------------------------------------------------------------
# real videos and images

VIDEOS, IMAGES = {"mp4", "webm", "mov", "mkv", "avi", "gif"}, {"png", "jpg", "jpeg", "webp"}
LARGEST = 100_000_000  # pixels of a video's picture; more is a decompression bomb (Pillow has its own limit for images)


def with_next(packets, reach=16):
    """Packets in the order of the file -> (packet, when the next picture after its own comes on screen, in ticks, or None if
    unknown). reach: so many places a picture can be stored off its turn, no more than 16 in H.264 and HEVC."""
    near = deque([None] * reach, 2 * reach + 1)
    for packet in itertools.chain(packets, [None] * reach):
        near.append(packet)
        if len(near) == near.maxlen:
            packet = near[reach]
            known = [p.pts for p in near if p is not None and p.pts is not None]
            yield packet, None if packet.pts is None else min((t for t in known if t > packet.pts), default=None)


def frames_at(container, fps):
    """The picture on screen at 0, 1/fps, 2/fps ... seconds of an opened pyav container, by the frames' timestamps: any
    constant or variable rate comes out right. Yields pyav frames."""
    stream = container.streams.video[0]
    tick, shown, start, end, done = float(stream.time_base), None, None, 0.0, 0

    def instants(time):
        """How many of them come before this time (1 ms of slack for rounding)."""
        return math.ceil((time - start - 1e-3) * fps)

    for packet, following in with_next(container.demux(stream)):
        # a picture that no instant sees is not decoded, unless others are built on it
        unseen = None not in (start, following) and instants(packet.pts * tick) == instants(following * tick)
        stream.codec_context.skip_frame = "NONREF" if unseen else "DEFAULT"
        for frame in packet.decode():
            start = frame.time if start is None else start
            for done in range(done + 1, instants(frame.time) + 1):  # these still see the picture before it
                yield shown
            shown, end = frame, frame.time - start + 1 / float(stream.average_rate or fps)
    for _ in range(done, instants(start + end) if shown else 0):  # the last one stays on screen to the end of the file
        yield shown


@contextlib.contextmanager
def film(file, fps):
    """`frames_at` of a video file, a path or a binary file. Raises ValueError if it is no readable video."""
    import av
    try:
        with av.open(file) as container:
            if container.format.name.endswith("_pipe"):
                raise ValueError("a picture that is named as a video")
            stream = container.streams.video[0]
            if stream.width * stream.height > LARGEST:
                raise ValueError(f"{stream.width}x{stream.height} pixels are too many")
            yield frames_at(container, fps)
    except (av.FFmpegError, OSError, IndexError, AttributeError, TypeError, ValueError, MemoryError) as e:
        reasons = {IndexError: "no video in it", AttributeError: "no decoder for it"}  # as av.open's streams answer then
        reason = reasons.get(type(e)) or str(e).partition(":")[0]
        raise ValueError(f"not a readable video ({reason})") from e


def read_clips(file, n_frames, fps=FPS, size=128, count=1):
    """Up to `count` clips of a video, one after the other: list of uint8 (T, size, size, 3), square from the centre.

    file: a path or a binary file. Every clip has n_frames; only a video too short for one gives a single clip of the
    longest of LENGTHS that fits. Raises ValueError if the file is no readable video.
    """
    clips = []
    with film(file, fps) as frames:
        while len(clips) < count and (clip := [square(f, size) for f in itertools.islice(frames, n_frames)]):
            if len(clip) < n_frames and clips:
                break
            clips.append(np.stack(clip[:next(n for n in (n_frames, *LENGTHS) if n <= len(clip))]))
    if not clips:
        raise ValueError("not a readable video (no frame in it)")
    return clips


def read_clip(path, n_frames, fps=FPS, size=128, last=False):
    """The first `n_frames` of a video file at `fps`, or its last: uint8 (n_frames, size, size, 3). Raises ValueError if
    there are fewer, or the file is no readable video."""
    try:
        with film(str(path), fps) as frames:
            frames = deque(frames, n_frames) if last else itertools.islice(frames, n_frames)
            clip = [square(f, size) for f in frames]
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from e
    if len(clip) < n_frames:
        raise ValueError(f"{path}: too short for {n_frames} frames at {fps} frames/s")
    return np.stack(clip)


def shorter_side(picture):
    """Of a pyav frame or a PIL image, in pixels. Raises ValueError if they are too few."""
    side = min(picture.width, picture.height)
    if side < 8:
        raise ValueError(f"{picture.width}x{picture.height} pixels are too few")
    return side


@functools.lru_cache(maxsize=8)
def shrinker(width, height, pixels, size):
    """A chain of ffmpeg's filters that crops such frames (pixels: the name of a format) to the square at their centre and
    shrinks it to size x size in RGB. Cropping first is half the work."""
    from av.filter import Graph
    side, chain = min(width, height), Graph()
    way = "area" if side > size else "bicubic"  # the mean of the pixels that become one: smooth and fast
    chain.link_nodes(chain.add_buffer(width=width, height=height, format=pixels, time_base=Fraction(1, 1000)),
                     chain.add("crop", f"{side}:{side}:exact=1"), chain.add("scale", f"{size}:{size}:flags={way}"),
                     chain.add("format", "rgb24"), chain.add("buffersink")).configure()
    return chain


def square(frame, size):
    """A pyav frame, cropped and shrunk, and turned as it is meant to be seen: uint8 (size, size, 3)."""
    shorter_side(frame)
    chain = shrinker(frame.width, frame.height, frame.format.name, size)
    chain.push(frame)
    return np.rot90(chain.pull().to_ndarray(), round(frame.rotation / 90))


def read_image(file, size):
    """An image, its transparent parts white, as a clip of one frame: uint8 (1, size, size, 3), square from the centre.
    Raises ValueError if it is none."""
    from PIL import Image, ImageOps
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = ImageOps.exif_transpose(Image.open(file))
            shorter_side(picture)
            if picture.has_transparency_data:
                picture = picture.convert("RGBA")
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
            return np.asarray(ImageOps.fit(picture.convert("RGB"), (size, size), Image.BICUBIC))[None]
    except Exception as e:  # Pillow's decoders raise nearly anything on damaged files
        raise ValueError(f"not a readable image ({type(e).__name__})") from e


def to_float(video):
    """uint8 (..., T, H, W, 3) -> float (..., 3, T, H, W) in [-1, 1]."""
    return torch.as_tensor(video).movedim(-1, -4).float() / 127.5 - 1


def to_uint8(video):
    """float (..., 3, T, H, W) in [-1, 1] -> uint8 array (..., T, H, W, 3)."""
    return ((video.float().clamp(-1, 1) + 1) * 127.5).round().byte().movedim(-4, -1).contiguous().cpu().numpy()

# ---------------------------------------------------------------------------------------------------------------------
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
        return [read_image(file, size)] if ending(self.name) in IMAGES else read_clips(file, frames, FPS, size, count)


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


def ending(name):
    return os.path.splitext(name)[1][1:].lower()


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
                for key, group in itertools.groupby(files, lambda m: os.path.join(os.path.dirname(m.name),
                                                                                  os.path.basename(m.name).split(".")[0])):
                    yield tar_item(f"{name}/{key}", {ending(m.name): m for m in group}, file, path, key in seen)
                    seen.add(key)
        except (tarfile.TarError, OSError, EOFError) as e:
            yield Item(name, reason=f"broken tar ({e})")


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

# ---------------------------------------------------------------------------------------------------------------------
# token shards: PART.t17.tokens.npy uint16 (N, t, h, w) with PART.t17.captions.jsonl, PART.json once it is whole, meta.json

class TooShort(ValueError):
    """No clip of a folder of shards has so many frames."""


class TokenShards:
    """Every clip in a folder of shards that is at least `latent_frames` long, cut to that length; read when asked for, as
    thousands of parts would be more files than a process may keep open.

    shards[i] -> (tokens int64 (latent_frames, h, w), caption). `meta` holds codebook_size, frames, fps, resolution and
    tokenizer_hash. Raises ValueError if the folder holds no shards, `TooShort` if none has clips so long.
    """

    def __init__(self, folder, latent_frames):
        self.latent_frames, self.shards = latent_frames, []  # (path, shape, where tokens begin, where each caption ends)
        try:
            with open(os.path.join(folder, "meta.json")) as f:
                self.meta = json.load(f)
            for part in parts(folder):
                for name in (f"{part}.t{t}" for t in map(latents, LENGTHS) if t >= latent_frames):
                    path = os.path.join(folder, name)
                    if os.path.exists(path + ".tokens.npy"):
                        tokens = np.load(path + ".tokens.npy", mmap_mode="r")
                        with open(path + ".captions.jsonl", "rb") as f:
                            ends = np.cumsum([len(line) for line in f])
                        if len(tokens) != len(ends):
                            raise ValueError(f"{name}: {len(tokens)} clips but {len(ends)} captions")
                        self.shards.append((path, tokens.shape, tokens.offset, ends))
        except (OSError, ValueError, KeyError) as e:
            raise ValueError(f"{folder}: no token shards here ({e}); write some with data.py") from e
        self.ends = np.cumsum([shape[0] for _, shape, *_ in self.shards])
        if not len(self):
            raise TooShort(f"{folder}: no clips of {latent_frames} latent frames or more")

    def __len__(self):
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, i):
        tokens, caption = self.row(i)
        return tokens[:self.latent_frames].astype(np.int64), caption

    def row(self, i):
        """-> (tokens uint16 at the clip's full length, caption)."""
        shard = int(np.searchsorted(self.ends, i, side="right"))
        path, shape, offset, ends = self.shards[shard]
        i, size = i - self.ends[shard] + shape[0], math.prod(shape[1:])
        tokens = np.fromfile(path + ".tokens.npy", np.uint16, size, offset=offset + 2 * size * i).reshape(shape[1:])
        with open(path + ".captions.jsonl", "rb") as f:
            f.seek(ends[i - 1] if i else 0)
            return tokens, json.loads(f.readline())["caption"]


def latents(frames):
    return 1 + (frames - 1) // 4


def parts(folder):
    """The finished parts of a folder of shards -> {name: what PART.json says}, in order."""
    finished = {}
    for name in sorted(n for n in os.listdir(folder) if n.endswith(".json") and n != "meta.json"):
        with open(os.path.join(folder, name)) as f:
            finished[name.removesuffix(".json")] = json.load(f)
    return finished


def totals(folder):
    """What the finished parts hold together -> ({frames of a clip: how many}, shortest first, skipped items)."""
    finished = parts(folder).values()
    clips = sum((Counter({int(t): n for t, n in p["clips"].items()}) for p in finished), Counter())
    return {4 * t - 3: n for t, n in sorted(clips.items())}, [s for p in finished for s in p["skipped"]]


class Clips(torch.utils.data.Dataset):
    """Training samples as a pure function of their key: clips[(step, i, frames)] -> (tokens or video, caption).

    The generator of a sample is seeded by (seed, stage, step, i) alone, so there is no loader state: a resumed run, any
    number of worker processes and any number of ranks see the same batches. source: "toy" (drawn on the spot), folders
    of token shards with commas between, or, for the tokenizer's own training, a folder of files. Several folders serve
    in proportion to `mix`, or else to their clips, as far as their clips are long enough. A sample is int64 tokens
    (t, h, w) from shards, uint8 video (T, H, W, 3) otherwise. The caption is dropped (empty) with probability 0.1, for
    classifier-free guidance. held: validation samples, from other seeds or the last 64th of the files or shard rows.
    """

    def __init__(self, source, seed, stage, resolution=SIZE, held=False, mix=()):
        self.source, self.seed, self.stage, self.resolution, self.held = source, seed, stage, resolution, held
        self.folders, self.mix = source.split(","), mix
        self.shards = {}  # latent frames -> ([TokenShards], their shares), opened when first asked for
        if mix and len(mix) != len(self.folders):
            raise ValueError(f"--mix has {len(mix)} numbers for {len(self.folders)} folders of --data")
        if source == "toy" and resolution != SIZE:
            raise ValueError(f"the toy world is {SIZE}x{SIZE}; this preset wants {resolution}: name real clips by --data")
        self.files = None
        if source != "toy" and not stage:
            self.files = list(folder_items(source))
            if not self.files:
                raise ValueError(f"{source}: no videos or images in it")

    def __getitem__(self, key):
        step, i, frames = key
        rng = np.random.default_rng([self.seed, self.stage, step, i, self.held])
        drop = rng.random() < 0.1
        clip, caption = self.draw(rng, frames)
        return clip, "" if drop else caption

    def draw(self, rng, frames):
        if self.source == "toy":
            return toy_clip(rng, frames)[:2]
        if self.files:
            for _ in range(100):  # files that are too short or broken are passed over
                item = self.files[self.choose(rng, len(self.files))]
                try:
                    clip = item.read(frames, self.resolution)[0]
                    if len(clip) == frames:
                        return clip, item.caption
                except ValueError:
                    pass
            kept = "the last 64th of its files, kept for validation" if self.held else "its files for training"
            raise ValueError(f"{self.source}: in 100 tries of {kept}, none with {frames} readable frames")
        if (t := latents(frames)) not in self.shards:
            self.shards[t] = self.open(t)
        shards, shares = self.shards[t]
        chosen = shards[rng.choice(len(shards), p=shares)] if len(shards) > 1 else shards[0]
        return chosen[self.choose(rng, len(chosen))]

    def open(self, t):
        """The folders with clips of t latent frames, and the share of each."""
        shards, shares = [], []
        for i, folder in enumerate(self.folders):
            try:
                shards.append(TokenShards(folder, t))
                shares.append(self.mix[i] if self.mix else len(shards[-1]))
            except TooShort:
                pass  # maybe another folder has such clips
        if not sum(shares):
            raise ValueError(f"{self.source}: no clips of {t} latent frames or more")
        return shards, np.array(shares) / sum(shares)

    def choose(self, rng, n):
        """One of n clips: of the last 64th, at least one, for validation; of the others for training."""
        kept = max(1, n // 64) if n > 1 else 0
        return rng.integers(n - kept, n) if self.held and kept else rng.integers(n - kept)

# ---------------------------------------------------------------------------------------------------------------------
# command line: clips + captions -> token shards

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
        with torch.no_grad(), torch.autocast(device, torch.bfloat16):
            tokens = tokenizer.encode(to_float(np.stack(clips)).to(device)).cpu().numpy().astype(np.uint16)
        rows = done.setdefault(tokens.shape[1], ([], []))
        rows[0].append(tokens)
        rows[1].extend(captions)

    for name, caption, clips, reason in torch.utils.data.DataLoader(reader, batch_size=None, num_workers=workers,
                                                                    collate_fn=tuple):
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
            raise ValueError(f"cannot write {path} ({e.strerror}); all parts before it are whole, the same command goes "
                             "on from there") from e
        finally:
            if os.path.exists(path + ".tmp"):
                os.remove(path + ".tmp")


def inspect(folder, ckpt, device):
    """Print what a folder of shards holds, and draw contact.png: first, middle and last frame of sixteen clips."""
    from PIL import Image
    from sample import load_tokenizer
    shards = TokenShards(folder, 1)
    counts, skipped = totals(folder)
    reasons = Counter(s["reason"] for s in skipped)
    used = np.zeros(shards.meta["codebook_size"], bool)
    for path, *_ in shards.shards:
        used[np.unique(np.load(path + ".tokens.npy"))] = True
    for frames, n in counts.items():
        print(f"{n} clips of {frames} frames, {frames / FPS:.1f} s each, {n * frames / FPS / 3600:.2f} hours")
    print(f"{len(skipped)} files skipped" + "".join(f"\n    {n} x {why}" for why, n in reasons.most_common(10)))
    print(f"{used.sum()} of {len(used)} codes used ({used.mean():.1%})")
    tokenizer, tokenizer_hash = load_tokenizer(ckpt, device)
    if tokenizer_hash != shards.meta["tokenizer_hash"]:
        raise ValueError(f"{folder} was encoded by another tokenizer: name its folder by --ckpt")
    sheet = []
    for i in np.linspace(0, len(shards) - 1, 16).astype(int):
        tokens, caption = shards.row(i)
        video = to_uint8(tokenizer.decode(torch.as_tensor(tokens.astype(np.int64))[None].to(device)))[0]
        sheet.append(np.concatenate(video[[0, len(video) // 2, -1]], axis=1))
        print("   ", caption[:100])
    path = os.path.join(folder, "contact.png")
    Image.fromarray(np.concatenate([np.concatenate(sheet[r:r + 4], 1) for r in range(0, 16, 4)])).save(path)
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
    args = p.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.inspect:
        return inspect(args.inspect, args.ckpt, device)
    mine, jobs = (int(n) if n.isdecimal() else -1 for n in (args.shard + "/").split("/")[:2])
    if min(args.clips, args.batch_size, args.part, args.clips_per_video) < 1 or not 0 <= mine < jobs:
        raise ValueError("--clips, --clips-per-video, --part and --batch-size must be at least 1, --shard I/N with I < N")
    if not args.out or (args.source != "toy" and not args.input):
        raise ValueError("--out is needed" if not args.out else f"--source {args.source} needs --input")
    sources = {"toy": lambda: (ToyItem(str(i), args.seed) for i in range(args.clips)),
               "folder": lambda: folder_items(args.input), "tar": lambda: tar_items(args.input),
               "csv": lambda: csv_items(args.input, args.root, args.columns.split(","))}
    total = sum(1 for _ in sources[args.source]())
    if not total:
        raise ValueError(f"{args.input}: no videos or images in it")
    from sample import load_tokenizer  # imported here: only the command line needs a network
    if sys.platform == "linux":  # keep freed memory: by default every large block goes back and is cleared when taken
        libc = ctypes.CDLL(None)  # again, which costs more than the convolutions (M_MMAP_MAX 0, M_TRIM_THRESHOLD 2 GB)
        libc.mallopt(-4, 0), libc.mallopt(-1, 2 ** 31 - 1)
    tokenizer, tokenizer_hash = load_tokenizer(args.ckpt, device)
    config = tokenizer.config
    if args.source == "toy" and config.resolution != SIZE:
        raise ValueError(f"the toy world is {SIZE}x{SIZE}, this tokenizer's clips are {config.resolution} wide")
    meta = {"codebook_size": config.codebook_size, "frames": config.frames, "fps": FPS, "resolution": config.resolution,
            "tokenizer_hash": tokenizer_hash, "items": total, "part": args.part,
            "from": [args.source, args.input, args.clips_per_video, args.seed]}
    os.makedirs(args.out, exist_ok=True)
    path = os.path.join(args.out, "meta.json")
    if os.path.exists(path):
        with open(path) as f:
            if json.load(f) != meta:
                raise ValueError(f"{args.out} holds shards of other clips, settings or tokenizer; choose another --out")
    else:
        with open(path, "w") as f:
            json.dump(meta, f)

    items, bar = sources[args.source](), tqdm(total=total, unit="item", desc="encoding", smoothing=0.01)
    for number in range(-(-total // args.part)):
        part, batch = f"{number:06d}", list(itertools.islice(items, args.part))
        if number % jobs != mine or os.path.exists(os.path.join(args.out, part + ".json")):
            bar.update(len(batch))
            continue
        reader = Reader(batch, config.frames, config.resolution, args.clips_per_video)
        write_part(args.out, part, *encode_part(reader, tokenizer, device, args.batch_size, args.workers, bar))
    bar.close()
    clips, skipped = totals(args.out)
    with open(os.path.join(args.out, "skipped.jsonl"), "w") as f:
        f.writelines(json.dumps(s) + "\n" for s in skipped)
    print(f"{args.out}: " + (", ".join(f"{n} clips of {frames} frames" for frames, n in clips.items()) or "no clips")
          + f"; {len(skipped)} skipped, see skipped.jsonl")
    if not clips and len(parts(args.out)) == -(-total // args.part):  # other jobs may still be at theirs
        raise ValueError("no clip could be encoded")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as e:
        sys.exit(f"data.py: {e}")
