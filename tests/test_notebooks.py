"""The notebooks run, and what they show is what they would show now, up to the numbers: votes may fall otherwise."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples" / "notebooks").glob("*.ipynb"))
NUMBER = re.compile(r"[-+]?\d[\d .e+-]*|\bnan\b|\s+")


def shown(notebook) -> list[tuple[str, str]]:
    """What each output is, and its text without numbers; warnings and progress on standard error are not of it."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.get("name") != "stderr":
                text = output.get("text") or output.get("data", {}).get("text/plain", "")
                found.append((output.output_type, NUMBER.sub("#", text)))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_its_outputs_are_current(path, request, monkeypatch, tmp_path):
    if path.stem.startswith("mnist"):
        monkeypatch.setenv("ART_RS_DATA", str(request.getfixturevalue("data_root")))
    kept = nbformat.read(path, as_version=4)
    now = nbformat.read(path, as_version=4)
    NotebookClient(now, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    assert shown(now) == shown(kept)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_keeps_its_outputs_and_is_small(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    outputs = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    assert sum(map(bool, outputs)) >= len(outputs) - 2
    assert path.stat().st_size < 60_000
    assert str(Path(__file__).parents[1]) not in path.read_text()


def test_there_are_three():
    assert len(NOTEBOOKS) == 3
