"""data.py: what goes in (Sec. 4.1 "Training").

    captions      str -> text ids (`TextTokenizer`)
    clips         uint8 (T, H, W, 3), T = 1 + 4k frames at 6.5 frames/s, drawn
                  by the toy world or read from video files
    token shards  clips encoded by tools/prepare.py, (N, t, h, w), t = 1 + k.
                  Their first 1 or 5 latent frames serve stages 1 and 2.
    samples       a pure function of (seed, stage, step, i) (`Clips`)

This file knows nothing about networks.
"""
import contextlib
import itertools
import json
from collections import deque
from pathlib import Path

import av
import av.filter
import numpy as np
import tiktoken
import torch
from PIL import Image, ImageOps

FPS = 6.5  # 65 frames cover 10 s (Sec. 3.1)

def latent_frames(frames):
    """How many latent frames hold these frames: 1, 17, 65 -> 1, 5, 17. The
    first frame has its own, every four others share one."""
    return 1 + (frames + 2) // 4

def video_frames(latents):
    """How many frames these latent frames give: 1, 5, 17 -> 1, 17, 65."""
    return 4 * latents - 3

class TextTokenizer:
    """Captions -> ids. kind: "bytes", or "gpt2" for the first 32000 ranks of
    its table (our choice: the paper gives only their number)."""

    def __init__(self, kind="bytes"):
        ranks = {bytes([i]): i for i in range(256)}
        pattern = r"[\s\S]"
        if kind == "gpt2":
            try:
                gpt2 = tiktoken.get_encoding("gpt2")
            except Exception as e:  # whatever the network raises
                raise ValueError("go online once for tiktoken's gpt2 table, "
                                 "or set TIKTOKEN_CACHE_DIR") from e
            table, pattern = gpt2._mergeable_ranks, gpt2._pat_str
            ranks = {w: rank for w, rank in table.items() if rank < 32000}
        self.n_vocab = len(ranks)
        self.bpe = tiktoken.Encoding(f"loong-{kind}", pat_str=pattern,
                                     mergeable_ranks=ranks, special_tokens={})

    def encode(self, caption):
        """str -> list of ids below n_vocab; absurdly long ones are cut."""
        return self.bpe.encode_ordinary(caption[:4096])

# ---- the toy world: one shape on a plain ground, moving by a rule for ever ----

SIZE = 64  # pixels
COLORS = {"red": (220, 50, 40), "green": (60, 180, 75),
          "blue": (50, 90, 220), "yellow": (235, 215, 60),
          "purple": (150, 60, 190), "white": (240, 240, 240)}
BACKGROUNDS = {"black": (10, 10, 10), "gray": (110, 110, 110), "navy": (20, 30, 70)}
RADII = {"small": 8, "large": 12}  # pixels
# Pixels per frame along each axis: 1 or 2 tokens of 8 pixels per 4 frames
SPEEDS = {"slowly": 2, "quickly": 4}
MOTIONS = {"left and right": (1, 0), "up and down": (0, 1), "diagonally": (1, 1)}
TOY = {"shape": ["circle", "square", "triangle"], "size": list(RADII),
       "color": list(COLORS), "background": list(BACKGROUNDS),
       "motion": list(MOTIONS), "speed": list(SPEEDS)}
WORDINGS = [
    "a {size} {color} {shape} moves {motion} {speed} on a {background} "
    "background",  # the canonical one
    "a {size} {color} {shape} {speed} moving {motion}, {background} "
    "background",
    "on a {background} background a {size} {color} {shape} moves {speed} "
    "{motion}",
    "{size} {color} {shape}, {motion}, {speed}, {background}"]
HELD_OUT = {("circle", "red", "up and down"),
            ("circle", "purple", "diagonally"),
            ("square", "green", "left and right"),
            ("square", "white", "up and down"),
            ("triangle", "blue", "diagonally"),
            ("triangle", "yellow", "left and right")}

def held_out(attributes):
    """True for the 6 of 54 triples that training never sees."""
    a = attributes
    return (a["shape"], a["color"], a["motion"]) in HELD_OUT

def toy_attributes(rng, held=False):
    """Draw six attributes, of a training triple or of a held-out one."""
    while True:
        a = {k: v[rng.integers(len(v))] for k, v in TOY.items()}
        if held_out(a) == held:
            return a

def toy_cover(shape, radius, path):
    """The share of each pixel that a shape covers, its centres along `path`
    (T, 2): float32 (T, H, W)."""
    pixels = np.arange(SIZE, dtype=np.float32) + 0.5
    path = path.astype(np.float32)
    dx = (pixels - path[:, :1])[:, None, :]  # (T, 1, W)
    dy = (pixels - path[:, 1:])[:, :, None]  # (T, H, 1)
    if shape == "circle":
        distance = np.sqrt(dx ** 2 + dy ** 2) - radius
    elif shape == "square":
        distance = np.maximum(np.abs(dx), np.abs(dy)) - 0.9 * radius
    else:  # equilateral, apex up: three half-planes
        sides = 0.75 ** 0.5 * np.abs(dx) - 0.5 * dy
        distance = np.maximum(dy, sides) - 0.5 * radius
    return np.clip(0.5 - distance, 0, 1)

def toy_clip(rng, frames=65, attributes=None):
    """A clip from a random moment of its endless motion -> uint8
    (T, 64, 64, 3), caption, and the attributes with "path", the shape's
    centre (x, y) in pixels (T, 2). rng: numpy Generator. attributes: of
    `toy_attributes`; drawn if None."""
    a = dict(attributes or toy_attributes(rng))
    radius, speed = RADII[a["size"]], SPEEDS[a["speed"]]
    # a triangle wave: the centre travels `span` pixels between the walls,
    # and starts on the grid of tokens, 8 pixels apart
    span = SIZE - 2 * radius
    start = 8 * rng.integers(2 * span // 8, size=2)
    step = speed * np.array(MOTIONS[a["motion"]])
    travelled = start + step * np.arange(frames)[:, None]
    a["path"] = radius + np.abs(travelled % (2 * span) - span)  # (T, 2)
    cover = toy_cover(a["shape"], radius, a["path"])[..., None]
    ground = np.float32(BACKGROUNDS[a["background"]])
    video = ground + cover * (np.float32(COLORS[a["color"]]) - ground)
    other = rng.random() >= 0.6  # else the canonical wording
    wording = WORDINGS[rng.integers(1, len(WORDINGS)) if other else 0]
    return np.rint(video).astype(np.uint8), wording.format(**a), a

# ---- pixels of files ----

VIDEOS = {"mp4", "webm", "mov", "mkv", "avi", "gif"}
IMAGES = {"png", "jpg", "jpeg", "webp"}

def read_frames(file, fps=FPS, size=128):
    """Yield the square centre of what a video shows at 0, 1/fps, 2/fps ...
    seconds, uint8 (size, size, 3). file: a path or a binary file."""
    with av.open(file) as film:
        stream, graph = film.streams.video[0], av.filter.Graph()
        graph.link_nodes(
            graph.add_buffer(template=stream),
            graph.add("setpts", "PTS-STARTPTS"),
            graph.add("fps", f"{fps}:round=up"),  # on screen at i / fps
            graph.add("crop", "min(iw\\,ih):min(iw\\,ih):exact=1"),
            graph.add("scale", f"{size}:{size}:flags=area"),
            graph.add("format", "rgb24"), graph.add("buffersink")).configure()
        for frame in itertools.chain(film.decode(stream), [None]):
            if frame is not None:
                turned = frame.rotation // 90
            graph.push(frame)  # None: no more to come
            with contextlib.suppress(av.BlockingIOError, av.EOFError):
                while True:
                    yield np.rot90(graph.pull().to_ndarray(), turned)

def read_clip(path, n_frames, fps=FPS, size=128, last=False):
    """The first or last frames of a video file, uint8 (n_frames, size, size,
    3). Raises ValueError if there are fewer."""
    try:
        frames = read_frames(str(path), fps, size)
        clip = deque(frames if last else itertools.islice(frames, n_frames), n_frames)
    except Exception as e:  # ffmpeg raises nearly anything
        raise ValueError(f"{path} is not a readable video") from e
    if len(clip) < n_frames:
        raise ValueError(f"{path} is too short for {n_frames} frames")
    return np.stack(clip)

def read_image(file, size=128):
    """The square centre of an image, white where it is transparent, as a
    clip of one frame: uint8 (1, size, size, 3)."""
    picture = ImageOps.exif_transpose(Image.open(file)).convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    picture = Image.alpha_composite(white, picture).convert("RGB")
    return np.array(ImageOps.fit(picture, (size, size)))[None]

def to_float(video):
    """uint8 (..., T, H, W, 3) -> float (..., 3, T, H, W) in [-1, 1]."""
    return torch.as_tensor(video).movedim(-1, -4).float() / 127.5 - 1

def to_uint8(video):
    """float (..., 3, T, H, W) in [-1, 1] -> uint8 array (..., T, H, W, 3)."""
    video = ((video.float().clamp(-1, 1) + 1) * 127.5).round().byte()
    return video.movedim(-4, -1).contiguous().cpu().numpy()

# ---- token shards: P.t17.tokens.npy, P.t17.captions.jsonl; P.json when done ----

def read_meta(folder):
    """What describes the clips and the tokenizer of a folder of shards."""
    return json.loads(Path(folder, "meta.json").read_text())

class TokenShards:
    """The clips of comma-separated folders that have at least `latents`
    latent frames, cut to that many (None: uncut). shards[i] -> (tokens
    int64 (latents, h, w), caption)."""

    def __init__(self, folders, latents=None):
        self.latents, self.files = latents, []
        for folder in str(folders).split(","):
            for path in sorted(Path(folder).glob("*.tokens.npy")):
                part, kind = path.name.split(".")[:2]  # 000000.t17.tokens.npy
                long = int(kind[1:]) >= (latents or 1)
                if long and Path(folder, f"{part}.json").exists():
                    stem = str(path).removesuffix(".tokens.npy")
                    with open(stem + ".captions.jsonl", "rb") as f:
                        ends = np.cumsum([len(line) for line in f])
                    self.files.append((stem, ends))
        self.counts = np.cumsum([len(ends) for _, ends in self.files])

    def __len__(self):
        return int(self.counts[-1]) if self.files else 0

    def __getitem__(self, i):
        which = int(np.searchsorted(self.counts, i, side="right"))
        path, ends = self.files[which]
        i = i - self.counts[which] + len(ends)
        # opened for each clip, as there may be thousands of files
        tokens = np.load(path + ".tokens.npy", mmap_mode="r")[i]
        with open(path + ".captions.jsonl", "rb") as f:
            f.seek(ends[i - 1] if i else 0)
            caption = json.loads(f.readline())["caption"]
        return tokens[:self.latents].astype(np.int64), caption

class Clips(torch.utils.data.Dataset):
    """Training samples: clips[(step, i, frames)] -> (clip, caption), drawn
    by (seed, stage, step, i) alone.

    source: "toy", or folders of token shards with commas between, or in
    stage 0 a folder of videos and images. A clip is tokens int64 (t, h, w)
    of shards, else video uint8 (T, H, W, 3). validation: other seeds, or
    the last 64th of files and clips. A caption may be dropped, for guidance.
    """

    def __init__(self, source, seed, stage, resolution=SIZE, validation=False):
        self.source, self.seed, self.stage = source, seed, stage
        self.resolution, self.validation = resolution, validation
        self.shards, self.files = {}, []
        if source == "toy" and resolution != SIZE:
            raise ValueError(f"the toy world has {SIZE} pixels: use --data")
        if source != "toy" and stage == 0:
            self.files = sorted(path for path in Path(source).rglob("*")
                                if ending(path) in VIDEOS | IMAGES)

    def __getitem__(self, key):
        step, i, frames = key
        rng = np.random.default_rng([self.seed, self.stage, step, i, self.validation])
        drop = rng.random() < 0.1 and not self.validation  # our choice
        if self.source == "toy":
            clip, caption, _ = toy_clip(rng, frames)
        elif self.stage == 0:
            clip, caption = self.clip_of_files(rng, frames), ""
        else:
            t = latent_frames(frames)
            if t not in self.shards:  # opened when first asked for
                self.shards[t] = TokenShards(self.source, t)
            clip, caption = self.choose(rng, self.shards[t])
        return clip, "" if drop else caption

    def clip_of_files(self, rng, frames):
        for _ in range(100):  # short and broken files are passed over
            path = self.choose(rng, self.files)
            try:
                if ending(path) in VIDEOS:
                    return read_clip(path, frames, size=self.resolution)
                elif frames == 1:
                    return read_image(path, self.resolution)
            except Exception:  # Pillow, too, raises nearly anything
                pass
        raise ValueError(f"{self.source}: 100 files without {frames} frames")

    def choose(self, rng, items):
        """One at random; for validation, of the last 64th."""
        n, kept = len(items), max(1, len(items) // 64)
        if not n:
            raise ValueError(f"{self.source} has no clips that long")
        if self.validation:
            return items[rng.integers(n - kept, n)]
        return items[rng.integers(max(1, n - kept))]

def ending(path):
    return Path(path).suffix[1:].lower()
