"""The metrics of Section 4: Fréchet video distance, and how well a video matches its text.

The field measures with pretrained networks: FVD with I3D (16 frames at 224x224), the CLIP score
with ViT-L/14. Both are here, for whoever has the weights. The toy world has a network of its own:
a classifier, a small 3D network trained to name the six attributes of a clip of 16 frames. Its
features serve the Fréchet distance, and its probabilities say how well a video matches a prompt.

    features (N, D) of real videos, (M, D) of generated ones  -> frechet_distance
    videos uint8 (B, T, H, W, 3), of which 16 frames count
                                                      -> classifier_features / i3d_features (B, D)

    python experiments/metrics.py --train         # the classifier -> checkpoints/toy/classifier.pt
"""
import argparse
import functools
import os
import sys

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from data import ATTRIBUTES, to_float, toy_attributes, toy_clip  # noqa: E402
from tokenizer import SHIPPED  # noqa: E402
from tools.films import check_writable  # noqa: E402
from tools.machine import autocast, read_checkpoint, run_script, set_threads  # noqa: E402

FRAMES = 16  # the usual length of a clip for FVD
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def frechet_distance(a, b):
    """|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^1/2), between the Gaussians
    fitted to features (N, D) and (M, D).

    In float64 throughout. The trace of the root is the sum of the roots of
    the eigenvalues of S_a^1/2 S_b S_a^1/2, which is symmetric. Raises
    ValueError for fewer than two rows or unequal D.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if min(len(a), len(b)) < 2 or a.shape[1] != b.shape[1]:
        raise ValueError("Fréchet distance needs two sets of at least two features, "
                         f"not {a.shape} and {b.shape}")
    s_a, s_b = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    values, vectors = np.linalg.eigh(s_a)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    mixed = np.sqrt(np.linalg.eigvalsh(root @ s_b @ root).clip(0)).sum()
    means = np.square(a.mean(0) - b.mean(0)).sum()
    return float(means + np.trace(s_a) + np.trace(s_b) - 2 * mixed)


def in_batches(videos, network, size=16):
    """network(video) of the first 16 frames of videos uint8 (B, T, H, W, 3),
    a few videos at a time: the results, concatenated."""
    if videos.shape[1] < FRAMES:
        raise ValueError(f"videos of {videos.shape[1]} frames are too short: "
                         f"the metrics need {FRAMES}")
    with torch.inference_mode():
        return torch.cat([network(torch.as_tensor(videos[i:i + size, :FRAMES]))
                          for i in range(0, len(videos), size)])


# ---------------------------------------------------------------------------
# the toy world's classifier

class Classifier(nn.Module):
    """video (B, 3, 16, 64, 64) in [-1, 1] -> features (B, 128), and by
    `heads` a logit for each value of each attribute."""

    def __init__(self, dims=(16, 32, 64, 128)):
        super().__init__()
        self.body = nn.Sequential()
        for i, (dim_in, dim) in enumerate(zip((3, *dims), dims)):
            stride = (1 if i == 0 else 2, 2, 2)
            self.body.extend([nn.Conv3d(dim_in, dim, 3, stride, padding=1),
                              nn.GroupNorm(8, dim), nn.SiLU()])
        self.heads = nn.ModuleDict({name: nn.Linear(dims[-1], len(values))
                                    for name, values in ATTRIBUTES.items()})

    def forward(self, video):
        return self.body(video).mean((2, 3, 4))


def classifier(path=os.path.join(SHIPPED, "classifier.pt")):
    """The trained classifier, float32 and in eval mode. Raises OSError or
    ValueError if there is none."""
    network = Classifier()
    network.load_state_dict(read_checkpoint(path, "classifier")["weights"])
    return network.to(DEVICE).eval().requires_grad_(False)


def classifier_features(videos, network):
    """videos uint8 (B, T, 64, 64, 3) -> features (B, 128) float64 of their
    first 16 frames."""
    features = in_batches(videos, lambda x: network(to_float(x).to(DEVICE)).cpu())
    return features.numpy().astype(np.float64)


def text_match(videos, attributes, network):
    """The mean probability that the classifier gives to the six attributes asked
    for. videos uint8 (B, T, 64, 64, 3), a dict of attributes for each video
    -> float64 (B,)."""
    features = classifier_features(videos, network)
    features = torch.as_tensor(features, dtype=torch.float32, device=DEVICE)
    rows, asked = np.arange(len(features)), []
    for name, values in ATTRIBUTES.items():
        probability = network.heads[name](features).softmax(1).cpu().numpy()
        wanted = [values.index(a[name]) for a in attributes]
        asked.append(probability[rows, wanted])
    return np.mean(asked, axis=0, dtype=np.float64)


def train_classifier(steps, batch_size=16, seed=0):
    """Train a classifier on steps x batch_size clips, of training and held-out
    triples alike -> Classifier, {attribute: accuracy on 256 new clips}."""
    torch.manual_seed(seed)
    network = Classifier().to(DEVICE)
    set_threads(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)

    def batch(*key, n):
        rng = np.random.default_rng([seed, *key])
        clips = [toy_clip(rng, FRAMES, toy_attributes(rng, held=rng.random() < 1 / 9))
                 for _ in range(n)]
        video = to_float(np.stack([c[0] for c in clips])).to(DEVICE)
        labels = {name: torch.tensor([values.index(c[2][name]) for c in clips], device=DEVICE)
                  for name, values in ATTRIBUTES.items()}
        return video, labels

    for step in tqdm(range(steps), desc="classifier"):
        video, labels = batch(step, n=batch_size)
        with autocast(DEVICE):
            features = network(video).float()
        loss = sum(F.cross_entropy(network.heads[name](features), label)
                   for name, label in labels.items())
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)

    network.eval()
    video, labels = batch(steps, 1, n=256)
    with torch.no_grad():
        features = network(video)
    accuracy = {}
    for name, label in labels.items():
        right = network.heads[name](features).argmax(1) == label
        accuracy[name] = right.float().mean().item()
    return network, accuracy


# ---------------------------------------------------------------------------
# the field's instruments

@functools.cache
def i3d(path):
    try:
        return torch.jit.load(path, map_location=DEVICE).eval()
    except (RuntimeError, ValueError, OSError) as e:
        raise ValueError(f"{path} is no torchscript of I3D") from e


def i3d_features(videos, path):
    """The features of FVD, as usually computed. path: the I3D torchscript
    that StyleGAN-V and others use; it resizes to 224x224 and rescales by
    itself. videos uint8 (B, T, H, W, 3) -> (B, 400) float64. Raises
    ValueError if it cannot be read."""
    network = i3d(path)
    options = {"rescale": True, "resize": True, "return_features": True}

    def look(videos):
        return network(videos.movedim(-1, 1).float().to(DEVICE), **options).cpu()

    return in_batches(videos, look).numpy().astype(np.float64)


@functools.cache
def clip(weights):
    try:
        from transformers import CLIPModel, CLIPProcessor
        model = CLIPModel.from_pretrained(weights).to(DEVICE).eval()
        return model, CLIPProcessor.from_pretrained(weights)
    except (ImportError, OSError) as e:
        raise ValueError("CLIP score needs pip install transformers pillow, "
                         f"and the weights {weights}") from e


def clip_score(videos, captions, weights="openai/clip-vit-large-patch14"):
    """100 x the cosine of CLIP's picture and text, at least 0, averaged over
    the frames. CLIPSIM is a hundredth of it, usually with
    openai/clip-vit-base-patch32.

    videos uint8 (B, T, H, W, 3), captions B strings, weights a name or folder
    of transformers -> float64 (B,). Raises ValueError if the weights cannot
    be loaded.
    """
    (model, processor), scores = clip(weights), []
    for video, caption in zip(videos, captions):
        inputs = processor(text=[caption], images=list(video), return_tensors="pt",
                           padding=True, truncation=True).to(DEVICE)
        with torch.inference_mode():
            out = model(**inputs)
        cosine = (out.image_embeds @ out.text_embeds.T).clamp(min=0)
        scores.append(100 * cosine.double().mean().item())
    return np.array(scores)


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--train", action="store_true", required=True,
                   help="train the toy world's classifier")
    p.add_argument("--steps", type=int, default=2000)
    p.add_argument("--out", default=os.path.join(SHIPPED, "classifier.pt"))
    args = p.parse_args()
    check_writable(args.out)
    network, accuracy = train_classifier(args.steps)
    weights = {k: v.bfloat16() for k, v in network.state_dict().items()}
    torch.save({"kind": "classifier", "weights": weights}, args.out)
    shares = ", ".join(f"{name} {share:.1%}" for name, share in accuracy.items())
    print(f"{args.out}: {shares} right on 256 new clips")


if __name__ == "__main__":
    run_script(main)
