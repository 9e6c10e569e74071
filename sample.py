"""sample.py: prompt -> minutes of video (Sec. 3.3, Sec. 4.1 "Inference").

    python sample.py --prompt "..." --seconds 60 --out video.mp4

The model writes the tokens of 65 frames (10 s) one by one, each drawn from
the top k of the guided distribution (k = 50, Sec. 3.3; scale 7.5, Sec. 4.1):

    guided = uncond + scale * (cond - uncond)
    next   ~ softmax(top_k(guided / temperature))

To go on, the clip is decoded, its last 5 frames are encoded anew as 2 latent
frames, now without a past, as at the *start* of a clip, and the model
writes the other 15: 60 new frames. So a minute is 390 frames in 7 clips.
This file knows nothing about training.
"""
import argparse
import functools
import itertools
import math
import os
import sys
import timeit
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from data import (FPS, TextTokenizer, latent_frames, read_clip, to_float,
                  to_uint8, video_frames)
from model import KVCache, load_decoder, prefix_tokens
from tokenizer import SHIPPED, load_tokenizer, read_checkpoint

CONTEXT = 5  # the last 5 frames condition the next clip (Sec. 4.1)
HALF_CLIP = 4.6  # seconds, 30 frames

def next_codes(model, tokens, cache, scale, temperature, noise):
    """Feed tokens (B, n), or (2B, n) with guidance, and draw the codes that
    follow the last W of them, (B, W) int64. noise (B, W, k) is drawn from
    Exp(1), so that argmax(p / noise) is a draw from p (the exponential race)."""
    B, W, k = noise.shape
    logits = model.next_logits(tokens, cache, W)
    if len(logits) == 2 * B:  # guided: with the caption, then without
        cond, uncond = logits.chunk(2)
        logits = uncond + scale * (cond - uncond)
    best, codes = torch.topk(logits / temperature, k)
    drawn = (best.softmax(-1) / noise).argmax(-1, keepdim=True)
    return codes.gather(2, drawn)[..., 0]

@torch.inference_mode()
def generate_tokens(model, prefix, n, cfg_scale, top_k, temperature,
                    generator, compiled=False, quiet=True, cache=None, window=1):
    """Write the next n video tokens of each row -> codes (B, n) int64.

    As the noise is drawn beforehand, the codes are a function of the seed,
    and may be guessed (Jacobi decoding, our choice): one pass over `window`
    guesses draws what follows each. Up to the first wrong guess these are the
    codes that one at a time (window 1) would give, and the others are better
    guesses for the next pass. The first guess is the code of the same place
    in the frame before; of several rows the slowest decides.

    prefix (B, text_len + 3 + known video tokens) int64 vocabulary ids;
    generator: one torch.Generator per row, on the model's device. Guidance
    pairs every row with the empty caption, in one batch of 2B; cfg_scale 1
    is no guidance. cache: an earlier call's, to be used again.
    """
    config, device = model.config, prefix.device
    k, window = min(top_k, config.video_vocab), min(window, n)
    noise = torch.stack([  # (B, n, k)
        torch.empty(n, k, device=device).exponential_(generator=g)
        for g in generator])
    noise = F.pad(noise, (0, 0, 0, window), value=1.0)
    B, P = prefix.shape
    frame = math.prod(config.latent_shape[1:])
    # prefix, codes, and guesses where there is no code yet
    ids = F.pad(prefix, (0, n + window), value=config.text_vocab)
    guided = cfg_scale != 1
    cache = cache or KVCache(model, B * (1 + guided), compiled, window)
    cache.length = 0
    scale, temperature = torch.tensor([cfg_scale, temperature], device=device)
    step, done, accepted = next_codes, 0, window
    bar = tqdm(total=n, unit="token", leave=False, disable=quiet)
    while done < n:
        end = P + done + window
        guessed = torch.arange(end - accepted, end, device=device)  # for the first time
        ids[:, guessed] = ids[:, (guessed - frame).clamp(min=0)]
        tokens = ids[:, cache.length:end - 1]
        if guided:
            tokens = torch.cat([tokens, tokens])
            if not done:
                tokens[B:, :config.text_len + 3] = prefix_tokens(config, [[]])
        cache.advance(tokens.shape[1])
        drawn = step(model, tokens, cache, scale, temperature,
                     noise[:, done:done + window]) + config.text_vocab
        if compiled:  # after the long prefix, which has another shape
            step = compiled_next_codes(device.type == "cuda")
        right = (drawn == ids[:, P + done:end]).all(0).cumprod(0)
        accepted = min(1 + int(right[:-1].sum()), n - done)
        ids[:, P + done:end] = drawn
        done += accepted
        cache.length = P + done - 1  # the rest is written over
        bar.update(accepted)
    bar.close()
    return ids[:, P:P + n] - config.text_vocab

@functools.cache
def compiled_next_codes(gpu):
    """`next_codes` compiled: a CUDA graph on a GPU, C++ on a CPU, with the
    weights joined (q, k and v are one product) in a faster layout."""
    torch._dynamo.config.recompile_limit = 64
    torch._inductor.config.freezing = not gpu
    torch._inductor.config.cpp_wrapper = not gpu
    torch._inductor.config.cpp.enable_concat_linear = True
    return torch.compile(next_codes, fullgraph=True, dynamic=False,
                         mode="reduce-overhead" if gpu else "default")

def generate(model, tokenizer, text, prompt, seconds=10, cfg_scale=None,
             top_k=50, temperature=None, seed=0, reencode=True, **options):
    """Yield a video clip by clip, uint8 (T, H, W, 3): 65 frames, then 60 at
    a time, round(6.5 * seconds) in all. See `generate_batch`."""
    for clips in generate_batch(model, tokenizer, text, [prompt], seconds,
                                cfg_scale, top_k, temperature, [seed],
                                reencode, **options):
        yield clips[0]

@torch.inference_mode()
def generate_batch(model, tokenizer, text, prompts, seconds=10,
                   cfg_scale=None, top_k=50, temperature=None, seeds=None,
                   reencode=True, start=None, compiled=False, quiet=True,
                   window=None):
    """`generate` for several prompts at once: yields uint8 (B, T, H, W, 3).

    prompts: strings or scenes, see `scene_at`. cfg_scale, temperature: by
    default the preset's. start: 5 frames to go on from, uint8 (5, H, W, 3).
    window: see `generate_tokens`; by default 16 for one prompt, 1 for more.
    reencode=False goes on from the old tokens of the last 2 latent frames
    (Fig. 6), which were made with all earlier frames as context.
    """
    config, device = model.config, model.lm_head.weight.device
    longest, h, w = config.latent_shape
    if cfg_scale is None:
        cfg_scale = config.cfg_scale
    B, temperature = len(prompts), temperature or config.temperature
    generators = [torch.Generator(device).manual_seed(seed) for seed in seeds or range(B)]
    window = window or (16 if B == 1 else 1)
    cache = KVCache(model, B * (1 + (cfg_scale != 1)), compiled, window)
    context = None if start is None else np.stack([start] * B)
    tokens, made, total = None, 0, round(FPS * seconds)
    while made < total:
        # what is known: nothing, or the last 5 frames as 2 latent frames
        known = torch.empty(B, 0, h, w, dtype=torch.int64, device=device)
        if tokens is not None and not reencode:
            known = tokens[:, -latent_frames(CONTEXT):]
        elif context is not None:
            with autocast(device):
                known = tokenizer.encode(to_float(context).to(device))
        # the rest of this clip; frames: with the known ones
        overlap = 0 if context is None else CONTEXT
        frames = min(video_frames(longest), overlap + total - made)
        n = (latent_frames(frames) - known.shape[1]) * h * w
        texts = [text.encode(scene_at(p, made / FPS)) for p in prompts]
        prefix = torch.cat([prefix_tokens(config, texts).to(device),
                            known.flatten(1) + config.text_vocab], 1)
        codes = generate_tokens(model, prefix, n, cfg_scale, top_k,
                                temperature, generators, compiled, quiet,
                                cache, window)
        tokens = torch.cat([known, codes.view(B, -1, h, w)], 1)
        # one by one: in a batch, pixels may round differently
        clip = [to_uint8(tokenizer.decode(t)) for t in tokens.split(1)]
        clip = np.concatenate(clip)  # (B, T, H, W, 3)
        context = clip[:, -CONTEXT:]  # uint8, as written to a file
        yield clip[:, overlap:frames]
        made += frames - overlap

def scene_at(prompt, second):
    """The prompt of a clip that starts at `second`. From [(start, string),
    ...] the last with start <= second + HALF_CLIP."""
    if isinstance(prompt, str):
        return prompt
    return [words for start, words in prompt if start <= second + HALF_CLIP][-1]

# ---- plumbing: loading, speed, arguments ----

def load(path=None, device="cpu"):
    """A trained model: (Llama, VideoTokenizer, TextTokenizer).

    path: a stageN.pt, or a folder, for its latest stage; None: the shipped
    toy, whose tokenizer also serves folders without one.
    """
    path = Path(path or SHIPPED)
    if path.is_dir():
        stages = [path / f"stage{i}.pt" for i in (3, 2, 1)]
        path = next(filter(Path.exists, stages), stages[0])
    saved, folder = read_checkpoint(path, "stage"), path.parent
    own = (folder / "tokenizer.pt").exists()
    tokenizer, digest = load_tokenizer(folder if own else None, device)
    if saved["tokenizer_hash"] != digest:
        raise ValueError(f"{path} was trained on another tokenizer's tokens")
    model = load_decoder(saved, device)
    return model, tokenizer, TextTokenizer(model.config.text_tokenizer)

@functools.cache
def fast_dtype(device_type):
    """The faster of "bfloat16" and "float32". On a CPU a trial decides."""
    if device_type != "cpu":
        return "bfloat16"
    x = torch.ones(512, 512)
    half, full = (min(timeit.repeat(lambda: a @ a, number=1))
                  for a in (x.bfloat16(), x))
    return "bfloat16" if half < full else "float32"

def autocast(device, dtype=None):
    """Compute in `dtype`, by default in the faster one."""
    dtype = dtype or fast_dtype(device.type)
    return torch.autocast(device.type, torch.bfloat16, dtype == "bfloat16")

def set_threads(model):
    """One thread for a small model, unless OMP_NUM_THREADS is set: on a CPU,
    threads stall each other as soon as another process is busy."""
    size = sum(p.numel() for p in model.parameters())
    if size < 20e6 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)

def write_video(path, clips, fps=FPS):
    """Write clips, each uint8 (T, H, W, 3), to an .mp4 of `fps` frames/s. It
    grows as NAME.part.mp4, which plays even after a crash, and gets its own
    name at the end or when interrupted."""
    part, written = part_of(path), 0
    options = {"movflags": "hybrid_fragmented", "frag_duration": "1000000",
               "flush_packets": "1"}
    try:
        with av.open(part, "w", options=options) as file:
            # zerolatency, or x264 would keep the last seconds to itself
            stream = file.add_stream(
                "libx264", Fraction(fps), pix_fmt="yuv420p", thread_count=1,
                options={"tune": "zerolatency"})
            for frame in itertools.chain.from_iterable(clips):
                if not written:
                    stream.height, stream.width = frame.shape[:2]
                picture = av.VideoFrame.from_ndarray(frame, "rgb24")
                file.mux(stream.encode(picture))
                written += 1
            file.mux(stream.encode() if written else [])
    finally:
        if written:
            part.replace(path)
            print(f"{written} frames -> {path}")
        else:
            part.unlink(missing_ok=True)

def part_of(path):
    return Path(path).with_suffix(".part.mp4")

def check_out(path, source=None):
    """Refuse an --out that would overwrite the video `source`."""
    if not path.endswith(".mp4"):
        raise ValueError("--out must end in .mp4")
    written = Path(path).resolve(), part_of(path).resolve()
    if source and Path(source).resolve() in written:
        raise ValueError(f"--out would replace {source}")

def parse():
    p = argparse.ArgumentParser(description="A prompt -> a video.")
    add, cuda = p.add_argument, torch.cuda.is_available()
    add("--prompt", default="")
    add("--at", nargs=2, action="append", default=[],
        metavar=("SECOND", "PROMPT"), help="from the nearest clip on")
    add("--continue-from", metavar="VIDEO", help="go on from its end")
    add("--ckpt", help="folder or stageN.pt")
    add("--seconds", type=float, default=10)
    add("--out", default="sample.mp4", metavar="VIDEO.mp4")
    add("--cfg-scale", type=float, help="guidance")
    add("--top-k", type=int, default=50)
    add("--temperature", type=float)
    add("--seed", type=int, default=0)
    add("--window", type=int, default=16, help="tokens guessed at once; 1: none")
    add("--no-reencode", action="store_true", help="see Fig. 6")
    add("--compile", action=argparse.BooleanOptionalAction, default=cuda)
    add("--device", default="cuda" if cuda else "cpu")
    args = p.parse_args()
    positive = args.top_k, FPS * args.seconds - 0.5, args.temperature, args.window
    if not all(x is None or 0 < x < math.inf for x in positive):
        raise ValueError("--top-k, --seconds, --temperature and --window must be positive")
    if not math.isfinite(args.cfg_scale or 0) or args.seed < 0:
        raise ValueError("--cfg-scale must be finite, --seed at least 0")
    later = sorted((float(second), prompt) for second, prompt in args.at)
    first = 60 if args.continue_from else 65  # frames of the first clip
    starts = [0, *np.arange(first, round(FPS * args.seconds), 60) / FPS]
    last = starts[-1] + HALF_CLIP
    if not all(0 < second <= last for second, _ in later):
        raise ValueError(f"--at needs a second up to {last:.1f}")
    args.scenes = [(0, args.prompt), *later]
    check_out(args.out, args.continue_from)
    return args

def main():
    args = parse()
    model, tokenizer, text = load(args.ckpt, args.device)
    set_threads(model)
    start = None
    if args.continue_from:
        start = read_clip(args.continue_from, CONTEXT, FPS,
                          tokenizer.config.resolution, last=True)
    write_video(args.out, generate(
        model, tokenizer, text, args.scenes, args.seconds, args.cfg_scale,
        args.top_k, args.temperature, args.seed, not args.no_reencode,
        start=start, compiled=args.compile, quiet=False, window=args.window))

if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as e:
        sys.exit(f"sample.py: {e}")
    except KeyboardInterrupt:
        sys.exit(130)
