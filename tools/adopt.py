"""tools/adopt.py: a released tokenizer -> a folder that serves as our own would, checked.

    python tools/adopt.py vidtok --version 1.1 --weights vidtok_fsq_causal_488_32768_v1_1.ckpt \
        --out runs/vidtok
    python tools/adopt.py cosmos --weights Cosmos-Tokenize1-DV4x8x8-360p --out runs/cosmos
    python tools/adopt.py emu3 --weights Emu3-Chat-hf --out runs/emu3
    python tools/adopt.py --check runs/vidtok --film a.mp4 b.mp4

The weights are files on this disk; docs/scaling.md says where to get them, and under which
licence. tools/adopted.py describes the folder. The check asks for what training relies on: clips
of 1 + 4k frames, 1 + k latent frames, 8x8 pixels per token, and no token that depends on a later
frame. --film adds how well your films come back. This knows nothing about the language model.

Needs, by tokenizer: pip install diffusers (0.42.1 or later) for vidtok, transformers for emu3
"""
import argparse
import copy
import json
import os
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from data import FPS, latent_frames, to_float, toy_clip  # noqa: E402
from tokenizer import load_tokenizer  # noqa: E402
from tools.adopted import FILES  # noqa: E402
from tools.films import read_clip  # noqa: E402
from tools.machine import DEVICE, run_script  # noqa: E402

FRAMES = 65  # of the longest clips
LENGTHS = 5, 17, 1, FRAMES  # that must work; 5 first, since its shape tells most
ROUNDING = 0.05  # of the tokens may differ between clips of different lengths
TRAINED = 15  # dB; networks that were never trained reach 10


class Part(nn.Module):
    """A function and the networks that it calls, as a module that can be traced."""

    def __init__(self, function, *networks):
        super().__init__()
        self.function, self.networks = function, nn.ModuleList(networks)

    def forward(self, x):
        return self.function(x, *self.networks)


def first_three_times(video):
    """1 + 4k frames -> 4 + 4k, the first one three times more."""
    return torch.cat([video[:, :, :1]] * 3 + [video], 2)


# ---- the releases: a path -> encoder and decoder (1, ...), codes, number format ----

def vidtok(path, args):
    """Microsoft's .ckpt, or a folder of diffusers."""
    from diffusers import AutoencoderVidTok
    if args.version != "1.1":
        raise ValueError("--version 1.1 can be adopted. 1.0 pads time with zeros where diffusers "
                         "copies the first frame: its names fit, and its tokens would be wrong")
    weights = read_weights(path, "encoder.", "decoder.")  # without the losses' networks
    width, z = (len(weights.get(f"encoder.{name}.conv.bias", ()))
                for name in ("conv_in", "conv_out"))
    if not z:
        raise ValueError(f"{path} holds no VidTok")
    config = {"ch": width, "z_channels": z, "double_z": False, "regularizer": "fsq",
              "codebook_size": 8 ** z}
    model = AutoencoderVidTok.from_config(
        AutoencoderVidTok.load_config(path) if path.is_dir() else config)
    if model.regularizer != "fsq" or not model.is_causal:
        raise ValueError(f"{path} is not one of VidTok's fsq_causal models")
    fill(model, weights, path)
    now, before = image_quality(model, args), image_quality(as_version_1_0(model), args)
    if before > max(now + 1, TRAINED):
        raise ValueError(f"{path} is VidTok 1.0, not 1.1: an image comes back with {before:.1f} dB "
                         f"as 1.0 does it, and with {now:.1f} dB as 1.1 does")
    return *vidtok_parts(model), model.regularization.codebook_size, "float32"


def vidtok_parts(model):
    return (Part(lambda video, encoder, fsq: fsq(encoder(first_three_times(video)))[1],
                 model.encoder, model.regularization),
            Part(lambda tokens, fsq, decoder: decoder(fsq.indices_to_codes(tokens))[:, :, 3:],
                 model.regularization, model.decoder))


def image_quality(model, args):
    """PSNR of an image: it has nothing before it but what pads time."""
    encoder, decoder = vidtok_parts(model)
    image = toy_video(args.resolution)[:, :, :1]
    return psnr(image, decoder(encoder(image)))


def as_version_1_0(model):
    """A copy of a VidTok that pads time with zeros and repeats frames, as version 1.0 does."""
    def zeros(module, args):
        x, n = args[0], getattr(module, "time_pad", 1)
        module.is_first_chunk = False
        module.causal_cache = x.new_zeros(*x.shape[:2], n, *x.shape[3:])

    model = copy.deepcopy(model)
    for module in model.modules():
        if hasattr(module, "interpolation_mode"):
            module.enable_cached, module.interpolation_mode = False, "nearest"
        elif hasattr(module, "is_first_chunk"):
            module.register_forward_pre_hook(zeros)
    return model


def cosmos(path, args):
    """NVIDIA's folder: its graphs are what we need, as released."""
    encoder, decoder = (torch.jit.load(path / name, "cpu") for name in FILES)
    half = any(x.dtype == torch.bfloat16 for x in encoder.state_dict().values())
    codes = 8 * 8 * 8 * 5 * 5 * 5  # the levels of its FSQ
    return encoder, decoder, codes, "bfloat16" if half else "float32"


def emu3(path, args):
    """A folder of transformers: of Emu3VQVAE, or of the whole Emu3, of which it is a part."""
    from transformers import Emu3VQVAE, Emu3VQVAEConfig
    config = json.loads((path / "config.json").read_text())
    prefix = "model.vqmodel." if "vq_config" in config else ""
    model = Emu3VQVAE(Emu3VQVAEConfig.from_dict(config.get("vq_config", config)))
    weights = read_weights(path, prefix)
    fill(model, {name.removeprefix(prefix): x for name, x in weights.items()}, path)

    def encode(video, encoder, conv, quantize):  # its order is (B, T, C, H, W)
        x = encoder(first_three_times(video).transpose(1, 2))
        return quantize(conv(x.transpose(1, 2)).transpose(1, 2))

    def decode(tokens, quantize, conv, decoder):
        quantized = quantize.embedding(tokens).movedim(-1, 1)
        x, quantized = (y.transpose(1, 2) for y in (conv(quantized), quantized))
        return decoder(x, quantized).transpose(0, 1)[None, :, 3:]  # frames (4t, C, H, W)

    return (Part(encode, model.encoder, model.quant_conv, model.quantize),
            Part(decode, model.quantize, model.post_quant_conv, model.decoder),
            model.config.codebook_size, "float32")


def read_weights(path, *prefixes):
    """Of a .ckpt, or of all .safetensors in a folder -> {name: tensor}, of names that begin so."""
    try:
        if path.is_dir():
            from safetensors import safe_open
            found = {}
            for file in sorted(path.glob("*.safetensors")):
                with safe_open(file, "pt") as tensors:  # a whole Emu3 need not be read
                    found |= {name: tensors.get_tensor(name) for name in tensors.keys()
                              if name.startswith(prefixes)}
            return found
        found = torch.load(path, "cpu", weights_only=True)  # nothing in it is run
        found = found.get("state_dict", found)
        return {name: x for name, x in found.items() if name.startswith(prefixes)}
    except (OSError, ImportError):
        raise
    except Exception as e:  # whatever a damaged file raises
        raise ValueError(f"{path} is damaged, or holds more than tensors: it is not read") from e


def fill(model, weights, path):
    odd = sorted(model.state_dict().keys() ^ weights.keys())
    if odd:
        raise ValueError(f"{path} does not fit: {odd[0]} and {len(odd) - 1} other weights are "
                         f"missing in it or in {type(model).__name__}")
    model.load_state_dict(weights)
    model.float().eval()


@torch.no_grad()
def adopt(args):
    """Make the folder beside --out, check it, and only then give it its name."""
    path, out = Path(args.weights), Path(args.out)
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty: choose another --out")
    *networks, codes, dtype = RELEASES[args.release](path, args)
    config = {"codebook_size": codes, "resolution": args.resolution, "frames": FRAMES,
              "dtype": dtype, "origin": f"{args.release} {path.name}"}
    example = torch.zeros(1, 3, 9, 64, 64)
    # of what a trace may lose: the check finds it
    warnings.simplefilter("ignore", torch.jit.TracerWarning)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f"{out.name}.") as folder:
        made = Path(folder, "made")
        made.mkdir()
        for name, network in zip(FILES, networks):
            if not isinstance(network, torch.jit.ScriptModule):
                traced = torch.jit.trace(network, example, check_trace=False)
                example, network = network(example).long(), traced
            network.save(made / name)
        (made / "tokenizer.json").write_text(json.dumps(config, indent=1) + "\n")
        check(made, args)
        os.replace(made, out)
    print(f"{out}: prepare with --ckpt {out}, train with --out {out}")


# ---- the check ----

def toy_video(size):
    """A clip of the toy world, (1, 3, 65, size, size) in [-1, 1]."""
    video, *_ = toy_clip(np.random.default_rng(0), FRAMES)
    return F.interpolate(to_float(video)[None], (FRAMES, size, size))


def psnr(video, decoded):
    """Of video and what comes back, both in [-1, 1], in dB."""
    return -10 * ((video - decoded.clamp(-1, 1)) / 2).square().mean().log10().item()


@torch.no_grad()
def check(folder, args):
    """Print what a tokenizer does; ValueError for the first thing that training cannot use."""
    tokenizer, _ = load_tokenizer(folder, args.device)
    size, codes = tokenizer.config.resolution, tokenizer.config.codebook_size
    videos = {film: to_float(read_clip(film, FRAMES, FPS, size))[None] for film in args.film}
    videos = {name: video.to(args.device)
              for name, video in (videos or {"the toy world": toy_video(size)}).items()}
    video = next(iter(videos.values()))
    tokens = {}
    for frames in LENGTHS:
        try:
            tokens[frames] = tokenizer.encode(video[:, :, :frames])
            decoded = tokenizer.decode(tokens[frames])
        except Exception as e:  # whatever a graph raises
            reason = str(e).strip().rpartition("\n")[2]
            raise ValueError(f"clips of {frames} frames fail, and all of 1 + 4k frames must "
                             f"work: {reason}") from e
        low, high = tokens[frames].min().item(), tokens[frames].max().item()
        if low < 0 or high >= codes:
            raise ValueError(f"tokens are {low} ... {high}, not 0 ... {codes - 1}")
        if not decoded.isfinite().all():
            raise ValueError(f"{frames} frames are decoded to numbers that are not finite")
    whole = tokens[FRAMES]
    print(f"clips of 1 + 4k frames work; {len(whole.unique())} of {codes} codes in {FRAMES} frames")

    for frames, seen in (17, 1), (17, 5), (17, 9), (17, 13), (FRAMES, 33):
        other = torch.cat([video[:, :, :seen], -video[:, :, seen:frames]], 2)
        known = slice(latent_frames(seen))
        changed = tokenizer.encode(other)[:, known] != tokens[frames][:, known]
        if changed.any():
            raise ValueError(f"{changed.float().mean():.0%} of the tokens of the first {seen} "
                             f"frames change with later frames: this tokenizer looks ahead")
    print("no token changes with a later frame")

    worst = max((whole[:, :x.shape[1]] != x).float().mean().item() for x in tokens.values())
    if worst > ROUNDING:
        raise ValueError(f"{worst:.0%} of the tokens of a shorter clip are not those of the longer")
    print(f"a clip's first frames have its first tokens, but for {worst:.1%}; an image, too")

    for name, video in videos.items():
        print(f"{name}: {psnr(video, tokenizer.decode(tokenizer.encode(video))):.2f} dB")


RELEASES = {"vidtok": vidtok, "cosmos": cosmos, "emu3": emu3}


def parse():
    p = argparse.ArgumentParser(description="A released tokenizer -> a folder that serves.")
    add = p.add_argument
    add("release", choices=RELEASES, nargs="?", help="whose tokenizer")
    add("--weights", help="its file or folder, as released")
    add("--version", choices=["1.0", "1.1"], help="of vidtok (1.1, to be said)")
    add("--out", help="folder to write, for --ckpt of the other scripts")
    add("--resolution", type=int, default=128,
        help="of its clips: height = width, in pixels (%(default)s)")
    add("--check", metavar="DIR", help="check such a folder: is it causal, which lengths, how good")
    add("--film", nargs="+", default=[],
        help="check it on these videos of 10 s or more (the storybook)")
    add("--device", default=DEVICE, help="cpu, cuda, cuda:1, mps (%(default)s here)")
    args = p.parse_args()
    if bool(args.check) == bool(args.release):
        raise ValueError(f"name one of {', '.join(RELEASES)}, or --check DIR")
    if args.release and not (args.weights and args.out):
        raise ValueError(f"{args.release} needs --weights and --out")
    return args


def main():
    args = parse()
    check(args.check, args) if args.check else adopt(args)


if __name__ == "__main__":
    run_script(main, RuntimeError)
