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
import sys
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
from tokenizer import SHIPPED, autocast, load_tokenizer, read_checkpoint, set_threads

CONTEXT = 5  # the last 5 frames condition the next clip (Sec. 4.1)

def next_codes(model, tokens, cache, scale, top_k, temperature, noise):
    """Feed tokens (B, n), or (2B, n) with guidance, and draw the codes that follow
    the last W of them, (B, W) int64. noise (B, W, video_vocab) is drawn from Exp(1),
    so that argmax(p / noise) is a draw from p (the exponential race)."""
    logits = model.next_logits(tokens, cache, noise.shape[1])
    if len(logits) > len(noise):  # guided: with the caption, then without
        cond, uncond = logits.chunk(2)
        logits = uncond + scale * (cond - uncond)
    best, codes = torch.topk(logits / temperature, top_k)
    drawn = (best.softmax(-1) / noise.gather(2, codes)).argmax(-1, keepdim=True)
    return codes.gather(2, drawn)[..., 0]

@torch.inference_mode()
def generate_tokens(model, prefix, n, cfg_scale, top_k, temperature,
                    generator, compiled=False, watch=None, cache=None, window=1):
    """Write the next n video tokens of each row -> codes (B, n) int64.

    prefix (B, text_len + 3 + known video tokens) int64 vocabulary ids;
    generator: one torch.Generator per row, on the model's device. Guidance
    pairs every row with the empty caption, in one batch of 2B; cfg_scale 1
    is no guidance. cache: an earlier call's, to be used again. watch(codes, n)
    is called after each pass, with all codes so far. window: see `jacobi`.
    """
    config, device = model.config, prefix.device
    top_k, window = min(top_k, config.video_vocab), min(window, n)
    B, P = prefix.shape
    noise = torch.ones(B, n + window, config.video_vocab, device=device)
    for row, g in zip(noise, generator):
        row[:n].exponential_(generator=g)
    # the prefix, and room for the codes and for guesses beyond the end
    ids = F.pad(prefix, (0, n + window), value=config.text_vocab)
    guided = cfg_scale != 1
    cache = cache or KVCache(model, B * (1 + guided), compiled, window)
    cache.length = 0
    # as tensors, so that what is compiled serves every value
    scale, temperature = torch.tensor([cfg_scale, temperature], device=device)

    def draw(i, W):
        """Feed what the cache lacks -> ids of the codes i ... i + W - 1, each
        drawn as if the ids before it were right."""
        tokens, step = ids[:, cache.length:P + i + W - 1], next_codes
        if guided:
            tokens = torch.cat([tokens, tokens])
        if i == 0 and guided:
            tokens[B:, :config.text_len + 3] = prefix_tokens(config, [[]])
        if i > 0 and compiled:  # not the prefix, which has another shape
            step = compiled_next_codes(device.type == "cuda")
        cache.advance(tokens.shape[1])
        codes = step(model, tokens, cache, scale, top_k, temperature, noise[:, i:i + W])
        return codes + config.text_vocab

    def one_by_one():
        for i in range(n):
            ids[:, P + i:P + i + 1] = draw(i, 1)
            yield i + 1

    guessed = jacobi(draw, ids, cache, P, n, window, *config.latent_shape[1:])
    for done in one_by_one() if window == 1 else guessed:
        if watch:
            watch(ids[:, P:P + done] - config.text_vocab, n)
    return ids[:, P:P + n] - config.text_vocab

def jacobi(draw, ids, cache, P, n, window, h, w):
    """What `one_by_one` writes, in fewer passes (Jacobi decoding, our choice).

    With the noise drawn beforehand, the codes are a function of the seed and can be
    guessed; each code has its own, so small changes of p seldom change a draw. A pass
    over `window` guesses draws what follows each: up to the first wrong one what one
    at a time would give, and after it better guesses for the next pass. First guessed
    is what followed, a frame later, when the same two codes last stood one above the
    other; else the code of the frame before. Of several rows the slowest decides."""
    places = torch.arange(ids.shape[1], device=ids.device)
    before = (places - h * w).clamp(min=0)  # the same place in the frame before
    done, new = 0, window
    while done < n:
        end = P + done + window
        known, unknown = slice(P + done), slice(end - new, end)
        pairs = ids[:, before] * 10**6 + ids[:, before + w]  # ids are smaller
        same = pairs[:, known, None] == pairs[:, None, unknown]
        last = (same * places[known, None]).amax(1)
        ids[:, unknown] = ids.gather(1, last.where(last > 0, before[unknown]))
        drawn = draw(done, window)
        right = (drawn == ids[:, P + done:end]).all(0).cumprod(0)
        new = min(1 + int(right[:-1].sum()), n - done)
        ids[:, P + done:end] = drawn
        done += new
        cache.length = P + done - 1  # the rest is written over
        yield done

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

def generate(model, tokenizer, text, prompt, seconds=10, seed=0, **options):
    """Yield a video clip by clip, uint8 (T, H, W, 3): 65 frames, then 60 at
    a time, round(6.5 * seconds) in all. options: see `generate_batch`."""
    for clips in generate_batch(model, tokenizer, text, [prompt], seconds,
                                seeds=[seed], **options):
        yield clips[0]

@torch.inference_mode()
def generate_batch(model, tokenizer, text, prompts, seconds=10, cfg_scale=None, top_k=50,
                   temperature=None, seeds=None, reencode=True, start=None, compiled=False,
                   watch=None, window=None):
    """`generate` for several prompts at once: yields uint8 (B, T, H, W, 3).

    cfg_scale, temperature: by default the preset's. start: 5 frames to go on
    from, uint8 (5, H, W, 3). reencode=False goes on from the old tokens of the
    last 2 latent frames (Fig. 6), which had all earlier frames as context.
    watch, window: see `generate_tokens`; the default is 32 guesses in all rows.
    """
    config, device = model.config, model.lm_head.weight.device
    longest, h, w = config.latent_shape
    cfg_scale = config.cfg_scale if cfg_scale is None else cfg_scale
    B, temperature = len(prompts), temperature or config.temperature
    generators = [torch.Generator(device).manual_seed(seed) for seed in seeds or range(B)]
    window = window or max(1, 32 // B)
    cache = KVCache(model, B * (1 + (cfg_scale != 1)), compiled, window)
    context = None if start is None else np.stack([start] * B)
    captions = prefix_tokens(config, [text.encode(p) for p in prompts]).to(device)
    tokens, made, total = None, 0, round(FPS * seconds)
    while made < total:
        # what is known: nothing, or the last 5 frames as 2 latent frames
        known = torch.empty(B, 0, h, w, dtype=torch.int64, device=device)
        if tokens is not None and not reencode:
            known = tokens[:, -latent_frames(CONTEXT):]
        elif context is not None:
            with autocast(device):
                known = tokenizer.encode(to_float(context).to(device))
        # what this clip lacks; `frames` counts the known ones, too
        overlap = 0 if context is None else CONTEXT
        frames = min(video_frames(longest), overlap + total - made)
        n = (latent_frames(frames) - known.shape[1]) * h * w
        prefix = torch.cat([captions, known.flatten(1) + config.text_vocab], 1)
        codes = generate_tokens(model, prefix, n, cfg_scale, top_k, temperature,
                                generators, compiled, watch, cache, window)
        tokens = torch.cat([known, codes.view(B, -1, h, w)], 1)
        # in float32, one by one: in a batch, pixels may round differently
        clip = np.concatenate([to_uint8(tokenizer.decode(t)) for t in tokens.split(1)])
        context = clip[:, -CONTEXT:]  # uint8, as written to a file
        yield clip[:, overlap:frames]
        made += frames - overlap

# ---- plumbing: loading, writing, arguments ----

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

def write_video(path, clips, fps=FPS):
    """Write clips, each uint8 (T, H, W, 3), to an .mp4 of `fps` frames/s. It
    grows as NAME.part.mp4, which plays even after a crash, and gets its own
    name at the end or when interrupted."""
    part, written = Path(path).with_suffix(".part.mp4"), 0
    options = {"movflags": "hybrid_fragmented", "frag_duration": "1000000",
               "flush_packets": "1"}
    try:
        with av.open(part, "w", options=options) as file:
            # zerolatency, or x264 would keep the last seconds to itself
            stream = file.add_stream("libx264", Fraction(fps), pix_fmt="yuv420p",
                                     thread_count=1, options={"tune": "zerolatency"})
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

def check_out(path, source=None):
    """Refuse an --out that would overwrite the video `source`."""
    if not path.endswith(".mp4"):
        raise ValueError("--out must end in .mp4")
    written = Path(path), Path(path).with_suffix(".part.mp4")
    if source and Path(source).resolve() in [p.resolve() for p in written]:
        raise ValueError(f"--out would replace {source}")

def parse():
    p = argparse.ArgumentParser(description="A prompt -> a video.")
    add, cuda = p.add_argument, torch.cuda.is_available()
    add("--prompt", default="")
    add("--at", nargs=2, action="append", default=[], metavar=("SECOND", "PROMPT"), help="a scene")
    add("--continue-from", metavar="VIDEO", help="go on from its end")
    add("--ckpt", help="folder or stageN.pt")
    add("--seconds", type=float, default=10)
    add("--out", default="sample.mp4", metavar="VIDEO.mp4")
    add("--cfg-scale", type=float, help="guidance")
    add("--top-k", type=int, default=50)
    add("--temperature", type=float)
    add("--seed", type=int, default=0)
    add("--window", type=int, help="guesses per pass (32); 1: plain")
    add("--no-reencode", action="store_true", help="see Fig. 6")
    add("--compile", action=argparse.BooleanOptionalAction, default=cuda)
    add("--device", default="cuda" if cuda else "cpu")
    args = p.parse_args()
    positive = args.top_k, FPS * args.seconds - 0.5, args.temperature, args.window
    if not all(x is None or 0 < x < math.inf for x in positive):
        raise ValueError("--top-k, --seconds, --temperature and --window must be positive")
    if not math.isfinite(args.cfg_scale or 0) or args.seed < 0:
        raise ValueError("--cfg-scale must be finite, --seed at least 0")
    cuts = [0, *(np.round(FPS * float(second)) / FPS for second, _ in args.at), args.seconds]
    if cuts != sorted(set(cuts)):
        raise ValueError("--at needs seconds that grow, between 0 and --seconds")
    args.scenes = zip([args.prompt, *(prompt for _, prompt in args.at)], np.diff(cuts))
    check_out(args.out, args.continue_from)
    return args

def main():
    args = parse()
    model, tokenizer, text = load(args.ckpt, args.device)
    set_threads(model, most=2)
    start = args.continue_from and read_clip(
        args.continue_from, CONTEXT, FPS, tokenizer.config.resolution, last=True)
    bar = tqdm(unit="token", leave=False)

    def watch(codes, n):  # of a clip
        bar.total = n
        bar.update(codes.shape[1] - bar.n)

    def clips():
        for i, (prompt, seconds) in enumerate(args.scenes):
            yield from generate(
                model, tokenizer, text, prompt, seconds, args.seed, cfg_scale=args.cfg_scale,
                reencode=not args.no_reencode, compiled=args.compile, start=None if i else start,
                top_k=args.top_k, temperature=args.temperature, window=args.window, watch=watch)

    write_video(args.out, clips())
    bar.close()

if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as e:
        sys.exit(f"sample.py: {e}")
    except KeyboardInterrupt:
        sys.exit(130)
