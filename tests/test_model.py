import pytest
import torch
import torch.nn.functional as F

from model import (
    PRESETS,
    KVCache,
    Llama,
    ModelConfig,
    cache_to_compile,
    prefix_tokens,
    rotary,
    rotate,
    weighted_loss,
)

SMALL = ModelConfig(dim=32, n_layers=2, n_heads=4, ffn_dim=48, text_vocab=20,
                    video_vocab=30, text_len=6, latent_shape=(3, 2, 2))


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
    assert tokens.tolist() == [[sot, 1, 2, pad, pad, pad, pad, eot, soi],
                               [sot] + [pad] * 6 + [eot, soi],
                               [sot, 0, 1, 2, 3, 4, 5, eot, soi]]
    special = {pad, sot, eot, soi, SMALL.eoi}
    assert len(special) == 5 and max(special) < SMALL.vocab_size
    assert min(special) == SMALL.text_vocab + SMALL.video_vocab


def test_causal():
    model, tokens = small(), torch.randint(SMALL.vocab_size, (2, 15))
    logits = model(tokens)
    tokens[:, 9] = (tokens[:, 9] + 1) % SMALL.vocab_size
    changed = (model(tokens) - logits).abs().amax((0, 2))
    assert changed[:9].max() < 1e-12 and changed[9:].min() > 1e-6


@pytest.mark.parametrize("lambda_", [0.0, 1.0, 3.0])
def test_weighted_loss_is_eq_2(lambda_):
    """Against the formula, token by token; lambda 0 is Eq. (1)."""
    states, head = torch.randn(3, 8, 5).double(), torch.randn(11, 5).double()
    targets = torch.randint(11, (3, 8))
    expected, each = 0, torch.zeros(3, 8)
    for b in range(3):
        for i in range(8):
            logits = head @ states[b, i]
            p = logits.exp() / logits.exp().sum()
            each[b, i] = -p[targets[b, i]].log()
            expected += (1 + lambda_ if i < 5 else 1) * each[b, i].item()
    loss, losses = weighted_loss(states, head, targets, 5, lambda_)
    assert loss.item() == pytest.approx(expected / 8 / 3, rel=1e-6)
    assert torch.allclose(losses, each, atol=1e-6)


def test_forward_with_targets_is_the_weighted_loss_and_its_gradient():
    """The head sees only the L positions from <soi> on."""
    model = small().float()
    video = torch.randint(30, (2, 12)) + SMALL.text_vocab
    tokens = torch.cat([prefix_tokens(SMALL, [[3, 4], []]), video], 1)
    loss, losses = model(tokens[:, :-1], video, early_tokens=4, lambda_=1.0)
    logits = model(tokens)[:, SMALL.text_len + 2:-1]  # from <soi> on
    each = F.cross_entropy(logits.flatten(0, 1), video.flatten(),
                           reduction="none").view(2, 12)
    weights = torch.ones(12)
    weights[:4] = 2
    expected = (weights * each).mean()
    assert torch.allclose(loss, expected) and torch.allclose(losses, each)
    assert not losses.requires_grad
    ours, theirs = (torch.autograd.grad(x, list(model.parameters()))
                    for x in (loss, expected))
    for a, b in zip(ours, theirs):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("kind", [KVCache, cache_to_compile])
def test_cached_decoding_equals_uncached(kind):
    """The prefix at once, then two tokens, then one by one; and again over
    what the first time left in the cache."""
    model, tokens = small(), torch.randint(SMALL.vocab_size, (2, 15))
    cache = kind(model, 2)
    rows = slice(SMALL.text_vocab, SMALL.text_vocab + SMALL.video_vocab)
    parts = tokens.split([9, 2, 1, 1, 1, 1], 1)
    expected = model(tokens)[:, [8, 10, 11, 12, 13, 14], rows]
    for _ in range(2):
        cache.length, steps = 0, []
        for part in parts:
            cache.advance(part.shape[1])
            steps.append(model.next_logits(part, cache))
        assert torch.allclose(torch.cat(steps, 1).double(), expected, atol=1e-5)
        assert cache.span == (18 if kind is cache_to_compile else 15)  # 22 = 3 blocks of 6 and 4


def test_rotary_is_hugging_faces_and_relative():
    """Channel i pairs with channel i + half: a complex number turned by
    position x theta^(-i / half)."""
    q, k = torch.randn(2, 1, 1, 1, 8).double()

    def turned(x, position):
        cos, sin = rotary(SMALL, torch.tensor([position]))
        return rotate(x, cos.double(), sin.double())

    angle = 7 * 10000.0 ** (-torch.arange(4) / 4).double()
    by_hand = torch.complex(q[..., :4], q[..., 4:]) * torch.exp(1j * angle)
    expected = torch.cat([by_hand.real, by_hand.imag], -1)
    assert torch.allclose(turned(q, 7), expected, atol=1e-5)
    scores = [(turned(q, 5 + s) * turned(k, 2 + s)).sum() for s in (0, 9)]
    assert torch.allclose(*scores, atol=1e-4)
    assert not torch.allclose(scores[0], (turned(q, 6) * turned(k, 2)).sum())


def test_recomputed_activations_change_nothing():
    model, tokens = small().train(), torch.randint(SMALL.vocab_size, (2, 15))
    gradients = []
    for model.model.checkpoint_activations in (False, True):
        model.zero_grad()
        model(tokens[:, :-1], tokens[:, 3:])[0].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.equal(*gradients) and gradients[0].abs().sum() > 0
