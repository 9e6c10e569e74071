"""Every figure and table of Section 4 that the toy world can show.

    python experiments/reproduce.py                    # all; what is measured, is not again
    python experiments/reproduce.py --only fig3 fig5   # some
    python experiments/reproduce.py --only             # none: write again only

Each script writes experiments/results/NAME.json and assets/NAME.png. From these, this one writes
what stands between its markers in docs/results.md (a block per claim) and in README.md (a line for
those in IN_README).
"""
import argparse
import json
import os
import re
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# The row's name in README, the claim in few words, and the unit of
# the difference that decides
CLAIMS = {
    "fig3": ("Fig. 3", "late frames have the smaller loss", "nats"),
    "fig5": ("Fig. 5", "short to long is better for early frames", "nats"),
    "fig6": ("Fig. 6", "re-encoded frames are continued better", "nats"),
    "fig7": ("Fig. 7", "land drawn greedily is less like the world's own", "pixels"),
    "fig9": ("Fig. 9", "dense captions are followed like trained ones, within .1", "of videos"),
    "fig10": ("Sec. 4.1", "CVQ uses more codes than plain VQ", "of the codes"),
    "tab1": ("Tab. 1", "larger models are better", "nats"),
    "length": ("Length", "5 minutes are as good as 10 s, within .1", "of videos"),
    "guidance": ("Guidance", "guidance helps to follow the text", "of videos"),
    "memory": ("Re-encoding", "it matters more for a tokenizer that may look far back", "nats"),
    "switch": ("Switch", "another color in the prompt is followed, by over 50 of 60", "of videos"),
    "returns": ("Returns", "clips that contradict their caption cost clean ones", "nats"),
    "sampling": ("Sampling", "the chosen rule keeps more videos as prompted", "of windows"),
    "overlap": ("Overlap", "17 frames are continued better than 5", "nats"),
    "generations": ("Generations", "encoding 12 times keeps the picture, within 2", "dB"),
}
OURS = "memory", "returns", "sampling", "overlap", "generations"
IN_README = [x for x in CLAIMS if x not in OURS]


def measured(name):
    """What a script found, or None if it was never run."""
    path = os.path.join(ROOT, "experiments", "results", name + ".json")
    if os.path.exists(path):
        with open(path) as f:
            return json.load(f)


def number(interval):
    """[mean, low, high] -> "0.12 (0.08 to 0.16)", or three digits if that is narrow."""
    if interval[1] == interval[2]:  # of a single number
        return f"{interval[0]:.2f}"
    digits = 2 if interval[2] - interval[1] > 0.02 else 3
    mean, low, high = (f"{round(x, digits) + 0:.{digits}f}" for x in interval)  # no -0.00
    return f"{mean} ({low} to {high})"


# ---------------------------------------------------------------------------
# what is written

def readme_table():
    lines = ["| where | claim | measured, 95 % interval | answer |", "|---|---|---|---|"]
    for name in IN_README:
        title, claim, unit = CLAIMS[name]
        if found := measured(name):
            link = "docs/results.md#" + re.sub(r"(?<=[a-z])(?=\d)", "-", name)
            first, *_ = found["differences"].values()
            lines.append(f"| [{title}]({link}) | {claim} | {number(first['interval'])} {unit} "
                         f"| {found['answer']} |")
    return "\n".join(lines)


def block(name):
    """What stands in docs/results.md about one claim."""
    found = measured(name)
    if not found:
        return f"Not finished: `python experiments/{name}.py`."
    lines = [f'<img src="../assets/{name}.png" width="50%" alt="{name}">', "",
             f"| difference, {found['sample']} | mean, 95 % interval | would be found |",
             "|---|---|---|"]
    for i, (what, row) in enumerate(found["differences"].items()):
        bold = "" if i else "**"
        least = f"{row['detectable']:.2f}" if row["detectable"] else "–"
        lines.append(f"| {bold}{what}{bold} | {bold}{number(row['interval'])}{bold} | {least} |")
    lines += ["", "| measured | | mean, 95 % interval |", "|---|---|---|"]
    for what, arms in found["measured"].items():
        for arm, interval in arms.items():
            lines.append(f"| {what} | {arm} | {number(interval)} |")
    lines += ["", f"Answer: **{found['answer']}**. `{found['command']}`, {found['minutes']} "
              f"minutes of one core, {found['machine']}."]
    return "\n".join(lines)


def write_between(path, texts):
    """Replace what stands between <!-- NAME --> and <!-- end NAME -->."""
    path = os.path.join(ROOT, path)
    with open(path) as f:
        page = f.read()
    for name, text in texts.items():
        start, end = f"<!-- {name} -->\n", f"<!-- end {name} -->"
        before, _, rest = page.partition(start)
        _, found, after = rest.partition(end)
        if not found:
            sys.exit(f"reproduce.py: {path} must have {start.strip()} and {end}")
        page = before + start + text + "\n" + end + after
    with open(path, "w") as f:
        f.write(page)


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--only", nargs="*", choices=CLAIMS, default=list(CLAIMS))
    args = p.parse_args()
    for name in args.only:
        print(f"--- {name}", flush=True)
        script = os.path.join(ROOT, "experiments", name + ".py")
        found = measured(name)  # with the numbers that it was measured with
        flags = found["command"].split()[2:] if found else []
        subprocess.run([sys.executable, script, *flags], check=True)
    write_between("docs/results.md", {name: block(name) for name in CLAIMS})
    write_between("README.md", {"results": readme_table()})


if __name__ == "__main__":
    main()
