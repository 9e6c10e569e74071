"""--upscale and --refine through diffusers' own pipelines, with networks so small that they can be random."""
import json

import imageio.v3
import numpy as np
import pytest
from conftest import fails, run

from data import toy_clip
from sample import generate, load, refiner, upscaler

diffusers = pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of an upscaling pipeline, and of a base, a motion adapter and a ControlNet."""
    import torch
    from diffusers import (AutoencoderKL, ControlNetModel, DDIMScheduler, DDPMScheduler, MotionAdapter, StableDiffusionPipeline,
                           StableDiffusionUpscalePipeline, UNet2DConditionModel)
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    letters = [chr(c) for c in range(33, 127)]
    vocab = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{c}</w>" for c in letters)]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(vocab)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=77)
    text = CLIPTextModel(CLIPTextConfig(hidden_size=8, intermediate_size=8, num_attention_heads=2, num_hidden_layers=1,
                                        vocab_size=len(vocab), bos_token_id=0, eos_token_id=1, pad_token_id=1))
    blocks = dict(down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), block_out_channels=(8, 8), layers_per_block=1,
                  cross_attention_dim=8, norm_num_groups=2, attention_head_dim=2)
    up = dict(up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), out_channels=4)

    def vae(levels):
        return AutoencoderKL(block_out_channels=(8,) * levels, down_block_types=("DownEncoderBlock2D",) * levels,
                             up_block_types=("UpDecoderBlock2D",) * levels, latent_channels=4, norm_num_groups=2)

    StableDiffusionUpscalePipeline(
        vae=vae(3), text_encoder=text, tokenizer=tokenizer, low_res_scheduler=DDPMScheduler(), scheduler=DDIMScheduler(steps_offset=1),
        unet=UNet2DConditionModel(in_channels=7, num_class_embeds=100, **blocks, **up)).save_pretrained(folder / "upscale")
    StableDiffusionPipeline(
        vae=vae(2), text_encoder=text, tokenizer=tokenizer, scheduler=DDIMScheduler(clip_sample=False, steps_offset=1), safety_checker=None,
        unet=UNet2DConditionModel(in_channels=4, **blocks, **up), feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder / "base")
    MotionAdapter(block_out_channels=(8, 8), motion_layers_per_block=1, motion_norm_num_groups=2,
                  motion_num_attention_heads=2).save_pretrained(folder / "adapter")
    ControlNetModel(in_channels=4, conditioning_embedding_out_channels=(8, 8), **blocks).save_pretrained(folder / "control")
    return {name: str(folder / name) for name in ("upscale", "base", "adapter", "control")}


@pytest.fixture
def frames():
    return toy_clip(np.random.default_rng(0), 6)[0][:, ::2, ::2]  # 32x32


def test_upscale(models, frames):
    """Four times the size, repeatable, the prompt heard; equal frames stay equal, so still parts do not flicker."""
    enhance = upscaler(models["upscale"], 2, 0, "cpu")
    still = np.concatenate([frames[:1], frames[:1]])
    out = enhance(still, "a red circle")
    assert out.shape == (2, 128, 128, 3) and out.dtype == np.uint8
    assert np.abs(out[0].astype(int) - out[1]).max() <= 1 and (out == enhance(still, "a red circle")).all()
    assert not (out == enhance(still, "blue")).all() and not (out == enhance(frames[-2:], "a red circle")).all()


def test_refine(models, frames):
    enhance = refiner([models[name] for name in ("base", "adapter", "control")], 4, 0, "cpu")
    out = enhance(frames, "a red circle")
    assert out.shape == (6, 32, 32, 3) and out.dtype == np.uint8
    assert (out == enhance(frames, "a red circle")).all() and not (out == enhance(frames[::-1], "a red circle")).all()


def test_command_line(models, tiny, tmp_path):
    ask = ["--ckpt", tiny, "--prompt", "a red circle", "--seconds", 0.5, "--diffusion-steps", 2, "--out", tmp_path / "a.mp4"]
    run("sample.py", *ask, "--refine", "--refine-models", *(models[n] for n in ("base", "adapter", "control")))
    refined, plain = imageio.v3.imread(tmp_path / "a.mp4"), next(generate(*load(str(tiny)), "a red circle", seconds=0.5))
    assert refined.shape == plain.shape and np.abs(refined.astype(int) - plain).mean() > 20  # more than an mp4 changes
    run("sample.py", *ask, "--upscale", "--upscale-model", models["upscale"])
    assert imageio.v3.imread(tmp_path / "a.mp4").shape == (3, 256, 256, 3)
    assert "cannot load" in fails("sample.py", *ask, "--out", tmp_path / "b.mp4", "--upscale", "--upscale-model", tmp_path / "none")
    assert not (tmp_path / "b.mp4").exists()
