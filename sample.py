"""sample.py: prompt -> minutes of video (Sec. 3.3, Sec. 4.1 "Inference").

    python sample.py --prompt "..." --seconds 60 --out video.mp4

The model writes the tokens of 65 frames (10 s) one by one (`jacobi` does so
in fewer passes), each drawn from the top k of the guided distribution (k = 50,
Sec. 3.3; scale 7.5, Sec. 4.1):

    guided = uncond + scale * (cond - uncond)
    next   ~ softmax(top_k(guided / temperature))

To go on, the clip is decoded, its last 5 frames are encoded anew as 2 latent
frames, now without a past, as at the *start* of a clip, and the model
writes the other 15: 60 new frames. So a minute is 390 frames in 7 clips.
"""
import functools
import math
import re
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from data import FPS, VOCABULARY, TextTokenizer, latent_frames, to_float, to_uint8, video_frames
from model import KVCache, cache_to_compile, load_decoder, prefix_tokens
from tokenizer import SHIPPED, load_tokenizer, tokenizer_in
from tools import films, flags, machine

CONTEXT = 5  # the last 5 frames condition the next clip (Sec. 4.1)
# Sec. 3.3, 4.1; our choice: the temperature, the floor
PAPER = {"cfg_scale": 7.5, "top_k": 50, "temperature": 1.0, "floor": 0.0}
TOY = {"cfg_scale": 3.5, "top_k": 50, "temperature": 1.0, "floor": 0.1}

# ---- ten seconds: feed, guide, top-k, draw, append ----

def next_codes(model, tokens, cache, noise, scale, top_k, temperature, floor):
    """Feed tokens (B, n), with guidance (2B, n), and draw the codes that follow
    the last W of them: (B, W) int64 in 0 ... video_vocab - 1. noise (B, W,
    video_vocab) is from Exp(1), so argmax(p / noise) is a draw from p. A code
    is forbidden if, with the caption, its p is below `floor` times the best
    one's (our choice, as in contrastive decoding, 2210.15097)."""
    logits = cond = model.next_logits(tokens, cache, noise.shape[1])
    if len(logits) > len(noise):  # guided: with the caption, then without
        cond, uncond = logits.chunk(2)
        logits = uncond + scale * (cond - uncond)
    # log 0 is -inf: then no code is unlikely
    unlikely = cond < cond.amax(-1, keepdim=True) + floor.log()
    logits = logits.masked_fill(unlikely, -math.inf)
    best, codes = torch.topk(logits / temperature, min(top_k, logits.shape[-1]))
    race = best.softmax(-1) / noise.gather(2, codes)
    return codes.gather(2, race.argmax(-1, keepdim=True))[..., 0]

@torch.inference_mode()
def generate_tokens(model, prefix, n, cfg_scale, top_k, temperature, generators,
                    floor=0.0, watch=None, cache=None, draw=next_codes):
    """Write the next n video tokens of each row -> codes (B, n) int64, one token
    per pass (--window 1).

    prefix (B, text_len + 3 + known video tokens) int64 vocabulary ids;
    generators: a torch.Generator for each row, on the model's device. Guidance
    pairs every row with the empty caption, in one batch of 2B; cfg_scale 1
    is no guidance. watch(codes, n) is called after each pass, with all codes
    so far. cache: to be used again. draw: `next_codes`, maybe compiled.
    """
    config, copies = model.config, 1 + (cfg_scale != 1)  # of each row
    noise = draw_noise(n, config, generators)
    scale, temperature, floor = torch.tensor(  # so compiled once for all values
        [cfg_scale, temperature, floor], device=prefix.device)
    cache = cache or KVCache(model, copies * len(prefix))
    cache.length = 0
    tokens = prefix if copies == 1 else add_uncaptioned(prefix, config)
    codes = prefix[:, :0]
    for i in range(n):
        cache.advance(tokens.shape[1])
        feed_and_draw = draw if i else next_codes  # the long prefix is not compiled
        new = feed_and_draw(model, tokens, cache, noise[:, i:i + 1],
                            scale, top_k, temperature, floor)
        codes = torch.cat([codes, new], 1)
        tokens = (new + config.text_vocab).repeat(copies, 1)
        if watch:
            watch(codes, n)
    return codes

def draw_noise(n, config, generators, more=0):
    """Exp(1) for each row, token and code, then ones for `more` guesses beyond the
    end: (B, n + more, video_vocab). No stride depends on n, or torch.compile
    would make a graph for each n."""
    rows = [torch.empty(n, config.video_vocab, device=g.device)
            .exponential_(generator=g) for g in generators]
    noise = F.pad(torch.stack(rows, 1), (0, 0, 0, 0, 0, more), value=1.0)
    return noise.transpose(0, 1)

def add_uncaptioned(prefix, config):
    """(B, S) -> (2B, S): rows with the caption, then with the empty one."""
    empty = prefix.clone()
    empty[:, :config.text_len + 3] = prefix_tokens(config, [[]])
    return torch.cat([prefix, empty])

# ---- minutes: token re-encoding ----

def generate(model, tokenizer, text, prompt, seconds=10, seed=0, **options):
    """Yield a video clip by clip, uint8 (T, H, W, 3): 65 frames, then 60
    each, round(6.5 * seconds) in all. options: of `generate_batch`."""
    for clips in generate_batch(model, tokenizer, text, [prompt], seconds,
                                seeds=[seed], **options):
        yield clips[0]

@torch.inference_mode()
def generate_batch(model, tokenizer, text, prompts, seconds=10, seeds=None,
                   start=None, context=CONTEXT, reencode=True, watch=None,
                   window=None, compile=False, **sampling):
    """`generate` for several prompts at once: yields uint8 (B, T, H, W, 3).

    start: frames to go on from, uint8 (T, H, W, 3). context: how many of the
    last frames condition the next clip, 1 + 4k. reencode=False goes on from
    the old tokens of the last latent frames, which saw frames before them
    (Fig. 6). window: guesses per pass of `jacobi`, by default 32 // B; 1:
    none. watch: see `generate_tokens`. compile: whether to compile
    `next_codes`. sampling: cfg_scale, top_k, temperature, floor, by default
    the preset's (`load`). ValueError for what makes no sense.
    """
    config, B = model.config, len(prompts)
    device = model.lm_head.weight.device
    sampling = model.sampling | {k: x for k, x in sampling.items() if x is not None}
    seeds = range(B) if seeds is None else seeds
    flags.check_sampling(
        sampling, config, B, seeds, seconds, FPS, start, context, window)
    window = window or max(1, 32 // B)
    cache = (cache_to_compile if compile else KVCache)(
        model, B * (1 + (sampling["cfg_scale"] != 1)), window)
    draw = machine.compiled(next_codes, device.type) if compile else next_codes
    write = functools.partial(jacobi, window=window) if window > 1 else generate_tokens
    generators = [torch.Generator(device).manual_seed(int(s)) for s in seeds]
    captions = prefix_tokens(config, [text.encode(p) for p in prompts]).to(device)
    longest, h, w = config.latent_shape

    def encode(frames):  # uint8 (B, T, H, W, 3) -> tokens (B, t, h, w)
        return tokenizer.encode(to_float(frames).to(device))

    # latent frames that the next clip begins with; how many frames they show
    known, shown = captions.new_empty(B, 0, h, w), 0
    if start is not None and len(start):
        shown = 1 + (min(len(start), context) - 1) // 4 * 4
        known = encode(np.stack([start[-shown:]] * B))
    left = round(FPS * seconds)  # frames to be shown
    while left > 0:
        end = min(video_frames(longest), shown + left)
        new = latent_frames(end) - known.shape[1]
        ids = known.flatten(1) + config.text_vocab
        prefix = torch.cat([captions, ids], 1)
        codes = write(model, prefix, new * h * w, **sampling, generators=generators,
                      watch=watch, cache=cache, draw=draw)
        tokens = torch.cat([known, codes.view(B, new, h, w)], 1)
        # one by one: in a batch, pixels may round differently
        clip = np.concatenate([to_uint8(tokenizer.decode(video))
                               for video in tokens.split(1)])
        yield clip[:, shown:end]
        left -= end - shown
        shown = context
        known = tokens[:, -latent_frames(context):]  # old tokens (Fig. 6)
        if reencode and left > 0:  # new ones, of uint8 as written to a file
            known = encode(clip[:, -context:])

# ---- speed: guess many tokens, check them in one pass ----

@torch.inference_mode()
def jacobi(model, prefix, n, cfg_scale, top_k, temperature, generators,
           floor=0.0, watch=None, cache=None, draw=next_codes, window=32):
    """As `generate_tokens`, up to rounding, in fewer passes (Jacobi decoding).

    With the noise drawn beforehand, the codes are a function of the seed and
    can be guessed. A pass over `window` guesses draws what follows each. Up to
    the first wrong guess all that is fed is right, so these draws are what one
    at a time would give; those after it are better guesses for the next pass.
    Of several rows the slowest decides.
    """
    config, copies = model.config, 1 + (cfg_scale != 1)
    P, window = prefix.shape[1], min(window, n)
    noise = draw_noise(n, config, generators, window)
    scale, temperature, floor = torch.tensor(
        [cfg_scale, temperature, floor], device=prefix.device)
    cache = cache or KVCache(model, copies * len(prefix), window)
    cache.length = 0
    # the prefix, and room for the codes and for guesses beyond the end
    ids = F.pad(prefix, (0, n + window), value=config.text_vocab)
    # codes that are right; how many of the window's last places have no guess
    done, to_guess = 0, window
    while done < n:
        end = P + done + window  # of the window
        first_guesses(ids, P + done, slice(end - to_guess, end), config)
        tokens = ids[:, :end - 1]
        if done:
            tokens = tokens[:, cache.length:].repeat(copies, 1)
        elif copies == 2:
            tokens = add_uncaptioned(tokens, config)
        cache.advance(tokens.shape[1])
        feed_and_draw = draw if done else next_codes
        drawn = feed_and_draw(model, tokens, cache, noise[:, done:done + window], scale,
                              top_k, temperature, floor) + config.text_vocab
        # draw j was fed guesses 0 ... j - 1: right if they are, so the first is
        agree = (drawn == ids[:, P + done:end]).all(0).cumprod(0)
        accepted = min(1 + int(agree[:-1].sum()), n - done)
        ids[:, P + done:end] = drawn
        done += accepted
        to_guess = accepted  # the window moves on by as many places
        # the last code was not fed yet; what is beyond is written over
        cache.length = P + done - 1
        if watch:
            watch(ids[:, P:P + done] - config.text_vocab, n)
    return ids[:, P:P + n] - config.text_vocab

def first_guesses(ids, known, where, config):
    """Guess the places `where`, a slice, of ids (B, S), in place; the first
    `known` ids are right. A guess, at the place ?:

        frame before   this frame
             a             ?
             b

    What stands at the last known place that has the same a and b in the frame
    before its own; if none has, a. b is one row below a. (Of the first frame a is
    in the caption, of the last row b in the frame itself: wrong guesses, no harm.)
    """
    _, h, w = config.latent_shape
    places = torch.arange(ids.shape[1], device=ids.device)
    before = (places - h * w).clamp(min=0)  # the same place a frame ago
    a, b = ids[:, before], ids[:, before + w]
    pairs = a * 10**6 + b  # a number for each pair, as ids are smaller
    same = pairs[:, :known, None] == pairs[:, None, where]
    last = (same * places[:known, None]).amax(1)
    last = last.where(last > 0, before[where])
    ids[:, where] = ids.gather(1, last)

# ---- plumbing: loading, arguments ----

def load(path=None, device="cpu"):
    """A trained model: (Llama, VideoTokenizer, TextTokenizer).

    path: a stageN.pt, or a folder, for its latest stage; None: the shipped
    toy, whose tokenizer also serves folders without one.
    """
    path = Path(path or SHIPPED)
    if path.is_dir():
        stages = [path / f"stage{i}.pt" for i in (3, 2, 1)]
        path = next(filter(Path.exists, stages), stages[0])
    saved = machine.read_checkpoint(path, "stage")
    folder = path.parent if tokenizer_in(path.parent) else None
    tokenizer, digest = load_tokenizer(folder, device)
    if saved["tokenizer_hash"] != digest:
        raise ValueError(f"{path} was trained on another tokenizer's tokens")
    model = load_decoder(saved, device)
    model.sampling = TOY if saved["args"]["preset"] == "toy" else PAPER
    text = TextTokenizer(model.config.text_tokenizer, model.config.text_vocab)
    return model, tokenizer, text

def main():
    args = flags.of_sampling(TOY, PAPER, CONTEXT, FPS)
    model, tokenizer, text = load(args.ckpt, args.device)
    machine.set_threads(model, most=2)
    for prompt, _ in args.scenes:
        if len(text.encode(prompt)) > model.config.text_len:
            machine.say(f"longer than {model.config.text_len} text tokens: {prompt}")
        unknown = set(re.findall(r"\w+", prompt)).difference(VOCABULARY)
        if unknown and model.config.text_tokenizer == "storybook":
            machine.say(f"no training caption has: {' '.join(sorted(unknown))}")
    start = None
    if args.continue_from is not None:
        start = films.read_clip(args.continue_from, args.context, FPS,
                                tokenizer.config.resolution, last=True)
    options = {name: vars(args)[name] for name in ("context", "reencode", "window",
        "compile", "cfg_scale", "top_k", "temperature", "floor")}
    bar = tqdm(unit="token", leave=False)

    def watch(codes, n):  # of a clip
        bar.total = n
        bar.update(codes.shape[1] - bar.n)

    def clips(start):
        for i, (prompt, seconds) in enumerate(args.scenes):
            seed = (args.seed + i) % 2**64  # each scene has its own noise
            for clip in generate(model, tokenizer, text, prompt, seconds,
                                 seed, start=start, watch=watch, **options):
                yield clip
                before = clip[:0] if start is None else start
                start = np.concatenate([before, clip])[-args.context:]
            if args.cut:
                start = None

    films.write_video(args.out, clips(start), FPS)

if __name__ == "__main__":
    machine.run_script(main)
