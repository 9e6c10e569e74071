import dataclasses
import itertools
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from PIL import Image

import model
from conftest import ONE_THREAD, ROOT, TINY, command, fails, free_port, metrics, run
from data import TextTokenizer
from model import prefix_tokens
from tokenizer import SHIPPED
from tools import machine
from train import FRAME_RANGES, PAPER, decoder_loss, micro_batches


def losses(folder, stage):
    return [m["loss"] for m in metrics(folder, stage)]


def test_four_stages_from_nothing(tiny):
    schedule = [1, 1, 1, 1, 1, 17, 1, 17, 17, 1, 17, 65], [1] * 12, [1, 17, 17] * 4, [1, 65, 65] * 4
    for stage, frames in enumerate(schedule):
        lines = metrics(tiny, stage)
        assert [m["frames"] for m in lines] == frames and "val_loss" in lines[-1]
        assert [m["step"] for m in lines] == list(range(12))
        assert all(m[k] > 0 for m in lines for k in ("loss", "lr", "grad_norm"))
    long = next(m for m in metrics(tiny, 3) if m["frames"] == 65)
    assert {f"loss_{name}" for name in FRAME_RANGES} < set(long)
    early = 5 / 17  # Eq. (2) with lambda = 1 counts the first 5 of 17 latent frames twice
    ranges = [(long[f"loss_{n}"], b - a) for n, (a, b) in FRAME_RANGES.items()]
    plain = sum(loss * n for loss, n in ranges) / 17
    twice = sum(loss * n for loss, n in ranges[:2]) / 5
    assert long["loss"] == pytest.approx(plain + early * twice, abs=1e-3)


def test_training_learns(tmp_path):
    run("train.py", "--stage", 0, "--steps", 20, "--batch-size", 1,
        "--out", tmp_path, *TINY, "--lr", "3e-3")
    lines = losses(tmp_path, 0)
    assert lines[6] < 0.8 * lines[0]
    run("train.py", "--stage", 1, "--steps", 30, "--batch-size", 16,
        "--out", tmp_path, *TINY, "--lr", "1e-2")
    lines = losses(tmp_path, 1)
    assert lines[-1] < 0.75 * lines[0]


def killed_at(log, lines, process):
    """Wait until a training has logged so many lines, and SIGKILL it."""
    while process.poll() is None and not (
            log.exists() and log.read_text().count("\n") >= lines):
        time.sleep(0.01)
    assert process.poll() is None, "finished before it was killed"
    return process


@pytest.mark.parametrize("stage", [0, 3])
def test_killed_and_resumed_equals_uninterrupted(tiny, tmp_path, stage):
    """SIGKILL in the middle, then --resume: the same losses to the last digit.
    Stage 0 is killed before the discriminator plays and resumed beyond."""
    args = ["--stage", stage, "--steps", 12, "--batch-size", 2 if stage else 1,
            "--save-every", 6, *TINY, "--returns", 0.5 if stage else 0]
    for name in ("whole", "killed"):
        start_of(stage, tiny, tmp_path / name)
    run("train.py", *args, "--out", tmp_path / "whole")
    process = subprocess.Popen(
        command("train.py", *args, "--out", tmp_path / "killed"),
        stderr=subprocess.DEVNULL, env=ONE_THREAD)
    log = tmp_path / "killed" / "metrics.jsonl"
    killed_at(log, 7, process).send_signal(signal.SIGKILL)
    process.wait()
    with open(log, "a") as f:
        f.write('{"stage": 0, "st')  # half a line, as a kill can leave
    run("train.py", *args, "--out", tmp_path / "killed", "--resume")
    whole, killed = ([{k: m[k] for k in m if k.startswith(("step", "loss", "val", "grad"))}
                      for m in metrics(tmp_path / name, stage)]
                     for name in ("whole", "killed"))
    assert whole == killed and len(whole) == 12


def start_of(stage, source, folder):
    """A new folder with what a stage starts from."""
    folder.mkdir()
    for file in ("tokenizer.pt", f"stage{stage - 1}.pt") if stage else ():
        if (source / file).exists():
            os.link(source / file, folder / file)
    return folder


def test_data_parallel_and_fsdp_follow_one_process(tiny, tmp_path):
    """The same 8 steps on one process, two DDP ranks, two FSDP ranks and one;
    activations kept or not. All write the same kind of checkpoint."""
    args = ["--stage", 3, "--steps", 8, "--batch-size", 2, "--save-every", 4, *TINY,
            "--returns", 0.7]
    expected = None
    for name, ranks, flags in (
            ("one", None, ["--micro-batch", 1]), ("ddp", 2, []),
            ("fsdp", 2, ["--fsdp"]),
            ("fsdp1", 1, ["--fsdp", "--micro-batch", 1, "--checkpoint-activations"])):
        out = start_of(3, tiny, tmp_path / name)
        run("train.py", *args, *flags, "--out", out, ranks=ranks)
        found = losses(out, 3), [m["grad_norm"] for m in metrics(out, 3)]
        expected = expected or found
        assert len(found[0]) == 8
        for a, b in zip(found, expected):
            assert a == pytest.approx(b, rel=1e-4, abs=1e-4), name
    one, fsdp = (torch.load(tmp_path / name / "stage3.pt", weights_only=True)
                 for name in ("one", "fsdp"))
    assert one.keys() == fsdp.keys() and one["args"] == fsdp["args"]
    for name, weight in one["weights"].items():
        assert torch.allclose(weight, fsdp["weights"][name], atol=1e-3), name
        for moment, x in one["optimizer"]["state"][name].items():
            other = fsdp["optimizer"]["state"][name][moment]
            assert torch.allclose(x, other, atol=1e-3), (name, moment)
    run("sample.py", "--ckpt", tmp_path / "fsdp", "--prompt", "", "--seconds", 1,
        "--out", tmp_path / "a.mp4")


def test_fsdp_killed_and_resumed_on_any_number_of_ranks(tiny, tmp_path):
    args = ["--stage", 3, "--steps", 12, "--batch-size", 2, "--save-every", 4, *TINY]
    whole, killed = (start_of(3, tiny, tmp_path / n) for n in ("whole", "killed"))
    run("train.py", *args, "--fsdp", "--out", whole, ranks=2)
    process = subprocess.Popen(
        command("train.py", *args, "--fsdp", "--out", killed, ranks=2),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ONE_THREAD)
    killed_at(killed / "metrics.jsonl", 6, process)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True,
                              text=True).stdout.split()
    os.kill(int(children[-1]), signal.SIGKILL)  # one rank dies
    assert process.wait(timeout=60) != 0  # and the job with it
    assert torch.load(killed / "stage3.pt", weights_only=True)["step"] in (4, 8)
    shutil.copytree(killed, tmp_path / "alone")
    run("train.py", *args, "--fsdp", "--out", killed, "--resume", ranks=2)
    assert losses(killed, 3) == losses(whole, 3)  # to the last digit
    assert len(losses(killed, 3)) == 12
    run("train.py", *args, "--micro-batch", 1, "--out", tmp_path / "alone",
        "--resume")  # one process, no FSDP
    assert losses(tmp_path / "alone", 3) == pytest.approx(losses(whole, 3), rel=1e-4)
    assert "--fsdp is for" in fails("train.py", *args, "--fsdp", "--out", killed, "--overwrite")


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_two_processes_follow_one(tiny, tmp_path, stage):
    """torchrun with two ranks, and one process with accumulation: the same
    batches, the same losses."""
    for name in ("one", "two"):
        start_of(stage, tiny, tmp_path / name)
    # more than a micro-batch: 17 images, 3 clips of 17 frames
    args = ["--stage", stage, "--steps", 11 if stage == 0 else 4,
            "--batch-size", (2, 20, 4)[stage], *TINY]
    run("train.py", *args, "--micro-batch", 1, "--out", tmp_path / "one")
    # from nothing, FSDP gets its weights from rank 0
    run("train.py", *args, *(["--fsdp"] if stage == 1 else []), "--out", tmp_path / "two",
        ranks=2)
    one, two = (losses(tmp_path / name, stage) for name in ("one", "two"))
    assert one == pytest.approx(two, abs=2e-4)
    if stage == 0:
        one, two = (torch.load(tmp_path / name / "tokenizer.pt", weights_only=True)
                    for name in ("one", "two"))
        moved = one["weights"]["vq.codebook"] - two["weights"]["vq.codebook"]
        assert moved.norm(dim=1).median() < 1e-2


def test_micro_batches_hold_equally_many_tokens():
    """1 clip of 65 frames, 3 of 17 or 17 images at once, on each of 8 ranks."""
    def sizes(stage, step):
        args = SimpleNamespace(stage=stage, batch_size=PAPER["batch_size"][stage], micro_batch=1,
                               image_every=5, steps=PAPER["steps"][stage])
        every = [micro_batches(args, step, rank, 8) for rank in range(8)]
        keys = [key for micros in every for micro in micros for key in micro]
        assert len(set(keys)) == len(keys) and {key[2] for key in keys} == {keys[0][2]}
        return [len(micro) for micro in every[0]]

    assert sizes(1, 0) == [17, 17, 17, 13] and sizes(3, 1) == [1] * 32
    assert sizes(2, 1) == [3] * 21 + [1] and sizes(3, 0) == [17] * 32


def test_compiled_stage_0_keeps_its_graphs(tmp_path, eager):
    """Encoder and decoder are compiled once for each length, and without
    gradients for the validation, however many micro-batches a step has."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    args = ["--stage", 0, "--steps", 12, "--batch-size", 2, *TINY]
    run("train.py", *args, "--micro-batch", 1, "--compile", "--out", tmp_path / "compiled")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2 * (3 + 1)
    run("train.py", *args, "--out", tmp_path / "plain")
    one, two = (losses(tmp_path / name, 0) for name in ("compiled", "plain"))
    assert one == pytest.approx(two, rel=1e-3)


def test_compiled_fsdp_on_two_nodes(tiny, tmp_path):
    """Two torchruns, each a node of one process: whole weights on each, gradients exchanged
    once per step."""
    script = tmp_path / "eager.py"
    script.write_text(f"""import functools, runpy, sys, torch
sys.path[0] = {ROOT!r}
torch.nn.Module.compile = functools.partialmethod(torch.nn.Module.compile, backend="eager")
torch.compile = functools.partial(torch.compile, backend="eager")
runpy.run_path({ROOT!r} + "/train.py", run_name="__main__")
""")
    args = ["--stage", 3, "--steps", 6, "--batch-size", 4, "--micro-batch", 1, *TINY]
    for name in ("plain", "compiled"):
        start_of(3, tiny, tmp_path / name)
    launch, *rest = command(script, *args, "--fsdp", "--compile", "--checkpoint-activations",
                            "--out", tmp_path / "compiled", ranks=1)
    port = free_port()
    nodes = [subprocess.Popen(
        [launch, *rest[:2], "--nnodes", "2", "--node-rank", str(i), "--master-addr", "localhost",
         "--master-port", str(port), *rest[2:]], env=ONE_THREAD) for i in range(2)]
    run("train.py", *args, "--out", tmp_path / "plain")
    assert [node.wait(timeout=240) for node in nodes] == [0, 0]
    plain, compiled = (losses(tmp_path / name, 3) for name in ("plain", "compiled"))
    assert plain == pytest.approx(compiled, rel=1e-4)


def test_nodes_without_a_shared_disk_are_refused(tiny, monkeypatch):
    """Where one process would resume and another begin, both would wait for ever."""
    def gathered(found, mine):
        found[:] = mine, (False, None)

    monkeypatch.setattr(machine.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(machine.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(machine.dist, "all_gather_object", gathered)
    saved = torch.load(tiny / "stage1.pt", weights_only=True)
    args = SimpleNamespace(out=tiny, stage=1, resume=True, overwrite=False, init=None,
                           **{k: v for k, v in saved["args"].items() if k != "stage"})
    with pytest.raises(ValueError, match="a disk that all nodes share"):
        machine.starting_point(args, ["tokenizer", "stage1"], torch.device("cpu"))


def test_no_loss_where_frames_contradict_the_caption():
    """Against the losses of all tokens; Eq. (2) weighs those that count as before."""
    config = dataclasses.replace(model.PRESETS["toy"], dim=24, n_layers=1, ffn_dim=32, text_len=4,
                                 latent_shape=(6, 2, 2))
    network, text = model.Llama(config), TextTokenizer("bytes")
    tokens = torch.randint(1024, (2, 6, 2, 2))

    def losses(tokens, wrong):
        loss, logs = decoder_loss(network, config, text, tokens, ["a", ""], 1.0, wrong)
        return loss.item(), {name: (float(x), int(n)) for name, (x, n) in logs.items()}

    wrong = torch.zeros(2, 6).bool()
    wrong[0, :2] = True
    plain, every = losses(tokens, None)
    masked, logs = losses(tokens, wrong)
    assert logs["loss_1"][1] == 4 and logs["loss_2-17"][1] == 28 and every["loss_1"][1] == 8
    first = config.text_vocab
    fed = torch.cat([prefix_tokens(config, [[97], []]), tokens.flatten(1)[:, :-1] + first], 1)
    _, each = network(fed, tokens.flatten(1) + first)
    each = each.view(2, 6, 4)
    weights = torch.tensor([2, 2, 2, 2, 2, 1.0])[:, None]
    expected = (weights * each).sum() - (2 * each[0, :2]).sum()
    assert masked == pytest.approx(expected.item() / 2 / 24, rel=1e-5) and masked < plain


def test_gradients_that_are_not_finite(tiny, tmp_path, monkeypatch):
    """Such a step has no effect. Ten in a row end the training, with one line
    and a finite checkpoint."""
    broken, calls, real = (2, 3), itertools.count(), model.weighted_loss

    def weighted_loss(*args):
        loss, losses = real(*args)
        return loss * (float("nan") if next(calls) in broken else 1), losses

    monkeypatch.setattr(model, "weighted_loss", weighted_loss)
    args = ["--stage", 1, "--steps", 20, "--batch-size", 2, "--save-every", 4, *TINY]
    run("train.py", *args, "--out", start_of(1, tiny, tmp_path / "two"))
    lines = metrics(tmp_path / "two", 1)
    assert [m["skipped"] for m in lines] == [0, 0, 1, 2] + 16 * [0]
    assert all(math.isfinite(m["loss"]) for m in lines if not m["skipped"])
    calls, broken = itertools.count(), range(14, 1000)  # after 4 steps, 8 of validation, 2 steps
    out = start_of(1, tiny, tmp_path / "many")
    assert "10 gradients in a row" in fails("train.py", *args, "--out", out)
    assert len(metrics(out, 1)) < 20
    saved, before = (torch.load(out / f"stage1{x}.pt", weights_only=True)
                     for x in ("", ".before"))
    assert all(w.isfinite().all() for w in saved["weights"].values())
    assert before["step"] == saved["step"] - 4  # the last but one is kept


def test_a_full_disk_keeps_the_checkpoint_before(tiny, tmp_path):
    """The first checkpoint fits, the second does not: one line, nothing lost."""
    out = start_of(1, tiny, tmp_path / "out")
    args = ["--stage", 1, "--steps", 4, "--batch-size", 2, "--out", out, *TINY]
    run("train.py", *args)
    before = (out / "stage1.pt").read_bytes()
    full = subprocess.run(
        command("train.py", *args, "--overwrite"), capture_output=True, text=True,
        env=ONE_THREAD, preexec_fn=lambda: resource.setrlimit(
            resource.RLIMIT_FSIZE, (len(before) // 2,) * 2))
    assert full.returncode and "Traceback" not in full.stderr
    assert full.stderr.splitlines()[-1].startswith("train.py: cannot write")
    assert (out / "stage1.pt").read_bytes() == before
    assert not list(out.glob("*.tmp"))


@pytest.mark.parametrize("ranks", [0, 2])
def test_asked_to_stop_it_saves_first(tiny, tmp_path, ranks):
    """Ctrl-C on one process, SIGTERM on two: the step is finished and saved, and the rest
    gives what an uninterrupted run gives."""
    out = start_of(1, tiny, tmp_path / "out")
    args = ["--stage", 1, "--steps", 12, "--batch-size", 2, *TINY, "--out", out]
    args += ["--workers", 1]  # one that gets the signals of its group would die of them
    training = subprocess.Popen(command("train.py", *args, ranks=ranks), env=ONE_THREAD,
                                start_new_session=True,
                                stderr=subprocess.PIPE, text=True, preexec_fn=lambda:
                                signal.signal(signal.SIGINT, signal.default_int_handler))
    while not (out / "metrics.jsonl").exists():
        assert training.poll() is None
        time.sleep(0.01)
    if ranks:  # torchrun passes it on, to groups of processes
        training.send_signal(signal.SIGTERM)
    else:  # as a terminal does
        os.killpg(training.pid, signal.SIGINT)
    error = training.communicate(timeout=120)[1]
    assert training.returncode and error.count("--resume goes on") == 1
    assert "Traceback" not in error or ranks  # torchrun's own
    step = torch.load(out / "stage1.pt", weights_only=True)["step"]
    assert f"saved at step {step}; " in error and 0 < step < 12
    run("train.py", *args, "--resume")
    assert losses(out, 1) == pytest.approx(losses(tiny, 1), rel=1e-4 if ranks else 1e-6)


def test_each_rank_asks_for_its_own_gpu_alone(monkeypatch):
    """On another it would hold memory all the time."""
    asked = mock.Mock(side_effect=ValueError)
    monkeypatch.setattr(machine, "check_device", asked)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ValueError):
        machine.start_processes(SimpleNamespace(preset="toy", device="cuda"))
    asked.assert_called_once_with("cuda:1")


def test_one_training_at_a_time_in_a_folder(tiny, tmp_path):
    """Another process, even of another machine, is refused; a killed one blocks nothing."""
    out = start_of(1, tiny, tmp_path / "out")
    hold = ("import sys; from pathlib import Path; from tools.machine import lock\n"
            "lock(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()")
    other = subprocess.Popen([sys.executable, "-c", hold, out], cwd=ROOT, text=True,
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout.readline() == "held\n"
    train = ["train.py", "--stage", 1, "--steps", 1, "--batch-size", 2, *TINY, "--out", out]
    assert fails(*train) == f"train.py: another training runs in {out}"
    assert not (out / "stage1.pt").exists() and not (out / "metrics.jsonl").exists()
    other.kill()
    other.wait()
    run(*train)


def test_what_is_not_installed_is_named_before_anything_is_lost(tiny, tmp_path, monkeypatch):
    out = shutil.copytree(tiny, tmp_path / "out")
    before = (out / "metrics.jsonl").read_bytes(), (out / "stage1.pt").read_bytes()
    again = ["train.py", "--stage", 1, *TINY, "--out", out, "--overwrite"]
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert fails(*again, "--logger", "wandb") == "train.py: pip install wandb"
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace())  # it needs the other, too
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for name in "wandb", "tensorboard":
        assert fails(*again, "--logger", name) == "train.py: pip install tensorboard"
    monkeypatch.setattr(shutil, "which", lambda name: None)
    compiled = "--compile", "--device", "cpu"
    assert fails(*again, *compiled) == "train.py: --compile needs a C++ compiler (g++)"
    assert "--compile needs" in fails("sample.py", "--ckpt", out, *compiled,
                                      "--out", tmp_path / "a.mp4")
    assert before == ((out / "metrics.jsonl").read_bytes(), (out / "stage1.pt").read_bytes())
    assert not (tmp_path / "a.mp4").exists()


def test_a_training_as_a_picture(tiny, tmp_path, monkeypatch):
    """tools/watch.py ends with the training and draws all of its stages."""
    figures, out = [], shutil.copytree(tiny, tmp_path / "out")
    savefig = pytest.importorskip("matplotlib.figure").Figure.savefig
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, *args, **options: (
        figures.append(figure), savefig(figure, *args, **options)))
    run("tools/watch.py", out)
    (figure,) = figures
    labels = {axes.get_title(): axes.get_legend_handles_labels()[1] for axes in figure.axes}
    assert labels["stage3"] == [*FRAME_RANGES, "validation"]
    width, height = Image.open(out / "watch.png").size
    assert width < height  # four rows
    assert "metrics.jsonl" in fails("tools/watch.py", tmp_path)


@pytest.mark.parametrize("version, warned", [(91002, True), (91500, False)])
def test_old_cudnn_is_named(monkeypatch, capsys, version, warned):
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: version)
    machine.check_cudnn("cuda:0")
    machine.check_cudnn("cpu")
    assert capsys.readouterr().err.count(f"cuDNN {version}") == warned


def test_what_does_not_fit_is_refused(tmp_path, monkeypatch):
    """Before a weight is allocated; and a paper's preset never starts on a CPU by accident."""
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 10 ** 4, "SC_PAGE_SIZE": 4096}.get)
    error = fails("train.py", "--stage", 0, "--out", tmp_path)  # 16 bytes for each of 3.9 M
    assert "0.1 GiB for weights" in error and "0.0 GiB are there" in error
    if not torch.cuda.is_available():
        assert "--device cpu trains 7b" in fails("train.py", "--stage", 1, "--preset", "7b",
                                                 "--out", tmp_path)


@pytest.mark.parametrize("error, line", [
    (ValueError("no clips in a\nand more"), "train.py: no clips in a"),
    (ValueError("Caught ValueError in DataLoader worker process 0.\nTraceback\nValueError: b"),
     "train.py: ValueError: b"),
    (ModuleNotFoundError(name="wandb.sdk"), "train.py: pip install wandb"),
    (ImportError(name="diffusers"), "train.py: pip install -U diffusers"),
    (OSError(), "train.py: OSError"), (RuntimeError("of more"), "train.py: of more"),
    (KeyboardInterrupt(), 130)])
def test_a_script_ends_in_one_line(error, line, monkeypatch):
    def main():
        raise error

    monkeypatch.setattr(sys, "argv", ["folder/train.py"])
    with pytest.raises(SystemExit) as end:
        machine.run_script(main, RuntimeError)
    assert end.value.code == line
    with pytest.raises(ZeroDivisionError):  # a fault of ours keeps its traceback
        machine.run_script(lambda: 1 / 0)


@pytest.mark.parametrize("stage", [0, 1])
def test_a_date_and_time_is_a_seed(tiny, tmp_path, stage):
    out = start_of(1, tiny, tmp_path / "out") if stage else tmp_path
    args = ["train.py", "--stage", stage, "--steps", 2, "--batch-size", 2, *TINY, "--out", out]
    assert fails(*args, "--seed", 2 ** 64).endswith("the seed must be 0 to 2**64 - 1, "
                                                    f"not {2 ** 64}")
    run(*args, "--seed", 20261129143000)
    run(*args, "--seed", 2 ** 64 - 1, "--overwrite")


def test_wrong_calls_are_one_line_and_lose_nothing(tiny, tmp_path):
    before = {name: (tiny / name).read_bytes()
              for name in ("stage1.pt", "metrics.jsonl")}

    def wrong(stage, *flags, out=tiny):
        return fails("train.py", "--stage", stage, "--out", out, *flags)

    again = ("--overwrite",)
    assert "exists" in wrong(1)
    assert "train stage 2 first" in wrong(3, out=tmp_path)
    assert "at least 1" in wrong(1, *again, "--batch-size", 0)
    assert "no device gpu here" in wrong(0, "--device", "gpu", out=tmp_path / "new")
    assert not (tmp_path / "new").exists()
    odd = run("train.py", "--stage", 1, "--out", tiny, *again, "--batch-size", 3,
              ranks=2, ok=False)
    assert "2 processes cannot share --batch-size 3" in odd.stderr
    assert "another config" in wrong(1, *again, "--init", tiny / "stage2.pt", "--dim", 64)
    assert "has steps 12, not 99" in wrong(
        1, "--resume", *TINY, "--batch-size", 2, "--steps", 99)
    saved = torch.load(tiny / "stage1.pt", weights_only=True)
    del saved["optimizer"]  # as experiments/ship.py does
    torch.save(saved, tmp_path / "stage1.pt")
    assert "weights only" in wrong(1, "--resume", *TINY, "--batch-size", 2,
                                   "--steps", 12, out=tmp_path)
    (tmp_path / "stage1.pt").unlink()
    assert "holds tokenizer" in wrong(2, *again, "--init", tiny / "tokenizer.pt")
    classifier = f"{SHIPPED}/classifier.pt"
    assert "holds classifier" in wrong(1, "--init", classifier, out=tmp_path)
    assert "at least 1" in wrong(1, "--n-heads", 0, out=tmp_path)
    assert "--fsdp is for" in wrong(0, "--fsdp", out=tmp_path)
    assert "twice" in wrong(1, *again, "--dim", 30, "--n-heads", 4)
    assert "65536 codes" in wrong(0, "--codebook-size", 70_000, out=tmp_path)
    assert "must be odd" in wrong(0, "--encoder-kernels", 3, 3, 2, 3, out=tmp_path)
    assert "meta.json" in wrong(1, *again, "--videos", tmp_path)
    saved = torch.load(tiny / "stage1.pt", weights_only=True)
    torch.save(saved | {"step": 5}, tmp_path / "stage1.pt")
    assert "is at step 5 of 12" in wrong(2, out=tmp_path)
    (tmp_path / "stage1.pt").write_bytes(before["stage1.pt"][:1000])
    assert "cut short" in wrong(2, out=tmp_path)
    for name, content in before.items():
        assert (tiny / name).read_bytes() == content
