"""Relabeled draws stay one posterior: what is derived from the relabeled sites, and labels of units, move along."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr

from pyro_align import align_draws
from pyro_align.axes import Odd
from pyro_align.errors import DiagnosticWarning, SymmetryError
from pyro_align.symmetry import SymmetrySpec

CHAINS, DRAWS, K, N = 3, 20, 3, 12
SYMMETRY = SymmetrySpec({"centers": ("k",), "w": ("k",)})
D = ("chain", "draw")


@pytest.fixture
def mixture():
    """A run in the shape that PyMC gives: each chain numbers its clusters in its own way."""
    rng = np.random.default_rng(0)
    truth, z = np.array([-4.0, 0.0, 5.0]), np.arange(N) % K
    order = np.argsort(rng.random((CHAINS, 1, K)), -1).repeat(DRAWS, 1)
    order[0], order[1] = [0, 1, 2], [1, 2, 0]
    centers = np.take_along_axis(truth + 0.1 * rng.normal(size=(CHAINS, DRAWS, K)), order, -1)
    w = np.take_along_axis(rng.dirichlet([20] * K, (CHAINS, DRAWS)), order, -1)
    assignment = np.take_along_axis(np.argsort(order, -1), np.broadcast_to(z, (CHAINS, DRAWS, N)), -1)
    return xr.Dataset(
        {
            "centers": ((*D, "cluster"), centers),
            "w": ((*D, "cluster"), w),
            "assignment": ((*D, "obs"), assignment),
            "of obs": ((*D, "obs"), np.take_along_axis(centers, assignment, -1)),
        },
        coords={"cluster": ["a", "b", "c"], "obs": np.arange(N)},
    )


def agrees(v):
    return bool((v == v.isel(chain=0, draw=0)).all())


def test_labels_move_with_their_units(mixture):
    aligned = align_draws(mixture, SYMMETRY, labels={"assignment": "k"})
    out = aligned.to_arviz()
    assert not agrees(mixture.assignment)
    assert agrees(out.assignment)
    assert out.assignment.dtype == mixture.assignment.dtype
    np.testing.assert_allclose(np.take_along_axis(out.centers.values, out.assignment.values, -1), mixture["of obs"])
    np.testing.assert_array_equal(out.assignment, aligned.draws["assignment"])
    np.testing.assert_array_equal(out.assignment, aligned.relabel_allocations(mixture.assignment))
    assert "cluster" not in out.coords  # 'a' is no longer where it was
    assert "obs" in out.coords


def test_labels_may_start_at_one_even_where_a_slice_does_not_tell(mixture, monkeypatch):
    monkeypatch.setattr("pyro_align.draws.sources._SLICE", 1)  # draws are read one by one
    given = mixture[["centers", "w"]].assign(assignment=mixture.assignment.isel(obs=[0]) + 1)
    aligned = align_draws(given, SYMMETRY, labels={"assignment": "k"})
    assert agrees(xr.DataArray(aligned.draws["assignment"], dims=(*D, "obs")))


def test_labels_that_nobody_spoke_of_are_named(mixture):
    with pytest.warns(DiagnosticWarning, match=r"'assignment': its values are whole numbers in 0..2"):
        aligned = align_draws(mixture, SYMMETRY)
    assert "assignment" in str(aligned)
    np.testing.assert_array_equal(aligned.draws["assignment"], mixture.assignment)
    align_draws(mixture, SYMMETRY, labels={"assignment": None})  # no warning


def test_a_shared_dim_carries_the_units(mixture):
    given = mixture.drop_vars("assignment").assign(
        sd=mixture.w**-0.5, cross=mixture.centers * xr.ones_like(mixture.obs, float)
    )
    out = align_draws(given, SYMMETRY).to_arviz()
    np.testing.assert_allclose(out.sd, out.w**-0.5)
    xr.testing.assert_allclose(out.cross.isel(obs=0, drop=True), out.centers)


def test_an_axis_of_the_same_size_is_named(mixture):
    draws = {"centers": mixture.centers.values, "w": mixture.w.values, "sd": mixture.w.values**-0.5}
    with pytest.warns(DiagnosticWarning, match="'sd': its axis 0 has as many entries as there are units of 'k'"):
        align_draws(draws, SYMMETRY)
    aligned = align_draws(draws, SYMMETRY, derived={"sd": ("k",)})
    np.testing.assert_allclose(aligned.draws["sd"], aligned.draws["w"] ** -0.5)
    assert aligned.report(modes=False).loc["sd", "relabeled"] == aligned.relabeled.sum()
    kept = align_draws(draws, SYMMETRY, derived={"sd": (None,)})
    np.testing.assert_array_equal(kept.draws["sd"], draws["sd"])


def test_a_shared_dim_of_signed_units_does_not_tell_the_sign():
    rng = np.random.default_rng(1)
    signs = rng.choice([-1, 1], (2, 20, 1))
    w = signs * (np.array([1.0, 2.0]) + 0.1 * rng.normal(size=(2, 20, 2)))
    given = xr.Dataset({"w": ((*D, "unit"), w), "v": ((*D, "unit"), 2 * w)})
    symmetry = SymmetrySpec({"w": (Odd("u"),)})
    with pytest.warns(DiagnosticWarning, match="whether its sign changes"):
        align_draws(given, symmetry)
    out = align_draws(given, symmetry, derived={"v": (Odd("u"),)}).to_arviz()
    np.testing.assert_allclose(out.v, 2 * out.w)


def model(y):
    tau = pyro.sample("tau", dist.Gamma(torch.ones(K), 1.0).to_event(1))
    mu = pyro.sample("mu", dist.Normal(torch.zeros(K), 5.0).to_event(1))
    w = pyro.sample("w", dist.Dirichlet(torch.ones(K)))
    sd = pyro.deterministic("sd", tau**-0.5)
    pyro.deterministic("gap", mu.unsqueeze(-1) - mu)
    pyro.deterministic("three moments", torch.stack([mu.sum(), mu.square().sum(), tau.sum()]))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(w), dist.Normal(mu, sd)), obs=y)


def test_deterministics_of_the_model_move_as_the_model_says():
    g = torch.Generator().manual_seed(0)
    order = torch.rand(2, 15, K, generator=g).argsort(-1)
    draws = {
        "tau": torch.tensor([0.3, 1.0, 4.0]) * (0.1 * torch.randn(2, 15, K, generator=g)).exp(),
        "mu": torch.tensor([-4.0, 0.0, 5.0]) + 0.1 * torch.randn(2, 15, K, generator=g),
        "w": torch.softmax(0.1 * torch.randn(2, 15, K, generator=g), -1),
    }
    draws = {k: v.gather(-1, order) for k, v in draws.items()}
    mu, tau = draws["mu"], draws["tau"]
    draws |= {
        "sd": tau**-0.5,
        "gap": mu.unsqueeze(-1) - mu.unsqueeze(-2),
        "three moments": torch.stack([mu.sum(-1), mu.square().sum(-1), tau.sum(-1)], -1),
    }
    symmetry = SymmetrySpec({"tau": ("k",), "mu": ("k",), "w": ("k",)})
    aligned = align_draws(draws, symmetry, model=model, args=(torch.randn(8, generator=g),))
    out = aligned.draws
    assert aligned.relabeled.any()
    torch.testing.assert_close(out["sd"], out["tau"] ** -0.5)
    torch.testing.assert_close(out["gap"], out["mu"].unsqueeze(-1) - out["mu"].unsqueeze(-2))
    assert torch.equal(out["three moments"], draws["three moments"])


@pytest.mark.parametrize(
    ("match", "options"),
    [
        (r"labels= names 'z'", {"labels": {"z": "k"}}),
        (r"units of 'j'", {"labels": {"assignment": "j"}}),
        (r"labels must be whole numbers", {"labels": {"of obs": "k"}}),
        (r"derived= names 'sd'", {"derived": {"sd": ("k",)}}),
        (r"derived= names 'w', whose axes the symmetry", {"derived": {"w": ("k",)}}),
        (r"there is no atom 'j'", {"derived": {"of obs": ("j",)}}),
        (r"2 axes are named", {"derived": {"of obs": ("k", None)}}),
    ],
)
def test_what_does_not_fit_is_refused_by_name(match, options, mixture):
    with pytest.raises(SymmetryError, match=match):
        align_draws(mixture, SYMMETRY, **options)


@pytest.mark.parametrize(
    ("match", "options"),
    [
        (r"supports= names \['lco'\]", {"supports": {"lco": dist.constraints.positive}}),
        (r"weights= names \['lco'\]", {"weights": {"lco": 3.0}}),
        (r"not negative", {"weights": {"w": -1.0}}),
        (r"site 'centers': the support is", {"supports": {"centers": dist.constraints.positive}}),
        (r"site 'centers': the support is", {"supports": {"centers": dist.constraints.interval(-3.0, 9.0)}}),
        (r"site 'centers': the support is", {"supports": {"centers": dist.constraints.simplex}}),
    ],
)
def test_options_that_do_not_fit_the_draws(match, options, mixture):
    with pytest.raises(ValueError, match=match):
        align_draws(mixture[["centers", "w"]], SYMMETRY, **options)


def test_values_on_the_boundary_of_a_support_are_inside(mixture):
    given = mixture[["centers", "w"]].copy(deep=True)
    given["w"][0, 0] = [0.0, 0.0, 1.0]
    align_draws(given, SYMMETRY, supports={"w": dist.constraints.simplex})


def test_complex_and_masked_draws_are_refused(mixture):
    draws = {"centers": mixture.centers.values, "w": mixture.w.values}
    with pytest.raises(ValueError, match="site 'w': draws are complex"):
        align_draws(draws | {"w": draws["w"] + 1j}, SYMMETRY)
    with pytest.raises(ValueError, match="site 'w': draws are masked"):
        align_draws(draws | {"w": np.ma.masked_greater(draws["w"], 0.5)}, SYMMETRY)
