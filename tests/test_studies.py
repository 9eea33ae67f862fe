"""Every study runs in small, twice without computing twice, and real files are read as they are."""

import gzip
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # studies are scripts of the repository, not part of the package

from studies import convolutional, data, merging, mnist, objectives, priors, runner, width_depth  # noqa: E402

STUDIES = {
    "convolutional": convolutional,
    "merging": merging,
    "mnist": mnist,
    "objectives": objectives,
    "priors": priors,
    "width_depth": width_depth,
}


@pytest.fixture(autouse=True)
def single_precision():
    torch.set_default_dtype(torch.float32)


def write_idx(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    header = b"\0\0\x08" + bytes([values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    with gzip.open(path, "wb") as file:
        file.write(header + values.astype(np.uint8).tobytes())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny data set in MNIST's four files."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for part, count in {"train": 320, "t10k": 120}.items():
        classes = np.arange(count) % 10
        images = rng.integers(0, 60, (count, 28, 28))
        images[np.arange(count), classes * 2 + 3] += 180  # a bright row tells the class
        write_idx(root / "mnist" / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(root / "mnist" / f"{part}-labels-idx1-ubyte.gz", classes)
    return root


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_runs_and_resumes(name, folder, tmp_path, capsys):
    arguments = ["--quick", "--out", str(tmp_path), "--seeds", "0", "1"]
    if name in ("convolutional", "mnist"):
        arguments += ["--data-dir", str(folder), "--data", "mnist"]
    first = STUDIES[name].main(arguments)
    figure = "nll" if name == "merging" else "barrier"
    assert {"test"} <= set(first["evaluation"]) <= {"train", "test"}
    assert np.isfinite(first[figure]).all()
    assert list(tmp_path.glob("*_table.md"))
    assert list(tmp_path.glob("*.png"))
    capsys.readouterr()
    again = STUDIES[name].main(arguments)
    assert "done" not in capsys.readouterr().err
    assert np.allclose(again[figure], first[figure])


def test_idx_files_are_read_as_they_are(folder):
    images = data.load("mnist", folder)
    assert images.x.shape == (320, 1, 28, 28)
    assert images.y_test.tolist()[:11] == [*range(10), 0]
    assert float(images.x.max()) <= 1.0
    assert images.flat().x.shape == (320, 784)


def test_broken_files_are_refused(tmp_path):
    path = tmp_path / "mnist" / "train-images-idx3-ubyte.gz"
    write_idx(path, np.zeros((3, 2, 2)))
    assert data.read_idx(path).shape == (3, 2, 2)
    with gzip.open(path, "wb") as file:
        file.write(b"\0\0\x08\x03" + struct.pack(">3I", 3, 2, 2) + b"\0" * 5)
    with pytest.raises(ValueError, match="holds 5 values"):
        data.read_idx(path)
    with gzip.open(path, "wb") as file:
        file.write(b"nothing")
    with pytest.raises(ValueError, match="not an IDX file"):
        data.read_idx(path)
    with pytest.raises(FileNotFoundError, match="data-dir"):
        data.load("fashion_mnist", tmp_path)
    with pytest.raises(ValueError, match="unknown data set"):
        data.load("imagenet")


def test_pairs_make_a_ring():
    assert runner.pairs([0, 1]) == [(0, 1)]
    assert runner.pairs([0, 1, 2]) == [(0, 1), (1, 2), (2, 0)]


def test_one_seed_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        width_depth.main(["--seeds", "1", "1", "--out", str(tmp_path)])
    assert "two different seeds" in capsys.readouterr().err


def test_scores_of_predictions():
    probs = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8], [0.2, 0.8]])
    found = merging.scores(probs, torch.tensor([0, 1, 1, 1]), bins=10)
    assert found["accuracy"] == 0.75
    assert found["nll"] == pytest.approx(-(np.log(0.9) + np.log(0.1) + 2 * np.log(0.8)) / 4, rel=1e-5)
    assert found["ece"] == pytest.approx((abs(1 - 1.8) + abs(2 - 1.6)) / 4, rel=1e-5)


def test_local_reparameterisation_has_the_moments_of_drawn_weights():
    """Mean and variance of a layer's output over draws, against draws of the weights."""
    import pyro
    from pyro import poutine
    from pyro.infer.autoguide import AutoNormal, init_to_sample

    from pyro_align.demo.network import bayesian_mlp
    from studies.elbo import ClosedFormELBO, LocalReparameterisation, _GuideDraws

    torch.manual_seed(0)
    model, x, y = bayesian_mlp([3, 2]), torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
    guide = AutoNormal(model, init_loc_fn=init_to_sample, init_scale=0.5)
    guide(x, y)
    with _GuideDraws(mean=True):
        means = poutine.trace(guide).get_trace(x, y)
    with torch.no_grad():
        with LocalReparameterisation(means):
            local = torch.stack([poutine.replay(model, trace=means)(x, y) for _ in range(4000)])
        drawn = torch.stack(
            [poutine.replay(model, trace=poutine.trace(guide).get_trace(x, y))(x, y) for _ in range(4000)]
        )
    assert torch.allclose(local.mean(0), drawn.mean(0), atol=0.08)
    assert torch.allclose(local.std(0), drawn.std(0), rtol=0.08)
    shared = torch.corrcoef(torch.stack([drawn[:, 0, 0], drawn[:, 1, 0]]))[0, 1]
    apart = torch.corrcoef(torch.stack([local[:, 0, 0], local[:, 1, 0]]))[0, 1]
    assert abs(float(apart)) < 0.1 < abs(float(shared))  # drawn anew for each datum
    losses = [
        np.mean([ClosedFormELBO(local=local).loss(model, guide, x, y) for _ in range(1500)]) for local in (False, True)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    with torch.no_grad():
        pyro_loss = pyro.infer.Trace_ELBO(num_particles=1500).loss(model, guide, x, y)
    assert losses[0] == pytest.approx(pyro_loss, rel=0.05)
