"""Does encoding a decoded context again and again wear it out? (Sec. 3.3, Fig. 6)

Each clip of a long video begins with five frames that were decoded from tokens and encoded again.
Here that is repeated without a model: encode, decode, encode ..., a dozen times.
Decides: PSNR of the context after twelve generations minus that after one, on --n drawn clips,
paired; within 2 dB there is no difference to speak of.
Also: the share of tokens that change from one generation to the next.

    python experiments/generations.py
"""
import numpy as np
import torch
from tqdm import tqdm

from common import (
    DEVICE,
    arguments,
    drawn,
    drawn_videos,
    kept,
    pyplot,
    ready,
    result,
    save_picture,
    strips,
)
from data import to_float, to_uint8
from reconstruct import psnr
from sample import CONTEXT
from tools.machine import run_script

GENERATIONS = 12


@torch.inference_mode()
def generations(tokenizer, i, attributes):
    """The context of a clip -> its frames (T, H, W, 3), and of each generation tokens, frames."""
    clip = to_float(drawn_videos([attributes], 65, i)).to(DEVICE)
    seen = tokenizer.decode(tokenizer.encode(clip))[:, :, -CONTEXT:]
    original, tokens, frames = to_uint8(seen)[0], [], []
    for _ in range(GENERATIONS):
        tokens.append(tokenizer.encode(seen))
        frames.append(to_uint8(tokenizer.decode(tokens[-1]))[0])
        seen = to_float(frames[-1])[None].to(DEVICE)
    return original, tokens, frames


def measure(tokenizer, i, attributes):
    original, tokens, frames = generations(tokenizer, i, attributes)
    return {"psnr": [psnr(original, x) for x in frames],
            "changed": [(a != b).float().mean().item() for a, b in zip(tokens, tokens[1:])]}


def main():
    args = arguments(__doc__, n=100)
    _, tokenizer, _ = ready()
    wanted = drawn(22, args.n)
    lines = [kept("generations", [i], lambda: measure(tokenizer, i, a))
             for i, a in enumerate(tqdm(wanted))]
    found, changed = (np.array([line[name] for line in lines]) for name in ("psnr", "changed"))
    result("generations", f"{args.n} contexts",
           {"PSNR after 12 generations minus after 1": found[:, -1] - found[:, 0]}, {},
           {"PSNR, dB": {f"generation {g}": found[:, g - 1] for g in (1, 2, 3, 6, 12)},
            "tokens that change": {f"from generation {g} to {g + 1}": changed[:, g - 1]
                                   for g in (1, 2, 3, 4, 11)}}, margin=2.0)
    figure = pyplot.figure(figsize=(4.4, 4.6), layout="constrained")
    above, below = figure.subfigures(2, height_ratios=(3, 2))
    left, right = above.subplots(1, 2)
    left.plot(range(1, GENERATIONS + 1), found.mean(0), "o-", markersize=3)
    left.set(xlabel="generation", ylabel="PSNR, dB", ylim=(20, None))
    right.plot(range(1, GENERATIONS), 100 * changed.mean(0), "o-", markersize=3)
    right.set(xlabel="generation", ylabel="tokens that change, %", ylim=(0, None))
    original, _, frames = generations(tokenizer, 0, wanted[0])
    strips(below.subplots(3), {"decoded once": original, "generation 1": frames[0],
                               f"generation {GENERATIONS}": frames[-1]})
    save_picture(figure, "generations")


if __name__ == "__main__":
    run_script(main)
