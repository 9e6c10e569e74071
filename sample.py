"""sample.py: prompt -> minutes of video (Sec. 3.3, Sec. 4.1 "Inference").

    python sample.py --prompt "..." --seconds 60 --out video.mp4

The model writes the tokens of 65 frames (10 s) one by one, each drawn from
the top k of the guided distribution (k = 50, Sec. 3.3; scale 7.5, Sec. 4.1):

    guided = uncond + scale * (cond - uncond)
    next   ~ softmax(top_k(guided / temperature))

To go on, the clip is decoded, its last 5 frames are encoded anew as 2 latent
frames, now without a past, as at the *start* of a clip, and the model
writes the other 15: 60 new frames. So a minute is 390 frames in 7 clips.
"""
import argparse
import functools
import math
import re
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from data import FPS, VOCABULARY, TextTokenizer, latent_frames, to_float, to_uint8, video_frames
from model import KVCache, cache_to_compile, load_decoder, prefix_tokens
from tokenizer import SHIPPED, load_tokenizer, tokenizer_in
from tools import films, machine

CONTEXT = 5  # the last 5 frames condition the next clip (Sec. 4.1)
# Sec. 3.3, 4.1; our choice: the temperature, the floor
PAPER = {"cfg_scale": 7.5, "top_k": 50, "temperature": 1.0, "floor": 0.0}
TOY = {"cfg_scale": 1.5, "top_k": 50, "temperature": 0.6, "floor": 0.0}

# ---- ten seconds: feed, guide, top-k, draw, append ----

def next_codes(model, tokens, cache, noise, scale, top_k, temperature, floor):
    """Feed tokens (B, n), with guidance (2B, n), and draw the codes that follow
    the last W of them: (B, W) int64 in 0 ... video_vocab - 1. noise (B, W,
    video_vocab) is from Exp(1), so argmax(p / noise) is a draw from p. A code
    is forbidden if, with the caption, its p is below `floor` times the best
    one's (our choice, as in contrastive decoding, 2210.15097)."""
    logits = cond = model.next_logits(tokens, cache, noise.shape[1])
    if len(logits) > len(noise):  # with the caption, then without
        cond, uncond = logits.chunk(2)
        logits = uncond + scale * (cond - uncond)
    unlikely = cond < cond.amax(-1, keepdim=True) + floor.log()
    logits = logits.masked_fill(unlikely, -math.inf)
    best, codes = torch.topk(logits / temperature, min(top_k, logits.shape[-1]))
    race = best.softmax(-1) / noise.gather(2, codes)
    return codes.gather(2, race.argmax(-1, keepdim=True))[..., 0]

@torch.inference_mode()
def generate_tokens(model, prefix, n, cfg_scale, top_k, temperature, generator,
                    floor=0.0, watch=None, cache=None, step=next_codes):
    """Write the next n video tokens of each row -> codes (B, n) int64. This is
    --window 1; otherwise `jacobi` writes the same, up to rounding, in fewer passes.

    prefix (B, text_len + 3 + known video tokens) int64 vocabulary ids;
    generator: one torch.Generator per row, on the model's device. Guidance
    pairs every row with the empty caption, in one batch of 2B; cfg_scale 1
    is no guidance. watch(codes, n) is called after each pass, with all codes
    so far. cache: to be used again. step: `next_codes`, maybe compiled.
    """
    config, rows = model.config, 1 + (cfg_scale != 1)  # of each video
    noise = draw_noise(n, config, generator)
    scale, temperature, floor = torch.tensor(  # compiled once for all values
        [cfg_scale, temperature, floor], device=prefix.device)
    cache = cache or KVCache(model, rows * len(prefix))
    cache.length = 0
    tokens = prefix if rows == 1 else add_uncaptioned(prefix, config)
    codes = prefix[:, :0]
    for i in range(n):
        cache.advance(tokens.shape[1])
        draw = step if i else next_codes  # the prefix, longer, is not compiled
        new = draw(model, tokens, cache, noise[:, i:i + 1], scale, top_k, temperature, floor)
        codes = torch.cat([codes, new], 1)
        tokens = (new + config.text_vocab).repeat(rows, 1)
        if watch:
            watch(codes, n)
    return codes

def draw_noise(n, config, generators, more=0):
    """Exp(1) for each row, token and code, then ones for guesses beyond the end:
    (B, n + more, video_vocab). No stride depends on n, or torch.compile would make
    a graph for each n."""
    rows = [torch.empty(n, config.video_vocab, device=g.device).exponential_(generator=g)
            for g in generators]
    return F.pad(torch.stack(rows, 1), (0, 0, 0, 0, 0, more), value=1.0).transpose(0, 1)

def add_uncaptioned(prefix, config):
    """(B, S) -> (2B, S): rows with the caption, then with the empty one."""
    empty = prefix.clone()
    empty[:, :config.text_len + 3] = prefix_tokens(config, [[]])
    return torch.cat([prefix, empty])

# ---- minutes: token re-encoding ----

def generate(model, tokenizer, text, prompt, seconds=10, seed=0, **options):
    """Yield a video clip by clip, uint8 (T, H, W, 3): 65 frames, then 60 each,
    or what --context leaves; round(6.5 * seconds) in all. options: see below."""
    for clips in generate_batch(model, tokenizer, text, [prompt], seconds,
                                seeds=[seed], **options):
        yield clips[0]

@torch.inference_mode()
def generate_batch(model, tokenizer, text, prompts, seconds=10, seeds=None, start=None,
                   context=CONTEXT, reencode=True, watch=None, window=None, compile=False,
                   **sampling):
    """`generate` for several prompts at once: yields uint8 (B, T, H, W, 3).

    start: frames to go on from, uint8 (T, H, W, 3). context: how many of the
    last frames condition the next clip, 1 + 4k. reencode=False goes on from the
    old tokens of the last latent frames (Fig. 6), which had all earlier frames as context.
    window: guesses per pass of `jacobi`, by default 32 // B; 1: none. watch:
    see `generate_tokens`. compile: whether to compile `next_codes`. sampling:
    cfg_scale, top_k, temperature, floor, by default the preset's (`load`). ValueError
    for numbers that make no sense.
    """
    config, device, B = model.config, model.lm_head.weight.device, len(prompts)
    sampling = model.sampling | {k: x for k, x in sampling.items() if x is not None}
    seeds = range(B) if seeds is None else seeds
    check(sampling, config, context, seconds, window, seeds)
    window = window or max(1, 32 // B)
    cache = (cache_to_compile if compile else KVCache)(
        model, B * (1 + (sampling["cfg_scale"] != 1)), window)
    step = machine.compiled(next_codes, device.type) if compile else next_codes
    write = generate_tokens if window == 1 else functools.partial(jacobi, window=window)
    generators = [torch.Generator(device).manual_seed(int(s)) for s in seeds]
    captions = prefix_tokens(config, [text.encode(p) for p in prompts]).to(device)
    longest, h, w = config.latent_shape

    def encode(frames):  # uint8 (B, 1 + 4k, H, W, 3) -> tokens (B, 1 + k, h, w)
        return tokenizer.encode(to_float(frames).to(device))

    # of the next clip: known latent frames, such as 2; the 5 frames in them were shown
    known, shown = captions.new_empty(B, 0, h, w), 0
    if start is not None and len(start):
        shown = 1 + (min(len(start), context) - 1) // 4 * 4
        known = encode(np.stack([start[-shown:]] * B))
    left = round(FPS * seconds)  # frames to be shown
    while left > 0:
        end = min(video_frames(longest), shown + left)
        new = latent_frames(end) - known.shape[1]
        prefix = torch.cat([captions, known.flatten(1) + config.text_vocab], 1)
        codes = write(model, prefix, new * h * w, **sampling, generator=generators,
                      watch=watch, cache=cache, step=step)
        tokens = torch.cat([known, codes.view(B, new, h, w)], 1)
        # one by one, as the weights are in float32: in a batch, pixels may round differently
        clip = np.concatenate([to_uint8(tokenizer.decode(t)) for t in tokens.split(1)])
        yield clip[:, shown:end]
        left -= end - shown
        shown = context
        if reencode and left > 0:
            known = encode(clip[:, -context:])  # uint8, as written to a file
        else:  # old tokens (Fig. 6)
            known = tokens[:, -latent_frames(context):]

# ---- speed: guess many tokens, check them in one pass ----

@torch.inference_mode()
def jacobi(model, prefix, n, cfg_scale, top_k, temperature, generator,
           floor=0.0, watch=None, cache=None, step=next_codes, window=32):
    """What `generate_tokens` writes, in fewer passes (Jacobi decoding, our choice).

    With the noise drawn beforehand, the codes are a function of the seed and
    can be guessed. A pass over `window` guesses draws what follows each. Up to
    the first wrong guess all that is fed is right, so these draws are what one
    at a time would give; those after it are better guesses for the next pass.
    Of several rows the slowest decides. A first guess:

        frame before   this frame
             a             ?        the last place that had a above b, too, became
             b                      c: guess c, or a if there is none
    """
    config, rows = model.config, 1 + (cfg_scale != 1)
    _, h, w = config.latent_shape
    P, window = prefix.shape[1], min(window, n)
    noise = draw_noise(n, config, generator, window)
    scale, temperature, floor = torch.tensor(
        [cfg_scale, temperature, floor], device=prefix.device)
    cache = cache or KVCache(model, rows * len(prefix), window)
    cache.length = 0
    # the prefix, and room for the codes and for guesses beyond the end
    ids = F.pad(prefix, (0, n + window), value=config.text_vocab)
    places = torch.arange(ids.shape[1], device=ids.device)
    before = (places - h * w).clamp(min=0)  # the same place in the frame before
    done, new = 0, window  # codes that are right; places without a guess
    while done < n:
        end = P + done + window
        settled, to_guess = slice(P + done), slice(end - new, end)
        pairs = ids[:, before] * 10**6 + ids[:, before + w]  # ids are smaller
        same = pairs[:, settled, None] == pairs[:, None, to_guess]
        last = (same * places[settled, None]).amax(1)
        ids[:, to_guess] = ids.gather(1, last.where(last > 0, before[to_guess]))

        tokens = ids[:, :end - 1]
        if done:
            tokens = tokens[:, cache.length:].repeat(rows, 1)
        elif rows == 2:
            tokens = add_uncaptioned(tokens, config)
        cache.advance(tokens.shape[1])
        draw = step if done else next_codes
        drawn = config.text_vocab + draw(model, tokens, cache, noise[:, done:done + window],
                                         scale, top_k, temperature, floor)
        right = (drawn == ids[:, P + done:end]).all(0).cumprod(0)
        new = min(1 + int(right[:-1].sum()), n - done)
        ids[:, P + done:end] = drawn
        done += new
        cache.length = P + done - 1  # the last code was not fed yet; the rest is written over
        if watch:
            watch(ids[:, P:P + done] - config.text_vocab, n)
    return ids[:, P:P + n] - config.text_vocab

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
    return model, tokenizer, TextTokenizer(model.config.text_tokenizer)

def check(sampling, config, context, seconds, window, seeds):
    """Raise ValueError for what `generate_batch` cannot do."""
    positive = sampling["top_k"], sampling["temperature"], window
    if not all(x is None or 0 < x < math.inf for x in positive):
        raise ValueError("top-k, temperature and window must be positive")
    if not 0.5 < FPS * seconds < math.inf:
        raise ValueError(f"{seconds:.3g} seconds have no frame, at {FPS} frames/s")
    for seed in seeds:
        machine.check_seed(seed)
    if not math.isfinite(sampling["cfg_scale"]) or not 0 <= sampling["floor"] <= 1:
        raise ValueError("cfg-scale must be finite, floor 0 to 1")
    if context % 4 != 1 or not 0 < context < video_frames(config.latent_shape[0]):
        raise ValueError("context must be 1 + 4k frames, fewer than a clip has")

def parse():
    p = argparse.ArgumentParser(description="A prompt -> a video.")
    add, switch = p.add_argument, argparse.BooleanOptionalAction
    add("--prompt", default="", help="what the video shows")
    add("--at", nargs=2, action="append", default=[], metavar=("SECOND", "PROMPT"),
        help="from then on another prompt; may be repeated")
    add("--cut", action="store_true", help="each prompt starts a new scene")
    add("--continue-from", metavar="VIDEO", help="go on from its end")
    add("--ckpt", help="folder or stageN.pt; the shipped toy")
    add("--seconds", type=float, default=10, help="of new video (10)")
    add("--out", default="sample.mp4", metavar="VIDEO.mp4", help="sample.mp4")
    add("--cfg-scale", type=float, help=f"guidance; toy {TOY['cfg_scale']}, else 7.5, none 1")
    add("--top-k", type=int, help="codes that may be drawn (50)")
    add("--temperature", type=float, help=f"toy {TOY['temperature']}, else 1; towards 0: greedy")
    add("--floor", type=float, help=f"see `next_codes`, 0 to 1; toy {TOY['floor']}, else 0")
    add("--context", type=int, default=CONTEXT, help="frames that a clip goes on from, 1 + 4k (5)")
    add("--seed", type=int, default=0, help="another one, another video (0)")
    add("--window", type=int, help="guesses per pass (32); 1: plain")
    add("--no-reencode", dest="reencode", action="store_false", help="go on from old tokens")
    add("--compile", action=switch, default=machine.DEVICE == "cuda", help="yes on GPUs")
    add("--device", default=machine.DEVICE, help="cpu, cuda, mps; a GPU if there is one")
    args = p.parse_args()
    machine.check_seed(args.seed)
    ends = np.round(FPS * np.array([0, *(float(x) for x, _ in args.at), args.seconds])) / FPS
    if args.at and not (np.diff(ends) > 0).all():
        raise ValueError("--at needs seconds that grow, between 0 and --seconds")
    args.scenes = list(zip([args.prompt, *(prompt for _, prompt in args.at)], np.diff(ends)))
    films.check_out(args.out, args.continue_from)
    return args

def main():
    args = parse()
    model, tokenizer, text = load(args.ckpt, args.device)
    machine.set_threads(model, most=2)
    for prompt, _ in args.scenes:
        if len(text.encode(prompt)) > model.config.text_len:
            print(f"longer than {model.config.text_len} text tokens: {prompt}", file=sys.stderr)
        unknown = [x for x in re.findall(r"\w+", prompt) if x not in VOCABULARY]
        if unknown and model.config.text_tokenizer == "storybook":
            print("no training caption has:", *unknown, file=sys.stderr)
    start = None if args.continue_from is None else films.read_clip(
        args.continue_from, args.context, FPS, tokenizer.config.resolution, last=True)
    options = {name: vars(args)[name] for name in (
        "context", "reencode", "window", "compile", "cfg_scale", "top_k", "temperature", "floor")}
    bar = tqdm(unit="token", leave=False)

    def watch(codes, n):  # of a clip
        bar.total = n
        bar.update(codes.shape[1] - bar.n)

    def clips(start):
        for i, (prompt, seconds) in enumerate(args.scenes):  # each with its own noise
            for clip in generate(model, tokenizer, text, prompt, seconds, (args.seed + i) % 2**64,
                                 start=start, watch=watch, **options):
                yield clip
                before = clip[:0] if start is None else start
                start = np.concatenate([before, clip])[-args.context:]
            if args.cut:
                start = None

    films.write_video(args.out, clips(start), FPS)

if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as e:
        sys.exit(f"sample.py: {e}")
    except KeyboardInterrupt:
        sys.exit(130)
