"""tokenizer.py - video <-> tokens (Sec. 3.1 "Video Tokenizer", Sec. 4.1 "Model Architecture").

A strictly causal 3D CNN in the MAGVIT-v2 layout compresses 8x in height and width and 4x in time, and treats the first
frame on its own; Clustering VQ (Zheng & Vedaldi, "Online Clustered Codebook", ICCV 2023) turns each latent vector into
one of `codebook_size` codes.

    video (B, 3, T, H, W) in [-1, 1], T = 1 + 4k
      -> encoder -> latents (B, C, t, h, w), t = 1 + (T-1)/4, h = H/8, w = W/8
      -> ClusteringVQ -> tokens (B, t, h, w) int64     the paper: 65 frames of 128x128 -> 17x16x16 tokens of 8192 codes
      -> decoder -> video

*Strictly* causal: latent frame 0 is made of frame 0 alone, latent frame n of frames up to 4n, and decoding it gives
frames 4n-3 ... 4n without looking at later tokens. So an image is a clip of one frame, a prefix of a clip has the
prefix of its tokens, and the first frames of an encoded clip serve the shorter training stages. Three habits keep it
so: convolutions are padded on the left in time only; normalisation looks at one position at a time (a GroupNorm over
time would leak the future); every temporal upsampling drops its first frame.

`VideoTokenizer`, `ClusteringVQ` and `Discriminator` are trained by `train.py --stage 0`; this file knows nothing about
files, captions or optimisers.
"""
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F


@dataclass
class TokenizerConfig:
    """The tokenizer's shape; the defaults are the paper's 246 M parameters."""
    resolution: int = 128  # pixels, height = width
    frames: int = 65  # the longest clip
    base_channels: int = 128
    multipliers: tuple = (1, 2, 2, 4)  # channels of each level, x base_channels; a x2 downsampling between levels
    encoder_blocks: tuple = (1, 2, 3, 6)  # residual blocks of each level; one at the first costs 15 times one at the last
    encoder_kernel: int = 3  # of their convolutions
    decoder_blocks: tuple = (2, 2, 3, 5)
    temporal: tuple = (False, True, True)  # which downsamplings also halve time
    codebook_size: int = 8192
    code_dim: int = 8

    def __post_init__(self):
        if (*map(len, (self.multipliers, self.encoder_blocks, self.decoder_blocks, self.temporal)), sum(self.temporal)
                ) != (4, 4, 4, 3, 2):
            raise ValueError("the tokenizer compresses 8x8x4: four multipliers, four blocks, two of three temporal halvings")
        if self.resolution % 8 or min(self.base_channels, *self.multipliers, self.codebook_size, self.code_dim) < 1:
            raise ValueError("resolution must be a multiple of 8, and every channel, multiplier and code count positive")
        if self.codebook_size > 65536 or self.encoder_kernel not in (1, 3, 5):
            raise ValueError("at most 65536 codes, as shards hold 16 bits a token; encoder_kernel 1, 3 or 5")


TOKENIZER_PRESETS = {
    # the toy's encoder is short-sighted on purpose: only its strided convolutions look beyond a token's own 8x8 pixels, so
    # that plain ground that sees no object always has the same token, and the language model need not predict noise
    "toy": TokenizerConfig(resolution=64, base_channels=16, multipliers=(1, 2, 3, 4), encoder_blocks=(0, 1, 1, 1),
                           encoder_kernel=1, decoder_blocks=(0, 1, 1, 2), codebook_size=384),
    "paper": TokenizerConfig(),
}

# ---------------------------------------------------------------------------------------------------------------------
# building blocks

class CausalConv3d(nn.Conv3d):
    """3D convolution that never looks ahead: kernel-1 zero frames stand before the first. (B, C, T, H, W) -> same
    shape at stride 1; at stride 2 in time 2k + 1 frames become k + 1.

    The past taps start at zero, so an untrained network treats each frame on its own: training on images first, then
    on clips, continues instead of starting again. One frame takes a 2D path, exactly equal and a third of the work.
    """

    def __init__(self, dim_in, dim_out, kernel=3, stride=(1, 1, 1)):
        super().__init__(dim_in, dim_out, kernel, stride, padding=(0, kernel // 2, kernel // 2))
        with torch.no_grad():
            self.weight[:, :, :-1] = 0

    def forward(self, x):
        if x.shape[2] == 1:
            x = F.conv2d(x.squeeze(2), self.weight[:, :, -1], self.bias, self.stride[1:], self.padding[1:])
            return x.unsqueeze(2)
        if self.kernel_size[0] > 1:
            x = F.pad(x, (0, 0, 0, 0, self.kernel_size[0] - 1, 0))
        return super().forward(x)


class Norm(nn.LayerNorm):
    """LayerNorm over the channels of each position, so nothing crosses time (or space). (B, C, T, H, W) -> same."""

    def forward(self, x):
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class ResBlock(nn.Module):
    def __init__(self, dim, kernel=3):
        super().__init__()
        self.norm1, self.conv1 = Norm(dim), CausalConv3d(dim, dim, kernel)
        self.norm2, self.conv2 = Norm(dim), CausalConv3d(dim, dim, kernel)

    def forward(self, x):
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


def repeat(x, temporal):
    """Nearest x2 upsampling in space, and in time if `temporal`: then the first frame is dropped, T -> 2T - 1."""
    x = x.repeat_interleave(2, 3).repeat_interleave(2, 4)
    return x.repeat_interleave(2, 2)[:, :, 1:] if temporal else x


class Upsample(nn.Module):
    """x2 in space by depth-to-space, and in time if `temporal`, dropping the first frame: T -> 2T - 1."""

    def __init__(self, dim_in, dim_out, temporal):
        super().__init__()
        self.factors = (2 if temporal else 1, 2, 2)
        self.conv = CausalConv3d(dim_in, dim_out * 4 * self.factors[0])
        if temporal:  # both halves start alike, as the images trained first know only the second
            half = self.conv.weight.shape[0] // 2
            with torch.no_grad():
                self.conv.weight[:half], self.conv.bias[:half] = self.conv.weight[half:], self.conv.bias[half:]

    def forward(self, x):
        b, _, t, h, w = x.shape
        p, q, r = self.factors
        x = self.conv(x).view(b, p, q, r, -1, t, h, w)
        x = x.permute(0, 4, 5, 1, 6, 2, 7, 3).reshape(b, -1, t * p, h * q, w * r)
        return x[:, :, p - 1:]


class AdaptiveNorm(nn.Module):
    """Normalise, then scale and shift by what the quantized latent says there (Sec. 4.1, after MAGVIT-v2)."""

    def __init__(self, dim, code_dim):
        super().__init__()
        self.norm = Norm(dim, elementwise_affine=False)
        self.modulation = nn.Conv3d(code_dim, 2 * dim, 1)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x, latent):
        scale, shift = self.modulation(latent).chunk(2, dim=1)
        return self.norm(x) * (1 + scale) + shift


class Encoder(nn.Module):
    """video (B, 3, T, H, W) -> features (B, code_dim, t, h, w)."""

    def __init__(self, config):
        super().__init__()
        dims = [config.base_channels * m for m in config.multipliers]
        self.conv_in = CausalConv3d(3, dims[0], config.encoder_kernel)
        self.layers = nn.Sequential()
        for level, dim in enumerate(dims):
            self.layers.extend(ResBlock(dim, config.encoder_kernel) for _ in range(config.encoder_blocks[level]))
            if level < len(dims) - 1:
                stride = (2 if config.temporal[level] else 1, 2, 2)
                self.layers.append(CausalConv3d(dim, dims[level + 1], stride=stride))
        self.norm_out, self.conv_out = Norm(dims[-1]), CausalConv3d(dims[-1], config.code_dim, 1)

    def forward(self, x):
        return self.conv_out(F.silu(self.norm_out(self.layers(self.conv_in(x)))))


class Decoder(nn.Module):
    """quantized latents (B, code_dim, t, h, w) -> video (B, 3, T, H, W); the encoder backwards."""

    def __init__(self, config):
        super().__init__()
        dims = [config.base_channels * m for m in config.multipliers]
        self.temporal = config.temporal[::-1]
        self.conv_in = CausalConv3d(config.code_dim, dims[-1])
        self.adaptive, self.levels, self.up = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for level in reversed(range(len(dims))):
            dim = dims[level]
            self.adaptive.append(AdaptiveNorm(dim, config.code_dim))
            self.levels.append(nn.Sequential(*(ResBlock(dim) for _ in range(config.decoder_blocks[level]))))
            if level > 0:
                self.up.append(Upsample(dim, dims[level - 1], config.temporal[level - 1]))
        self.norm_out, self.conv_out = Norm(dims[0]), CausalConv3d(dims[0], 3)

    def forward(self, latent):
        x = self.conv_in(latent)
        for level, (adaptive, blocks) in enumerate(zip(self.adaptive, self.levels)):
            x = blocks(adaptive(x, latent))
            if level < len(self.up):
                x, latent = self.up[level](x), repeat(latent, self.temporal[level])
        return self.conv_out(F.silu(self.norm_out(x)))

# ---------------------------------------------------------------------------------------------------------------------
# Clustering VQ

class ClusteringVQ(nn.Module):
    """Vector quantisation whose unused codes are moved to where the features are (CVQ; Sec. 4.1).

    forward(z (B, C, t, h, w)) -> quantized (B, C, t, h, w) with straight-through gradient, tokens (B, t, h, w) int64,
    loss (scalar: the codebook's pull towards the features + 0.25 x the features' commitment to it). Features and codes
    are compared on the unit sphere, in float32. After each optimiser step call `reinitialize(seed, step)`.
    """

    def __init__(self, codebook_size, code_dim, commitment=0.25, decay=0.99):
        super().__init__()
        self.codebook = nn.Parameter(F.normalize(torch.randn(codebook_size, code_dim), dim=1))  # e_k
        self.register_buffer("usage", torch.zeros(codebook_size))  # N_k, the running share of features at code k
        self.commitment, self.decay = commitment, decay
        self.seen = []  # (features, tokens) of the micro-batches since the last optimiser step

    @torch.autocast("cpu", enabled=False)
    @torch.autocast("cuda", enabled=False)
    def forward(self, z):
        z = z.movedim(1, -1).to(self.codebook.dtype)  # out of autocast's bfloat16
        features = F.normalize(z, dim=-1)  # (B, t, h, w, C)
        codes = F.normalize(self.codebook, dim=-1)
        with torch.no_grad():  # nearest on the sphere = largest inner product
            tokens = (features.flatten(0, 3) @ codes.T).argmax(1).view(features.shape[:-1])
        quantized = codes[tokens]
        if self.training and torch.is_grad_enabled():
            self.seen.append((features.detach().flatten(0, 3), tokens.flatten()))
        loss = (quantized - features.detach()).square().sum(-1).mean() \
            + self.commitment * (quantized.detach() - features).square().sum(-1).mean()
        quantized = features + (quantized - features).detach()  # straight-through
        return quantized.movedim(-1, 1), tokens, loss

    def lookup(self, tokens):
        """tokens (B, t, h, w) -> codes (B, C, t, h, w)."""
        return F.normalize(self.codebook, dim=-1)[tokens].movedim(-1, 1)

    @torch.no_grad()
    def reinitialize(self, seed, step):
        """Move rarely used codes to features of the batch just seen, once per optimiser step.

            N_k   <- N_k g + n_k / n (1 - g)                usage: n_k of the n features chose code k, g = 0.99
            a_k   =  exp(-10 N_k K / (1 - g))               1 for a dead code, ~0 for one used more than K^-1 / 200
            e_k   <- e_k (1 - a_k) + anchor_k a_k           anchor_k: a random feature of the batch, both of length 1

        The anchors are drawn with the features' quantisation error as weight (as k-means++ does): most of a video is
        plain ground that one code serves well, and the new codes belong where the picture is still wrong. Counts and
        anchors are those of the *global* batch, and the draw depends on (seed, step) alone, so every data-parallel
        rank moves the same codes to the same places.
        """
        features, tokens = (torch.cat(seen) for seen in zip(*self.seen))
        self.seen = []
        size, n = len(self.usage), len(features)
        counts = torch.bincount(tokens, minlength=size).float()
        errors = (features - F.normalize(self.codebook, dim=-1)[tokens]).square().sum(1) + 1e-9
        rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        if ranks > 1:  # the ranks' features, one after the other, are the global batch
            dist.all_reduce(counts)
            parts = [torch.empty_like(errors) for _ in range(ranks)]
            dist.all_gather(parts, errors)
            errors = torch.cat(parts)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        rows = torch.multinomial(errors.cpu(), size, replacement=True, generator=generator).to(features.device)
        anchors = torch.where((rows // n == rank)[:, None], features[rows % n], 0.0)
        if ranks > 1:
            dist.all_reduce(anchors)  # each row has one owner
        self.usage.mul_(self.decay).add_(counts / counts.sum(), alpha=1 - self.decay)
        alpha = torch.exp(-10 * self.usage * size / (1 - self.decay))[:, None]
        self.codebook.copy_(F.normalize(self.codebook, dim=-1) * (1 - alpha) + anchors * alpha)

# ---------------------------------------------------------------------------------------------------------------------
# the tokenizer and its critic

class VideoTokenizer(nn.Module):
    """The whole tokenizer. `encode` and `decode` are for use; `forward` is the training pass."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.vq = ClusteringVQ(config.codebook_size, config.code_dim)
        self.to(memory_format=torch.channels_last_3d)

    def forward(self, video):
        """video (B, 3, T, H, W) in [-1, 1] -> reconstruction (same shape), vq loss (scalar), tokens (B, t, h, w)."""
        quantized, tokens, loss = self.vq(self.encoder(self.prepare(video)))
        return self.decoder(quantized), loss, tokens

    def encode(self, video):
        """video (B, 3, T, H, W) float in [-1, 1] -> tokens (B, t, h, w) int64. ValueError for a shape it cannot take."""
        return self.vq(self.encoder(self.prepare(video)))[1]

    def decode(self, tokens):
        """tokens (B, t, h, w) int64 -> video (B, 3, T, H, W) float, T = 1 + 4(t-1), about [-1, 1] (not clamped)."""
        return self.decoder(self.vq.lookup(tokens))

    def prepare(self, video):
        if video.ndim != 5 or video.shape[1] != 3 or video.shape[2] % 4 != 1 or video.shape[3] % 8 or video.shape[4] % 8:
            raise ValueError(f"video must be (B, 3, 1 + 4k, 8h, 8w), got {tuple(video.shape)}")
        return video.contiguous(memory_format=torch.channels_last_3d)


class Discriminator(nn.Module):
    """3D PatchGAN: video (B, 3, T, H, W) -> one real/fake score a patch, (B, 1, T', H/8, W/8)."""

    def __init__(self, base_channels):
        super().__init__()
        dims = [base_channels, 2 * base_channels, 4 * base_channels]
        layers, dim_in = [], 3
        for level, dim in enumerate(dims):
            stride = (2 if level else 1, 2, 2)  # as the tokenizer: time is halved at the second and third level
            layers += [nn.Conv3d(dim_in, dim, (3, 4, 4), stride, padding=1), nn.LeakyReLU(0.2)]
            dim_in = dim
        self.net = nn.Sequential(*layers, nn.Conv3d(dim_in, 1, 3, padding=1))
        self.to(memory_format=torch.channels_last_3d)

    def forward(self, video):
        return self.net(video)


class TokenizerLoss(nn.Module):
    """The tokenizer's training objective, as one module so that parallel wrappers see one forward.

    forward(video, adversarial) -> (loss, logs): reconstruction (L1 + 4 L2: the L2 part keeps the colours of small
    objects) + Clustering VQ + perceptual (LPIPS, needs `pip install lpips`; off at weight 0) + adversarial (hinge, once
    `adversarial` is true). One backward serves both players: each sees the other's half as a constant.
    """

    def __init__(self, tokenizer, adversarial_weight, perceptual_weight):
        super().__init__()
        self.tokenizer, self.discriminator = tokenizer, Discriminator(tokenizer.config.base_channels)
        self.adversarial_weight, self.perceptual_weight = adversarial_weight, perceptual_weight
        self.perceptual = []  # in a list, so that LPIPS's own weights are neither trained nor saved
        if perceptual_weight:
            try:
                import lpips
            except ImportError as e:
                raise ValueError("the perceptual loss needs LPIPS: pip install lpips") from e
            self.perceptual = [lpips.LPIPS(net="vgg", verbose=False).requires_grad_(False)]

    def forward(self, video, adversarial):
        recon, vq_loss, _ = self.tokenizer(video)
        error = recon.float() - video
        loss = error.abs().mean() + 4 * error.square().mean() + vq_loss
        logs = {"psnr": -10 * torch.log10(error.detach().square().mean() / 4), "vq": vq_loss.detach()}
        if self.perceptual:
            frames = [v.transpose(1, 2).flatten(0, 1).float() for v in (recon, video)]  # (B T, 3, H, W)
            loss = loss + self.perceptual_weight * self.perceptual[0].to(video.device)(*frames).mean()
        if adversarial:
            frozen = {name: p.detach() for name, p in self.discriminator.named_parameters()}
            score = torch.func.functional_call(self.discriminator, frozen, (recon,)).float()
            loss = loss - self.adversarial_weight * score.mean()
            real, fake = self.discriminator(video).float(), self.discriminator(recon.detach()).float()
            critic = F.relu(1 - real).mean() + F.relu(1 + fake).mean()
            logs |= {"critic": critic.detach(), "fooled": (fake > 0).float().mean()}
        else:  # not yet playing, but every parallel wrapper wants a gradient for every parameter
            critic = sum(0 * p.sum() for p in self.discriminator.parameters())
        return loss + critic, logs | {"loss": loss.detach()}
