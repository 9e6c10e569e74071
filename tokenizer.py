"""tokenizer.py: video <-> tokens (Sec. 3.1, Sec. 4.1 "Model Architecture").

    video (B, 3, T, H, W) in [-1, 1], T = 1 + 4k frames
      -> Encoder       latents (B, C, t, h, w), t = 1 + k, h = H/8, w = W/8
      -> ClusteringVQ  tokens (B, t, h, w) int64, each one of the codes
      -> Decoder       video (B, 3, T, H, W)

Latent frame 0 holds frame 0 alone, latent frame n holds frames 4n-3 ... 4n,
and nothing depends on a later frame. So an image is a clip of one frame, and
the first 17 frames have the first 5 latent frames of the clip's tokens:

1. Convolutions are padded on the left in time only (`CausalConv3d`).
2. Norms see one position at a time; a GroupNorm would see the future.
3. The first frame stays alone: stride 2 turns 1 + 2k frames into 1 + k, and
   `Upsample` drops the very first of the frames it doubles.

This file knows nothing about captions, optimizers or the language model.
"""
import hashlib
import os
import pickle
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F

@dataclass
class TokenizerConfig:
    """The defaults: the paper's 246 M parameters (Sec. 4.1)."""
    resolution: int = 128  # pixels, height = width (Sec. 3.1)
    frames: int = 65  # of the longest clip (Sec. 3.1)
    codebook_size: int = 8192  # (Sec. 3.1)
    code_dim: int = 8  # our choice
    base_channels: int = 128  # MAGVIT-v2's, as the multipliers
    multipliers: tuple = (1, 2, 2, 4)  # channels of the four levels
    temporal: tuple = (False, True, True)  # downsamplings of time
    encoder_blocks: tuple = (1, 2, 3, 6)  # at each level (our choice)
    decoder_blocks: tuple = (2, 2, 3, 5)
    encoder_kernel: int = 3

    def __post_init__(self):
        levels = (self.multipliers, self.encoder_blocks,
                  self.decoder_blocks, self.temporal)
        shape = [*map(len, levels), sum(self.temporal), self.resolution % 8]
        sizes = (self.base_channels, self.codebook_size, self.code_dim)
        if (shape != [4, 4, 4, 3, 2, 0] or min(sizes) < 1
                or self.codebook_size > 2 ** 16):
            raise ValueError("a tokenizer compresses 8x8x4 by four levels "
                             "and has at most 65536 codes")

TOKENIZER_PRESETS = {
    # the encoder sees little beyond 8x8 pixels: plain ground has one token
    "toy": TokenizerConfig(
        resolution=64, codebook_size=384, base_channels=16,
        multipliers=(1, 2, 3, 4), encoder_blocks=(0, 1, 1, 1),
        decoder_blocks=(0, 1, 1, 2), encoder_kernel=1),
    "paper": TokenizerConfig(),
}

# ---------------------------------------------------------------------------
# the causal 3D CNN

class CausalConv3d(nn.Conv3d):
    """A 3D convolution with `kernel - 1` zero frames before the first.

    (B, C, T, H, W) -> the same at stride 1; at stride 2 in time,
    1 + 2k frames become 1 + k.
    """

    def __init__(self, dim_in, dim_out, kernel=3, stride=(1, 1, 1)):
        padding = (0, kernel // 2, kernel // 2)
        super().__init__(dim_in, dim_out, kernel, stride, padding)
        # Our choice: weights on past frames are initialized to zero, so at
        # first every frame is treated as an independent image
        self.weight.data[:, :, :-1] = 0

    def forward(self, x):
        if x.shape[2] == 1:  # the same result, faster: no past
            x = F.conv2d(x[:, :, 0], self.weight[:, :, -1], self.bias,
                         self.stride[1:], self.padding[1:])
            return x[:, :, None]
        past = self.kernel_size[0] - 1
        return super().forward(F.pad(x, (0, 0, 0, 0, past, 0)))

class Norm(nn.LayerNorm):
    """LayerNorm over the channels of each position of (B, C, T, H, W)."""

    def forward(self, x):
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)

class ResBlock(nn.Module):
    def __init__(self, dim, kernel=3):
        super().__init__()
        self.norm1 = Norm(dim)
        self.conv1 = CausalConv3d(dim, dim, kernel)
        self.norm2 = Norm(dim)
        self.conv2 = CausalConv3d(dim, dim, kernel)

    def forward(self, x):
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))

class Encoder(nn.Module):
    """video (B, 3, T, H, W) -> latents (B, code_dim, t, h, w)."""

    def __init__(self, config):
        super().__init__()
        kernel = config.encoder_kernel
        dims = [config.base_channels * m for m in config.multipliers]
        self.conv_in = CausalConv3d(3, dims[0], kernel)
        self.layers = nn.Sequential()
        for level, dim in enumerate(dims):
            for _ in range(config.encoder_blocks[level]):
                self.layers.append(ResBlock(dim, kernel))
            if level < 3:
                stride = (1 + config.temporal[level], 2, 2)
                down = CausalConv3d(dim, dims[level + 1], stride=stride)
                self.layers.append(down)
        self.norm_out = Norm(dims[-1])
        self.conv_out = CausalConv3d(dims[-1], config.code_dim, 1)

    def forward(self, x):
        x = self.layers(self.conv_in(x))
        return self.conv_out(F.silu(self.norm_out(x)))

class Upsample(nn.Module):
    """Depth-to-space: twice the height and width. If `temporal`, each
    frame becomes two and the first of all is dropped, T -> 2T - 1."""

    def __init__(self, dim_in, dim_out, temporal):
        super().__init__()
        self.factors = (1 + temporal, 2, 2)
        self.conv = CausalConv3d(dim_in, dim_out * 4 * (1 + temporal))
        if temporal:  # of the first frame's two only the second is kept, so
            # images train only that half: begin with equal halves
            for p in (self.conv.weight, self.conv.bias):
                first, second = p.data.chunk(2)
                first.copy_(second)

    def forward(self, x):
        B, _, T, H, W = x.shape
        p, q, r = self.factors
        x = self.conv(x).view(B, p, q, r, -1, T, H, W)
        x = x.permute(0, 4, 5, 1, 6, 2, 7, 3)  # (B, C, T, p, H, q, W, r)
        x = x.reshape(B, -1, T * p, H * q, W * r)
        return x[:, :, p - 1:]

def repeat(x, temporal):
    """Upsample without weights: nearest neighbours."""
    x = x.repeat_interleave(2, 3).repeat_interleave(2, 4)
    return x.repeat_interleave(2, 2)[:, :, 1:] if temporal else x

class AdaptiveNorm(nn.Module):
    """A norm that the quantized latent scales and shifts (MAGVIT-v2)."""

    def __init__(self, dim, code_dim):
        super().__init__()
        self.norm = Norm(dim, elementwise_affine=False)
        self.modulation = nn.Conv3d(code_dim, 2 * dim, 1)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x, latent):
        scale, shift = self.modulation(latent).chunk(2, dim=1)
        return self.norm(x) * (1 + scale) + shift

class Decoder(nn.Module):
    """Quantized latents (B, code_dim, t, h, w) -> video (B, 3, T, H, W)."""

    def __init__(self, config):
        super().__init__()
        dims = [config.base_channels * m for m in config.multipliers]
        self.temporal = config.temporal[::-1]
        self.conv_in = CausalConv3d(config.code_dim, dims[-1])
        self.adaptive = nn.ModuleList()
        self.levels = nn.ModuleList()
        self.up = nn.ModuleList()
        for level in (3, 2, 1, 0):
            dim, n = dims[level], config.decoder_blocks[level]
            self.adaptive.append(AdaptiveNorm(dim, config.code_dim))
            blocks = [ResBlock(dim) for _ in range(n)]
            self.levels.append(nn.Sequential(*blocks))
            if level > 0:
                temporal = config.temporal[level - 1]
                self.up.append(Upsample(dim, dims[level - 1], temporal))
        self.norm_out = Norm(dims[0])
        self.conv_out = CausalConv3d(dims[0], 3)

    def forward(self, latent):
        x = self.conv_in(latent)
        for level in range(4):
            x = self.levels[level](self.adaptive[level](x, latent))
            if level < 3:
                x = self.up[level](x)
                latent = repeat(latent, self.temporal[level])
        return self.conv_out(F.silu(self.norm_out(x)))

# ---------------------------------------------------------------------------
# Clustering VQ (Zheng & Vedaldi, "Online Clustered Codebook", ICCV 2023)

class ClusteringVQ(nn.Module):
    """Vector quantization that moves unused codes to the latents.

    forward(z (B, C, t, h, w)) -> quantized (B, C, t, h, w), tokens
    (B, t, h, w) int64, loss (scalar). Codes and latents are compared on
    the unit sphere (our choice), in float32 whatever autocast says. In
    training it keeps latents and tokens in `seen`, for `reinitialize`.
    """

    def __init__(self, codebook_size, code_dim, commitment=0.25,
                 decay=0.99):
        super().__init__()
        codes = F.normalize(torch.randn(codebook_size, code_dim), dim=1)
        self.codebook = nn.Parameter(codes)  # e_k
        self.register_buffer("usage", torch.zeros(codebook_size))  # N_k
        self.commitment, self.decay = commitment, decay
        self.seen = []  # (latents, tokens) since the last optimizer step

    @torch.autocast("cpu", enabled=False)
    @torch.autocast("cuda", enabled=False)
    def forward(self, z):
        z = z.movedim(1, -1).to(self.codebook.dtype)
        z = F.normalize(z, dim=-1)  # (B, t, h, w, C)
        codes = F.normalize(self.codebook, dim=-1)
        with torch.no_grad():  # the nearest: the largest inner product
            tokens = (z.flatten(0, 3) @ codes.T).argmax(1)
            tokens = tokens.view(z.shape[:-1])
        quantized = codes[tokens]
        if self.training and torch.is_grad_enabled():
            self.seen.append((z.detach().flatten(0, 3), tokens.flatten()))
        pull = (quantized - z.detach()).square().sum(-1).mean()
        commit = (quantized.detach() - z).square().sum(-1).mean()
        quantized = z + (quantized - z).detach()  # straight-through
        loss = pull + self.commitment * commit
        return quantized.movedim(-1, 1), tokens, loss

    def lookup(self, tokens):
        """tokens (B, t, h, w) -> codes (B, C, t, h, w)."""
        return F.normalize(self.codebook, dim=-1)[tokens].movedim(-1, 1)

    @torch.no_grad()
    def reinitialize(self, seed, step):
        """Move rarely used codes to latents of the batch just seen.

            N_k <- g N_k + (1 - g) n_k / n        running usage, g = 0.99
            a_k  = exp(-10 N_k M / (1 - g))       1 for an unused code
            e_k <- (1 - a_k) e_k + a_k anchor_k   M codes in all

        n_k of the n latents chose code k. anchor_k is one of the latents,
        drawn in proportion to its quantization error (our choice: new codes
        belong where the picture is still wrong). The batch is that of all
        ranks and the draw depends on (seed, step), so all ranks agree.
        """
        latents, tokens = (torch.cat(x) for x in zip(*self.seen))
        self.seen = []
        latents, tokens = of_all_ranks(latents), of_all_ranks(tokens)
        M = len(self.usage)
        counts = torch.bincount(tokens, minlength=M) / len(tokens)
        self.usage.lerp_(counts, 1 - self.decay)
        codes = F.normalize(self.codebook, dim=-1)
        errors = (latents - codes[tokens]).square().sum(1) + 1e-9
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        rows = torch.multinomial(errors.cpu(), M, replacement=True,
                                 generator=generator)
        anchors = latents[rows.to(latents.device)]
        a = torch.exp(-10 * self.usage * M / (1 - self.decay))[:, None]
        # every step also puts the codebook back on the unit sphere
        self.codebook.copy_((1 - a) * codes + a * anchors)

def of_all_ranks(x):
    if not dist.is_initialized():
        return x
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x)
    return torch.cat(parts)

# ---------------------------------------------------------------------------
# the tokenizer, and how it is trained

class VideoTokenizer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.vq = ClusteringVQ(config.codebook_size, config.code_dim)
        self.to(memory_format=torch.channels_last_3d)

    def forward(self, video):
        """video (B, 3, T, H, W) -> reconstruction (same shape), VQ loss,
        tokens (B, t, h, w). ValueError unless T = 1 + 4k, H = 8h, W = 8w."""
        quantized, tokens, loss = self.vq(self.latents(video))
        return self.decoder(quantized), loss, tokens

    def encode(self, video):
        """video (B, 3, T, H, W) in [-1, 1] -> tokens (B, t, h, w)."""
        return self.vq(self.latents(video))[1]

    def decode(self, tokens):
        """tokens (B, t, h, w) -> video (B, 3, 4t - 3, 8h, 8w), unclamped."""
        return self.decoder(self.vq.lookup(tokens))

    def latents(self, video):
        _, C, T, H, W = video.shape
        if C != 3 or T % 4 != 1 or H % 8 or W % 8:
            raise ValueError("video must be (B, 3, 1 + 4k, 8h, 8w), "
                             f"not {tuple(video.shape)}")
        layout = torch.channels_last_3d
        return self.encoder(video.contiguous(memory_format=layout))

class Discriminator(nn.Module):
    """3D PatchGAN: video (B, 3, T, H, W) -> a score for each patch,
    (B, 1, t, h, w), high for real ones."""

    def __init__(self, base_channels):
        super().__init__()
        dims = [3, base_channels, 2 * base_channels, 4 * base_channels]
        self.net = nn.Sequential()
        for i, stride in enumerate([(1, 2, 2), (2, 2, 2), (2, 2, 2)]):
            conv = nn.Conv3d(dims[i], dims[i + 1], (3, 4, 4), stride, 1)
            self.net.extend([conv, nn.LeakyReLU(0.2)])
        self.net.append(nn.Conv3d(dims[-1], 1, 3, padding=1))
        self.to(memory_format=torch.channels_last_3d)

    def forward(self, video):
        return self.net(video)

class TokenizerLoss(nn.Module):
    """A VQGAN's objective (the paper does not state its own):

        generator      L1 + 4 L2 + VQ + w_p LPIPS - w_a mean D(recon)
        discriminator  mean relu(1 - D(video)) + mean relu(1 + D(recon))

    The tokenizer is the generator. Its loss sees D's weights as constants
    and D's loss sees recon as one, so one backward pass of the sum gives
    each network its own gradient.
    """

    def __init__(self, tokenizer, adversarial_weight, perceptual_weight):
        super().__init__()
        self.tokenizer = tokenizer
        self.discriminator = Discriminator(tokenizer.config.base_channels)
        self.adversarial_weight = adversarial_weight
        self.perceptual_weight = perceptual_weight
        self.lpips = []  # a list hides it from the optimizer
        if perceptual_weight:
            import lpips
            net = lpips.LPIPS(net="vgg", verbose=False)
            self.lpips = [net.requires_grad_(False)]

    def forward(self, video, adversarial):
        """video (B, 3, T, H, W) in [-1, 1]; adversarial: whether the
        discriminator plays. -> loss (scalar), what to log {name: scalar}"""
        recon, vq_loss, _ = self.tokenizer(video)
        generator = vq_loss + self.reconstruction_loss(recon.float(), video)
        mse = (recon - video).square().mean()
        logs = {"psnr": -10 * torch.log10(mse / 4), "vq": vq_loss}
        # 0 at first, but for DDP it depends on every parameter
        weights = self.discriminator.parameters()
        discriminator = sum(0 * p.sum() for p in weights)
        if adversarial:
            generator = generator - self.adversarial_weight * self.fooled(recon)
            real = self.discriminator(video).float()
            fake = self.discriminator(recon.detach()).float()
            discriminator = (F.relu(1 - real) + F.relu(1 + fake)).mean()
            logs["discriminator"] = discriminator
        loss = logs["loss"] = generator + discriminator
        return loss, {name: x.detach() for name, x in logs.items()}

    def reconstruction_loss(self, recon, video):
        error = recon - video
        loss = error.abs().mean() + 4 * error.square().mean()
        for net in self.lpips:  # frame by frame, (B T, 3, H, W)
            a, b = (x.transpose(1, 2).flatten(0, 1) for x in (recon, video))
            perceptual = net.to(a.device)(a, b).mean()
            loss = loss + self.perceptual_weight * perceptual
        return loss

    def fooled(self, recon):
        """mean D(recon), the discriminator's weights being constants."""
        named = self.discriminator.named_parameters()
        constants = {name: p.detach() for name, p in named}
        score = torch.func.functional_call(self.discriminator, constants, recon)
        return score.float().mean()

# ---------------------------------------------------------------------------
# plumbing: checkpoints

SHIPPED = os.path.join(os.path.dirname(os.path.abspath(__file__)),
                       "checkpoints", "toy")

def read_checkpoint(path, kind):
    """A dict that train.py saved. kind: "tokenizer", "stage1" ..., "stage"
    for any stage. Raises ValueError for another kind or a damaged file."""
    try:
        checkpoint = torch.load(path, map_location="cpu", mmap=True,
                                weights_only=True)
        found = checkpoint["kind"]
    except (RuntimeError, pickle.UnpicklingError, EOFError, LookupError,
            TypeError) as e:
        raise ValueError(f"{path} is no checkpoint or is cut short") from e
    if not found.startswith(kind):
        raise ValueError(f"{path} holds {found}, not {kind}")
    return checkpoint

def load_tokenizer(folder=None, device="cpu"):
    """The VideoTokenizer of a folder (None: the shipped one), and a hash of
    its weights. They are rounded to bfloat16 first, so that what ships is
    the same tokenizer as what training wrote."""
    path = os.path.join(folder or SHIPPED, "tokenizer.pt")
    checkpoint = read_checkpoint(path, "tokenizer")
    weights = {k: w.bfloat16() for k, w in checkpoint["weights"].items()}
    digest = hashlib.sha256()
    for name in sorted(weights.keys() - {"vq.usage"}):
        bits = weights[name].contiguous().view(torch.int16).numpy()
        digest.update(name.encode() + bits.tobytes())
    tokenizer = VideoTokenizer(TokenizerConfig(**checkpoint["config"]))
    tokenizer.load_state_dict(weights)
    tokenizer.to(device).eval().requires_grad_(False)
    return tokenizer, digest.hexdigest()[:16]
