"""sample.py - prompt -> minute-long video (Sec. 3.3 "Inference Strategies", Sec. 4.1 "Inference").

    python sample.py --prompt "a small red circle moves left and right slowly on a gray background" --seconds 60
    python sample.py --prompt "..." --at 20 "..." --seconds 600 --out - | ffplay -      # endless, other prompts on the way
    python sample.py --continue-from clip.mp4 --prompt "..." --upscale                  # from a video; super-resolution
    python sample.py --prompts prompts.txt --num-samples 4                              # many at once

The model first writes the tokens of 65 frames (10 s), one after the other. To go on, the clip is decoded, its last 5
frames are encoded again (2 latent frames, now with the tokens that the *start* of a clip has), and the model writes the
remaining 15 latent frames = 60 new frames; and so on for as long as you like, in flat memory. Each token is drawn from
the top k of the guided distribution:

    guided = uncond + scale * (cond - uncond)          classifier-free guidance, 7.5 in the paper
    next   ~ softmax(top_k(guided / temperature))      k = 50 in the paper
"""
import argparse
import contextlib
import dataclasses
import functools
import hashlib
import os
import pickle
import sys
import time
import warnings
from fractions import Fraction

import av
import imageio.v3
import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from tqdm import tqdm

from data import FPS, TextTokenizer, read_clip, to_float, to_uint8
from model import KVCache, Llama, ModelConfig, prefix_tokens
from tokenizer import TokenizerConfig, VideoTokenizer

SHIPPED = os.path.join(os.path.dirname(os.path.abspath(__file__)), "checkpoints", "toy")
CONTEXT_FRAMES = 5  # the last 5 frames condition the next clip (Sec. 4.1): 2 latent frames

# ---------------------------------------------------------------------------------------------------------------------
# checkpoints

def load_checkpoint(path, kind=None):
    """A checkpoint of train.py as a dict of plain types and tensors on the CPU; loading runs no code. One of --fsdp
    names a folder of slices in the place of its weights: see `whole_weights`.

    kind: the stage's name it must have ("tokenizer", "stage1", ...). Raises ValueError if it is no such checkpoint.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        found = checkpoint["kind"]
    except FileNotFoundError as e:
        raise ValueError(f"{path} does not exist") from e
    except (RuntimeError, pickle.UnpicklingError, EOFError, LookupError, TypeError, OSError, ValueError) as e:
        raise ValueError(f"{path} is no checkpoint of train.py, or is cut short") from e
    if kind and found != kind:
        raise ValueError(f"{path} holds {found}, not {kind}")
    return checkpoint


def whole_weights(path, checkpoint):
    """The state dict of the checkpoint at `path`, put together if --fsdp saved it in slices."""
    if "shards" not in checkpoint:
        return checkpoint["weights"]
    whole = {name: torch.empty(shape) for name, shape in checkpoint["shapes"].items() if name.startswith("weights.")}
    load_shards(path, checkpoint, whole)
    return {name.removeprefix("weights."): weight for name, weight in whole.items()}


def load_shards(path, checkpoint, state):
    """Fill the tensors of `state`, whole or sliced over any number of ranks, from the folder of slices that the
    checkpoint at `path` names. Raises ValueError if it is missing or damaged."""
    try:
        import torch.distributed.checkpoint as dcp
        from safetensors import SafetensorError, safe_open
    except ImportError as e:
        raise ValueError(f"{path} was saved by --fsdp: pip install safetensors") from e
    folder = os.path.join(os.path.dirname(path), os.path.basename(checkpoint["shards"]))
    try:
        for name in os.listdir(folder):
            with safe_open(os.path.join(folder, name), "pt"):
                pass  # is whole
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that one process reads alone is meant
            dcp.load(state, storage_reader=dcp.HuggingFaceStorageReader(folder), no_dist=not dist.is_initialized())
    except (OSError, SafetensorError, dcp.CheckpointException) as e:
        raise ValueError(f"{folder} is missing or damaged") from e


def build(cls, config):
    """A config dataclass from a checkpoint's dict. Raises ValueError if it is another's."""
    if {f.name for f in dataclasses.fields(cls)} != config.keys():
        raise ValueError(f"a checkpoint of another kind: its settings are no {cls.__name__}")
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in config.items()})


def load_tokenizer(folder=None, device="cpu"):
    """The tokenizer of a folder (None: the shipped one), in eval mode -> (VideoTokenizer, hash of its weights).

    Its weights are rounded to bfloat16 before anything is encoded or hashed, so the small checkpoint that ships and the
    one training wrote are the same tokenizer. Raises ValueError if there is none.
    """
    checkpoint = load_checkpoint(os.path.join(folder or SHIPPED, "tokenizer.pt"), "tokenizer")
    weights = {k: v.bfloat16() for k, v in checkpoint["weights"].items()}
    digest = hashlib.sha256()
    for name in sorted(weights.keys() - {"vq.usage"}):  # a record of training, it changes no token
        digest.update(name.encode() + weights[name].contiguous().view(torch.int16).numpy().tobytes())
    tokenizer = VideoTokenizer(build(TokenizerConfig, checkpoint["config"]))
    tokenizer.load_state_dict(weights)
    return tokenizer.to(device).eval().requires_grad_(False), digest.hexdigest()[:16]


def load(path=None, device="cpu", int8=False):
    """A trained model for sampling -> (Llama, VideoTokenizer, TextTokenizer), in eval mode.

    path: a checkpoint folder (its latest stage is taken) or a stageN.pt file; None for the shipped toy weights. A
    folder without a tokenizer.pt was trained on the shipped tokenizer. bfloat16 weights on a GPU, float32 on a CPU,
    with int8 those of the layers as int8. Raises ValueError if there is no checkpoint, or model and tokenizer do not
    belong together.
    """
    path = path or SHIPPED
    folder = path if os.path.isdir(path) else os.path.dirname(path) or "."
    if path == folder:
        stages = [os.path.join(path, f"stage{n}.pt") for n in (3, 2, 1)]
        path = next((s for s in stages if os.path.exists(s)), stages[0])
    checkpoint = load_checkpoint(path)
    if not checkpoint["kind"].startswith("stage"):
        raise ValueError(f"{path} holds a {checkpoint['kind']}, not a language model")
    own = os.path.exists(os.path.join(folder, "tokenizer.pt"))
    tokenizer, tokenizer_hash = load_tokenizer(folder if own else None, device)
    if checkpoint["tokenizer_hash"] != tokenizer_hash:
        raise ValueError(f"{path} was trained on the tokens of another tokenizer than the one beside it")
    with torch.device("meta"):  # no memory and no initialisation: the weights come from the file
        model = Llama(build(ModelConfig, checkpoint["config"]))
    model.load_state_dict(whole_weights(path, checkpoint), assign=True)
    model.to(device, torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16)
    model = model.quantize() if int8 else model.fuse()
    return model.eval().requires_grad_(False), tokenizer, TextTokenizer(model.config.text_tokenizer)

# ---------------------------------------------------------------------------------------------------------------------
# tokens

def next_codes(model, tokens, cache, cfg_scale, temperature, noise):
    """Feed tokens (B, S), or (2B, S) with guidance, and draw each row's next code, (B, 1) int64, from its top k: noise
    (B, k) is drawn from Exp(1), and the argmax of p / noise is a draw from p. cfg_scale, temperature: 0-d tensors."""
    logits = model.video_logits(tokens, cache)
    if len(logits) > len(noise):
        cond, uncond = logits.chunk(2)
        logits = uncond + cfg_scale * (cond - uncond)
    best, ids = torch.topk(logits / temperature, noise.shape[1])
    return ids.gather(1, (best.softmax(-1) / noise).argmax(-1, keepdim=True))


@functools.cache
def compiled_next_codes():
    """One step as one graph, which a GPU replays without a launch of its own for each kernel; on a CPU it is one
    C++ function, with the weights laid out anew (freezing)."""
    torch._dynamo.config.recompile_limit = 64  # four spans of the cache for each number of rows
    gpu = torch.cuda.is_available()
    torch._inductor.config.freezing = torch._inductor.config.cpp_wrapper = not gpu
    torch._inductor.config.cpp.min_chunk_size = 16384  # a CPU's small kernels: one core is faster than waiting for others
    return torch.compile(next_codes, fullgraph=True, dynamic=False, mode="reduce-overhead" if gpu else "default")


@torch.inference_mode()
def generate_tokens(model, prefix, n, cfg_scale, top_k, temperature, generator, on_token=lambda: None, compiled=False,
                    cache=None):
    """Write the next n video tokens of each row.

    prefix (B, text_len + 3 + known video tokens) int64 vocabulary ids; generator: one torch.Generator a row (on the
    model's device), so that a row's tokens do not depend on its neighbours. Returns codes (B, n) int64 in
    0..codebook_size-1. Guidance pairs each row with the empty caption, as one batch of 2B over one static KV cache;
    at cfg_scale 1 there is nothing to guide and the pair is left out. on_token is called after every step. compiled:
    torch.compile the step. cache: memory of an earlier call to use again, for as many rows.
    """
    config, rows = model.config, len(prefix)
    guided = cfg_scale != 1
    if guided:
        empty = prefix.clone()
        empty[:, :config.text_len + 3] = prefix_tokens(config, [[]]).to(prefix.device)
        prefix = torch.cat([prefix, empty])
    cache = cache or memory(model, rows, cfg_scale)
    cache.length = 0
    noise = torch.stack([torch.empty(n, min(top_k, config.video_vocab), device=prefix.device).exponential_(generator=g)
                         for g in generator], 1)  # (n, B, k): drawn beforehand, each row's from its own generator
    codes = torch.empty(rows, n, dtype=torch.int64, device=prefix.device)
    scale_and_temperature = torch.tensor([cfg_scale, temperature], device=prefix.device).unbind()
    tokens, span, later = prefix, 0, compiled_next_codes() if compiled else next_codes
    for i in range(n):
        cache.advance(tokens.shape[1])
        step = later if i else next_codes  # the prefix has a shape of its own
        checked = i > 1 and cache.span == span  # whether this graph may be used is looked at once a span, not every step
        span = cache.span
        with torch.compiler.set_stance("default", skip_guard_eval_unsafe=checked):
            codes[:, i:i + 1] = step(model, tokens, cache, *scale_and_temperature, noise[i])
        tokens = (codes[:, i:i + 1] + config.text_vocab).repeat(1 + guided, 1)
        on_token()
    return codes


def memory(model, rows, cfg_scale):
    """A KVCache for whole clips of `rows` prompts."""
    c, head = model.config, model.lm_head.weight
    return KVCache(c, rows * (1 if cfg_scale == 1 else 2), c.max_len, head.dtype, head.device)

# ---------------------------------------------------------------------------------------------------------------------
# video

def generate(model, tokenizer, text, prompt, seconds=10, cfg_scale=None, top_k=50, temperature=None, seed=0,
             reencode=True, **how):
    """Yield the new frames of one video clip by clip, uint8 (T, H, W, 3): 65, then 60 at a time, the last clip cut so
    that the total is round(6.5 * seconds). cfg_scale, temperature: None is the preset's. See `generate_batch`."""
    for clips in generate_batch(model, tokenizer, text, [prompt], seconds, cfg_scale, top_k, temperature, [seed],
                                reencode, **how):
        yield clips[0]


@torch.inference_mode()
def generate_batch(model, tokenizer, text, prompts, seconds=10, cfg_scale=None, top_k=50, temperature=None, seeds=None,
                   reencode=True, start=None, on_token=lambda: None, compiled=False):
    """`generate` for several prompts at once: yields uint8 (B, T, H, W, 3). seeds: one a prompt (0, 1 ...).

    prompts: strings, or scenes [(second, string), ...], the first at 0, each from the nearest clip border on (see
    `scene_at`). start: 5 frames to go on from, uint8 (5, H, W, 3), which are not yielded again. on_token, compiled: see
    `generate_tokens`. reencode False conditions each extension on the old tokens instead, the paper's comparison in
    Fig. 6: those were made with all earlier frames as context, the start of a clip has none, and the model sees inputs
    it never met. Raises ValueError if `seconds` is under one frame, or there are not as many seeds as prompts.
    """
    config, device = model.config, model.lm_head.weight.device
    longest, h, w = config.latent_shape
    cfg_scale = config.cfg_scale if cfg_scale is None else cfg_scale
    temperature = config.temperature if temperature is None else temperature
    generators = [torch.Generator(device).manual_seed(s) for s in (range(len(prompts)) if seeds is None else seeds)]
    if len(generators) != len(prompts):
        raise ValueError(f"{len(generators)} seeds for {len(prompts)} prompts")
    context = None if start is None else np.stack([start] * len(prompts))  # the last 5 frames, (B, 5, H, W, 3)
    tokens, cache, clips = None, memory(model, len(prompts), cfg_scale), plan(seconds, longest, start is not None)
    for made, new_frames, new_latents in clips:
        prefix = prefix_tokens(config, [text.encode(scene_at(p, made, clips)) for p in prompts]).to(device)
        if context is None:
            known = torch.empty(len(prompts), 0, h, w, dtype=torch.int64, device=device)
        elif reencode or tokens is None:
            with torch.autocast(device.type, torch.bfloat16):  # as the model's training clips were encoded
                known = tokenizer.encode(to_float(context).to(device))  # 2 latent frames
        else:
            known = tokens[:, -2:]
        codes = generate_tokens(model, torch.cat([prefix, known.flatten(1) + config.text_vocab], 1), new_latents * h * w,
                                cfg_scale, top_k, temperature, generators, on_token, compiled, cache)
        tokens = torch.cat([known, codes.view(len(prompts), -1, h, w)], 1)  # (B, t, h, w)
        # one at a time: decoded together, videos would round a pixel otherwise than alone
        clip = np.concatenate([to_uint8(tokenizer.decode(t)) for t in tokens.split(1)])  # (B, T, H, W, 3)
        fresh = clip if context is None else clip[:, CONTEXT_FRAMES:]
        context = clip[:, -CONTEXT_FRAMES:]
        yield fresh[:, :new_frames]


def scene_at(prompt, frame, clips):
    """What a frame shows: of scenes [(second, string), ...] the last one whose nearest clip border is not after it.
    clips: the `plan` of the video."""
    if isinstance(prompt, str):
        return prompt
    borders = [made for made, *_ in clips]
    return [words for second, words in prompt if min(borders, key=lambda b: abs(b - FPS * second)) <= frame][-1]


def plan(seconds, longest, started=False):
    """The clips of a video: [(frames made before, new frames, latent frames to write)], longest = 17 latent frames.
    started: there are frames to go on from."""
    total, made, clips = round(FPS * seconds), 0, []
    if total < 1:
        raise ValueError(f"{seconds} seconds at {FPS} frames/s is not even one frame")
    while made < total:
        extends = started or made
        new = min(total - made, 4 * (longest - 2) if extends else 4 * longest - 3)
        clips.append((made, new, -(-new // 4) if extends else 1 - (-(new - 1) // 4)))
        made += new
    return clips

# ---------------------------------------------------------------------------------------------------------------------
# super-resolution and refinement (Sec. 3.3): off-the-shelf models, a stream of frames through each

class Windows:
    """Passes frames on to `sink` through `enhance`, a window of `size` frames at a time: enhance(uint8 (T, h, w, 3),
    number of the first of them) -> (T, H, W, 3). Windows overlap and fade into each other there, so a long video has no
    seams, and memory stays flat."""

    def __init__(self, enhance, sink, size=16, overlap=4):
        self.enhance, self.sink, self.size, self.overlap = enhance, sink, size, overlap
        self.waiting, self.tail, self.first = None, None, 0  # frames to come, the enhanced end of the last window

    def write(self, frames):
        self.waiting = frames if self.waiting is None else np.concatenate([self.waiting, frames])
        while len(self.waiting) >= self.size:
            self.emit(self.waiting[:self.size], self.overlap)
            self.waiting = self.waiting[self.size - self.overlap:]
            self.first += self.size - self.overlap

    def emit(self, window, keep):
        new = self.enhance(window, self.first)
        if self.tail is not None:
            fade = np.linspace(0, 1, len(self.tail) + 2)[1:-1, None, None, None]
            new[:len(self.tail)] = np.rint((1 - fade) * self.tail + fade * new[:len(self.tail)])
        self.tail = new[len(new) - keep:]
        self.sink.write(new[:len(new) - keep])

    def close(self):
        with contextlib.closing(self.sink):
            if self.waiting is not None and (0 if self.tail is None else self.overlap) < len(self.waiting) < self.size:
                self.emit(self.waiting, 0)
            elif self.tail is not None:  # a whole window waits only after an interrupt: it is dropped
                self.sink.write(self.tail)


def pipeline(name, model, device, **parts):
    """A pipeline of diffusers; parts: {argument: (class name, model)}. Raises ValueError if it cannot be had."""
    try:
        import diffusers
        import transformers
    except ImportError as e:
        raise ValueError("--upscale and --refine need: pip install diffusers transformers accelerate") from e
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
    dtype = torch.float32 if device == "cpu" else torch.float16
    try:
        parts = {k: getattr(diffusers, cls).from_pretrained(m, dtype=dtype) for k, (cls, m) in parts.items()}
        pipe = getattr(diffusers, name).from_pretrained(model, dtype=dtype, **parts)
    except Exception as e:  # many kinds: offline, no such model, a folder of something else
        raise ValueError(f"cannot load {model} as {name} ({str(e).splitlines()[0] if str(e) else type(e).__name__})") from e
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def upscaler(model, steps, seed, device):
    """-> enhance(frames, prompt): four times as wide and high. model: of StableDiffusionUpscalePipeline, or "lanczos"."""
    if model == "lanczos":
        return lambda frames, prompt: np.stack([Image.fromarray(f).resize((4 * f.shape[1], 4 * f.shape[0]), Image.LANCZOS)
                                                for f in frames])
    pipe = pipeline("StableDiffusionUpscalePipeline", model, device)

    def enhance(frames, prompt):
        same = [torch.Generator().manual_seed(seed) for _ in frames]  # one noise for all: what stands still stays still
        return from_unit(pipe([prompt] * len(frames), [Image.fromarray(f) for f in frames], num_inference_steps=steps,
                              generator=same, output_type="np").images)
    return enhance


def refiner(models, steps, seed, device):
    """-> enhance(frames, prompt): new detail that moves with the frames. models: a Stable Diffusion, an AnimateDiff motion
    adapter and a ControlNet that keeps to the given frames."""
    base, adapter, controlnet = models
    pipe = pipeline("AnimateDiffVideoToVideoControlNetPipeline", base, device,
                    motion_adapter=("MotionAdapter", adapter), controlnet=("ControlNetModel", controlnet))

    def enhance(frames, prompt):
        video = [Image.fromarray(f) for f in frames]
        return from_unit(pipe(video=video, conditioning_frames=video, prompt=prompt, height=frames.shape[1],
                              width=frames.shape[2], strength=0.5, num_inference_steps=steps, output_type="np",
                              generator=torch.Generator().manual_seed(seed)).frames[0])
    return enhance


def from_unit(images):
    return np.rint(np.asarray(images) * 255).astype(np.uint8)

# ---------------------------------------------------------------------------------------------------------------------
# command line

def gif_durations(n, fps):
    """How long to show each of n pictures, in ms: a gif counts in hundredths of a second, so they differ by one of these."""
    return np.diff(np.arange(n + 1) * 1000 / fps // 10 * 10).tolist()


class Writer:
    """Appends frames to an .mp4 (H.264, yuv420p) or .gif file at 6.5 frames/s, or to "-", the standard output.

    The file appears when closed. An .mp4 grows under the name NAME.part.mp4 until then, in fragments that play while it
    is written and survive a crash; a .gif is kept in memory.
    """

    def __init__(self, path):
        self.path, ending = path, os.path.splitext(path)[1].lower()
        self.frames, self.stream, self.pictures = 0, None, []  # a gif has pictures, no stream
        self.part = f"{path[:-4]}.part{ending}"
        options = {"movflags": "hybrid_fragmented", "frag_duration": "1000000", "flush_packets": "1"}  # microseconds
        if path == "-":
            self.part, options["movflags"] = "pipe:1", "empty_moov+default_base_moof"
        if ending != ".gif":
            self.file = av.open(self.part, "w", format="mp4", options=options)
            # no frame waits for later ones; and with its macroblock tree x264 did not repeat itself to the bit
            self.stream = self.file.add_stream("libx264", rate=Fraction(FPS), options={"tune": "zerolatency"})
            self.stream.pix_fmt, self.stream.thread_count = "yuv420p", 1

    def write(self, frames):
        for frame in frames:  # uint8 (T, H, W, 3)
            if not self.stream:
                self.pictures.append(frame)
            else:
                if not self.stream.codec_context.is_open:
                    self.stream.height, self.stream.width = frame.shape[:2]
                self.file.mux(self.stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
            self.frames += 1

    def close(self):
        if self.stream:
            self.file.mux(self.stream.encode() if self.frames else [])
            self.file.close()
        elif self.frames:
            imageio.v3.imwrite(self.part, np.stack(self.pictures), duration=gif_durations(self.frames, FPS), loop=0)
        if self.path == "-":
            return
        if self.frames:
            os.replace(self.part, self.path)
            print(f"{self.frames} frames at {FPS} frames/s -> {self.path}")
        elif os.path.exists(self.part):  # interrupted before the first clip: what stood there stays
            os.remove(self.part)


def read_rate(device):
    """Bytes/s that this machine reads from memory: the limit of decoding, as every step reads all the weights."""
    x, best = torch.ones(2 ** 26, device=device), 0
    for _ in range(5):
        began = time.perf_counter()
        x.sum().item()
        best = max(best, x.nbytes / (time.perf_counter() - began))
    return best


def step_bytes(model, rows):
    """Bytes that one step of decoding reads, half of a full KV cache of `rows` rows among them."""
    c = model.config
    layers = sum(weight.nbytes for weight in model.model.layers.state_dict().values())
    cached = rows * c.n_layers * c.dim * c.max_len  # keys and values, half full
    return layers + (c.dim * c.video_vocab + cached) * model.lm_head.weight.element_size()


def settings():
    p = argparse.ArgumentParser(description="Generate videos from prompts.")
    what = p.add_mutually_exclusive_group()
    what.add_argument("--prompt", help="what to show; an empty prompt samples unconditionally")
    what.add_argument("--prompts", metavar="FILE", help="a prompt a line, a video each: NAME-000.mp4, NAME-001.mp4 ...")
    p.add_argument("--at", nargs=2, action="append", default=[], metavar=("SECOND", "PROMPT"),
                   help="what to show from there on, at the nearest clip border; may be given again")
    p.add_argument("--num-samples", type=int, default=1, help="videos of each prompt")
    p.add_argument("--batch-size", type=int, default=16, help="videos made at once")
    p.add_argument("--continue-from", metavar="VIDEO", help="go on from its last 5 frames (they are not repeated)")
    p.add_argument("--ckpt", help="checkpoint folder, or a stageN.pt file (default: the shipped toy weights)")
    p.add_argument("--seconds", type=float, default=10, help="length of the video, at 6.5 frames/s")
    p.add_argument("--out", default="sample.mp4", help=".mp4 or .gif, or - for an mp4 on the standard output")
    p.add_argument("--cfg-scale", type=float, help="guidance (default: the preset's; 1 is none)")
    p.add_argument("--top-k", type=int, default=50)
    p.add_argument("--temperature", type=float, help="(default: the preset's; 1 in the paper)")
    p.add_argument("--seed", type=int, default=0, help="of the first video; the next one's is one more")
    p.add_argument("--no-reencode", action="store_true", help="extend from the old tokens (Fig. 6's comparison)")
    p.add_argument("--compile", action=argparse.BooleanOptionalAction, default=torch.cuda.is_available(),
                   help="torch.compile the decoding step (default: on a GPU)")
    p.add_argument("--int8", action="store_true", help="weights of the layers as int8: half the memory, and to read")
    p.add_argument("--upscale", action="store_true", help="four times as wide and high")
    p.add_argument("--upscale-method", choices=["diffusion", "lanczos"], default="diffusion")
    p.add_argument("--upscale-model", default="stabilityai/stable-diffusion-x4-upscaler")
    p.add_argument("--refine", action="store_true", help="add detail by AnimateDiff and a ControlNet, after --upscale")
    p.add_argument("--refine-models", nargs=3, metavar=("BASE", "ADAPTER", "CONTROLNET"),
                   default=["stable-diffusion-v1-5/stable-diffusion-v1-5", "guoyww/animatediff-motion-adapter-v1-5-3",
                            "lllyasviel/control_v11f1e_sd15_tile"])
    p.add_argument("--diffusion-steps", type=int, default=25, help="of --upscale and --refine")
    args = p.parse_args()
    if min(args.top_k, args.num_samples, args.batch_size, args.diffusion_steps) < 1:
        raise ValueError("--top-k, --num-samples, --batch-size and --diffusion-steps must be at least 1")
    if not 0 <= args.seed < 2 ** 63:
        raise ValueError("--seed must be from 0 to 2^63 - 1")
    if args.temperature is not None and not args.temperature > 0:
        raise ValueError("--temperature must be above 0")
    if not 0 < args.seconds < float("inf"):
        raise ValueError(f"--seconds must be a positive number, not {args.seconds}")
    if args.prompts:
        with open(args.prompts) as f:
            prompts = [line.strip() for line in f if line.strip()]
        if not prompts:
            raise ValueError(f"{args.prompts}: no prompt in it")
    elif args.prompt is not None or args.continue_from:
        prompts = [args.prompt or ""]
    else:
        raise ValueError("--prompt is needed, or --prompts, or --continue-from")
    try:
        scenes = sorted((float(second), words) for second, words in args.at)
    except ValueError:
        scenes = [(0, "")]
    if not all(0 < second < args.seconds for second, _ in scenes):
        raise ValueError("--at needs a second inside the video, and a prompt")
    rows = [[(0, prompt), *scenes] for prompt in prompts for _ in range(args.num_samples)]
    name, ending = os.path.splitext(args.out)
    outs = [args.out] if len(rows) == 1 else [f"{name}-{i:03d}{ending}" for i in range(len(rows))]
    if len(rows) > 1 and args.out == "-":
        raise ValueError("--out - holds one video only")
    if args.out != "-" and ending.lower() not in (".mp4", ".gif"):
        raise ValueError(f"--out must end in .mp4 or .gif: {args.out}")
    if not os.access(os.path.dirname(args.out) or ".", os.W_OK) or any(map(os.path.isdir, outs)):
        raise ValueError(f"cannot write {args.out}")
    if args.continue_from and any(os.path.exists(out) and os.path.samefile(out, args.continue_from) for out in outs):
        raise ValueError(f"--out would replace {args.continue_from}, which is to be continued: give another")
    return args, rows, outs


def main():
    args, rows, outs = settings()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, tokenizer, text = load(args.ckpt, device, args.int8)
    start = None
    if args.continue_from:
        start = read_clip(args.continue_from, CONTEXT_FRAMES, FPS, tokenizer.config.resolution, last=True)
    longest, h, w = model.config.latent_shape
    clips = plan(args.seconds, longest, start is not None)
    steps = sum(n for _, _, n in clips) * h * w
    cfg_scale = model.config.cfg_scale if args.cfg_scale is None else args.cfg_scale
    enhancers = []  # from the last to the first
    if args.refine:
        enhancers.append(refiner(args.refine_models, args.diffusion_steps, args.seed, device))
    if args.upscale:
        method = args.upscale_model if args.upscale_method == "diffusion" else "lanczos"
        enhancers.append(upscaler(method, args.diffusion_steps, args.seed, device))

    def sink_of(prompt, out):
        sink = Writer(out)
        for enhance in enhancers:
            sink = Windows(lambda frames, first, enhance=enhance: enhance(frames, scene_at(prompt, first, clips)), sink)
        return contextlib.closing(sink)

    bytes_read = 0
    # whatever happens, the stack closes the videos, and what was made of them plays
    with tqdm(total=steps * len(rows), unit="token", desc=args.out) as bar, contextlib.ExitStack() as videos:
        for i in range(0, len(rows), args.batch_size):
            batch = rows[i:i + args.batch_size]
            sinks = [videos.enter_context(sink_of(*pair)) for pair in zip(batch, outs[i:])]
            for made in generate_batch(model, tokenizer, text, batch, args.seconds, cfg_scale, args.top_k, args.temperature,
                                       range(args.seed + i, args.seed + i + len(batch)), not args.no_reencode, start,
                                       lambda: bar.update(len(sinks)), args.compile):
                for sink, frames in zip(sinks, made):
                    sink.write(frames)
            videos.close()
            bytes_read += steps * step_bytes(model, len(batch) * (1 if cfg_scale == 1 else 2))
    elapsed = bar.format_dict["elapsed"]
    print(f"{bar.n / elapsed:.0f} tokens/s, all included, at {bytes_read / elapsed / read_rate(device):.0%} of the rate at "
          "which memory could be read for them", file=sys.stderr)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as e:
        sys.exit(f"sample.py: {e}")
    except KeyboardInterrupt:
        sys.exit(130)
