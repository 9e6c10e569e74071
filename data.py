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
    python data.py --source folder --input my_videos --ckpt checkpoints/toy --out data/mine
"""
import argparse
import json
import os
import sys

import numpy as np
import torch
from tqdm import tqdm

FPS = 6.5  # 65 frames cover 10 seconds (Sec. 3.1)

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
RADII = {"small": 8, "large": 14}  # pixels
SPEEDS = {"slowly": 0.8, "quickly": 2.2}  # pixels a frame
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
    moves = {"left and right": (1, 0), "up and down": (0, 1), "diagonally": (0.5 ** 0.5, 0.5 ** 0.5)}[a["motion"]]
    span = SIZE - 2 * radius  # the centre travels this far, then mirrors at the wall: a triangle wave of period 2 span
    phase = rng.uniform(0, 2 * span, size=2)
    travelled = phase + speed * np.arange(frames)[:, None] * np.array(moves)
    a["path"] = path = radius + np.abs(travelled % (2 * span) - span)  # (T, 2)

    cover = toy_cover(a["shape"], radius, path)[..., None]  # (T, H, W, 1)
    ground, color = np.float32(BACKGROUNDS[a["background"]]), np.float32(COLORS[a["color"]])
    video = np.rint(ground + cover * (color - ground)).astype(np.uint8)
    wording = WORDINGS[0] if rng.random() < 0.6 else WORDINGS[rng.integers(1, len(WORDINGS))]
    return video, wording.format(**a), a

# ---------------------------------------------------------------------------------------------------------------------
# real videos

def read_clip(path, n_frames, fps=FPS, size=128):
    """The first `n_frames` of a video file at `fps`, centre-cropped to a square and resized: uint8 (T, size, size, 3).

    Frames are chosen by their timestamps, so any constant or variable rate comes out right: frame i is the picture on
    screen at i / fps seconds. Raises ValueError if the file is no readable video or is too short.
    """
    import av
    clip, shown, end = [], None, 0.0
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            start = None
            for frame in container.decode(stream):
                start = frame.time if start is None else start
                # every instant before this frame's own still shows the one before it (1 ms of slack for rounding)
                while shown is not None and len(clip) < n_frames and len(clip) / fps < frame.time - start - 1e-3:
                    clip.append(square(shown, size))
                if len(clip) == n_frames:
                    break
                shown = frame
                end = frame.time - start + 1 / float(stream.average_rate or fps)
    except (av.FFmpegError, OSError, IndexError, TypeError) as e:
        raise ValueError(f"{path}: not a readable video ({e})") from e
    while shown is not None and len(clip) < n_frames and len(clip) / fps < end - 1e-3:
        clip.append(square(shown, size))  # the last picture stays on screen to the end of the file
    if len(clip) < n_frames:
        raise ValueError(f"{path}: {len(clip)} frames at {fps} frames/s, {n_frames} are needed")
    return np.stack(clip)


def square(frame, size):
    """A pyav frame, centre-cropped and resized: uint8 (size, size, 3)."""
    from PIL import Image
    image = frame.to_image()
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.asarray(image.resize((size, size), Image.BICUBIC, box=(left, top, left + side, top + side)))


def to_float(video):
    """uint8 (..., T, H, W, 3) -> float (..., 3, T, H, W) in [-1, 1]."""
    return torch.as_tensor(video).movedim(-1, -4).float() / 127.5 - 1


def to_uint8(video):
    """float (..., 3, T, H, W) in [-1, 1] -> uint8 array (..., T, H, W, 3)."""
    return ((video.float().clamp(-1, 1) + 1) * 127.5).round().byte().movedim(-4, -1).contiguous().cpu().numpy()

# ---------------------------------------------------------------------------------------------------------------------
# token shards: NAME.t17.tokens.npy uint16 (N, t, h, w), NAME.t17.captions.jsonl, meta.json

class TokenShards:
    """Every clip in a folder of shards that is at least `latent_frames` long, cut to that length; memory-mapped.

    shards[i] -> (tokens int64 (latent_frames, h, w), caption). `meta` holds codebook_size, frames, fps, resolution and
    tokenizer_hash. Raises ValueError if the folder holds no such shard.
    """

    def __init__(self, folder, latent_frames):
        self.latent_frames, self.tokens, self.captions = latent_frames, [], []
        try:
            with open(os.path.join(folder, "meta.json")) as f:
                self.meta = json.load(f)
            for name in sorted(n for n in os.listdir(folder) if n.endswith(".tokens.npy")):
                tokens = np.load(os.path.join(folder, name), mmap_mode="r")
                if tokens.shape[1] >= latent_frames:
                    with open(os.path.join(folder, name.removesuffix("tokens.npy") + "captions.jsonl")) as f:
                        self.captions.append([json.loads(line)["caption"] for line in f])
                    self.tokens.append(tokens)
                    if len(tokens) != len(self.captions[-1]):
                        raise ValueError(f"{name}: {len(tokens)} clips but {len(self.captions[-1])} captions")
        except (OSError, ValueError, KeyError) as e:
            raise ValueError(f"{folder}: no token shards here ({e}); write some with data.py") from e
        self.ends = np.cumsum([len(t) for t in self.tokens])
        if not len(self):
            raise ValueError(f"{folder}: no clips of {latent_frames} latent frames or more")

    def __len__(self):
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, i):
        shard = int(np.searchsorted(self.ends, i, side="right"))
        i -= self.ends[shard] - len(self.tokens[shard])
        return self.tokens[shard][i, :self.latent_frames].astype(np.int64), self.captions[shard][i]


class Clips(torch.utils.data.Dataset):
    """Training samples as a pure function of their key: clips[(step, i, frames)] -> (tokens or video, caption).

    The generator of a sample is seeded by (seed, stage, step, i) alone, so there is no loader state: a resumed run, any
    number of worker processes and any number of ranks see the same batches. source: "toy" (drawn on the spot), a
    folder of token shards, or, for the tokenizer's own training, a folder of video files. A sample is int64 tokens
    (t, h, w) from shards, uint8 video (T, H, W, 3) otherwise. The caption is dropped (empty) with probability 0.1, for
    classifier-free guidance. held: validation samples, from other seeds or the last 64th of the files or shard rows.
    """

    def __init__(self, source, seed, stage, resolution=SIZE, held=False):
        self.source, self.seed, self.stage, self.resolution, self.held = source, seed, stage, resolution, held
        self.shards = {}  # latent frames -> TokenShards, opened when first asked for
        if source == "toy" and resolution != SIZE:
            raise ValueError(f"the toy world is {SIZE}x{SIZE}; this preset wants {resolution}: name real clips by --data")
        self.files = None if source == "toy" or stage else list_folder(source)

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
                path, caption = self.files[self.choose(rng, len(self.files))]
                try:
                    return read_clip(path, frames, size=self.resolution), caption
                except ValueError:
                    continue
            raise ValueError(f"{self.source}: no file with {frames} readable frames in 100 tries")
        t = 1 + (frames - 1) // 4
        if t not in self.shards:
            self.shards[t] = TokenShards(self.source, t)
        return self.shards[t][self.choose(rng, len(self.shards[t]))]

    def choose(self, rng, n):
        """One of n clips: of the last 64th, at least one, for validation; of the others for training."""
        kept = max(1, n // 64) if n > 1 else 0
        return rng.integers(n - kept, n) if self.held and kept else rng.integers(n - kept)


def list_folder(folder):
    """[(path of NAME.mp4, caption from NAME.txt or "")] of a folder. Raises ValueError if it holds no mp4 file."""
    try:
        names = sorted(n for n in os.listdir(folder) if n.lower().endswith(".mp4"))
    except OSError as e:
        raise ValueError(f"{folder}: {e.strerror}") from e
    if not names:
        raise ValueError(f"{folder}: no .mp4 files in it")
    clips = []
    for name in names:
        text = os.path.join(folder, os.path.splitext(name)[0] + ".txt")
        caption = open(text, errors="replace").read().strip() if os.path.exists(text) else ""
        clips.append((os.path.join(folder, name), caption))
    return clips

# ---------------------------------------------------------------------------------------------------------------------
# command line: clips + captions -> token shards

def main():
    p = argparse.ArgumentParser(description="Encode captioned clips into token shards.")
    p.add_argument("--source", choices=["toy", "folder"], default="toy", help="toy world, or NAME.mp4 beside NAME.txt")
    p.add_argument("--input", help="the folder, for --source folder")
    p.add_argument("--clips", type=int, default=8192, help="how many toy clips")
    p.add_argument("--ckpt", help="folder with tokenizer.pt (default: the shipped toy weights)")
    p.add_argument("--out", required=True, help="folder to write to")
    p.add_argument("--batch-size", type=int, default=4, help="clips encoded at once")
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args()
    from sample import load_tokenizer  # imported here: only the command line needs a network
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer, tokenizer_hash = load_tokenizer(args.ckpt, device)
    config = tokenizer.config
    if args.clips < 1 or args.batch_size < 1:
        raise ValueError("--clips and --batch-size must be at least 1")
    if os.path.exists(os.path.join(args.out, "meta.json")):
        raise ValueError(f"{args.out} holds shards already; choose another --out or remove it")
    if args.source == "toy":
        if config.resolution != SIZE:
            raise ValueError(f"the toy world is {SIZE}x{SIZE}, this tokenizer's clips are {config.resolution} wide")
        # the last number keeps these clips apart from those that train.py draws on the spot
        clips = [lambda i=i: toy_clip(np.random.default_rng([args.seed, i, 17]), config.frames)[:2]
                 for i in range(args.clips)]
    else:
        if not args.input:
            raise ValueError("--source folder needs --input")
        clips = [lambda path=path, caption=caption: (read_clip(path, config.frames, size=config.resolution), caption)
                 for path, caption in list_folder(args.input)]
    os.makedirs(args.out, exist_ok=True)

    tokens, captions, videos = [], [], []
    bar = tqdm(clips, unit="clip", desc="encoding")
    for i, clip in enumerate(bar):
        try:
            video, caption = clip()
            videos.append(video)
            captions.append(caption)
        except ValueError as e:
            tqdm.write(f"skipped: {e}", file=sys.stderr)
        if videos and (len(videos) == args.batch_size or i + 1 == len(clips)):
            with torch.no_grad(), torch.autocast(device, torch.bfloat16):
                tokens.append(tokenizer.encode(to_float(np.stack(videos)).to(device)).cpu().numpy().astype(np.uint16))
            videos = []
    if not tokens:
        raise ValueError("no clip could be encoded")
    t = tokens[0].shape[1]
    name = os.path.join(args.out, f"{args.source}.t{t}")
    np.save(name + ".tokens.npy", np.concatenate(tokens))
    with open(name + ".captions.jsonl", "w") as f:
        f.writelines(json.dumps({"caption": c}) + "\n" for c in captions)
    with open(os.path.join(args.out, "meta.json"), "w") as f:
        json.dump({"codebook_size": config.codebook_size, "frames": config.frames, "fps": FPS,
                   "resolution": config.resolution, "tokenizer_hash": tokenizer_hash, "clips": len(captions)}, f)
    print(f"{len(captions)} clips of {t} latent frames -> {name}.tokens.npy")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as e:
        sys.exit(f"data.py: {e}")
