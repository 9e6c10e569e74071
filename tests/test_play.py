"""The page of tools/play.py: what it shows is what sample.py writes; two visitors in a real
browser."""
import base64
import dataclasses
import io
import os
import re
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from conftest import fails
from data import to_float
from sample import generate, load
from tools import play

CHROMIUM = "/usr/bin/chromium"
DAY, SUNSET, NIGHT = (f"a red balloon drifts left slowly past green hills {when}"
                      for when in ("by day", "at sunset", "at night"))
SKY = {DAY: (120, 190, 240), SUNSET: (240, 150, 90), NIGHT: (20, 25, 60)}


@pytest.fixture(scope="module")
def world():
    """The shipped weights, with clips of 13 frames, later ones 8."""
    model, tokenizer, text = load()
    model.config = dataclasses.replace(model.config, latent_shape=(4, 8, 8))
    return model, tokenizer, text


@pytest.fixture(scope="module")
def colors(world):
    return play.code_colors(world[1])


def sky(colors):
    """Which prompt's sky these colors (n, 3) are."""
    return min(SKY, key=lambda prompt: np.abs(np.median(colors, 0) - SKY[prompt]).sum())


def working():
    """How many clips are being written."""
    return sum("(film)" in thread.name for thread in threading.enumerate())


def wait(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def pixels(html):
    """Its <img>s -> uint8 (n, H, W, 3 or 4)."""
    files = [base64.b64decode(data) for data in re.findall('base64,([^"]*)', html)]
    return np.stack([Image.open(io.BytesIO(file)) for file in files])


def test_the_tokens_of_a_clip_become_tiles():
    colors = np.stack([np.full(4, 10 * i, np.uint8) for i in range(20)])
    frames = pixels(play.tiles(list(range(9)), 7, colors, (3, 2, 3)))
    assert frames.shape == (3, 2 * 8, 3 * 8, 4)
    assert (frames[0, 8:, 16:] == 50).all()  # code 5: second row, third column
    assert (frames[1, :8, 8:16][1:-1, 1:-1] == 70).all()  # code 7 is new, and has an edge
    assert (frames[1, :8, 8:16][[0, -1]] == 255).all() and (frames[1, :8, :8] == 60).all()
    assert (frames[1, :8, 16:] == 80).all()  # the last one was no right guess
    assert (frames[1, 8:] == play.EMPTY).all() and (frames[2] == play.EMPTY).all()


def test_codes_have_the_colors_that_they_decode_to(world, colors):
    """Those of the first three rows say which sky it is."""
    assert colors.shape == (1024, 4) and (colors[:, 3] == 255).all()
    for prompt in SKY:
        codes = []
        next(generate(*world, prompt, 0.1, watch=lambda seen, n: codes.append(seen)))
        assert sky(colors[codes[-1][0, :24], :3]) == prompt


def test_the_page_shows_what_sample_py_writes(world, colors):
    """Frame by frame, over borders of clips and a cut, and the tokens of each clip."""
    day = {"prompt": DAY, "seed": 3, "reencode": True, "cut": True}
    night = {"prompt": NIGHT, "seed": 4, "reencode": False, "cut": True}
    visitor, shown, grids = {"scene": day, "speed": 20}, [], []
    stream = play.play(world, colors, visitor)
    for video, tokens in stream:
        grids.append(pixels(tokens)[:, 4::8, 4::8])  # the middle of each code
        if "<b>" in video and video not in shown:
            shown.append(video)
        if len(shown) == 15:  # in the second clip
            visitor["scene"] = night
        if len(shown) == 21 + 14:
            break
    stream.close()
    wait(lambda: not working())

    frames, clips = [], []
    for scene in day, night:
        for clip in generate(
                *world, scene["prompt"], 21 / 6.5, scene["seed"], reencode=scene["reencode"],
                watch=lambda codes, n: codes.shape[1] == n and clips.append(codes[0].tolist())):
            frames.extend(clip)
    assert all((pixels(video)[0] == frame).all() for video, frame in zip(shown, frames))
    assert "0:03</b> " + DAY in shown[20] and "0:03</b> " + NIGHT in shown[21]
    encoded = world[1].encode(to_float(np.stack(frames[8:13]))[None]).flatten().tolist()
    for codes in clips[0], encoded + clips[1], clips[2], clips[2][128:] + clips[3]:
        complete = colors[codes].reshape(4, 8, 8, 4)
        assert any((grid == complete).all() for grid in grids)


def test_without_gradio_it_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert fails("tools/play.py") == "play.py: pip install gradio"
    assert "No such file" in fails("tools/play.py", "--ckpt", "nowhere")


def test_another_prompt_goes_on_from_the_frames_before(world, colors):
    day = {"prompt": DAY, "seed": 3, "reencode": True, "cut": False}
    visitor, shown = {"scene": day, "speed": 20}, []
    stream = play.play(world, colors, visitor)
    for video, _ in stream:
        if "<b>" in video and video not in shown:
            shown.append(video)
            visitor["scene"] = day | {"prompt": NIGHT}
        if len(shown) == 13 + 8:
            break
    stream.close()
    wait(lambda: not working())
    start = np.stack([pixels(video)[0] for video in shown[8:13]])
    after = next(generate(*world, NIGHT, 10, 3, start=start))
    assert all((pixels(video)[0] == frame).all() for video, frame in zip(shown[13:], after))


@pytest.mark.parametrize("seed", [None, 10 ** 23])
def test_a_form_that_cannot_be_played_says_why(world, colors, seed):
    scene = {"prompt": DAY, "seed": seed, "reencode": True, "cut": False}
    with pytest.raises(ValueError, match="seed must be 0 to"):
        for _ in play.play(world, colors, {"scene": scene, "speed": 20}):
            pass
    assert not working()


@pytest.fixture
def browser():
    pytest.importorskip("gradio")
    playwright = pytest.importorskip("playwright.sync_api")
    if not os.path.exists(CHROMIUM):
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as p:
        yield p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


# from now on, all frames and prompts that a page shows
RECORD = """() => {
  window.shown = [];
  new MutationObserver(() => {
    const clock = document.querySelector("b");
    if (!clock) return;  // nothing yet
    const picture = clock.previousSibling.outerHTML, prompt = clock.nextSibling.data.trim();
    if (picture !== shown.at(-1)?.[0]) shown.push([picture, prompt]);
  }).observe(document.body, {
    subtree: true, childList: true, attributes: true, characterData: true});
}"""


@pytest.mark.filterwarnings("ignore")  # gradio's own
def test_two_visitors_in_a_browser(world, browser):
    """Open, play, another prompt, stop, play again, close."""
    demo = play.page(world)
    _, address, _ = demo.launch(prevent_thread_lock=True, quiet=True)

    def visit(prompt):
        page = browser.new_page()
        page.goto(address)
        page.get_by_label("prompt").fill(prompt)
        page.evaluate(RECORD)
        page.get_by_role("button", name="Play").click()
        return page

    def shown(page):
        return page.evaluate("shown")

    def skies(page):
        """What is above the hills -> the prompt each frame looks like."""
        return [sky(pixels(picture)[0, :20].reshape(-1, 3)) for picture, _ in shown(page)]

    one, two = visit(DAY), visit(NIGHT)
    wait(lambda: len(shown(one)) > 3 and len(shown(two)) > 3)
    assert working() == 2
    one.get_by_label("prompt").fill(SUNSET)
    one.get_by_label("cut to a new scene").check()
    one.get_by_label("prompt").press("Enter")
    wait(lambda: SUNSET in skies(one))
    frames = shown(one)
    assert [prompt for _, prompt in frames] == skies(one)[:len(frames)]
    assert set(skies(two)) == {NIGHT} and working() == 2

    one.get_by_role("button", name="Stop").click()
    wait(lambda: working() == 1, 10)
    before = len(shown(one)), len(shown(two))
    wait(lambda: len(shown(two)) > before[1] + 3)
    assert len(shown(one)) <= before[0] + 1
    one.get_by_role("button", name="Play").click()
    wait(lambda: len(shown(one)) > before[0] + 3)
    assert shown(one)[-1][1] == SUNSET and working() == 2

    two.close()
    wait(lambda: working() == 1, 10)
    one.close()
    wait(lambda: working() == 0, 10)
    demo.close()
