"""The plan of the house: what imports what, and how wide the lines are."""
import ast
import os

import pytest
from conftest import ROOT

BELOW = {"data": set(), "tokenizer": set(), "model": set(),
         "sample": {"data", "tokenizer", "model"},
         "train": {"data", "tokenizer", "model"}}
FOLDERS = {name[:-3] for folder in ("tools", "experiments")
           for name in os.listdir(os.path.join(ROOT, folder))
           if name.endswith(".py")} | {"tools", "experiments"}


@pytest.mark.parametrize("name", BELOW)
def test_imports_go_down(name):
    """Anywhere in a file, inside functions too."""
    with open(os.path.join(ROOT, name + ".py")) as f:
        text = f.read()
    imported = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.split(".")[0])
    assert imported & set(BELOW) == BELOW[name]
    assert not imported & FOLDERS
    assert max(map(len, text.splitlines())) <= 100
