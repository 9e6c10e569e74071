"""tools/prepare.py: what comes out, and that nothing that goes in hurts."""
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
from PIL import Image

from conftest import ONE_THREAD, ROOT, TINY, command, fails, run
from data import FPS, to_float, toy_clip
from tokenizer import load_tokenizer
from tools.films import read_clip
from tools.shards import shards_of

PREPARE = "tools/prepare.py"


def encoded_alike(tokenizer, folder, video, tokens):
    """Whether a clip gives these tokens (t, h, w), in the dtype in which the
    folder was written; a rare near-tie may flip."""
    meta = json.loads((folder / "meta.json").read_text())
    with torch.autocast("cpu", torch.bfloat16,
                        enabled=meta["dtype"] == "bfloat16"):
        expected = tokenizer.encode(to_float(video[None]))[0].numpy()
    return (tokens.shape == expected.shape
            and (tokens != expected).mean() < 0.05)


def skipped(folder):
    """The lines of skipped.jsonl."""
    lines = (folder / "skipped.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def clips_in(folder, t):
    """(tokens of t latent frames, caption) of all clips that are so long."""
    return [(some.tokens(i)[:t], some[i]["caption"])
            for some in shards_of(folder, t) for i in range(len(some))]


def jobs(monkeypatch, ranks, *args):
    """Run these jobs of two."""
    for rank in ranks:
        with monkeypatch.context() as m:
            m.setenv("WORLD_SIZE", "2")
            m.setenv("RANK", str(rank))
            run(*args, "--workers", 2 * rank)


def files(folder):
    """{name: bytes}"""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_one_shard_serves_every_stage(tiny, tmp_path):
    prepare = [PREPARE, "--clips", 5, "--ckpt", tiny,
               "--out", tmp_path / "toy"]
    run(*prepare, "--source", "toy")
    tokenizer, _ = load_tokenizer(tiny)
    # a prefix of a row is the encoding of the clip's prefix
    for latents, frames in ((1, 1), (5, 17), (17, 65)):
        shards = clips_in(tmp_path / "toy", latents)
        assert len(shards) == 5
        for i, (tokens, caption) in enumerate(shards):
            video, said, _ = toy_clip(np.random.default_rng([0, i, 17]))
            assert tokens.dtype == np.int64 and caption == said
            assert encoded_alike(tokenizer, tmp_path / "toy", video[:frames],
                                 tokens)
    # in plain numpy, as docs/data.md says
    with open(os.path.join(ROOT, "docs", "data.md")) as f:
        example = f.read().split("```python\n")[1].split("```")[0]
    names = {}
    exec(example.replace("data/mine", str(tmp_path / "toy")), names)
    assert names["captions"] == [caption for _, caption in shards]
    assert (names["tokens"] == np.stack([tokens for tokens, _ in shards])).all()
    shutil.copytree(tiny, tmp_path / "run")
    train = ["train.py", "--stage", 2, "--steps", 2, "--batch-size", 2,
             "--out", tmp_path / "run", "--overwrite",
             "--videos", tmp_path / "toy"]
    run(*train)
    path = tmp_path / "toy" / "meta.json"
    meta = json.loads(path.read_text())
    path.write_text(json.dumps(meta | {"tokenizer_hash": "0"}))
    assert "another tokenizer" in fails(*train)
    assert "choose another --out" in fails(*prepare)


def film(path, seed, fps=13, frames=130):
    """A toy clip as a video file."""
    video, _, _ = toy_clip(np.random.default_rng(ord(seed)), frames // 2)
    imageio.v3.imwrite(path, np.repeat(video, 2, axis=0), plugin="pyav",
                       codec="libx264", fps=fps)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A folder of ten good files and as many hostile ones -> the folder, the
    captions of the good ones in order, the number of bad ones."""
    folder = tmp_path_factory.mktemp("corpus") / "folder"
    (folder / "deep").mkdir(parents=True)
    for name in "acd":
        film(folder / f"{name}.mp4", name)
    film(folder / "deep" / "long.mp4", "e", frames=2 * 130)
    film(folder / "short.mp4", "f", frames=40)
    film(folder / "one.mp4", "g", frames=2)
    red = Image.fromarray(np.full((40, 90, 3), (200, 30, 30), np.uint8))
    red.save(folder / "wide.png")
    red.convert("CMYK").save(folder / "print.jpg")
    # nothing but transparency: white
    Image.new("RGBA", (64, 64), (0, 0, 0, 0)).save(folder / "clear.webp")
    red.resize((7680, 4320)).save(folder / "zhuge.jpg")
    good = ["a", "c", "clear", "d", "one", "print", "short", "wide", "zhuge",
            "deep/long"]

    a = (folder / "a.mp4").read_bytes()
    bad = {"broken.mp4": a[:300], "codec.mp4": a.replace(b"avc1", b"zzzz"),
           "empty.mp4": b"", "text.mp4": b"hello", "video.jpg": a,
           "picture.mp4": (folder / "wide.png").read_bytes(),
           "cut.jpg": (folder / "print.jpg").read_bytes()[:400],
           "silent.mp4": a}
    for name, content in bad.items():
        (folder / name).write_bytes(content)
    red.resize((1, 1)).save(folder / "dot.png")
    Image.new("1", (30000, 30000)).save(folder / "bomb.png")
    imageio.v3.imwrite(folder / "mute.gif", np.zeros((2, 1, 1, 3), np.uint8))

    for path in folder.rglob("*.*"):
        if path.stem != "silent":
            name = path.relative_to(folder).with_suffix("")
            path.with_suffix(".txt").write_text(f"thing {name} moves\n")
    (folder / "a.txt").write_bytes(b"thing a \xff moves " + b"on " * 40_000)
    os.mkfifo(folder / "silent.txt")  # to open it would be to wait for ever
    os.mkfifo(folder / "pipe.mp4")
    (folder / "pipe.txt").write_text("a pipe")
    return folder, good, len(bad) + 4


def test_a_folder_of_anything(tiny, tmp_path, corpus, monkeypatch):
    folder, good, bad = corpus
    args = [PREPARE, "--source", "folder", "--input", folder, "--ckpt", tiny,
            "--batch-size", 2, "--part", 7]
    out = tmp_path / "out"
    done = run(*args, "--out", out, ranks=0)
    reasons = skipped(out)
    assert len(reasons) == bad, reasons
    assert all(r["file"] and 0 < len(r["reason"]) < 100 for r in reasons)
    assert f"{bad} skipped" in done.stdout
    shards = {t: clips_in(out, t) for t in (1, 5, 17)}
    assert [len(s) for s in shards.values()] == [len(good), 5, 4]
    captions = [caption for _, caption in shards[1]]
    assert sorted(c.split()[1] for c in captions) == sorted(good)
    assert max(map(len, captions)) <= 4096
    assert not any("  " in c or "\n" in c for c in captions)
    tokenizer, _ = load_tokenizer(tiny)
    for tokens, caption in shards[17]:
        clip = read_clip(folder / f"{caption.split()[1]}.mp4", 65, FPS, 64)
        assert encoded_alike(tokenizer, out, clip, tokens)
    assert "choose another" in fails(*args, "--out", out,
                                     "--clips-per-video", 2)
    # the long one gives two
    run(*args, "--out", tmp_path / "more", "--clips-per-video", 2)
    assert len(clips_in(tmp_path / "more", 17)) == 5

    # two jobs in any order, with any number of workers, and one job that is
    # killed again and again write the same files
    jobs(monkeypatch, (1, 0), *args, "--out", tmp_path / "jobs")
    assert files(tmp_path / "jobs") == files(out)
    for parts in (1, 2):
        process = subprocess.Popen(
            command(*args, "--out", tmp_path / "killed"), env=ONE_THREAD,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True)
        while (len(list((tmp_path / "killed").glob("00*.json"))) < parts
               and process.poll() is None):
            time.sleep(0.01)
        assert process.poll() is None, "finished before it was killed"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    run(*args, "--out", tmp_path / "killed")
    assert files(tmp_path / "killed") == files(out)

    seen = run(PREPARE, "--inspect", out, "--ckpt", tiny).stdout
    assert "4 clips of 65 frames" in seen and "no caption" in seen
    assert "codes used" in seen
    assert Image.open(out / "contact.png").size == (4 * 3 * 64, 4 * 64)
    assert "needs --input" in fails(PREPARE, "--source", "folder",
                                    "--ckpt", tiny, "--out", tmp_path / "x")


def test_the_first_run_decides_the_dtype(tiny, tmp_path, monkeypatch):
    """It is measured, and must not change when a killed run continues."""
    args = [PREPARE, "--clips", 4, "--part", 2, "--ckpt", tiny,
            "--out", tmp_path]
    jobs(monkeypatch, (0,), *args)
    path = tmp_path / "meta.json"
    meta = json.loads(path.read_text())
    other = {"bfloat16": "float32", "float32": "bfloat16"}[meta["dtype"]]
    path.write_text(json.dumps(meta | {"dtype": other}))
    run(*args)
    assert json.loads(path.read_text())["dtype"] == other
    assert len(clips_in(tmp_path, 17)) == 4


def test_webvids_csv(tiny, tmp_path, corpus):
    with open(tmp_path / "table.csv", "w") as f:
        f.write('videoid,page_dir,name,duration\n'
                'a,.,"first, with a comma",10\nlong,deep,second,20\n'
                'missing,.,third,1\n../folder/a,..,outside,1\nc,,,1\n')
    args = [PREPARE, "--source", "csv", "--input", tmp_path / "table.csv",
            "--root", corpus[0], "--ckpt", tiny]
    run(*args, "--out", tmp_path / "out")
    shards = clips_in(tmp_path / "out", 17)
    captions = [caption for _, caption in shards]
    assert captions == ["first, with a comma", "second"]
    reasons = [s["reason"] for s in skipped(tmp_path / "out")]
    assert reasons == ["No such file or directory", "outside --root",
                       "no caption"]
    assert "no column nome" in fails(*args, "--out", tmp_path / "x",
                                     "--columns", "videoid,page_dir,nome")


def test_tars_of_img2dataset(tiny, tmp_path, corpus, monkeypatch):
    """Samples by key, captions from json or txt, a part for each tar; broken
    tars, links, duplicates and ../ names hurt nobody."""
    webdataset = pytest.importorskip("webdataset")
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    picture = (corpus[0] / "wide.png").read_bytes()
    video = (corpus[0] / "a.mp4").read_bytes()
    with webdataset.TarWriter(str(folder / "00000.tar")) as tar:
        tar.write({"__key__": "000", "png": picture,
                   "json": {"caption": "from json"}})
        tar.write({"__key__": "001", "mp4": video, "txt": "from txt",
                   "jpg": picture})
        tar.write({"__key__": "002", "png": picture, "txt": "",
                   "json": b"[" * 100_000})

    with tarfile.open(folder / "00001.tar", "w") as tar:
        def add(name, data, **kind):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            for key, value in kind.items():
                setattr(member, key, value)
            tar.addfile(member, io.BytesIO(data))

        add("000.png", picture)
        add("000.txt", b"in the second tar")
        add("../../evil.png", picture)
        add("../../evil.txt", b"with a name that climbs")
        add("002.png", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add("002.txt", b"a link")
        add("003.txt", b"no media")
        add("000.png", picture)
        add("000.txt", b"again")
        add("004.png", b"")
        add("004.txt", b"an empty file")
    whole = (folder / "00001.tar").read_bytes()
    at = whole.index(b"003.txt")  # a header: name, mode ...
    (folder / "00002.tar").write_bytes(whole[:at] + b"x" * 512 + whole[at:])
    (folder / "00003.tar").write_bytes(whole[:at + 100])
    (folder / "00004.tar").write_bytes(whole[:700])
    (folder / "00005.tar").write_bytes(b"no tar")
    (folder / "00006.tar").write_bytes(b"")

    args = [PREPARE, "--source", "tar", "--input", folder, "--ckpt", tiny]
    run(*args, "--out", out)
    in_one = ["in the second tar", "with a name that climbs"]
    captions = [caption for _, caption in clips_in(out, 1)]
    assert sorted(captions) == sorted(["from json", "from txt", *3 * in_one])
    videos = clips_in(out, 17)
    assert [caption for _, caption in videos] == ["from txt"]
    parts = sorted(path.name for path in out.glob("0*.json"))
    assert parts == [f"{i:06d}.json" for i in range(7)]
    found = [(s["file"], s["reason"]) for s in skipped(out)]
    assert found[:5] == [("00000.tar/002.png", "no caption"),
                         ("00001.tar/002", "no video or image"),
                         ("00001.tar/003", "no video or image"),
                         ("00001.tar/000", "duplicate key"),
                         ("00001.tar/004.png", "empty file")]
    broken = [file for file, reason in found if "broken tar" in reason]
    assert broken == [f"0000{i}.tar" for i in (2, 3, 4, 5, 6)]
    assert not list(tmp_path.rglob("evil*"))
    jobs(monkeypatch, (1, 0), *args, "--out", tmp_path / "jobs")  # share the tars
    assert files(tmp_path / "jobs") == files(out)


def test_a_full_disk_is_one_line_and_loses_nothing(tiny, tmp_path, monkeypatch):
    """Writing fails in the second part: the first stays, no half file is
    left, and the same command completes the set."""
    out = tmp_path / "out"
    args = [PREPARE, "--clips", 6, "--part", 3, "--ckpt", tiny, "--out", out]
    jobs(monkeypatch, (0,), *args)
    full = subprocess.run(
        command(*args), capture_output=True, text=True, env=ONE_THREAD,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE,
                                              (2000, 2000)))
    assert full.returncode and "Traceback" not in full.stderr
    last = full.stderr.strip().splitlines()[-1]
    assert last.startswith("prepare.py: cannot write")
    assert not list(out.glob("*.tmp"))
    assert len(clips_in(out, 17)) == 3
    run(*args)
    assert len(clips_in(out, 17)) == 6


PICTURE = io.BytesIO()
Image.new("RGB", (64, 64), (200, 30, 30)).save(PICTURE, "png")
PICTURE = PICTURE.getvalue()


def write_files(folder, contents):
    """contents: {name: bytes, text or, for a tar, another such dict}"""
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, dict):
            with tarfile.open(path, "w") as tar:
                for member, data in content.items():
                    info = tarfile.TarInfo(member)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)


@pytest.fixture
def prepared(tiny, tmp_path):
    """prepared(source, input, *flags) -> the captions of the clips in order, and
    {file: reason} of what was skipped."""
    def prepared(source, what, *flags):
        out = tmp_path / f"out{len(list(tmp_path.glob('out*')))}"
        run(PREPARE, "--source", source, "--input", tmp_path / what, "--ckpt", tiny,
            "--workers", 0, "--out", out, *flags)
        return ([caption for _, caption in clips_in(out, 1)],
                {s["file"]: s["reason"] for s in skipped(out)})
    return prepared


TEXTS = {"utf-8-sig": "", "utf-16": "", "utf-16-be": "\ufeff", "utf-16-le": ""}  # a mark, or none


def test_text_as_editors_save_it(prepared, tmp_path):
    """With a byte order mark or in UTF-16, wherever captions come from."""
    for i, (encoding, mark) in enumerate(TEXTS.items()):
        def saved(text):
            return (mark + text).encode(encoding)

        write_files(tmp_path, {
            f"beside/{i}.png": PICTURE, f"beside/{i}.txt": saved("a café\r\n"),
            f"beside/blank{i}.png": PICTURE, f"beside/blank{i}.txt": saved("\r\n"),
            f"table{i}/a.png": PICTURE,
            f"table{i}/captions.jsonl": saved('{"file": "a.png", "caption": "a café"}\r\n'),
            f"{i}.csv": saved('videoid,page_dir,name\r\n0.png,beside,"a café, lit"\r\n'),
            f"tars/{i}.tar": {"a.png": PICTURE, "a.txt": saved("a café"),
                              "b.png": PICTURE, "b.json": saved('{"caption": "a café"}')}})
        assert prepared("folder", f"table{i}") == (["a café"], {})
        assert prepared("csv", f"{i}.csv", "--root", tmp_path) == (["a café, lit"], {})
    captions, reasons = prepared("folder", "beside")
    assert captions == 4 * ["a café"]
    assert reasons == {f"blank{i}.png": "no caption" for i in range(4)}
    assert prepared("tar", "tars") == (8 * ["a café"], {})


def test_what_is_no_text_is_no_caption(prepared, tmp_path):
    nothing = ["NaN", "null", "7", '["a", "list"]', '{"a": 1}', "true", '"nan"', '" "']
    names = [f"{i}.png" for i in range(len(nothing))]
    no_caption = dict.fromkeys(names, "no caption")
    lines = [f'{{"file": "{name}", "caption": {x}}}' for name, x in zip(names, nothing)]
    lines += ["", '{"file": "./good.png", "caption": "Nanny and naan"}', "", " "]
    members = {name: PICTURE for name in [*names, "good.png"]}
    write_files(tmp_path, {f"table/{name}": x for name, x in members.items()} | {
        "table/captions.jsonl": "\n".join(lines),
        "in.csv": "videoid,page_dir,name\n0,table,NaN\n1,table,nan\n2,table\ngood,table,7\n\n"
                  .replace(",table", ".png,table"),
        "in.tar": dict(x for i, json in enumerate([*nothing, '"Nanny and naan"']) for x in (
            (f"{i}.png", PICTURE), (f"{i}.txt", b"nan"),
            (f"{i}.json", f'{{"caption": {json}}}'.encode())))})
    assert prepared("folder", "table") == (["Nanny and naan"], no_caption)
    assert prepared("tar", "in.tar") == (
        ["Nanny and naan"], {f"in.tar/{name}": "no caption" for name in names})
    assert prepared("csv", "in.csv", "--root", tmp_path) == (
        ["7"], {f"table/{i}.png": "no caption" for i in range(3)})
    (tmp_path / "table" / "captions.jsonl").write_text("\n".join(lines[:3]) + '\n{"file": "a"}')
    wrong = fails(PREPARE, "--source", "folder", "--input", tmp_path / "table",
                  "--out", tmp_path / "x")
    assert "captions.jsonl: line 4 must be" in wrong


def test_half_a_surrogate_pair(prepared, tiny, tmp_path, monkeypatch):
    """It becomes U+FFFD; whole pairs are letters. The sheet is drawn whatever the
    captions are, in shards of before and on terminals without these letters, too."""
    said = {"a": r"a cat \ud83d runs", "b": r"\ude00 b", "c": r"c \ud83d\ude00", "d": r"d \ud83d"}
    whole = ["a cat \ufffd runs", "\ufffd b", "c \U0001f600", "d \ufffd"]
    write_files(tmp_path, {
        "in.tar": dict(x for key, text in said.items() for x in (
            (f"{key}.png", PICTURE), (f"{key}.json", f'{{"caption": "{text}"}}'.encode()))),
        **{f"table/{key}.png": PICTURE for key in said},
        "table/captions.jsonl": "\n".join(
            f'{{"file": "{key}.png", "caption": "{text}"}}' for key, text in said.items())})
    assert prepared("folder", "table") == (whole, {})
    assert prepared("tar", "in.tar") == (whole, {})
    lines = tmp_path / "out1" / "000000.t1.jsonl"
    assert r"\ufffd runs" in lines.read_text()
    lines.write_text(lines.read_text().replace(r"\ufffd", r"\ud83d"))
    inspect = [PREPARE, "--inspect", tmp_path / "out1", "--ckpt", tiny]
    assert "a cat ? runs" in run(*inspect).stdout
    (tmp_path / "out1" / "contact.png").unlink()
    monkeypatch.setitem(ONE_THREAD, "PYTHONIOENCODING", "ascii")
    assert "c ?" in run(*inspect, ranks=0).stdout
    assert (tmp_path / "out1" / "contact.png").exists()


def test_linked_folders_are_read_once(prepared, tmp_path):
    """Real folders first; links to them, circles and links to nothing are named."""
    write_files(tmp_path, {f"{name}.{kind}": x for name in (
        "in/real/a", "in/z/b", "away/c", "away/deep/d", "far/e")
        for kind, x in (("png", PICTURE), ("txt", name))})
    for link, target in {"in/linked": "real", "in/away": "../away", "away/far": "../far",
                         "far/up": "../in", "in/z/self": ".", "in/lost": "../nothing",
                         "in/again": "../away/deep"}.items():
        (tmp_path / link).symlink_to(target)
    captions, reasons = prepared("folder", "in")
    assert captions == ["in/real/a", "in/z/b", "away/deep/d", "away/c", "far/e"]
    twice = ["linked", "z/self", "away/deep", "away/far/up"]
    assert reasons == {"lost": "a link to nothing",
                       **dict.fromkeys(twice, "a folder that was read already")}
    write_files(tmp_path, {"in/real/._a.png": b"of macOS"})
    (tmp_path / "link").symlink_to("in/real")
    assert prepared("folder", "link") == (["in/real/a"], {})


def test_a_quote_that_is_not_closed(prepared, tmp_path):
    """It would swallow rows: an error that names its line, and nothing is written."""
    head = "videoid,page_dir,name\n"
    write_files(tmp_path, {"b.png": PICTURE} | {f"{i}.csv": x for i, x in enumerate((
        head + 'a.png,,"a 12 inch record\nb.png,,a blue car\nc.png,,a red car\n',
        head + '\n\na.png,,"two\nlines"\n\nb.png,,"a 12" record, spinning"\n',
        head + 'a.png,,"a 12 inch record\n' + 1_500_000 * "b.png,,a car\n",
        'videoid,page_dir,"name\na.png,,a\n'))})
    for i, line in enumerate((2, 7, 2, 1)):
        wrong = fails(PREPARE, "--source", "csv", "--input", tmp_path / f"{i}.csv",
                      "--out", tmp_path / "x", "--index", "--root", tmp_path)
        assert f"{i}.csv: the row of line {line}: " in wrong
        assert not (tmp_path / "x").exists()
    write_files(tmp_path, {"good.csv": head + 'b.png,,"a ""12"" record\nspins"\nb,., 5" wide\n'})
    assert prepared("csv", "good.csv", "--root", tmp_path) == (
        ['a "12" record spins'], {"b.mp4": "No such file or directory"})


def test_tables_as_people_have_them(prepared, tiny, tmp_path, corpus):
    """Names with or without a suffix, no folder, an index that pandas left, absolute paths."""
    film = (corpus[0] / "one.mp4").read_bytes()
    names = ["a.mp4", "b.MP4", "c.avi", "d.mov", "e.m4v", "f.mpg", "g.01.mp4", "deep/h.mp4"]
    write_files(tmp_path, {f"films/{name}": film for name in names})
    rows = [*names[:6], "g.01", "deep/h", "./a", tmp_path / "films" / "a.mp4"]
    table = "".join(f'{i},{name}, "film {i}, moving"\n' for i, name in enumerate(rows))
    write_files(tmp_path, {"in.csv": "\ufeff,file, caption\n" + table, "bad.csv": (
        f"file,caption\nno.mp4,x\nno,x\n../in.csv,x\n{tmp_path}/in.csv,x\n..a,x\n")})
    flags = ["--root", tmp_path / "films", "--columns", "file,, caption"]
    captions, reasons = prepared("csv", "in.csv", *flags)
    assert captions == [f"film {i}, moving" for i in range(len(rows))] and not reasons
    with pytest.raises(SystemExit, match="no clip"):
        prepared("csv", "bad.csv", *flags)
    missing, outside = "No such file or directory", "outside --root"
    assert [(s["file"], s["reason"]) for s in skipped(tmp_path / "out1")] == [
        ("no.mp4", missing), ("no.mp4", missing), ("../in.csv", outside),
        ("../in.csv", outside), ("..a.mp4", missing)]
    again = [PREPARE, "--source", "csv", "--ckpt", tiny, "--input", tmp_path / "in.csv",
             "--out", tmp_path / "out0"]
    assert "choose another --out" in fails(*again, *flags[:2], "--columns", "file,,file")
    assert "choose another --out" in fails(*again, *flags[2:], "--root", tmp_path)
    assert "three columns" in fails(*again, "--columns", "file,caption")
    assert "no column nome" in fails(*again[:-1], tmp_path / "x", "--columns", "file,,nome")


def test_tars_of_macos_and_packed_ones(prepared, tmp_path):
    """Hidden members are no samples and part no others; what is packed is named."""
    hidden = {"./._a.png": b"mac", "./.DS_Store": b""}
    sample = {"./a.png": PICTURE, "./._a.txt": b"mac", "./a.txt": b"one",
              "__MACOSX/._b.png": b"mac", "b.png": PICTURE, "b.cls": b"3", "b.txt": b"two"}
    write_files(tmp_path, {"in/mac.tar": hidden | sample, "in/._mac.tar": b"mac"})
    assert prepared("tar", "in") == (["one", "two"], {})
    (tmp_path / "packed").mkdir()
    for name in ("x.tar.gz", "y.tgz"):
        with tarfile.open(tmp_path / "packed" / name, "w:gz") as tar:
            tar.add(tmp_path / "in" / "mac.tar")
        shutil.copy(tmp_path / "packed" / name, tmp_path / "in")
    captions, reasons = prepared("tar", "in")
    assert captions == ["one", "two"] and reasons.keys() == {"x.tar.gz", "y.tgz"}
    for what in ("packed", "packed/y.tgz", "packed/x.tar.gz"):
        wrong = fails(PREPARE, "--source", "tar", "--input", tmp_path / what,
                      "--out", tmp_path / "x", "--index")
        assert "must be unpacked first" in wrong and not (tmp_path / "x").exists()


def test_an_unfinished_tokenizer_is_refused(tiny, tmp_path):
    """Its tokens would be useless once it is resumed; sampling may look at it."""
    saved = torch.load(tiny / "tokenizer.pt", weights_only=True)
    torch.save(saved | {"step": 5}, tmp_path / "tokenizer.pt")
    for args in ([PREPARE, "--clips", 1, "--ckpt", tmp_path, "--out", tmp_path / "x"],
                 ["train.py", "--stage", 1, "--steps", 1, "--batch-size", 1, "--out", tmp_path]):
        assert "tokenizer.pt is at step 5 of 12: --resume it first" in fails(*args)
    assert not (tmp_path / "x").exists()
    load_tokenizer(tmp_path)


def test_stage_0_needs_files(tiny, tmp_path, corpus):
    """Shards of the toy have none."""
    run(PREPARE, "--clips", 2, "--ckpt", tiny, "--out", tmp_path / "toy")
    assert fails("train.py", "--stage", 0, "--videos", tmp_path / "toy", "--steps", 2,
                 "--batch-size", 2, "--out", tmp_path / "run", *TINY) == (
        f"train.py: {tmp_path / 'toy'} holds tokens of the toy, no files: use --videos toy")
    # images are there, clips would be missed after many steps
    run(PREPARE, "--index", "--source", "folder", "--input", corpus[0],
        "--out", tmp_path / "files")
    assert "no-such-folder" in fails(
        "train.py", "--stage", 0, "--images", tmp_path / "files", "--videos", "no-such-folder",
        "--steps", 2, "--batch-size", 2, "--out", tmp_path / "run", *TINY)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_files_that_came_later_are_not_passed_over(tiny, tmp_path, corpus):
    films, out = tmp_path / "films", tmp_path / "out"
    films.mkdir()
    for name in "a.mp4", "a.txt", "wide.png", "wide.txt":
        shutil.copy(corpus[0] / name, films)
    args = [PREPARE, "--source", "folder", "--input", films, "--ckpt", tiny, "--out", out]
    run(*args)
    run(*args)
    shutil.copy(films / "a.mp4", films / "another.mp4")
    assert fails(*args) == (f"prepare.py: {out}/000000.json holds other files than there are now; "
                            "choose another --out")
