"""Barriers as ArviZ objects: groups, dims, round trips, on whichever ArviZ is installed."""

from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr

from pyro_align.barrier.result import Barrier
from pyro_align.losses.curve import Curve
from pyro_align.reporting import arviz as report

arviz = pytest.importorskip("arviz")
MODERN = "InferenceData" not in vars(arviz)


def make(height=1.0, losses=("expected_nll", "negative_elbo"), taus=5, draws=6, seed=0):
    rng, grid = np.random.default_rng(seed), np.linspace(0, 1, taus)
    bump = height * np.sin(np.pi * grid)[:, None]
    curves = {
        (e, loss): Curve(e, loss, grid, bump + 0.01 * rng.standard_normal((taus, draws)))
        for e in ("train", "test")
        for loss in losses
    }
    stats = rng.standard_normal((taus, draws))
    two = {"train": stats, "test": stats}
    return Barrier(curves, grid, stats, stats + 1, two, {"train": 40, "test": 9}, 0.5, 3, True)


def groups_of(tree):
    return set(tree.children) if MODERN else set(tree.groups())


def reopened(tree, tmp_path):
    file = tmp_path / "barrier.nc"
    tree.to_netcdf(file)
    return arviz.from_netcdf(file)


def test_one_barrier():
    barrier = make()
    tree = barrier.to_arviz()
    assert groups_of(tree) == {"sample_stats", "constant_data"}
    draws = tree["sample_stats"]["loss_draws"]
    assert draws.dims == ("chain", "draw", "evaluation", "loss", "tau")
    curve = barrier["test", "negative_elbo"]
    at = {"evaluation": "test", "loss": "negative_elbo"}
    assert np.array_equal(draws.sel(chain=0, **at).values, curve.draws.T)
    constant = tree["constant_data"]
    for name in ("value", "se", "chord", "excess", "excess_se"):
        assert np.array_equal(constant[name].sel(**at), getattr(curve, name)), name
    assert float(constant["barrier"].sel(**at)) == curve.barrier.height
    assert np.array_equal(constant["lower"].sel(**at), curve.band().lower)
    assert int(constant["num_data"].sel(evaluation="test")) == 9
    assert constant.attrs["temperature"] == 0.5
    assert constant["title"].values.tolist() == ["expected NLL", "negative ELBO"]
    assert set(constant["unit"].values) == {"nats per datum"}
    assert np.array_equal(tree["sample_stats"]["log_q"][0], barrier.log_q.T)


def test_no_log_likelihood_over_taus():
    """`arviz.loo` would take every tau's data for data."""
    assert "log_likelihood" not in groups_of(make().to_arviz())


def test_before_and_after_in_one_file(tmp_path):
    before, after = make(2.0), make(0.1, seed=1)
    tree = reopened(report.to_arviz({"before": before, "after": after}), tmp_path)
    assert isinstance(tree, xr.DataTree if MODERN else arviz.InferenceData)
    constant = tree["constant_data"]
    assert list(constant["path"].values) == ["before", "after"]
    assert constant["value"].dims == ("path", "evaluation", "loss", "tau")
    for label, barrier in (("before", before), ("after", after)):
        there = constant.sel(path=label, evaluation="train", loss="negative_elbo")
        assert np.allclose(there["excess"], barrier["train", "negative_elbo"].excess)
        assert float(there["barrier_tau"]) == barrier["train", "negative_elbo"].barrier.tau
    assert tree["sample_stats"]["loss_draws"].sizes["path"] == 2


def test_barriers_of_other_taus_and_losses_are_padded():
    tree = report.to_arviz({"a": make(taus=3), "b": make(taus=5, losses=("negative_elbo", "kl"))})
    constant = tree["constant_data"]
    assert constant.sizes["tau"] == 5
    assert set(constant["loss"].values) == {"expected_nll", "negative_elbo", "kl"}
    assert np.isnan(constant["value"].sel(path="a", loss="kl", evaluation="train")).all()
    there = constant["value"].sel(path="a", loss="negative_elbo", evaluation="train").dropna("tau")
    assert list(there["tau"].values) == [0.0, 0.5, 1.0]


def test_an_empty_mapping_is_refused():
    with pytest.raises(ValueError, match="empty mapping"):
        report.to_arviz({})


@pytest.mark.filterwarnings("ignore:Estimated shape parameter")
def test_one_point(tmp_path):
    rng = np.random.default_rng(0)
    tree = report.point_to_arviz(
        tau=0.25,
        evaluation="train",
        name="y",
        plates=("rows", "columns"),
        log_likelihood=rng.standard_normal((50, 4, 3)) - 2,
        observed={"y": rng.standard_normal((4, 3, 2)), "site": rng.standard_normal(7)},
        lp=rng.standard_normal(50),
        log_q=rng.standard_normal(50),
        posterior={"w": rng.standard_normal((50, 5)), "s": rng.standard_normal(50)},
        predictive={"y": rng.standard_normal((50, 4, 3, 2))},
    )
    tree = reopened(tree, tmp_path)
    assert tree["log_likelihood"]["y"].dims == ("chain", "draw", "rows", "columns")
    assert tree["observed_data"]["y"].dims == ("rows", "columns", "y_dim_0")
    assert tree["observed_data"]["site"].dims == ("site_dim_0",)
    assert tree["posterior_predictive"]["y"].dims == ("chain", "draw", "rows", "columns", "y_dim_0")
    assert tree["posterior"]["s"].dims == ("chain", "draw")
    assert tree["posterior"].attrs["tau"] == 0.25
    assert arviz.loo(tree).n_data_points == 12


def test_a_variable_is_not_lost_to_a_dim_of_its_name():
    tree = report.point_to_arviz(
        tau=0.5,
        evaluation="data",
        name="y",
        plates=("y",),
        log_likelihood=np.zeros((6, 4)),
        observed={"y": np.arange(4.0) + 10},
        lp=np.zeros(6),
        log_q=np.zeros(6),
    )
    assert tree["log_likelihood"]["y"].dims == ("chain", "draw", "y_plate")
    assert list(tree["observed_data"]["y"].values) == [10, 11, 12, 13]


def test_names_that_would_be_groups_or_draws(tmp_path):
    """Slashes are groups in trees and files; `chain` and `draw` are ArviZ's own."""
    rng = np.random.default_rng(0)
    tree = report.point_to_arviz(
        tau=0.5,
        evaluation="data",
        name="head/y",
        plates=("draw", "all/cases"),
        log_likelihood=rng.standard_normal((6, 4, 2)),
        observed={"head/y": np.arange(8).reshape(4, 2)},
        lp=np.zeros(6),
        log_q=np.zeros(6),
        posterior={"encoder/w": rng.standard_normal((6, 3)), "draw": np.arange(6.0)},
    )
    assert tree["log_likelihood"]["head.y"].dims == ("chain", "draw", "draw_plate", "all.cases")
    assert tree["observed_data"]["head.y"].dims == ("draw_plate", "all.cases")
    assert set(tree["posterior"].data_vars) == {"encoder.w", "draw_site"}
    back = reopened(tree, tmp_path)
    assert np.array_equal(back["posterior"]["draw_site"][0], np.arange(6.0))
    assert np.array_equal(back["log_likelihood"]["head.y"], tree["log_likelihood"]["head.y"])


def normal_point(log_likelihood, lp, log_q):
    y = np.zeros(log_likelihood.shape[1])
    fixed = {"tau": 0.5, "evaluation": "data", "name": "y", "plates": ("data",), "observed": {"y": y}}
    return report.point_to_arviz(**fixed, log_likelihood=log_likelihood, lp=lp, log_q=log_q)


@pytest.mark.parametrize("correct", [False, True])
def test_a_datum_on_which_draws_are_tied(correct):
    """As under a network whose units are off: half of the draws give the datum the same, the lowest, likelihood."""
    if correct and not MODERN and not find_spec("arviz_stats"):
        pytest.skip("a correction needs arviz_stats")
    rng = np.random.default_rng(0)
    log_likelihood = -np.abs(rng.standard_normal((200, 5)))
    log_likelihood[:, 2] = np.maximum(log_likelihood[:, 2], -0.5)
    point = normal_point(log_likelihood, log_likelihood.sum(1), log_likelihood.sum(1) + 0.1 * rng.standard_normal(200))
    out = report.leave_one_out(point, correct=correct)
    raw = report._psis_loo(point, correct)
    assert np.isfinite(out["elpd"])
    assert float(np.asarray(raw.pareto_k)[2]) < 0.5
    weights = np.exp(-log_likelihood[:, 2])  # bounded, so that importance sampling needs no smoothing
    if not correct:
        plain = np.log(1 / weights.mean())
        assert abs(report._pointwise(raw)[2] - plain) < 0.02
    tied = point["log_likelihood"]["y"].values[0, :, 2]
    assert (tied == -0.5).sum() > 50, "the point itself is left as it is"


def test_too_few_draws_for_a_tail():
    rng = np.random.default_rng(0)
    log_likelihood = rng.standard_normal((24, 5))
    point = normal_point(log_likelihood, log_likelihood.sum(1), rng.standard_normal(24))
    assert report.guide_shape(point) == np.inf
    with pytest.raises(ValueError, match="at least 25 draws; got 24: raise num_samples"):
        report._check_tail(point["log_likelihood"] if MODERN else point.log_likelihood)


@pytest.mark.parametrize("modern", [False, True])
def test_the_container_follows_the_arviz_installed(monkeypatch, modern):
    """Either side of the one line that knows the ArviZ generation."""
    made = []
    stand_in = SimpleNamespace() if modern else SimpleNamespace(InferenceData=lambda **groups: made.append(groups))
    monkeypatch.setitem(__import__("sys").modules, "arviz", stand_in)
    tree = report.assemble({"constant_data": xr.Dataset({"a": ("x", [1.0, 2.0])})})
    if modern:
        assert isinstance(tree, xr.DataTree)
        assert list(tree["constant_data"]["a"].values) == [1.0, 2.0]
        assert tree["constant_data"].attrs["inference_library"] == "pyro_align"
    else:
        assert list(made[0]) == ["constant_data"]


def test_leave_one_out_of_one_point():
    rng = np.random.default_rng(0)
    theta, y = rng.standard_normal(400) / np.sqrt(41), rng.standard_normal(40)
    center = y.sum() / 41  # posterior of a normal mean under a standard normal prior
    draws = center + theta
    log_likelihood = -0.5 * (y - draws[:, None]) ** 2 - 0.5 * np.log(2 * np.pi)
    lp = log_likelihood.sum(1) - 0.5 * draws**2
    point = report.point_to_arviz(
        tau=0.5,
        evaluation="data",
        name="y",
        plates=("data",),
        log_likelihood=log_likelihood,
        observed={"y": y},
        lp=lp,
        log_q=-0.5 * 41 * theta**2,
    )
    others = (y.sum() - y) / 40  # leaving one out: mean of the posterior, variance 1 / 40
    exact = np.sum(-0.5 * (y - others) ** 2 / (1 + 1 / 40) - 0.5 * np.log(2 * np.pi * (1 + 1 / 40)))
    for correct in [False, True] if MODERN or find_spec("arviz_stats") else [False]:
        out = report.leave_one_out(point, correct=correct)
        assert abs(out["elpd"] - exact) < 0.15
        assert 0.5 < out["p"] < 2
        assert out["bad_k"] == 0
        assert out["corrected"] is correct
        assert out["guide_k"] < 0.5, "the guide is the posterior"
