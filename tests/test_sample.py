import copy
import dataclasses
import math
import os
import signal
import subprocess
import sys
import time

import av
import imageio.v3
import numpy as np
import pytest
import torch

import sample
from conftest import command, fails, run
from data import FPS, to_float, toy_clip
from model import KVCache, cache_to_compile, prefix_tokens
from sample import generate, generate_batch, generate_tokens, jacobi, load, next_codes
from tools.films import read_clip, write_video
from tools.machine import compiled, set_threads

PROMPT = "a red balloon drifts left slowly past green hills at sunset"


@pytest.fixture(scope="module")
def loaded(tiny):
    return load(str(tiny))


def test_lengths(loaded):
    """65 frames, then 60 at a time, and the last clip cut to the length."""
    model, tokenizer, text = loaded
    for seconds, lengths in ((0.2, [1]), (1, [6]), (10, [65]), (21, [65, 60, 11])):
        clips = list(generate(model, tokenizer, text, PROMPT, seconds))
        assert [len(clip) for clip in clips] == lengths


def test_command_line(tiny, tmp_path):
    """An .mp4 of the right length that decodes, the same under the same seed, another under
    another."""
    videos = []
    for name, seed in (("a.mp4", 0), ("b.mp4", 0), ("c.mp4", 1)):
        run("sample.py", "--ckpt", tiny, "--prompt", PROMPT, "--seconds", 2,
            "--out", tmp_path / name, "--seed", seed,
            ranks=0 if name == "b.mp4" else None)
        videos.append(imageio.v3.imread(tmp_path / name))
    assert all(v.shape == (13, 64, 64, 3) for v in videos)
    assert imageio.v3.immeta(tmp_path / "a.mp4", plugin="pyav")["fps"] == 6.5
    assert (videos[0] == videos[1]).all() and not (videos[0] == videos[2]).all()
    assert sorted(os.listdir(tmp_path)) == ["a.mp4", "b.mp4", "c.mp4"]  # nothing left behind


def test_wrong_calls_are_one_line_and_lose_nothing(tiny, tmp_path):
    out = tmp_path / "a.mp4"
    out.write_text("precious")
    ask = ["--prompt", PROMPT, "--ckpt", tiny, "--out", out]
    assert run("sample.py", *ask, "--ckpt", tmp_path, ranks=0, ok=False).stderr.strip() == \
        f"sample.py: [Errno 2] No such file or directory: '{tmp_path}/stage3.pt'"
    assert "seconds have no frame" in fails("sample.py", *ask, "--seconds", -1)
    assert "0 seconds have no frame" in fails("sample.py", *ask, "--seconds", 0.05)
    for device in ("gpu", "mps", "cuda"):
        if device != "cuda" or not torch.cuda.is_available():
            assert f"no device {device} here" in fails("sample.py", *ask, "--device", device)
    for flag, value in (("--top-k", 0), ("--temperature", 0), ("--temperature", "nan"),
                        ("--seconds", "inf"), ("--cfg-scale", "nan"), ("--cfg-scale", "inf"),
                        ("--seed", -1), ("--seed", 2 ** 64), ("--floor", 1.5), ("--floor", "nan"),
                        ("--window", 0), ("--context", 7), ("--context", 0), ("--context", 65)):
        assert flag.strip("-") in fails("sample.py", *ask, flag, value)
    assert "no folder" in fails("sample.py", *ask, "--out", tmp_path / "no" / "a.mp4")
    assert "must end in" in fails("sample.py", *ask, "--out", tmp_path / "a.png")
    assert "not a readable video" in fails("sample.py", *ask, "--continue-from", "")
    (tmp_path / "folder.mp4").mkdir()
    assert "Is a directory" in fails("sample.py", *ask, "--out", tmp_path / "folder.mp4")
    assert "No such file" in fails("sample.py", *ask, "--out", "/proc/a.mp4")  # not even by root
    for name in ("tokenizer.pt", "stage3.pt"):
        (tmp_path / name).write_bytes((tiny / name).read_bytes())
    other = torch.load(tmp_path / "tokenizer.pt", weights_only=True)
    other["weights"]["vq.codebook"] += 1
    torch.save(other, tmp_path / "tokenizer.pt")
    assert "another tokenizer" in fails("sample.py", *ask, "--ckpt", tmp_path)
    (tmp_path / "stage3.pt").write_bytes(b"PK\3\4 rubbish")
    assert "no checkpoint" in fails("sample.py", *ask, "--ckpt", tmp_path)
    for second in (0, -1, 10, 11, "inf"):
        assert "--at needs seconds" in fails("sample.py", *ask, "--at", second, "b")
    assert "--at needs seconds" in fails("sample.py", *ask, "--at", 5, "b", "--at", 4, "c")
    assert "could not convert" in fails("sample.py", *ask, "--at", "soon", "b")
    assert out.read_text() == "precious"


def frames_in(video):
    with av.open(str(video)) as file:
        return sum(1 for _ in file.decode(video=0))


def test_an_interrupt_or_a_crash_leaves_a_video_that_plays(tiny, tmp_path):
    """Ctrl-C and SIGKILL keep what was made so far; before the first frame nothing is touched."""
    def interruptible():  # nohup's children would ignore it
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    for stop in (signal.SIGINT, signal.SIGKILL):
        sampler = subprocess.Popen(
            command("sample.py", "--ckpt", tiny, "--prompt", PROMPT, "--seconds", 600,
                    "--out", tmp_path / "a.mp4"),
            stderr=subprocess.DEVNULL, preexec_fn=interruptible)
        size = []
        part = tmp_path / "a.mp4"
        part.unlink(missing_ok=True)
        while len(size) < 600 and not (
                size and size[-1] > 5000 and size[-3:].count(size[-1]) == 3):
            time.sleep(0.1)  # until a clip is written
            size.append(os.path.getsize(part) if part.exists() else 0)
        sampler.send_signal(stop)
        assert sampler.wait(timeout=60) == (130 if stop == signal.SIGINT else -stop)
        assert frames_in(part) >= 50
    before = part.read_bytes()
    with pytest.raises(ValueError, match="no frame"):
        write_video(part, [], FPS)
    assert part.read_bytes() == before and os.listdir(tmp_path) == ["a.mp4"]


def test_a_batch_gives_the_videos_that_one_call_each_gives(loaded):
    prompts, seeds = [PROMPT, "a blue car", PROMPT], [3, 4, 5]
    batch = next(generate_batch(*loaded, prompts, 1, seeds=seeds))
    for prompt, seed, clip in zip(prompts, seeds, batch):
        assert (clip == next(generate(*loaded, prompt, 1, seed=seed))).all()
    assert not (batch[0] == batch[2]).all()
    for prompts, options, reason in (
            ([], {}, "0 prompts"), ([PROMPT], {"seeds": [1, 2]}, "2 seeds"),
            ([PROMPT], {"start": batch[0][:, :32]}, "start must be")):
        with pytest.raises(ValueError, match=reason):
            next(generate_batch(*loaded, prompts, 1, **options))


@pytest.mark.parametrize("cut", [True, False])
def test_prompts_that_change(cut, tiny, loaded, tmp_path, monkeypatch):
    """Each from its second on and with noise of its own: by a cut as if sampled by itself, else
    from the frames before it, of which there may be fewer than the context."""
    films, start = [], None
    monkeypatch.setattr("tools.films.write_video",
                        lambda path, clips, fps: films.append(list(clips)))
    monkeypatch.setattr(sys, "argv", [
        "sample.py", "--ckpt", str(tiny), "--prompt", PROMPT, "--seconds", "12", "--no-compile",
        "--at", "0.5", "a blue car", "--at", "11", PROMPT,
        "--context", str(context := 5 if cut else 9), *["--cut"] * cut])
    sample.main()
    parts = [3, 65, 4, 6] if cut else [3, 64, 5, 6]
    assert [len(clip) for clip in films[0]] == parts
    for seed, (prompt, n) in enumerate(((PROMPT, 3), ("a blue car", 69), (PROMPT, 6))):
        scene = np.concatenate(list(generate(
            *loaded, prompt, n / FPS, seed, start=start, context=context)))
        found = np.concatenate(films[0])[(0, 3, 72)[seed]:][:n]
        assert (found == scene).all()
        start = None if cut else np.concatenate(films[0])[:(3, 72, 0)[seed]][-context:]


def test_going_on_from_a_video(tiny, loaded, tmp_path):
    """The first clip is conditioned on the last 5 frames of the file, and only new frames come
    out."""
    model, tokenizer, text = loaded
    run("sample.py", "--ckpt", tiny, "--prompt", PROMPT, "--seconds", 3,
        "--out", tmp_path / "a.mp4")
    last = read_clip(tmp_path / "a.mp4", 5, FPS, 64, last=True)
    assert last.shape == (5, 64, 64, 3)
    assert (last == imageio.v3.imread(tmp_path / "a.mp4")[-5:]).mean() > 0.5
    run("sample.py", "--ckpt", tiny, "--continue-from", tmp_path / "a.mp4",
        "--seconds", 2, "--out", tmp_path / "b.mp4")
    assert frames_in(tmp_path / "b.mp4") == 13
    assert "would replace" in fails("sample.py", "--ckpt", tiny, "--continue-from",
                                    tmp_path / "a.mp4", "--out", f"{tmp_path}/./a.mp4")
    starts = [toy_clip(np.random.default_rng(i), 5)[0] for i in range(2)]
    videos = [list(generate_batch(model, tokenizer, text, ["", PROMPT], 12,
                                  start=start, seeds=[0, 1])) for start in starts]
    assert [clips.shape[:2] for clips in videos[0]] == [(2, 60), (2, 18)]
    assert not (videos[0][0] == videos[1][0]).all()
    write_video(tmp_path / "short.mp4", [np.zeros((3, 64, 64, 3), np.uint8)], FPS)
    ask = ["sample.py", "--ckpt", tiny, "--continue-from"]
    assert "too short" in fails(*ask, tmp_path / "short.mp4")
    assert "not a readable video" in fails(*ask, __file__)


@pytest.mark.parametrize("context", [1, 9, 33])
def test_context(context, loaded, monkeypatch):
    """So many frames condition the next clip, and the same clips are as long as they can be."""
    encoded, encode = [], loaded[1].encode
    monkeypatch.setattr(loaded[1], "encode", lambda x: encoded.append(x.shape[2]) or encode(x))
    clips = list(generate(*loaded, PROMPT, 20, context=context))
    assert len(clips[1]) == 65 - context and set(encoded) == {context}
    assert sum(map(len, clips)) == 130


def test_in_python_zero_is_not_the_default(loaded):
    for name, x in (("temperature", 0), ("temperature", -1), ("top_k", 0), ("window", 0)):
        with pytest.raises(ValueError, match="must be positive"):
            next(generate(*loaded, PROMPT, 1, **{name: x}))
    with pytest.raises(ValueError, match="no frame"):
        next(generate(*loaded, PROMPT, 0))
    with pytest.raises(ValueError, match="seed must be"):
        next(generate(*loaded, PROMPT, 1, seed=None))


def test_rows_do_not_depend_on_their_neighbours(loaded):
    model, _, text = loaded
    prefix = prefix_tokens(model.config, [text.encode(PROMPT), text.encode("a blue car"), []])

    def draw(rows, cfg_scale):
        generators = [torch.Generator().manual_seed(i) for i in rows]
        return generate_tokens(model, prefix[rows], 20, cfg_scale, 10, 1.0, generators)

    for cfg_scale in (1.0, 3.0):
        codes = draw([0, 1, 2], cfg_scale)
        assert codes.shape == (3, 20)
        assert codes.min() >= 0 and codes.max() < model.config.video_vocab
        assert (codes[[2, 0]] == draw([2, 0], cfg_scale)).all()
        assert not (codes[0] == codes[1]).all()


def test_tokens_are_drawn_from_the_guided_top_k(loaded, monkeypatch):
    """One step against the formula: greedy is the argmax of uncond + s (cond - uncond);
    frequencies follow softmax."""
    model, _, text = loaded
    model = model.double()
    c = model.config
    cond, empty = prefix_tokens(c, [text.encode(PROMPT)]), prefix_tokens(c, [[]])
    rows = slice(c.text_vocab, c.text_vocab + c.video_vocab)
    a, b = (model(p)[0, -1, rows] for p in (cond, empty))
    guided = b + 5.0 * (a - b)
    first = generate_tokens(model, cond, 1, 5.0, 1, 1.0, [torch.Generator()])
    assert first.item() == guided.argmax().item()
    n = 1200
    generators = [torch.Generator().manual_seed(i) for i in range(n)]
    monkeypatch.setattr(model, "config", dataclasses.replace(c, latent_shape=(1, 1, 1)))
    drawn = generate_tokens(model, cond.expand(n, -1), 1, 5.0, 4, 3.0, generators,
                            cache=KVCache(model, 2 * n))
    best, ids = (guided / 3.0).topk(4)
    share = torch.stack([(drawn == i).double().mean() for i in ids])
    expected = best.softmax(0)
    assert expected.max() < 0.9  # there is something to draw
    assert torch.allclose(share, expected, atol=0.05) and torch.isin(drawn, ids).all()
    # the floor looks at the probabilities with the caption, before guidance
    far, p = b + 50.0 * (a - b), a.softmax(0)
    floor = 1.01 * (p[far.argmax()] / p.max()).item()
    assert floor < 1
    best = far.masked_fill(p < floor * p.max(), -math.inf).argmax()
    for least, code in ((0.0, far.argmax()), (floor, best)):
        first = generate_tokens(model, cond, 1, 50.0, 1, 1.0, [torch.Generator()], floor=least)
        assert first.item() == code.item()
    assert best != far.argmax()
    model.float()


@pytest.mark.parametrize("cfg_scale", [1.0, 1.5])
def test_guessed_tokens_are_those_drawn_one_by_one(cfg_scale, monkeypatch):
    """Of the shipped weights in float64, where hardly anything is rounded: one
    row and three, with the first frame known and without."""
    model, _, text = load()
    model.double()
    c, calls, real = model.config, [], next_codes

    def counted(*args):
        calls.append(1)
        return real(*args)

    monkeypatch.setattr(sample, "next_codes", counted)
    prompts = [text.encode(p) for p in (PROMPT, "a red car drives left by day", "")]

    def write(prefix, n, window):
        calls.clear()
        generators = [torch.Generator().manual_seed(i) for i in range(len(prefix))]
        how = {"window": window} if window > 1 else {}
        codes = (jacobi if window > 1 else generate_tokens)(
            model, prefix, n, cfg_scale, 50, 0.7, generators, draw=counted, **how)
        return codes, len(calls)

    for rows, n, windows in ((1, 80, (5, 500)), (3, 66, (16,))):
        prefix = prefix_tokens(c, prompts[:rows])
        plain, passes = write(prefix, n, 1)
        assert passes == n and plain.shape == (rows, n)
        for window in windows:
            guessed, passes = write(prefix, n, window)
            assert (guessed == plain).all() and passes < n
    known = torch.cat([prefix, plain[:, :64] + c.text_vocab], 1)
    assert (write(known, 30, 1)[0] == write(known, 30, 9)[0]).all()


@pytest.mark.parametrize("window", [1, 8])
def test_clips_of_all_lengths_share_their_graphs(loaded, window, eager):
    """One for each quarter of the cache, in a first clip, later ones and a short last one."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    graphs = []
    for clip in generate_batch(*loaded, [PROMPT], 25, window=window, compile=True):
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert len(graphs) == 3 and 2 <= graphs[0] <= 4 and graphs[-1] == graphs[0]


def test_the_compiled_step_draws_the_same_tokens(loaded, tiny, tmp_path, monkeypatch):
    """For real, over two lengths of the cache, by guessing, in a second video, too, and by
    another model, whose layers are others; and --compile takes it."""
    first, _, text = loaded
    other = copy.deepcopy(first)
    other.model.layers = first.model.layers[::-1]
    how = 210, 3.0, 10, 1.0
    for seed, (prompt, model) in enumerate(((PROMPT, first), ("another", first), (PROMPT, other))):
        prefix = prefix_tokens(model.config, [text.encode(prompt)])
        plain = generate_tokens(model, prefix, *how, [torch.Generator().manual_seed(seed)])
        fast = jacobi(model, prefix, *how, [torch.Generator().manual_seed(seed)], window=8,
                      cache=cache_to_compile(model, 2, 8), draw=compiled(next_codes, "cpu"))
        assert (plain == fast).all()
    calls = []
    monkeypatch.setattr("tools.machine.compiled", lambda step, device: (
        calls.append(1) or step))
    for flag in ("--no-compile", "--compile"):
        monkeypatch.setattr(sys, "argv", [
            "sample.py", "--ckpt", str(tiny), "--prompt", PROMPT, "--seconds", "0.2",
            "--out", str(tmp_path / "a.mp4"), flag])
        sample.main()
        assert bool(calls) == (flag == "--compile")


def test_one_thread_for_a_small_model_unless_told_otherwise(tiny, tmp_path):
    """Beside a busy process two threads wait for each other at every operation."""
    script = ("import sample, torch; model = sample.load({!r})[0];"
              "sample.machine.set_threads(model); print(torch.get_num_threads())")
    for env, threads in (({}, "1"), ({"OMP_NUM_THREADS": "2"}, "2")):
        without = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
        done = subprocess.run([sys.executable, "-c", script.format(str(tiny))],
                              env=without | env, cwd=os.path.dirname(sample.__file__),
                              capture_output=True, text=True)
        assert done.stdout.strip() == threads, done.stderr


@pytest.mark.parametrize("fastest", [1, 2])
def test_as_many_threads_as_are_fastest(fastest, loaded, monkeypatch):
    """Where two are allowed, a trial decides: seconds that a quiet and a busy machine could
    take."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("timeit.timeit", lambda *args, **options: (
        0.1 if torch.get_num_threads() == fastest else 0.2))
    before = torch.get_num_threads()
    try:
        set_threads(loaded[0], most=2)
        assert torch.get_num_threads() == fastest
        set_threads(loaded[0])
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_extension_starts_from_the_reencoded_last_frames(loaded, monkeypatch):
    """The second clip is conditioned on encode(last 5 frames as written); without re-encoding on
    the old tokens."""
    model, tokenizer, text = loaded
    seen = []

    def spy(model, prefix, n, *rest, **how):
        codes = jacobi(model, prefix, n, *rest, **how)
        seen.append((prefix[0, model.config.text_len + 3:] - model.config.text_vocab, codes[0]))
        return codes

    monkeypatch.setattr(sample, "jacobi", spy)
    clips = list(generate(model, tokenizer, text, PROMPT, seconds=12))
    assert [len(c) for c in clips] == [65, 13] and clips[0].dtype == np.uint8
    assert (seen[1][0] == tokenizer.encode(to_float(clips[0][-5:])[None]).flatten()).all()
    seen.clear()
    list(generate(model, tokenizer, text, PROMPT, seconds=12, reencode=False))
    assert (seen[1][0] == seen[0][1][-2 * 64:]).all()


def test_no_prompt_is_unconditional_and_strange_words_are_fine(loaded):
    for prompt in ("", "crème brûlée 🍮 " * 50):
        assert next(generate(*loaded, prompt, seconds=0.5)).shape == (3, 64, 64, 3)
