import io
import json
import os
import resource
import shutil
import signal
import subprocess
import tarfile
import time
from fractions import Fraction

import av
import imageio.v3
import numpy as np
import pytest
import torch
from conftest import command, fails, run
from PIL import Image

from data import (FPS, TOY, Clips, TextTokenizer, TokenShards, held_out, read_clip, square, to_float, to_uint8,
                  toy_attributes, toy_clip, toy_cover)
from prompts import judge, locate
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
    frozen, jumping = video.copy(), np.delete(video, range(200, 206), 0)
    frozen[200:215] = video[200]
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
    with pytest.raises(ValueError, match="too short for 65 frames"):
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
            with torch.autocast("cpu", torch.bfloat16):  # as shards are, and what is encoded in training and sampling
                expected = tokenizer.encode(to_float(video[None, :frames]))[0].numpy()
            assert tokens.shape == expected.shape and tokens.dtype == np.int64 and caption == said
            assert (tokens != expected).mean() < 0.05
    shutil.copytree(tiny, tmp_path / "run")
    train = ["train.py", "--stage", 2, "--steps", 2, "--batch-size", 2, "--out", tmp_path / "run", "--overwrite",
             "--data", tmp_path / "toy"]
    run(*train)
    meta = json.loads((tmp_path / "toy" / "meta.json").read_text())
    (tmp_path / "toy" / "meta.json").write_text(json.dumps(meta | {"tokenizer_hash": "0"}))
    assert "another tokenizer" in fails(*train)
    assert "choose another --out" in fails("data.py", "--clips", 5, "--ckpt", tiny, "--out", tmp_path / "toy")


def film(path, name, fps=13, frames=130):
    """A toy clip as a video file, and what it shows."""
    video = np.repeat(toy_clip(np.random.default_rng(ord(name)), frames // 2)[0], 2, axis=0)
    imageio.v3.imwrite(path, video, plugin="pyav", codec="libx264", fps=fps)
    return path.read_bytes()


def encoded(folder):
    """{file name: bytes} of a folder of shards."""
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Ten good files and as many hostile ones, as a folder, a csv with its root, and a tar: (folder, captions of the
    good ones in order, number of bad ones)."""
    root = tmp_path_factory.mktemp("corpus")
    folder = root / "folder"
    (folder / "deep").mkdir(parents=True)
    for name in "acd":
        film(folder / f"{name}.mp4", name)
    film(folder / "deep" / "long.mp4", "e", frames=2 * 130)
    film(folder / "short.mp4", "f", frames=40)
    film(folder / "one.mp4", "g", frames=2)
    red = Image.fromarray(np.full((40, 90, 3), (200, 30, 30), np.uint8))
    red.save(folder / "wide.png")
    red.convert("CMYK").save(folder / "print.jpg")
    Image.new("RGBA", (64, 64), (0, 0, 0, 0)).save(folder / "clear.webp")  # nothing but transparency: white
    red.resize((7680, 4320)).save(folder / "zhuge.jpg")
    good = ["a", "c", "clear", "d", "one", "print", "short", "wide", "zhuge", "deep/long"]
    (folder / "broken.mp4").write_bytes((folder / "a.mp4").read_bytes()[:300])
    (folder / "codec.mp4").write_bytes((folder / "a.mp4").read_bytes().replace(b"avc1", b"zzzz"))
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_bytes(b"hello")
    (folder / "picture.mp4").write_bytes((folder / "wide.png").read_bytes())
    (folder / "video.jpg").write_bytes((folder / "a.mp4").read_bytes())
    red.resize((1, 1)).save(folder / "dot.png")
    (folder / "cut.jpg").write_bytes((folder / "print.jpg").read_bytes()[:400])
    Image.new("1", (30000, 30000)).save(folder / "bomb.png")
    imageio.v3.imwrite(folder / "mute.gif", np.zeros((2, 1, 1, 3), np.uint8))
    (folder / "silent.mp4").write_bytes((folder / "a.mp4").read_bytes())  # no caption
    for path in folder.rglob("*.*"):
        if path.stem != "silent":
            path.with_suffix(".txt").write_bytes(f"thing {path.relative_to(folder).with_suffix('')} moves\n".encode())
    (folder / "a.txt").write_bytes(b"thing a \xff moves " + b"on " * 40_000)
    return folder, good, 11


def test_a_folder_of_anything(tiny, tmp_path, corpus):
    folder, good, bad = corpus
    args = ["data.py", "--source", "folder", "--input", folder, "--ckpt", tiny, "--batch-size", 2, "--part", 7]
    done = run(*args, "--out", tmp_path / "out", ranks=0)
    reasons = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert len(reasons) == bad and all(r["file"] and r["reason"] for r in reasons), reasons
    assert f"{bad} skipped" in done.stdout
    shards = {t: TokenShards(tmp_path / "out", t) for t in (1, 5, 17)}
    assert [len(s) for s in shards.values()] == [len(good), 5, 4]
    assert sorted(s[1].split()[1] for s in shards[1]) == sorted(good)
    assert max(len(s[1]) for s in shards[1]) <= 4096
    tokenizer, _ = load_tokenizer(tiny)
    for tokens, caption in shards[17]:
        clip = read_clip(folder / f"{caption.split()[1]}.mp4", 65, size=64)
        with torch.autocast("cpu", torch.bfloat16):
            assert (tokenizer.encode(to_float(clip[None]))[0].numpy() != tokens).mean() < 0.05
    assert "choose another" in fails(*args, "--out", tmp_path / "out", "--clips-per-video", 2)
    run(*args, "--out", tmp_path / "more", "--clips-per-video", 2)  # the long one gives two
    assert len(TokenShards(tmp_path / "more", 17)) == 5

    # two jobs in any order, and one that is killed again and again, write the same files
    for job in (1, 0):
        run(*args, "--out", tmp_path / "jobs", "--shard", f"{job}/2")
    assert encoded(tmp_path / "jobs") == encoded(tmp_path / "out")
    for parts in (1, 2):
        process = subprocess.Popen(command(*args, "--out", tmp_path / "killed"), stderr=subprocess.DEVNULL,
                                   stdout=subprocess.DEVNULL, start_new_session=True)
        while len(list((tmp_path / "killed").glob("00*.json"))) < parts and process.poll() is None:
            time.sleep(0.01)
        assert process.poll() is None, "finished before it was killed"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    run(*args, "--out", tmp_path / "killed")
    files = encoded(tmp_path / "killed")
    assert {k: v for k, v in files.items() if not k.endswith(".tmp")} == encoded(tmp_path / "out")

    seen = run("data.py", "--inspect", tmp_path / "out", "--ckpt", tiny).stdout
    assert "4 clips of 65 frames" in seen and "no caption" in seen and "codes used" in seen
    assert Image.open(tmp_path / "out" / "contact.png").size == (4 * 3 * 64, 4 * 64)
    assert "needs --input" in fails("data.py", "--source", "folder", "--ckpt", tiny, "--out", tmp_path / "x")


def test_webvids_csv(tiny, tmp_path, corpus):
    with open(tmp_path / "table.csv", "w") as f:
        f.write("videoid,page_dir,name,duration\na,.,\"first, with a comma\",10\nlong,deep,second,20\n"
                "missing,.,third,1\n../folder/a,..,outside,1\nc,,,1\n")
    args = ["data.py", "--source", "csv", "--input", tmp_path / "table.csv", "--root", corpus[0], "--ckpt", tiny]
    run(*args, "--out", tmp_path / "out")
    shards = TokenShards(tmp_path / "out", 17)
    assert [caption for _, caption in shards] == ["first, with a comma", "second"]
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert reasons == ["No such file or directory", "outside --root", "no caption"]
    assert "no column nome" in fails(*args, "--columns", "videoid,page_dir,nome", "--out", tmp_path / "x")


def test_tars_of_img2dataset(tiny, tmp_path, corpus):
    """Groups by key, captions from json or txt; broken tars, links, doubles and ../ names hurt nobody."""
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in" / "00000.tar", "w") as tar:
        def add(name, data, **kind):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            for key, value in kind.items():
                setattr(member, key, value)
            tar.addfile(member, io.BytesIO(data))
        picture, video = (corpus[0] / "wide.png").read_bytes(), (corpus[0] / "a.mp4").read_bytes()
        add("000.png", picture)
        add("000.json", b'{"caption": "from json"}')
        add("001.mp4", video)
        add("001.txt", b"from txt")
        add("../../evil.png", picture)
        add("../../evil.txt", b"with a name that climbs")
        add("002.png", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add("002.txt", b"a link")
        add("003.txt", b"no media")
        add("000.png", picture)
        add("000.txt", b"again")
    whole = (tmp_path / "in" / "00000.tar").read_bytes()
    (tmp_path / "in" / "00001.tar").write_bytes(whole[:700])
    (tmp_path / "in" / "00002.tar").write_bytes(b"no tar")
    run("data.py", "--source", "tar", "--input", tmp_path / "in", "--ckpt", tiny, "--out", tmp_path / "out")
    shards = TokenShards(tmp_path / "out", 1)
    assert sorted(caption for _, caption in shards) == ["from json", "from txt", "with a name that climbs"]
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert sum("broken tar" in r for r in reasons) == 2 - ("no caption" in reasons) and "a link, not a file" in reasons
    assert "duplicate key" in reasons and "no video or image" in reasons
    assert not list(tmp_path.glob("evil*"))


def test_folders_are_mixed_in_shares(tiny, tmp_path):
    for seed in (1, 2):
        run("data.py", "--clips", 4, "--seed", seed, "--ckpt", tiny, "--out", tmp_path / str(seed))
    both = f"{tmp_path / '1'},{tmp_path / '2'}"
    first = {TokenShards(tmp_path / "1", 17)[i][0].tobytes() for i in range(4)}
    clips = Clips(both, 0, 3, mix=(3, 1))
    share = np.mean([clips[0, i, 65][0].tobytes() in first for i in range(400)])
    assert 0.68 < share < 0.82
    with pytest.raises(ValueError, match="--mix has 3"):
        Clips(both, 0, 3, mix=(1, 2, 3))


@pytest.mark.parametrize("fps", [24, 30000 / 1001, 60, None])
def test_any_frame_rate_shows_the_object_in_the_same_place(tmp_path, fps):
    """One scene filmed at 24, 29.97, 60 and a variable number of frames a second: where the object is at i / 6.5 s."""
    rng = np.random.default_rng(1)
    times = np.arange(0, 10.2, 1 / fps) if fps else np.cumsum(rng.uniform(0.01, 0.12, 160))
    times = times - times[0]
    path = np.stack([16 + 2.8 * times, 20 + 1.7 * times], 1)  # pixels
    video = (255 * toy_cover("circle", 8, path)[..., None]).astype(np.uint8).repeat(3, -1)
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps or 30).limit_denominator(1001), options={"crf": "10"})
        stream.width = stream.height = 64
        stream.codec_context.time_base = Fraction(1, 30000)
        for picture, seconds in zip(video, times):
            frame = av.VideoFrame.from_ndarray(picture)
            frame.pts, frame.time_base = round(seconds * 30000), Fraction(1, 30000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    clip = read_clip(tmp_path / "a.mp4", 65, size=64)
    with av.open(str(tmp_path / "a.mp4")) as container:  # every picture, though the reader skips most of those it can
        pictures = [(frame.time, square(frame, 64)) for frame in container.decode(video=0)]
    assert (clip == [[p for t, p in pictures if t - 1e-3 <= i / FPS][-1] for i in range(65)]).all()
    centre = locate(clip)[2]
    expected = np.stack([16 + 2.8 * np.arange(65) / FPS, 20 + 1.7 * np.arange(65) / FPS], 1)
    assert np.abs(centre - expected).max() < 1


def test_a_film_held_upright(tmp_path):
    """A phone's picture lies on its side in the file; what it should show is what is read, by the first and the last frames."""
    video = np.zeros((27, 64, 96, 3), np.uint8)
    video[:, :32, :, 0] = video[:, 32:, :, 2] = 255  # red above, blue below
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=13)
        stream.width, stream.height = 96, 64
        stream.set_display_rotation(90)  # counter-clockwise: red to the left
        for frame in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())
    for last in (False, True):
        clip = read_clip(tmp_path / "a.mp4", 13, size=32, last=last)
        red, blue = clip[:, :, :12].mean((0, 1, 2)), clip[:, :, -12:].mean((0, 1, 2))
        assert red[0] > 200 > 50 > red[2] and blue[2] > 200 > 50 > blue[0]


def test_a_full_disk_is_one_line_and_loses_nothing(tiny, tmp_path):
    """Writing fails in the second part: the first stays, no half file is left, and a rerun completes the set."""
    args = ["data.py", "--clips", 6, "--part", 3, "--ckpt", tiny, "--out", tmp_path / "out"]
    run(*args, "--shard", "0/2")
    full = subprocess.run(command(*args), capture_output=True, text=True,
                          preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)))
    assert full.returncode and full.stderr.strip().splitlines()[-1].startswith("data.py: cannot write")
    assert "Traceback" not in full.stderr and not list((tmp_path / "out").glob("*.tmp"))
    assert len(TokenShards(tmp_path / "out", 17)) == 3
    run(*args)
    assert len(TokenShards(tmp_path / "out", 17)) == 6
