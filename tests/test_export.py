"""tools/export.py: transformers computes what we compute."""
import sys

import pytest
import torch

from conftest import fails, run
from model import Llama, ModelConfig, prefix_tokens
from sample import jacobi, load
from tools.export import export

SMALL = ModelConfig(dim=32, n_layers=2, n_heads=4, ffn_dim=48, text_vocab=20,
                    video_vocab=30, text_len=6, latent_shape=(3, 2, 2))


@torch.no_grad()
def difference(theirs, ours):
    tokens = torch.randint(ours.config.vocab_size, (2, 15))
    logits = ours(tokens)
    assert logits.abs().max() > 0.1  # there is something to compare
    return (theirs(tokens).logits - logits).abs().max()


def test_hugging_face_reads_our_weights_and_we_theirs(tmp_path):
    """Both directions: export -> from_pretrained, and the state dict of a
    LlamaForCausalLM -> ours."""
    transformers = pytest.importorskip("transformers")
    ours = Llama(SMALL).eval()
    for p in ours.parameters():
        torch.nn.init.normal_(p, std=0.3)
    export(ours, tmp_path / "hf")
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "hf")
    theirs.eval()
    assert difference(theirs, ours) < 1e-4
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.3)
    assert difference(theirs, ours) > 0.1
    ours.load_state_dict(theirs.state_dict())
    assert difference(theirs, ours) < 1e-4


def test_command_line(tiny, tmp_path):
    """A trained checkpoint, whose rotary base is the toy's."""
    transformers = pytest.importorskip("transformers")
    run("tools/export.py", tmp_path / "hf", "--ckpt", tiny)
    names = sorted(path.name for path in (tmp_path / "hf").iterdir())
    assert names == ["config.json", "generation_config.json", "model.safetensors"]
    ours, _, _ = load(str(tiny))
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "hf")
    assert difference(theirs.eval(), ours) < 1e-4
    config = ours.config
    assert theirs.config.max_position_embeddings == config.max_len
    ids = [theirs.config.pad_token_id, theirs.config.bos_token_id,
           theirs.config.eos_token_id]
    assert ids == [None, config.sot, config.eoi]


def test_generate_writes_the_same_tokens(tmp_path):
    """The shipped weights: the first four latent frames, greedily, by
    transformers and by us, with guesses and without. Padding is attended to
    although nobody passes a mask."""
    transformers = pytest.importorskip("transformers")
    ours, _, text = load()
    config, n = ours.config, 256
    prompt = "a red car drives left quickly past a city by day"
    prefix = prefix_tokens(config, [text.encode(prompt)])
    run("tools/export.py", tmp_path / "hf")
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "hf").eval()
    ids = theirs.generate(prefix, do_sample=False, max_new_tokens=n)
    expected = ids[:, prefix.shape[1]:] - config.text_vocab
    assert len(expected.unique()) > 20
    for window in (1, 16):
        codes = jacobi(ours, prefix, n, cfg_scale=1, top_k=1, temperature=1.0,
                                generators=[torch.Generator()], window=window)
        assert torch.equal(codes, expected)


def test_errors_are_one_line(tiny, tmp_path, monkeypatch):
    error = fails("tools/export.py", tmp_path / "hf", "--ckpt", tmp_path)
    assert error.startswith("export.py: ") and "stage3.pt" in error
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    error = fails("tools/export.py", tmp_path / "hf", "--ckpt", tiny)
    assert error == "export.py: pip install safetensors"
    assert not (tmp_path / "hf").exists()
