"""train.py - the four trainings (Sec. 3.2 "Progressive Short-to-Long Training with Loss Re-weighting", Sec. 4.1).

    --stage 0   the video tokenizer: clips of 1, then 17, then 65 frames, images staying in the mix
    --stage 1   the language model on images (the first frame of each clip)
    --stage 2   on images and 17-frame clips
    --stage 3   on images and 65-frame clips, early tokens weighing 1 + lambda, Eq. (2)

    python train.py --stage 1                               # one process: the toy preset, its world drawn on the fly
    torchrun --nproc-per-node 8 train.py --stage 3 --preset 700m --data shards/ --out runs/700m    # data parallel
    torchrun --nproc-per-node 8 train.py --stage 3 --preset 7b --fsdp --data shards/ --out runs/7b # weights sharded too

Each stage starts from the one before it in --out; the tokenizer is the one in --out, or the shipped toy one. A step is
all images or all clips, and image steps hold proportionally more of them, so that the tokens of a step stay about equal.
Sample i of step s is a pure function of (seed, stage, s, i): a resumed run continues exactly, and the number of
processes changes nothing. Everything lands in --out: tokenizer.pt, stage1.pt ... and metrics.jsonl, a line a step.
"""
import argparse
import contextlib
import dataclasses
import importlib.util
import json
import math
import os
import shutil
import sys
import time

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from data import Clips, TextTokenizer, TokenShards, latents, to_float
from model import PRESETS, HeadLoss, Llama, ModelConfig, prefix_tokens
from sample import build, load_checkpoint, load_shards, load_tokenizer, whole_weights
from tokenizer import TOKENIZER_PRESETS, TokenizerConfig, TokenizerLoss, VideoTokenizer

NAMES = ["tokenizer", "stage1", "stage2", "stage3"]
FRAMES = [65, 1, 17, 65]  # the longest clip of each stage
FRAME_RANGES = {"1": (0, 1), "2-17": (1, 5), "18-33": (5, 9), "34-49": (9, 13), "50-65": (13, 17)}  # Fig. 3, in latents
# steps, batch size, learning rate, warm-up steps, by stage (Sec. 4.1)
PAPER = [(400_000, 64, 1e-4, 10_000), (200_000, 512, 1e-4, 10_000), (200_000, 512, 1e-4, 10_000),
         (100_000, 256, 1e-4, 10_000)]
TOY = [(3000, 2, 2e-3, 100), (1000, 16, 2e-3, 100), (6000, 4, 1.5e-3, 100), (7000, 2, 1e-3, 100)]
PEAK_FLOPS = {"A100": 312e12, "H100": 989e12, "H200": 989e12, "B200": 2250e12}  # dense bf16, for MFU

MAY_CHANGE = {"out", "micro_batch", "compile", "workers", "save_every", "init", "resume", "overwrite",
              "checkpoint_activations"}  # on --resume

# ---------------------------------------------------------------------------------------------------------------------
# what a step is made of

def frames_of_step(args, step):
    """How many frames the clips of this step have."""
    longest = FRAMES[args.stage]
    if args.stage == 0:  # 1 -> 17 -> 65 frames, by fixed fractions of the steps
        done = step / args.steps
        longest = 1 if done < 0.4 else 17 if done < 0.9 else 65
    return 1 if args.image_every and step % args.image_every == 0 else longest


class StepKeys:
    """The DataLoader's batch sampler: for each micro-batch of this rank the keys (step, i, frames) of its samples."""

    def __init__(self, args, start, rank, ranks):
        self.args, self.start, self.rank, self.ranks = args, start, rank, ranks

    def micro_batches(self, step):
        """This rank's share of a step, contiguous and in order, as lists of sample numbers."""
        args, frames = self.args, frames_of_step(self.args, step)
        scale = latents(FRAMES[args.stage]) // latents(frames)  # shorter clips, more of them
        share, micro = args.batch_size // self.ranks * scale, args.micro_batch * scale
        first = self.rank * share
        return [[(step, first + i, frames) for i in range(j, min(j + micro, share))] for j in range(0, share, micro)]

    def __iter__(self):
        for step in range(self.start, self.args.steps):
            yield from self.micro_batches(step)


def collate(samples):
    """[(array, caption)] -> (tensor, list of captions)."""
    arrays, captions = zip(*samples)
    return torch.stack([torch.as_tensor(a) for a in arrays]), list(captions)


def learning_rate(args, step):
    """Linear warm-up, then cosine decay to 0 (Sec. 4.1)."""
    if step < args.warmup:
        return args.lr * (step + 1) / args.warmup
    return args.lr * 0.5 * (1 + math.cos(math.pi * (step - args.warmup) / max(1, args.steps - args.warmup)))


def parameter_groups(module):
    """Weight decay 0.1 on matrices; none on codebook, embeddings, convolutions, norms and biases."""
    decay, rest = [], []
    for name, p in module.named_parameters():
        matrix = p.ndim == 2 and not name.endswith(("codebook", "embed_tokens.weight"))
        (decay if matrix else rest).append(p)
    return [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]

# ---------------------------------------------------------------------------------------------------------------------
# settings

def parse():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], argument_default=argparse.SUPPRESS)
    p.add_argument("--stage", type=int, choices=[0, 1, 2, 3], required=True, help="0 tokenizer, 1-3 short to long")
    p.add_argument("--preset", choices=list(PRESETS), default="toy")
    p.add_argument("--out", default="out", help="folder of checkpoints and metrics.jsonl")
    p.add_argument("--data", default="toy", help="'toy', or folders of token shards, commas between (stage 0: a folder of files)")
    p.add_argument("--mix", type=float, nargs="+", default=[], help="shares of the folders of --data (default: as their clips)")
    p.add_argument("--steps", type=int, help="optimiser steps (default: the preset's)")
    p.add_argument("--batch-size", type=int, help="global batch of a step, in clips of the stage's longest length")
    p.add_argument("--micro-batch", type=int, help="what one process holds at once; accumulation follows")
    p.add_argument("--lr", type=float, help="peak learning rate")
    p.add_argument("--warmup", type=int, help="warm-up steps")
    p.add_argument("--image-every", type=int, default=5, help="every n-th step is images (0: never; stages 0, 2, 3)")
    p.add_argument("--early-weight", type=float, default=2.0, help="1 + lambda of Eq. (2), stage 3")
    p.add_argument("--adversarial-weight", type=float, default=0.01, help="stage 0")
    p.add_argument("--adversarial-start", type=float, default=0.75, help="share of the steps before it plays, stage 0")
    p.add_argument("--perceptual-weight", type=float, default=0.0, help="LPIPS, stage 0 (pip install lpips)")
    p.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16", help="autocast; weights stay fp32")
    p.add_argument("--compile", action=argparse.BooleanOptionalAction, default=torch.cuda.is_available())
    p.add_argument("--checkpoint-activations", action="store_true", default=False,
                   help="keep one activation a layer and compute the rest again: a third more work, far less memory")
    p.add_argument("--fsdp", action="store_true", default=False,
                   help="share weights, gradients and optimizer state among the processes of torchrun (stages 1-3)")
    p.add_argument("--workers", type=int, default=4 if torch.cuda.is_available() else 0, help="processes that draw or read clips")
    p.add_argument("--save-every", type=int, default=250, help="steps between checkpoints (and validations)")
    p.add_argument("--init", default="", help="start from this checkpoint instead of the stage before, or from 'none'")
    p.add_argument("--resume", action="store_true", default=False, help="continue the stage exactly where it was saved")
    p.add_argument("--overwrite", action="store_true", default=False, help="start the stage again")
    p.add_argument("--seed", type=int, default=0)
    follows = {"frames", "text_vocab", "video_vocab", "latent_shape"}  # from the stages and the two tokenizers
    for config in (ModelConfig, TokenizerConfig):  # every other number of the presets is a flag of the same name
        group = p.add_argument_group(config.__name__)
        for f in dataclasses.fields(config):
            if f.name in follows:
                continue
            if f.type in (int, float):
                group.add_argument("--" + f.name.replace("_", "-"), type=f.type)
            elif f.type is tuple:
                group.add_argument("--" + f.name.replace("_", "-"), type=int, nargs="+")
    args = p.parse_args()
    steps, batch_size, lr, warmup = (TOY if args.preset == "toy" else PAPER)[args.stage]
    for name, value in dict(steps=steps, batch_size=batch_size, lr=lr, warmup=warmup).items():
        if not hasattr(args, name):
            setattr(args, name, value)
    if not hasattr(args, "micro_batch"):
        args.micro_batch = args.batch_size if args.preset == "toy" else 1
    if min(args.steps, args.batch_size, args.micro_batch, args.save_every, args.image_every + 1, args.seed + 1) < 1:
        raise ValueError("--steps, --batch-size, --micro-batch, --save-every must be at least 1, --image-every and --seed 0")
    args.warmup = min(args.warmup, args.steps // 2)
    return args


def settle(config, args, started):
    """The preset's config, or that of the checkpoint to start from, with the flags of the same names put in."""
    config = build(type(config), started["config"]) if started else config
    values = {f.name: getattr(args, f.name) for f in dataclasses.fields(config) if hasattr(args, f.name)}
    chosen = dataclasses.replace(config, **{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
    if started and (chosen != config or started["args"]["preset"] != args.preset):
        raise ValueError("the checkpoint to start from has another shape: leave its flags and --preset as they were")
    return chosen


def save_atomically(path, checkpoint):
    """Write beside the target, then rename: a crash while saving loses nothing. ValueError if it cannot be written."""
    try:
        torch.save(checkpoint, path + ".tmp")
        os.replace(path + ".tmp", path)
    except (OSError, RuntimeError) as e:  # RuntimeError: the disk is full
        with contextlib.suppress(OSError):
            os.remove(path + ".tmp")
        raise ValueError(f"cannot write {path}; what it held before is whole") from e

# ---------------------------------------------------------------------------------------------------------------------
# speed and size

def compile_layers(model):
    """torch.compile a Llama in place, layer by layer and the loss: every shape on its own (images, clips, validation)."""
    HeadLoss.chunk = staticmethod(torch.compile(HeadLoss.chunk, dynamic=False))
    for layer in model.model.layers:
        layer.compile(dynamic=False)


# many GPUs, one model: FSDP2. Each rank keeps its slice of every tensor, and of Adam's two moments of it

def shard(model, dtype):
    """Slice a Llama over all ranks, layer by layer: a layer is whole only while it runs. Compute in `dtype`, keep and
    reduce in float32."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for layer in model.model.layers:
        fully_shard(layer, mp_policy=policy)
    fully_shard(model, mp_policy=policy)


def sharded_state(module, optimizer):
    """Everything that is sliced, by name: weights and Adam's moments (zeros before the first step), as DTensors."""
    state = {}
    for name, p in module.named_parameters():
        state["weights." + name] = p.data
        if not optimizer.state[p]:
            optimizer.state[p].update(step=torch.zeros((), device=p.device), exp_avg=torch.zeros_like(p.data),
                                      exp_avg_sq=torch.zeros_like(p.data))
        for moment in ("exp_avg", "exp_avg_sq"):
            state[f"{moment}.{name}"] = optimizer.state[p][moment]
    return state


def save_shards(path, checkpoint, state):
    """Each rank writes its slices as safetensors into PATH.STEP/, then rank 0 the checkpoint that names this folder."""
    import torch.distributed.checkpoint as dcp
    folder = f"{path}.{checkpoint['step']}"
    if dist.get_rank() == 0:  # what a kill left behind while saving this step, maybe on another number of ranks
        shutil.rmtree(folder, ignore_errors=True)
    dist.barrier()
    dcp.save(state, storage_writer=dcp.HuggingFaceStorageWriter(folder, save_distributed=True))
    if dist.get_rank() == 0:
        save_atomically(path, checkpoint | {"shards": os.path.basename(folder),
                                            "shapes": {k: tuple(v.shape) for k, v in state.items()}})
        for old in os.listdir(os.path.dirname(path)):  # an earlier step's, or one that a kill cut short
            old = os.path.join(os.path.dirname(path), old)
            if old.startswith(path + ".") and old[len(path) + 1:].isdecimal() and old != folder:
                shutil.rmtree(old)
    dist.barrier()


def open_metrics(path, stage, step):
    """metrics.jsonl, cut back to what was logged before `step` of this stage, opened for appending."""
    if os.path.exists(path):
        with open(path) as f:
            lines = [line for line in f if line.endswith("\n")]  # a kill may have left half a line
        with open(path + ".tmp", "w") as f:
            f.writelines(line for line in lines if (m := json.loads(line))["stage"] != stage or m["step"] < step)
        os.replace(path + ".tmp", path)
    return open(path, "a", buffering=1)

# ---------------------------------------------------------------------------------------------------------------------
# the story

def main():
    args = parse()
    stage, name = args.stage, NAMES[args.stage]

    # --- processes and device
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    if args.fsdp and (stage == 0 or "RANK" not in os.environ):
        raise ValueError("--fsdp shares the language model (stages 1-3) among the processes of torchrun")
    if args.fsdp and not importlib.util.find_spec("safetensors"):
        raise ValueError("--fsdp saves slices as safetensors: pip install safetensors")
    if ranks > 1 or args.fsdp:
        dist.init_process_group("nccl" if device != "cpu" else "gloo")
    if args.batch_size % ranks:
        raise ValueError(f"--batch-size {args.batch_size} cannot be shared equally by {ranks} processes")
    args.micro_batch = min(args.micro_batch, args.batch_size // ranks)
    if device != "cpu":
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
    autocast = torch.autocast(device.split(":")[0], torch.bfloat16,  # FSDP computes in --dtype by itself
                              enabled=args.dtype == "bfloat16" and not args.fsdp)
    torch.manual_seed(args.seed)  # every process draws the same initial weights

    # --- where the stage starts: its own checkpoint, the stage before, --init, or nothing
    path = os.path.join(args.out, name + ".pt")
    if os.path.exists(path) and not (args.resume or args.overwrite):
        raise ValueError(f"{path} exists: give --resume to continue it, --overwrite to train it again, or another --out")
    resumed = load_checkpoint(path, name) if args.resume and os.path.exists(path) else None
    same = {k: v for k, v in vars(args).items() if k not in MAY_CHANGE}  # what a resumed run must share
    for key, value in resumed["args"].items() if resumed else ():
        if same.get(key) != value:
            raise ValueError(f"{path} was trained with {key} {value}, not {same.get(key)}: resume with the same flags")
    parent = args.init or (os.path.join(args.out, NAMES[stage - 1] + ".pt") if stage > 1 else "none")
    if not resumed and parent != "none" and not (args.init or os.path.exists(parent)):
        raise ValueError(f"{parent} does not exist: train stage {stage - 1} first, or start from nothing by --init none")
    started = resumed or (load_checkpoint(parent) if parent != "none" else None)
    if started and started["kind"] not in (NAMES[1:] if stage else NAMES[:1]):
        raise ValueError(f"stage {stage} cannot start from {parent}: it holds {started['kind']}")
    if started and not (resumed or args.init) and started["step"] < started["args"]["steps"]:
        raise ValueError(f"{parent} is at step {started['step']} of {started['args']['steps']}: --resume stage {stage - 1} "
                         f"first, or start from there by --init {parent}")

    # --- the network and what it is fed with
    tokenizer = text = None
    if stage == 0:
        config = settle(TOKENIZER_PRESETS[PRESETS[args.preset].tokenizer], args, started)
        module = VideoTokenizer(config).to(device)
        objective = TokenizerLoss(module, args.adversarial_weight, args.perceptual_weight).to(device)
        players, tokenizer_hash = [objective.tokenizer, objective.discriminator], None
    else:
        own = os.path.exists(os.path.join(args.out, "tokenizer.pt"))
        if not own and args.preset != "toy":
            raise ValueError(f"no tokenizer.pt in {args.out}: train it by --stage 0 (only the toy preset ships one)")
        tokenizer, tokenizer_hash = load_tokenizer(args.out if own else None, device)
        t = tokenizer.config
        config = dataclasses.replace(PRESETS[args.preset], video_vocab=t.codebook_size, latent_shape=(
            latents(t.frames), t.resolution // 8, t.resolution // 8))  # the model speaks the tokenizer's language
        if started and started["tokenizer_hash"] != tokenizer_hash:
            raise ValueError("the checkpoint to start from was trained on another tokenizer's tokens")
        for folder in args.data.split(",") if args.data != "toy" else ():
            if TokenShards(folder, 1).meta["tokenizer_hash"] != tokenizer_hash:
                raise ValueError(f"{folder} was encoded by another tokenizer; encode it again with data.py")
        text = TextTokenizer(config.text_tokenizer)
        config = settle(config, args, started)
        with torch.device(device):
            module = objective = Llama(config)
        module.model.checkpoint_activations = args.checkpoint_activations
        players = [module]
    if started and not (resumed and args.fsdp):  # then every rank reads its own slices below
        module.load_state_dict(whole_weights(path if resumed else parent, started))
    if args.compile and stage:
        compile_layers(module)
    if args.fsdp:
        shard(module, getattr(torch, args.dtype))
    optimizer = torch.optim.AdamW([g for p in players for g in parameter_groups(p) if g["params"]],
                                  lr=args.lr, betas=(0.9, 0.95), fused=True)
    start = 0
    if resumed:
        if not {"optimizer", "shards"} & resumed.keys():
            raise ValueError(f"{path} holds weights only, it cannot be continued; --overwrite trains the stage again")
        start = resumed["step"]
        if args.fsdp:
            load_shards(path, resumed, sharded_state(module, optimizer))
            for moments in optimizer.state.values():
                moments["step"].fill_(start)
        else:
            optimizer.load_state_dict(resumed["optimizer"])
        if stage == 0:
            objective.discriminator.load_state_dict(resumed["discriminator"])
    # module is what is saved, objective adds the losses' own networks, model is the objective as it is called
    model = torch.compile(objective) if args.compile and stage == 0 else objective
    if ranks > 1 and not args.fsdp:
        model = DistributedDataParallel(model, broadcast_buffers=False)  # identical by construction: ClusteringVQ

    keys = StepKeys(args, start, rank, ranks)
    resolution = (tokenizer or module).config.resolution
    clips = Clips(args.data, args.seed, stage, resolution, mix=args.mix)
    loader = iter(torch.utils.data.DataLoader(clips, batch_sampler=keys, collate_fn=collate, num_workers=args.workers,
                                              pin_memory=device != "cpu"))

    def loss_of(video_or_tokens, captions, step):
        """One micro-batch -> (loss, logs of scalars and per-token losses)."""
        x = video_or_tokens.to(device, non_blocking=True)
        if stage == 0:
            with autocast:
                return model(to_float(x), step >= args.adversarial_start * args.steps)
        if x.dtype == torch.uint8:  # clips drawn on the fly are encoded on the fly
            with torch.no_grad(), autocast:
                x = tokenizer.encode(to_float(x))
        # <sot> text <eot> <soi> v1 ... v(L-1) predicts v1 ... vL
        targets = x.flatten(1) + config.text_vocab
        tokens = torch.cat([prefix_tokens(config, [text.encode(c) for c in captions]).to(device), targets[:, :-1]], 1)
        per_latent = x.shape[2] * x.shape[3]
        early = args.early_weight if stage == 3 and x.shape[1] > 5 else 1.0  # Eq. (2); Eq. (1) for images
        with autocast:
            loss, losses = model(tokens, targets, 5 * per_latent, early)  # K: the tokens of the first 17 frames
        return loss, {"losses": losses.view(len(x), x.shape[1], per_latent).mean((0, 2))}  # by latent frame

    def save(step):
        checkpoint = {"kind": name, "config": dataclasses.asdict(config), "step": step, "args": same,
                      "tokenizer_hash": tokenizer_hash}
        if args.fsdp:
            return save_shards(path, checkpoint, sharded_state(module, optimizer))
        checkpoint |= {"weights": module.state_dict(), "optimizer": optimizer.state_dict()}
        if stage == 0:
            checkpoint["discriminator"] = objective.discriminator.state_dict()
        if rank == 0:
            save_atomically(path, checkpoint)

    held = Clips(args.data, args.seed, stage, resolution, held=True, mix=args.mix)
    held[0, 0, FRAMES[stage]]  # if there is none, say so now

    @torch.no_grad()
    def validate():
        """Mean loss over 8 clips of the stage's longest length, of other files than training's or, of the toy world, of
        other seeds: it is so small that training draws a third of these, too."""
        module.eval()
        logs = [loss_of(*collate([held[0, i, FRAMES[stage]]]), 0)[1] for i in range(8)]
        module.train()
        if args.fsdp:
            module.reshard()  # without a backward pass the outermost weights stay whole
        return sum((m["losses"] if stage else m["loss"]).mean().item() for m in logs) / len(logs)

    # --- the loop
    os.makedirs(args.out, exist_ok=True)
    metrics = None  # opened when there is something to write
    parameters = sum(p.numel() for n, p in module.named_parameters() if "embed_tokens" not in n)
    bar = tqdm(total=args.steps, initial=start, desc=name, disable=rank > 0, smoothing=0.05)
    module.train()
    for step in range(start, args.steps):
        began, waited = time.perf_counter(), 0.0
        lr = learning_rate(args, step)
        for group in optimizer.param_groups:
            group["lr"] = lr
        micro = keys.micro_batches(step)
        total = {}
        for j in range(len(micro)):
            asked = time.perf_counter()
            batch = next(loader)
            waited += time.perf_counter() - asked
            share = len(micro[j]) / sum(map(len, micro))
            last = j == len(micro) - 1
            with contextlib.nullcontext() if last or ranks == 1 or args.fsdp else model.no_sync():
                loss, logs = loss_of(*batch, step)
                (loss * share).backward()
            logs.setdefault("loss", loss.detach())
            for key, value in logs.items():
                total[key] = total.get(key, 0) + value * share
        for player in players:
            torch.nn.utils.clip_grad_norm_(player.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if stage == 0:
            module.vq.reinitialize(args.seed, step)

        # --- what happened (reading the loss waits for the device)
        if ranks > 1:
            for value in total.values():
                dist.all_reduce(value.div_(ranks))
        frames = frames_of_step(args, step)
        line = {"stage": stage, "step": step, "frames": frames}
        if stage:
            by_latent = total.pop("losses")
            line |= {f"loss_{k}": round(by_latent[a:b].mean().item(), 5)
                     for k, (a, b) in FRAME_RANGES.items() if a < len(by_latent)}
        line |= {k: round(v.item(), 5) for k, v in total.items()}
        elapsed = time.perf_counter() - began
        clips_seen, clip_tokens = sum(map(len, micro)) * ranks, latents(frames) * (resolution // 8) ** 2
        line |= {"lr": round(lr, 8), "tokens_per_s": round(clips_seen * clip_tokens / elapsed),
                 "data_wait": round(waited / elapsed, 4)}
        if device != "cpu" and stage:
            peak = next((v for k, v in PEAK_FLOPS.items() if k in torch.cuda.get_device_name()), None)
            length = config.text_len + 3 + clip_tokens
            flops = length * (6 * parameters + 6 * config.n_layers * config.dim * length)  # a clip; causal attention
            line |= {"mfu": round(flops * clips_seen / elapsed / peak / ranks, 4)} if peak else {}
        if (step + 1) % args.save_every == 0 or step + 1 == args.steps:
            line["val_loss"] = round(validate(), 5)
        if rank == 0:
            if metrics is None:
                metrics = open_metrics(os.path.join(args.out, "metrics.jsonl"), stage, start)
            metrics.write(json.dumps(line) + "\n")  # before the checkpoint: --resume cuts what is too much
            bar.set_postfix(loss=line["loss"], frames=frames, **({"psnr": line["psnr"]} if stage == 0 else {}))
            bar.update()
        if "val_loss" in line:
            save(step + 1)
    bar.close()
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as e:
        sys.exit("train.py: " + str(e).strip().rpartition("\n")[2])  # a worker's error has its traceback before it
