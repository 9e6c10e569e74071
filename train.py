"""train.py: the four trainings (Sec. 3.2, Sec. 4.1 "Training").

    --stage 0   the tokenizer: clips of 1, then 17, then 65 frames
    --stage 1   the language model: images
    --stage 2   images and clips of 17 frames
    --stage 3   images and clips of 65 frames, these by Eq. (2)

    python train.py --stage 1                   # the toy, one process
    torchrun --nproc-per-node 8 train.py --stage 3 --preset 7b --fsdp \
        --images data/cc12m --videos data/webvid --out runs/7b

Stages 2 and 3 start from the stage before; 1 to 3 use the tokenizer in --out,
or the shipped toy's. --out gets tokenizer.pt, stage1.pt ... and metrics.jsonl.
Sample i of step s depends on (seed, stage, s, i) alone, so a resumed run
continues exactly and any number of processes sees the same batches.
"""
import argparse
import contextlib
import dataclasses
import json
import math
import os
import sys
import time
from collections import Counter
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint.state_dict as dcp
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from data import Clips, TextTokenizer, latent_frames, read_meta, shares, to_float
from model import PRESETS, Llama, ModelConfig, prefix_tokens
from tokenizer import (TOKENIZER_PRESETS, TokenizerConfig, TokenizerLoss,
                       VideoTokenizer, autocast, fast_dtype, load_tokenizer,
                       read_checkpoint, set_threads)

NAMES = ["tokenizer", "stage1", "stage2", "stage3"]
FRAMES = [65, 1, 17, 65]  # of the longest clips of each stage
EARLY = 17  # frames that weigh more in Eq. (2)
# Steps, batch size, learning rate and warm-up steps of each stage (Sec. 4.1;
# our choice: the batch of stage 1, the last two numbers of stage 0)
PAPER = [(400_000, 64, 1e-4, 10_000), (200_000, 512, 1e-4, 10_000),
         (200_000, 512, 1e-4, 10_000), (100_000, 256, 1e-4, 10_000)]
TOY = [(3000, 2, 2e-3, 100), (1200, 16, 2e-3, 100),
       (2400, 4, 1.5e-3, 100), (1500, 2, 1e-3, 100)]
# Our choices; D's weight is Open-MAGVIT2's, its start LlamaGen's
PAPER_ALSO = {"micro_batch": 1, "save_every": 1000, "perceptual_weight": 1.0,
              "adversarial_weight": 0.1, "adversarial_start": 0.05}
TOY_ALSO = {"micro_batch": 16, "save_every": 250, "perceptual_weight": 0.0,
            "adversarial_weight": 0.01, "adversarial_start": 0.75}
FRAME_RANGES = {"1": (0, 1), "2-17": (1, 5), "18-33": (5, 9),
                "34-49": (9, 13), "50-65": (13, 17)}  # Fig. 3, latent frames

# ---- short to long ----

def frames_of_step(args, step):
    """The frames of each clip of this step."""
    if args.image_every and step % args.image_every == 0:  # our choice
        return 1
    if args.stage:
        return FRAMES[args.stage]
    done = step / args.steps  # our choice: the paper says 1, 17, 65, not when
    return 1 if done < 0.4 else 17 if done < 0.9 else 65

def micro_batches(args, step, rank, ranks):
    """This rank's samples of a step, lists of keys (step, i, frames). A
    step of shorter clips has more of them, so that tokens stay about equal."""
    frames = frames_of_step(args, step)
    t, longest = latent_frames(frames), latent_frames(FRAMES[args.stage])
    n = args.batch_size // ranks * (longest // t)
    micro = args.micro_batch * (latent_frames(FRAMES[3]) // t)
    keys = [(step, rank * n + i, frames) for i in range(n)]
    return [keys[i:i + micro] for i in range(0, n, micro)]

def learning_rate(args, step):
    """Linear warm-up, then cosine decay to 0 (Sec. 4.1)."""
    if step < args.warmup:
        return args.lr * (step + 1) / args.warmup
    done = (step - args.warmup) / max(1, args.steps - args.warmup)
    return args.lr * 0.5 * (1 + math.cos(math.pi * done))

def parameter_groups(network):
    """Weight decay 0.1 on matrices, except embeddings and codes (our choice)."""
    decay, rest = [], []
    for name, p in network.named_parameters():
        table = name.endswith(("codebook", "embed_tokens.weight"))
        (decay if p.ndim == 2 and not table else rest).append(p)
    return [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]

def decoder_loss(model, config, text, tokens, captions, lambda_):
    """Eq. (1) of clips up to EARLY frames, Eq. (2) of longer ones: tokens
    (B, t, h, w) int64 -> loss, and what to log, {name: scalar}."""
    B, t, h, w = tokens.shape
    # <sot> text <eot> <soi> v1 ... v(L-1) predicts v1 ... vL
    targets = tokens.flatten(1) + config.text_vocab
    prefix = prefix_tokens(config, [text.encode(c) for c in captions])
    fed = torch.cat([prefix.to(tokens.device), targets[:, :-1]], 1)
    early = latent_frames(EARLY)
    loss, losses = model(fed, targets, early * h * w, lambda_ if t > early else 0.0)
    losses = losses.view(B, t, h * w)
    return loss, {"loss": loss.detach(), "unweighted_loss": losses.mean(),
                  **{f"loss_{name}": losses[:, a:b].mean()
                     for name, (a, b) in FRAME_RANGES.items() if a < t}}

# ---- the training loop ----

def main():
    args = parse()
    stage = args.stage
    rank, ranks, device = start_processes(args)
    path = args.out / f"{NAMES[stage]}.pt"
    saved, resumed = starting_point(args, path)
    torch.manual_seed(args.seed)  # the same weights on every rank

    # the network is saved; the objective returns its loss; model: the
    # objective, in DDP where there is more than one process
    if stage == 0:
        preset = TOKENIZER_PRESETS[PRESETS[args.preset].tokenizer]
        config, digest = config_of(args, saved, preset), None
        size = config.resolution
        network = VideoTokenizer(config)
        objective = TokenizerLoss(network, args.adversarial_weight, args.perceptual_weight)
        clipped = [network, objective.discriminator]
        compiled = [network.encoder, network.decoder]
    else:
        tokenizer, digest = tokenizer_of(args, saved, device)
        size = tokenizer.config.resolution
        t = latent_frames(tokenizer.config.frames)
        config = config_of(args, saved, dataclasses.replace(
            PRESETS[args.preset], latent_shape=(t, size // 8, size // 8),
            video_vocab=tokenizer.config.codebook_size))
        text = TextTokenizer(config.text_tokenizer)
        with torch.device("meta" if args.fsdp else "cpu"):
            network = objective = Llama(config)
        network.model.checkpoint_activations = args.checkpoint_activations
        clipped, compiled = [network], network.model.layers
    if not args.fsdp:
        objective.to(device)
    set_threads(objective)
    for module in compiled if args.compile else ():
        module.compile(dynamic=False)
    if args.compile and stage:
        network.loss = torch.compile(network.loss, dynamic=False)
    if args.fsdp:  # each rank keeps a slice of all weights and moments
        policy = MixedPrecisionPolicy(getattr(torch, args.dtype), torch.float32)
        for module in (*network.model.layers, network):
            fully_shard(module, mp_policy=policy)
        network.to_empty(device=device)
        if not saved:  # only rank 0 makes the whole, the others get their slices
            saved = {"weights": {} if rank else Llama(config).state_dict()}
    optimizer = torch.optim.AdamW(parameter_groups(objective), lr=args.lr,
                                  betas=(0.9, 0.95), fused=True)
    start = restore(saved, resumed, network, objective, optimizer)
    del saved  # it holds a copy of the weights
    model = objective
    if ranks > 1 and not args.fsdp:
        model = DistributedDataParallel(objective, forward_sync_buffers=False)

    # the data
    clips, validation = (Clips(args.images, args.videos, args.seed, stage, size, val)
                         for val in (False, True))
    batches = (keys for step in range(start, args.steps)
               for keys in micro_batches(args, step, rank, ranks))
    loader = iter(torch.utils.data.DataLoader(
        clips, batch_sampler=batches, num_workers=args.workers))

    def loss_of(batch, step):
        """A micro-batch -> the loss, and what to log, {name: tensor}."""
        x, captions = batch[0].to(device), batch[1]
        with autocast(device, args.dtype):
            if stage == 0:
                adversarial = step >= args.adversarial_start * args.steps
                return model(to_float(x), adversarial)
            if x.dtype == torch.uint8:  # video, drawn just now
                with torch.no_grad():
                    x = tokenizer.encode(to_float(x))
            return decoder_loss(model, config, text, x, captions, args.lambda_)

    @torch.no_grad()
    def validate():
        """The mean loss of 8 validation clips of the longest length."""
        keys = [[(0, i, FRAMES[stage])] for i in range(8)]
        logs = [loss_of(batch, step=-1)[1] for batch in  # no discriminator
                torch.utils.data.DataLoader(validation, batch_sampler=keys)]
        return sum(x.get("unweighted_loss", x["loss"]).item() for x in logs) / 8

    log, skipped = None, 0
    bar = tqdm(range(start, args.steps), NAMES[stage], args.steps,
               initial=start, disable=rank > 0, smoothing=0.05)
    for step in bar:
        began, waited = time.perf_counter(), 0.0
        lr = learning_rate(args, step)
        for group in optimizer.param_groups:
            group["lr"] = lr

        # the gradient, accumulated over micro-batches
        micros, totals = micro_batches(args, step, rank, ranks), Counter()
        n = sum(map(len, micros))
        for i, micro in enumerate(micros):
            asked = time.perf_counter()
            batch = next(loader)
            waited += time.perf_counter() - asked
            # DDP: gradients are exchanged once, after the last one
            model.require_backward_grad_sync = i + 1 == len(micros)
            loss, logs = loss_of(batch, step)
            (loss * len(micro) / n).backward()
            for name, x in logs.items():
                totals[name] += x * len(micro) / n

        # the optimizer step
        norms = [float(torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0))
                 for net in clipped]
        finite = math.isfinite(sum(norms))
        if finite:
            optimizer.step()
        if stage == 0:
            network.vq.reinitialize(args.seed, step, finite)
        skipped = 0 if finite else skipped + 1
        optimizer.zero_grad(set_to_none=True)

        # what happened
        for x in totals.values() if ranks > 1 else ():
            dist.all_reduce(x.div_(ranks))
        frames, seconds = frames_of_step(args, step), time.perf_counter() - began
        tokens = n * ranks * latent_frames(frames) * (size // 8) ** 2
        line = {"stage": stage, "step": step, "frames": frames, "lr": lr,
                **{name: x.item() for name, x in totals.items()},
                "grad_norm": norms[0], "skipped": skipped, "data_wait": waited / seconds,
                "tokens_per_s": tokens / seconds}
        saving = (step + 1) % args.save_every == 0 or step + 1 == args.steps
        if saving:
            line["val_loss"] = validate()
        if rank == 0:
            log = log or open_log(args, start)  # not before a step worked
            log(line)
        if skipped == 10:
            raise ValueError("10 gradients in a row are not finite: try a lower --lr")
        bar.set_postfix(loss=line["loss"], frames=frames)
        if saving:
            save(path, args, config, digest, step + 1, network, objective, optimizer)
    if dist.is_initialized():
        dist.barrier()  # until rank 0 has saved
        dist.destroy_process_group()
        time.sleep(0.1)  # FSDP keeps gloo's threads: busy ones abort Python as it ends

# ---- plumbing: processes, files, arguments ----

def start_processes(args):
    """-> rank, number of ranks, device. torchrun sets the environment."""
    rank = int(os.environ.get("RANK", 0))
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    if args.fsdp and (args.stage == 0 or "RANK" not in os.environ):
        raise ValueError("--fsdp is for stages 1 to 3 under torchrun")
    if args.batch_size % ranks:
        raise ValueError(f"{ranks} processes cannot share --batch-size {args.batch_size}")
    if args.device == "cuda" and ranks > 1:
        args.device = "cuda:" + os.environ["LOCAL_RANK"]
        torch.cuda.set_device(args.device)
    if ranks > 1 or args.fsdp:
        dist.init_process_group()  # gloo on a CPU, NCCL on GPUs
    return rank, ranks, torch.device(args.device)

def starting_point(args, path):
    """-> the checkpoint to start from or None, and whether to resume it."""
    resumed = args.resume and path.exists()
    if path.exists() and not (args.resume or args.overwrite):
        raise ValueError(f"{path} exists: --resume or --overwrite it")
    before = args.out / f"{NAMES[args.stage - 1]}.pt"
    source = args.init or (before if args.stage > 1 else "none")
    kind = "stage" if args.stage else "tokenizer"
    if resumed:
        source, kind = path, NAMES[args.stage]
    elif source == before and not before.exists():
        raise ValueError(f"no {before}: train stage {args.stage - 1} first")
    saved = None if source == "none" else read_checkpoint(source, kind)
    if source == before and saved["step"] < saved["args"]["steps"]:
        raise ValueError(f"{before} is at step {saved['step']} of "
                         f"{saved['args']['steps']}: --resume it first")
    if args.dtype == "auto":
        args.dtype = saved["args"]["dtype"] if resumed else \
            fast_dtype(torch.device(args.device).type)
        print(f"computing in {args.dtype}", file=sys.stderr)
    for name, now in settings(args).items() if resumed else ():
        then = saved["args"].get(name)
        if now != then:
            raise ValueError(f"{path} has {name} {then}, not {now}")
    if resumed and "optimizer" not in saved:
        raise ValueError(f"{path} holds weights only: --overwrite it")
    return saved, resumed

def settings(args):
    """What a resumed run must have in common with what it resumes."""
    free = ("out init resume overwrite micro_batch compile workers device "
            "save_every checkpoint_activations fsdp logger").split()
    return {k: v for k, v in vars(args).items() if k not in free}

def config_of(args, saved, preset):
    """The checkpoint's config (its flags must agree), or preset and flags.
    Flags of the other network are ignored: one line of flags does for all."""
    config = type(preset)(**saved["config"]) if saved else preset
    flags = {name: tuple(x) if isinstance(x, list) else x
             for name, x in vars(args).items()
             if name in FLAGS and hasattr(config, name) and x is not None}
    changed = dataclasses.replace(config, **flags)
    if saved and (config, saved["args"]["preset"]) != (changed, args.preset):
        raise ValueError("the checkpoint has another config")
    return changed

def tokenizer_of(args, saved, device):
    """-> the tokenizer in --out, or the shipped one, and its hash."""
    shipped = args.preset == "toy" and not (args.out / "tokenizer.pt").exists()
    tokenizer, digest = load_tokenizer(None if shipped else args.out, device)
    folders = [folder for source in (args.images, args.videos) if source != "toy"
               for folder, _ in shares(source)]
    for other in (saved, *map(read_meta, folders)):
        if other and other.get("tokenizer_hash") != digest:
            raise ValueError("the clips or the checkpoint have another tokenizer")
    return tokenizer, digest

def restore(saved, resumed, network, objective, optimizer):
    """Load what is saved, on any number of ranks -> the first step."""
    whole = dcp.StateDictOptions(full_state_dict=True,
                                 broadcast_from_rank0=dist.is_initialized())
    if saved:
        dcp.set_model_state_dict(network, saved["weights"], options=whole)
    if not resumed:
        return 0
    dcp.set_optimizer_state_dict(objective, optimizer, saved["optimizer"], options=whole)
    if "discriminator" in saved:
        objective.discriminator.load_state_dict(saved["discriminator"])
    return saved["step"]

def save(path, args, config, digest, step, network, objective, optimizer):
    """Write the whole state beside `path`, then rename it."""
    whole = dcp.StateDictOptions(full_state_dict=True, cpu_offload=True)
    checkpoint = {
        "kind": NAMES[args.stage], "step": step, "args": settings(args),
        "config": dataclasses.asdict(config), "tokenizer_hash": digest,
        "weights": dcp.get_model_state_dict(network, options=whole),
        "optimizer": dcp.get_optimizer_state_dict(objective, optimizer, options=whole)}
    if args.stage == 0:
        checkpoint["discriminator"] = objective.discriminator.state_dict()
    if dist.is_initialized() and dist.get_rank():
        return
    part, before = path.with_suffix(".tmp"), path.with_suffix(".before.pt")
    try:
        torch.save(checkpoint, part)
        if path.exists():  # keep the previous one, too, if links can be made
            before.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                os.link(path, before)
        part.replace(path)
    except (OSError, RuntimeError) as e:  # RuntimeError: the disk is full
        part.unlink(missing_ok=True)
        raise ValueError(f"cannot write {path}; it is as before") from e

def open_log(args, start):
    """-> log(line). Cuts metrics.jsonl back to where this run starts."""
    path, part = args.out / "metrics.jsonl", args.out / "metrics.tmp"
    before = path.read_text().splitlines(True) if path.exists() else []
    # a kill may have left half a line
    lines = [json.loads(x) for x in before if x.endswith("\n")]
    part.write_text("".join(
        json.dumps(m) + "\n" for m in lines
        if m["stage"] != args.stage or m["step"] < start))
    part.replace(path)
    if args.logger == "wandb":  # what tensorboard gets, goes there, too
        import wandb
        wandb.init(project="loong", dir=args.out, sync_tensorboard=True)
    if args.logger:
        from torch.utils.tensorboard import SummaryWriter
        writer = SummaryWriter(args.out)

    def log(line):
        with open(path, "a") as f:
            f.write(json.dumps(line) + "\n")
        for name, x in line.items() if args.logger else ():
            writer.add_scalar(f"{args.stage}/{name}", x, line["step"])
    return log

# the presets' numbers are flags, unless a tokenizer or FRAMES fixes them or
# they are sample.py's
FLAGS = {f.name: f.type for config in (ModelConfig, TokenizerConfig)
         for f in dataclasses.fields(config)
         if f.type is not str and f.name not in (
             "frames", "text_vocab", "video_vocab", "latent_shape", "cfg_scale", "temperature")}

def parse():
    p = argparse.ArgumentParser(description="The four trainings.")
    add, cuda = p.add_argument, torch.cuda.is_available()
    add("--stage", type=int, choices=range(4), required=True)
    add("--preset", choices=PRESETS, default="toy")
    add("--out", type=Path, default="out", help="folder")
    add("--videos", default="toy", metavar="A,B", help="folders that "
        "tools/prepare.py wrote; A:3,B:1 for their shares")
    add("--images", metavar="C,D", help="likewise (default: first frames of videos)")
    add("--steps", type=int)
    add("--batch-size", type=int, help="clips of the longest length")
    add("--micro-batch", type=int, help="clips of 65 frames at once on a "
        "device, or as many tokens of shorter ones")
    add("--lr", type=float)
    add("--warmup", type=int)
    add("--image-every", type=int, default=5, help="steps; 0 is never")
    add("--lambda", dest="lambda_", type=float, default=1.0, help="Eq. (2)")
    add("--adversarial-weight", type=float)
    add("--adversarial-start", type=float, help="0 to 1")
    add("--perceptual-weight", type=float)
    add("--dtype", choices=["auto", "float32", "bfloat16"], default="auto")
    add("--compile", action=argparse.BooleanOptionalAction, default=cuda)
    add("--checkpoint-activations", action="store_true")
    add("--fsdp", action="store_true")
    add("--device", default="cuda" if cuda else "cpu")
    add("--workers", type=int, default=4 if cuda else 0)
    add("--save-every", type=int, metavar="STEPS")
    add("--init", metavar="PATH", help="a checkpoint, or 'none'")
    add("--resume", action="store_true")
    add("--overwrite", action="store_true")
    add("--seed", type=int, default=0)
    add("--logger", choices=["tensorboard", "wandb"])
    for name, kind in FLAGS.items():
        many = {"nargs": "+", "type": int} if kind is tuple else {"type": kind}
        add("--" + name.replace("_", "-"), **many)
    args = p.parse_args()
    toy = args.preset == "toy"
    names = "steps", "batch_size", "lr", "warmup"
    defaults = dict(zip(names, (TOY if toy else PAPER)[args.stage]))
    defaults |= TOY_ALSO if toy else PAPER_ALSO
    p.set_defaults(**defaults, images=args.videos)
    args = p.parse_args()
    if min(args.steps, args.batch_size, args.micro_batch, args.save_every,
           args.image_every + 1, args.seed + 1) < 1:
        raise ValueError("steps and sizes must be at least 1, --image-every and --seed 0")
    args.warmup = min(args.warmup, args.steps // 2)
    args.out.mkdir(parents=True, exist_ok=True)
    return args

if __name__ == "__main__":
    try:
        main()
    except ModuleNotFoundError as e:
        sys.exit(f"train.py: pip install {e.name}")
    except (ValueError, OSError) as e:  # skip a worker's traceback
        sys.exit("train.py: " + str(e).strip().rpartition("\n")[2])
