"""tools/play.py: a page to play with: a video without end, and its tokens.

    python tools/play.py    # and open the address that it prints

A clip of the toy takes less time to write than to play. So each visitor has
a thread that writes the next clip (`film`) while the page shows this one:

    scene -> film: sample.generate, clip by clip -> play: frame by frame

Play, or Enter in the prompt, starts a scene. While one runs, a new prompt takes
effect when the clip on show ends: from its last frames, or by a cut in a new
scene, as --at and --cut of sample.py do.

Beside the video are the tokens of the clip that is being written: a tile per
latent frame, each token in the color that it decodes to, and those that the
last pass guessed right (`sample.jacobi`) outlined in white.

Needs: pip install gradio. It replaces pillow by an older one, which does as well.
"""
import argparse
import base64
import functools
import html
import io
import sys
import time
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from data import FPS, latent_frames, to_float, to_uint8  # noqa: E402
from sample import CONTEXT, generate, load  # noqa: E402
from tools.machine import DEVICE, run_script, set_threads  # noqa: E402

PROMPTS = ["a red balloon drifts right slowly past green hills by day",
           "a yellow bird flies left quickly past a city at night",
           "a white car drives right past snowy mountains at sunset"]
EMPTY = np.array([[[128, 128, 128, 60]]], np.uint8)  # a pixel, red, green, blue, alpha
NOTE = """The tokens of the clip being written: a tile per latent frame, each token in the color
that it decodes to, those that the last pass guessed right in white frames. From the second clip
on, the first two tiles are known."""


class GivenUp(Exception):
    """Raised in the middle of a clip that nobody will see."""


@torch.inference_mode()
def film(world, visitor, reel):
    """Write clips until reel.over, at most one ahead of the page, as reel.clip
    = (scene, uint8 (T, H, W, 3)). scene: options of `generate`; when the
    visitor's changes, what is written but not yet shown is dropped."""
    model, tokenizer, _ = world
    device = model.lm_head.weight.device

    def encoded(frames):
        return tokenizer.encode(to_float(frames)[None].to(device)).flatten().tolist()

    def check():
        if reel.over or visitor["scene"] != scene:
            raise GivenUp

    def watch(codes, n):
        while reel.clip or codes.shape[1] > n * (reel.shown + 0.3):  # no hurry
            check()
            time.sleep(0.01)
        check()
        codes, before = known + codes[0].tolist(), len(reel.codes)
        reel.right = before if before < len(codes) else len(known)
        reel.codes = codes

    while not reel.over:
        scene = visitor["scene"]
        options = {name: x for name, x in scene.items() if name != "cut"}
        start = None if scene["cut"] or reel.seen is None else reel.seen[-CONTEXT:]
        known = [] if start is None else encoded(start)
        reel.clip, reel.codes = None, []
        try:
            for clip in generate(*world, **options, start=start, seconds=1e9, watch=watch):
                check()
                reel.clip = scene, clip
                t, h, w = model.config.latent_shape
                known = reel.codes[-latent_frames(CONTEXT) * h * w:]
                if scene["reencode"]:
                    known = encoded(clip[-CONTEXT:])
        except GivenUp:
            continue
        except ValueError as e:  # what `check_sampling` refuses
            reel.refused = str(e)
            return


def play(world, colors, visitor):
    """Yield (video, tokens) as HTML without end. Gradio closes this generator
    when the visitor stops it or closes the page, which ends the work."""
    reel = SimpleNamespace(clip=None, seen=None, codes=[], right=0, shown=1, over=False,
                           refused="the clip could not be written")
    writer = Thread(target=film, args=(world, visitor, reel), daemon=True)
    writer.start()
    shape = world[0].config.latent_shape
    frames, video = 0, picture(EMPTY)
    try:
        while writer.is_alive():
            scene, clip = reel.clip or (None, None)
            if scene != visitor["scene"]:  # nothing to show yet
                yield video, tiles(reel.codes, reel.right, colors, shape)
                time.sleep(0.05)
                continue
            reel.clip, reel.seen, due = None, clip, time.monotonic()
            for i, frame in enumerate(clip):
                reel.shown = i / len(clip)
                clock = f"{int(frames / FPS / 60)}:{int(frames / FPS % 60):02d}"
                video = f"{picture(frame)}<b>{clock}</b> {html.escape(scene['prompt'])}"
                yield video, tiles(reel.codes, reel.right, colors, shape)
                frames += 1
                due += 1 / FPS / visitor["speed"]
                time.sleep(max(0, due - time.monotonic()))
            reel.shown = 1
        raise ValueError(reel.refused)
    finally:
        reel.over = True


def tiles(codes, right, colors, shape):
    """The codes of a clip so far, a list -> HTML, a picture per latent frame
    with 8x8 pixels per code. Those of the last pass are outlined, codes[right:], but for the
    last one, which took the place of a wrong guess."""
    t, h, w = shape
    cells = np.tile(EMPTY, (t * h * w, 8, 8, 1))
    cells[:len(codes)] = colors[codes][:, None, None]
    edge = np.pad(np.zeros((6, 6), bool), 1, constant_values=True)
    cells[right:max(right, len(codes) - 1), edge] = 255
    frames = cells.reshape(t, h, w, 8, 8, 4).swapaxes(2, 3).reshape(t, 8 * h, 8 * w, 4)
    return "".join(picture(frame, "19%; margin: 0.5%") for frame in frames)


@torch.inference_mode()
def code_colors(tokenizer):
    """The mean color of each code, the middle of nine: uint8 (M, 4)."""
    device = next(tokenizer.buffers()).device
    codes = torch.arange(tokenizer.config.codebook_size, device=device).repeat_interleave(3)
    # a strip of 256 codes is one picture: adopted tokenizers decode one at a time
    strips = [tokenizer.decode(x.expand(1, 1, 3, -1)) for x in codes.split(3 * 256)]
    pixels = [to_uint8(x)[0, 0, 8:16].reshape(8, -1, 24, 3)[:, :, 8:16] for x in strips]
    means = np.concatenate(pixels, 1).mean((0, 2)).round().astype(np.uint8)
    return np.pad(means, ((0, 0), (0, 1)), constant_values=255)


def picture(pixels, width="100%"):
    """uint8 (H, W, 3 or 4) -> HTML with sharp pixels."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    data = base64.b64encode(file.getvalue()).decode()
    style = f"display: inline-block; image-rendering: pixelated; width: {width}"
    return f'<img decoding="sync" style="{style}" src="data:image/png;base64,{data}">'


def page(world):
    """The page, a gradio.Blocks."""
    import gradio as gr
    config, colors = world[0].config, code_colors(world[1])
    sampling = world[0].sampling

    with gr.Blocks(title="Loong", analytics_enabled=False) as demo:
        visitor = gr.State({"speed": 1})  # each visitor has a copy
        with gr.Row():
            controls = {"prompt": gr.Textbox(PROMPTS[0], label="prompt", scale=4)}
            with gr.Column(min_width=100):
                start = gr.Button("Play", variant="primary")
                stop = gr.Button("Stop")
        gr.Examples(PROMPTS, controls["prompt"])
        with gr.Row():
            video = gr.HTML(picture(EMPTY), scale=1)
            with gr.Column(scale=1):
                tokens = gr.HTML(tiles([], 0, colors, config.latent_shape))
                gr.Markdown(NOTE)
        with gr.Row():
            controls["cfg_scale"] = gr.Slider(1, 10, sampling["cfg_scale"], label="guidance")
            controls["temperature"] = gr.Slider(
                0.1, 2, sampling["temperature"], label="temperature")
            controls["top_k"] = gr.Slider(1, 200, sampling["top_k"], step=1, label="top-k")
        with gr.Row():
            speed = gr.Slider(1, 4, 1, step=0.5, label="speed")
            controls["seed"] = gr.Number(0, precision=0, minimum=0, label="seed")
            controls["reencode"] = gr.Checkbox(True, label="re-encoding")
            controls["cut"] = gr.Checkbox(False, label="cut to a new scene")
        speed.change(lambda visitor, x: visitor.update(speed=x), [visitor, speed])
        playing = gr.on(
            [start.click, controls["prompt"].submit],
            lambda visitor, *values: visitor.update(scene=dict(zip(controls, values))),
            [visitor, *controls.values()],
        ).then(
            functools.partial(play, world, colors), visitor, [video, tokens],
            trigger_mode="once", concurrency_limit=8, show_progress="hidden")
        stop.click(None, cancels=playing)
    return demo


def main():
    p = argparse.ArgumentParser(description="A page to play with.")
    add = p.add_argument
    add("--ckpt",
        help="folder of a training, for its latest stage, or a stageN.pt (the shipped toy)")
    add("--port", type=int, help="of the page (7860, or the next free one)")
    add("--device", default=DEVICE, help="cpu, cuda, cuda:1, mps (%(default)s here)")
    args = p.parse_args()
    world = load(args.ckpt, args.device)
    set_threads(world[0])
    page(world).launch(server_port=args.port, show_error=True)


if __name__ == "__main__":
    run_script(main, OverflowError)
