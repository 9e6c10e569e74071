"""tokenizer.py: video <-> tokens (Sec. 3.1 and 4.1).

    video (B, 3, T, H, W) in [-1, 1], T = 1 + 4k frames
      -> Encoder       latents (B, C, t, h, w), t = 1 + k, h = H/8, w = W/8
      -> ClusteringVQ  tokens (B, t, h, w) int64
      -> Decoder       video (B, 3, T, H, W); `AdaptiveNorm` at each level

Latent frame 0 holds frame 0 alone, latent frame n holds frames 4n-3 ... 4n.
No token depends on a later frame: an image is a clip of one frame, and the
first 5 latent frames of a clip are those of its first 17 frames.

1. Convolutions are padded on the left in time only (`CausalConv3d`).
2. Norms see one position at a time; a GroupNorm would see the future.
3. The first frame stays alone: stride 2 turns 1 + 2k frames into 1 + k.
"""
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

from tools import adopted, machine


@dataclass
class TokenizerConfig:
    """The defaults: the paper's 246 M parameters (Sec. 4.1)."""
    resolution: int = 128  # pixels, height = width (Sec. 3.1)
    frames: int = 65  # of the longest clip (Sec. 3.1)
    codebook_size: int = 8192  # Sec. 4.1
    code_dim: int = 8  # our choice
    base_channels: int = 128  # as in MAGVIT-v2
    multipliers: tuple = (1, 2, 2, 4)  # of channels, by level
    temporal: tuple = (False, True, True)  # where time is halved
    encoder_blocks: tuple = (1, 2, 3, 6)  # our choice
    decoder_blocks: tuple = (2, 2, 3, 5)
    encoder_kernels: tuple = (3, 3, 3, 3)  # of conv_in, blocks; strided ones: 3

TOKENIZER_PRESETS = {
    "toy": TokenizerConfig(
        resolution=64, codebook_size=1024, base_channels=16,
        multipliers=(1, 2, 3, 6), encoder_blocks=(0, 1, 1, 2),
        decoder_blocks=(0, 1, 1, 2), encoder_kernels=(1, 1, 1, 3)),
    "paper": TokenizerConfig(),
}

class CausalConv3d(nn.Conv3d):
    """Frame t sees none after it; stride 2 in time leaves frame 0 alone."""

    def __init__(self, dim_in, dim_out, kernel=3, stride=(1, 1, 1)):
        padding = (0, kernel // 2, kernel // 2)
        super().__init__(dim_in, dim_out, kernel, stride, padding)
        # images never train the weights of past frames: start at 0 (our choice)
        self.weight.data[:, :, :-1] = 0

    def forward(self, x):
        if x.shape[2] == 1:  # no past: the same, faster
            x = F.conv2d(x[:, :, 0], self.weight[:, :, -1], self.bias,
                         self.stride[1:], self.padding[1:])
            return x[:, :, None]
        past = self.kernel_size[0] - 1
        return super().forward(F.pad(x, (0, 0, 0, 0, past, 0)))

class Norm(nn.LayerNorm):  # over the channels of (B, C, T, H, W)
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
    def __init__(self, config):
        super().__init__()
        kernels = config.encoder_kernels
        dims = [config.base_channels * m for m in config.multipliers]
        self.conv_in = CausalConv3d(3, dims[0], kernels[0])
        self.layers = nn.Sequential()
        for level, dim in enumerate(dims):
            for _ in range(config.encoder_blocks[level]):
                self.layers.append(ResBlock(dim, kernels[level]))
            if level < 3:
                stride = (1 + config.temporal[level], 2, 2)
                self.layers.append(CausalConv3d(dim, dims[level + 1], stride=stride))
        self.norm_out = Norm(dims[-1])
        self.conv_out = CausalConv3d(dims[-1], config.code_dim, 1)

    def forward(self, video):
        """video (B, 3, T, H, W) -> latents (B, code_dim, t, h, w)."""
        _, C, T, H, W = video.shape
        if C != 3 or T % 4 != 1 or H % 8 or W % 8:
            raise ValueError(f"video is {tuple(video.shape)}, not (B, 3, 1 + 4k, 8h, 8w)")
        x = self.layers(self.conv_in(video))
        return self.conv_out(F.silu(self.norm_out(x)))

class Upsample(nn.Module):
    def __init__(self, dim_in, dim_out, temporal):
        super().__init__()
        self.factors = (1 + temporal, 2, 2)  # p, q, r
        self.conv = CausalConv3d(dim_in, dim_out * 4 * (1 + temporal))
        if temporal:
            # each frame becomes two, of an image's only the second is kept, so
            # only its weights are trained: those of the first begin as a copy
            for x in self.conv.parameters():
                x.data[:len(x) // 2] = x.data[len(x) // 2:]

    def forward(self, x):
        """Depth-to-space: twice the height and width. If `temporal`,
        each frame becomes two, the very first is dropped: T -> 2T - 1."""
        x = self.conv(x).unflatten(1, (*self.factors, -1))
        x = x.permute(0, 4, 5, 1, 6, 2, 7, 3)  # (B, C, T, p, H, q, W, r)
        x = x.flatten(6).flatten(4, 5).flatten(2, 3)
        return x[:, :, self.factors[0] - 1:]

class AdaptiveNorm(nn.Module):
    def __init__(self, dim, code_dim):
        super().__init__()
        self.norm = Norm(dim, elementwise_affine=False)
        self.modulation = nn.Conv3d(code_dim, 2 * dim, 1)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x, latent):
        """The quantized latent scales and shifts x (MAGVIT-v2)."""
        scale, shift = self.modulation(latent).chunk(2, dim=1)
        return self.norm(x) * (1 + scale) + shift

class Decoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        dims = [config.base_channels * m for m in config.multipliers]
        self.conv_in = CausalConv3d(config.code_dim, dims[-1])
        self.adaptive = nn.ModuleList()  # these three from coarse to fine
        self.levels = nn.ModuleList()
        self.up = nn.ModuleList()
        for level in (3, 2, 1, 0):
            dim, n = dims[level], config.decoder_blocks[level]
            self.adaptive.append(AdaptiveNorm(dim, config.code_dim))
            self.levels.append(nn.Sequential(*(ResBlock(dim) for _ in range(n))))
            if level > 0:
                self.up.append(Upsample(dim, dims[level - 1], config.temporal[level - 1]))
        self.norm_out = Norm(dims[0])
        self.conv_out = CausalConv3d(dims[0], 3)

    def forward(self, latent):
        """Quantized latents (B, code_dim, t, h, w) -> video."""
        x = self.conv_in(latent)
        for norm, blocks, up in zip(self.adaptive, self.levels, [*self.up, None]):
            x = blocks(norm(x, latent))
            if up:
                x = up(x)
                latent = F.interpolate(latent, scale_factor=up.factors)
                latent = latent[:, :, -x.shape[2]:]  # without the first, as in up
        return self.conv_out(F.silu(self.norm_out(x)))

class ClusteringVQ(nn.Module):
    """Vector quantization that moves rarely used codes to latents (Zheng & Vedaldi,
    ICCV 2023). Latents and codes have length 1 (our choice).

    `forward` quantizes; `reinitialize` moves codes, once per optimizer step,
    because it counts the latents of all micro-batches on all ranks."""

    def __init__(self, codebook_size, code_dim, commitment=0.25, decay=0.99):
        super().__init__()
        codes = F.normalize(torch.randn(codebook_size, code_dim))
        self.codebook = nn.Parameter(codes)  # e_k
        self.register_buffer("usage", torch.zeros(codebook_size))  # N_k
        self.commitment, self.decay = commitment, decay
        self.seen = []  # (latents, tokens) of this optimizer step

    @torch.autocast("cpu", enabled=False)
    @torch.autocast("cuda", enabled=False)
    def forward(self, z):
        """Latents (B, C, t, h, w) -> quantized (same shape), tokens
        (B, t, h, w) int64, loss (scalar)."""
        z = z.movedim(1, -1).to(self.codebook.dtype)  # (B, t, h, w, C)
        z = F.normalize(z, dim=-1)
        codes = F.normalize(self.codebook)
        tokens = (z @ codes.T).argmax(-1)  # the nearest codes
        quantized = codes[tokens]
        if self.training and torch.is_grad_enabled():
            self.seen.append((z.detach().flatten(0, 3), tokens.flatten()))
        codebook_loss = (quantized - z.detach()).square().sum(-1).mean()
        commitment_loss = (quantized.detach() - z).square().sum(-1).mean()
        loss = codebook_loss + self.commitment * commitment_loss
        quantized = z + (quantized - z).detach()  # straight-through
        return quantized.movedim(-1, 1), tokens, loss

    @torch.no_grad()
    def reinitialize(self, seed, step, finite=True):
        """Move rarely used codes to latents of this step.

            N_k <- g N_k + (1 - g) n_k / n        usage, g = 0.99
            a_k  = exp(-10 N_k M / (1 - g))       1 if unused; N_k tends to 1 / M on average
            e_k <- (1 - a_k) e_k + a_k anchor_k   M codes in all

        n_k of the n latents chose code k. All ranks draw the same anchors. As N_k
        begins at 0, the first step moves all codes that no latent chose.
        finite: whether this step's gradients were; else no code moves.
        """
        latents, tokens = (machine.of_all_ranks(torch.cat(x)) for x in zip(*self.seen))
        self.seen = []
        if not finite:
            return
        M = len(self.usage)
        counts = torch.bincount(tokens, minlength=M) / len(tokens)
        self.usage.lerp_(counts, 1 - self.decay)
        codes = F.normalize(self.codebook)
        a = torch.exp(-10 * self.usage * M / (1 - self.decay))[:, None]
        generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**64)
        anchors = self.anchors(latents, codes, tokens, generator)
        self.codebook.copy_((1 - a) * codes + a * anchors)

    def anchors(self, latents, codes, tokens, generator):
        """A latent for each code, (M, C), drawn in proportion to its own
        quantization error: codes go where the picture is wrong (our choice)."""
        errors = (latents - codes[tokens]).square().sum(1) + 1e-9
        rows = torch.multinomial(errors.cpu(), len(codes), True, generator=generator)
        return latents[rows]

# ---- the tokenizer, and how it is trained ----

class VideoTokenizer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.vq = ClusteringVQ(config.codebook_size, config.code_dim)
        self.to(memory_format=torch.channels_last_3d)

    def forward(self, video):
        """-> reconstruction (the video's shape), tokens, VQ loss."""
        quantized, tokens, loss = self.vq(self.encoder(video))
        return self.decoder(quantized), tokens, loss

    def encode(self, video):
        """video (B, 3, T, H, W) in [-1, 1] -> tokens (B, t, h, w).
        ValueError unless T = 1 + 4k, H = 8h, W = 8w."""
        return self.vq(self.encoder(video))[1]

    def decode(self, tokens):
        """tokens (B, t, h, w) -> video (B, 3, 4t - 3, 8h, 8w), unclamped."""
        codes = F.normalize(self.vq.codebook)[tokens]
        return self.decoder(codes.movedim(-1, 1))

class Discriminator(nn.Module):
    def __init__(self, base_channels):
        super().__init__()
        c, kernel, activation = base_channels, (3, 4, 4), nn.LeakyReLU(0.2)
        self.net = nn.Sequential(
            nn.Conv3d(3, c, kernel, (1, 2, 2), 1), activation,
            nn.Conv3d(c, 2 * c, kernel, 2, 1), activation,
            nn.Conv3d(2 * c, 4 * c, kernel, 2, 1), activation,
            nn.Conv3d(4 * c, 1, 3, padding=1))
        self.to(memory_format=torch.channels_last_3d)

    def forward(self, video):
        """3D PatchGAN: video -> a score for each patch, high if real."""
        x = self.net[:-1](video)
        # in bfloat16, a CPU's gradient of this layer holds garbage
        with torch.autocast(x.device.type, enabled=False):
            return self.net[-1](x.float())

class TokenizerLoss(nn.Module):
    """A VQGAN's objective (our choice), the tokenizer as generator:

        generator      L1 + 4 L2 + VQ + w_p LPIPS - w_a mean D(recon)
        discriminator  mean relu(1 - D(video)) + mean relu(1 + D(recon))

    One backward pass of the sum gives each its own gradient.
    """

    def __init__(self, tokenizer, adversarial_weight, perceptual_weight):
        super().__init__()
        self.tokenizer = tokenizer
        self.discriminator = Discriminator(tokenizer.config.base_channels)
        self.adversarial_weight = adversarial_weight
        self.perceptual_weight = perceptual_weight
        if perceptual_weight:  # a list hides it from the optimizer
            self.lpips = [machine.lpips_network()]

    def forward(self, video, adversarial):
        """video (B, 3, T, H, W) in [-1, 1] -> the sum (scalar), and what to
        log, {name: scalar}. adversarial: whether D takes part; "loss" then jumps."""
        D = self.discriminator
        recon, _, vq_loss = self.tokenizer(video)
        recon = recon.float()
        mse = F.mse_loss(recon, video)
        loss = vq_loss + F.l1_loss(recon, video) + 4 * mse
        if self.perceptual_weight:  # frame by frame, (B T, 3, H, W)
            a, b = (x.transpose(1, 2).flatten(0, 1) for x in (recon, video))
            loss = loss + self.perceptual_weight * self.lpips[0].to(a.device)(a, b).mean()
        logs = {"psnr": -10 * torch.log10(mse / 4), "vq": vq_loss}
        if adversarial:
            D.requires_grad_(False)  # constant in the generator's loss
            loss = loss - self.adversarial_weight * D(recon).mean()
            D.requires_grad_(True)
            real, fake = D(video), D(recon.detach())
            logs["discriminator"] = (F.relu(1 - real) + F.relu(1 + fake)).mean()
            loss = loss + logs["discriminator"]
        logs["loss"] = loss
        return loss, {name: x.detach() for name, x in logs.items()}

# ---- plumbing ----

SHIPPED = str(Path(__file__).parent / "checkpoints" / "toy")

def tokenizer_in(folder):
    """What a folder holds: a tokenizer "trained" by train.py, one "adopted" from
    others, or None."""
    if any(Path(folder, name).exists() for name in adopted.FILES):
        return "adopted"
    return "trained" if Path(folder, "tokenizer.pt").exists() else None

def load_tokenizer(folder=None, device="cpu", finished=False):
    """The VideoTokenizer or Adopted one of a folder (None: the shipped one), and
    a hash of its weights. tokenizer.pt's are rounded to bfloat16, as it may be
    stored so. finished: refuse one whose training has steps to go."""
    machine.check_device(device)
    folder = Path(folder or SHIPPED)
    if tokenizer_in(folder) == "adopted":
        tokenizer = adopted.Adopted(folder, device)
        return tokenizer, machine.digest(tokenizer.state_dict())
    checkpoint = machine.read_checkpoint(folder / "tokenizer.pt", "tokenizer", finished)
    tokenizer = VideoTokenizer(TokenizerConfig(**checkpoint["config"]))
    weights = checkpoint["weights"]
    weights |= {name: weights[name].bfloat16() for name, _ in tokenizer.named_parameters()}
    tokenizer.load_state_dict(weights)
    tokenizer.to(device).eval().requires_grad_(False)
    return tokenizer, machine.digest(weights, but="vq.usage")  # of training only
