import pytest
import torch

import model as model_file
from model import PRESETS, KVCache, Llama, ModelConfig, export, prefix_tokens, rotary, rotate, weighted_loss

SMALL = ModelConfig(dim=32, n_layers=2, n_heads=4, ffn_dim=48, text_vocab=20, video_vocab=30, text_len=6,
                    latent_shape=(3, 2, 2))


def small():
    model = Llama(SMALL).double().eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model


def test_parameter_counts():
    for name, count in (("700m", 0.69e9), ("3b", 2.96e9), ("7b", 6.81e9)):
        with torch.device("meta"):
            assert abs(sum(p.numel() for p in Llama(PRESETS[name]).parameters()) / count - 1) < 0.02
        assert PRESETS[name].vocab_size == 40202
    with torch.device("meta"):
        assert sum(p.numel() for p in Llama(PRESETS["toy"]).parameters()) < 8e6


def test_prefix_has_one_length():
    tokens = prefix_tokens(SMALL, [[1, 2], [], list(range(20))])
    pad, sot, eot, soi = SMALL.pad, SMALL.sot, SMALL.eot, SMALL.soi
    assert tokens.tolist() == [[sot, 1, 2, pad, pad, pad, pad, eot, soi], [sot] + [pad] * 6 + [eot, soi],
                               [sot, 0, 1, 2, 3, 4, 5, eot, soi]]
    assert len({pad, sot, eot, soi}) == 4 and max(pad, sot, eot, soi) < SMALL.vocab_size


def test_causal():
    model, tokens = small(), torch.randint(SMALL.vocab_size, (2, 15))
    logits = model(tokens)
    tokens[:, 9] = (tokens[:, 9] + 1) % SMALL.vocab_size
    changed = (model(tokens) - logits).abs().amax((0, 2))
    assert changed[:9].max() < 1e-12 and changed[9:].min() > 1e-6


@pytest.mark.parametrize("early_weight", [1.0, 2.0, 4.0])
def test_weighted_loss_is_eq_2(early_weight):
    logits, targets = torch.randn(3, 8, 11).double(), torch.randint(11, (3, 8))
    expected = 0
    for b in range(3):
        for i in range(8):
            p = logits[b, i].exp() / logits[b, i].exp().sum()
            expected -= (early_weight if i < 5 else 1) * p[targets[b, i]].log()
    assert torch.allclose(weighted_loss(logits, targets, 5, early_weight).double(), expected / 8 / 3, atol=1e-6)


def test_forward_with_targets_is_the_weighted_loss(monkeypatch):
    model = small().float()
    video = torch.randint(30, (2, 12)) + SMALL.text_vocab
    tokens = torch.cat([prefix_tokens(SMALL, [[3, 4], []]), video], 1)
    monkeypatch.setattr(model_file, "CHUNK", 5)  # 24 positions in five chunks
    loss, losses = model(tokens[:, :-1], video, early_tokens=4, early_weight=2.0)
    logits = model(tokens)[:, SMALL.text_len + 2:-1]  # from <soi> on
    expected = weighted_loss(logits, video, 4, 2.0)
    assert torch.allclose(loss, expected) and losses.shape == (2, 12)
    for p, q in zip(*(torch.autograd.grad(value, list(model.parameters())) for value in (loss, expected))):
        assert torch.allclose(p, q, atol=1e-6)
    assert torch.allclose(losses.mean(), weighted_loss(logits, video, 4, 1.0))


@pytest.mark.parametrize("fused", [False, True])
def test_cached_decoding_equals_uncached(fused):
    """The prefix at once, then two tokens at once, then one by one; and again over what the first time left there."""
    model, tokens = small(), torch.randint(SMALL.vocab_size, (2, 15))
    cache = KVCache(SMALL, 2, 15, torch.float64, "cpu")
    rows = slice(SMALL.text_vocab, SMALL.text_vocab + SMALL.video_vocab)
    parts = tokens.split([9, 2, 1, 1, 1, 1], 1)
    expected = model(tokens)[:, [8, 10, 11, 12, 13, 14], rows]
    if fused:
        weights = model.state_dict()
        assert all((w == weights[name]).all() for name, w in model.fuse().state_dict().items()) and len(weights) > 2
    for _ in range(2):
        cache.length, steps = 0, []
        for part in parts:
            cache.advance(part.shape[1])
            steps.append(model.video_logits(part, cache))
        assert torch.allclose(torch.stack(steps, 1).double(), expected, atol=1e-5)


def test_rotary_is_hugging_faces_and_relative():
    """Channel i pairs with channel i + half: a complex number turned by position x theta^(-i / half)."""
    q, k = torch.randn(2, 1, 1, 1, 8).double()

    def turned(x, position):
        cos, sin = rotary(SMALL, torch.tensor([position]))
        return rotate(x, cos.double(), sin.double())

    by_hand = torch.complex(q[..., :4], q[..., 4:]) * torch.exp(1j * 7 * 10000.0 ** (-torch.arange(4) / 4).double())
    assert torch.allclose(turned(q, 7), torch.cat([by_hand.real, by_hand.imag], -1), atol=1e-5)
    scores = [(turned(q, 5 + s) * turned(k, 2 + s)).sum() for s in (0, 9)]
    assert torch.allclose(*scores, atol=1e-4) and not torch.allclose(scores[0], (turned(q, 6) * turned(k, 2)).sum())


def test_hugging_face_reads_our_weights_and_we_theirs(tmp_path):
    """Both directions, logits within 1e-4: export -> from_pretrained, and a fresh LlamaForCausalLM's state dict -> ours."""
    transformers = pytest.importorskip("transformers")
    model, tokens = small().float(), torch.randint(SMALL.vocab_size, (2, 15))
    export(model, tmp_path / "hf")
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "hf").eval()
    with torch.no_grad():
        assert (theirs(tokens).logits - model(tokens)).abs().max() < 1e-4
        for p in theirs.parameters():
            torch.nn.init.normal_(p, std=0.3)
        model.load_state_dict(theirs.state_dict())
        assert (theirs(tokens).logits - model(tokens)).abs().max() < 1e-4 < model(tokens).abs().max()


def test_recomputed_activations_change_nothing():
    model, tokens = small().train(), torch.randint(SMALL.vocab_size, (2, 15))
    gradients = []
    for model.model.checkpoint_activations in (False, True):
        model.zero_grad()
        model(tokens[:, :-1], tokens[:, 3:])[0].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.equal(*gradients) and gradients[0].abs().sum() > 0
