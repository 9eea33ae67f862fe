"""Restarts of one model: which fits agree, and which of their units come back."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from pyro_align import SymmetrySpec
from pyro_align.axes import Odd
from pyro_align.errors import PyroAlignError
from pyro_align.restarts import stability

UNIT = Odd("unit")
NETWORK = SymmetrySpec({"w1": (UNIT, None), "b1": (UNIT,), "w2": (None, UNIT)})
SHAPES = {"w1": (5, 3), "b1": (5,), "w2": (2, 5)}


def network(seed):
    generator = torch.Generator().manual_seed(seed)
    return {k: torch.randn(n, generator=generator, dtype=torch.float64) for k, n in SHAPES.items()}


def restarts():
    """Three fits that are one up to labels, signs, noise and one unit of the third; and a stranger."""
    group, base = NETWORK.bind(SHAPES), network(0)
    fits = [{k: v + 0.02 * torch.randn_like(v) for k, v in base.items()} for _ in range(3)]
    fits[2]["w1"][3] += 4.0
    fits[2]["w2"][:, 3] -= 4.0
    moved = [group.random(k).apply(fit) for k, fit in enumerate(fits)] + [network(1)]
    return {f"seed {k}": {s: v[None].expand(2, *v.shape) for s, v in fit.items()} for k, fit in enumerate(moved)}


@pytest.fixture(scope="module")
def found():
    torch.manual_seed(0)
    return stability(restarts(), NETWORK, reference=0, restarts=4)


def test_fits_that_differ_by_labels_are_one(found):
    assert (found.distances_before[0, 1:3] > 1.0).all()
    assert found.distances[0, 1] < 0.3
    assert found.distances[0, 2] > 3.0, "one of its units is another"
    table = found.summary()
    assert list(table.index) == ["seed 0", "seed 1", "seed 2", "seed 3"]
    assert table.loc["seed 0", "shared"] == pytest.approx(0.8), "all units but the one in two of three other fits"
    assert table.loc["seed 3", "shared"] < 0.5


def test_units_that_come_back_are_counted(found):
    units = found.units()
    assert sorted(units["fits"]) == [2, 3, 3, 3, 3]
    assert units["recurs"].sum() == 4
    assert (units["ratio"].to_numpy() > 0).all()
    assert "4/5" in str(found)


def test_ratios_do_not_mind_units_of_measurement(found):
    torch.manual_seed(0)
    scaled = {name: {k: 100 * v for k, v in fit.items()} for name, fit in restarts().items()}
    other = stability(scaled, NETWORK, reference=0, restarts=4)
    assert torch.allclose(other.ratios["unit"], found.ratios["unit"])
    assert np.allclose(other.distances, 100 * found.distances)


def test_a_ratio_is_about_one_between_strangers():
    fits = [{k: v[None].expand(2, *v.shape) for k, v in network(seed).items()} for seed in (2, 3)]
    ratio = stability(fits, NETWORK, reference=0, threshold=1e-9).ratios["unit"][0, 1]
    assert 0.3 < float(ratio.mean()) < 1.3
    assert stability(fits, NETWORK, reference=0).names == ("0", "1")


def test_units_inside_others_are_compared_within_them():
    spec = SymmetrySpec({"w": ("head", "dim", None)}, within={"dim": ("head",)})
    base = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    group = spec.bind({"w": (3, 4, 5)})
    fits = [{"w": group.random(k).apply({"w": base})["w"][None].expand(2, 3, 4, 5)} for k in range(3)]
    found = stability(fits, spec, reference=0)
    assert found.ratios["dim"].shape == (3, 3, 3, 4)
    assert found.units()["recurs"].all()


def test_the_dendrogram_joins_what_agrees_first(found):
    ax = found.plot(plt.subplots()[1])
    order = [label.get_text() for label in ax.get_xticklabels()]
    assert abs(order.index("seed 0") - order.index("seed 1")) == 1
    assert "W2" in ax.get_ylabel()
    plt.close("all")


def test_what_cannot_be_compared_is_refused():
    one = next(iter(restarts().values()))
    with pytest.raises(PyroAlignError, match="two or more, got 1"):
        stability([one], NETWORK)
    with pytest.raises(PyroAlignError, match="threshold"):
        stability(restarts(), NETWORK, threshold=0)
    with pytest.raises(PyroAlignError, match="nothing to compare"):
        stability(restarts(), SymmetrySpec({"w1": (None, None)}), reference=0)
