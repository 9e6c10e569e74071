"""What the paper's schedule costs: tokens, FLOPs, memory and GPU-days for every preset (Sec. 4.1
"Training"). And what sampling needs to keep up with the video.

    python experiments/scale.py    # H100/H200 class GPUs at 40 % of 989 TFLOP/s
                                   # (--mfu, --tflops for others)

The decoder's FLOPs are 6 per weight and token, and the causal half of attention. The tokenizer's
encoder and decoder run on the meta device under a FLOP counter (without the discriminator, and
without the images among the clips). The memory of activations is what autograd keeps of a decoder
layer on the meta device, and of the tokenizer's loss on fake tensors. Prints the tables as
Markdown. The last needs: pip install diffusers transformers
"""
import argparse
import dataclasses
import os
import sys
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from bench import counted, step_bytes  # noqa: E402
from data import FPS, latent_frames  # noqa: E402
from model import PRESETS, Block, Llama, rotary  # noqa: E402
from tokenizer import TOKENIZER_PRESETS, TokenizerLoss, VideoTokenizer  # noqa: E402
from tools.machine import run_script  # noqa: E402
from train import FRAMES, PAPER  # noqa: E402

DECODERS = ("700m", "3b", "7b")
IMAGE_EVERY = 5  # train.py's default
GPUS = (8, 64, 256)
MEMORY = {"H100": 3.35e12, "H200": 4.8e12}  # bytes/s of a GPU
# FLOPs that encode 65 frames of 128x128: NVIDIA's code in its released shapes, counted once in
# the same way; it is not among our dependencies
COSMOS = {"Cosmos 0.1 DV4x8x8": 0.5e12, "Cosmos-Tokenize1-DV4x8x8-360p": 1.5e12}


def kept(call):
    """Bytes that autograd keeps for the backward pass of a call, each tensor
    once."""
    alive, seen = [], {}

    def pack(t):
        seen[id(t.untyped_storage())] = t.untyped_storage().nbytes()
        alive.append(t)  # so that no id is used twice
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        call()
    return sum(seen.values())


# ---------------------------------------------------------------------------
# the decoder

def parameters(c):
    """-> (of one layer, of the whole decoder)"""
    with torch.device("meta"):
        model = Llama(c)
    return [sum(p.numel() for p in m.parameters()) for m in (model.model.layers[0], model)]


def layer_flops(c, length):
    """One decoder layer in a training step on `length` tokens, with the
    causal half of attention."""
    return 6 * length * parameters(c)[0] + 6 * length ** 2 * c.dim


def layer_bytes(c, length):
    """What one decoder layer keeps of `length` tokens in bfloat16."""
    with torch.device("meta"):
        block = Block(c).bfloat16()
        x = torch.empty(1, length, c.dim, dtype=torch.bfloat16, requires_grad=True)
        cos, sin = (t.to("meta") for t in rotary(c, torch.arange(length, device="cpu")))

    def flash(q, k, v, is_causal):
        attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return attention(q, k, v, is_causal=is_causal)[0]

    # The meta device would choose attention that keeps length x length weights, as no GPU does
    with mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", flash):
        return kept(lambda: block(x, cos, sin)) - 2 * parameters(c)[0]


def clip_length(c, frames):
    """Video tokens of a clip, and the length of the sequence that is fed for
    it."""
    video = latent_frames(frames) * c.latent_shape[1] * c.latent_shape[2]
    return video, c.text_len + 3 + video - 1


def clip_flops(c, frames):
    video, length = clip_length(c, frames)
    head = 6 * c.dim * c.vocab_size * video  # only video positions go through it
    return c.n_layers * layer_flops(c, length) + head


def stage_costs(c, stage):
    """(tokens of the clips, FLOPs) of a whole stage 1-3. Every fifth step of
    stages 2 and 3 is images."""
    steps, batch = PAPER["steps"][stage], PAPER["batch_size"][stage]
    video, _ = clip_length(c, FRAMES[stage])
    clip = clip_flops(c, FRAMES[stage])
    images = latent_frames(FRAMES[stage]) * clip_flops(c, 1)  # instead of one clip
    share = 0 if stage == 1 else 1 / IMAGE_EVERY
    return steps * batch * video, steps * batch * ((1 - share) * clip + share * images)


def memory(c, n, checkpointed, frames=65):
    """Bytes on one of n GPUs of a node at the peak of a step, where the backward
    pass begins, with one 65-frame clip at a time or as many tokens of shorter
    ones. n = 1 is DDP: nothing is sharded.

    state        float32 weights, gradients and Adam's two moments: 16 per
                 parameter, sharded
    computed in  bfloat16 weights: all of them, or with FSDP two layers, the
                 embedding and the head
    layers       what every layer keeps, or only its input, and one layer
                 computed again
    logits       of all video tokens at once, 12 per logit: their log-softmax,
                 its gradient and the gradient of the logits, float32. The
                 forward pass never needs more: 2 of bfloat16 logits and 4 of
                 float32, then 4 of these and 4 of the log-softmax. With
                 --compile there are 2 instead of 12. Both were measured, on
                 a CPU.
    """
    clips = latent_frames(65) // latent_frames(frames)
    video, length = (clips * x for x in clip_length(c, frames))
    layer, total = parameters(c)
    state = 16 * total / n
    computed_in = 2 * total if n == 1 else 2 * (2 * layer + 2 * c.dim * c.vocab_size)
    layers = c.n_layers * layer_bytes(c, length)
    if checkpointed:
        layers = c.n_layers * 2 * length * c.dim + layer_bytes(c, length)
    logits = 12 * video * c.vocab_size
    return state + computed_in + layers + logits


# ---------------------------------------------------------------------------
# the tokenizer

def tokenizer_costs():
    """(tokens of the clips, FLOPs) of stage 0: 1, 17 and 65 frames for these
    shares of the steps."""
    steps, batch = PAPER["steps"][0], PAPER["batch_size"][0]
    flops = 0
    with torch.device("meta"):
        network = VideoTokenizer(TOKENIZER_PRESETS["paper"])
        for frames, share in ((1, 0.4), (17, 0.5), (65, 0.1)):
            clips = latent_frames(65) // latent_frames(frames)  # instead of one long clip
            video = torch.empty(1, 3, frames, 128, 128)
            step = counted(lambda: network.decoder(network.encoder(video)).sum().backward())
            flops += steps * batch * share * clips * step
    return steps * batch * clip_length(PRESETS["700m"], 65)[0], flops


def tokenizer_memory():
    """Bytes at the peak of a step of stage 0, one 65-frame clip at a time:
    float32 weights, gradients and moments, and what autograd keeps of the loss
    with discriminator in bfloat16. -> (in all, the last)"""
    norm = torch.nn.functional.layer_norm
    with (FakeTensorMode(),  # shapes and dtypes, no numbers
          mock.patch.object(torch.nn.Module, "to", lambda self, **kw: self),
          # as on a GPU: in float32
          mock.patch.object(torch.nn.functional, "layer_norm",
                            lambda x, *args: norm(x.float(), *args)),
          torch.autocast("cpu", torch.bfloat16)):
        objective = TokenizerLoss(VideoTokenizer(TOKENIZER_PRESETS["paper"]), 0.1, 0)
        activations = kept(lambda: objective(torch.empty(1, 3, 65, 128, 128), True))
        weights = sum(p.numel() for p in objective.parameters())
    return 16 * weights + activations, activations


# ---------------------------------------------------------------------------
# released tokenizers

def released():
    """{name: (codes, FLOPs that encode a 65-frame clip, peak FLOP/s relative to bfloat16)}"""
    from diffusers import AutoencoderVidTok
    from transformers import Emu3VQVAE, Emu3VQVAEConfig
    paper = TOKENIZER_PRESETS["paper"]
    with torch.device("meta"), torch.no_grad():
        video = torch.empty(1, 3, 65, 128, 128)
        padded = torch.empty(1, 3, 68, 128, 128)  # the first frame three times more
        vidtok = AutoencoderVidTok(z_channels=5, double_z=False).encoder.to("meta")
        emu3 = Emu3VQVAE(Emu3VQVAEConfig()).encoder
        return {
            "ours, to be trained": (
                paper.codebook_size, counted(lambda: VideoTokenizer(paper).encoder(video)), 1),
            "VidTok v1.1": (32768, counted(lambda: vidtok(padded)), 0.5),  # float32, by TF32
            **{name: (64000, flops, 1) for name, flops in COSMOS.items()},
            "Emu3": (32768, counted(lambda: emu3(padded.transpose(1, 2))), 0.5)}


# ---------------------------------------------------------------------------
# sampling

def tokens_per_pass(c, gpu, share):
    """-> passes/s of one guided video in bfloat16 at this share of the GPU's
    memory rate, and how many tokens each must give to keep up with the video."""
    with torch.device("meta"):
        model = Llama(c).bfloat16()
    passes = share * MEMORY[gpu] / step_bytes(model, 2, c.max_len / 2)
    seconds = 60 / FPS  # of a clip that goes on
    tokens = (latent_frames(65) - latent_frames(5)) * c.latent_shape[1] * c.latent_shape[2]
    return passes, tokens / seconds / passes


# ---------------------------------------------------------------------------
# the tables

def row(*cells):
    print("| " + " | ".join(cells) + " |")


def head(*cells):
    row(*cells)
    print("|" + "---|" * len(cells))


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--tflops", type=float, default=989, help="peak of one GPU in dense bf16")
    p.add_argument("--mfu", type=float, default=0.4)
    args = p.parse_args()

    head("preset", "stage", "video tokens", "FLOPs", "GPU-days", *(f"days on {n}" for n in GPUS))
    costs = [("tokenizer", 0, *tokenizer_costs())]
    costs += [(name, stage, *stage_costs(PRESETS[name], stage))
              for name in DECODERS for stage in (1, 2, 3)]
    for name, stage, tokens, flops in costs:
        days = flops / (args.tflops * 1e12 * args.mfu * 86400)
        batch = PAPER["batch_size"][stage]
        row(name, str(stage), f"{tokens / 1e9:.0f} G", f"{flops:.1e}", f"{days:.0f}",
            *("–" if batch % n else f"{days / n:.1f}" for n in GPUS))

    print()
    head("memory of a GPU, one 65-frame clip", "parameters", "DDP", "FSDP, 8 in a node",
         "and `--checkpoint-activations`")
    for name in DECODERS:
        c = PRESETS[name]
        cases = (1, False), (8, False), (8, True)
        row(name, f"{parameters(c)[1] / 1e9:.2f} B",
            *(f"{memory(c, n, checkpointed) / 2**30:.0f} GiB" for n, checkpointed in cases))
        row(f"{name}, 17 images", "",
            *(f"{memory(c, n, checkpointed, 1) / 2**30:.0f} GiB" for n, checkpointed in cases))
    total, activations = (f"{x / 2**30:.0f} GiB" for x in tokenizer_memory())
    print(f"\nThe tokenizer: {total}, of which {activations} are activations.\n")

    cases = [(gpu, share) for gpu in MEMORY for share in (1, 0.5)]
    head("tokens per pass for real time", *(f"{gpu} at {share:.0%} of its memory rate"
                                            for gpu, share in cases))
    for name in DECODERS:
        found = [tokens_per_pass(PRESETS[name], *case) for case in cases]
        row(name, *(f"{tokens:.1f} ({passes:.0f} passes/s)" for passes, tokens in found))

    print()
    head("tokens of", "codes", "encode a clip", "GPU-hours, 1 M clips", "700m", "GPU-days",
         "memory, one clip", "with `--checkpoint-activations`")
    for name, (codes, flops, speed) in released().items():
        c = dataclasses.replace(PRESETS["700m"], video_vocab=codes)
        per_hour = args.tflops * 1e12 * args.mfu * 3600
        days = sum(stage_costs(c, stage)[1] for stage in (1, 2, 3)) / per_hour / 24
        hours = 1e6 * flops / (speed * per_hour)
        row(name, f"{codes:,}", f"{flops / 1e12:.1f} TFLOP", f"{hours:.1f}",
            f"{parameters(c)[1] / 1e9:.2f} B", f"{days:.0f}",
            *(f"{memory(c, 1, checkpointed) / 2**30:.0f} GiB" for checkpointed in (False, True)))


if __name__ == "__main__":
    run_script(main)
