"""docs/play in Chromium beside sample.py: speed, memory, pictures.

    python tools/export.py docs/play/model --onnx
    npm install --no-save onnxruntime-web@1.30.0
    python experiments/page.py --seconds 60 [--pictures DIR]

One prompt, as many seconds of video by each: the page on one thread, the page isolated from other
origins, which gives it threads, and sample.py on as many. A line for each: seconds of video per
second, processor seconds per second of video, and for the page what was loaded, and the memory of
its process after the first clip and at the end, as it is and once its garbage is collected. Needs:
pip install playwright; chromium
"""
import argparse
import contextlib
import functools
import http.server
import json
import resource
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import torch  # noqa: E402

from data import FPS  # noqa: E402
from sample import generate, load  # noqa: E402
from tools.machine import run_script  # noqa: E402

CHROMIUM = "/usr/bin/chromium"
RUNTIME = ROOT / "node_modules" / "onnxruntime-web" / "dist"
PROMPT = "a red balloon drifts right slowly past green hills by day"
# all clips that the worker of a page writes
RECORD = """window.clips = [];
window.Worker = class extends Worker {
  constructor(...args) {
    super(...args);
    this.addEventListener("message", ({ data }) => {
      if (data.pixels) clips.push({ frames: data.pixels.length / 64 / 64 / 4, ...data, pixels: 0 });
    });
  }
};"""


@contextlib.contextmanager
def served(isolated=False, folder=ROOT / "docs" / "play", runtime=RUNTIME):
    """The address of the page, with the runtime as its folder ort/. isolated: from other origins,
    which is what a browser asks of a page with threads."""
    class Handler(http.server.SimpleHTTPRequestHandler):
        def translate_path(self, path):
            if path.startswith("/ort/"):
                return str(Path(runtime) / Path(path).name)
            return super().translate_path(path)

        def end_headers(self):
            if isolated:
                self.send_header("Cross-Origin-Opener-Policy", "same-origin")
                self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
            super().end_headers()

        def log_message(self, *args):
            pass

    handler = functools.partial(Handler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def renderer(browser, page):
    """The process of the page -> its processor seconds, and its memory in MB, before and after
    its garbage is collected."""
    processes = browser.new_browser_cdp_session().send("SystemInfo.getProcessInfo")["processInfo"]
    busiest = max((p for p in processes if p["type"] == "renderer"), key=lambda p: p["cpuTime"])
    memory = []
    for _ in range(2):
        status = Path(f"/proc/{busiest['id']}/status").read_text()
        memory.append(int(status.split("VmRSS:")[1].split()[0]) / 1e3)
        for place in (page, *page.workers):
            place.evaluate("gc()")
        time.sleep(0.5)
    return busiest["cpuTime"], memory


def measure_page(p, seconds, isolated):
    with served(isolated) as address:
        browser = p.chromium.launch(executable_path=CHROMIUM,
                                    args=["--no-sandbox", "--js-flags=--expose-gc"])
        page = browser.new_page()
        page.set_default_timeout(0)
        page.add_init_script(RECORD)
        page.goto(address + "?offline")
        page.wait_for_selector("#play:enabled")
        ready = page.inner_text("#status")
        page.evaluate("speed.value = 4")  # it waits for no visitor
        page.fill("#prompt", PROMPT)
        page.click("#play")
        page.wait_for_function("clips.length >= 1")
        before, memory = renderer(browser, page)
        page.wait_for_function(
            f"clips.slice(1).reduce((sum, clip) => sum + clip.frames, 0) >= {seconds * FPS}")
        after, memory_at_end = renderer(browser, page)
        clips = page.evaluate("clips.slice(1)")
        browser.close()
    total = {name: sum(clip[name] for clip in clips)
             for name in ("frames", "passes", "tokens", "seconds")}
    video = total["frames"] / FPS
    return {"page": ready, "video per second": video / total["seconds"],
            "processor seconds per second": (after - before) / video,
            "tokens per pass": total["tokens"] / total["passes"],
            "MB": [memory, memory_at_end]}


def measure_sample(world, seconds, threads):
    torch.set_num_threads(threads)
    clips = generate(*world, PROMPT, 10 + seconds)
    next(clips)
    usage, began = resource.getrusage(resource.RUSAGE_SELF).ru_utime, time.perf_counter()
    video = sum(map(len, clips)) / FPS
    used = resource.getrusage(resource.RUSAGE_SELF).ru_utime - usage
    return {"sample.py": f"{threads} threads",
            "video per second": video / (time.perf_counter() - began),
            "processor seconds per second": used / video}


def picture(p, folder):
    """wide and narrow, light and dark, after ten seconds of video."""
    for name, width, height in ("wide", 1100, 980), ("narrow", 390, 1500):
        for scheme in "light", "dark":
            with served() as address:
                browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
                page = browser.new_page(viewport={"width": width, "height": height},
                                        color_scheme=scheme)
                page.set_default_timeout(0)
                page.goto(address + "?offline")
                page.click("#play:enabled")
                page.wait_for_function("clock.textContent.startsWith('0:08')")
                page.screenshot(path=Path(folder) / f"{name}-{scheme}.png")
                browser.close()


def main():
    p = argparse.ArgumentParser(description="The page in Chromium beside sample.py.")
    p.add_argument("--seconds", type=float, default=60, help="of video")
    p.add_argument("--threads", type=int, default=2, help="of sample.py at most")
    p.add_argument("--pictures", metavar="DIR", help="take these instead")
    args = p.parse_args()
    from playwright.sync_api import sync_playwright
    with sync_playwright() as browsers:
        if args.pictures:
            return picture(browsers, args.pictures)
        world = load()
        for isolated, threads in (False, 1), (True, args.threads):
            for line in (measure_page(browsers, args.seconds, isolated),
                         measure_sample(world, args.seconds, threads)):
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    run_script(main)
