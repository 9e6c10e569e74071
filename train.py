r"""train.py: the four trainings (Sec. 3.2, Sec. 4.1 "Training").

    --stage 0   the tokenizer: images and clips of 1, then 17, then 65 frames
    --stage 1   the language model: images
    --stage 2   images and clips of 17 frames
    --stage 3   images and clips of 65 frames, these by Eq. (2)

    python train.py --stage 1                   # the toy, one process
    torchrun --nproc-per-node 8 train.py --stage 3 --preset 7b --fsdp \
        --images data/cc12m --videos data/webvid --out runs/7b

Stages 2 and 3 start from the stage before; 1 to 3 use the tokenizer in --out,
or the shipped toy's. --out gets tokenizer.pt, stage1.pt ... and metrics.jsonl.
Sample i of a step depends on its numbers alone (see `Clips`), so a resumed run
continues exactly and any number of processes sees the same batches.
"""
import dataclasses
import math
import time
from collections import Counter
from types import SimpleNamespace

import torch
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from data import Clips, TextTokenizer, latent_frames, to_float
from model import PRESETS, Llama, prefix_tokens
from tokenizer import TOKENIZER_PRESETS, TokenizerLoss, VideoTokenizer, load_tokenizer, tokenizer_in
from tools import flags, machine
from tools.shards import read_meta

NAMES = ["tokenizer", "stage1", "stage2", "stage3"]
FRAMES = [65, 1, 17, 65]  # of the longest clips of each stage
EARLY = 17  # frames that weigh more in Eq. (2)
PAPER = {  # tuples: of stages 0 to 3
    "steps": (400_000, 200_000, 200_000, 100_000),  # Sec. 4.1
    "batch_size": (64, 512, 512, 256),  # Sec. 4.1; stage 1: our choice
    "lr": 1e-4, "warmup": 10_000,  # Sec. 4.1; stage 0: our choice
    "lambda_": 1.0,  # Sec. 4.1
    # our choice; D's weight and start are those of other VQGANs
    "micro_batch": 1, "save_every": 1000, "returns": 0.0,
    "perceptual_weight": 1.0,
    "adversarial_weight": 0.1, "adversarial_start": 0.05}
TOY = {
    "steps": (3300, 1500, 6000, 5000),
    "batch_size": (2, 16, 4, 2),
    "lr": (2e-3, 2e-3, 1.5e-3, 1e-3), "warmup": 100,
    "lambda_": 1.0,
    "micro_batch": 16, "save_every": 250, "returns": (0.0, 0.0, 0.75, 0.5),
    "perceptual_weight": 0.0,
    "adversarial_weight": 0.01, "adversarial_start": 0.6}
FRAME_RANGES = {"1": (0, 1), "2-17": (1, 5), "18-33": (5, 9),
                "34-49": (9, 13), "50-65": (13, 17)}  # Fig. 3, latent frames

# ---- short to long ----

def frames_of_step(args, step):
    """How many frames each clip of this step has. The paper trains on images and
    clips jointly; our choice: every fifth step is of images (--image-every)."""
    if args.image_every and step % args.image_every == 0:
        return 1
    if args.stage:
        return FRAMES[args.stage]
    done = step / args.steps  # our choice: the paper says 1, 17, 65, not when
    return 1 if done < 0.4 else 17 if done < 0.9 else 65

def micro_batches(args, step, rank, ranks):
    """This rank's samples of a step, lists of keys (step, i, frames).
    --batch-size counts clips of the stage's longest length; a step of shorter
    ones has more of them, so that all steps have about as many tokens.
    --micro-batch counts 65-frame clips in all stages, i.e. 17 images each."""
    frames = frames_of_step(args, step)
    t, longest = latent_frames(frames), latent_frames(FRAMES[args.stage])
    n = args.batch_size // ranks * (longest // t)
    micro = args.micro_batch * (latent_frames(FRAMES[3]) // t)
    keys = [(step, rank * n + i, frames) for i in range(n)]
    return [keys[i:i + micro] for i in range(0, n, micro)]

def learning_rate(args, step):
    """Linear warm-up, then cosine decay (Sec. 4.1) to 0 (our choice)."""
    if step < args.warmup:
        return args.lr * (step + 1) / args.warmup
    done = (step - args.warmup) / max(1, args.steps - args.warmup)
    return args.lr * 0.5 * (1 + math.cos(math.pi * done))

def parameter_groups(objective):
    """Weight decay 0.1 on matrices, except embeddings and codes (our choice). So
    the tokenizer has none: its only matrix is the codebook."""
    decay, rest = [], []
    for name, p in objective.named_parameters():
        table = name.endswith(("codebook", "embed_tokens.weight"))
        (decay if p.ndim == 2 and not table else rest).append(p)
    return [{"params": decay, "weight_decay": 0.1},
            {"params": rest, "weight_decay": 0.0}]

def decoder_loss(model, config, text, tokens, captions, lambda_, wrong=None):
    """Eq. (1) of clips up to EARLY frames, Eq. (2) of longer ones: tokens
    (B, t, h, w) int64 -> loss, and what to log, {name: (sum, count)}. text: a
    TextTokenizer; wrong (B, t) bool: latent frames without loss, see `Clips`."""
    B, t, h, w = tokens.shape
    # <sot> text <eot> <soi> v1 ... v(L-1) predicts v1 ... vL
    targets = tokens.flatten(1) + config.text_vocab
    texts = [text.encode(c) for c in captions]
    if max(map(len, texts)) > config.text_len:
        machine.say(f"captions end after {config.text_len} text tokens (--text-len)")
    prefix = prefix_tokens(config, texts)
    fed = torch.cat([prefix.to(tokens.device), targets[:, :-1]], 1)
    if wrong is not None:
        without_loss = wrong.to(tokens.device).repeat_interleave(h * w, 1)
        targets = targets.masked_fill(without_loss, -100)
    early = latent_frames(EARLY)
    lambda_ = lambda_ if t > early else 0.0
    loss, losses = model(fed, targets, early * h * w, lambda_)
    losses, counted = (x.view(B, t, h * w) for x in (losses, targets >= 0))
    ranges = {"unweighted_loss": (0, t)} | {
        f"loss_{name}": r for name, r in FRAME_RANGES.items() if r[0] < t}
    logs = {name: (losses[:, a:b].sum(), counted[:, a:b].sum())
            for name, (a, b) in ranges.items()}
    return loss, logs | {"loss": (loss.detach() * B, loss.new_full((), B))}

# ---- what is trained ----

def tokenizer_training(args, saved, device):
    """Stage 0 -> what `main` asks of a training:

        model           what is saved
        objective       a module around it that gives the loss; DDP may wrap it
        networks        whose gradients are clipped one by one
        loss_of         (objective, batch, step) -> loss, {name: (sum, count)}
        size            of the clips, in pixels
        tokenizer_hash  of the tokenizer whose tokens are learnt, or None

    A batch begins with video uint8 (B, T, H, W, 3).
    """
    if tokenizer_in(args.out) == "adopted":
        raise ValueError(f"{args.out} holds an adopted tokenizer: "
                         "stage 0 needs another --out")
    preset = TOKENIZER_PRESETS["toy" if args.preset == "toy" else "paper"]
    model = VideoTokenizer(
        flags.config_of(args, saved, preset, VideoTokenizer, device))
    objective = TokenizerLoss(
        model, args.adversarial_weight, args.perceptual_weight)
    discriminator = objective.discriminator
    for module in (model.encoder, model.decoder) if args.compile else ():
        module.compile(dynamic=False)

    def loss_of(objective, batch, step):
        adversarial = step >= args.adversarial_start * args.steps
        video = to_float(batch[0].to(device, non_blocking=True))
        with machine.autocast(device, args.dtype):
            loss, logs = objective(video, adversarial)
        # plus 0: DDP waits for a gradient of each parameter
        loss = loss + 0 * sum(p.sum() for p in discriminator.parameters())
        usage = model.vq.usage  # used: a tenth of the mean, or more
        logs["codes_used"] = (usage > 0.1 / len(usage)).float().mean()
        B = torch.full_like(loss.detach(), len(batch[0]))
        return loss, {name: (x * B, B) for name, x in logs.items()}

    return SimpleNamespace(
        model=model, objective=objective, networks=[model, discriminator],
        loss_of=loss_of, size=model.config.resolution, tokenizer_hash=None)

def decoder_training(args, saved, device):
    """Stages 1 to 3, likewise. A batch: tokens (B, t, h, w), or of the toy
    world video uint8 (B, T, H, W, 3); captions; wrong."""
    tokenizer, digest = checked_tokenizer(args, saved, device)
    size, frames = tokenizer.config.resolution, tokenizer.config.frames
    preset = dataclasses.replace(
        PRESETS[args.preset], video_vocab=tokenizer.config.codebook_size,
        latent_shape=(latent_frames(frames), size // 8, size // 8))
    # sizes by flags, if they fit into memory
    config = flags.config_of(args, saved, preset, Llama, device)
    text = TextTokenizer(config.text_tokenizer, config.text_vocab)
    with torch.device("meta" if args.fsdp else "cpu"):
        model = Llama(config)
    model.model.checkpoint_activations = args.checkpoint_activations
    if args.compile:
        for layer in model.model.layers:
            layer.compile(dynamic=False)
        model.loss = torch.compile(model.loss, dynamic=False)

    def loss_of(objective, batch, step):
        x, captions = batch[0].to(device, non_blocking=True), batch[1]
        with machine.autocast(device, args.dtype):
            if x.dtype == torch.uint8:
                with torch.no_grad():
                    x = tokenizer.encode(to_float(x))
            return decoder_loss(
                objective, config, text, x, captions, args.lambda_, batch[2])

    return SimpleNamespace(
        model=model, objective=model, networks=[model],
        loss_of=loss_of, size=size, tokenizer_hash=digest)

# ---- the training loop ----

def main():
    args = flags.of_training(__doc__, PRESETS, TOY, PAPER)
    rank, ranks, device = machine.start_processes(args)
    # this stage's checkpoint, if resumed; else the stage before's, or None
    saved, resumed = machine.starting_point(args, NAMES, device)
    torch.manual_seed(args.seed)  # the same weights on every rank
    build = decoder_training if args.stage else tokenizer_training
    training = build(args, saved, device)
    model, objective = training.model, training.objective
    if args.fsdp:
        machine.shard(model, model.model.layers, args.dtype, device)
        objective.to_empty(device=device)
        if not saved:  # rank 0 draws the weights; `restore` hands out slices
            saved = {"weights": {} if rank else Llama(model.config).state_dict()}
    objective.to(device)
    machine.set_threads(objective)
    optimizer = torch.optim.AdamW(parameter_groups(objective), lr=args.lr,
                                  betas=(0.9, 0.95), fused=True)
    start = machine.restore(saved, resumed, training, optimizer)
    del saved  # it holds a copy of the weights
    if ranks > 1 and not args.fsdp:
        objective = DistributedDataParallel(
            objective, forward_sync_buffers=False,
            gradient_as_bucket_view=True)
    clips, validation = (
        Clips(args.images, args.videos, args.seed, args.stage,
              training.size, args.returns, val) for val in (False, True))
    validation[0, 0, FRAMES[args.stage]]  # no such clip? Now, not after hours
    batches = (keys for step in range(start, args.steps)
               for keys in micro_batches(args, step, rank, ranks))
    loader = iter(torch.utils.data.DataLoader(
        clips, batch_sampler=batches, num_workers=args.workers,
        pin_memory=device.type == "cuda", worker_init_fn=machine.leave_group))

    log, signals, skipped = machine.open_log(args, start), machine.stop_signals(), 0
    bar = tqdm(range(start, args.steps), NAMES[args.stage], args.steps,
               initial=start, disable=rank > 0, smoothing=0.05)
    for step in bar:
        began, waited = time.perf_counter(), 0.0
        lr = learning_rate(args, step)
        for group in optimizer.param_groups:
            group["lr"] = lr

        # the gradient, over micro-batches; ranks exchange it in the last one
        micros, totals = micro_batches(args, step, rank, ranks), Counter()
        n = sum(map(len, micros))
        for i, micro in enumerate(micros):
            asked = time.perf_counter()
            batch = next(loader)
            waited += time.perf_counter() - asked
            machine.exchange_gradients(objective, now=i + 1 == len(micros))
            loss, logs = training.loss_of(objective, batch, step)
            (loss * len(micro) / n).backward()
            for name, (x, count) in logs.items():
                totals[name] += torch.stack([x, count.to(x)])

        # the optimizer step
        norms = [float(torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0))
                 for network in training.networks]
        finite = math.isfinite(sum(norms))
        if finite:
            optimizer.step()
        if args.stage == 0:
            model.vq.reinitialize(args.seed, step, finite)
        skipped = 0 if finite else skipped + 1
        optimizer.zero_grad(set_to_none=True)

        # what happened, on all ranks; stop: one of them is to end
        means, stop = machine.means(totals, signals)
        frames = frames_of_step(args, step)
        line = {"stage": args.stage, "step": step, "frames": frames,
                "lr": lr, **means, "grad_norm": norms[0], "skipped": skipped,
                "data_wait": waited / (time.perf_counter() - began)}
        done = step + 1
        saving = done % args.save_every == 0 or done == args.steps
        if saving and not stop:
            line["val_loss"] = validate(
                training, objective, validation, FRAMES[args.stage])
        log(line)
        if skipped == 10:
            raise ValueError("10 gradients in a row are not finite: lower --lr")
        shown = "loss" if args.stage else "psnr"  # as D makes stage 0's loss jump
        bar.set_postfix({shown: line[shown]}, frames=frames)
        if saving or stop:
            machine.save(args, NAMES[args.stage], done, training, optimizer)
        if stop:
            machine.end_processes(f"train.py: saved at step {done}; --resume goes on")
    machine.end_processes()

@torch.no_grad()
def validate(training, objective, validation, frames):
    """The mean loss of 8 validation clips of the longest length."""
    keys, loss = [[(0, i, frames)] for i in range(8)], 0.0
    for batch in torch.utils.data.DataLoader(validation, batch_sampler=keys):
        _, logs = training.loss_of(objective, batch, -1)  # no discriminator
        x, count = logs.get("unweighted_loss", logs["loss"])
        loss += float(x / count) / 8
    return loss

# ---- plumbing ----

def checked_tokenizer(args, saved, device):
    """-> the tokenizer in --out, or the shipped one, and its hash."""
    found = tokenizer_in(args.out)
    if not found and args.preset != "toy":
        raise ValueError(f"no {args.out}/tokenizer.pt: train stage 0 first, "
                         "or name its --out")
    tokenizer, digest = load_tokenizer(
        args.out if found else None, device, finished=True)
    folders = {*args.images.split(","), *args.videos.split(",")} - {"toy"}
    for other in (saved, *map(read_meta, folders)):
        if other and other.get("tokenizer_hash") != digest:
            raise ValueError(
                "the clips or the checkpoint have another tokenizer, or none")
    return tokenizer, digest

if __name__ == "__main__":
    machine.run_script(main)
