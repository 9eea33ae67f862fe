"""The tutorials run from top to bottom, and each notebook shows the cells of its text half."""

from pathlib import Path

import pytest
from reader import run_as_reader, shortened

jupytext = pytest.importorskip("jupytext")

TUTORIALS = Path(__file__).resolve().parents[1] / "tutorials"
TEXTS = sorted(path for path in TUTORIALS.glob("[0-9]*.py"))


def cells(notebook):
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def test_there_are_tutorials():
    assert TEXTS


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.stem)
def test_the_notebook_is_the_executed_pair_of_its_text(text):
    notebook = jupytext.read(text.with_suffix(".ipynb"))
    assert cells(notebook) == cells(jupytext.read(text)), "run `make tutorials` and commit the notebook"
    codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in codes] == list(range(1, len(codes) + 1))
    assert not [output.text for cell in codes for output in cell.outputs if output.get("name") == "stderr"]


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.stem)
def test_the_tutorial_runs(text, tmp_path):
    """Every line, with short fits; `make tutorials` runs them at the length that the notebooks show."""
    done = run_as_reader(shortened(text.read_text(encoding="utf-8")), tmp_path / text.name)
    assert done.returncode == 0, done.stderr
