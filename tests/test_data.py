from fractions import Fraction

import av
import imageio.v3
import numpy as np
import pytest
from conftest import run
from PIL import Image

from data import (FPS, TOY, Clips, TextTokenizer, TokenShards, held_out,
                  latent_frames, read_clip, read_image, to_float, to_uint8,
                  toy_attributes, toy_clip, toy_cover, video_frames)
from prompts import judge, locate


def test_frames_and_latent_frames():
    assert [latent_frames(n) for n in (1, 2, 5, 6, 17, 65)] == [1, 2, 2, 3, 5, 17]
    assert all(latent_frames(video_frames(t)) == t for t in range(1, 20))


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


def test_folders_are_drawn_by_their_clips(tiny, tmp_path):
    for seed, n in ((1, 9), (2, 3)):
        run("tools/prepare.py", "--clips", n, "--seed", seed, "--ckpt", tiny,
            "--out", tmp_path / str(seed))
    both = f"{tmp_path / '1'},{tmp_path / '2'}"
    first = {TokenShards(tmp_path / "1", 17)[i][0].tobytes() for i in range(9)}
    clips, kept = (Clips(both, 0, 3, validation=v) for v in (False, True))
    share = np.mean([clips[0, i, 65][0].tobytes() in first for i in range(400)])
    assert 0.75 < share < 0.88  # 9 of 11: one is kept for validation
    validation = {kept[0, i, 65][0].tobytes() for i in range(20)}
    assert len(validation) == 1 and not any(
        clips[0, i, 65][0].tobytes() in validation for i in range(400))
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="no clips that long"):
        Clips(str(tmp_path / "none"), 0, 3)[0, 0, 65]


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
    with av.open(str(tmp_path / "a.mp4")) as container:
        pictures = [(frame.time, frame.to_ndarray(format="rgb24"))
                    for frame in container.decode(video=0)]
    for i, found in enumerate(clip):  # what is on screen at i / 6.5 seconds
        expected = [p for t, p in pictures if t <= i / FPS + 1e-6][-1]
        assert np.abs(found.astype(int) - expected).max() <= 2  # of two converters
    centre = locate(clip)[2]
    expected = np.stack([16 + 2.8 * np.arange(65) / FPS, 20 + 1.7 * np.arange(65) / FPS], 1)
    assert np.abs(centre - expected).max() < 1


def test_a_film_held_upright(tmp_path):
    """A phone's picture lies on its side in the file; what it should show is
    what is read, by the first and by the last frames."""
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


def test_images(tmp_path):
    """Square from the centre, turned as the camera was held, white where it
    is transparent; CMYK and gray are pictures, too."""
    wide = np.zeros((40, 90, 3), np.uint8)
    wide[:, :25] = wide[:, 65:] = 255  # white sides, cut off
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert read_image(tmp_path / "wide.png", 32).max() < 20  # black inside
    assert read_image(tmp_path / "wide.png", 32).shape == (1, 32, 32, 3)
    Image.new("RGBA", (64, 64), (0, 0, 0, 0)).save(tmp_path / "clear.webp")
    assert read_image(tmp_path / "clear.webp", 32).min() == 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn it clockwise
    Image.fromarray(np.repeat([[[255], [0]]], 32, 1).repeat(3, 2).astype(np.uint8)
                    .repeat(32, 0)).save(tmp_path / "phone.jpg", exif=exif)
    picture = read_image(tmp_path / "phone.jpg", 32)[0]
    assert picture[:12].min() > 200 and picture[-12:].max() < 50
    Image.new("CMYK", (64, 64)).save(tmp_path / "print.jpg")
    assert read_image(tmp_path / "print.jpg", 32).min() > 250


def test_a_folder_of_files_for_the_tokenizer(tmp_path):
    """Stage 0 takes videos that are long enough, and images as single frames;
    whatever cannot be read is passed over."""
    for i in range(3):
        video = toy_clip(np.random.default_rng(i), 20 if i else 70)[0]
        imageio.v3.imwrite(tmp_path / f"{i}.mp4", video, plugin="pyav",
                           codec="libx264", fps=FPS)
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    (tmp_path / "broken.mp4").write_text("no video")
    (tmp_path / "broken.png").write_text("no image")
    clips = Clips(str(tmp_path), seed=0, stage=0)
    assert [clips[0, i, 65][0].shape for i in range(3)] == [(65, 64, 64, 3)] * 3
    singles = [clips[1, i, 1][0] for i in range(12)]
    assert all(x.shape == (1, 64, 64, 3) for x in singles)
    assert any((x == (255, 0, 0)).all() for x in singles)
    with pytest.raises(ValueError, match="no clips"):
        Clips(str(tmp_path / "none"), seed=0, stage=0)[0, 0, 65]
