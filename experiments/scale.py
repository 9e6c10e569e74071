"""What the paper's schedule costs: tokens, FLOPs, memory and GPU-days for every preset (Sec. 4.1 "Training").

    python experiments/scale.py              # H100/H200 class GPUs at 45 % of 989 TFLOP/s; --mfu, --tflops for others

The decoder's FLOPs are 6 a weight and token, and the causal half of attention. The tokenizer's encoder and decoder run on
the meta device under a FLOP counter (without its critic, and without the images among the clips), a layer of the decoder
under a record of what autograd keeps: that is the memory of activations. Prints the tables as Markdown.
"""
import argparse
import os
import sys
from unittest import mock

import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from bench import counted  # noqa: E402
from data import latent_frames as latents  # noqa: E402
from model import PRESETS, Block, Llama, rotary  # noqa: E402
from tokenizer import TOKENIZER_PRESETS, VideoTokenizer  # noqa: E402
from train import FRAMES, PAPER  # noqa: E402

IMAGE_EVERY = 5
GPUS = (8, 64, 256)


def kept(call):
    """Bytes that autograd keeps for the backward pass of a call, each tensor once."""
    seen = {}

    def pack(t):
        seen[id(t.untyped_storage())] = t.untyped_storage().nbytes()
        alive.append(t)  # so that no id is used twice
        return t

    alive = []
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        call()
    return sum(seen.values())


def layer_costs(c, length):
    """One decoder layer on `length` tokens, training: (FLOPs with the causal half of attention, bytes kept in bf16)."""
    with torch.device("meta"):
        block = Block(c).bfloat16()
        x = torch.empty(1, length, c.dim, dtype=torch.bfloat16, requires_grad=True)
        cos, sin = (t.to("meta") for t in rotary(c, torch.arange(length, device="cpu")))
    weights = parameters(c)[0]
    flops = 6 * length * weights + 6 * length ** 2 * c.dim

    def flash(q, k, v, is_causal):  # what the meta device takes otherwise keeps length x length weights, as no GPU does
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, is_causal=is_causal)[0]

    with mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", flash):
        return flops, kept(lambda: block(x, cos, sin)) - 2 * weights


def parameters(c):
    """(of one layer, of the whole decoder)"""
    with torch.device("meta"):
        model = Llama(c)
    return [sum(p.numel() for p in m.parameters()) for m in (model.model.layers[0], model)]


def clip_length(c, frames):
    """Video tokens of a clip, and the length of the sequence that is fed for it."""
    video = latents(frames) * c.latent_shape[1] * c.latent_shape[2]
    return video, c.text_len + 3 + video - 1


def clip_flops(c, frames):
    video, length = clip_length(c, frames)
    head = c.dim * c.vocab_size
    return c.n_layers * layer_costs(c, length)[0] + 6 * head * video  # only video positions go through the head


def stage_costs(c, stage):
    """(clips' tokens, FLOPs) of a whole stage 1-3: every fifth step of stages 2 and 3 is images."""
    steps, batch, _, _ = PAPER[stage]
    video, _ = clip_length(c, FRAMES[stage])
    clip, images = clip_flops(c, FRAMES[stage]), latents(FRAMES[stage]) * clip_flops(c, 1)  # images in a clip's place
    share = 0 if stage == 1 else 1 / IMAGE_EVERY
    return steps * batch * video, steps * batch * ((1 - share) * clip + share * images)


def memory(c, n, checkpointed):
    """Bytes on one of n GPUs, one 65-frame clip at a time: fp32 weights, gradients and Adam's moments, bf16 copies,
    what the layers keep and the logits. n = 1 is DDP (nothing shared)."""
    _, length = clip_length(c, 65)
    layer, total = parameters(c)
    whole = 2 * total if n == 1 else 2 * (2 * layer + 2 * c.dim * c.vocab_size)  # bf16: two layers and the root
    _, layer_keeps = layer_costs(c, length)
    residual = 2 * length * c.dim
    keeps = c.n_layers * residual + layer_keeps if checkpointed else c.n_layers * layer_keeps
    # logits: bf16, fp32, their log-softmax and its gradient in fp32, bf16 gradient
    logits = clip_length(c, 65)[0] * c.vocab_size * (2 + 4 + 4 + 4 + 2)
    return 16 * total / n + whole + keeps + logits


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--tflops", type=float, default=989, help="peak of one GPU in dense bf16")
    p.add_argument("--mfu", type=float, default=0.45)
    args = p.parse_args()
    rate = args.tflops * 1e12 * args.mfu * 86400  # FLOPs a GPU-day

    print("| preset | stage | video tokens | FLOPs | GPU-days | " + " | ".join(f"days on {n}" for n in GPUS) + " |")
    print("|---|---|---|---|---|" + "---|" * len(GPUS))
    config = TOKENIZER_PRESETS["paper"]
    with torch.device("meta"):
        network, total = VideoTokenizer(config), 0
        for frames, share in ((1, 0.4), (17, 0.5), (65, 0.1)):
            clips = latents(65) // latents(frames)
            video = torch.empty(1, 3, frames, 128, 128)
            flops = counted(lambda: network.decoder(network.encoder(video)).sum().backward())
            total += PAPER[0][0] * PAPER[0][1] * share * clips * flops
    rows = [("tokenizer", 0, PAPER[0][0] * PAPER[0][1] * clip_length(PRESETS["700m"], 65)[0], total)]
    rows += [(name, stage, *stage_costs(PRESETS[name], stage)) for name in ("700m", "3b", "7b") for stage in (1, 2, 3)]
    for name, stage, tokens, flops in rows:
        days = flops / rate
        print(f"| {name} | {stage} | {tokens / 1e9:.0f} G | {flops:.1e} | {days:.0f} | "
              + " | ".join("–" if PAPER[stage][1] % n else f"{days / n:.1f}" for n in GPUS) + " |")

    print("\n| memory of a GPU, one 65-frame clip | parameters | DDP | " + " | ".join(f"FSDP on {n}" for n in GPUS)
          + " | on 8, `--checkpoint-activations` |")
    print("|---|---|---|" + "---|" * len(GPUS) + "---|")
    for name in ("700m", "3b", "7b"):
        c = PRESETS[name]
        print(f"| {name} | {parameters(c)[1] / 1e9:.2f} B | {memory(c, 1, False) / 2**30:.0f} GiB | "
              + " | ".join(f"{memory(c, n, False) / 2**30:.0f} GiB" for n in GPUS)
              + f" | {memory(c, 8, True) / 2**30:.0f} GiB |")


if __name__ == "__main__":
    main()
