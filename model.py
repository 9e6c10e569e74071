"""model.py - tokens -> next token: the autoregressive LLM (Sec. 3.1, 3.2, 4.1).

One decoder, LLaMA's architecture trained from scratch, over one sequence of text and video tokens with plain causal
attention over everything (Sec. 3.1 "Discussion"):

    <sot> t1 ... tN <pad>... <eot> <soi> v1 ... vL          (B, text_len + 3 + L) int64

The text block has a fixed length, so the first video token stands at one fixed position and every shape is static.
Text ids come first in the vocabulary, then video ids, then ten special tokens (paper: 32000 + 8192 + 10 = 40202). The
loss is on video tokens only, Eq. (1), and in stage 3 the tokens of the first 17 frames weigh more, Eq. (2).

Parameter names and the rotary convention are Hugging Face's, so a state dict loads into `LlamaForCausalLM`. This file
knows nothing about pixels, captions or files; only its command line, which writes such a folder, reads a checkpoint.

    python model.py --export my_llama --ckpt checkpoints/toy
"""
import argparse
import json
import math
import os
import sys
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

CHUNK = 4096  # positions whose logits exist at the same time in training; at 40202 words 0.7 GB in float32


@dataclass
class ModelConfig:
    """The decoder's shape; the defaults are the paper's 700M model on the paper's tokens."""
    dim: int = 1536
    n_layers: int = 20
    n_heads: int = 12
    ffn_dim: int = 4096
    text_vocab: int = 32000
    video_vocab: int = 8192
    text_len: int = 128  # captions are cut or padded to this many ids
    text_tokenizer: str = "gpt2"  # data.TextTokenizer's kind
    latent_shape: tuple = (17, 16, 16)  # t, h, w of the longest clip: 17 * 16 * 16 = 4352 video tokens
    tokenizer: str = "paper"  # preset of tokenizer.py
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    cfg_scale: float = 7.5  # default guidance when sampling (Sec. 4.1)
    temperature: float = 1.0  # and default temperature

    @property
    def vocab_size(self):
        return self.text_vocab + self.video_vocab + 10  # 40202 in the paper

    @property
    def max_len(self):
        return self.text_len + 3 + math.prod(self.latent_shape)  # <sot> text <eot> <soi> and the longest clip

    def __post_init__(self):
        if min(self.dim, self.n_layers, self.n_heads, self.ffn_dim, self.text_len) < 1 or self.dim % (2 * self.n_heads):
            raise ValueError(f"sizes must be positive, and dim {self.dim} a multiple of twice the {self.n_heads} heads")

    # special tokens; <eoi> only closes the paper's count (4352 + 4 = 4356), five more are reserved
    pad = property(lambda self: self.text_vocab + self.video_vocab)
    sot = property(lambda self: self.pad + 1)
    eot = property(lambda self: self.pad + 2)
    soi = property(lambda self: self.pad + 3)


PRESETS = {
    "toy": ModelConfig(dim=128, n_layers=8, n_heads=4, ffn_dim=344, text_vocab=256, video_vocab=384, text_len=96,
                       text_tokenizer="bytes", latent_shape=(17, 8, 8), tokenizer="toy", rope_theta=100.0,
                       cfg_scale=1.5, temperature=0.7),  # 1.7 M
    "700m": ModelConfig(),  # 0.69 B parameters
    "3b": ModelConfig(dim=3072, n_layers=24, n_heads=24, ffn_dim=8192),  # 2.97 B
    "7b": ModelConfig(dim=4096, n_layers=32, n_heads=32, ffn_dim=11008),  # 6.81 B
}


def prefix_tokens(config, texts):
    """Lists of text ids -> the fed prefix <sot> text <pad>... <eot> <soi>, (B, text_len + 3) int64. [] = no caption."""
    rows = [[config.sot, *ids[:config.text_len], *[config.pad] * (config.text_len - len(ids)), config.eot, config.soi]
            for ids in texts]
    return torch.tensor(rows, dtype=torch.int64)

# ---------------------------------------------------------------------------------------------------------------------
# the decoder

class KVCache:
    """Static key/value memory for decoding: a layer's k and v are (B, heads, max_len, head_dim), filled up to `length`.

    `advance(n)` opens the next n positions; the n tokens fed then are kept there. Attention reads the first `span`
    positions, `length` rounded up to quarters of max_len, less what `seen` masks: four shapes, so that a compiled step
    serves many positions.
    """

    def __init__(self, config, batch, max_len, dtype, device):
        shape = (batch, config.n_heads, max_len, config.dim // config.n_heads)
        self.k, self.v = ([torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.n_layers)] for _ in range(2))
        self.max_len, self.quarter, self.length = max_len, -(-max_len // 4), 0
        self.positions = torch.arange(max_len, device=device)
        self.rotary = rotary(config, self.positions)
        self.causal = torch.ones(max_len, max_len, dtype=torch.bool, device=device).tril()
        for memory in (*self.k, *self.v):  # a CUDA graph may write only to what it knows to stay in its place
            torch._dynamo.mark_static_address(memory)

    def advance(self, n):
        """Open the next n positions. Only views are taken, so that a step costs no kernel here."""
        opened = slice(self.length, self.length + n)
        self.length += n
        self.span = min(-(-self.length // self.quarter) * self.quarter, self.max_len)
        self.now, self.seen = self.positions[opened], self.causal[opened, :self.span]
        self.cos, self.sin = (table[opened] for table in self.rotary)

    def update(self, layer, k, v):
        """Keep k, v (B, heads, S, head_dim) at the open positions; returns the keys and values of the whole span."""
        self.k[layer].index_copy_(2, self.now, k)
        self.v[layer].index_copy_(2, self.now, v)
        return self.k[layer][:, :, :self.span], self.v[layer][:, :, :self.span]


def rotary(config, positions):
    """cos and sin of LLaMA's rotary embedding at `positions` (S,), each (S, head_dim) float32."""
    half = config.dim // config.n_heads // 2
    frequency = config.rope_theta ** (-torch.arange(half, device=positions.device, dtype=torch.float32) / half)
    angle = positions[:, None].float() * frequency
    angle = torch.cat([angle, angle], dim=1)
    return angle.cos(), angle.sin()


def rotate(x, cos, sin):
    """Rotate x (B, heads, S, head_dim), Hugging Face's "rotate half" pairing of channels."""
    a, b = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat([-b, a], dim=-1) * sin.to(x.dtype)


def project(x, layers, fused):
    """x through several linear layers, with one multiplication if their weights are `fused` (see `Llama.fuse`)."""
    return [layer(x) for layer in layers] if fused is None else F.linear(x, fused).chunk(len(layers), dim=-1)


class Int8Linear(nn.Module):
    """For decoding: a linear layer with its weights as int8 and a scale for each row, half of bfloat16's bytes to read."""

    def __init__(self, weight):
        super().__init__()
        scale = weight.abs().amax(1).clamp(min=1e-8).float() / 127
        self.register_buffer("weight", (weight / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale.to(weight.dtype))

    def forward(self, x):
        rows = x.flatten(0, -2)  # torch 2.13 cannot compile this product for a CPU in three dimensions
        return (F.linear(rows, self.weight.to(x.dtype)) * self.scale).unflatten(0, x.shape[:-1])


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_heads = config.n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(config.dim, config.dim, bias=False) for _ in range(4))
        self.register_buffer("fused", None, persistent=False)

    def forward(self, x, cos, sin, cache, layer):
        B, S, D = x.shape
        q, k, v = (y.view(B, S, self.n_heads, -1).transpose(1, 2)  # (B, heads, S, head_dim)
                   for y in project(x, (self.q_proj, self.k_proj, self.v_proj), self.fused))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache is None:
            x = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            k, v = cache.update(layer, k, v)
            if S > 1:
                x = F.scaled_dot_product_attention(q, k, v, attn_mask=cache.seen)
            else:  # the kernels behind that call are made for many queries; for one, its definition is faster
                scores = (q @ k.mT).float() / q.shape[-1] ** 0.5
                x = scores.masked_fill(~cache.seen, -math.inf).softmax(-1).to(v.dtype) @ v
        return self.o_proj(x.transpose(1, 2).reshape(B, S, D))


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.up_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.down_proj = nn.Linear(config.ffn_dim, config.dim, bias=False)
        self.register_buffer("fused", None, persistent=False)

    def forward(self, x):
        gate, up = project(x, (self.gate_proj, self.up_proj), self.fused)
        return self.down_proj(F.silu(gate) * up)


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.dim, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.dim, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x, cos, sin, cache=None, layer=0):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, cache, layer)
        return x + self.mlp(self.post_attention_layernorm(x))


class Transformer(nn.Module):
    """Everything but the head: tokens (B, S) -> states (B, S, dim). Named `model` in the state dict, as Hugging Face's."""

    def __init__(self, config):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = nn.RMSNorm(config.dim, config.norm_eps)
        self.config = config
        self.checkpoint_activations = False  # keep only each layer's input for the backward pass, compute the rest again

    def forward(self, tokens, cache=None):
        """With a KVCache the tokens take the positions that its `advance` opened, after all that it holds."""
        if cache is None:
            cos, sin = rotary(self.config, torch.arange(tokens.shape[1], device=tokens.device))
        else:
            cos, sin = cache.cos, cache.sin
        x = self.embed_tokens(tokens)
        for i, layer in enumerate(self.layers):
            if self.checkpoint_activations and self.training:
                x = checkpoint(layer, x, cos, sin, use_reentrant=False)
            else:
                x = layer(x, cos, sin, cache, i if cache else 0)
        return self.norm(x)


class Llama(nn.Module):
    """The whole language model."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.model = Transformer(config)
        self.lm_head = nn.Linear(config.dim, config.vocab_size, bias=False)
        for name, p in self.named_parameters():
            if p.ndim == 2:  # the two projections that write to the residual stream start smaller (GPT-2)
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(p, std=config.dim ** -0.5 / ((2 * config.n_layers) ** 0.5 if residual else 1))

    def forward(self, tokens, targets=None, early_tokens=0, early_weight=1.0):
        """tokens (B, S) int64 -> logits (B, S, vocab_size).

        With targets (B, L) int64, the vocabulary ids of v1 ... vL where tokens end in <soi> v1 ... v(L-1): returns
        (loss, token_losses): Eq. (2) / L averaged over the batch (Eq. (1) at early_weight 1), and the unweighted
        loss of every video token, (B, L) float32 without gradient. Only those L positions go through the head.
        """
        x = self.model(tokens)
        if targets is None:
            return self.lm_head(x)
        states = x[:, -targets.shape[1]:].flatten(0, 1)
        weights = loss_weights(targets, early_tokens, early_weight).flatten()
        loss, losses = HeadLoss.apply(states, self.lm_head.weight, targets.flatten(), weights)
        return loss, losses.view(targets.shape)

    @torch.no_grad()
    def fuse(self):
        """For decoding: weights of the same input (q, k, v; gate, up) become one matrix, the parameters views of it. Each
        step reads all the weights, so fewer and larger reads are faster."""
        for layer in self.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            for part, layers in ((attention, (attention.q_proj, attention.k_proj, attention.v_proj)),
                                 (mlp, (mlp.gate_proj, mlp.up_proj))):
                part.fused = torch.cat([x.weight for x in layers])
                for x, rows in zip(layers, part.fused.chunk(len(layers))):
                    x.weight.data = rows
        return self

    @torch.no_grad()
    def quantize(self):
        """For decoding: the layers' weights become int8. Embeddings, norms and the head stay as they are."""
        for layer in self.model.layers:
            for part in (layer.self_attn, layer.mlp):
                for name, linear in list(part.named_children()):
                    setattr(part, name, Int8Linear(linear.weight))
        return self

    @torch.no_grad()
    def video_logits(self, tokens, cache):
        """Feed tokens (B, S) at the positions that cache.advance(S) opened, and return the last one's logits over video
        codes alone, (B, video_vocab) float32: nothing else follows <soi>, so only those rows of the head are multiplied."""
        c = self.config
        rows = self.lm_head.weight[c.text_vocab:c.text_vocab + c.video_vocab]
        return F.linear(self.model(tokens, cache)[:, -1], rows).float()

# ---------------------------------------------------------------------------------------------------------------------
# the loss

def token_losses(log_p, targets):
    """-log p(v_i | v_<i, t), Eq. (1): log-probabilities over the whole vocabulary (N, vocab), targets (N,) -> (N,)."""
    return -log_p.gather(1, targets[:, None])[:, 0]


def loss_weights(targets, early_tokens, early_weight):
    """What each token of targets (B, L) counts in Eq. (2) / L, mean over the batch: the first K = early_tokens of a row
    1 + lambda = early_weight times as much as the others."""
    weights = torch.ones(targets.shape, device=targets.device)
    weights[:, :early_tokens] = early_weight
    return weights / targets.numel()


def weighted_loss(logits, targets, early_tokens, early_weight):
    """Eq. (2) divided by L, mean over the batch; Eq. (1) when early_weight is 1. To read and to test by: training calls
    HeadLoss.

    logits (B, L, vocab), targets (B, L) int64, early_tokens K: the tokens of the first 17 frames, early_weight 1 + lambda.
    """
    log_p = logits.flatten(0, 1).float().log_softmax(1)
    losses = token_losses(log_p, targets.flatten()).view(targets.shape)
    return (losses * loss_weights(targets, early_tokens, early_weight)).sum()


class HeadLoss(torch.autograd.Function):
    """Head and weighted loss in one, CHUNK positions at a time: the logits of a long clip are never held whole. The
    gradient of a chunk is taken at once, while its logits are there, and `backward` only hands it on.

    states (N, dim), head (vocab, dim), targets (N,), weights (N,) -> (sum of weights x losses, losses (N,) float32).
    """

    @staticmethod
    def chunk(states, head, targets, weights):
        """-> losses (n,), and the gradients of their weighted sum with respect to the states and to the head."""
        logits = states @ head.T
        log_p = logits.float().log_softmax(1)
        losses = token_losses(log_p, targets)
        slope = log_p.exp()  # d loss / d logits = p - 1 at the target, p elsewhere
        slope[torch.arange(len(slope), device=slope.device), targets] -= 1
        slope = (slope * weights[:, None]).to(logits.dtype)
        return losses, slope @ head, slope.T @ states

    @staticmethod
    def forward(ctx, states, head, targets, weights):
        losses, to_states, to_head = [], [], 0
        for x, ids, w in zip(states.split(CHUNK), targets.split(CHUNK), weights.split(CHUNK)):
            loss, to_x, to_h = HeadLoss.chunk(x, head, ids, w)
            losses.append(loss)
            to_states.append(to_x)
            to_head = to_head + to_h.float()
        losses = torch.cat(losses)
        ctx.save_for_backward(torch.cat(to_states), to_head)
        ctx.mark_non_differentiable(losses)
        return (losses * weights).sum(), losses

    @staticmethod
    def backward(ctx, grad, _):
        to_states, to_head = ctx.saved_tensors
        return grad * to_states, grad * to_head, None, None

# ---------------------------------------------------------------------------------------------------------------------
# to Hugging Face

def export(model, folder):
    """Write a Llama as a folder that `transformers.LlamaForCausalLM.from_pretrained` reads: config.json, in
    transformers' words, and model.safetensors. Raises ValueError without the safetensors package."""
    try:
        from safetensors.torch import save_file
    except ImportError as e:
        raise ValueError("--export needs: pip install safetensors") from e
    c = model.config
    os.makedirs(folder, exist_ok=True)
    save_file(model.state_dict(), os.path.join(folder, "model.safetensors"), {"format": "pt"})
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
                   "hidden_size": c.dim, "intermediate_size": c.ffn_dim, "num_hidden_layers": c.n_layers,
                   "num_attention_heads": c.n_heads, "num_key_value_heads": c.n_heads, "vocab_size": c.vocab_size,
                   "max_position_embeddings": c.max_len, "rms_norm_eps": c.norm_eps,
                   "rope_theta": c.rope_theta, "tie_word_embeddings": False, "pad_token_id": c.pad,
                   "bos_token_id": c.sot, "eos_token_id": c.soi + 1,  # <eoi>
                   "torch_dtype": str(model.lm_head.weight.dtype).removeprefix("torch.")}, f, indent=1)


def main():
    from sample import load
    p = argparse.ArgumentParser(description="Write a trained model for Hugging Face transformers.")
    p.add_argument("--export", metavar="DIR", required=True)
    p.add_argument("--ckpt", help="checkpoint folder or stageN.pt (default: the shipped toy weights)")
    args = p.parse_args()
    export(load(args.ckpt)[0], args.export)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as e:
        sys.exit(f"model.py: {e}")
