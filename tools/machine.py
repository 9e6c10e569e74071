"""tools/machine.py: devices, processes, threads, number formats, and the files
of a training. It imports none of the five.

    check_device, check_seed, check_compiler,    what a user asks for
    check_memory, check_cudnn, say
    start_processes, shard, of_all_ranks         one process, DDP, FSDP
    exchange_gradients, means, stop_signals     of a training step
    fast_dtype, autocast, set_threads, compiled  what is fast here
    starting_point, restore, save                init, resume, overwrite
    read_checkpoint, write_checkpoint, digest    a dict of plain types and tensors
    open_log                                     metrics.jsonl
    run_script                                   errors of a user in one line
"""
import contextlib
import dataclasses
import datetime
import errno
import fcntl
import functools
import hashlib
import importlib
import json
import numbers
import os
import shutil
import signal
import sys
import time
import timeit

import torch
import torch.distributed as dist
import torch.distributed.checkpoint.state_dict as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # unless a flag says otherwise
FIRST = int(os.environ.get("RANK", 0)) == 0  # of the processes, this is the first


def check_device(name):
    """Raise ValueError if there is no such device, or not here."""
    try:
        torch.ones(1, device=name).item()
    except Exception as e:  # each kind raises another one
        raise ValueError(f"there is no device {name} here") from e


def check_compiler(device):
    """Raise ValueError if torch.compile would find none."""
    names = [os.environ.get("CXX", "g++"), "clang++"]
    if torch.device(device).type == "cpu" and not any(map(shutil.which, names)):
        raise ValueError("--compile needs a C++ compiler (g++)")


def check_seed(seed):
    """Raise ValueError for what no generator takes."""
    if not isinstance(seed, numbers.Integral) or not 0 <= seed < 2 ** 64:
        raise ValueError(f"the seed must be 0 to 2**64 - 1, not {seed}")


def check_cudnn(device):
    """One line of warning where cuDNN is so old that torch does without it for
    3D convolutions in bfloat16 (9.8 to 9.14)."""
    version = torch.backends.cudnn.version() or 0
    if torch.device(device).type == "cuda" and version < 91500:
        print(f"cuDNN {version} slows the tokenizer's convolutions several times: "
              "pip install nvidia-cudnn-cu12 or -cu13, 9.15 or newer", file=sys.stderr)


def reading_workers():
    """How many processes may read files: this rank's cores but one, of those that a
    cluster allots."""
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        cores = len(os.sched_getaffinity(0))
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) - 1)


def leave_group(_):
    """In a process that reads files: a signal to the training's process group, by Ctrl-C or
    torchrun, is not for it. It ends with the training."""
    os.setpgrp()


@functools.cache
def say(line):
    """Print a line, once, and on the first rank alone."""
    if FIRST:
        print(line, file=sys.stderr)


def check_memory(network, args, device):
    """Raise ValueError if a process's weights, gradients and AdamW's two moments,
    16 bytes per parameter, are more than its memory. Activations come on top of them:
    see experiments/scale.py."""
    n = sum(p.numel() for p in network.parameters())
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if device.type == "cuda":
        there = torch.cuda.get_device_properties(device).total_memory
    else:
        there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / local
    needed = 16 * n / (local if args.fsdp else 1)  # each node has all slices
    what = (f"{n / 1e6:,.1f} M parameters: {needed / 2 ** 30:.1f} GiB for weights, gradients and "
            f"moments, activations on top; {there / 2 ** 30:.1f} GiB are there")
    if needed > there:
        raise ValueError(what + ": more GPUs and --fsdp, or a smaller --preset")
    if FIRST:
        print(what, file=sys.stderr)


def start_processes(args):
    """args: of train.py -> rank, number of ranks, torch.device. torchrun sets
    the environment."""
    if args.preset != "toy" and DEVICE == "cpu" and not args.device:
        raise ValueError(f"torch {torch.__version__} finds no GPU here (an old driver?); "
                         f"--device cpu trains {args.preset} without one")
    args.device = args.device or DEVICE
    rank = int(os.environ.get("RANK", 0))
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    device = args.device
    if device == "cuda" and ranks > 1:
        device = "cuda:" + os.environ["LOCAL_RANK"]
    check_device(device)  # this rank's alone: on another it would hold memory
    check_seed(args.seed)
    if args.stage == 0:
        check_cudnn(args.device)
    for name in (args.logger, "tensorboard") if args.logger else ():
        importlib.import_module(name)  # before anything is written
    if args.compile:  # layer by layer, which already overlaps with DDP's work
        check_compiler(args.device)
        torch._dynamo.config.optimize_ddp = False
    if args.fsdp and (args.stage == 0 or "RANK" not in os.environ):
        raise ValueError("--fsdp is for stages 1 to 3 under torchrun")
    if args.batch_size % ranks:
        raise ValueError(f"{ranks} processes cannot share --batch-size {args.batch_size}")
    if torch.device(device).index is not None:
        torch.cuda.set_device(device)
    if ranks > 1 or args.fsdp:  # gloo on a CPU, NCCL on GPUs; all wait while one saves
        dist.init_process_group(timeout=datetime.timedelta(hours=1))
    return rank, ranks, torch.device(device)


def shard(model, layers, dtype, device):
    """FSDP: each rank keeps a slice of all weights, and computes in `dtype`. Of
    several nodes each has all slices, so that only gradients travel between them."""
    policy, mesh = MixedPrecisionPolicy(getattr(torch, dtype), torch.float32), None
    local = int(os.environ["LOCAL_WORLD_SIZE"])
    if nodes := dist.get_world_size() // local - 1:
        mesh = init_device_mesh(device.type, (nodes + 1, local), mesh_dim_names=("node", "gpu"))
    for module in (*layers, model):
        fully_shard(module, mesh=mesh, mp_policy=policy)


def exchange_gradients(objective, now):
    """Whether the next backward pass ends an accumulation. Before its end DDP
    exchanges nothing, FSDP nothing between nodes."""
    if isinstance(objective, FSDPModule):
        objective.set_requires_all_reduce(now)
    else:
        objective.require_backward_grad_sync = now


def stop_signals():
    """-> a list that holds something from the first Ctrl-C or SIGTERM on, which
    clusters send. Another one ends the process at once."""
    asked = []

    def note(number, _):
        now = time.monotonic()
        if asked and now > asked[0] + 2:  # torchrun may pass on the first one, too
            os._exit(128 + number)
        asked.append(now)

    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, note)
    return asked


def end_processes(message=None):
    """At the end of a training, or of this run of it: then with a message and an error."""
    while LOCKS:
        LOCKS.pop().close()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if dist.is_initialized():
        dist.barrier()  # until rank 0 has saved
        dist.destroy_process_group()
        time.sleep(0.1)  # FSDP keeps gloo's threads: busy ones abort Python as it ends
    if message:
        sys.exit(message if FIRST else 1)


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
    the weights joined (q, k and v are one product) in a faster layout. Each call
    checks first that the graph fits. Nothing inside a layer is checked, which took
    longer than all else: no layer is changed between calls."""
    check_compiler(device_type)
    gpu = device_type == "cuda"

    def outside_layers(guards):
        return ["['layers']._modules[" not in guard.name for guard in guards]

    torch._dynamo.config.recompile_limit = 64
    torch._inductor.config.freezing = not gpu
    torch._inductor.config.cpp_wrapper = not gpu
    torch._inductor.config.cpp.enable_concat_linear = True
    return torch.compile(function, fullgraph=True, dynamic=False, options={
        "guard_filter_fn": outside_layers, "triton.cudagraphs": gpu})


# ---- the files of a training; args: train.py's ----

LOCKS = []  # open files: closing one would free it


def lock(folder):
    """Refuse a folder in which another training runs, maybe on another machine.
    The system frees the lock when this process ends, however it ends."""
    file = open(folder / "lock", "w")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        if e.errno in (errno.EACCES, errno.EAGAIN):
            raise ValueError(f"another training runs in {folder}") from e
        # else: a disk without locks
    LOCKS.append(file)


def starting_point(args, names, device):
    """-> the checkpoint to start from or None, and whether it is resumed. names:
    of the files of the stages. Decides what --dtype auto is."""
    if FIRST:
        args.out.mkdir(parents=True, exist_ok=True)
        lock(args.out)
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
    saved = None if source == "none" else read_checkpoint(source, kind, source == before)
    if args.dtype == "auto":
        args.dtype = saved["args"]["dtype"] if resumed else fast_dtype(device.type)
    if FIRST:
        print(f"computing on {device} in {args.dtype}", file=sys.stderr)
    for name, now in settings(args).items() if resumed else ():
        then = saved["args"].get(name)
        if now != then:
            raise ValueError(f"{path} has {name} {then}, not {now}; "
                             f"--init {path} --overwrite starts from it")
    if resumed and "optimizer" not in saved:
        raise ValueError(f"{path} holds weights only: --overwrite it")
    if resumed and saved["step"] == args.steps and FIRST:
        print(f"{path} has {args.steps} of {args.steps} steps; "
              f"--init {path} --overwrite starts from it", file=sys.stderr)
    if dist.is_initialized():  # a rank that waits for others would wait for ever
        found = [None] * dist.get_world_size()
        dist.all_gather_object(found, (resumed, saved and saved["step"]))
        if len(set(found)) > 1:
            raise ValueError(f"{path} is not the same for all processes: "
                             "--out must be on a disk that all nodes share")
    return saved, resumed


def means(totals, signals):
    """totals: {name: tensor (sum, count)} of this rank -> {name: mean} of all
    ranks, and whether any of them got a signal to stop."""
    totals["stop"] = torch.full_like(totals["loss"], len(signals))
    if dist.is_initialized():
        for x in totals.values():
            dist.all_reduce(x)
    pairs = {name: x.tolist() for name, x in totals.items()}
    stop = pairs.pop("stop")[0] > 0
    return {name: x / count for name, (x, count) in pairs.items() if count}, stop


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
    """Write the whole state to --out/KIND.pt, by the first process."""
    whole = dcp.StateDictOptions(full_state_dict=True, cpu_offload=True)
    model, objective = training.model, training.objective
    checkpoint = {
        "kind": kind, "step": step, "args": settings(args),
        "config": dataclasses.asdict(model.config), "tokenizer_hash": training.tokenizer_hash,
        "weights": dcp.get_model_state_dict(model, options=whole),
        "optimizer": dcp.get_optimizer_state_dict(objective, optimizer, options=whole)}
    if kind == "tokenizer":
        checkpoint["discriminator"] = objective.discriminator.state_dict()
    if FIRST:
        write_checkpoint(checkpoint, args.out / f"{kind}.pt")


def read_checkpoint(path, kind, finished=False):
    """A dict that train.py saved. kind: "tokenizer", "stage1" ..., "stage"
    for any stage. Raises ValueError for another kind, a damaged file or, if
    `finished`, one of a training that has steps to go."""
    try:
        checkpoint = torch.load(path, "cpu", mmap=True, weights_only=True)
        found = checkpoint["kind"]
    except OSError:  # no such file
        raise
    except Exception as e:  # whatever a damaged file raises
        raise ValueError(f"{path} is no checkpoint or is cut short") from e
    if not found.startswith(kind):
        raise ValueError(f"{path} holds {found}, not {kind}")
    if finished and checkpoint["step"] < (steps := checkpoint["args"]["steps"]):
        raise ValueError(f"{path} is at step {checkpoint['step']} of {steps}: --resume it first")
    for name in ("cfg_scale", "temperature", "tokenizer"):  # of older decoders
        checkpoint.get("config", {}).pop(name, None)
    return checkpoint


def write_checkpoint(checkpoint, path):
    """Written beside `path`, then renamed; the one before is NAME.before.pt.
    Raises ValueError if it cannot be written, and `path` is as before."""
    part, before = path.with_suffix(".tmp"), path.with_suffix(".before.pt")
    try:
        torch.serialization.set_crc32_options(False)  # twice as fast; the disk checks, too
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


def open_log(args, start):
    """-> log(line), by which the first process adds a dict to metrics.jsonl. At the
    first line, when a step has worked, the file is cut back to where this run of a
    stage starts. --logger tensorboard or wandb get the numbers, too."""
    path, writer = args.out / "metrics.jsonl", None

    def cut_back():
        before = path.read_text().splitlines(True) if path.exists() else []
        # a kill may have left half a line
        lines = [json.loads(x) for x in before if x.endswith("\n")]
        part = path.with_suffix(".tmp")
        part.write_text("".join(json.dumps(m) + "\n" for m in lines
                                if m["stage"] != args.stage or m["step"] < start))
        part.replace(path)

    def log(line):
        nonlocal writer
        if not FIRST:
            return
        if line["step"] == start:
            cut_back()
        if args.logger and not writer:
            if args.logger == "wandb":  # what tensorboard gets, goes there, too
                import wandb
                wandb.init(project="loong", dir=args.out, sync_tensorboard=True)
            from torch.utils.tensorboard import SummaryWriter
            writer = SummaryWriter(args.out)
        with open(path, "a") as f:
            f.write(json.dumps(line) + "\n")
        for name, x in line.items() if args.logger else ():
            writer.add_scalar(f"{args.stage}/{name}", x, line["step"])
    return log


def run_script(main, *more):
    """main(). What a user can mend, i.e. ValueError, OSError, too little memory on a GPU, a
    missing package and exceptions of `more` kinds, ends the process with one line, Ctrl-C
    with none."""
    name = os.path.basename(sys.argv[0])
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except ImportError as e:  # none, or an older one
        older = "" if isinstance(e, ModuleNotFoundError) else "-U "
        package = f"pip install {older}{e.name}".partition(".")[0]
        sys.exit(f"{name}: {package if e.name else e}")
    except (ValueError, OSError, torch.OutOfMemoryError, *more) as e:
        lines = str(e).strip().splitlines() or [type(e).__name__]
        of_worker = lines[0].startswith("Caught ")  # then its traceback
        sys.exit(f"{name}: {lines[-1 if of_worker else 0]}")
