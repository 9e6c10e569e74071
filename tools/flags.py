"""tools/flags.py: the flags of train.py and of sample.py, with their help.

    of_training, of_sampling   the command line -> args
    check_sampling             numbers that make sense
    config_of                  the sizes of a network, which flags may change
"""
import argparse
import dataclasses
import math
from pathlib import Path

import numpy as np
import torch

from tools import films, machine

SIZES = {  # numbers of the presets that flags may change
    "dim": "width of the decoder", "n_layers": "its layers", "n_heads": "its attention heads",
    "ffn_dim": "width inside its MLPs", "text_len": "text tokens of a caption",
    "resolution": "pixels, height = width", "codebook_size": "codes",
    "code_dim": "numbers per code", "base_channels": "channels of the finest level"}
LEVELS = {  # four each, from fine to coarse
    "multipliers": "channels of each level, as multiples of --base-channels",
    "encoder_blocks": "residual blocks of each level",
    "decoder_blocks": "the same", "encoder_kernels": "size of each level's kernels"}
NUMBERS = {  # of the presets of a training, which flags may change, too
    "steps": "in all",
    "batch_size": "clips of the longest length per step, in all",
    "micro_batch": "65-frame clips, or as many tokens, at once on a device",
    "lr": "learning rate at its highest",
    "warmup": "steps until then, at most half of all",
    "lambda_": "of Eq. (2): how much more early frames weigh",
    "save_every": "steps between checkpoints, each with a validation",
    "returns": "share of clips that contradict their caption for a while",
    "perceptual_weight": "of LPIPS, stage 0",
    "adversarial_weight": "of the discriminator's score, stage 0",
    "adversarial_start": "from this share of the steps on, 0 to 1"}


def of_training(description, presets, toy, paper):
    """The command line of train.py -> args, complete. presets: names of models;
    toy, paper: NUMBERS, a tuple for stages 0 to 3 or one for all. Raises
    ValueError for numbers that make no sense."""
    p = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = p.add_argument
    add("--stage", type=int, choices=range(4), required=True, help="see above")
    add("--preset", choices=presets, default="toy", help="sizes and numbers of the training")
    add("--videos", default="toy", metavar="A,B", help="folders by tools/prepare.py, or toy")
    add("--images", metavar="C,D", help="the same; default: the videos' first frames")
    add("--image-every", type=int, default=5, help="a step of images in 5 (0: none)")
    add("--seed", type=int, default=0, help="of weights and samples, 0")
    add = p.add_argument_group("training (of several numbers, a stage's)").add_argument
    for name, help in NUMBERS.items():
        number = paper[name][0] if isinstance(paper[name], tuple) else paper[name]
        add("--" + name.strip("_").replace("_", "-"), dest=name, type=type(number), metavar="N",
            help=f"{help}; toy {toy[name]}, else {paper[name]}")
    add = p.add_argument_group("files").add_argument
    add("--out", type=Path, default="out", help="folder of checkpoints and metrics.jsonl")
    add("--init", metavar="PATH", help="a checkpoint to start from, or 'none'")
    add("--resume", action="store_true", help="go on from --out")
    add("--overwrite", action="store_true", help="start this stage again")
    add("--logger", choices=["tensorboard", "wandb"], help="beside metrics.jsonl")
    add = p.add_argument_group("machine").add_argument
    cuda = machine.DEVICE == "cuda"
    add("--device", help=f"default: {machine.DEVICE}")
    add("--workers", type=int, default=machine.reading_workers() if cuda else 0,
        help="processes that load data; 0 on a CPU")
    add("--dtype", choices=["auto", "float32", "bfloat16"], default="auto",
        help="of matrix products; auto: the faster one")
    add("--compile", action=argparse.BooleanOptionalAction, default=cuda)
    add("--checkpoint-activations", action="store_true", help="compute twice, save memory")
    add("--fsdp", action="store_true", help="weights divided among processes")
    add = p.add_argument_group("sizes", "instead of the preset's").add_argument
    for name, help in (SIZES | LEVELS).items():
        add("--" + name.replace("_", "-"), type=int, help=help, metavar="N",
            nargs=4 if name in LEVELS else None)

    args = p.parse_args()
    preset = toy if args.preset == "toy" else paper
    for name, x in (preset | {"images": args.videos}).items():
        if getattr(args, name) is None:
            setattr(args, name, x[args.stage] if isinstance(x, tuple) else x)
    if min(args.steps, args.batch_size, args.micro_batch, args.save_every,
           args.image_every + 1) < 1:
        raise ValueError("steps and batches must be at least 1, --image-every 0")
    args.warmup = min(args.warmup, args.steps // 2)
    return args


def config_of(args, saved, preset, network, device):
    """The checkpoint's config (its flags must agree), or preset and flags, for
    a network that fits into memory. Flags of the other network are ignored: one
    line of flags does for all."""
    config = type(preset)(**saved["config"]) if saved else preset
    flags = {name: tuple(x) if isinstance(x, list) else x for name, x in vars(args).items()
             if name in SIZES | LEVELS and hasattr(config, name) and x is not None}
    if any(flags[name] < 1 for name in flags.keys() & SIZES.keys()):
        raise ValueError("sizes must be at least 1")
    changed = dataclasses.replace(config, **flags)
    if flags.get("codebook_size", 1) > 65536:
        raise ValueError("tokens are stored in 16 bits: at most 65536 codes")
    if hasattr(changed, "n_heads") and changed.dim % (2 * changed.n_heads):
        raise ValueError("--dim must be a multiple of twice --n-heads")
    if not all(kernel % 2 for kernel in flags.get("encoder_kernels", ())):
        raise ValueError("--encoder-kernels must be odd")
    if saved and (config, saved["args"]["preset"]) != (changed, args.preset):
        raise ValueError("the checkpoint has another config")
    with torch.device("meta"):
        machine.check_memory(network(changed), args, device)
    return changed


def of_sampling(toy, paper, context, fps):
    """The command line of sample.py -> args, with `scenes`, [(prompt, seconds)].
    toy, paper: numbers of sampling; context: frames that a clip goes on from;
    fps: frames per second. Raises ValueError for what makes no sense, or if
    --out cannot be written."""
    p = argparse.ArgumentParser(description="A prompt -> a video.")
    add = p.add_argument
    add("--prompt", default="", help="what the video shows")
    add("--at", nargs=2, action="append", default=[], metavar=("SECOND", "PROMPT"),
        help="from then on another prompt; may be repeated")
    add("--cut", action="store_true", help="each prompt starts a new scene")
    add("--continue-from", metavar="VIDEO", help="go on from its end")
    add("--ckpt", help="folder or stageN.pt; the shipped toy")
    add("--seconds", type=float, default=10, help="of new video (10)")
    add("--out", default="sample.mp4", metavar="VIDEO.mp4", help="sample.mp4")
    for name, (kind, help) in {
            "cfg_scale": (float, "guidance, 1 for none"), "top_k": (int, "codes that may be drawn"),
            "temperature": (float, "towards 0: greedy"),
            "floor": (float, "see `next_codes`, 0 to 1")}.items():
        add("--" + name.replace("_", "-"), type=kind, metavar="N",
            help=f"{help}; toy {toy[name]}, else {paper[name]}")
    add("--context", type=int, default=context, metavar="N",
        help=f"frames that a clip goes on from, 1 + 4k ({context})")
    add("--seed", type=int, default=0, help="another one, another video (0)")
    add("--window", type=int, help="guesses per pass (32); 1: plain")
    add("--no-reencode", dest="reencode", action="store_false", help="go on from old tokens")
    add("--compile", action=argparse.BooleanOptionalAction,
        default=machine.DEVICE == "cuda", help="yes on GPUs")
    add("--device", default=machine.DEVICE, help="cpu, cuda, mps; a GPU if there is one")

    args = p.parse_args()
    machine.check_seed(args.seed)
    ends = [0, *(float(second) for second, _ in args.at), args.seconds]
    lengths = np.diff(np.round(fps * np.array(ends))) / fps
    if args.at and not (lengths > 0).all():
        raise ValueError("--at needs seconds that grow, between 0 and --seconds")
    args.scenes = list(zip([args.prompt, *(prompt for _, prompt in args.at)], lengths))
    films.check_out(args.out, args.continue_from)
    return args


def check_sampling(sampling, config, B, seeds, seconds, fps, start, context, window):
    """Raise ValueError for what sample.py cannot write B videos with. sampling: as `toy`
    above; config: of the decoder; start: None or frames to go on from."""
    positive = sampling["top_k"], sampling["temperature"], window
    if not all(x is None or 0 < x < math.inf for x in positive):
        raise ValueError("top-k, temperature and window must be positive")
    if not 0.5 < fps * seconds < math.inf:
        raise ValueError(f"{seconds:.3g} seconds have no frame, at {fps} frames/s")
    if not 0 < B == len(seeds):
        raise ValueError(f"{B} prompts, {len(seeds)} seeds: one for each")
    for seed in seeds:
        machine.check_seed(seed)
    if not math.isfinite(sampling["cfg_scale"]) or not 0 <= sampling["floor"] <= 1:
        raise ValueError("cfg-scale must be finite, floor 0 to 1")
    t, h, w = config.latent_shape
    if start is not None and start.shape[1:] != (8 * h, 8 * w, 3):
        raise ValueError(f"start must be (T, {8 * h}, {8 * w}, 3), not {start.shape}")
    if context % 4 != 1 or not 0 < context < 4 * t - 3:
        raise ValueError("context must be 1 + 4k frames, fewer than a clip has")
