"""The plan of the house: what imports what, and how wide the lines are."""
import ast
import os

import pytest

from conftest import ROOT

LEAVES = "tools/adopted", "tools/films", "tools/machine"
BELOW = {**dict.fromkeys(LEAVES, set()), "tools/shards": {"tools.films"},
         "tools/flags": {"tools.films", "tools.machine"},
         "data": {"tools.shards"}, "model": set(),
         "tokenizer": {"tools.adopted", "tools.machine"},
         "sample": {"data", "tokenizer", "model", "tools.films", "tools.flags",
                    "tools.machine"},
         "train": {"data", "tokenizer", "model", "tools.flags", "tools.machine",
                   "tools.shards"}}
OURS = {"data", "tokenizer", "model", "sample", "train", "tools", "experiments"} | {
    name[:-3] for folder in ("tools", "experiments")
    for name in os.listdir(os.path.join(ROOT, folder)) if name.endswith(".py")}


@pytest.mark.parametrize("name", BELOW)
def test_imports_go_down(name):
    """Anywhere in a file, inside functions too."""
    with open(os.path.join(ROOT, name + ".py")) as f:
        text = f.read()
    imported = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
            imported |= {f"tools.{n}" for n in names} if node.module == "tools" else {node.module}
    assert {module for module in imported if module.split(".")[0] in OURS} == BELOW[name]
    assert max(map(len, text.splitlines())) <= 100
