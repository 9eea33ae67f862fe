"""The tutorials run from top to bottom, and each notebook shows the cells of its text half."""

import importlib.util
import re
from importlib.metadata import version
from pathlib import Path

import pytest

jupytext = pytest.importorskip("jupytext")

TUTORIALS = Path(__file__).resolve().parents[1] / "tutorials"
TEXTS = sorted(path for path in TUTORIALS.glob("[0-9]*.py"))

spec = importlib.util.spec_from_file_location("execute", TUTORIALS / "execute.py")
execute = importlib.util.module_from_spec(spec)
spec.loader.exec_module(execute)


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
def test_the_tutorial_runs(text):
    if re.search(r"\baz\.plot_", text.read_text()) and int(version("arviz").split(".")[0]) >= 1:
        pytest.skip("its figures are drawn by ArviZ 0.x, whose plots take other arguments than those of 1.x")
    execute.execute(text)  # raises CellExecutionError with the cell and its traceback
