import io
import json
import os
import resource
import shutil
import signal
import subprocess
import tarfile
import time

import imageio.v3
import numpy as np
import pytest
import torch
from conftest import command, fails, run
from PIL import Image

from data import TokenShards, read_clip, to_float, toy_clip
from sample import autocast
from tokenizer import load_tokenizer


def test_one_shard_serves_every_stage(tiny, tmp_path):
    run("tools/prepare.py", "--source", "toy", "--clips", 5, "--ckpt", tiny, "--out", tmp_path / "toy")
    tokenizer, _ = load_tokenizer(tiny)
    for latents, frames in ((1, 1), (5, 17), (17, 65)):  # a prefix of a row is the encoding of the clip's prefix
        shards = TokenShards(tmp_path / "toy", latents)
        assert len(shards) == 5
        for i in range(5):
            tokens, caption = shards[i]
            video, said, _ = toy_clip(np.random.default_rng([0, i, 17]))
            with autocast(torch.device("cpu")):  # as everywhere
                expected = tokenizer.encode(to_float(video[None, :frames]))[0].numpy()
            assert tokens.shape == expected.shape and tokens.dtype == np.int64 and caption == said
            assert (tokens != expected).mean() < 0.05
    shutil.copytree(tiny, tmp_path / "run")
    train = ["train.py", "--stage", 2, "--steps", 2, "--batch-size", 2,
             "--out", tmp_path / "run", "--overwrite", "--data", tmp_path / "toy"]
    run(*train)
    meta = json.loads((tmp_path / "toy" / "meta.json").read_text())
    (tmp_path / "toy" / "meta.json").write_text(json.dumps(meta | {"tokenizer_hash": "0"}))
    assert "another tokenizer" in fails(*train)
    assert "choose another --out" in fails("tools/prepare.py", "--clips", 5, "--ckpt", tiny, "--out", tmp_path / "toy")


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
    args = ["tools/prepare.py", "--source", "folder", "--input", folder, "--ckpt", tiny, "--batch-size", 2, "--part", 7]
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
        with autocast(torch.device("cpu")):
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

    seen = run("tools/prepare.py", "--inspect", tmp_path / "out", "--ckpt", tiny).stdout
    assert "4 clips of 65 frames" in seen and "no caption" in seen and "codes used" in seen
    assert Image.open(tmp_path / "out" / "contact.png").size == (4 * 3 * 64, 4 * 64)
    assert "needs --input" in fails("tools/prepare.py", "--source", "folder", "--ckpt", tiny, "--out", tmp_path / "x")


def test_webvids_csv(tiny, tmp_path, corpus):
    with open(tmp_path / "table.csv", "w") as f:
        f.write("videoid,page_dir,name,duration\na,.,\"first, with a comma\",10\nlong,deep,second,20\n"
                "missing,.,third,1\n../folder/a,..,outside,1\nc,,,1\n")
    args = ["tools/prepare.py", "--source", "csv", "--input", tmp_path / "table.csv", "--root", corpus[0], "--ckpt", tiny]
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
    run("tools/prepare.py", "--source", "tar", "--input", tmp_path / "in", "--ckpt", tiny, "--out", tmp_path / "out")
    shards = TokenShards(tmp_path / "out", 1)
    assert sorted(caption for _, caption in shards) == ["from json", "from txt", "with a name that climbs"]
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert sum("broken tar" in r for r in reasons) == 2 - ("no caption" in reasons) and "a link, not a file" in reasons
    assert "duplicate key" in reasons and "no video or image" in reasons
    assert not list(tmp_path.glob("evil*"))


def test_a_full_disk_is_one_line_and_loses_nothing(tiny, tmp_path):
    """Writing fails in the second part: the first stays, no half file is left, and a rerun completes the set."""
    args = ["tools/prepare.py", "--clips", 6, "--part", 3, "--ckpt", tiny, "--out", tmp_path / "out"]
    run(*args, "--shard", "0/2")
    full = subprocess.run(command(*args), capture_output=True, text=True,
                          preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)))
    assert full.returncode and full.stderr.strip().splitlines()[-1].startswith("prepare.py: cannot write")
    assert "Traceback" not in full.stderr and not list((tmp_path / "out").glob("*.tmp"))
    assert len(TokenShards(tmp_path / "out", 17)) == 3
    run(*args)
    assert len(TokenShards(tmp_path / "out", 17)) == 6
