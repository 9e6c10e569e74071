import json
import shutil

import imageio.v3
import numpy as np
import pytest
from conftest import fails, run

from data import (FPS, TOY, Clips, TextTokenizer, TokenShards, held_out, read_clip, to_float, to_uint8, toy_attributes,
                  toy_clip)
from prompts import judge
from sample import load_tokenizer


def test_captions_are_true_for_a_minute():
    """An analyser that sees frames only finds in the picture what the caption's attributes say, to the last second."""
    for i in range(12):
        video, caption, attributes = toy_clip(np.random.default_rng(i), 390)
        assert video.shape == (390, 64, 64, 3) and video.dtype == np.uint8
        assert all(judge(video, attributes).values()), caption
        assert all(str(attributes[name]) in caption for name in TOY)


def test_the_analyser_sees_what_is_wrong():
    video, _, attributes = toy_clip(np.random.default_rng(3), 390)
    for name, values in TOY.items():
        if name != "speed":
            other = attributes | {name: next(v for v in values if v != attributes[name])}
            assert not judge(video, other)["first 10 s"], name
    frozen, jumping = video.copy(), video.copy()
    frozen[200:215] = video[200]
    jumping[200:] = video[200:][::-1]
    assert not judge(frozen, attributes)["in motion"] and not judge(jumping, attributes)["in motion"]
    two = np.maximum(video, toy_clip(np.random.default_rng(4), 390)[0])
    assert not judge(two, attributes)["first 10 s"]


def test_held_out_triples_are_never_trained():
    clips = Clips("toy", seed=0, stage=1)
    rng = np.random.default_rng(0)
    assert not any(held_out(toy_attributes(rng)) for _ in range(500))
    assert all(held_out(toy_attributes(rng, held=True)) for _ in range(20))
    captions = [clips[step, i, 1][1] for step in range(20) for i in range(10)]
    assert not any("red" in c and "circle" in c and "up and down" in c for c in captions)
    assert 5 < captions.count("") < 40  # dropped with probability 0.1


def test_a_sample_depends_on_its_key_alone():
    a, b = (Clips("toy", seed=0, stage=2) for _ in range(2))
    b[5, 0, 17]
    assert (a[3, 1, 17][0] == b[3, 1, 17][0]).all() and not (a[3, 1, 17][0] == a[3, 2, 17][0]).all()


def test_text_tokenizer():
    text = TextTokenizer("bytes")
    assert text.encode("red é") == list("red é".encode()) and text.n_vocab == 256
    assert len(text.encode("a" * 10 ** 6)) <= 4096
    with pytest.raises(ValueError, match="unknown text tokenizer"):
        TextTokenizer("klingon")


def test_uint8_and_float_are_inverse():
    video = toy_clip(np.random.default_rng(0), 5)[0]
    assert to_float(video).shape == (3, 5, 64, 64) and (to_uint8(to_float(video)) == video).all()


def test_read_clip_resamples_by_time(tmp_path):
    """Brightness tells the time: 26 frames/s, and frame i of the clip is what was on screen at i / 6.5 s."""
    frames = np.repeat(np.arange(0, 208, 2, dtype=np.uint8)[:, None, None, None], 3, 3)  # 4 seconds
    frames = np.broadcast_to(frames, (104, 48, 80, 3))
    imageio.v3.imwrite(tmp_path / "a.mp4", frames, plugin="pyav", codec="libx264", fps=26)
    clip = read_clip(tmp_path / "a.mp4", 17, fps=FPS, size=32)
    assert clip.shape == (17, 32, 32, 3) and clip.dtype == np.uint8
    assert np.abs(clip.mean((1, 2, 3)) - 8 * np.arange(17)).max() < 4
    with pytest.raises(ValueError, match="26 frames at 6.5"):
        read_clip(tmp_path / "a.mp4", 65)
    (tmp_path / "b.mp4").write_bytes(b"not a video")
    with pytest.raises(ValueError, match="not a readable video"):
        read_clip(tmp_path / "b.mp4", 1)


def test_one_shard_serves_every_stage(tiny, tmp_path):
    run("data.py", "--source", "toy", "--clips", 5, "--ckpt", tiny, "--out", tmp_path / "toy")
    tokenizer, _ = load_tokenizer(tiny)
    for latents, frames in ((1, 1), (5, 17), (17, 65)):  # a prefix of a row is the encoding of the clip's prefix
        shards = TokenShards(tmp_path / "toy", latents)
        assert len(shards) == 5
        for i in range(5):
            tokens, caption = shards[i]
            video, said, _ = toy_clip(np.random.default_rng([0, i, 17]))
            expected = tokenizer.encode(to_float(video[None, :frames]))[0].numpy()
            assert tokens.shape == expected.shape and tokens.dtype == np.int64 and caption == said
            assert (tokens != expected).mean() < 0.05  # shards are encoded under bfloat16
    shutil.copytree(tiny, tmp_path / "run")
    train = ["train.py", "--stage", 2, "--steps", 2, "--batch-size", 2, "--out", tmp_path / "run", "--overwrite",
             "--data", tmp_path / "toy"]
    run(*train)
    meta = json.loads((tmp_path / "toy" / "meta.json").read_text())
    (tmp_path / "toy" / "meta.json").write_text(json.dumps(meta | {"tokenizer_hash": "0"}))
    assert "another tokenizer" in fails(*train)
    assert "holds shards already" in fails("data.py", "--ckpt", tiny, "--out", tmp_path / "toy")


def test_a_folder_of_videos(tiny, tmp_path):
    (tmp_path / "in").mkdir()
    for name in "acd":
        video = np.repeat(toy_clip(np.random.default_rng(ord(name)), 65)[0], 2, axis=0)  # 13 frames/s
        imageio.v3.imwrite(tmp_path / "in" / f"{name}.mp4", video, plugin="pyav", codec="libx264", fps=13)
        (tmp_path / "in" / f"{name}.txt").write_text(f"thing {name} moves\n")
    (tmp_path / "in" / "broken.mp4").write_bytes(b"\0" * 100)
    done = run("data.py", "--source", "folder", "--input", tmp_path / "in", "--ckpt", tiny, "--out", tmp_path / "out",
               "--batch-size", 2)
    assert "broken.mp4" in done.stderr
    shards = TokenShards(tmp_path / "out", 17)
    assert [shards[i][1] for i in range(len(shards))] == ["thing a moves", "thing c moves", "thing d moves"]
    tokenizer, _ = load_tokenizer(tiny)
    for i, name in enumerate("acd"):
        clip = read_clip(tmp_path / "in" / f"{name}.mp4", 65, size=64)
        assert (tokenizer.encode(to_float(clip[None]))[0].numpy() != shards[i][0]).mean() < 0.05
    assert "needs --input" in fails("data.py", "--source", "folder", "--ckpt", tiny, "--out", tmp_path / "x")
