"""tools/machine.py: devices, processes, threads, number formats, and the files
of a training. It imports none of the five.

    start_processes, shard, of_all_ranks         one process, DDP, FSDP
    fast_dtype, autocast, set_threads, compiled  what is fast here
    starting_point, restore, save                init, resume, overwrite
    add_sizes, config_of                         flags that change the presets' sizes
    read_checkpoint, write_checkpoint, digest    a dict of plain types and tensors
    open_log                                     metrics.jsonl
"""
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import sys
import time
import timeit

import torch
import torch.distributed as dist
import torch.distributed.checkpoint.state_dict as dcp
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # unless a flag says otherwise


def start_processes(args):
    """args: of train.py -> rank, number of ranks, torch.device. torchrun sets
    the environment."""
    rank = int(os.environ.get("RANK", 0))
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    if args.fsdp and (args.stage == 0 or "RANK" not in os.environ):
        raise ValueError("--fsdp is for stages 1 to 3 under torchrun")
    if args.batch_size % ranks:
        raise ValueError(f"{ranks} processes cannot share --batch-size {args.batch_size}")
    device = args.device
    if device == "cuda" and ranks > 1:
        device = "cuda:" + os.environ["LOCAL_RANK"]
        torch.cuda.set_device(device)
    if ranks > 1 or args.fsdp:
        dist.init_process_group()  # gloo on a CPU, NCCL on GPUs
    return rank, ranks, torch.device(device)


def shard(model, layers, dtype):
    """FSDP: each rank keeps a slice of all weights, and computes in `dtype`."""
    policy = MixedPrecisionPolicy(getattr(torch, dtype), torch.float32)
    for module in (*layers, model):
        fully_shard(module, mp_policy=policy)


def end_processes():
    if dist.is_initialized():
        dist.barrier()  # until rank 0 has saved
        dist.destroy_process_group()
        time.sleep(0.1)  # FSDP keeps gloo's threads: busy ones abort Python as it ends


def of_all_ranks(x):
    """Tensors (n, ...), of one shape on each rank -> (n * ranks, ...)."""
    if not dist.is_initialized():
        return x
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x)
    return torch.cat(parts)


@functools.cache
def fast_dtype(device_type):
    """The faster of "bfloat16" and "float32". On a CPU a trial decides, of
    several ranks the first one's."""
    if device_type != "cpu":
        return "bfloat16"
    x = torch.ones(512, 512)
    half, full = (min(timeit.repeat(lambda: a @ a, number=1))
                  for a in (x.bfloat16(), x))
    choice = ["bfloat16" if half < full else "float32"]
    if dist.is_initialized():
        dist.broadcast_object_list(choice)
    return choice[0]


def autocast(device, dtype=None):
    """Compute in `dtype`, by default in the faster one."""
    dtype = dtype or fast_dtype(device.type)
    return torch.autocast(device.type, torch.bfloat16, dtype == "bfloat16")


def set_threads(model, most=1):
    """For a small model on a CPU, unless OMP_NUM_THREADS is set: the number of
    threads, at most `most`, that is fastest now. Beside another busy process
    threads stall each other."""
    def trial(threads):
        torch.set_num_threads(threads)
        return timeit.timeit(lambda: x @ x, number=1000)

    x = torch.ones(128, 128)
    parameters = list(model.parameters())
    small = sum(p.numel() for p in parameters) < 20e6 and parameters[0].device.type == "cpu"
    if small and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(range(1, most + 1), key=trial))


@functools.cache
def compiled(function, device_type):
    """A function of a model compiled: a CUDA graph on a GPU, C++ on a CPU, with
    the weights joined (q, k and v are one product) in a faster layout."""
    gpu = device_type == "cuda"
    torch._dynamo.config.recompile_limit = 64
    torch._inductor.config.freezing = not gpu
    torch._inductor.config.cpp_wrapper = not gpu
    torch._inductor.config.cpp.enable_concat_linear = True
    return torch.compile(function, fullgraph=True, dynamic=False,
                         mode="reduce-overhead" if gpu else "default")


# ---- the files of a training; args: train.py's ----

def starting_point(args, names, device):
    """-> the checkpoint to start from or None, and whether it is resumed. names:
    of the files of the stages. Decides what --dtype auto is."""
    path, before = (args.out / f"{names[stage]}.pt" for stage in (args.stage, args.stage - 1))
    resumed = args.resume and path.exists()
    if path.exists() and not (args.resume or args.overwrite):
        raise ValueError(f"{path} exists: --resume or --overwrite it")
    source = args.init or (before if args.stage > 1 else "none")
    kind = "stage" if args.stage else "tokenizer"
    if resumed:
        source, kind = path, names[args.stage]
    elif source == before and not before.exists():
        raise ValueError(f"no {before}: train stage {args.stage - 1} first")
    saved = None if source == "none" else read_checkpoint(source, kind)
    if source == before and saved["step"] < saved["args"]["steps"]:
        raise ValueError(f"{before} is at step {saved['step']} of "
                         f"{saved['args']['steps']}: --resume it first")
    if args.dtype == "auto":
        args.dtype = saved["args"]["dtype"] if resumed else fast_dtype(device.type)
        print(f"computing in {args.dtype}", file=sys.stderr)
    for name, now in settings(args).items() if resumed else ():
        then = saved["args"].get(name)
        if now != then:
            raise ValueError(f"{path} has {name} {then}, not {now}")
    if resumed and "optimizer" not in saved:
        raise ValueError(f"{path} holds weights only: --overwrite it")
    return saved, resumed


SIZES = {  # numbers of the presets that flags may change
    "dim": "width of the decoder", "n_layers": "its layers", "n_heads": "its attention heads",
    "ffn_dim": "width inside its MLPs", "text_len": "text tokens of a caption",
    "resolution": "pixels, height = width", "codebook_size": "codes",
    "code_dim": "numbers per code", "base_channels": "channels of the finest level"}
LEVELS = {  # four each, from fine to coarse
    "multipliers": "channels, as multiples of --base-channels",
    "encoder_blocks": "residual blocks", "decoder_blocks": "residual blocks",
    "encoder_kernels": "size of the kernels"}


def add_sizes(parser):
    for name, help in (SIZES | LEVELS).items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, help=help,
                            nargs=4 if name in LEVELS else None)


def config_of(args, saved, preset):
    """The checkpoint's config (its flags must agree), or preset and flags.
    Flags of the other network are ignored: one line of flags does for all."""
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
    if saved and (config, saved["args"]["preset"]) != (changed, args.preset):
        raise ValueError("the checkpoint has another config")
    return changed


def settings(args):
    """What a resumed run must have in common with what it resumes."""
    free = ("out init resume overwrite micro_batch compile workers device "
            "save_every checkpoint_activations fsdp logger").split()
    return {k: v for k, v in vars(args).items() if k not in free}


def restore(saved, resumed, training, optimizer):
    """Load what is saved, on any number of ranks -> the first step."""
    model, objective = training.model, training.objective
    whole = dcp.StateDictOptions(full_state_dict=True,
                                 broadcast_from_rank0=dist.is_initialized())
    if saved:
        dcp.set_model_state_dict(model, saved["weights"], options=whole)
    if not resumed:
        return 0
    dcp.set_optimizer_state_dict(objective, optimizer, saved["optimizer"], options=whole)
    if "discriminator" in saved:
        objective.discriminator.load_state_dict(saved["discriminator"])
    return saved["step"]


def save(args, kind, step, training, optimizer):
    """Write the whole state to --out/KIND.pt, on rank 0."""
    whole = dcp.StateDictOptions(full_state_dict=True, cpu_offload=True)
    model, objective = training.model, training.objective
    checkpoint = {
        "kind": kind, "step": step, "args": settings(args),
        "config": dataclasses.asdict(model.config), "tokenizer_hash": training.tokenizer_hash,
        "weights": dcp.get_model_state_dict(model, options=whole),
        "optimizer": dcp.get_optimizer_state_dict(objective, optimizer, options=whole)}
    if kind == "tokenizer":
        checkpoint["discriminator"] = objective.discriminator.state_dict()
    if not (dist.is_initialized() and dist.get_rank()):
        write_checkpoint(checkpoint, args.out / f"{kind}.pt")


def read_checkpoint(path, kind):
    """A dict that train.py saved. kind: "tokenizer", "stage1" ..., "stage"
    for any stage. Raises ValueError for another kind or a damaged file."""
    try:
        checkpoint = torch.load(path, "cpu", mmap=True, weights_only=True)
        found = checkpoint["kind"]
    except OSError:  # no such file
        raise
    except Exception as e:  # whatever a damaged file raises
        raise ValueError(f"{path} is no checkpoint or is cut short") from e
    if not found.startswith(kind):
        raise ValueError(f"{path} holds {found}, not {kind}")
    for name in ("cfg_scale", "temperature", "tokenizer"):  # of older decoders
        checkpoint.get("config", {}).pop(name, None)
    return checkpoint


def write_checkpoint(checkpoint, path):
    """Written beside `path`, then renamed; the one before is NAME.before.pt.
    Raises ValueError if it cannot be written, and `path` is as before."""
    part, before = path.with_suffix(".tmp"), path.with_suffix(".before.pt")
    try:
        torch.save(checkpoint, part)
        if path.exists():
            before.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not all disks have links
                os.link(path, before)
        part.replace(path)
    except (OSError, RuntimeError) as e:  # RuntimeError: the disk is full
        part.unlink(missing_ok=True)
        raise ValueError(f"cannot write {path}; it is as before") from e


def digest(weights, but=None):
    """A hash of named tensors, without one of them: 16 hexadecimal digits."""
    found = hashlib.sha256()
    for name in sorted(weights.keys() - {but}):
        data = weights[name].cpu().flatten().view(torch.uint8)
        found.update(name.encode() + data.numpy().tobytes())
    return found.hexdigest()[:16]


def lpips_network():
    """VGG's features, which judge pictures as people do (pip install lpips)."""
    import lpips
    try:
        return lpips.LPIPS(net="vgg", verbose=False).requires_grad_(False)
    except OSError as e:
        raise ValueError(f"lpips cannot fetch VGG's weights ({e}): see "
                         "docs/scaling.md, or --perceptual-weight 0") from e


def open_log(folder, stage, start, logger=None):
    """-> log(line), which adds a dict to metrics.jsonl. The file is cut back to
    where this run of a stage starts: call it when a step has worked. logger:
    "tensorboard" or "wandb", which get the numbers, too."""
    path, part = folder / "metrics.jsonl", folder / "metrics.tmp"
    before = path.read_text().splitlines(True) if path.exists() else []
    # a kill may have left half a line
    lines = [json.loads(x) for x in before if x.endswith("\n")]
    part.write_text("".join(json.dumps(m) + "\n" for m in lines
                            if m["stage"] != stage or m["step"] < start))
    part.replace(path)
    if logger == "wandb":  # what tensorboard gets, goes there, too
        import wandb
        wandb.init(project="loong", dir=folder, sync_tensorboard=True)
    if logger:
        from torch.utils.tensorboard import SummaryWriter
        writer = SummaryWriter(folder)

    def log(line):
        with open(path, "a") as f:
            f.write(json.dumps(line) + "\n")
        for name, x in line.items() if logger else ():
            writer.add_scalar(f"{stage}/{name}", x, line["step"])
    return log
