"""The metrics of Section 4 against cases whose answer is known."""
import dataclasses
import json
import math
import sys
from types import SimpleNamespace

import imageio.v3
import numpy as np
import pytest
import torch

import metrics
import tools.films
from benchmark import videos_that_fit
from conftest import fails, run
from data import toy_attributes, toy_clip
from model import PRESETS, KVCache
from tokenizer import TOKENIZER_PRESETS


def test_frechet_distance_of_known_gaussians():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(200, 5))
    assert abs(metrics.frechet_distance(a, a)) < 1e-9
    # a shift: its squared length
    assert abs(metrics.frechet_distance(a, a + [3, 0, 0, 4, 0]) - 25) < 1e-9
    # three times as wide: the difference of the standard deviations, squared
    wide = 3 * (a - a.mean(0)) + a.mean(0)
    assert abs(metrics.frechet_distance(a, wide) - 4 * np.trace(np.cov(a.T))) < 1e-9
    # any two: the product's root by its own eigenvalues
    b = rng.normal(size=(300, 5)) @ rng.normal(size=(5, 5)) + rng.normal(size=5)
    s_a, s_b = np.cov(a.T), np.cov(b.T)
    root = np.sqrt(np.linalg.eigvals(s_a @ s_b).real)
    closed = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(s_a + s_b) - 2 * root.sum()
    assert metrics.frechet_distance(a, b) == pytest.approx(closed, rel=1e-9)
    assert metrics.frechet_distance(b, a) == pytest.approx(closed, rel=1e-9)
    with pytest.raises(ValueError):
        metrics.frechet_distance(a, b[:1])


@pytest.mark.parametrize("n", [512, 40])  # more videos than features, and fewer
def test_frechet_distance_of_torchmetrics(n):
    fid = pytest.importorskip("torchmetrics.image.fid")
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(128, 128))
    a, b = rng.normal(size=(n, 128)) @ mix, rng.normal(size=(n, 128)) @ mix * 1.1 + 0.3
    features = torch.nn.Identity()
    features.num_features = 128
    theirs = fid.FrechetInceptionDistance(features).set_dtype(torch.float64)
    theirs.update(torch.tensor(a), real=True)
    theirs.update(torch.tensor(b), real=False)
    assert metrics.frechet_distance(a, b) == pytest.approx(float(theirs.compute()), rel=1e-3)


@pytest.fixture(scope="module")
def world():
    """128 clips of 16 frames, their attributes, and the shipped classifier."""
    rng = np.random.default_rng(3)
    clips = [toy_clip(rng, 16, toy_attributes(rng)) for _ in range(128)]
    return np.stack([c[0] for c in clips]), [c[2] for c in clips], metrics.classifier()


@pytest.mark.parametrize("damage", ["noise", "blur", "shuffle"])
def test_distance_rises_with_damage(world, damage):
    videos, _, network = world
    real = metrics.classifier_features(videos, network)
    rng, distances = np.random.default_rng(0), []
    for strength in (0, 1, 2, 3):
        fake = videos.astype(np.float32)
        if damage == "noise":
            fake = np.clip(fake + 15 * strength * rng.normal(size=fake.shape), 0, 255)
        for _ in range(2 * strength if damage == "blur" else 0):
            for axis in (2, 3):
                fake = (np.roll(fake, 1, axis) + fake + np.roll(fake, -1, axis)) / 3
        if damage == "shuffle":  # ever more of the frames change places
            for clip in fake:
                some = rng.permutation(16)[:5 * strength]
                clip[np.sort(some)] = clip[some]
        features = metrics.classifier_features(fake.astype(np.uint8), network)
        distances.append(metrics.frechet_distance(real, features))
    assert abs(distances[0]) < 1e-6 and all(np.diff(distances) > 0.02)


def test_text_match_knows_the_wrong_caption(world):
    videos, attributes, network = world
    right = metrics.text_match(videos, attributes, network)
    assert right.mean() > 0.95
    wrong = metrics.text_match(videos, attributes[1:] + attributes[:1], network)
    assert wrong.mean() < 0.6
    other = {"slowly": "quickly", "quickly": "slowly"}
    changed = [a | {"speed": other[a["speed"]]} for a in attributes]
    # a sixth of the score
    assert (right - metrics.text_match(videos, changed, network)).mean() > 0.1


def test_as_many_videos_as_fit():
    """Of the 7B model into what its weights leave of 80 GB."""
    config, free = PRESETS["7b"], 80e9 - 13.6e9
    with torch.device("meta"):
        cache = KVCache(SimpleNamespace(config=config, lm_head=torch.nn.Linear(
            1, 1, dtype=torch.bfloat16)), 2)
    one = sum(x.nbytes for x in cache.k + cache.v)
    n = videos_that_fit(config, free)
    assert 1 < n < 16 and 0.7 * free < n * one < 0.8 * free
    assert videos_that_fit(config, 1e9) == 1 and videos_that_fit(config, math.inf) == 16


def test_benchmark_of_real_videos(tmp_path, tiny):
    torch.jit.script(FakeI3D()).save(str(tmp_path / "i3d.pt"))
    rng = np.random.default_rng(0)
    for i, seconds in enumerate([8, 6, 4, 1]):
        video, caption, _ = toy_clip(rng, round(6.5 * seconds))
        imageio.v3.imwrite(tmp_path / f"{i}.mp4", video, fps=6.5, plugin="pyav", codec="libx264")
        (tmp_path / f"{i}.txt").write_text(caption)
    (tmp_path / "broken.mp4").write_text("no video")
    (tmp_path / "broken.txt").write_text("a caption")
    common = ["--input", tmp_path, "--i3d", tmp_path / "i3d.pt", "--clip", "none", "--ckpt", tiny]

    found = json.loads(run("experiments/benchmark.py", *common, "--seconds", 2.5).stdout)
    assert found["videos"] == 3 and found["passed over"] == 2 and found["FVD"] > 1
    longest = run("experiments/benchmark.py", *common, "--longest", 2, "--seconds", 5)
    assert json.loads(longest.stdout)["videos"] == 2
    assert "16 frames" in fails("experiments/benchmark.py", *common, "--seconds", 1)


class FakeI3D(torch.nn.Module):
    def forward(self, x, rescale: bool, resize: bool, return_features: bool):
        return x.mean((2, 3, 4))


def test_i3d_sees_the_first_16_frames(tmp_path):
    path = str(tmp_path / "i3d.pt")
    torch.jit.script(FakeI3D()).save(path)
    videos = np.random.default_rng(0).integers(0, 256, (3, 20, 8, 8, 3)).astype(np.uint8)
    features = metrics.i3d_features(videos, path)
    assert np.allclose(features, videos[:, :16].mean((1, 2, 3)), atol=1e-2)
    with pytest.raises(ValueError, match="no torchscript"):
        metrics.i3d_features(videos, str(tmp_path / "none.pt"))


def small_clip(folder):
    """Write a tiny random CLIP and its processor to a folder."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer
    words = ["<|startoftext|>", "<|endoftext|>", *"abcdefghij", *(c + "</w>" for c in "abcdefghij")]
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"),
                              unk_token="<|endoftext|>")
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
             "num_attention_heads": 2}
    model = CLIPModel(CLIPConfig(
        text_config=small | {"vocab_size": len(words), "eos_token_id": 1},
        vision_config=small | {"image_size": 32, "patch_size": 16}, projection_dim=8))
    size = {"shortest_edge": 32}
    processor = CLIPProcessor(CLIPImageProcessor(size=size, crop_size=32), tokenizer)
    processor.save_pretrained(folder)
    model.save_pretrained(folder)
    return model.eval(), CLIPProcessor.from_pretrained(folder)


def test_clip_score_is_the_cosine(tmp_path):
    model, processor = small_clip(tmp_path)
    videos = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32, 3)).astype(np.uint8)
    scores = metrics.clip_score(videos, ["a b", "c d e"], str(tmp_path))
    assert scores.shape == (2,) and (scores >= 0).all() and (scores <= 100).all()

    one = metrics.clip_score(videos[1:, :1], ["c d e"], str(tmp_path))
    inputs = processor(text=["c d e"], images=[videos[1, 0]], return_tensors="pt")
    with torch.no_grad():
        image = model.get_image_features(pixel_values=inputs["pixel_values"])
        text = model.get_text_features(input_ids=inputs["input_ids"],
                                       attention_mask=inputs["attention_mask"])
    image, text = (getattr(x, "pooler_output", x) for x in (image, text))
    cosine = torch.cosine_similarity(image, text).item()
    assert one.shape == (1,) and one[0] == pytest.approx(100 * max(cosine, 0), abs=1e-3)
    with pytest.raises(ValueError, match="CLIP score needs"):
        metrics.clip_score(videos, ["a", "b"], str(tmp_path / "none"))


def test_bench_gpu_at_small_sizes(tmp_path, eager, monkeypatch):
    """Every part of the quick run; what is in the file is not measured again. A GPU's machine
    may lack av."""
    monkeypatch.setitem(PRESETS, "toy", dataclasses.replace(
        PRESETS["toy"], dim=32, n_layers=2, n_heads=2, ffn_dim=48, latent_shape=(17, 2, 2)))
    monkeypatch.setitem(TOKENIZER_PRESETS, "toy", dataclasses.replace(
        TOKENIZER_PRESETS["toy"], base_channels=4, resolution=16))
    monkeypatch.setattr(tools, "films", tools.films)  # to be as it was afterwards
    for name in [x for x in sys.modules if x == "av" or x.startswith(("av.", "tools.films"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "av", None)
    ask = "experiments/bench.py", "gpu", "--quick", "--out", tmp_path / "gpu.json"
    run(*ask)
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert len(found) == 1 + 3 + 1 + 1 + 1 and "toy sizes" in found["device"]
    steps = found["toy, 2 layers, training on 1 frames"]
    assert steps["tokens/s"] > 0 and 0 < steps["share of the matmul rate"] < 1
    decoding = found["toy, guided decoding"]
    assert decoding["window 1: passes/s"] > 0 and decoding["graphs"] > 0
    assert found["prefixes under autocast"]["share that differs, 17 frames"] < 0.05
    assert found["sharded, saved and resumed"]["largest difference of the losses"] < 1e-5
    assert not run(*ask).stdout
