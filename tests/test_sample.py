import imageio.v3
import numpy as np
import pytest
import torch
from conftest import fails, run

from data import to_float
from model import prefix_tokens
from sample import generate, generate_tokens, load, plan

PROMPT = "a small red circle moves left and right slowly on a gray background"


@pytest.fixture(scope="module")
def loaded(tiny):
    return load(str(tiny))


def test_lengths():
    assert plan(10, 17) == [(0, 65, 17)]
    assert sum(n for _, n, _ in plan(60, 17)) == 390 and len(plan(60, 17)) == 7
    assert plan(60, 17)[1] == (65, 60, 15) and plan(60, 17)[-1] == (365, 25, 7)
    assert plan(0.2, 17) == [(0, 1, 1)] and plan(1, 17) == [(0, 6, 3)]


def test_command_line(tiny, tmp_path):
    """An .mp4 of the right length that decodes, the same under the same seed, another under another."""
    videos = []
    for name, seed in (("a.mp4", 0), ("b.mp4", 0), ("c.mp4", 1), ("d.gif", 0)):
        run("sample.py", "--ckpt", tiny, "--prompt", PROMPT, "--seconds", 2, "--out", tmp_path / name, "--seed", seed)
        videos.append(imageio.v3.imread(tmp_path / name))
    assert all(v.shape == (13, 64, 64, 3) for v in videos)
    assert imageio.v3.immeta(tmp_path / "a.mp4", plugin="pyav")["fps"] == 6.5
    assert (videos[0] == videos[1]).all() and not (videos[0] == videos[2]).all()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "b.mp4", "c.mp4", "d.gif"]  # nothing left behind


def test_wrong_calls_are_one_line_and_lose_nothing(tiny, tmp_path):
    out = tmp_path / "a.mp4"
    out.write_text("precious")
    ask = ["--prompt", PROMPT, "--ckpt", tiny, "--out", out]
    assert "does not exist" in fails("sample.py", *ask, "--ckpt", tmp_path)
    assert "positive" in fails("sample.py", *ask, "--seconds", -1)
    assert "not even one frame" in fails("sample.py", *ask, "--seconds", 0.01)
    assert "top-k" in fails("sample.py", *ask, "--top-k", 0)
    assert "cannot write" in fails("sample.py", *ask, "--out", tmp_path / "no" / "a.mp4")
    assert "must end in" in fails("sample.py", *ask, "--out", tmp_path / "a.png")
    for name in ("tokenizer.pt", "stage3.pt"):
        (tmp_path / name).write_bytes((tiny / name).read_bytes())
    other = torch.load(tmp_path / "tokenizer.pt", weights_only=True)
    other["weights"]["vq.codebook"] += 1
    torch.save(other, tmp_path / "tokenizer.pt")
    assert "another tokenizer" in fails("sample.py", *ask, "--ckpt", tmp_path)
    (tmp_path / "stage3.pt").write_bytes(b"PK\3\4 rubbish")
    assert "no checkpoint" in fails("sample.py", *ask, "--ckpt", tmp_path)
    assert out.read_text() == "precious"


def test_rows_do_not_depend_on_their_neighbours(loaded):
    model, _, text = loaded
    prefix = prefix_tokens(model.config, [text.encode(PROMPT), text.encode("a large one"), []])

    def draw(rows, cfg_scale):
        generators = [torch.Generator().manual_seed(i) for i in rows]
        return generate_tokens(model, prefix[rows], 20, cfg_scale, 10, 1.0, generators)

    for cfg_scale in (1.0, 3.0):
        codes = draw([0, 1, 2], cfg_scale)
        assert codes.shape == (3, 20) and codes.min() >= 0 and codes.max() < model.config.video_vocab
        assert (codes[[2, 0]] == draw([2, 0], cfg_scale)).all()
        assert not (codes[0] == codes[1]).all()


def test_tokens_are_drawn_from_the_guided_top_k(loaded):
    """One step against the formula: greedy is the argmax of uncond + s (cond - uncond); frequencies follow softmax."""
    model, _, text = loaded
    model = model.double()
    c = model.config
    cond, empty = prefix_tokens(c, [text.encode(PROMPT)]), prefix_tokens(c, [[]])
    rows = slice(c.text_vocab, c.text_vocab + c.video_vocab)
    a, b = (model(p)[0, -1, rows] for p in (cond, empty))
    guided = b + 5.0 * (a - b)
    first = generate_tokens(model, cond, 1, 5.0, 1, 1.0, [torch.Generator()])
    assert first.item() == guided.argmax().item()
    n = 4000
    drawn = generate_tokens(model, cond.expand(n, -1), 1, 5.0, 4, 0.5, [torch.Generator().manual_seed(i) for i in range(n)])
    best, ids = (guided / 0.5).topk(4)
    share = torch.stack([(drawn == i).double().mean() for i in ids])
    assert torch.allclose(share, best.softmax(0).double(), atol=0.04) and share.sum() == 1
    model.float()


def test_extension_starts_from_the_reencoded_last_frames(loaded, monkeypatch):
    """The second clip is conditioned on encode(last 5 frames as written); without re-encoding on the old tokens."""
    import sample
    model, tokenizer, text = loaded
    seen = []

    def spy(model, prefix, n, *rest):
        codes = generate_tokens(model, prefix, n, *rest)
        seen.append((prefix[0, model.config.text_len + 3:] - model.config.text_vocab, codes[0]))
        return codes

    monkeypatch.setattr(sample, "generate_tokens", spy)
    clips = list(generate(model, tokenizer, text, PROMPT, seconds=12))
    assert [len(c) for c in clips] == [65, 13] and clips[0].dtype == np.uint8
    assert (seen[1][0] == tokenizer.encode(to_float(clips[0][-5:])[None]).flatten()).all()
    seen.clear()
    list(generate(model, tokenizer, text, PROMPT, seconds=12, reencode=False))
    assert (seen[1][0] == seen[0][1][-2 * 64:]).all()


def test_no_prompt_is_unconditional_and_strange_words_are_fine(loaded):
    for prompt in ("", "crème brûlée 🍮 " * 50):
        assert next(generate(*loaded, prompt, seconds=0.5)).shape == (3, 64, 64, 3)
