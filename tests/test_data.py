import collections
import zlib
from fractions import Fraction

import av
import imageio.v3
import numpy as np
import pytest
from PIL import Image

import data
from conftest import run
from data import (
    ATTRIBUTES,
    CLAUSES,
    COLORS,
    FPS,
    HELD_OUT,
    LANDS,
    SKIES,
    SPEEDS,
    WORDS,
    Clips,
    TextTokenizer,
    caption_of,
    held_out,
    land_heights,
    latent_frames,
    to_float,
    to_uint8,
    toy_attributes,
    toy_clip,
    toy_return,
    video_frames,
    wording,
)
from model import PRESETS
from prompts import analyse, invention, judge, moves_as_one, new_land, skyline
from tools.films import read_clip, read_image
from tools.shards import shards_of


def test_frames_and_latent_frames():
    assert [latent_frames(n) for n in (1, 2, 5, 6, 17, 65)] == [1, 2, 2, 3, 5, 17]
    assert all(latent_frames(video_frames(t)) == t for t in range(1, 20))


def drawn(seed, frames=65, **attributes):
    """A clip with some attributes given -> video, attributes."""
    video, _, a = toy_clip(np.random.default_rng(seed), frames, attributes)
    return video, a


def test_captions_are_true_for_a_minute():
    """An analyser that sees frames only finds what was drawn, of trained and
    of held-out triples, to the last second."""
    for i in range(9):
        rng = np.random.default_rng(i)
        video, caption, a = toy_clip(rng, 390, toy_attributes(rng, held=i % 3 == 0))
        assert video.shape == (390, 64, 64, 3) and video.dtype == np.uint8
        assert all(judge(video, a).values()), (caption, a)
        assert analyse(video[-65:]) == {name: a[name] for name in ATTRIBUTES}


def said_as(name, value):
    special = {"traveller": [value],
               "color": [f"a {value} {kind}" for kind in ATTRIBUTES["traveller"]]}
    return special.get(name) or WORDS[value]


def test_captions_state_what_is_said():
    """Every attribute in "said" and no other, a traveller always."""
    sparse = 0
    for i in range(150):
        _, caption, a = toy_clip(np.random.default_rng(i), 1)
        for name, values in ATTRIBUTES.items():
            stated = [v for v in values if any(w in caption for w in said_as(name, v))]
            assert stated == [a[name]] * (name in a["said"]), (caption, name)
        assert "traveller" in a["said"]
        sparse += len(a["said"]) < len(ATTRIBUTES)
    assert 30 < sparse < 120
    first = ("balloon", "red", "hills", "sunset", "left", "slowly")
    caption, said = caption_of(dict(zip(ATTRIBUTES, first)))
    assert caption == "a red balloon drifts left slowly past green hills at sunset"
    assert said == tuple(ATTRIBUTES)


def test_held_out_wordings_are_never_trained():
    """A fifth of a thousand forms, and all with seven or eight clauses."""
    def clauses(form):
        return sum(form.count("{" + name) for name in CLAUSES)

    rng = np.random.default_rng(0)
    trained, unseen = ({wording(rng, held) for _ in range(600)} for held in (False, True))
    assert len(trained) > 500 and not trained & unseen
    assert sum(zlib.crc32(x.encode()) % 5 == 1 for x in trained | unseen) == len(unseen)
    dense = {wording(rng, held, dense=True) for held in (False, True) for _ in range(100)}
    assert max(map(clauses, trained)) == 6 and {*map(clauses, dense)} == {7, 8}
    for i in range(100):
        _, caption, a = toy_clip(np.random.default_rng(i), 1)
        assert caption not in {caption_of(a, form)[0] for form in unseen | dense}


def test_captions_fit_and_say_things_twice_in_other_words():
    """The longest captions fit into the toy's text."""
    rng, text = np.random.default_rng(0), TextTokenizer("storybook")
    longest = 0
    for _ in range(2000):
        a, form = toy_attributes(rng), wording(rng, dense=True)
        caption, said = caption_of(a, form)
        assert said == tuple(ATTRIBUTES) and len({*form.split()}) == len(form.split())
        longest = max(longest, len(text.encode(caption)))
    assert 30 <= longest <= PRESETS["toy"].text_len


def test_returns():
    """Something else is seen for a while, with the land running on; before and
    after it the clip is what its caption says."""
    kinds = collections.Counter()
    for i in range(24):
        video, caption, wrong = toy_return(np.random.default_rng(i), 65)
        assert wrong.any() and not wrong[-1] and video.dtype == np.uint8
        kinds[bool(wrong[0])] += 1
        end = np.flatnonzero(wrong)[-1] + 1  # of the last run; it fades for up to 6 frames
        after = analyse(video[4 * end + 3:]) if end < 11 else {}
        for name in after:
            said = [v for v in ATTRIBUTES[name] if any(w in caption for w in said_as(name, v))]
            if said:
                assert after[name] in said, (caption, name)
    assert min(kinds.values()) > 5
    clips = Clips("toy", "toy", 0, 2, returns=0.5)
    wrong = [clips[1, i, 17][2] for i in range(60)]
    assert 15 < sum(w.any() for w in wrong) < 45
    assert not any(clips[1, i, 1][2].any() for i in range(5))
    kept = Clips("toy", "toy", 0, 2, returns=1.0, validation=True)
    assert not kept[0, 0, 17][2].any()


def test_the_analyser_sees_what_is_wrong():
    video, a = drawn(3, 130, traveller="balloon", color="red")
    for name, values in ATTRIBUTES.items():
        other = a | {name: next(v for v in values if v != a[name])}
        verdict = judge(video, other)
        assert not verdict[name] and not verdict["first 10 s"] and not verdict["last 10 s"]
        # what the prompt leaves open cannot be wrong
        assert all(judge(video, other, [n for n in ATTRIBUTES if n != name]).values()), name
    assert not any(judge(video[::-1], a)[name] for name in ("way", "one piece"))
    nobody = {"traveller": None, "color": None}
    empty, (x0, y0, x1, y1) = video.copy(), a["box"]
    empty[:, max(0, y0 - 1):y1 + 1, max(0, x0 - 1):x1 + 1] = SKIES[a["sky"]][0]
    assert analyse(empty) == {name: a[name] for name in ATTRIBUTES} | nobody
    empty[:, 8:14, 8:14] = COLORS["red"]  # no more than a spot
    assert nobody.items() <= analyse(empty).items()
    same = {name: a[name] for name in ("land", "sky", "way", "speed")}
    other, b = drawn(4, 130, traveller="car", color="yellow", **same)
    blended = analyse(video // 2 + other // 2)
    assert blended["traveller"] is None or blended["color"] not in ("red", "yellow")
    verdict = judge(np.concatenate([video[:65], other[:65]]), a)
    assert verdict["first 10 s"] and not verdict["last 10 s"]
    x0, y0, x1, y1 = b["box"]
    both = video.copy()
    both[:, y0:y1, x0:x1] = other[:, y0:y1, x0:x1]
    assert nobody.items() <= analyse(both).items()


@pytest.mark.parametrize("way, speed", [("left", "slowly"), ("left", "quickly"),
                                        ("right", "slowly"), ("right", "quickly")])
def test_the_land_moves_as_one_piece(way, speed, monkeypatch):
    """The skyline of each frame is the one before, moved against the way of
    the traveller; the analyser sees it, and what tears it."""
    drawn_heights = []

    def recording(*args):
        drawn_heights.append(land_heights(*args))
        return drawn_heights[-1]

    monkeypatch.setattr(data, "land_heights", recording)
    for land in LANDS:
        video, n = drawn(4, land=land, way=way, speed=speed)[0], SPEEDS[speed]
        assert drawn_heights[-1].std() > 1
        heights = 8 + drawn_heights[-1][np.arange(64) + n * np.arange(65)[:, None]]
        new = heights[1:, -n:]
        if way == "left":
            heights, new = heights[:, ::-1], new[:, ::-1]
        assert np.nanmean(np.abs(skyline(video) - heights)) < 0.5
        assert np.nanmean(np.abs(new_land(video, speed, way) - new)) < 0.5

        def moves(video):
            return moves_as_one(video, speed, way)

        assert moves(video).mean() > 0.95
        frozen, torn = video.copy(), video.copy()
        frozen[30:45] = video[30]
        assert not moves(frozen)[32:42].any() and moves(frozen)[:24].all()
        assert moves(video[::-1]).mean() < 0.2
        torn[:, :, 32:] = video[::-1, :, 32:]  # its halves part
        assert moves(torn).mean() < 0.5
        torn = np.concatenate([video[:33], drawn(5, land=land, way=way, speed=speed)[0][33:]])
        assert not moves(torn)[32]  # from one land to another


@pytest.mark.parametrize("land", LANDS)
def test_invention(land, monkeypatch):
    """New land of the world is like the world's own; flat land is not."""
    def measure(clips):
        return invention([new_land(v, a["speed"], a["way"]) for v, a in clips], land)

    assert measure(drawn(i, land=land, speed="quickly") for i in range(12)) < 1.5
    monkeypatch.setattr(data, "land_heights", lambda rng, land, n: np.full(n, 16.0))
    assert measure(drawn(i, land=land, speed="quickly") for i in range(2)) > 3


def test_held_out_triples_are_never_trained():
    clips = Clips("toy", "toy", seed=0, stage=1)
    rng = np.random.default_rng(0)
    assert not any(held_out(toy_attributes(rng)) for _ in range(500))
    assert all(held_out(toy_attributes(rng, held=True)) for _ in range(20))
    captions = [clips[step, i, 1][1] for step in range(20) for i in range(10)]
    for traveller, color, land in HELD_OUT:
        assert not any(f"a {color} {traveller}" in c and any(w in c for w in WORDS[land])
                       for c in captions)
    assert 5 < captions.count("") < 40  # dropped with probability 0.1


def test_a_sample_depends_on_its_key_alone():
    a, b = (Clips("toy", "toy", seed=0, stage=2) for _ in range(2))
    b[5, 0, 17]
    assert (a[3, 1, 17][0] == b[3, 1, 17][0]).all() and not (a[3, 1, 17][0] == a[3, 2, 17][0]).all()
    one, two = (toy_clip(np.random.default_rng(5), 5) for _ in range(2))
    assert (one[0] == two[0]).all() and one[1] == two[1]
    assert all(np.array_equal(one[2][name], two[2][name]) for name in one[2])


def test_text_tokenizer():
    text, words = TextTokenizer("bytes"), TextTokenizer("storybook")
    assert text.encode("red é") == list("red é".encode()) and text.bpe.n_vocab == 256
    assert len(text.encode("a" * 10 ** 6)) <= 4096
    assert words.bpe.n_vocab == PRESETS["toy"].text_vocab
    with pytest.raises(ValueError, match="other words"):
        TextTokenizer("storybook", words.bpe.n_vocab + 1)
    caption = "at dusk, a pink bird é"
    ids = words.encode(caption)
    assert words.bpe.decode(ids) == caption and len(ids) == len("at") + 3 + len(" pink") + 1 + 3


def test_uint8_and_float_are_inverse():
    video = toy_clip(np.random.default_rng(0), 5)[0]
    assert to_float(video).shape == (3, 5, 64, 64) and (to_uint8(to_float(video)) == video).all()


def test_read_clip_resamples_by_time(tmp_path):
    """Brightness tells the time: 26 frames/s, and frame i of the clip is what was on screen at
    i / 6.5 s."""
    frames = np.repeat(np.arange(0, 208, 2, dtype=np.uint8)[:, None, None, None], 3, 3)  # 4 seconds
    frames = np.broadcast_to(frames, (104, 48, 80, 3))
    imageio.v3.imwrite(tmp_path / "a.mp4", frames, plugin="pyav", codec="libx264", fps=26)
    clip = read_clip(tmp_path / "a.mp4", 17, FPS, 32)
    assert clip.shape == (17, 32, 32, 3) and clip.dtype == np.uint8
    assert np.abs(clip.mean((1, 2, 3)) - 8 * np.arange(17)).max() < 4
    with pytest.raises(ValueError, match="too short for 65 frames"):
        read_clip(tmp_path / "a.mp4", 65, FPS, 32)
    (tmp_path / "b.mp4").write_bytes(b"not a video")
    with pytest.raises(ValueError, match="not a readable video"):
        read_clip(tmp_path / "b.mp4", 1, FPS, 32)


def test_folders_are_drawn_by_their_clips(tiny, tmp_path):
    for seed, n in ((1, 9), (2, 3)):
        run("tools/prepare.py", "--clips", n, "--seed", seed, "--ckpt", tiny,
            "--out", tmp_path / str(seed))
    both = f"{tmp_path / '1'},{tmp_path / '2'}"
    [shards] = shards_of(tmp_path / "1", 17)
    first = {shards.tokens(i).tobytes() for i in range(9)}

    def drawn_of_first(source, n=400):
        clips = Clips("toy", source, 0, 3)
        return np.mean([clips[0, i, 65][0].tobytes() in first for i in range(n)])

    assert 0.68 < drawn_of_first(both) < 0.82  # 9 of 12
    twice = f"{both},{tmp_path / '2'},{tmp_path / '2'}"  # a folder named three times
    assert 0.43 < drawn_of_first(twice) < 0.57
    # a clip kept for validation is no image of stage 1 either
    clips, kept = (Clips(both, both, 0, 3, validation=v) for v in (False, True))
    validation = {kept[0, i, 65][0].tobytes() for i in range(40)}
    images = {(kept[0, i, 1][0].tobytes(), kept[0, i, 1][1]) for i in range(40)}
    assert len(validation) == len(images) == 2 and not any(
        clips[0, i, 65][0].tobytes() in validation or (
            clips[0, i, 1][0].tobytes(), clips[0, i, 1][1]) in images for i in range(400))
    # --returns: another clip's tokens for a while, the clip's own before and after them
    known = {(s[i]["caption"], s.tokens(i)[-1].tobytes()): s.tokens(i)
             for s in (shards, *shards_of(tmp_path / "2", 17)) for i in range(len(s))}
    returns, wrongs = Clips(both, both, 0, 3, returns=1.0), 0
    for i in range(40):
        clip, caption, wrong = returns[0, i, 65]
        if caption:  # dropped ones are as they were
            differ = (clip != known[caption, clip[-1].tobytes()]).any((1, 2))
            wrongs += differ[wrong].any()
            assert wrong.any() and not wrong[-1] and not differ[~wrong].any()
    assert wrongs > 20
    images = Clips("toy", str(tmp_path / "1"), 0, 3)
    assert images[0, 0, 1][0].dtype == np.uint8 and images[0, 0, 65][0].dtype == np.int64
    with pytest.raises(ValueError, match="no clip has 18 latent frames"):
        Clips("toy", both, 0, 3)[0, 0, 69]


@pytest.mark.parametrize("fps", [24, 30000 / 1001, 60, None])
def test_any_frame_rate_shows_the_object_in_the_same_place(tmp_path, fps):
    """One scene filmed at 24, 29.97, 60 and a variable number of frames a second: where the
    object is at i / 6.5 s."""
    rng = np.random.default_rng(1)
    times = np.arange(0, 10.2, 1 / fps) if fps else np.cumsum(rng.uniform(0.01, 0.12, 160))
    times = times - times[0]
    path = np.stack([16 + 2.8 * times, 20 + 1.7 * times], 1)  # pixels
    y, x = np.indices((64, 64)) + 0.5
    disc = np.hypot(x - path[:, :1, None], y - path[:, 1:, None]) < 8
    video = (255 * disc[..., None]).astype(np.uint8).repeat(3, -1)
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        rate = Fraction(fps or 30).limit_denominator(1001)
        stream = container.add_stream("libx264", rate=rate, options={"crf": "10"})
        stream.width = stream.height = 64
        stream.codec_context.time_base = Fraction(1, 30000)
        for picture, seconds in zip(video, times):
            frame = av.VideoFrame.from_ndarray(picture)
            frame.pts, frame.time_base = round(seconds * 30000), Fraction(1, 30000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    clip = read_clip(tmp_path / "a.mp4", 65, FPS, 64)
    with av.open(str(tmp_path / "a.mp4")) as container:
        pictures = [(frame.time, frame.to_ndarray(format="rgb24"))
                    for frame in container.decode(video=0)]
    for i, found in enumerate(clip):  # what is on screen at i / 6.5 seconds
        expected = [p for t, p in pictures if t <= i / FPS + 1e-6][-1]
        assert np.abs(found.astype(int) - expected).max() <= 2  # of two converters
    bright = np.where(clip[..., 0] > 127, 1.0, 0.0)[..., None]
    centre = (bright * np.stack([x, y], -1)).sum((1, 2)) / bright.sum((1, 2))
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
        clip = read_clip(tmp_path / "a.mp4", 13, FPS, 32, last=last)
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


def test_files_for_the_tokenizer(tmp_path):
    """Stage 0 takes images and videos that are long enough, these from a
    random start; what cannot be read is passed over."""
    for i, seconds in enumerate((3, 20, 30)):
        # brightness tells the second
        video = np.arange(4 * seconds, dtype=np.uint8)[:, None, None, None] // 4 * 8
        imageio.v3.imwrite(tmp_path / f"{i}.mp4", video.repeat(64, 1).repeat(64, 2).repeat(3, 3),
                           plugin="pyav", codec="libx264", fps=4)
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    (tmp_path / "broken.png").write_text("no image")
    whole = (tmp_path / "1.mp4").read_bytes()
    (tmp_path / "broken.mp4").write_bytes(whole.replace(b"mdat", b"free"))
    run("tools/prepare.py", "--source", "folder", "--input", tmp_path, "--index",
        "--out", tmp_path / "index")
    clips = Clips(f"{tmp_path / 'index'}", f"{tmp_path / 'index'}", seed=0, stage=0)
    drawn = [clips[0, i, 65][0] for i in range(8)]
    assert all(x.shape == (65, 64, 64, 3) for x in drawn)
    assert len({x[0, 0, 0, 0] for x in drawn}) > 2  # they start anywhere
    singles = [clips[1, i, 1][0] for i in range(12)]
    assert all(x.shape == (1, 64, 64, 3) for x in singles)
    assert any((x == (255, 0, 0)).all() for x in singles)


def test_a_film_just_under_ten_seconds_is_a_clip_of_65_frames(tmp_path):
    """Frame 64 is shown at 9.85 s; this film's last is at 9.84 s and stays until 9.88 s."""
    (tmp_path / "films").mkdir()
    imageio.v3.imwrite(tmp_path / "films" / "a.mp4", np.zeros((247, 64, 64, 3), np.uint8),
                       plugin="pyav", codec="libx264", fps=25)
    assert len(read_clip(tmp_path / "films" / "a.mp4", 65, FPS, 64)) == 65
    run("tools/prepare.py", "--source", "folder", "--input", tmp_path / "films", "--index",
        "--out", tmp_path / "index")
    clips = Clips(f"{tmp_path / 'index'}", f"{tmp_path / 'index'}", seed=0, stage=0)
    assert clips[0, 0, 65][0].shape == (65, 64, 64, 3)
