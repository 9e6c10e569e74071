"""tools/adopted.py: a tokenizer that somebody else has trained. It imports none of the five.

    encoder.jit     TorchScript: video (1, 3, 1 + 4k, 8h, 8w) -> tokens (1, 1 + k, h, w)
    decoder.jit     TorchScript: tokens -> video
    tokenizer.json  {"codebook_size": 32768, "resolution": 128, "frames": 65,
                     "dtype": "float32", "origin": "where it is from"}

A folder with these three serves wherever one with a tokenizer.pt does, but for stage 0.
tools/adopt.py makes and checks such folders; an encoder may return more behind the tokens.

TorchScript warns of its end from Python 3.14 on. Its successor does less for us: programs of
torch.export that take clips take no single frame, and they fix the height and the width.
"""
import json
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn as nn

FILES = "encoder.jit", "decoder.jit"
KINDS = {"codebook_size": int, "resolution": int, "frames": int, "dtype": str, "origin": str}


def read_config(path):
    """tokenizer.json -> its entries as attributes. ValueError if some are missing or wrong."""
    try:
        found = json.loads(Path(path).read_text())
        config = SimpleNamespace(**{name: kind(found[name]) for name, kind in KINDS.items()})
    except (ValueError, KeyError, TypeError) as e:
        raise ValueError(f"{path} must hold {', '.join(KINDS)}") from e
    if not 1 < config.codebook_size <= 65536:
        raise ValueError(f"{path}: tokens are stored in 16 bits: 2 to 65536 codes")
    if config.resolution < 8 or config.resolution % 8 or config.frames % 4 != 1:
        raise ValueError(f"{path}: resolution must be 8n pixels, frames 1 + 4k")
    if config.dtype not in ("float32", "bfloat16"):
        raise ValueError(f"{path}: dtype must be float32 or bfloat16")
    return config


class Adopted(nn.Module):
    """What others need of a `VideoTokenizer`: config.resolution, .frames and .codebook_size,
    `encode`, `decode`. ValueError if the folder holds no such tokenizer."""

    def __init__(self, folder, device="cpu"):
        super().__init__()
        folder = Path(folder)
        self.config = read_config(folder / "tokenizer.json")
        for name in FILES:
            try:
                network = torch.jit.load(folder / name, device)
            except (RuntimeError, ValueError) as e:  # damaged; no such file
                raise ValueError(f"{folder / name} is missing, or is no TorchScript") from e
            setattr(self, name.removesuffix(".jit"), network)
        text = json.dumps(vars(self.config), sort_keys=True)
        # part of the state, and so of its hash
        self.register_buffer("json", torch.tensor(list(text.encode()), dtype=torch.uint8))
        self.to(device).eval().requires_grad_(False)

    def encode(self, video):
        """video (B, 3, T, H, W) in [-1, 1] -> tokens (B, t, h, w) int64. ValueError unless
        T = 1 + 4k, H = 8h, W = 8w, and the tokens have that shape."""
        B, C, T, H, W = video.shape
        if C != 3 or T % 4 != 1 or H % 8 or W % 8:
            raise ValueError(f"video is {tuple(video.shape)}, not (B, 3, 1 + 4k, 8h, 8w)")
        video = video.to(getattr(torch, self.config.dtype))
        return self.run(self.encoder, video, (B, (T + 3) // 4, H // 8, W // 8)).long()

    def decode(self, tokens):
        """tokens (B, t, h, w) -> video (B, 3, 4t - 3, 8h, 8w) float32, unclamped."""
        B, t, h, w = tokens.shape
        if t == 1:  # a trace keeps to the branch for clips: twice the token, one frame of five
            return self.decode(tokens.repeat(1, 2, 1, 1))[:, :, :1]
        return self.run(self.decoder, tokens, (B, 3, 4 * t - 3, 8 * h, 8 * w)).float()

    def run(self, network, x, shape):
        """One clip at a time: VidTok's 65 frames take 5 GiB. No number format but its own,
        and no fusion, which would come in at the second call and change near-ties."""
        half = self.config.dtype == "bfloat16"
        with torch.jit.optimized_execution(False), \
                torch.autocast(x.device.type, torch.bfloat16, enabled=half):
            outs = [network(one) for one in x.split(1)]
        out = torch.cat([out[0] if isinstance(out, tuple) else out for out in outs])
        if out.shape != shape:
            raise ValueError(f"{tuple(x.shape)} becomes {tuple(out.shape)}, not {tuple(shape)}: "
                             "no tokenizer of 1 + 4k frames in 1 + k latent ones, 8x8 pixels each")
        return out
