"""Every figure and table of Section 4 that the toy world can show.

    python experiments/reproduce.py                # those that fit an hour
    python experiments/reproduce.py --minutes inf  # all
    python experiments/reproduce.py --only fig6    # one
    python experiments/reproduce.py --minutes 0    # none: write again only

Each script writes experiments/results/NAME.json and assets/NAME.png. From
these, this one writes what stands between its markers in docs/results.md
(a block per claim) and in README.md (a line per claim).
"""
import argparse
import json
import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# The section of docs/results.md, the claim, and the difference measured
# that the script lists first, in few words.
CLAIMS = {
    "fig3": ("Fig. 3", "late frames have the smaller loss",
             "loss: frames 1 to 17 minus 18 to 65"),
    "fig5": ("Fig. 5", "short to long keeps appearance",
             "share of right looks: staged minus direct"),
    "fig6": ("Fig. 6", "re-encoding keeps quality",
             "share of right videos: re-encoded minus not"),
    "fig7": ("Fig. 7", "greedy decoding makes dull land",
             "distance of new land, pixels: greedy minus top-50"),
    "fig9": ("Fig. 9", "new wordings are followed",
             "share of right videos: new minus trained"),
    "fig10": ("Fig. 10", "CVQ uses more codes",
              "share of codes used: CVQ minus plain VQ"),
    "tab1": ("Tab. 1", "larger models are better",
             "text match: 5.8 M minus 0.4 M"),
    "length": ("Length", "minutes are as good as seconds",
               "share of right videos: last 10 s minus first"),
    "guidance": ("Guidance", "guidance helps to follow the text",
                 "text match: scale 7.5 minus scale 1"),
}
ANSWERS = {True: "yes", False: "**no**", None: "cannot tell"}


def measured(name):
    """What a script found, or None if it was never run."""
    path = os.path.join(ROOT, "experiments", "results", name + ".json")
    if os.path.exists(path):
        with open(path) as f:
            return json.load(f)


def fitting(minutes):
    """The quickest scripts, as many as this time allows."""
    took = {name: found["minutes"] if (found := measured(name))
            else float("inf") for name in CLAIMS}
    total = 0
    for name in sorted(CLAIMS, key=took.get):
        total += took[name]
        if total <= minutes:
            yield name


# ---------------------------------------------------------------------------
# what is written

def difference(what, mean, half):
    """A decisive difference -> its name, "mean ± half", and the loss that
    is allowed, or "": scripts add it, so that above 0 is a yes."""
    what, _, allowed = what.partition(", plus ")
    return what, f"{mean - float(allowed or 0):.2f} ± {half:.2f}", allowed


def readme_table():
    lines = ["| where | claim | difference measured | here | answer |",
             "|---|---|---|---|---|"]
    for name, (title, claim, what) in CLAIMS.items():
        if found := measured(name):
            anchor = title.lower().replace(". ", "-")
            link = f"docs/results.md#{anchor}"
            first, (mean, half) = next(iter(found["decisive"].items()))
            number = difference(first, mean, half)[1]
            answer = ANSWERS[found["same_direction"]]
            lines.append(f"| [{title}]({link}) | {claim} | {what} | {number} "
                         f"| {answer} |")
    return "\n".join(lines)


def numbers(found):
    """All that was measured, as rows of a table. "measure, arm" becomes a
    row per arm and a column per measure if that fills a whole grid."""
    cells = {what: f"{mean:.3g} ± {found['interval'][what]:.2g}"
             for what, mean in found["measured"].items()}
    for split in (str.rsplit, str.split):
        pairs = {tuple(split(what, ", ", 1)): x for what, x in cells.items()}
        measures, arms = (list(dict.fromkeys(p[i] for p in pairs
                                             if len(p) == 2)) for i in (0, 1))
        if len(measures) * len(arms) == len(cells):
            return [["", *measures]] + [
                [arm] + [pairs[measure, arm] for measure in measures]
                for arm in arms]
    return [["", "mean"], *map(list, cells.items())]


def block(name):
    """What stands in docs/results.md about one claim."""
    found = measured(name)
    if not found:
        return f"Not run yet: `python experiments/{name}.py`."
    picture, lines = f"assets/{name}.png", []
    if os.path.exists(os.path.join(ROOT, picture)):
        lines += [f'<img src="../{picture}" width="60%" alt="{name}">', ""]
    header, *rows = numbers(found)
    for row in (header, ["---"] * len(header), *rows):
        lines.append(f"| {' | '.join(row)} |")
    lines += ["", "What decides:", ""]
    for what, (mean, half) in found["decisive"].items():
        what, number, allowed = difference(what, mean, half)
        note = f" (down to -{allowed} is a yes)" if allowed else ""
        lines.append(f"- {what}: **{number}**{note}")
    answer = ANSWERS[found["same_direction"]].strip("*")
    lines += ["", f"Answer: **{answer}**. `{found['command']}`, "
              f"{found['seeds']} seeds, {found['minutes']:.0f} minutes on "
              f"{found['machine']}."]
    return "\n".join(lines)


def write_between(path, texts):
    """Replace what stands between <!-- NAME --> and <!-- end NAME -->."""
    path = os.path.join(ROOT, path)
    with open(path) as f:
        page = f.read()
    for name, text in texts.items():
        start, end = f"<!-- {name} -->\n", f"<!-- end {name} -->"
        if page.count(start) != 1 or page.count(end) != 1:
            sys.exit(f"reproduce.py: {path} must have {start.strip()} and "
                     f"{end} once each")
        before, rest = page.split(start)
        page = before + start + text + "\n" + end + rest.split(end)[1]
    with open(path + ".tmp", "w") as f:
        f.write(page)
    os.replace(path + ".tmp", path)


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--minutes", type=float, default=60, help="run the "
                   "quickest, by the minutes they took before")
    p.add_argument("--only", choices=CLAIMS,
                   help="run this one, however long it takes")
    args = p.parse_args()
    for name in [args.only] if args.only else list(fitting(args.minutes)):
        print(f"--- {name}", flush=True)
        script = os.path.join(ROOT, "experiments", name + ".py")
        subprocess.run([sys.executable, script], check=True)
    write_between("docs/results.md", {name: block(name) for name in CLAIMS})
    write_between("README.md", {"results": readme_table()})


if __name__ == "__main__":
    main()
