"""The main job, in small: what it prints and writes, that it repeats itself, and that it says what is wrong."""

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from pyro_align.demo.__main__ import load_digits, main

SMALL = ["--hidden", "6", "5", "--epochs", "2", "--num-samples", "4", "--num-taus", "3", "--threads", "1"]


@pytest.fixture(autouse=True)
def single_precision():
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What two runs with the same options print and write."""
    torch.set_default_dtype(torch.float32)
    found = []
    for name in ("first", "second"):
        out = tmp_path_factory.mktemp(name)
        with pytest.MonkeyPatch.context() as patch:
            lines = []
            patch.setattr(
                "builtins.print", lambda *a, file=None, lines=lines, **k: file or lines.append(" ".join(map(str, a)))
            )
            main([*SMALL, "--out", str(out)])
        plt.close("all")
        found.append(("\n".join(lines).replace(str(out), "OUT"), out))
    return found


def test_the_report_is_complete(runs):
    text = runs[0][0]
    for expected in (
        "64-6-5-10",
        "N(0, 2 / fan_in)",
        "KL temperature: 0.01",
        "cold posterior",
        "layer0.weight[0], layer0.bias[0], layer1.weight[1]",
        "log order",
        "certified",
        "effective width",
        "W2 distance",
        "expected NLL",
        "predictive NLL",
        "negative ELBO",
        "error rate",
        "test accuracy",
    ):
        assert expected in text, expected
    rows = [line.split()[:2] for line in text.splitlines() if " @ " in line and line.split()[0] in ("train", "test")]
    assert rows == [["train", "before"], ["train", "after"], ["test", "before"], ["test", "after"]]


def test_the_same_options_print_the_same(runs):
    assert runs[0][0] == runs[1][0]


def test_the_file_opens_in_arviz_and_the_figure_is_there(runs):
    out = runs[0][1]
    data = az.from_netcdf(out / "barrier.nc")
    curves = data["constant_data"]
    assert list(curves["path"].values) == ["before", "after"]
    assert set(curves["evaluation"].values) == {"train", "test"}
    np.testing.assert_array_equal(curves["tau"], [0.0, 0.5, 1.0])
    # both paths start from the same posterior, evaluated with the same noise
    start = curves["value"].sel(tau=0.0, loss="expected_nll", evaluation="train").values
    assert start[0] == start[1] > 0
    assert plt.imread(out / "barrier.png").std() > 0


def test_digits_are_split_without_overlap():
    data = load_digits()
    assert data.x.shape == (1437, 64)
    assert data.x_test.shape == (360, 64)
    assert float(data.x.min()) >= 0
    assert float(data.x.max()) == 1.0
    assert set(data.y_test.tolist()) == set(range(10))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--hidden 0", "--hidden: expected positive"),
        ("--seeds 1 1", "two different seeds"),
        ("--seeds -1 1", "may not be negative"),
        ("--temperature 0", "--temperature: expected a positive number"),
        ("--prior-scale wide", "expected fan-in or a positive number, got 'wide'"),
        ("--prior-scale -1", "expected fan-in or a positive number"),
        ("--epochs 0", "--epochs: expected at least 1"),
        ("--num-samples 1", "--num-samples: expected at least 2"),
        ("--num-taus 2", "--num-taus: expected at least 3"),
        ("--device toaster", "--device: 'toaster' cannot be used here"),
        ("--out /proc/nothing", "--out: cannot write to"),
        ("--nonsense", "unrecognized arguments"),
    ],
)
def test_bad_options_are_refused_at_once(options, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(options.split())
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
