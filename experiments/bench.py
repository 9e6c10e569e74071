"""How fast is it? Every number stands beside a peer's and the machine's own limit, measured in the same run.

    python experiments/bench.py lm          # a training step of the decoder, beside transformers' LlamaForCausalLM
    python experiments/bench.py tokenizer   # encode, decode, training step, beside diffusers' AutoencoderKLCogVideoX

The two take turns for a few rounds and the best round of each counts, as a busy machine only ever slows things down.
The limit is the rate of a large bfloat16 matrix product. Needs: pip install transformers diffusers
"""
import argparse
import math
import os
import sys
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from model import PRESETS, Llama, ModelConfig  # noqa: E402
from tokenizer import TOKENIZER_PRESETS, VideoTokenizer  # noqa: E402
from train import compile_layers, parameter_groups  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMALL = ModelConfig(dim=512, n_layers=8, n_heads=8, ffn_dim=1408, latent_shape=(1, 1, 970))  # 67 M, 1100 tokens


def seconds(call):
    """Wall time of one call, the device's work included."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    call()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def race(contenders, rounds):
    """{name: call} -> {name: best seconds}; the first call of each warms up (and compiles), then they take turns."""
    for call in contenders.values():
        call()
    times = [{name: seconds(call) for name, call in contenders.items()} for _ in range(rounds)]
    return {name: min(t[name] for t in times) for name in contenders}


def matmul_rate():
    """The machine's bfloat16 matrix products, FLOP/s."""
    n = 8192 if DEVICE == "cuda" else 2048
    a, b = (torch.randn(n, n, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    return 2 * n ** 3 / race({"matmul": lambda: a @ b}, 20)["matmul"]


def counted(call):
    """FLOPs of a call's matrix products and convolutions (attention in full, not only its causal half)."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def report(what, times, units, unit, flops):
    """times and flops: {name: of one call}, ours first."""
    (ours, peer), limit = times, matmul_rate()
    rate = {name: flops[name] / times[name] for name in times}
    print(f"{what}: {units / times[ours]:.4g} {unit}/s, {peer} {units / times[peer]:.4g}, ratio {times[peer] / times[ours]:.2f}; "
          f"{rate[ours] / 1e12:.2f} TFLOP/s, {peer} {rate[peer] / 1e12:.2f}, ratio {rate[ours] / rate[peer]:.2f}; "
          f"ours is at {rate[ours] / limit:.0%} of the matmul rate, {limit / 1e12:.2f} TFLOP/s", flush=True)


def lm(config, batch, rounds, compiled):
    """One optimizer step of the decoder: bfloat16 autocast, full softmax, fused AdamW, gradient clipping."""
    from transformers import LlamaConfig, LlamaForCausalLM
    text, video = config.text_len + 3, math.prod(config.latent_shape)
    tokens = torch.randint(config.vocab_size, (batch, text + video), device=DEVICE)
    with torch.device(DEVICE):
        ours = Llama(config)
        peer = LlamaForCausalLM(LlamaConfig(
            hidden_size=config.dim, intermediate_size=config.ffn_dim, num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads, vocab_size=config.vocab_size, max_position_embeddings=text + video))
    if compiled:
        compile_layers(ours)

    def step_of(model, loss):
        optimizer = torch.optim.AdamW(parameter_groups(model), lr=1e-4, fused=True)

        def step():
            with torch.autocast(DEVICE, torch.bfloat16):
                value = loss()
            value.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return step

    times = race({"ours": step_of(ours, lambda: ours(tokens[:, :-1], tokens[:, text:])[0]),
                  "transformers": step_of(peer, lambda: peer(tokens[:, :-1], labels=tokens[:, :-1]).loss)}, rounds)
    length, weights = text + video - 1, sum(p.numel() for p in ours.model.layers.parameters())
    head = ours.lm_head.weight.numel() * video / length  # only video positions go through it
    layers = weights + config.n_layers * config.dim * length  # the causal half of attention
    flops = {name: batch * length * 6 * (layers + head) for name, head in
             (("ours", head), ("transformers", ours.lm_head.weight.numel()))}
    report(f"decoder training step, {sum(p.numel() for p in ours.parameters()) / 1e6:.0f} M parameters, "
           f"{batch} x {length} tokens", times, batch * length, "tokens", flops)


def tokenizer(frames, rounds):
    """The paper's tokenizer at 128x128 in bfloat16, eager, beside CogVideoX's causal 3D autoencoder (also 8x8x4)."""
    from diffusers import AutoencoderKLCogVideoX
    ours = VideoTokenizer(TOKENIZER_PRESETS["paper"])
    peer = AutoencoderKLCogVideoX(layers_per_block=4, latent_channels=16)
    print(", ".join(f"{name} {sum(p.numel() for p in m.parameters()) / 1e6:.0f} M parameters"
                    for name, m in (("ours", ours), ("CogVideoX's", peer))))
    for network in (ours.encoder, ours.decoder, peer):
        network.to(DEVICE, torch.bfloat16)
    ours.vq.to(DEVICE)
    video = torch.rand(1, 3, frames, 128, 128, device=DEVICE) * 2 - 1

    def train(network, reconstruct):
        def step():
            (reconstruct() - video).abs().mean().backward()
            network.zero_grad(set_to_none=True)
        return step

    with torch.autocast(DEVICE, torch.bfloat16):
        with torch.no_grad():
            tokens, latent = ours.encode(video), peer.encode(video.bfloat16()).latent_dist.mode()
        calls = {"encode": (lambda: ours.encode(video), lambda: peer.encode(video.bfloat16())),
                 "decode": (lambda: ours.decode(tokens), lambda: peer.decode(latent)),
                 "training step": (train(ours, lambda: ours(video)[0]), train(peer, lambda: peer(video.bfloat16()).sample))}
        for what, pair in calls.items():
            contenders = dict(zip(("ours", "CogVideoX's"), pair))
            with torch.set_grad_enabled(what == "training step"):
                times = race(contenders, rounds)
                report(f"tokenizer {what}, {frames} frames", times, frames, "frames",
                       {name: counted(call) for name, call in contenders.items()})
            ours.vq.seen = []


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("what", choices=["lm", "tokenizer"])
    p.add_argument("--preset", choices=list(PRESETS), help="lm: default a 67 M LLaMA on 1100 tokens")
    p.add_argument("--batch-size", type=int, default=1)
    p.add_argument("--frames", type=int, default=9, help="tokenizer")
    p.add_argument("--rounds", type=int, default=4)
    p.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    args = p.parse_args()
    torch.manual_seed(0)
    if args.what == "lm":
        lm(PRESETS[args.preset] if args.preset else SMALL, args.batch_size, args.rounds, args.compile)
    else:
        tokenizer(args.frames, args.rounds)


if __name__ == "__main__":
    main()
