import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from tokenizer import (
    TOKENIZER_PRESETS,
    ClusteringVQ,
    TokenizerConfig,
    TokenizerLoss,
    VideoTokenizer,
)

SMALL = TokenizerConfig(resolution=32, base_channels=8, multipliers=(1, 1, 2, 2),
                        encoder_blocks=(1, 1, 1, 1), decoder_blocks=(1, 1, 1, 1),
                        codebook_size=64)


def small():
    """A tokenizer whose weights of past frames are not the zeros they start
    from, in float64."""
    tokenizer = VideoTokenizer(SMALL).double().eval()
    for p in tokenizer.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return tokenizer


def test_shapes_and_sizes():
    tokenizer = small()
    for frames, latents in ((1, 1), (5, 2), (17, 5), (65, 17)):
        tokens = tokenizer.encode(torch.rand(2, 3, frames, 32, 32).double() * 2 - 1)
        assert tokens.shape == (2, latents, 4, 4) and tokens.dtype == torch.int64
        assert tokens.max() < 64
        assert tokenizer.decode(tokens[:1]).shape == (1, 3, frames, 32, 32)
    with torch.device("meta"):
        count = {name: sum(p.numel() for p in VideoTokenizer(config).parameters())
                 for name, config in TOKENIZER_PRESETS.items()}
    assert count["toy"] < 4e6 and abs(count["paper"] / 246e6 - 1) < 0.02


def test_what_is_decoded_is_what_training_saw():
    """Whatever the length of the codes."""
    model, video = small(), torch.rand(1, 3, 17, 32, 32).double() * 2 - 1
    model.vq.codebook.data *= 3
    with torch.no_grad():
        recon, tokens, _ = model(video)
        assert (tokens == model.encode(video)).all()
        torch.testing.assert_close(recon, model.decode(tokens), rtol=1e-4, atol=1e-5)


def test_strictly_causal():
    """Later frames change nothing: not an encoded prefix, not a decoded one."""
    tokenizer = small()
    video = torch.rand(1, 3, 33, 32, 32).double() * 2 - 1
    tokens = tokenizer.encode(video)
    decoded = tokenizer.decode(tokens)
    assert len(tokens.unique()) > 5
    for frames in (1, 5, 9, 17):
        t = 1 + (frames - 1) // 4
        assert (tokenizer.encode(video[:, :, :frames]) == tokens[:, :t]).all()
        assert torch.allclose(tokenizer.decode(tokens[:, :t]), decoded[:, :, :frames], atol=1e-9)
    other = video.clone()
    other[:, :, 16] = 0  # the last frame that latent frame 4 may see
    changed = (tokenizer.encode(other) != tokens).flatten(2).any(2)[0]
    assert changed[4] and not changed[:4].any()


def test_vq_takes_the_nearest_code_and_passes_gradients():
    vq = ClusteringVQ(16, 4)
    z = torch.randn(2, 4, 3, 2, 2, requires_grad=True)
    quantized, tokens, loss = vq(z)
    features = F.normalize(z.movedim(1, -1), dim=-1)
    codes = F.normalize(vq.codebook, dim=-1)
    nearest = torch.cdist(features.flatten(0, 3), codes).argmin(1)
    assert (tokens == nearest.view(tokens.shape)).all()
    assert torch.allclose(quantized, codes[tokens].movedim(-1, 1), atol=1e-6)
    assert torch.allclose(loss, 1.25 * (codes[tokens] - features).square().sum(-1).mean())
    quantized.sum().backward(retain_graph=True)
    assert z.grad.abs().sum() > 0 and vq.codebook.grad is None
    loss.backward()
    assert vq.codebook.grad.abs().sum() > 0


def test_dead_codes_move_to_the_features():
    """Features in one narrow cone: at first a few codes serve it, after the re-initialisation
    most do."""
    vq = ClusteringVQ(64, 8)
    z = torch.tensor([1.0] + [0.0] * 7) + 0.05 * torch.randn(4, 5, 4, 4, 8)
    z = F.normalize(z, dim=-1).movedim(-1, 1)
    _, before, loss = vq(z)
    vq.reinitialize(0, 0)
    kept = before.unique()
    codebook = vq.codebook.clone()
    _, after, better = vq(z)
    assert len(after.unique()) > 3 * len(kept) and better < loss / 4
    vq.reinitialize(0, 1)
    moved = (vq.codebook - codebook).norm(dim=1) > 1e-3
    used = torch.bincount(after.flatten(), minlength=64) > 20
    assert not moved[used].any()  # codes in use stay


def reinitialize_on(rank, ranks, folder):
    dist.init_process_group("gloo", rank=rank, world_size=ranks,
                            init_method=f"file://{folder}/{ranks}")
    torch.manual_seed(0)
    vq = ClusteringVQ(64, 8)
    for step in range(3):
        batch = torch.randn(4, 8, 2, 4, 4).chunk(ranks)[rank]
        for z in batch.split(1):  # micro-batches of one clip
            vq(z)
        vq.reinitialize(7, step)
    torch.save((vq.codebook, vq.usage), f"{folder}/{ranks}.{rank}.pt")
    dist.destroy_process_group()


def test_every_rank_holds_the_same_codebook_whatever_their_number(tmp_path):
    for ranks in (1, 2):
        mp.spawn(reinitialize_on, (ranks, str(tmp_path)), nprocs=ranks)
    (one, usage), *two = (torch.load(tmp_path / f"{n}.pt") for n in ("1.0", "2.0", "2.1"))
    assert all(torch.equal(one, c) and torch.equal(usage, u) for c, u in two)


def test_adversarial_loss_trains_each_player_for_its_own_side():
    objective = TokenizerLoss(VideoTokenizer(SMALL), adversarial_weight=0.1, perceptual_weight=0)
    video = torch.rand(2, 3, 5, 32, 32) * 2 - 1
    loss, _ = objective(video, False)
    loss.backward()
    assert all(p.grad is None for p in objective.discriminator.parameters())
    plain = objective.tokenizer.decoder.conv_out.weight.grad.clone()
    objective.zero_grad()
    loss, logs = objective(video, True)
    loss.backward()
    assert any(p.grad.abs().sum() > 0 for p in objective.discriminator.parameters())
    assert "discriminator" in logs
    ours = objective.tokenizer.decoder.conv_out.weight.grad
    assert not torch.allclose(ours, plain)
    # the tokenizer's gradient is that of -0.1 x the score alone, not of the
    # discriminator's loss
    objective.tokenizer.zero_grad()
    (-0.1 * objective.discriminator(objective.tokenizer(video)[0]).mean()).backward()
    expected = objective.tokenizer.decoder.conv_out.weight.grad
    assert torch.allclose(ours - plain, expected, atol=1e-5)
    # and the discriminator's that of the hinge loss alone
    objective.zero_grad()
    objective(video, True)[0].backward()
    parameters = list(objective.discriminator.parameters())
    found = [p.grad.clone() for p in parameters]
    recon = objective.tokenizer(video)[0].detach()
    real, fake = objective.discriminator(video), objective.discriminator(recon)
    hinge = F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    for a, b in zip(found, torch.autograd.grad(hinge, parameters)):
        assert torch.allclose(a, b, atol=1e-5)
