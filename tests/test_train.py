import json
import os
import shutil
import signal
import subprocess
import time

import pytest
import torch
from conftest import TINY, command, fails, metrics, run

from sample import SHIPPED, load
from train import FRAME_RANGES


def losses(folder, stage):
    return [m["loss"] for m in metrics(folder, stage)]


def test_four_stages_from_nothing(tiny):
    schedule = [1, 1, 1, 1, 1, 17, 1, 17, 17, 1, 17, 65], [1] * 12, [1, 17, 17] * 4, [1, 65, 65] * 4
    for stage, frames in enumerate(schedule):
        lines = metrics(tiny, stage)
        assert [m["frames"] for m in lines] == frames and "val_loss" in lines[-1]
        assert [m["step"] for m in lines] == list(range(12)) and all(m["loss"] > 0 and m["lr"] > 0 for m in lines)
    long = next(m for m in metrics(tiny, 3) if m["frames"] == 65)
    assert {f"loss_{name}" for name in FRAME_RANGES} < set(long)
    early = 5 / 17  # Eq. (2) with lambda = 1 counts the first 5 of 17 latent frames twice
    ranges = [(long[f"loss_{n}"], b - a) for n, (a, b) in FRAME_RANGES.items()]
    plain = sum(loss * n for loss, n in ranges) / 17
    twice = sum(loss * n for loss, n in ranges[:2]) / 5
    assert long["loss"] == pytest.approx(plain + early * twice, abs=1e-3)


def test_training_learns(tmp_path):
    run("train.py", "--stage", 0, "--steps", 40, "--batch-size", 1, "--out", tmp_path, *TINY, "--lr", "3e-3")
    lines = [m["loss"] for m in metrics(tmp_path, 0)]
    assert lines[14] < 0.8 * lines[0]
    run("train.py", "--stage", 1, "--steps", 30, "--batch-size", 16, "--out", tmp_path, *TINY, "--lr", "1e-2")
    lines = losses(tmp_path, 1)
    assert lines[-1] < 0.75 * lines[0]


@pytest.mark.parametrize("stage", [0, 3])
def test_killed_and_resumed_equals_uninterrupted(tiny, tmp_path, stage):
    """SIGKILL in the middle, then --resume: the same losses to the last digit."""
    args = ["--stage", stage, "--steps", 12, "--batch-size", 2, "--save-every", 3, *TINY]
    for name in ("whole", "killed"):
        start_of(stage, tiny, tmp_path / name)
    run("train.py", *args, "--out", tmp_path / "whole")
    process = subprocess.Popen(command("train.py", *args, "--out", tmp_path / "killed"), stderr=subprocess.DEVNULL,
                               env=os.environ | {"OMP_NUM_THREADS": "1"})
    log = tmp_path / "killed" / "metrics.jsonl"
    while process.poll() is None and not (log.exists() and log.read_text().count("\n") >= 5):
        time.sleep(0.01)
    assert process.poll() is None, "finished before it was killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    with open(log, "a") as f:
        f.write('{"stage": 0, "st')  # a half-written line, as a kill can leave
    run("train.py", *args, "--out", tmp_path / "killed", "--resume")
    same = [[{k: m[k] for k in m if k.startswith(("step", "loss", "val"))} for m in metrics(tmp_path / n, stage)]
            for n in ("whole", "killed")]
    assert same[0] == same[1] and len(same[0]) == 12


def start_of(stage, source, folder):
    """A new folder with what a stage starts from."""
    folder.mkdir()
    for file in ("tokenizer.pt", f"stage{stage - 1}.pt") if stage else ():
        if (source / file).exists():
            os.link(source / file, folder / file)
    return folder


def test_data_parallel_and_fsdp_follow_one_process(tiny, tmp_path):
    """The same 20 steps on one process, on two DDP ranks, on two and one FSDP ranks; activations kept or not."""
    args = ["--stage", 3, "--steps", 20, "--batch-size", 2, "--save-every", 10, *TINY]
    expected = None
    for name, ranks, flags in (("one", None, ["--micro-batch", 1]), ("ddp", 2, []), ("fsdp", 2, ["--fsdp"]),
                               ("fsdp1", 1, ["--fsdp", "--micro-batch", 1, "--checkpoint-activations"])):
        out = start_of(3, tiny, tmp_path / name)
        run("train.py", *args, *flags, "--out", out, ranks=ranks)
        followed = losses(out, 3)
        expected = expected or followed
        assert len(followed) == 20 and followed == pytest.approx(expected, abs=1e-4), name
    models = [load(tmp_path / name)[0].state_dict() for name in ("one", "fsdp")]  # slices are put together for sampling
    for name, weight in models[0].items():
        assert torch.allclose(weight, models[1][name], atol=1e-3), name


def test_fsdp_killed_and_resumed_on_any_number_of_ranks(tiny, tmp_path):
    args = ["--stage", 3, "--steps", 12, "--batch-size", 2, "--save-every", 4, "--fsdp", *TINY]
    whole, killed = start_of(3, tiny, tmp_path / "whole"), start_of(3, tiny, tmp_path / "killed")
    run("train.py", *args, "--out", whole, ranks=2)
    process = subprocess.Popen(command("train.py", *args, "--out", killed, ranks=2), stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    log = killed / "metrics.jsonl"
    while process.poll() is None and not (log.exists() and log.read_text().count("\n") >= 6):
        time.sleep(0.01)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(children[-1]), signal.SIGKILL)  # one rank dies
    assert process.wait(timeout=60) != 0  # and the job with it
    assert torch.load(killed / "stage3.pt", weights_only=True)["step"] in (4, 8)
    shutil.copytree(killed, tmp_path / "alone")
    run("train.py", *args, "--out", killed, "--resume", ranks=2)
    assert losses(killed, 3) == losses(whole, 3) and len(losses(killed, 3)) == 12  # to the last digit
    run("train.py", *args, "--out", tmp_path / "alone", "--resume", ranks=1)
    assert losses(tmp_path / "alone", 3) == pytest.approx(losses(whole, 3), rel=1e-4)
    assert sum(path.is_dir() for path in killed.iterdir()) == 1  # the latest slices alone
    slices = next(path for path in (killed / "stage3.pt.12").iterdir())
    slices.write_bytes(slices.read_bytes()[:1000])
    assert "--fsdp shares" in fails("train.py", *args, "--out", killed, "--overwrite")  # needs torchrun
    assert "damaged" in fails("sample.py", "--prompt", "", "--ckpt", killed, "--out", tmp_path / "v.mp4")


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_two_processes_follow_one(tiny, tmp_path, stage):
    """torchrun with two ranks, and one process with accumulation: the same batches, the same losses."""
    for name in ("one", "two"):
        start_of(stage, tiny, tmp_path / name)
    args = ["--stage", stage, "--steps", 11 if stage == 0 else 4, "--batch-size", 2, *TINY]
    run("train.py", *args, "--micro-batch", 1, "--out", tmp_path / "one")
    run("train.py", *args, "--out", tmp_path / "two", ranks=2)
    assert losses(tmp_path / "two", stage) == pytest.approx(losses(tmp_path / "one", stage), abs=2e-4)
    if stage == 0:
        one, two = (torch.load(tmp_path / n / "tokenizer.pt", weights_only=True)["weights"] for n in ("one", "two"))
        assert (one["vq.codebook"] - two["vq.codebook"]).norm(dim=1).median() < 1e-2


def test_wrong_calls_are_one_line_and_lose_nothing(tiny, tmp_path):
    before = (tiny / "stage1.pt").read_bytes()
    assert "exists" in fails("train.py", "--stage", 1, "--out", tiny)
    assert "train stage 2 first" in fails("train.py", "--stage", 3, "--out", tmp_path)
    assert "at least 1" in fails("train.py", "--stage", 1, "--out", tiny, "--overwrite", "--batch-size", 0)
    odd = run("train.py", "--stage", 1, "--out", tiny, "--overwrite", "--batch-size", 3, ranks=2, ok=False)
    assert "cannot be shared equally by 2 processes" in odd.stderr
    assert "another shape" in fails("train.py", "--stage", 1, "--out", tiny, "--overwrite", "--init", tiny / "stage2.pt", "--dim", 64)
    assert "same flags" in fails("train.py", "--stage", 1, "--out", tiny, "--resume", "--steps", 99)
    assert "cannot start from" in fails("train.py", "--stage", 2, "--out", tiny, "--overwrite", "--init", tiny / "tokenizer.pt")
    assert "holds critic" in fails("train.py", "--stage", 1, "--out", tmp_path, "--init", f"{SHIPPED}/critic.pt")
    assert "must be positive" in fails("train.py", "--stage", 1, "--out", tmp_path, "--n-heads", 0)
    assert "twice the" in fails("train.py", "--stage", 1, "--out", tiny, "--overwrite", "--dim", 30, "--n-heads", 4)
    assert "8x8x4" in fails("train.py", "--stage", 0, "--out", tmp_path, "--multipliers", 1, 2)
    assert "no token shards" in fails("train.py", "--stage", 1, "--out", tiny, "--overwrite", "--data", tmp_path)
    torch.save(torch.load(tiny / "stage1.pt", weights_only=True) | {"step": 5}, tmp_path / "stage1.pt")
    assert "is at step 5 of 12" in fails("train.py", "--stage", 2, "--out", tmp_path)
    (tmp_path / "stage1.pt").write_bytes(before[:1000])
    assert "cut short" in fails("train.py", "--stage", 2, "--out", tmp_path)
    assert (tiny / "stage1.pt").read_bytes() == before
    assert json.loads((tiny / "metrics.jsonl").read_text().splitlines()[0])["step"] == 0
