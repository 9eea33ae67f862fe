"""The study of R-hat runs in small, on a table of the kind it reads, and does not sample twice."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # studies are scripts of the repository

from studies import rhat


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 2))
    (tmp_path / "uci").mkdir()
    np.savetxt(tmp_path / "uci" / "tiny.txt", np.column_stack([x, np.tanh(x[:, 0]) + 0.1 * rng.normal(size=30)]))
    return tmp_path


def test_the_study_runs_and_resumes(folder, tmp_path, capsys):
    arguments = ["--quick", "--together", "--seeds", "0", "1", "--data", "tiny", "--data-dir", str(folder)]
    arguments += ["--out", str(tmp_path / "out")]
    first = rhat.main(arguments)
    assert "sampled" in capsys.readouterr().out
    assert set(first["relabeling"]) == set(rhat.RELABELINGS)
    invariant = first[first["quantity"].isin(["b2", "function", "log joint"])]
    for _, part in invariant.groupby(["quantity", "entry"]):
        assert len(part) == len(rhat.RELABELINGS)
        assert np.allclose(part["rhat"], part["rhat"].iloc[0]), "relabeling must not change it"
    swaps = first[first["quantity"] == "transpositions"].groupby("relabeling")["share"].sum()
    assert np.allclose(swaps, 1.0)
    assert (tmp_path / "out" / "rhat.png").exists()
    assert (tmp_path / "out" / "rhat_table.md").exists()
    again = rhat.main(arguments)
    said = capsys.readouterr()
    assert "sampled" not in said.out
    assert "done" not in said.err
    assert len(again) == len(first)
    assert torch.get_default_dtype() == torch.float64


def test_tables_are_standardized(folder):
    x, y = rhat.load_table("tiny", str(folder))
    assert x.shape == (30, 2)
    assert y.shape == (30,)
    assert torch.allclose(x.mean(0), torch.zeros(2))
    assert float(y.std(correction=0)) == pytest.approx(1.0)
    with pytest.raises(FileNotFoundError, match="--data-dir"):
        rhat.load_table("tiny", None)
