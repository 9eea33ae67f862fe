"""Every study runs in small, twice without computing twice, and real files are read as they are."""

import gzip
import io
import shlex
import struct
import sys
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # studies are scripts of the repository, not part of the package

from studies import (  # noqa: E402
    convolutional,
    data,
    families,
    gpu,
    inference,
    merging,
    mnist,
    networks,
    objectives,
    priors,
    resnet,
    runner,
    transformer,
    width_depth,
)

STUDIES = {
    "convolutional": convolutional,
    "families": families,
    "merging": merging,
    "mnist": mnist,
    "objectives": objectives,
    "priors": priors,
    "resnet": resnet,
    "transformer": transformer,
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
    write_cifar10(root / "cifar10", rng)
    return root


def write_cifar10(folder, rng):
    """40 images to train on and 12 to test on, as exact pixels; of the JPEG archive, 50,000 entries and as many."""
    folder.mkdir()
    images, classes = np.full((52, 32, 32, 3), 40, np.uint8), np.arange(52) % 10
    images[np.arange(52), :, classes * 3] = rng.integers(150, 250, (52, 1, 3))
    train, test = slice(40), slice(40, None)
    np.savez(
        folder / "cifar10_lossless_4000_1000.npz",
        x_train=images[train],
        y_train=classes[train],
        x_test=images[test],
        y_test=classes[test],
    )
    files = [jpeg(image) for image in images]
    start = files[0].index(b"\xff\xda") + 14  # behind the header of the scan, the same in all files
    assert len({file[:start] for file in files}) == 1
    scans = [file[start:] for file in files]
    scans = scans[:40] + [b""] * (50000 - 40) + scans[40:]
    np.savez(
        folder / "cifar10_jpegq75_60000.npz",
        header=np.frombuffer(files[0][:start], np.uint8),
        scan=np.frombuffer(b"".join(scans), np.uint8),
        offsets=np.cumsum([0, *map(len, scans)]),
        labels=np.concatenate([classes[train], np.zeros(50000 - 40, int), classes[test]]),
    )


def jpeg(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=75)
    return file.getvalue()


LONG = ("families", "objectives", "priors", "resnet", "transformer")  # over ten seconds


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in LONG)) for n in STUDIES])
def test_a_study_runs_and_resumes(name, folder, tmp_path, capsys):
    arguments = ["--quick", "--out", str(tmp_path), "--seeds", "0", "1"]
    if name in ("convolutional", "mnist"):
        arguments += ["--data-dir", str(folder), "--data", "mnist"]
    if name == "resnet":
        arguments += ["--data-dir", str(folder), "--guides", "normal"]
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


@pytest.mark.slow
def test_the_run_for_a_gpu_fits_what_time_allows(folder, tmp_path, capsys):
    """Width by width, posteriors and points side by side; what it prints measures the same fits again."""
    small = "--device cpu --train 32 --batch 16 --pool 4 --norm plain --taus 3 --draws 2 --test 12 --evaluate 10"
    common = ["--data-dir", str(folder), "--out", str(tmp_path), *small.split()]
    gpu.main(["--widths", "0.125", "0.25", "--passes", "3", "--minutes", "1", *common])
    commands = [line for line in capsys.readouterr().err.splitlines() if line.startswith("python -m studies.resnet")]
    assert len(commands) == 2
    again = resnet.main(shlex.split(commands[-1])[3:])
    assert "done" not in capsys.readouterr().err
    assert set(again["width"]) == {0.125, 0.25}
    assert set(again["guide"]) == {"normal", "delta"}
    assert np.isfinite(again["barrier"]).all()


def test_idx_files_are_read_as_they_are(folder):
    images = data.load("mnist", folder)
    assert images.x.shape == (320, 1, 28, 28)
    assert images.y_test.tolist()[:11] == [*range(10), 0]
    assert float(images.x.max()) <= 1.0
    assert images.flat().x.shape == (320, 784)


def test_cifar10_exact_and_jpeg_are_the_same_images(folder):
    exact, lossy = (data.load(f"cifar10_{kind}", folder, limit=30) for kind in ("exact", "jpeg"))
    assert exact.x.shape == lossy.x.shape == (30, 3, 32, 32)
    assert exact.x_test.shape == lossy.x_test.shape == (12, 3, 32, 32)
    assert torch.equal(exact.y, lossy.y)
    assert torch.equal(exact.y_test, lossy.y_test)
    assert lossy.x.mean((1, 2)).argmax(-1).tolist() == (exact.y * 3).tolist()  # the bright column tells the class
    assert torch.allclose(lossy.x.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert 0 < float((exact.x - lossy.x).abs().mean()) < 0.3


def test_pooling_averages_squares(folder):
    whole, half = data.load("mnist", folder), data.load("mnist", folder).pooled(2)
    assert half.x.shape == (320, 1, 14, 14)
    assert torch.allclose(half.x_test[5, 0, 3, 4], whole.x_test[5, 0, 6:8, 8:10].mean())
    assert torch.equal(whole.pooled(1).x, whole.x)


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


@pytest.mark.parametrize(("norm", "blocks"), [("plain", 3), ("group", 1), ("frn", 1)])
def test_resnet_has_its_layers_and_channels_to_relabel(norm, blocks):
    """A set of channels for each of three streams, and one within each block. Statistics are those of one datum."""
    import pyro_align

    model = networks.bayesian_resnet((2, 3, 4), norm=norm, blocks=blocks, side=8)
    x, y = torch.randn(3, 3 * 8 * 8), torch.tensor([0, 1, 2])
    trace = pyro.poutine.trace(model).get_trace(x, y)
    weights = [n for n in trace.stochastic_nodes if n.endswith(".weight") and ".skip." not in n]
    assert len(weights) == 2 + 6 * blocks  # 20 of ResNet-20
    symmetry = pyro_align.find_symmetry(model, x, y)
    sizes = sorted(atom.size for atom in symmetry.atoms.values())
    assert sizes == [2] * (1 + blocks) + [3] * (1 + blocks) + [4] * (1 + blocks)
    alone = pyro.poutine.replay(model, trace=trace)(x[:1], y[:1])
    assert torch.allclose(alone, trace.nodes["_RETURN"]["value"][:1], atol=1e-5)
    with pytest.raises(ValueError, match="norm must be"):
        networks.bayesian_resnet((2, 3, 4), norm="batch")


def test_transformer_may_be_rotated():
    """The residual stream, and within each head queries with keys and values with outputs; the rest is permuted."""
    import pyro_align

    model = networks.bayesian_transformer(4, heads=2, layers=1, hidden=3)
    symmetry = pyro_align.find_symmetry(model, torch.rand(3, 64), torch.tensor([0, 1, 2]), rotations=True)
    assert sorted(symmetry.atoms[name].size for name in symmetry.rotated) == [2, 2, 4]
    assert sorted(atom.size for name, atom in symmetry.atoms.items() if name not in symmetry.rotated) == [2, 3]


@pytest.mark.parametrize("gauge", objectives.GAUGES)
def test_gauges_fix_scales_and_follow_relabeling(gauge):
    """What a normalization ignores does not count, and the same units correspond as before."""
    import pyro_align
    from studies.training import Recipe, blank, tensors_of, with_tensors

    torch.manual_seed(0)
    model, x, y = (
        networks.bayesian_resnet((2, 3, 4), norm="plain", blocks=1, side=8),
        torch.randn(2, 192),
        torch.arange(2),
    )
    posterior, norm = blank(model, x, y, Recipe()), objectives.GAUGES[gauge]
    symmetry = pyro_align.find_symmetry(model, x, y)
    p = symmetry.random()
    there, back = objectives.gauged(posterior.permute(p), norm), objectives.gauged(posterior, norm).permute(p)
    moments = {part: {k: 3 * v for k, v in sites.items()} for part, sites in tensors_of(posterior).items()}
    scaled = objectives.gauged(with_tensors(posterior, moments), norm)
    assert float(there.distance(back)) < 1e-5
    assert float(scaled.distance(objectives.gauged(posterior, norm))) < 1e-5
    assert float(there.distance(objectives.gauged(posterior, norm))) > 1


def test_starts_are_on_the_device_of_the_prior():
    """And the same for a seed on all devices: drawn on the CPU."""
    from pyro_align.demo.network import he_initialization

    for shape in ([3], [4, 3]):
        zeros = torch.zeros(shape, device="meta", dtype=torch.float64)
        prior = pyro.distributions.Normal(zeros, 1.0, validate_args=False)
        start = he_initialization({"fn": prior.to_event(len(shape))})
        assert (start.device.type, start.dtype, list(start.shape)) == ("meta", torch.float64, shape)
    torch.manual_seed(0)
    expected = torch.randn(4, 3) * (2 / 3) ** 0.5
    torch.manual_seed(0)
    found = he_initialization({"fn": pyro.distributions.Normal(torch.zeros(4, 3), 1.0).to_event(2)})
    assert torch.allclose(found, expected)


def test_gauss_newton_is_the_hessian_where_logits_are_linear():
    """Without a hidden layer the negative log joint's Hessian is its Gauss-Newton matrix."""
    from pyro_align.demo.network import bayesian_mlp

    torch.manual_seed(0)
    x, y = torch.randn(7, 3).double(), torch.arange(7) % 4
    model = bayesian_mlp([3, 4])
    mode = {"layer0.weight": torch.randn(4, 3).double(), "layer0.bias": torch.randn(4).double()}
    task = inference.Task(model, x, y, epochs=1, draws=2, warmup=1)

    def loss(flat):
        values = {"layer0.weight": flat[:12].view(4, 3), "layer0.bias": flat[12:]}
        return -pyro.poutine.trace(pyro.poutine.condition(model, data=values)).get_trace(x, y).log_prob_sum()

    flat = torch.cat([value.reshape(-1) for value in mode.values()])
    assert torch.allclose(inference.gauss_newton(task, mode), torch.autograd.functional.hessian(loss, flat), atol=1e-9)
