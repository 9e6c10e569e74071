"""Every figure and table of Section 4 that the toy world can show, and the README's table of them.

    python experiments/reproduce.py                  # those that fit an hour together, by the minutes they took before
    python experiments/reproduce.py --minutes inf    # all
    python experiments/reproduce.py --only fig6
    python experiments/reproduce.py --minutes 0      # none: only write the table again, from experiments/results/
"""
import argparse
import json
import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
NAMES = sorted((n.removesuffix(".py") for n in os.listdir(os.path.join(ROOT, "experiments"))
                if n.startswith(("fig", "tab")) or n in ("length.py", "guidance.py")), key=lambda n: (len(n), n))
START, END = "<!-- reproduce.py writes from here -->\n", "<!-- to here -->"


def measured(name):
    """What a script found, or None if it was never run."""
    path = os.path.join(ROOT, "experiments", "results", name + ".json")
    if os.path.exists(path):
        with open(path) as f:
            return json.load(f)


def fitting(minutes):
    """The quickest scripts, as many as this time allows."""
    took, total = {n: found["minutes"] if (found := measured(n)) else float("inf") for n in NAMES}, 0
    for name in sorted(NAMES, key=took.get):
        total += took[name]
        if total <= minutes:
            yield name


def row(name):
    r = measured(name)
    found = "<br>".join(f"{what}: {mean:.3g} ± {r['interval'][what]:.2g}" for what, mean in r["measured"].items())
    same = {True: "yes", False: "**no**", None: "cannot tell"}[r["same_direction"]]
    same += "".join(f"<br>({what}: {mean:.3g} ± {half:.2g})" for what, (mean, half) in r["decisive"].items())
    return (f"| {name} | {r['claim']} | {r['paper']} | {found} | {same} | `{r['command']}`, {r['seeds']} seeds, "
            f"{r['minutes']:.0f} min, {r['machine']} |\n")


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--minutes", type=float, default=60, help="run what took no longer than this altogether, quickest first")
    p.add_argument("--only", choices=NAMES, help="run this one, however long it takes")
    args = p.parse_args()
    for name in [args.only] if args.only else list(fitting(args.minutes)):
        print(f"--- {name}", flush=True)
        subprocess.run([sys.executable, os.path.join(ROOT, "experiments", name + ".py")], check=True)
    done = [n for n in NAMES if measured(n)]
    path = os.path.join(ROOT, "README.md")
    with open(path) as f:
        before, rest = f.read().split(START)
    table = ("| what | the claim | in the paper | here, mean ± 95 % interval over seeds | same direction | command |\n"
             "|---|---|---|---|---|---|\n")
    pictures = [f'<img src="assets/{n}.png" width="49%" alt="{n}">\n' for n in done
                if os.path.exists(os.path.join(ROOT, "assets", n + ".png"))]
    with open(path + ".tmp", "w") as f:
        f.write(before + START + table + "".join(map(row, done)) + "\n" + "".join(pictures) + END + rest.split(END, 1)[1])
    os.replace(path + ".tmp", path)


if __name__ == "__main__":
    main()
