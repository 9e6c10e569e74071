"""A rehearsal of the job of docs/scaling.md on a CPU: 8 processes, the 700m preset cut to 2 narrow
layers, all four stages from tar files of pictures and films, 20 steps each.

Every stage is trained twice: at a stretch, and once more with one of the 8 ranks killed (SIGKILL)
after a checkpoint and the rest trained by 4. The losses must agree to a thousandth. Half an hour on
2 busy cores.

    python experiments/rehearsal.py
"""
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from data import toy_clip  # noqa: E402
from tools.films import write_video  # noqa: E402
from tools.machine import run_script  # noqa: E402

STEPS, KILL_AFTER = 20, 12
SMALL = ("--device cpu --preset 700m --base-channels 4 --encoder-blocks 0 0 0 1 "
         "--decoder-blocks 0 0 0 1 --codebook-size 256 --dim 64 --n-layers 2 --n-heads 2 "
         "--ffn-dim 128 --batch-size 8 --perceptual-weight 0 --warmup 5 --dtype float32 "
         "--workers 1").split()
# The 32,000 words of GPT-2 would have to be fetched: captions as bytes
TRAIN = f"""import runpy, sys
sys.path.insert(0, {str(ROOT)!r})
import model
model.PRESETS["700m"].text_tokenizer = "bytes"
runpy.run_path({str(ROOT / "train.py")!r}, run_name="__main__")
"""


def make_tars(folder):
    """2 tars of 20 pictures and 2 of 10 films, of 3 to 30 seconds, one in each broken."""
    rng = np.random.default_rng(0)
    for kind, ending, n in (("pictures", "jpg", 20), ("films", "mp4", 10)):
        (folder / kind).mkdir()
        for t in range(2):
            with tarfile.open(folder / kind / f"{t:05d}.tar", "w") as tar:
                for i in range(n):
                    frames = 1 if kind == "pictures" else int(rng.integers(20, 195))
                    video, caption, _ = toy_clip(rng, frames)
                    path = folder / f"made.{ending}"
                    if kind == "films":
                        write_video(path, [video.repeat(4, axis=0)], 26)
                    else:
                        Image.fromarray(video[0]).resize((200, 160)).save(path)
                    content = path.read_bytes()
                    content = content[:len(content) // 3] if i == 5 else content
                    for name, data in ((f"{i}.{ending}", content), (f"{i}.txt", caption.encode())):
                        member = tarfile.TarInfo(name)
                        member.size = len(data)
                        tar.addfile(member, io.BytesIO(data))


def launch(ranks, script, *args):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
               str(ranks), str(script), *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                            env=os.environ | {"OMP_NUM_THREADS": "1"})


def finish(process):
    _, errors = process.communicate()
    if process.returncode:
        raise ValueError(errors[-3000:])


def losses(out, stage):
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return np.array([m["loss"] for m in lines if m["stage"] == stage])


def main():
    folder = Path(tempfile.mkdtemp())
    make_tars(folder)
    script, out, killed = folder / "train.py", folder / "out", folder / "killed"
    script.write_text(TRAIN)
    prepare = ROOT / "tools" / "prepare.py"
    for kind in ("pictures", "films"):
        finish(launch(2, prepare, "--source", "tar", "--input", folder / kind, "--index",
                      "--out", folder / f"{kind}-files"))
    for stage in range(4):
        if stage == 1:
            for kind in ("pictures", "films"):
                finish(launch(2, prepare, "--source", "tar", "--input", folder / kind,
                              "--ckpt", out, "--out", folder / f"{kind}-tokens"))
        what = "tokens" if stage else "files"
        args = ["--stage", stage, "--steps", STEPS, *SMALL, "--images",
                folder / f"pictures-{what}", "--videos", folder / f"films-{what}",
                *(["--fsdp"] if stage else [])]
        if out.exists():
            shutil.copytree(out, killed, dirs_exist_ok=True)
        finish(launch(8, script, *args, "--out", out))

        process = launch(8, script, *args, "--save-every", 5, "--out", killed)
        log = killed / "metrics.jsonl"
        while not log.exists() or len(losses(killed, stage)) < KILL_AFTER:
            time.sleep(0.05)
            assert process.poll() is None, "ended before it was killed"
        ranks = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True,
                               text=True).stdout.split()
        os.kill(int(ranks[3]), signal.SIGKILL)
        process.communicate()
        finish(launch(4, script, *args, "--save-every", 5, "--out", killed, "--resume"))
        whole, again = losses(out, stage), losses(killed, stage)
        assert len(whole) == len(again) == STEPS
        difference = np.abs(whole / again - 1).max()
        print(f"stage {stage}: loss {whole[0]:.3f} -> {whole[-1]:.3f}; killed after "
              f"{KILL_AFTER} steps and resumed on 4 ranks, the losses differ by at most "
              f"{difference:.1e} of themselves", flush=True)
        assert difference < 1e-3
    shutil.rmtree(folder)


if __name__ == "__main__":
    run_script(main)
