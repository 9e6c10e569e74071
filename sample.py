"""sample.py - prompt -> minute-long video (Sec. 3.3 "Inference Strategies", Sec. 4.1 "Inference").

    python sample.py --prompt "a small red circle moves left and right slowly on a gray background" --seconds 60

The model first writes the tokens of 65 frames (10 s), one after the other. To go on, the clip is decoded, its last 5
frames are encoded again (2 latent frames, now with the tokens that the *start* of a clip has), and the model writes the
remaining 15 latent frames = 60 new frames; and so on for as long as you like, in flat memory. Each token is drawn from
the top k of the guided distribution:

    guided = uncond + scale * (cond - uncond)          classifier-free guidance, 7.5 in the paper
    next   ~ softmax(top_k(guided / temperature))      k = 50 in the paper
"""
import argparse
import dataclasses
import hashlib
import os
import pickle
import sys
import warnings
from fractions import Fraction

import av
import imageio.v2
import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

from data import FPS, TextTokenizer, to_float, to_uint8
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
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError, OSError, ValueError) as e:
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


def load(path=None, device="cpu"):
    """A trained model for sampling -> (Llama, VideoTokenizer, TextTokenizer), in eval mode.

    path: a checkpoint folder (its latest stage is taken) or a stageN.pt file; None for the shipped toy weights. A
    folder without a tokenizer.pt was trained on the shipped tokenizer. bfloat16 weights on a GPU, float32 on a CPU.
    Raises ValueError if there is no checkpoint, or model and tokenizer do not belong together.
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
    return model.eval().requires_grad_(False), tokenizer, TextTokenizer(model.config.text_tokenizer)

# ---------------------------------------------------------------------------------------------------------------------
# tokens

@torch.inference_mode()
def generate_tokens(model, prefix, n, cfg_scale, top_k, temperature, generator, on_token=lambda: None):
    """Write the next n video tokens of each row.

    prefix (B, text_len + 3 + known video tokens) int64 vocabulary ids; generator: one torch.Generator a row (on the
    model's device), so that a row's tokens do not depend on its neighbours. Returns codes (B, n) int64 in
    0..codebook_size-1. Guidance pairs each row with the empty caption, as one batch of 2B over one static KV cache;
    at cfg_scale 1 there is nothing to guide and the pair is left out.
    """
    config, rows = model.config, len(prefix)
    top_k = min(top_k, config.video_vocab)
    guided = cfg_scale != 1
    if guided:
        empty = prefix.clone()
        empty[:, :config.text_len + 3] = prefix_tokens(config, [[]]).to(prefix.device)
        prefix = torch.cat([prefix, empty])
    dtype = model.lm_head.weight.dtype
    cache = KVCache(config, len(prefix), prefix.shape[1] + n, dtype, prefix.device)
    # argmax(p / Exp(1) noise) is a draw from p; all noise is drawn beforehand, each row's from its own generator
    noise = torch.stack([torch.empty(n, top_k, device=prefix.device).exponential_(generator=g) for g in generator])
    codes = torch.empty(rows, n, dtype=torch.int64, device=prefix.device)
    tokens = prefix
    for i in range(n):
        logits = model.video_logits(tokens, cache)  # (B or 2B, codebook_size)
        if guided:
            cond, uncond = logits.chunk(2)
            logits = uncond + cfg_scale * (cond - uncond)
        best, ids = torch.topk(logits / temperature, top_k)
        choice = (best.softmax(-1) / noise[:, i]).argmax(-1, keepdim=True)
        codes[:, i:i + 1] = ids.gather(1, choice)
        tokens = (codes[:, i:i + 1] + config.text_vocab).repeat(1 + guided, 1)
        on_token()
    return codes

# ---------------------------------------------------------------------------------------------------------------------
# video

def generate(model, tokenizer, text, prompt, seconds=10, cfg_scale=None, top_k=50, temperature=1.0, seed=0,
             reencode=True, on_token=lambda: None):
    """Yield the new frames of one video clip by clip, uint8 (T, H, W, 3): 65, then 60 at a time, the last clip cut so
    that the total is round(6.5 * seconds). cfg_scale None is the preset's default. See `generate_batch`."""
    for clips in generate_batch(model, tokenizer, text, [prompt], seconds, cfg_scale, top_k, temperature, [seed],
                                reencode, on_token):
        yield clips[0]


@torch.inference_mode()
def generate_batch(model, tokenizer, text, prompts, seconds=10, cfg_scale=None, top_k=50, temperature=1.0, seeds=(0,),
                   reencode=True, on_token=lambda: None):
    """`generate` for several prompts at once: yields uint8 (B, T, H, W, 3). seeds: one a prompt.

    reencode False conditions each extension on the old tokens instead, the paper's comparison in Fig. 6: those were
    made with all earlier frames as context, the start of a clip has none, and the model sees inputs it never met.
    Raises ValueError if `seconds` is under one frame.
    """
    config, device = model.config, model.lm_head.weight.device
    longest, h, w = config.latent_shape
    cfg_scale = config.cfg_scale if cfg_scale is None else cfg_scale
    generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
    prefix = prefix_tokens(config, [text.encode(p) for p in prompts]).to(device)
    for made, new_frames, new_latents in plan(seconds, longest):
        if not made:
            known = torch.empty(len(prompts), 0, h, w, dtype=torch.int64, device=device)
        elif reencode:
            known = tokenizer.encode(to_float(clip[:, -CONTEXT_FRAMES:]).to(device))  # 2 latent frames
        else:
            known = tokens[:, -2:]
        codes = generate_tokens(model, torch.cat([prefix, known.flatten(1) + config.text_vocab], 1),
                                new_latents * h * w, cfg_scale, top_k, temperature, generators, on_token)
        tokens = torch.cat([known, codes.view(len(prompts), -1, h, w)], 1)  # (B, t, h, w)
        clip = np.concatenate([to_uint8(tokenizer.decode(t)) for t in tokens.split(4)])  # (B, T, H, W, 3)
        fresh = clip[:, CONTEXT_FRAMES:] if made else clip
        yield fresh[:, :new_frames]


def plan(seconds, longest):
    """The clips of a video: [(frames made before, new frames, latent frames to write)], longest = 17 latent frames."""
    total, made, clips = round(FPS * seconds), 0, []
    if total < 1:
        raise ValueError(f"{seconds} seconds at {FPS} frames/s is not even one frame")
    while made < total:
        new = min(total - made, 4 * (longest - 2) if made else 4 * longest - 3)
        clips.append((made, new, -(-new // 4) if made else 1 - (-(new - 1) // 4)))
        made += new
    return clips


class Writer:
    """Appends frames to an .mp4 (H.264, yuv420p) or .gif file at 6.5 frames/s; the file appears when closed."""

    def __init__(self, path):
        self.path, ending = path, os.path.splitext(path)[1].lower()
        if ending not in (".mp4", ".gif"):
            raise ValueError(f"--out must end in .mp4 or .gif: {path}")
        if not os.access(os.path.dirname(path) or ".", os.W_OK) or os.path.isdir(path):
            raise ValueError(f"cannot write {path}")
        self.frames, self.stream = 0, None  # a gif has no stream
        self.part = f"{path[:-4]}.part{ending}"
        if ending == ".gif":
            self.file = imageio.v2.get_writer(self.part, mode="I", duration=1000 / FPS, loop=0)
        else:
            self.file = av.open(self.part, "w")
            # with its macroblock tree x264 did not repeat itself to the bit, even on one thread
            self.stream = self.file.add_stream("libx264", rate=Fraction(FPS), options={"x264-params": "mbtree=0"})
            self.stream.pix_fmt, self.stream.thread_count = "yuv420p", 1

    def write(self, frames):
        for frame in frames:  # uint8 (T, H, W, 3)
            if not self.stream:
                self.file.append_data(frame)
            else:
                if not self.stream.codec_context.is_open:
                    self.stream.height, self.stream.width = frame.shape[:2]
                self.file.mux(self.stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        self.frames += len(frames)

    def close(self):
        if self.frames and self.stream:
            self.file.mux(self.stream.encode())
        self.file.close()
        if self.frames:
            os.replace(self.part, self.path)
        else:  # interrupted before the first clip: what stood there stays
            os.remove(self.part)


def main():
    p = argparse.ArgumentParser(description="Generate a video from a prompt.")
    p.add_argument("--prompt", required=True, help="what to show; an empty prompt samples unconditionally")
    p.add_argument("--ckpt", help="checkpoint folder, or a stageN.pt file (default: the shipped toy weights)")
    p.add_argument("--seconds", type=float, default=10, help="length of the video, at 6.5 frames/s")
    p.add_argument("--out", default="sample.mp4", help=".mp4 or .gif")
    p.add_argument("--cfg-scale", type=float, help="guidance (default: the preset's; 1 is none)")
    p.add_argument("--top-k", type=int, default=50)
    p.add_argument("--temperature", type=float, default=1.0)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--no-reencode", action="store_true", help="extend from the old tokens (Fig. 6's comparison)")
    args = p.parse_args()
    if args.top_k < 1 or not args.temperature > 0:
        raise ValueError("--top-k must be at least 1 and --temperature above 0")
    if not 0 < args.seconds < float("inf"):
        raise ValueError(f"--seconds must be a positive number, not {args.seconds}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, tokenizer, text = load(args.ckpt, device)
    longest, h, w = model.config.latent_shape
    clips = plan(args.seconds, longest)
    writer = Writer(args.out)
    with tqdm(total=sum(n for _, _, n in clips) * h * w, unit="token", desc=args.out) as bar:
        try:
            for frames in generate(model, tokenizer, text, args.prompt, args.seconds, args.cfg_scale, args.top_k,
                                   args.temperature, args.seed, not args.no_reencode, bar.update):
                writer.write(frames)
        except KeyboardInterrupt:
            bar.write("interrupted: keeping the clips made so far")
    writer.close()
    print(f"{writer.frames} frames at {FPS} frames/s -> {args.out}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as e:
        sys.exit(f"sample.py: {e}")
