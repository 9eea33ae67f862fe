"""`Barrier`: its table, its warnings, and one tau as an ArviZ object."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
from barrier_problems import NOISE, classifier, classifier_data, linear, linear_data, make_guide, make_path

import pyro_align.barrier.result as result
from pyro_align.barrier import Curve, evaluate_barrier
from pyro_align.barrier.cautions import SETTLED
from pyro_align.errors import BarrierError, DiagnosticWarning

arviz = pytest.importorskip("arviz")


@pytest.fixture(scope="module")
def barrier():
    import torch

    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    x, y = classifier_data()
    path = make_path(classifier, x, y, scales=(0.05, 0.05))
    out = evaluate_barrier(classifier, path, evaluation={"train": (x, y), "test": (x[:9], y[:9])}, taus=5)
    torch.set_default_dtype(dtype)
    return out


def fake(curves, draws=12):
    """A barrier with given curves of the data set "data"."""
    taus = np.linspace(0, 1, 5)
    noise = 1e-3 * np.random.default_rng(0).standard_normal((5, draws))
    made = {("data", k): Curve("data", k, taus, np.asarray(v)[:, None] + noise) for k, v in curves.items()}
    zeros = np.zeros((5, draws))
    return result.Barrier(made, taus, zeros, zeros, {"data": zeros}, {"data": 9}, 1.0, 0, True)


@pytest.mark.filterwarnings("ignore:evaluation .test.")
def test_the_table(barrier):
    table = barrier.summary()
    assert list(table.index.names) == ["evaluation", "loss"]
    assert set(table.index) == {(e, n) for e in ("train", "test") for n in barrier.losses}
    for (evaluation, loss), row in table.iterrows():
        curve = barrier[evaluation, loss]
        assert (row["barrier"], row["se"], row["tau"]) == (
            curve.barrier.height,
            curve.barrier.se,
            curve.barrier.tau,
        )
        assert (row["start"], row["end"]) == (curve.value[0], curve.value[-1])
        assert row["low"] <= row["barrier"] <= row["high"] + 1e-12
    assert "predictive_nll" in repr(barrier)


def test_curves_by_name(barrier):
    assert barrier["negative_elbo"] is barrier["train", "negative_elbo"]
    with pytest.raises(KeyError, match="'nll'"):
        barrier["test", "nll"]


def test_a_hidden_loss_of_likelihood_is_told():
    hill, flat = [0.0, 1.0, 2.0, 1.0, 0.0], [0.0] * 5
    with pytest.warns(DiagnosticWarning, match="KL dips along the path and hides"):
        fake({"expected_nll": hill, "negative_elbo": flat}).summary()
    with pytest.warns(DiagnosticWarning, match=r"predictive_nll one of 2"):
        fake({"predictive_nll": hill, "negative_elbo": flat}).summary()
    fake({"expected_nll": hill, "negative_elbo": hill}).summary()
    fake({"expected_nll": flat, "negative_elbo": flat}).summary()


def test_a_dominating_draw_is_told():
    barrier = fake({"predictive_nll": [0.0] * 5})
    barrier["predictive_nll"].draws[2, 4] += 5.0
    with pytest.warns(DiagnosticWarning, match=r"more than 80% of the variance of predictive_nll on 'data'"):
        barrier.summary()


def test_a_barrier_without_its_problem_says_so():
    with pytest.raises(BarrierError, match="does not hold its model"):
        fake({"kl": [0.0] * 5}).at(0.5)


# -- one tau -----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Estimated shape parameter")
def test_one_tau_is_what_arviz_expects(barrier):
    point = barrier.at(0.5, predictive=True)
    log_likelihood = point["log_likelihood"]["y"]
    assert log_likelihood.dims == ("chain", "draw", "data")
    assert log_likelihood.shape == (1, 32, 40)
    assert np.allclose(-log_likelihood.mean("data").values[0], barrier["expected_nll"].draws[2])
    assert point["posterior"]["w1"].shape == (1, 32, 4, 6)
    assert point["posterior_predictive"]["y"].shape == (1, 32, 40)
    assert len(np.unique(point["posterior_predictive"]["y"])) == 3
    assert np.array_equal(point["observed_data"]["y"], barrier.problem.data[0].source[1])
    assert np.allclose(point["sample_stats"]["lp"][0], barrier.log_prior[2] + barrier.likelihood["train"][2])
    assert np.allclose(point["sample_stats"]["log_q"][0], barrier.log_q[2])
    loo = arviz.loo(point)
    assert loo.n_data_points == 40
    assert "tau" not in log_likelihood.dims
    assert point["posterior"].attrs["tau"] == 0.5
    assert set(arviz.summary(point, var_names=["b1"]).index) == {f"b1[{i}]" for i in range(6)}


def test_one_tau_between_and_on_another_data_set(barrier):
    point = barrier.at(0.3, evaluation="test", posterior=False)
    assert point["log_likelihood"]["y"].shape == (1, 32, 9)
    assert "posterior" not in list(point.groups() if callable(point.groups) else point.children)
    with pytest.raises(BarrierError, match="expected a value in"):
        barrier.at(1.2)
    with pytest.raises(BarrierError, match="no data set 'tests'"):
        barrier.at(0.5, evaluation="tests")


def test_leave_one_out_along_the_path(barrier):
    table = barrier.loo([0.0, 0.5])
    assert list(table.index) == [0.0, 0.5]
    assert (table["elpd"] < 0).all()
    assert table["elpd"][0.0] != table["elpd"][0.5]


def test_a_plate_named_like_its_site():
    def model(x, y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
        with pyro.plate("y_plate", len(x)):
            pyro.sample("y_plate_", dist.Normal(x @ w, NOISE), obs=y)

    def same(x, y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
        with pyro.plate("n", len(x)):
            pyro.sample("n_", dist.Normal(x @ w, NOISE), obs=y)

    x, y = linear_data()
    path = make_path(linear, x, y)
    for m, site, plate in ((model, "y_plate_", "y_plate"), (same, "n_", "n")):
        point = evaluate_barrier(m, path, x, y, taus=3, num_samples=4).at(0.5)
        assert point["log_likelihood"][site].dims == ("chain", "draw", plate)


def test_batches_are_joined(barrier):
    problem = barrier.problem
    x, y = problem.data[0].source
    parts = [(x[:15], y[:15]), (x[15:], y[15:])]
    streamed = evaluate_barrier(problem.model, problem.path, evaluation={"s": parts}, taus=3)
    whole, joined = barrier.at(0.5), streamed.at(0.5)
    assert np.allclose(whole["log_likelihood"]["y"], joined["log_likelihood"]["y"])
    assert np.array_equal(whole["observed_data"]["y"], joined["observed_data"]["y"])
    assert np.allclose(whole["sample_stats"]["lp"], joined["sample_stats"]["lp"])


# -- warnings of single ends and of too few draws ----------------------------------------------------------------------


def test_draws_too_few_for_a_predictive_band_are_told():
    barrier = fake({"predictive_nll": [0.0, 0.1, 0.2, 0.1, 0.0], "expected_nll": [0.0] * 5})
    assert barrier["predictive_nll"].settling == 0
    barrier.summary()
    old = barrier["predictive_nll"]
    drift = np.array([0.0, 0.0, 0.5, 0.0, 0.0]) * old.excess_se[2]
    moved = Curve("data", "predictive_nll", old.taus, old.draws, drift)
    assert np.isclose(moved.settling, 0.5)
    barrier.curves["data", "predictive_nll"] = moved
    with pytest.warns(
        DiagnosticWarning,
        match=r"predictive_nll on 'data': the excess.* moves from half of the 12 draws to all, by 0.5",
    ):
        barrier.summary()


def test_wide_posteriors_need_more_draws():
    x, y = linear_data()
    path = make_path(linear, x, y, scales=(0.3, 0.3))
    few, many = (evaluate_barrier(linear, path, x, y, taus=5, num_samples=s)["predictive_nll"] for s in (16, 2000))
    assert few.settling > SETTLED > many.settling
    assert np.all(few.drift[1:-1] != 0)


def test_a_posterior_at_the_prior_is_told():
    import torch

    from pyro_align import Symmetry
    from pyro_align.paths.geodesic import displacement

    def at_prior(units, seed):
        """A classifier's guide whose first units sit at the prior."""
        guide = make_guide(classifier, x, y, seed=seed, scale=0.05)
        with torch.no_grad():
            for name, axis, sd in (("w1", 1, 1.0), ("b1", 0, 1.0), ("w2", 0, 0.7)):
                index = (slice(None),) * axis + (slice(0, units),)
                getattr(guide.locs, name)[index] = 0.0
                scale = getattr(guide.scales, name).detach().clone()
                scale[index] = sd
                setattr(guide.scales, name, scale)
        return guide

    x, y = classifier_data()
    symmetry = Symmetry.from_axes(
        {"w1": (None, "hidden"), "b1": ("hidden",), "w2": ("hidden", None)},
        shapes={"w1": (4, 6), "b1": (6,), "w2": (6, 3)},
    )
    kept = evaluate_barrier(classifier, displacement(at_prior(0, 1), at_prior(0, 2)), x, y, taus=3)
    half = evaluate_barrier(classifier, displacement(at_prior(0, 1), at_prior(4, 2)), x, y, taus=3)
    none = evaluate_barrier(classifier, displacement(at_prior(6, 1), at_prior(0, 2)), x, y, taus=3)
    quiet = [w for w in _warnings(lambda: kept.summary(symmetry=symmetry)) if "collapsed" in w]
    assert not quiet
    assert not [w for w in _warnings(half.summary) if "collapsed" in w], (
        "a third of the values is no collapse of a site"
    )
    (told,) = [w for w in _warnings(lambda: half.summary(symmetry=symmetry)) if "collapsed" in w]
    assert "at tau=1 has" in told
    assert "2 of 6 units of 'hidden'" in told
    (told,) = [w for w in _warnings(none.summary) if "collapsed" in w]
    assert "at tau=0 has" in told
    assert "0% of the values of 'w1', 0% of the values of 'w2'" in told


def _warnings(function):
    import warnings

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        function()
    return [str(w.message) for w in seen]
