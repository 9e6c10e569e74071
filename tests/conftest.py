"""What the tests share: the repository root on the path, seeded randomness, and a tiny run of
all four stages."""
import contextlib
import functools
import io
import json
import os
import runpy
import subprocess
import sys
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
sys.path.insert(0, os.path.join(ROOT, "tools"))
sys.path.insert(0, os.path.join(ROOT, "experiments"))
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}  # for processes side by side

if "OMP_NUM_THREADS" not in os.environ:
    torch.set_num_threads(1)  # as sample.set_threads: tests crawl otherwise beside a busy process

# a tokenizer and a model so small that a step takes milliseconds
TINY = ("--base-channels 4 --multipliers 1 1 2 2 --encoder-blocks 0 0 0 1 "
        "--decoder-blocks 0 0 1 1 --codebook-size 32 --dim 32 --n-layers 2 "
        "--n-heads 2 --ffn-dim 48 --dtype float32 --warmup 2 "
        "--image-every 3 --returns 0").split()


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def eager(monkeypatch):
    """torch.compile without a C++ compiler."""
    monkeypatch.setattr(torch.nn.Module, "compile", functools.partialmethod(
        torch.nn.Module.compile, backend="eager"))
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))


def command(script, *args, ranks=0):
    launch = []
    if ranks:
        launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
    return [sys.executable, *launch, os.path.join(ROOT, script), *map(str, args)]


def run(script, *args, ranks=None, ok=True):
    """Run a script as a user does -> what it wrote, as .stdout and .stderr;
    asserts its exit status.

    In this process, which spares it the imports; with ranks in a process of
    its own (0) or in that many (torchrun)."""
    if ranks is not None:
        done = subprocess.run(command(script, *args, ranks=ranks), text=True,
                              capture_output=True, env=ONE_THREAD, timeout=240)
        assert (done.returncode == 0) == ok, done.stderr[-3000:]
        return done
    out, err = io.StringIO(), io.StringIO()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in other processes, for the same sums
    try:
        with mock.patch.object(sys, "argv", [script, *map(str, args)]), \
                contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            runpy.run_path(os.path.join(ROOT, script), run_name="__main__")
    finally:
        torch.set_num_threads(threads)
    return SimpleNamespace(stdout=out.getvalue(), stderr=err.getvalue())


def fails(script, *args):
    """The line that a wrong call ends with; asserts that it is one, and no traceback."""
    with pytest.raises(SystemExit) as end:
        run(script, *args)
    error = end.value.code
    assert isinstance(error, str) and len(error.splitlines()) == 1, error
    return error


def metrics(folder, stage):
    with open(os.path.join(folder, "metrics.jsonl")) as f:
        return [m for m in map(json.loads, f) if m["stage"] == stage]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A folder in which the four stages were trained, twelve steps each, on one process."""
    folder = tmp_path_factory.mktemp("tiny")
    for stage in range(4):
        run("train.py", "--stage", stage, "--steps", 12, "--batch-size", 2,
            "--out", folder, *TINY)
    return folder
