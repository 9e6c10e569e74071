"""docs/play in a real browser: it writes what sample.py writes, and is used as a visitor does."""
import base64
import json
import os
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import sample
from conftest import ROOT, fails, run
from data import TextTokenizer
from model import Llama, ModelConfig
from page import CHROMIUM, RUNTIME, served
from tools import films
from tools.export import export_onnx

DAY, NIGHT = (f"a red balloon drifts left slowly past green hills {when}"
              for when in ("by day", "at night"))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page of a browser that reaches nothing but docs/play and the shipped weights, with clips
    of 13 frames, later ones 8. page.seen: errors, and the addresses that it asked for."""
    pytest.importorskip("onnxscript")
    playwright = pytest.importorskip("playwright.sync_api")
    if not os.path.exists(CHROMIUM):
        pytest.skip("chromium is not installed")
    if not os.path.exists(RUNTIME):
        pytest.skip("npm install --no-save onnxruntime-web@1.30.0 was not called")
    folder = tmp_path_factory.mktemp("play")
    shutil.copytree(os.path.join(ROOT, "docs", "play"), folder, dirs_exist_ok=True,
                    ignore=shutil.ignore_patterns("model", "ort"))
    run("tools/export.py", folder / "model", "--onnx")
    about = json.loads((folder / "model" / "model.json").read_text())
    about["latent_shape"][0] = 4
    (folder / "model" / "model.json").write_text(json.dumps(about))
    with served(folder=folder) as address, playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=[
            "--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"])
        page = browser.new_page()
        page.set_default_timeout(120_000)
        page.seen = []
        page.on("pageerror", lambda e: page.seen.append(str(e)))
        page.on("console", lambda m: m.type == "error" and page.seen.append(m.text))
        page.context.on("request", lambda r: page.seen.append(r.url))
        page.address = address
        page.goto(address + "?offline")
        yield page
        browser.close()


def array(text, dtype):
    return np.frombuffer(base64.b64decode(text), dtype)


# arrays come from the page as base64
TO_TEXT = """const text = (x) => new Promise((done) => {
  const reader = new FileReader();
  reader.onload = () => done(reader.result.split(",")[1]);
  reader.readAsDataURL(new Blob([x]));
});"""


def test_the_page_writes_the_tokens_of_sample_py(page, monkeypatch):
    """Twenty seconds with the page's noise on both sides, re-encoded in between."""
    clips = page.evaluate("""async (prompt) => {""" + TO_TEXT + """
      const { drawNoise, generate, generator, TextTokenizer } = await import("./sample.js");
      const { load, runtime } = await import("./runtime.js");
      const ort = await runtime(new URL("ort/", location.href));
      const { model, tokenizer, config } = await load(ort, new URL("model/", location.href));
      config.latent_shape = [17, 8, 8];
      const random = generator(7), clips = [];
      let drawn, codes;
      const noise = (n) => (drawn = drawNoise(n, config, random));
      const watch = (seen) => { codes = seen; };
      const words = new TextTokenizer(config.words);
      for await (const pixels of generate(model, tokenizer, words, prompt, { noise, watch })) {
        clips.push([await text(drawn), await text(codes), await text(pixels)]);
        if (clips.length === 2) return clips;
      }
    }""", NIGHT)
    noises = [array(clip[0], np.float32).reshape(1, -1, 1024).copy() for clip in clips]
    drawn = np.concatenate(noises, 1)
    assert abs(drawn.mean() - 1) < 0.01 and abs(drawn.var() - 1) < 0.02 and drawn.min() > 0
    monkeypatch.setattr(sample, "draw_noise", lambda n, config, generators, more=0: F.pad(
        torch.tensor(noises.pop(0)), (0, 0, 0, more), value=1.0))
    model, tokenizer, text = sample.load()
    codes = []
    frames = sample.generate(model, tokenizer, text, NIGHT, 125 / 6.5,
                             watch=lambda seen, n: seen.shape[1] == n and codes.append(seen[0]))
    for (_, tokens, pixels), clip, n in zip(clips, frames, (1088, 960)):
        same = array(tokens, np.int32)[-n:] == codes[-1].numpy()
        assert same.mean() >= 0.999
        theirs = array(pixels, np.uint8).reshape(*clip.shape[:3], 4)[..., :3]
        difference = theirs.astype(int) - clip
        assert abs(difference).max() <= (1 if same.all() else 255)


@pytest.mark.parametrize("scale, top_k, floor", [(1.5, 50, 0.0), (1, 5, 0.0), (3.0, 50, 0.2)])
def test_codes_are_drawn_as_in_sample_py(page, scale, top_k, floor):
    logits, noise = torch.randn(2, 40, 64) * 3, torch.empty(1, 40, 64).exponential_()
    logits = logits[:1 + (scale != 1)]

    class Model:
        def next_logits(self, *_):
            return logits

    numbers = torch.tensor([scale, 0.7, floor])
    expected = sample.next_codes(Model(), None, None, noise, numbers[0], top_k, *numbers[1:])
    codes = page.evaluate("""async ([logits, noise, sampling]) => {
      const { nextCodes } = await import("./sample.js");
      const nextLogits = () => logits.map((row) => Float32Array.from(row));
      const model = { config: { video_vocab: 64 }, nextLogits };
      return [...await nextCodes(model, null, null, Float32Array.from(noise), sampling)];
    }""", [logits.flatten(1).tolist(), noise.flatten().tolist(),
           {"cfg_scale": scale, "temperature": 0.7, "top_k": top_k, "floor": floor}])
    assert codes == expected[0].tolist()


def test_captions_become_the_same_ids(page):
    captions = [DAY, "", "a bird, at dusk along a ridge", "an atom past  abcart\nA CAR", "zoë 🎈"]
    for kind in "bytes", "storybook":
        text = TextTokenizer(kind)
        words = [text.bpe.decode([i]) for i in range(256, text.bpe.n_vocab)]
        ids = page.evaluate("""async ([words, captions]) => {
          const { TextTokenizer } = await import("./sample.js");
          const text = new TextTokenizer(words);
          return captions.map((caption) => text.encode(caption));
        }""", [words, captions])
        assert ids == [text.encode(caption) for caption in captions]


def test_the_generator_is_the_published_one(page):
    """xoshiro128**, in Python's own integers."""
    def turn(x, k):
        return (x << k | x >> 32 - k) & 0xffffffff

    def splitmix(seed):
        while True:
            seed = (seed + 0x9e3779b9) & 0xffffffff
            z = (seed ^ seed >> 16) * 0x21f0aaad & 0xffffffff
            z = (z ^ z >> 15) * 0x735a2d97 & 0xffffffff
            yield z ^ z >> 15

    start, expected = splitmix(5), []
    a, b, c, d = (next(start) for _ in range(4))
    for _ in range(20):
        expected.append(turn(b * 5 & 0xffffffff, 7) * 9 & 0xffffffff)
        shifted = b << 9 & 0xffffffff
        c, d = c ^ a, d ^ b
        b, a = b ^ c, a ^ d
        c, d = c ^ shifted, turn(d, 11)
    drawn = page.evaluate("""async () => {
      const random = (await import("./sample.js")).generator(5);
      return Array.from({ length: 20 }, () => Math.floor(random() * 2 ** 32));
    }""")
    assert drawn == expected


# from now on, all frames that the page shows, with what stands below them
RECORD = """() => {
  window.shown = [];
  new MutationObserver(() => {
    const video = document.getElementById("video");
    const { data } = video.getContext("2d").getImageData(0, 0, 64, 64);
    shown.push([document.getElementById("clock").textContent, btoa(String.fromCharCode(...data))]);
  }).observe(document.getElementById("clock"), { childList: true });
}"""


def test_a_visit(page, tmp_path):
    """Play, two clips, another prompt from the frames before and by a cut, the same seed twice,
    pause, save. No errors, and nothing is asked for but the page's own files."""
    page.evaluate(RECORD)
    page.evaluate("speed.value = 4")
    page.wait_for_selector("#play:enabled")
    page.fill("#prompt", DAY)
    page.press("#prompt", "Enter")

    def frames(first, end, prompt=DAY):
        page.wait_for_function(f"shown.length >= {end}")
        clocks, pictures = zip(*page.evaluate(f"shown.slice({first}, {end})"))
        assert all(clock.endswith(prompt) for clock in clocks)
        return np.stack([array(x, np.uint8).reshape(64, 64, 4) for x in pictures]).astype(int)

    def blue(frames):  # of the sky
        return np.median(frames[:, :20, :, 2], (1, 2))

    two = frames(0, 21)
    assert (two[..., 3] == 255).all() and (blue(two) > 150).all()
    change = abs(np.diff(two, axis=0)).mean((1, 2, 3))
    assert (change > 0).all() and change[12] <= 1.5 * change[:12].max()

    page.fill("#prompt", DAY.replace("balloon", "dragon"))
    page.click("#cut")
    assert page.inner_text("#unknown") == "No training caption has: dragon"
    page.fill("#prompt", NIGHT)
    page.click("#cut")
    assert page.inner_text("#unknown") == ""
    page.wait_for_function("shown.some(([clock]) => clock.endsWith('night'))")
    start = page.evaluate("shown.findIndex(([clock]) => clock.endsWith('night'))")
    assert (start - 13) % 8 == 0  # at the end of a clip
    night = frames(start, start + 13, NIGHT)
    assert (blue(night) < 120).all()

    page.fill("#prompt", DAY)
    page.click("#cut")
    page.wait_for_function(f"shown.slice({start}).some(([clock]) => clock.endsWith('day'))")
    again = start + page.evaluate(f"shown.slice({start}).findIndex(([x]) => x.endsWith('day'))")
    assert (frames(again, again + 13) == two[:13]).all()  # the same seed

    page.fill("#prompt", NIGHT)
    page.click("#continue")
    page.wait_for_function(f"shown.slice({again}).some(([clock]) => clock.endsWith('night'))")
    on = again + page.evaluate(f"shown.slice({again}).findIndex(([x]) => x.endsWith('night'))")
    assert (on - again - 13) % 8 == 0
    assert not (frames(on, on + 8, NIGHT) == night[:8]).all()

    page.click("#play")
    page.wait_for_timeout(300)
    paused = page.evaluate("shown.length")
    page.wait_for_timeout(700)
    assert page.evaluate("shown.length") == paused
    last = frames(paused - 1, paused, NIGHT)[0]
    with page.expect_download() as download:
        page.click("#save")
    download.value.save_as(tmp_path / "saved.webm")
    saved = films.read_clip(str(tmp_path / "saved.webm"), paused, 6.5, 64)
    assert len(saved) == paused
    assert abs(saved[-1].astype(int) - last[..., :3]).mean() < 6
    page.click("#play")
    page.wait_for_function(f"shown.length > {paused}")
    assert all(address.startswith((page.address, "blob:", "data:")) for address in page.seen)


def test_not_every_model_is_for_a_browser(tmp_path):
    model, tokenizer, text = sample.load()
    with torch.device("meta"):
        model = Llama(ModelConfig())
    with pytest.raises(ValueError, match="694 M parameters"):
        export_onnx(model, tokenizer, text, tmp_path / "play")
    assert not (tmp_path / "play").exists()
    assert "stage3.pt" in fails("tools/export.py", tmp_path, "--onnx", "--ckpt", tmp_path)
