"""Draws that no Pyro model made: xarray objects, NumPyro, and the command line."""

import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from pyro_align import SymmetrySpec, align_draws
from pyro_align.__main__ import main
from pyro_align.axes import Odd, Product, Sum
from pyro_align.draws import read_symmetry, relabel
from pyro_align.errors import FormatError


@pytest.fixture
def run():
    rng = np.random.default_rng(0)
    mu = np.array([-4.0, 0.0, 5.0]) + 0.1 * rng.normal(size=(2, 20, 3))
    mu[1] = mu[1][:, [2, 0, 1]]
    z = np.stack([np.tile([0, 1, 2, 2], (20, 1)), np.tile([1, 2, 0, 0], (20, 1))])
    return xr.Dataset({"mu": (("chain", "draw", "cluster"), mu), "z": (("chain", "draw", "obs"), z)})


def test_a_dataset_is_relabeled(run):
    out = relabel(run, {"mu": ("k",)}, labels={"z": "k"})
    assert float(out.mu.std(("chain", "draw")).max()) < 0.3
    assert bool((out.z == out.z[0, 0]).all())


def test_a_symmetry_is_read(tmp_path):
    axes = {"w": ["±h", {"product": ["b", 3]}], "v": [{"sum": ["h", 2]}, None], "b": ["b"]}
    (tmp_path / "s.json").write_text(json.dumps({"axes": axes}), encoding="utf-8")
    expected = SymmetrySpec({"w": (Odd("h"), Product("b", 3)), "v": (Sum("h", 2), None), "b": ("b",)})
    assert dict(read_symmetry(tmp_path / "s.json").sites) == dict(expected.sites)
    for text in ("[", "[]", '{"axes": {"w": [true, [1]]}}', '{"axes": {"w": 3}}'):
        (tmp_path / "s.json").write_text(text, encoding="utf-8")
        with pytest.raises(FormatError, match="is no symmetry"):
            read_symmetry(tmp_path / "s.json")


@pytest.mark.parametrize("ending", ["nc", "zarr"])
def test_the_command_line_relabels_a_file(ending, run, tmp_path, capsys):
    xr.DataTree.from_dict({"/posterior": run}).to_netcdf(tmp_path / "run.nc", engine="h5netcdf")
    (tmp_path / "s.json").write_text('{"axes": {"mu": ["k"]}}')
    out = tmp_path / f"aligned.{ending}"
    command = ["align-draws", str(tmp_path / "run.nc"), "--symmetry", str(tmp_path / "s.json"), "--out", str(out)]
    assert main([*command, "--label", "z=k"]) == 0
    assert "relabeled" in capsys.readouterr().out
    assert float(align_draws(out, SymmetrySpec({"mu": ("k",)}), labels={"z": "k"}).relabeled.mean()) == 0
    assert main([*command, "--label", "z=k"]) == 1
    assert "exists" in capsys.readouterr().err
    assert main([*command[:-1], str(tmp_path / "other.nc"), "--label", "z"]) == 1
    assert "expected VARIABLE=ATOM" in capsys.readouterr().err


@pytest.mark.parametrize("library", ["numpyro", "pymc"])
def test_the_example_of_a_library_runs(library):
    """The page's code, where the library is there."""
    pytest.importorskip(library)
    page = (Path(__file__).resolve().parents[1] / "docs" / "elsewhere.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```{code-block} python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (code,) = (block for block in blocks if f"import {library}" in block)
    run: dict = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the library
        exec(code, run)
    aligned = run["aligned"]
    assert aligned.source.shape == (4, 200)
    mu = np.sort(np.asarray(aligned.draws["mu"]).mean((0, 1)))
    assert np.abs(mu - [-3.0, 3.0]).max() < 0.5
    assert aligned.report(modes=False).loc["mu", "rhat"] < 1.1
    if library == "pymc":
        assert "gap" in aligned.carried.moved
