"""model.py: tokens -> next token (Sec. 3.1, 3.2, 4.1).

LLaMA, with Hugging Face's parameter names, trained from scratch on text
and video tokens as one causal sequence (Sec. 3.1):

    <sot> t1 ... tN <pad>... <eot> <soi> v1 ... vL  (B, text_len + 3 + L)

Ids: 32000 of text, then 8192 of video, then 10 special, 40202 in all. The
loss is on video tokens alone. In sampling a `KVCache` keeps what was fed.
This file knows nothing about pixels.
"""
import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint


@dataclass
class ModelConfig:
    """By default the paper's 700M model; its shape is our choice."""
    dim: int = 1536
    n_layers: int = 20
    n_heads: int = 12
    ffn_dim: int = 4096
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    text_vocab: int = 32000  # (Sec. 4.1)
    video_vocab: int = 8192  # (Sec. 4.1)
    text_len: int = 128  # our choice: captions are cut or padded
    text_tokenizer: str = "gpt2"  # a kind of data.TextTokenizer
    latent_shape: tuple = (17, 16, 16)  # t, h, w of the longest clip

    @property
    def max_len(self):
        return self.text_len + 3 + math.prod(self.latent_shape)

    # Ten special tokens, five of them spare. <eoi>, our guess at the fourth in
    # the paper's 4356 = 4352 + 4, is neither fed nor predicted.
    pad = property(lambda self: self.text_vocab + self.video_vocab)
    sot = property(lambda self: self.pad + 1)
    eot = property(lambda self: self.pad + 2)
    soi = property(lambda self: self.pad + 3)
    eoi = property(lambda self: self.pad + 4)
    vocab_size = property(lambda self: self.pad + 10)

PRESETS = {
    "toy": ModelConfig(dim=192, n_layers=8, n_heads=6, ffn_dim=512,
                       text_vocab=316, video_vocab=1024, text_len=48,
                       text_tokenizer="storybook", latent_shape=(17, 8, 8),
                       rope_theta=100.0),  # our choice
    "700m": ModelConfig(),
    "3b": ModelConfig(dim=3072, n_layers=24, n_heads=24, ffn_dim=8192),
    "7b": ModelConfig(dim=4096, n_layers=32, n_heads=32, ffn_dim=11008),
}

def prefix_tokens(config, texts):
    """Lists of text ids, [] for no caption -> <sot> text <pad>... <eot>
    <soi>, (B, text_len + 3) int64. Padding is attended to (our choice)."""
    rows, padding = [], [config.pad] * config.text_len
    for ids in texts:
        ids = (ids + padding)[:config.text_len]
        rows.append([config.sot, *ids, config.eot, config.soi])
    return torch.tensor(rows)

def rotary(config, positions):
    """LLaMA's rotary embedding of positions (S,): cosine and sine, each
    (S, head_dim) float32."""
    half = config.dim // config.n_heads // 2
    exponent = torch.arange(half, device=positions.device) / half
    angle = (positions[:, None] * config.rope_theta ** -exponent).repeat(1, 2)
    return angle.cos(), angle.sin()

def rotate(x, cos, sin):
    """x (B, heads, S, head_dim); channel i turns with channel i + half."""
    a, b = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat([-b, a], -1) * sin.to(x.dtype)

class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_heads, dim = config.n_heads, config.dim
        self.q_proj = nn.Linear(dim, dim, bias=False)
        self.k_proj = nn.Linear(dim, dim, bias=False)
        self.v_proj = nn.Linear(dim, dim, bias=False)
        self.o_proj = nn.Linear(dim, dim, bias=False)

    def forward(self, x, cos, sin, cache, layer):
        split = (*x.shape[:2], self.n_heads, -1)  # B, S, heads, head_dim
        q = self.q_proj(x).view(split).transpose(1, 2)
        k = self.k_proj(x).view(split).transpose(1, 2)
        v = self.v_proj(x).view(split).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache is None:
            x = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            x = cache.attend(layer, q, k, v)
        return self.o_proj(x.transpose(1, 2).flatten(2))

class MLP(nn.Module):  # SwiGLU
    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.up_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.down_proj = nn.Linear(config.ffn_dim, config.dim, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))

class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.dim, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.dim, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x, cos, sin, cache=None, layer=0):
        h = self.input_layernorm(x)
        x = x + self.self_attn(h, cos, sin, cache, layer)
        return x + self.mlp(self.post_attention_layernorm(x))

class Transformer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        # Llama.__init__ fills it: nn.Embedding's own way is slow
        table = torch.empty(config.vocab_size, config.dim)
        self.embed_tokens = nn.Embedding.from_pretrained(table, freeze=False)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = nn.RMSNorm(config.dim, config.norm_eps)
        self.checkpoint_activations = False  # True: computed twice, to save memory

    def forward(self, tokens, cache=None):
        """tokens (B, S) -> states (B, S, dim)"""
        if cache is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device)
            cos, sin = rotary(self.config, positions)
        else:
            cos, sin = cache.cos, cache.sin
        x = self.embed_tokens(tokens)
        for i, layer in enumerate(self.layers):
            if self.checkpoint_activations:
                x = checkpoint(layer, x, cos, sin, use_reentrant=False,
                               preserve_rng_state=False)  # no dropout
            else:
                x = layer(x, cos, sin, cache, i)
        return self.norm(x)

class Llama(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.model = Transformer(config)
        self.lm_head = nn.Linear(config.dim, config.vocab_size, bias=False)
        self.loss = weighted_loss  # train.py may compile it
        for name, p in self.named_parameters():
            if p.ndim == 2 and not p.is_meta:  # our choice; smaller at outputs, as in GPT-2
                std = config.dim ** -0.5
                if "o_proj" in name or "down_proj" in name:
                    std /= math.sqrt(2 * config.n_layers)
                nn.init.normal_(p, std=std)

    def forward(self, tokens, targets=None, early_tokens=0, lambda_=0.0):
        """tokens (B, S) int64 -> logits (B, S, vocab_size). With targets
        v1 ... vL (B, L), where tokens end in <soi> v1 ... v(L-1): what
        `weighted_loss` returns. The loss is computed in here since DDP and
        FSDP have the weights and their gradients ready for this call only."""
        x = self.model(tokens)
        if targets is None:
            return self.lm_head(x)
        x = x[:, -targets.shape[1]:]
        head = self.lm_head.weight
        return self.loss(x, head, targets, early_tokens, lambda_)

    def next_logits(self, tokens, cache, window=1):
        """Feed tokens (B, n) after cache.advance(n) -> what follows each of the
        last `window` of them: logits (B, window, video_vocab) float32. Only
        video ids can be drawn, though the loss is over all ids."""
        c = self.config
        head = self.lm_head.weight[c.text_vocab:c.pad]
        return F.linear(self.model(tokens, cache)[:, -window:], head).float()

def token_losses(states, head, targets):
    """The terms of Eq. (1): states (B, L, dim), head (vocab_size, dim) and
    targets (B, L) int64 -> -log p(v_i | v_<i, t), (B, L) float32; 0 where
    the target is -100 (no loss)."""
    logits = F.linear(states, head).flatten(0, 1).float()
    losses = F.cross_entropy(logits, targets.flatten(), reduction="none")
    return losses.view(targets.shape)

def weighted_loss(states, head, targets, early_tokens, lambda_):
    """Eq. (2) / L, mean over the batch, and the unweighted losses (B, L).
    early_tokens is K (17 frames); lambda_ 0 gives Eq. (1)."""
    losses = token_losses(states, head, targets)
    early, late = losses[:, :early_tokens], losses[:, early_tokens:]
    loss = (1 + lambda_) * early.sum(1) + late.sum(1)  # Eq. (2)
    return loss.mean() / targets.shape[1], losses.detach()

# ---- speed: a cache, so that what is known is not fed again ----

class KVCache:
    """The keys and values of the tokens fed so far, and the attention of new
    tokens to them: what `Attention` computes without a cache."""

    def __init__(self, model, batch, window=1):
        config, like = model.config, model.lm_head.weight
        size = config.max_len + window  # `jacobi` guesses beyond the end
        shape = (batch, config.n_heads, size, config.dim // config.n_heads)
        self.k, self.v = ([like.new_zeros(shape) for _ in range(config.n_layers)]
                          for _ in range(2))
        self.all_positions = torch.arange(size, device=like.device)
        self.rotary = rotary(config, self.all_positions)
        self.length = 0
        self.block = 1  # attention reads a multiple of so many places

    def advance(self, n):
        """Call before feeding n tokens. Apart, as it is not to be compiled."""
        new = slice(self.length, self.length + n)
        self.length += n
        self.span = math.ceil(self.length / self.block) * self.block
        self.positions = self.all_positions[new]
        self.cos, self.sin = (table[new] for table in self.rotary)
        filled = self.all_positions[:self.span]
        past = filled <= self.positions[:, None]
        self.mask = torch.where(past, 0, -math.inf)  # (n, span) float32

    def attend(self, layer, q, k, v):
        """q, k, v of n new tokens -> their attention, each (B, heads, n, head_dim).
        Written out it is faster for few queries; the softmax is in float32."""
        self.k[layer].index_copy_(2, self.positions, k)
        self.v[layer].index_copy_(2, self.positions, v)
        k, v = self.k[layer][:, :, :self.span], self.v[layer][:, :, :self.span]
        scores = torch.add(self.mask, q @ k.mT, alpha=q.shape[-1] ** -0.5)  # mask + qk/sqrt(d)
        return scores.softmax(-1).to(v.dtype) @ v

def cache_to_compile(model, batch, window=1):
    """A KVCache for torch.compile, which makes a graph for each `span`. Here it
    is rounded up to quarters of the cache, so there are four graphs."""
    cache = KVCache(model, batch, window)
    cache.block = math.ceil(len(cache.all_positions) / 4)
    for x in cache.k + cache.v:
        # CUDA graphs need a fixed address; on a CPU it would tie them to this cache
        if x.is_cuda:
            torch._dynamo.mark_static_address(x)
    return cache

# ---- plumbing ----

def load_decoder(saved, device="cpu"):
    """The decoder of a checkpoint (from `read_checkpoint`), ready to sample:
    bfloat16, or float32 on a CPU."""
    with torch.device("meta"):  # no random weights
        model = Llama(ModelConfig(**saved["config"]))
    model.load_state_dict(saved["weights"], assign=True)
    cpu = torch.device(device).type == "cpu"
    model.to(device, torch.float32 if cpu else torch.bfloat16)
    return model.eval().requires_grad_(False)
