"""Tokenizers that others trained: from their weights to a video, and what the check catches."""
import json

import imageio.v3
import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from conftest import TINY, fails, run
from data import toy_clip
from sample import load
from tokenizer import load_tokenizer
from tools import adopt, play
from tools.films import read_clip
from tools.machine import read_checkpoint

LEVELS = 8, 8, 8, 5, 5, 5  # of Cosmos: 64,000 codes
SIZE = 16


class Encoder(nn.Module):
    """In the place of NVIDIA's: padded in front, quantized to levels, three results in bfloat16.
    kind: "ahead" sees the next frame; "4k" takes 4 + 4k frames instead of 1 + 4k."""

    def __init__(self, kind="causal"):
        super().__init__()
        self.kind = kind
        self.conv = nn.Conv3d(3, len(LEVELS), (4, 8, 8), (4, 8, 8))

    def forward(self, video):
        if self.kind == "ahead":
            video = torch.cat([video[:, :, 1:], video[:, :, -1:]], 2)
        if self.kind != "4k":
            video = adopt.first_three_times(video)
        z = self.conv(video).movedim(1, -1).float()
        levels = torch.tensor(LEVELS)
        z = ((4 * z).sigmoid() * levels).floor().clamp(max=levels - 1)
        basis = torch.tensor([1, *LEVELS[:-1]]).cumprod(0)
        return (z * basis).sum(-1).int(), z.movedim(-1, 1).to(video.dtype), z.mean()


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.ConvTranspose3d(len(LEVELS), 3, (4, 8, 8), (4, 8, 8))

    def forward(self, tokens):
        levels = torch.tensor(LEVELS)
        z = tokens[..., None] // torch.tensor([1, *LEVELS[:-1]]).cumprod(0) % levels / levels
        return self.conv(z.movedim(-1, 1).to(self.conv.weight.dtype))[:, :, 3:]


def cosmos(folder, kind="causal", dtype=torch.bfloat16):
    """Graphs in bfloat16, as NVIDIA traces them."""
    folder.mkdir()
    encoder, decoder = Encoder(kind).to(dtype).eval(), Decoder().to(dtype).eval()
    video = torch.zeros(1, 3, 16 if kind == "4k" else 17, SIZE, SIZE, dtype=dtype)
    torch.jit.trace(encoder, video).save(folder / "encoder.jit")
    torch.jit.trace(decoder, encoder(video)[0]).save(folder / "decoder.jit")
    return folder


def vidtok(folder):
    """Microsoft's network, small."""
    from diffusers import AutoencoderVidTok
    model = AutoencoderVidTok(ch=4, z_channels=5, double_z=False, regularizer="fsq",
                              codebook_size=8 ** 5, num_res_blocks=1)
    model.save_pretrained(folder)
    return folder


def emu3(folder):
    from transformers import Emu3VQVAE, Emu3VQVAEConfig
    config = Emu3VQVAEConfig(base_channels=32, channel_multiplier=(1, 1, 1, 1), hidden_size=32,
                             num_res_blocks=1, attn_resolutions=(3,))
    Emu3VQVAE(config).save_pretrained(folder)
    return folder


def adopted(release, weights, out, *more):
    flags = ["--version", "1.1"] if release == "vidtok" else []
    return run("tools/adopt.py", release, *flags, "--weights", weights, "--out", out,
               "--resolution", SIZE, *more).stdout


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """A folder of two films and an image, with captions."""
    folder = tmp_path_factory.mktemp("mine")
    for i in range(2):
        video, caption, _ = toy_clip(np.random.default_rng(i))
        imageio.v3.imwrite(folder / f"{i}.mp4", video, plugin="pyav", codec="libx264", fps=6.5)
        (folder / f"{i}.txt").write_text(caption)
    imageio.v3.imwrite(folder / "image.png", video[0])
    (folder / "image.txt").write_text("an image")
    return folder


@pytest.mark.parametrize("release, codes", [(vidtok, 32768), (cosmos, 64000), (emu3, 32768)])
def test_from_released_weights_to_a_video(release, codes, mine, tmp_path):
    """Small random networks: adopted, checked, clips encoded, three stages, sampled, continued."""
    out, clips, film = tmp_path / "run", tmp_path / "clips", mine / "0.mp4"
    seen = adopted(release.__name__, release(tmp_path / "weights"), out, "--film", film)
    assert f"of {codes} codes" in seen and "no token changes" in seen and "dB" in seen
    if release == cosmos:
        assert seen.startswith(run("tools/adopt.py", "--check", out, "--film", film).stdout)

    run("tools/prepare.py", "--source", "folder", "--input", mine, "--ckpt", out,
        "--out", clips, "--workers", 0)
    assert f"of {codes} codes used" in run("tools/prepare.py", "--inspect", clips,
                                           "--ckpt", out).stdout
    for stage in (1, 2, 3):
        run("train.py", "--stage", stage, "--steps", 1, "--batch-size", 1, "--videos", clips,
            "--out", out, *TINY)
    model, tokenizer, _ = load(out)
    assert model.config.latent_shape == (17, 2, 2) and model.config.video_vocab == codes
    assert tokenizer.config.codebook_size == codes

    sample = ["sample.py", "--ckpt", out, "--no-compile", "--prompt", "a car"]
    run(*sample, "--seconds", 12, "--out", tmp_path / "a.mp4")
    run(*sample, "--seconds", 2, "--out", tmp_path / "b.mp4",
        "--continue-from", tmp_path / "a.mp4")
    assert read_clip(tmp_path / "a.mp4", 78, 6.5, SIZE).shape == (78, SIZE, SIZE, 3)


def test_a_batch_is_its_clips_whatever_number_format_is_around(tmp_path):
    adopted("cosmos", cosmos(tmp_path / "weights", dtype=torch.float32), tmp_path / "out")
    tokenizer, _ = load_tokenizer(tmp_path / "out")
    clips = torch.cat([adopt.toy_video(64)[:, :, :17], torch.rand(1, 3, 17, 64, 64) - 0.5])
    with torch.autocast("cpu", torch.bfloat16):
        tokens = tokenizer.encode(clips)
    assert tokens.shape == (2, 5, 8, 8) and tokens.dtype == torch.int64
    alone = [tokenizer.encode(clip[None])[0] for clip in clips]
    assert (tokens == torch.stack(alone)).all() and len(tokens.unique()) > 1
    video = tokenizer.decode(tokens)
    assert video.shape == clips.shape and video.dtype == torch.float32
    image = tokenizer.decode(tokens[:, :1])
    assert torch.allclose(image, video[:, :, :1], atol=1e-4)
    with pytest.raises(ValueError, match="1 \\+ 4k"):
        tokenizer.encode(clips[:, :, :16])


def test_the_hash_is_of_weights_and_json_not_of_the_files(tmp_path):
    out = tmp_path / "out"
    adopted("cosmos", cosmos(tmp_path / "weights"), out)
    digest = load_tokenizer(out)[1]
    network = torch.jit.load(out / "encoder.jit")
    before = (out / "encoder.jit").read_bytes()
    torch.jit.save(network, out / "encoder.jit", {"note": b"saved again"})
    assert (out / "encoder.jit").read_bytes() != before and load_tokenizer(out)[1] == digest
    config = json.loads((out / "tokenizer.json").read_text())
    (out / "tokenizer.json").write_text(json.dumps(config | {"origin": "elsewhere"}))
    assert load_tokenizer(out)[1] != digest
    (out / "tokenizer.json").write_text(json.dumps(config))
    assert load_tokenizer(out)[1] == digest
    network.conv.bias.data += 1
    network.save(out / "encoder.jit")
    assert load_tokenizer(out)[1] != digest


def test_an_adopted_folder_never_trains_on_the_shipped_tokenizer(tmp_path):
    out = tmp_path / "out"
    adopted("cosmos", cosmos(tmp_path / "weights"), out, "--resolution", 64)
    tokenizer, digest = load_tokenizer(out)
    train = ["train.py", "--steps", 1, "--batch-size", 1, "--out", out, *TINY, "--stage"]
    run(*train, 1)  # clips of the toy world, encoded as they come
    assert read_checkpoint(out / "stage1.pt", "stage1")["tokenizer_hash"] == digest
    assert load(out)[0].config.video_vocab == 64000
    assert "stage 0 needs another --out" in fails(*train, 0)
    run("experiments/reconstruct.py", "--ckpt", out, "--clips", 1)
    tokenizer.config.codebook_size = 300
    colors = play.code_colors(tokenizer)
    square = torch.full((1, 1, 3, 3), 299)
    color = tokenizer.decode(square)[0, :, 0, 8:16, 8:16].mean((1, 2))
    assert colors.shape == (300, 4)
    assert np.abs(colors[299, :3] - 127.5 * (color.numpy().clip(-1, 1) + 1)).max() < 2

    (out / "encoder.jit").unlink()
    assert "encoder.jit is missing" in fails(*train, 1, "--overwrite")
    (out / "encoder.jit").write_bytes(b"no graph")
    assert "encoder.jit is missing, or is no TorchScript" in fails(
        "sample.py", "--ckpt", out, "--out", tmp_path / "a.mp4")


@pytest.mark.parametrize("change, reason", [
    ({"codebook_size": 70000}, "16 bits"), ({"resolution": 30}, "8n pixels"),
    ({"frames": 64}, "frames 1 + 4k"), ({"dtype": "float16"}, "float32 or bfloat16"),
    ({"origin": None, "frames": "many"}, "must hold codebook_size"),
    ({"codebook_size": 2}, "not 0 ... 1")])
def test_a_wrong_json_is_one_line(change, reason, tmp_path):
    folder = cosmos(tmp_path / "out")
    config = {"codebook_size": 64000, "resolution": SIZE, "frames": 65, "dtype": "bfloat16",
              "origin": "a test"}
    (folder / "tokenizer.json").write_text(json.dumps(config | change))
    assert reason in fails("tools/adopt.py", "--check", folder)


@pytest.mark.parametrize("kind, reason", [
    ("ahead", "looks ahead"), ("4k", "all of 1 + 4k frames must work")])
def test_what_cannot_be_trained_on_is_not_adopted(kind, reason, tmp_path):
    cosmos(tmp_path / "weights", kind)
    error = fails("tools/adopt.py", "cosmos", "--weights", tmp_path / "weights",
                  "--out", tmp_path / "out", "--resolution", SIZE)
    assert reason in error
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]  # nothing is left behind


def fit_to_an_image(model):
    """Solve for the last layer, so that the toy world's first frame comes back: weights that
    rely on how this model pads time, in no time."""
    seen, conv = [], model.decoder.conv_out
    with torch.no_grad():
        image = adopt.toy_video(SIZE)[:, :, :1]
        hook = conv.register_forward_pre_hook(lambda conv, args: seen.append(args[0]))
        encoder, decoder = adopt.vidtok_parts(model)
        decoder(encoder(image))
        hook.remove()
        x = F.unfold(seen[0][0, :, -3:].flatten(0, 1)[None], 3, padding=1)[0].T
        x = F.pad(x, (0, 1), value=1)
        solved = torch.linalg.lstsq(x.double(), image.flatten(1).view(3, -1).T.double())[0].T
        conv.conv.weight.copy_(solved[:, :-1].view_as(conv.conv.weight))
        conv.conv.bias.copy_(solved[:, -1])
    return model


def test_vidtok_1_0_given_as_1_1(tmp_path):
    """All its names fit; an image tells."""
    from diffusers import AutoencoderVidTok
    model = AutoencoderVidTok(ch=8, z_channels=5, double_z=False, regularizer="fsq",
                              codebook_size=8 ** 5).eval()
    call = ["tools/adopt.py", "vidtok", "--weights", tmp_path / "old.ckpt",
            "--out", tmp_path / "out", "--resolution", SIZE]
    old = fit_to_an_image(adopt.as_version_1_0(model)).state_dict()
    torch.save({"state_dict": old | {"loss.weight": torch.ones(1)}}, tmp_path / "old.ckpt")
    assert "is VidTok 1.0, not 1.1" in fails(*call, "--version", "1.1")
    assert "--version 1.1 can be adopted" in fails(*call)
    assert not (tmp_path / "out").exists()
    torch.save(fit_to_an_image(model).state_dict(), tmp_path / "old.ckpt")
    run(*call, "--version", "1.1")


def test_bad_weights_are_one_line_and_lose_nothing(tmp_path):
    out, path = tmp_path / "out", tmp_path / "weights.ckpt"
    call = ["tools/adopt.py", "vidtok", "--version", "1.1", "--weights", path, "--out", out]
    assert "No such file" in fails(*call)
    torch.save({"state_dict": {}, "config": object}, path)
    assert "holds more than tensors" in fails(*call)
    torch.save({"state_dict": {"weight": torch.ones(1)}}, path)
    assert "holds no VidTok" in fails(*call)
    torch.save({f"encoder.{name}.conv.bias": torch.ones(5) for name in ("conv_in", "conv_out")},
               path)
    assert "does not fit" in fails(*call)
    folder = emu3(tmp_path / "emu3")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"vq_config": config}))
    assert "does not fit" in fails("tools/adopt.py", "emu3", "--weights", folder, "--out", out)
    out.mkdir()
    (out / "stage3.pt").write_text("mine")
    assert "is not empty" in fails(*call) and (out / "stage3.pt").read_text() == "mine"
    assert "name one of" in fails("tools/adopt.py")
