"""The command line for weights: two files of a network in, one merged network out."""

import json
import sys
import types

import pytest
import torch
from torch import nn

from pyro_align.__main__ import main
from pyro_align.errors import FormatError
from pyro_align.files import read_safetensors, write_safetensors


def build(hidden=6):
    return nn.Sequential(nn.Linear(3, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, 2))


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A network, and the same one under other labels."""
    place = types.ModuleType("networks_of_a_test")
    place.build, place.number = build, lambda: 3
    monkeypatch.setitem(sys.modules, place.__name__, place)
    torch.manual_seed(0)
    a, b, order = build().state_dict(), build().state_dict(), torch.tensor([3, 1, 5, 0, 2, 4])
    a["1.running_mean"] = torch.randn(6)
    for name, value in a.items():
        b[name] = value[order] if value.shape[:1] == (6,) else value[:, order] if value.shape[-1:] == (6,) else value
    write_safetensors(tmp_path / "a.safetensors", a)
    torch.save(b, tmp_path / "b.pt")
    return [str(tmp_path / "a.safetensors"), str(tmp_path / "b.pt"), "--module", "networks_of_a_test:build"]


def test_weights_are_aligned_and_merged(files, tmp_path, capsys):
    out = tmp_path / "merged.safetensors"
    assert main(["align-weights", *files, "--input", "1,3", "--out", str(out), "--seed", "1"]) == 0
    printed = capsys.readouterr().out
    assert "W2 distance" in printed
    assert "reset_batch_norm" in printed
    merged, a = read_safetensors(out), read_safetensors(files[0])
    assert list(merged) == list(a)
    assert all(torch.allclose(merged[k], a[k]) for k in a), "the same network, so that the mean is it"
    axes = {"0.weight": ["h", None], "0.bias": ["h"], "3.weight": [None, "h"]}
    axes |= {f"1.{k}": ["h"] for k in ("weight", "bias", "running_mean", "running_var")}
    (tmp_path / "s.json").write_text(json.dumps({"axes": axes}), encoding="utf-8")
    by_hand = ["--symmetry", str(tmp_path / "s.json"), "--out", str(tmp_path / "b.safetensors"), "--tau", "1"]
    assert main(["align-weights", *files, *by_hand]) == 0
    assert all(torch.allclose(v, a[k]) for k, v in read_safetensors(tmp_path / "b.safetensors").items())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--input", "1,x"], "expected sizes such as"),
        ([], "give --input"),
        (["--input", "1,3", "--tau", "2"], "a number from 0 to 1"),
        (["--input", "1,3", "--kwargs", '{"hidden": 5}'], "does not fit"),
        (["--input", "1,3", "--kwargs", "{"], "--kwargs {"),
        (["--input", "1,3", "--module", "networks_of_a_test:absent"], "absent"),
        (["--input", "1,3", "--module", "networks_of_a_test:number"], "expected a torch.nn.Module"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(change, said, files, tmp_path, capsys):
    assert main(["align-weights", *files, "--out", str(tmp_path / "out.safetensors"), *change]) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out.safetensors").exists()


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    write_safetensors(path, {"w": torch.randn(3), "none": torch.empty(0), "n": torch.tensor(4)})
    assert read_safetensors(path)["n"].item() == 4
    content = path.read_bytes()
    for part in (content[:-1], content[:9], b"", content[:8] + b"[" + content[9:]):
        path.write_bytes(part)
        with pytest.raises(FormatError, match="no safetensors file"):
            read_safetensors(path)


def test_files_are_those_of_safetensors(tmp_path):
    path = tmp_path / "w.safetensors"
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file({"b": torch.ones(2), "a": torch.zeros(1, dtype=torch.long)}, path)
    assert read_safetensors(path)["b"].tolist() == [1.0, 1.0]
    write_safetensors(path, {"w": torch.arange(6.0).reshape(2, 3)})
    assert safetensors.load_file(path)["w"].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
