"""The tutorials run from top to bottom, and each notebook shows the cells of its text half."""

import re
from pathlib import Path

import pytest
from test_docs import run_as_reader

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


# Lengths of fits and chains: a quarter of them runs the same lines.
# But a Laplace approximation needs a mode (02_full_covariance).
LENGTH = re.compile(
    r"(?<!guide_class, seed, )\b((?:max_|warmup_)?steps|warmup|draws|MCMC\(kernel, num_samples)=(\d{3,})\b"
)


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.stem)
def test_the_tutorial_runs(text, tmp_path):
    """Every line, with short fits; `make tutorials` runs them at the length that the notebooks show."""
    short = LENGTH.sub(lambda found: f"{found[1]}={int(found[2]) // 4}", text.read_text(encoding="utf-8"))
    done = run_as_reader(short, tmp_path / text.name)
    assert done.returncode == 0, done.stderr
