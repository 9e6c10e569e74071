"""data.py: what goes in (Sec. 4.1 "Training").

    captions      str -> text ids (`TextTokenizer`)
    clips         uint8 (T, H, W, 3), T = 1 + 4k frames at 6.5 frames/s
    token shards  clips encoded by tools/prepare.py, (N, t, h, w), t = 1 + k.
                  Their first 1 or 5 latent frames serve stages 1 and 2.
    samples       a pure function of (seed, stage, step, i, frames) (`Clips`)

Below stands the storybook, a toy world, to be skipped at first. No neural network.
"""
import zlib

import numpy as np
import tiktoken
import torch

from tools.shards import random_pixels, random_tokens

FPS = 6.5  # 65 frames cover 10 s (Sec. 3.1)

def latent_frames(frames):
    """How many latent frames hold these frames: 1, 17, 65 -> 1, 5, 17. The
    first frame has its own, then four share one, as do the last if fewer."""
    return 1 + (frames + 2) // 4

def video_frames(latents):
    """How many frames these latent frames give: 1, 5, 17 -> 1, 17, 65."""
    return 4 * latents - 3

def to_float(video):
    """uint8 (..., T, H, W, 3) -> float (..., 3, T, H, W) in [-1, 1]."""
    return torch.as_tensor(video).movedim(-1, -4).float() / 127.5 - 1

def to_uint8(video):
    """float (..., 3, T, H, W) in [-1, 1] -> uint8 array (..., T, H, W, 3)."""
    video = ((video.float().clamp(-1, 1) + 1) * 127.5).round().byte()
    return video.movedim(-4, -1).contiguous().cpu().numpy()

class TextTokenizer:
    """Captions -> ids. kind: "bytes"; "storybook", bytes and the storybook's
    words; "gpt2", the first 32000 of its table (our choice; their number, Sec. 4.1).
    size: the model's text vocabulary; ValueError if this one differs."""

    def __init__(self, kind="bytes", size=None):
        ranks = {bytes([i]): i for i in range(256)}
        pattern = r" [a-z]+|[\s\S]"
        if kind == "storybook":  # each is taken as it is, without merges
            ranks |= {b" " + w.encode(): 256 + i for i, w in enumerate(VOCABULARY)}
        elif kind == "gpt2":
            try:
                gpt2 = tiktoken.get_encoding("gpt2")
            except Exception as e:  # whatever the network raises
                raise ValueError("go online once for tiktoken's gpt2 table, "
                                 "or set TIKTOKEN_CACHE_DIR") from e
            table, pattern = gpt2._mergeable_ranks, gpt2._pat_str
            ranks = {w: rank for w, rank in table.items() if rank < 32000}
        self.bpe = tiktoken.Encoding(f"loong-{kind}", pat_str=pattern,
                                     mergeable_ranks=ranks, special_tokens={})
        if size not in (None, self.bpe.n_vocab):
            raise ValueError(f"the model has {size} text ids, the {kind} tokenizer "
                             f"{self.bpe.n_vocab}: it learnt other words")

    def encode(self, caption):
        """str -> list of ids; absurdly long ones are cut."""
        return self.bpe.encode_ordinary(caption[:4096])

class Clips(torch.utils.data.Dataset):
    """Training samples: clips[step, i, frames] -> (clip, caption, wrong), which
    depend on (seed, stage, step, i, frames) alone.

    images, videos: "toy", or folders made by tools/prepare.py, "A,B" (a folder
    that is named twice counts twice); clips of one frame are of `images`. A clip
    is tokens int64 (t, h, w); of the toy, and in stage 0, which reads the files
    that a folder lists, video uint8 (T, H, W, 3). validation: others, of shards
    the last 64th; no caption is dropped.

    Not in the paper: a share `returns` of the captioned clips of several frames
    contradicts the caption in the latent frames `wrong`, bool (t,), without loss.
    So the model learns to trust the caption more than the frames before.
    """

    def __init__(self, images, videos, seed, stage, resolution=64,
                 returns=0.0, validation=False):
        self.images, self.videos, self.resolution = images, videos, resolution
        self.seed, self.stage, self.validation = seed, stage, validation
        self.returns = 0.0 if validation else returns

    def __getitem__(self, key):
        step, i, frames = key
        t = latent_frames(frames)
        rng = np.random.default_rng(
            [self.seed, self.stage, step, i, self.validation])
        # for guidance, captions are dropped with probability 0.1 (our choice)
        drop = rng.random() < 0.1 and not self.validation
        source = self.images if frames == 1 else self.videos
        wrong, contradicts = np.zeros(t, bool), False
        if self.returns and frames > 1 and not drop:
            contradicts = rng.random() < self.returns
        if source == "toy":
            if self.resolution != SIZE:
                raise ValueError(f"the toy world has {SIZE} pixels: use --videos")
            if contradicts:
                clip, caption, wrong = toy_return(rng, frames)
            else:
                clip, caption, _ = toy_clip(rng, frames)
        elif self.stage == 0:
            caption = ""
            clip = random_pixels(rng, source, frames, t, FPS,
                                 self.resolution, self.validation)
        else:
            clip, caption = random_tokens(rng, source, t, self.validation)
            if contradicts:
                other, _ = random_tokens(rng, source, t)
                wrong = wrong_latents(rng, t)
                clip[wrong] = other[wrong]
        return clip, "" if drop else caption, torch.tensor(wrong)

def wrong_latents(rng, t):
    """Draw which of t latent frames contradict the caption, bool (t,): runs of
    1 to 5, with 2 to 7 between them, but not the last. Half begin at once."""
    wrong = np.zeros(t, bool)
    first = 0 if rng.random() < 0.5 else rng.integers(1, t - 2)
    while first < t - 1:
        end = min(first + rng.integers(1, 6), t - 1)
        wrong[first:end] = True
        first = end + rng.integers(2, 8)
    return wrong

# ---- the storybook, the toy world: the camera follows a traveller ----

SIZE = 64  # pixels
COLORS = {"red": (220, 50, 40), "green": (40, 200, 90),
          "blue": (50, 90, 220), "yellow": (245, 220, 60),
          "purple": (150, 60, 190), "white": (245, 245, 245)}
LANDS = {"hills": (70, 150, 70), "mountains": (110, 105, 125),
         "city": (80, 75, 95)}
# colors of the sky and of its sun or moon; the brightness of the land
SKIES = {"day": ((120, 190, 240), (255, 230, 80), 1.0),
         "sunset": ((240, 150, 90), (255, 230, 180), 0.85),
         "night": ((20, 25, 60), (240, 240, 215), 0.55)}
SPEEDS = {"slowly": 2, "quickly": 4}  # pixels per frame
ATTRIBUTES = {"traveller": ["balloon", "bird", "car"], "color": list(COLORS),
       "land": list(LANDS), "sky": list(SKIES), "way": ["left", "right"],
       "speed": list(SPEEDS)}
HELD_OUT = {("balloon", "green", "mountains"), ("balloon", "purple", "city"),
            ("bird", "red", "hills"), ("bird", "white", "city"),
            ("car", "blue", "hills"), ("car", "yellow", "mountains")}
WORDS = {  # the first are canonical; a traveller's are its verbs
    "balloon": ["drifts", "floats", "glides"],
    "bird": ["flies", "soars", "travels"],
    "car": ["drives", "rolls", "cruises"],
    "hills": ["past green hills", "past grassy meadows", "along the hills"],
    "mountains": ["past snowy mountains", "past white peaks", "along a ridge"],
    "city": ["past a city", "past tall buildings", "along a skyline"],
    "day": ["by day", "in the sunshine", "under a blue sky"],
    "sunset": ["at sunset", "at dusk", "under an orange sky"],
    "night": ["at night", "in the moonlight", "under the stars"],
    "left": ["left", "to the left", "leftward"],
    "right": ["right", "to the right", "rightward"],
    "slowly": ["slowly", "gently", "at a slow pace"],
    "quickly": ["quickly", "swiftly", "at high speed"]}
VOCABULARY = sorted({word for phrases in [*ATTRIBUTES.values(), *WORDS.values()]
                     for phrase in phrases for word in phrase.split()})
TOPS = {"balloon": [0, 8], "bird": [8, 16], "car": [48, 48]}  # y, one of two
CLAUSES = "way", "speed", "land", "sky"
CANONICAL = "a {color} {traveller} {verb0} {way0} {speed0} {land0} {sky0}"

def held_out(attributes):
    """True for the 6 of 54 triples that training never sees."""
    return tuple(attributes[k] for k in ("traveller", "color", "land")) in HELD_OUT

def toy_attributes(rng, held=False):
    """Draw six attributes, of a training triple or of a held-out one."""
    while True:
        a = {k: str(rng.choice(v)) for k, v in ATTRIBUTES.items()}
        if held_out(a) == held:
            return a

def wording(rng, held=False, dense=False):
    """Draw a form of caption: of the fifth that training never sees, or of the
    rest. Color and clauses may be left out; the clauses stand in any order,
    up to two of them twice in other words. dense: all, three or four twice."""
    while True:
        said = [name for name in CLAUSES if dense or rng.random() < 0.85]
        twice = rng.integers(3, 5) if dense else rng.choice(3, p=(0.6, 0.25, 0.15))
        order = rng.permutation([*said, *rng.permutation(said)[:twice]])
        words = {name: rng.permutation(3) for name in CLAUSES}
        colored = dense or rng.random() < 0.85
        form = "a {color} {traveller}" if colored else "a {traveller}"
        form += f" {{verb{rng.integers(3)}}}"
        for i, name in enumerate(order):
            again = name in order[:i]
            clause = f"{{{name}{words[name][int(again)]}}}"  # such as {land2}
            if i == 0 and name in ("land", "sky") and rng.random() < 0.4:
                form = f"{clause}, {form}"
            else:
                form += f", {clause}" if again else f" {clause}"
        # a hash decides, so that it is always the same fifth
        if (zlib.crc32(form.encode()) % 5 == 1) == held:
            return form

def caption_of(attributes, form=CANONICAL):
    """-> the caption, and the names of the attributes that it states."""
    words = {name: attributes[name] for name in ("color", "traveller")}
    for name in ("traveller", *CLAUSES):
        slot = "verb" if name == "traveller" else name
        words |= {f"{slot}{i}": word for i, word in enumerate(WORDS[attributes[name]])}
    return form.format(**words), tuple(name for name in ATTRIBUTES if "{" + name in form)

def land_heights(rng, land, n):
    """Draw the height of the land in n columns, 8 to 24 pixels: a random
    process that could go on for ever."""
    if land == "hills":  # smoothed noise
        kernel = np.exp(-0.5 * (np.arange(-24, 25) / 7) ** 2)
        noise = np.convolve(rng.normal(size=n + 48), kernel, "valid")
        return 16 + 8 * np.tanh(0.9 * noise / np.linalg.norm(kernel))
    if land == "mountains":  # the highest of many slopes
        gap, top = 4 * rng.integers((3, 4), (8, 7), (n, 2)).T
        # peak i is at gap.cumsum()[i]; the first 64 columns lack some on their left
        slopes = top - np.abs(np.arange(64, 64 + n)[:, None] - gap.cumsum())
        return np.maximum(8, slopes.max(1))
    width, floors = rng.integers((1, 2), (3, 7), (n, 2)).T  # buildings; the first is cut
    return np.repeat(4 * floors, 8 * width)[64:64 + n]

def paint(pictures, color, radius, start, *ends):
    """Paint a thick stroke into each picture of premultiplied RGBA
    (N, 64, 64, 4), from start to an end. ends: one point for each picture,
    or one for all; without any, a disk. A point (x, y) is the complex number
    x + yj, so abs() of a difference is a distance."""
    y, x = np.indices((SIZE, SIZE)) + 0.5
    point = x + 1j * y - start
    stroke = np.reshape(ends or start, (-1, 1, 1)) - start
    along = (point * np.conj(stroke)).real / np.maximum(np.abs(stroke) ** 2, 1)
    distance = np.abs(point - np.clip(along, 0, 1) * stroke)
    cover = np.clip(radius + 0.5 - distance, 0, 1)[..., None]
    pictures += cover * (np.float32([*color, 1]) - pictures)

def draw_sky(rng, sky, sun):
    """The sky with its stars and the sun or the moon: (64, 64, 4)."""
    color, light, _ = SKIES[sky]
    picture = np.full((SIZE, SIZE, 4), (*color, 1), np.float32)
    if sky == "night":
        for cell in rng.permutation(32)[:8]:
            y, x = 8 * np.array(divmod(cell, 8)) + 2 * rng.integers(4, size=2)
            picture[y:y + 2, x:x + 2, :3] = 240
    paint(picture[None], light, 5, sun)
    return picture

def draw_land(heights, land, sky):
    """The land and the road before it: (64, W, 4)."""
    x, up = np.meshgrid(np.arange(len(heights)), np.arange(SIZE)[::-1])
    picture = np.ones((*x.shape, 4), np.float32)
    color = picture[..., :3]
    color[:] = LANDS[land]
    if land == "mountains":
        color[up > 21 + np.abs(x % 8 - 3.5)] = 245  # snow
    elif land == "city":  # windows, 2 pixels in every 4
        # times 0.55 at night
        lit = (445, 390, 200) if sky == "night" else (120, 120, 145)
        color[(x % 4 % 3 > 0) & (up % 4 % 3 > 0)] = lit
    color[up < 8] = 62, 60, 68  # the road and its dashes
    color[(up // 2 == 1) & (x % 16 < 8)] = 230
    color *= SKIES[sky][2]
    return picture * np.float32(np.clip(heights + 8 - up, 0, 1))[..., None]

def draw_traveller(traveller, color, corner):
    """A few strokes in each of four frames, a flap of wings: (4, 64, 64, 4)."""
    pictures = np.zeros((4, SIZE, SIZE, 4), np.float32)
    strokes = {
        "balloon": [((150, 100, 60), 2.5, 7+20j, 9+20j),  # basket, envelope
                    (color, 7, 8+9j), (color, 3, 8+13j, 8+15j)],
        "bird": [(color, 2.2, 4+10j, 15+9j), (color, 2.4, 17+7j, 19+7.5j),
                 (color, 2.8, 11.5+9j, 8+2j, 8+6j, 8+13j, 8+6j)],  # the wing
        "car": [(color, 3, 5+7.5j, 19+7.5j), (color, 3, 9+4j, 14+4j),
                ((200, 230, 245), 1.5, 9.5+4j, 13.5+4j),  # window, wheels
                ((20, 20, 26), 2.6, 7+10j), ((20, 20, 26), 2.6, 17+10j)]}
    for color, radius, *points in strokes[traveller]:
        paint(pictures, color, radius, *(corner + p for p in points))
    return pictures

def draw_clip(seed, frames, a):
    """The video that shows the attributes a, uint8 (T, 64, 64, 3), and the
    traveller's box (x0, y0, x1, y1) in pixels. The same seed draws alike, so
    that clips differ in what their attributes say alone."""
    rng, land_rng = np.random.default_rng(seed).spawn(2)
    # all stands on the grid of tokens and goes to the right; mirrored below
    x, row = 8 * rng.integers(1, 5), rng.integers(2)
    middle = x + 12  # of the traveller; the sun or moon keeps clear of it
    places = [u for u in range(8, 57, 8) if abs(u - middle) >= 20]
    sky = draw_sky(rng, a["sky"], rng.choice(places) + 1j * rng.choice([8, 16]))
    corner = x + 1j * TOPS[a["traveller"]][row]
    flap = draw_traveller(a["traveller"], COLORS[a["color"]], corner)
    ys, xs = np.nonzero(flap[..., 3].max(0) > 0.5)
    flap *= np.float32(a.get("opacity", 1))  # see `toy_return`
    speed = SPEEDS[a["speed"]]
    heights = land_heights(land_rng, a["land"], SIZE + speed * (frames - 1))
    land = draw_land(heights, a["land"], a["sky"])
    video = np.empty((frames, SIZE, SIZE, 3), np.uint8)
    for t in range(frames):
        picture = sky
        for layer in (land[:, speed * t:speed * t + SIZE], flap[t % 4]):
            picture = layer + (1 - layer[..., 3:]) * picture
        video[t] = np.rint(picture[..., :3])
    if a["way"] == "left":  # mirrored
        video, xs = video[:, :, ::-1].copy(), SIZE - 1 - xs
    return video, (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)

def toy_clip(rng, frames=65, attributes=None):
    """Draw a clip -> uint8 (T, 64, 64, 3), its caption, its attributes, of
    which some may be given. Added: "said", those in the caption, and "box"."""
    a = toy_attributes(rng) | (attributes or {})
    form = CANONICAL if rng.random() < 0.3 else wording(rng)
    caption, a["said"] = caption_of(a, form)
    video, a["box"] = draw_clip(rng.integers(2 ** 62), frames, a)
    return video, caption, a

def toy_return(rng, frames):
    """Draw a clip that contradicts its caption in `wrong_latents`, in all or some
    columns, and fades into what it says -> video, caption, wrong. A return
    begins in the first latent frame after a run, so all of it has a loss."""
    a = toy_attributes(rng)
    form = CANONICAL if rng.random() < 0.3 else wording(rng)
    caption, said = caption_of(a, form)
    b = a  # what is seen instead, maybe a faint traveller or none
    often = {"traveller": 0.6, "color": 0.4, "sky": 0.4}
    while b == a or held_out(b):
        b = a | {k: x for k, x in toy_attributes(rng).items()
                 if k in said and rng.random() < often.get(k, 0.15)}
        if rng.random() < 0.3:
            b["opacity"] = rng.choice([0, 0.5])
    seed = rng.integers(2 ** 62)
    asked, other = (np.float32(draw_clip(seed, frames, x)[0]) for x in (a, b))
    wrong = wrong_latents(rng, latent_frames(frames))
    n = rng.integers(2, 7)  # frames that a fade takes: the mean of the last n
    share = np.pad(wrong[[0, *np.arange(4, frames + 3) // 4]], (n - 1, 0), "edge")
    share = np.convolve(share, np.ones(n) / n, "valid")  # of the other
    share = np.tile(share[:, None, None, None], (1, 1, SIZE, 1))
    if rng.random() < 0.25:  # none of it in some columns
        x0, x1 = np.sort(8 * rng.integers(9, size=2))
        share[:, :, x0:x1] = 0
    video = np.rint(share * other + (1 - share) * asked).astype(np.uint8)
    return video, caption, wrong
