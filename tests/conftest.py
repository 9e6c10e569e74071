"""What the tests share: the repository root on the path, seeded randomness, and a tiny run of
all four stages."""
import contextlib
import functools
import io
import json
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
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

    In this process, which spares it the imports; with ranks=0 in a process of its own; with more
    in so many, with the variables that torchrun sets. (A test that kills one uses torchrun.)"""
    if ranks:
        return run_ranks([script, *map(str, args)], ranks, ok)
    if ranks == 0:
        done = subprocess.run(command(script, *args), text=True, capture_output=True,
                              env=ONE_THREAD, timeout=240)
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


# a process that has imported what takes long, and from which ranks are forked
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["av", "tiktoken", "torch.distributed.checkpoint.state_dict",
                              "torch.distributed.fsdp", "torch._dynamo"])


def rank_of(argv, variables, stderr):
    os.environ.update(variables)
    os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT), 2)
    torch.set_num_threads(1)
    sys.argv = argv
    runpy.run_path(os.path.join(ROOT, argv[0]), run_name="__main__")


def run_ranks(argv, ranks, ok):
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        processes = [FORKS.Process(target=rank_of, args=(argv, {
            "RANK": str(i), "LOCAL_RANK": str(i), "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "localhost",
            "MASTER_PORT": str(port)}, os.path.join(folder, str(i)))) for i in range(ranks)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(240)
            process.kill()
        wrote = "".join(open(os.path.join(folder, str(i))).read() for i in range(ranks))
    assert (not any(process.exitcode for process in processes)) == ok, wrote[-3000:]
    return SimpleNamespace(stderr=wrote)


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


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
        run("train.py", "--stage", stage, "--steps", 12, "--batch-size", 2 if stage else 1,
            "--out", folder, *TINY)
    return folder
