"""Figure 5: 65-frame clips directly after images, against short-to-long training with lambda = 0, 1, 3, at equal tokens.

Every model has seen the same images first. The direct one then trains --steps steps of 65-frame clips; the
others half of these tokens as 17-frame clips, and the other half as 65-frame clips. Judged by the first 17 frames they
sample.

    python experiments/fig5.py
"""
from common import DEVICE, LOOKS, arguments, better, caption, drawn, drawn_videos, load, picture, result, right, sampled, trained
from metrics import critic, critic_features, frechet_distance

args = arguments(__doc__, images=600, steps=2000, n=48)
looks, values, shown = critic(), {}, {}
for seed in range(args.seeds):
    start = trained(f"images{seed}", 1, seed, args.images)

    def clips(run, stage, steps, init, weight=1):
        return trained(run, stage, seed, steps, "--init", init, "--early-weight", weight, "--image-every", 0)

    # a step has 2 x 17 latent frames in stage 3, 4 x 5 in stage 2
    short = clips(f"short{seed}", 2, args.steps * 17 // 20, f"{start}/stage1.pt")
    runs = {"direct": clips(f"direct{seed}", 3, args.steps, f"{start}/stage1.pt")}
    for weight in (1, 2, 4):
        runs[f"short to long, lambda {weight - 1}"] = clips(f"long{seed}-{weight}", 3, args.steps // 2, f"{short}/stage2.pt", weight)
    wanted = drawn(seed, args.n)
    real = critic_features(drawn_videos(wanted * 4, 17, seed), looks)
    for name, folder in runs.items():
        videos = sampled(load(folder, DEVICE), [caption(a) for a in wanted], 17 / 6.5, seed)
        if not seed:
            shown[name] = videos[:8, -1]
        values.setdefault(f"objects as prompted, {name}", []).append(right(videos, wanted, LOOKS))
        values.setdefault(f"Fréchet distance, {name}", []).append(frechet_distance(real, critic_features(videos, looks)))
picture("fig5", shown)
result("fig5", "short-to-long training with re-weighting keeps the appearance of the first 17 frames",
       "direct training degrades objects (pictures only)", values,
       better(values["objects as prompted, short to long, lambda 1"], values["objects as prompted, direct"]))
