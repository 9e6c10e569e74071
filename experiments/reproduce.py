"""Every figure and table of Section 4 that the toy world can show, and the README's table of them.

    python experiments/reproduce.py               # all, one after the other
    python experiments/reproduce.py --only fig6
    python experiments/reproduce.py --table       # only write the table again, from experiments/results/
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


def row(name):
    with open(os.path.join(ROOT, "experiments", "results", name + ".json")) as f:
        r = json.load(f)
    found = "<br>".join(f"{what}: {mean:.3g} ± {r['interval'][what]:.2g}" for what, mean in r["measured"].items())
    same = {True: "yes", False: "**no**", None: "cannot tell"}[r["same_direction"]]
    return (f"| {name} | {r['claim']} | {r['paper']} | {found} | {same} | `{r['command']}`, {r['seeds']} seeds, "
            f"{r['minutes']:.0f} min, {r['machine']} |\n")


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--only", choices=NAMES)
    p.add_argument("--table", action="store_true")
    args = p.parse_args()
    for name in [] if args.table else [args.only] if args.only else NAMES:
        print(f"--- {name}", flush=True)
        subprocess.run([sys.executable, os.path.join(ROOT, "experiments", name + ".py")], check=True)
    done = [n for n in NAMES if os.path.exists(os.path.join(ROOT, "experiments", "results", n + ".json"))]
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
