"""docs/walkthrough.ipynb: it runs from top to bottom, and what is committed was run so."""
import os

import nbformat
from nbclient import NotebookClient

from conftest import ONE_THREAD, ROOT

PATH = os.path.join(ROOT, "docs", "walkthrough.ipynb")
SHORTER = {"SECONDS = 60": "SECONDS = 11", "CLIPS = 32": "CLIPS = 2"}


def test_runs():
    """On a shorter video and fewer clips. A cell that raises fails the test with its traceback."""
    notebook = nbformat.read(PATH, as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    for whole, part in SHORTER.items():
        assert whole in first.source
        first.source = first.source.replace(whole, part)
    client = NotebookClient(notebook, timeout=600, kernel_name="python3",
                            resources={"metadata": {"path": os.path.dirname(PATH)}})
    client.execute(env=ONE_THREAD)


def test_committed_outputs():
    """Of one run in order, without errors or a machine's paths, and light enough to open."""
    notebook = nbformat.read(PATH, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    kinds = {output.output_type for output in outputs}
    assert kinds <= {"stream", "display_data", "execute_result"}
    assert not any(output.get("name") == "stderr" for output in outputs)
    with open(PATH) as f:
        text = f.read()
    assert len(text) < 1.5e6 and ROOT not in text and "/home/" not in text
