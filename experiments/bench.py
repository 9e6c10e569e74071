"""How fast is it? Every number stands beside a peer's and the machine's own limit, same run.

    python experiments/bench.py lm         # a training step of the decoder, beside
                                           # transformers' LlamaForCausalLM
    python experiments/bench.py decode     # sampling, plain and by guessing (sample.jacobi),
                                           # beside transformers' generate
    python experiments/bench.py reading    # films.read_clip, beside workers that only decode
    python experiments/bench.py tokenizer  # encode, decode and training step, beside
                                           # diffusers' AutoencoderKLHunyuanVideo
    python experiments/bench.py gpu        # 25 minutes on an H100: what the paper's sizes take,
                                           # into experiments/results/gpu.json; no peers
    python experiments/bench.py gpu --quick    # what to know first, in a quarter of an hour

The contenders take turns for a few rounds and the best round of each counts, because other work
on the machine can only slow a round down. The limit is the rate of a large matrix
product, for `decode` the rate of reading memory. Needs: pip install transformers diffusers,
but for `gpu`, which needs torch 2.11 and no av, and runs on a CPU, too, at toy sizes.
"""
import argparse
import dataclasses
import functools
import gc
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

try:
    import av
except ModuleNotFoundError:  # `gpu` reads no film
    sys.modules |= {name: mock.MagicMock() for name in ("av", "av.filter", "av.stream")}

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from data import FPS, latent_frames  # noqa: E402
from model import PRESETS, KVCache, Llama, ModelConfig, cache_to_compile, prefix_tokens  # noqa: E402
from sample import generate_tokens, jacobi, next_codes  # noqa: E402
from tokenizer import TOKENIZER_PRESETS, CausalConv3d, TokenizerLoss, VideoTokenizer  # noqa: E402
from tools.films import read_clip  # noqa: E402
from tools.machine import (  # noqa: E402
    DEVICE,
    autocast,
    compiled,
    fast_dtype,
    run_script,
    set_threads,
)
from train import parameter_groups  # noqa: E402

DTYPE = getattr(torch, fast_dtype(DEVICE))  # bfloat16, but on many CPUs float32
# 67 M parameters, 1100 tokens
SMALL = ModelConfig(dim=512, n_layers=8, n_heads=8, ffn_dim=1408, latent_shape=(1, 1, 970))


def seconds(call):
    """Wall time of one call, including the device's work."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    call()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def race(contenders, rounds):
    """{name: call} -> {name: best seconds}. Each is called once to warm up
    (and compile), then they take turns."""
    for call in contenders.values():
        call()
    times = [{name: seconds(call) for name, call in contenders.items()}
             for _ in range(rounds)]
    return {name: min(t[name] for t in times) for name in contenders}


@functools.cache
def matmul_rate():
    """FLOP/s of this machine's matrix products."""
    n = 8192 if DEVICE == "cuda" else 2048
    a, b = (torch.randn(n, n, device=DEVICE, dtype=DTYPE) for _ in range(2))
    return 2 * n ** 3 / race({"matmul": lambda: a @ b}, 5)["matmul"]


@functools.cache
def read_rate():
    """Bytes/s that this machine reads from memory."""
    x = torch.ones(2 ** (30 if DEVICE == "cuda" else 26), device=DEVICE)
    return x.nbytes / race({"read": lambda: x.sum().item()}, 5)["read"]


def counted(call):
    """FLOPs of a call's matrix products and convolutions. Attention counts
    in full, not only its causal half."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def report(what, times, units, unit, flops):
    """times and flops: {name: of one call}, ours first."""
    (ours, peer), limit = times, matmul_rate()
    rate = {name: flops[name] / times[name] for name in times}
    print(f"{what}: {units / times[ours]:.4g} {unit}/s, "
          f"{peer} {units / times[peer]:.4g}, ratio {times[peer] / times[ours]:.2f}; "
          f"{rate[ours] / 1e12:.2f} TFLOP/s, "
          f"{peer} {rate[peer] / 1e12:.2f}, ratio {rate[ours] / rate[peer]:.2f}; "
          f"ours is at {rate[ours] / limit:.0%} of the matmul rate, {limit / 1e12:.2f} TFLOP/s",
          flush=True)


def llama_of_transformers(config):
    from transformers import LlamaConfig, LlamaForCausalLM
    return LlamaForCausalLM(LlamaConfig(
        hidden_size=config.dim, intermediate_size=config.ffn_dim,
        num_hidden_layers=config.n_layers, num_attention_heads=config.n_heads,
        vocab_size=config.vocab_size, max_position_embeddings=config.max_len,
        eos_token_id=None))


# ---------------------------------------------------------------------------
# a training step of the decoder

def lm(config, batch, rounds, compile):
    """One optimizer step of the decoder: autocast to DTYPE, softmax over the
    whole vocabulary, fused AdamW, gradient clipping."""
    text, video = config.text_len + 3, math.prod(config.latent_shape)
    tokens = torch.randint(config.vocab_size, (batch, text + video), device=DEVICE)
    with torch.device(DEVICE):
        ours, peer = Llama(config), llama_of_transformers(config)
    set_threads(ours)
    if compile:  # as train.py does
        for layer in ours.model.layers:
            layer.compile(dynamic=False)
        ours.loss = torch.compile(ours.loss, dynamic=False)

    def step_of(model, loss):
        optimizer = torch.optim.AdamW(parameter_groups(model), lr=1e-4, fused=True)

        def step():
            with autocast(torch.device(DEVICE)):
                value = loss()
            value.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return step

    fed, targets = tokens[:, :-1], tokens[:, text:]
    times = race({"ours": step_of(ours, lambda: ours(fed, targets)[0]),
                  "transformers": step_of(peer, lambda: peer(fed, labels=fed).loss)}, rounds)

    length = text + video - 1
    weights = sum(p.numel() for p in ours.model.layers.parameters())
    layers = weights + config.n_layers * config.dim * length  # attention: its causal half
    whole_head = ours.lm_head.weight.numel()
    heads = {"ours": whole_head * video / length,  # only video positions go through it
             "transformers": whole_head}
    flops = {name: batch * length * 6 * (layers + head) for name, head in heads.items()}
    parameters = sum(p.numel() for p in ours.parameters())
    report(f"decoder training step, {parameters / 1e6:.0f} M parameters, "
           f"{batch} x {length} tokens", times, batch * length, "tokens", flops)


# ---------------------------------------------------------------------------
# sampling

def step_bytes(model, rows, positions):
    """Bytes that one step of decoding reads: the layers, the video rows of
    the head, and the keys and values of so many positions."""
    c = model.config
    layers = sum(p.nbytes for p in model.model.layers.parameters())
    cached = 2 * rows * c.n_layers * c.dim * positions
    return layers + (c.dim * c.video_vocab + cached) * model.lm_head.weight.element_size()


def writer(window):
    """What writes tokens with so many guesses per pass; 1 is the plain loop."""
    return functools.partial(jacobi, window=window) if window > 1 else generate_tokens


@torch.inference_mode()
def decode(config, steps, rounds):
    """Steps/s of a guided pair in DTYPE after a prompt of 64 tokens, top-k
    50: ours plain and compiled, beside transformers' generate (two rows, no
    guidance) and beside a compiled step of its model over a static cache.
    Then what a pass over several guesses costs. Of untrained weights hardly
    any is right, so there are about as many passes as tokens."""
    from transformers import StaticCache
    prompt = 64
    # no more memory than the peers take
    config = dataclasses.replace(config, text_len=prompt - 3, latent_shape=(1, 1, steps))
    ours = Llama(config).to(DEVICE, DTYPE).eval().requires_grad_(False)
    set_threads(ours)
    peer = llama_of_transformers(config).to(DEVICE, DTYPE).eval()
    prefix = prefix_tokens(config, [list(range(config.text_len))]).to(DEVICE)
    pair = prefix.repeat(2, 1)

    def write(compile, window=1, watch=None):
        cache = (cache_to_compile if compile else KVCache)(ours, 2, window)
        step = compiled(next_codes, DEVICE) if compile else next_codes
        return lambda: writer(window)(
            ours, prefix, steps, 7.5, 50, 1.0, [torch.Generator(DEVICE)],
            watch=watch, cache=cache, draw=step)

    static = StaticCache(config=peer.config, max_cache_len=prompt + steps)
    forward = torch.compile(peer.forward, fullgraph=True, dynamic=False, mode="reduce-overhead")

    def step_by_step():
        static.reset()
        tokens, positions = pair, torch.arange(prompt, device=DEVICE)
        call = peer.forward
        for _ in range(steps):
            logits = call(tokens, past_key_values=static, cache_position=positions).logits
            best, ids = logits[:, -1].float().topk(50)
            tokens = ids.gather(1, torch.multinomial(best.softmax(-1), 1))
            positions, call = positions[-1:] + 1, forward

    def generate():
        peer.generate(pair, attention_mask=torch.ones_like(pair), do_sample=True, top_k=50,
                      min_new_tokens=steps, max_new_tokens=steps, pad_token_id=config.pad)

    # Compiled first, the way transformers does it: compiling ours sets inductor's freezing for
    # the whole process
    step_by_step()
    times = race({"ours": write(False), "ours, compiled": write(True),
                  "compiled static cache": step_by_step, "transformers generate": generate},
                 rounds)
    limit = read_rate() / step_bytes(ours, 2, prompt + steps / 2)
    for name, taken in times.items():
        line = (f"decoding, {name}: {steps / taken:.1f} steps/s, "
                f"{times['transformers generate'] / taken:.2f} x transformers, "
                f"{times['compiled static cache'] / taken:.2f} x its compiled step")
        if "ours" in name:
            line += f", {steps / taken / limit:.0%} of the limit of reading memory"
        print(line, flush=True)
    for compile in (False, True):
        passes = {window: [] for window in (1, 4, 8, 16, 32)}
        for window, done in passes.items():
            write(compile, window, lambda codes, n: done.append(n))()
        times = race({window: write(compile, window) for window in passes}, rounds)
        cost = {window: times[window] / len(done) for window, done in passes.items()}
        line = ", ".join(f"{window}: {x / cost[1]:.2f}" for window, x in cost.items())
        print(f"a pass over so many guesses, {'compiled' if compile else 'eager'}, as a "
              f"multiple of one token's ({1e3 * cost[1]:.1f} ms): {line}", flush=True)


# ---------------------------------------------------------------------------
# the tokenizer

def tokenizer(frames, rounds):
    """The paper's tokenizer at 128x128 in DTYPE, not compiled, beside
    HunyuanVideo's causal 3D autoencoder: also 8x8x4, time halved at the last
    two levels, 246 M parameters."""
    from diffusers import AutoencoderKLHunyuanVideo
    ours = VideoTokenizer(TOKENIZER_PRESETS["paper"])
    peer = AutoencoderKLHunyuanVideo()
    # in one piece as ours, not in tiles that overlap
    peer.use_framewise_encoding = peer.use_framewise_decoding = False
    for name, network in (("ours", ours), ("HunyuanVideo's", peer)):
        parameters = sum(p.numel() for p in network.parameters())
        print(f"{name}: {parameters / 1e6:.0f} M parameters")
    for network in (ours.encoder, ours.decoder, peer):
        network.to(DEVICE, DTYPE)
    ours.vq.to(DEVICE)
    video = torch.rand(1, 3, frames, 128, 128, device=DEVICE) * 2 - 1

    def train(network, reconstruct):
        def step():
            (reconstruct() - video).abs().mean().backward()
            network.zero_grad(set_to_none=True)
        return step

    with autocast(torch.device(DEVICE)):
        with torch.no_grad():
            tokens = ours.encode(video)
            latent = peer.encode(video.to(DTYPE)).latent_dist.mode()
        calls = {"encode": (lambda: ours.encode(video),
                            lambda: peer.encode(video.to(DTYPE))),
                 "decode": (lambda: ours.decode(tokens),
                            lambda: peer.decode(latent)),
                 "training step": (train(ours, lambda: ours(video)[0]),
                                   train(peer, lambda: peer(video.to(DTYPE)).sample))}
        for what, pair in calls.items():
            contenders = dict(zip(("ours", "HunyuanVideo's"), pair))
            with torch.set_grad_enabled(what == "training step"):
                times = race(contenders, rounds)
                flops = {name: counted(call) for name, call in contenders.items()}
            report(f"tokenizer {what}, {frames} frames", times, frames, "frames", flops)
            ours.vq.seen = []


# ---------------------------------------------------------------------------
# reading videos

class Clips(torch.utils.data.Dataset):
    """What training reads: 65 frames at 6.5 frames/s, 128x128."""

    def __init__(self, paths):
        self.paths = paths

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        return (read_clip(self.paths[i], 65, FPS, 128),)


class Decoded(Clips):
    """The least that a reader must do: decode the 10 seconds, and drop them."""

    def __getitem__(self, i):
        with av.open(self.paths[i]) as film:
            frames = film.decode(video=0)
            return (sum(1 for _ in itertools.takewhile(lambda f: f.time < 64 / FPS, frames)),)


def write_film(path, rng):
    """A film like those of WebVid-10M (20 TB for 52,000 hours): 12 seconds of
    596x336 at 25 frames/s and 850 kbit/s."""
    picture = rng.integers(0, 256, (24, 43, 3)).astype(np.uint8)
    scene = np.asarray(Image.fromarray(picture).resize((688, 384), Image.BICUBIC))
    with av.open(path, "w") as film:
        stream = film.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 596, 336, "yuv420p"
        stream.bit_rate = 850_000
        for t in range(300):  # a panning camera, and a real camera's grain
            x, y = int(46 + 45 * math.sin(t / 40)), int(24 + 23 * math.cos(t / 60))
            frame = scene[y:y + 336, x:x + 596] // 2 + 64
            frame = frame + rng.integers(0, 24, (336, 596, 1))
            frame = av.VideoFrame.from_ndarray(frame.astype(np.uint8), "rgb24")
            film.mux(stream.encode(frame))
        film.mux(stream.encode())


def reading(rounds, films, workers=2):
    """Films/s of films.read_clip in DataLoader workers."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        paths = [f"{folder}/{i}.mp4" for i in range(films)]
        for path in paths:
            write_film(path, rng)

        def through(dataset):
            loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=workers,
                                                 collate_fn=tuple)
            return lambda: sum(1 for _ in loader)

        times = race({"data.py": through(Clips(paths)), "bare pyav": through(Decoded(paths))},
                     rounds)
    print(f"reading, {workers} workers: {films / times['data.py']:.1f} films/s, "
          f"bare pyav {films / times['bare pyav']:.1f}, "
          f"ratio {times['bare pyav'] / times['data.py']:.2f}")


# ---------------------------------------------------------------------------
# what the paper's sizes take on one GPU

def peak():
    return torch.cuda.max_memory_allocated() if DEVICE == "cuda" else 0


def gpu(path, quick):
    """Run each part that is not in the file yet, and add what it found. quick:
    fewer of them, those that can go wrong first."""
    cuda = DEVICE == "cuda"
    name = torch.cuda.get_device_name() if cuda else "a CPU, at toy sizes"
    found = json.loads(path.read_text()) if path.exists() else {}
    if found.setdefault("device", name) != name:
        raise ValueError(f"{path} is of {found['device']}")
    path.parent.mkdir(exist_ok=True)
    parts = {"matmul and memory": lambda: {"TFLOP/s": matmul_rate() / 1e12,
                                           "GB/s": read_rate() / 1e9},
             "prefixes under autocast": prefixes, "tokenizer training": tokenizer_training}
    sizes = {"700m": PRESETS["700m"], "3b": PRESETS["3b"],
             # 109 GB with gradients and moments: a part of its layers
             "7b": dataclasses.replace(PRESETS["7b"], n_layers=4 if quick else 8)}
    if not cuda:
        sizes = {"toy": PRESETS["toy"]}
    lengths, decoded, windows = {}, ("700m", "7b", "toy"), (1, 4, 8, 16, 32)
    if quick:
        lengths, decoded = {"700m": (1,), "3b": (), "7b": (17,), "toy": (1,)}, ("700m", "toy")
        windows = 1, 32
    for size, config in sizes.items():
        for frames in lengths.get(size, (1, 17, 65)):
            parts[f"{size}, {config.n_layers} layers, training on {frames} frames"] = (
                functools.partial(training, config, frames))
    for size in filter(sizes.get, decoded):
        parts[f"{size}, guided decoding"] = functools.partial(
            decoding, PRESETS[size], 256 if cuda else 16, windows)
    if quick:
        parts["sharded, saved and resumed"] = sharded
    for part, measure in parts.items():
        if part in found:
            continue
        began = time.time()
        gc.collect()  # compiled modules are cycles
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            result = measure()
        except torch.OutOfMemoryError as e:
            result = {"out of memory": str(e)[:100]}
        torch._dynamo.reset()
        found[part] = {key: float(f"{x:.4g}") if isinstance(x, float) else x
                       for key, x in result.items()}
        found[part] |= {"peak GiB": round(peak() / 2**30, 2), "minutes": (time.time() - began) / 60}
        print(part, found[part], flush=True)
        path.write_text(json.dumps(found, indent=1))


def paper_tokenizer():
    cuda = DEVICE == "cuda"
    network = VideoTokenizer(TOKENIZER_PRESETS["paper" if cuda else "toy"])
    size = network.config.resolution
    return network, torch.rand(1, 3, 65, size, size, device=DEVICE) * 2 - 1


@torch.no_grad()
def prefixes():
    """Do the tokens of the first 17 frames depend on the others under
    autocast? Of untrained weights, whose latents are as near to several codes
    as trained ones' or nearer."""
    network, video = paper_tokenizer()
    for module in network.modules():
        if isinstance(module, CausalConv3d):
            module.reset_parameters()  # weights on past frames, too
    network.to(DEVICE)
    with autocast(torch.device(DEVICE)):
        whole = network.encode(video)
        return {f"share that differs, {frames} frames": (
            whole[:, :latent_frames(frames)] != network.encode(video[:, :, :frames])
        ).float().mean().item() for frames in (1, 17)}


def tokenizer_training():
    """Frames/s of a step on a clip of 65 frames with the discriminator, without LPIPS."""
    network, video = paper_tokenizer()
    objective = TokenizerLoss(network, 0.1, 0).to(DEVICE)
    optimizer = torch.optim.AdamW(parameter_groups(objective), fused=True)
    for module in (network.encoder, network.decoder):
        module.compile(dynamic=False)

    def step():
        with autocast(torch.device(DEVICE)):
            loss, _ = objective(video, True)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        network.vq.reinitialize(0, 0)

    compiling = seconds(step)
    return {"frames/s": 65 / race({"": step}, 3)[""], "first step, s": compiling}


def training(config, frames):
    """A step of train.py on one 65-frame clip, or as many tokens of shorter
    ones: tokens/s (of video), the share of the matmul rate, in FLOPs as in
    scale.py."""
    t = latent_frames(frames)
    clips = latent_frames(65) // t
    with torch.device(DEVICE):
        model = Llama(config)
    model.model.checkpoint_activations = config.dim >= 3072
    for layer in model.model.layers:
        layer.compile(dynamic=False)
    model.loss = torch.compile(model.loss, dynamic=False)
    optimizer = torch.optim.AdamW(parameter_groups(model), lr=1e-4, fused=True)
    video = t * math.prod(config.latent_shape[1:])
    tokens = torch.randint(config.pad, (clips, config.text_len + 3 + video), device=DEVICE)

    def step():
        with autocast(torch.device(DEVICE)):
            loss, _ = model(tokens[:, :-1], tokens[:, -video:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    compiling = seconds(step)
    taken = race({"": step}, 3)[""]
    with warnings.catch_warnings(record=True) as waits:  # of the CPU for the GPU
        warnings.simplefilter("always")
        if DEVICE == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        step()
        if DEVICE == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    weights = sum(p.numel() for p in model.model.layers.parameters())
    length = tokens.shape[1] - 1
    flops = 6 * clips * (length * (weights + config.n_layers * config.dim * length)
                         + config.dim * config.vocab_size * video)
    return {"tokens/s": clips * video / taken, "TFLOP/s": flops / taken / 1e12,
            "share of the matmul rate": flops / taken / matmul_rate(),
            "first step, s": compiling, "synchronizations": len(waits)}


@torch.inference_mode()
def decoding(config, steps, windows):
    """Guided passes/s of one video after its first half, compiled: token by
    token and over guesses, of which untrained weights find none right."""
    counters = torch._dynamo.utils.counters
    counters.clear()
    with torch.device(DEVICE):
        model = Llama(config).to(DTYPE).eval().requires_grad_(False)
    half = config.max_len // 2
    prefix = torch.randint(config.pad, (1, half), device=DEVICE)
    cache, step = cache_to_compile(model, 2, 32), compiled(next_codes, DEVICE)
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()  # the weights were float32 at first
    limit = read_rate() / step_bytes(model, 2, half + steps / 2)
    found = {}
    for window in windows:

        def write(n):
            writer(window)(model, prefix, n, 7.5, 50, 1.0, [torch.Generator(DEVICE)],
                           cache=cache, draw=step)

        compiling = seconds(lambda: write(steps))
        taken = race({n: functools.partial(write, n) for n in (1, steps)}, 2)
        rate = (steps - 1) / (taken[steps] - taken[1])  # without reading the prefix
        found[f"window {window}: passes/s"] = rate
        found[f"window {window}: share of the limit of reading memory"] = rate / limit
        found[f"window {window}: first call, s"] = compiling
    return found | {"graphs": counters["stats"]["unique_graphs"],
                    "CUDA graphs skipped": counters["inductor"]["cudagraph_skips"]}


def sharded():
    """FSDP of one process: twelve steps at once, and six, resumed for six more."""
    flags = "--stage 1 --fsdp --steps 12 --batch-size 4 --save-every 6 --warmup 1 --n-layers 2 "
    flags += "--compile --dim 1536 --n-heads 12" if DEVICE == "cuda" else "--dim 32 --n-heads 2"

    def train(out, more=""):
        command = f"-m torch.distributed.run --nproc-per-node 1 {ROOT / 'train.py'} --out {out}"
        done = subprocess.run([sys.executable, *f"{command} {flags} {more}".split()],
                              capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr[-500:])
        lines = (out / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines]

    with tempfile.TemporaryDirectory() as folder:
        once, twice = (Path(folder) / name for name in ("once", "twice"))
        began = time.time()
        losses = train(once)
        taken = time.time() - began
        twice.mkdir()
        os.link(once / "stage1.before.pt", twice / "stage1.pt")  # of six steps
        (twice / "metrics.jsonl").write_text((once / "metrics.jsonl").read_text())
        return {"seconds": taken, "largest difference of the losses": max(
            abs(a - b) for a, b in zip(losses, train(twice, "--resume")))}


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("what", choices=["lm", "decode", "reading", "tokenizer", "gpu"])
    p.add_argument("--preset", choices=list(PRESETS),
                   help="lm, decode: default a LLaMA of 67 M parameters on 1100 tokens")
    p.add_argument("--batch-size", type=int, default=1, help="lm")
    p.add_argument("--steps", type=int, default=128, help="decode: tokens to write")
    p.add_argument("--frames", type=int, default=17, help="tokenizer")
    p.add_argument("--films", type=int, default=24, help="reading")
    p.add_argument("--rounds", type=int, default=4)
    p.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "gpu.json",
                   help="gpu: parts that are in it are left as they are")
    p.add_argument("--quick", action="store_true", help="gpu: in a quarter of an hour")
    p.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="lm")
    args = p.parse_args()
    torch.manual_seed(0)
    config = PRESETS[args.preset] if args.preset else SMALL
    if args.what == "lm":
        lm(config, args.batch_size, args.rounds, args.compile)
    elif args.what == "decode":
        decode(config, args.steps, args.rounds)
    elif args.what == "reading":
        reading(args.rounds, args.films)
    elif args.what == "gpu":
        gpu(args.out, args.quick)
    else:
        tokenizer(args.frames, args.rounds)


if __name__ == "__main__":
    run_script(main)
