"""`evaluate_barrier`: its losses against closed forms and against Pyro's own, and its ways of running a model."""

import math
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from barrier_problems import (
    NOISE,
    PRIOR,
    classifier,
    classifier_data,
    excess_of,
    linear,
    linear_data,
    linear_truth,
    make_guide,
    make_path,
    true_curve,
)
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal
from pyro.nn import PyroModule, PyroSample
from torch import nn

from pyro_align.barrier import evaluate_barrier
from pyro_align.errors import BarrierError, DiagnosticWarning
from pyro_align.paths.geodesic import displacement


@pytest.fixture
def regression():
    x, y = linear_data()
    return make_path(linear, x, y, scales=(0.3, 0.1)), x, y


@pytest.fixture
def network():
    x, y = classifier_data()
    return make_path(classifier, x, y), x, y


# -- against closed forms ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["expected_nll", "predictive_nll", "negative_elbo", "kl"])
def test_losses_of_the_conjugate_model(regression, loss):
    path, x, y = regression
    barrier = evaluate_barrier(linear, path, x, y, taus=7, num_samples=600, temperature=0.3, losses=[loss])
    curve, truth = barrier[loss], true_curve(path, barrier.taus, x, y, loss, 0.3)
    assert np.all(np.abs(curve.value - truth) <= 4.5 * curve.se + 1e-12)
    excess = excess_of(truth, barrier.taus)
    assert np.all(np.abs(curve.excess - excess) <= 4.5 * curve.excess_se + 1e-12)
    if loss != "kl":
        assert curve.se.max() < 0.2, "the check has no teeth"


def test_the_analytic_kl_has_no_error(regression):
    path, x, y = regression
    curve = evaluate_barrier(linear, path, x, y, taus=5, num_samples=4, losses="kl")["kl"]
    assert np.ptp(curve.draws, axis=1).max() == 0
    assert np.allclose(curve.value, true_curve(path, curve.taus, x, y, "kl"), rtol=1e-12)


def test_differences_are_known_better_than_levels(regression):
    path, x, y = regression
    curve = evaluate_barrier(linear, path, x, y, taus=5, num_samples=200)["expected_nll"]
    assert curve.excess_se[2] < 0.5 * curve.se[2]


def test_monte_carlo_kl_where_there_is_no_closed_form():
    def model(x, y=None):
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
        w = pyro.sample("w", dist.StudentT(5.0).expand([x.shape[1]]).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, scale), obs=y)

    x, y = linear_data()
    path = make_path(model, x, y)
    curve = evaluate_barrier(model, path, x, y, taus=3, num_samples=400)["kl"]
    guide = path(0.0)
    draws = [float(_log_ratio(model, guide, x, y)) / len(x) for _ in range(400)]
    error = math.hypot(curve.se[0], np.std(draws) / math.sqrt(len(draws)))
    assert abs(curve.value[0] - np.mean(draws)) < 4.5 * error


def _log_ratio(model, guide, *args):
    """log q - log p of one draw of the guide's latents, the prior alone."""
    trace = poutine.trace(guide).get_trace(*args)
    trace.compute_log_prob()
    joint = poutine.trace(poutine.replay(model, trace)).get_trace(*args)
    joint.compute_log_prob()
    prior = sum(s["log_prob_sum"] for s in joint.nodes.values() if s["type"] == "sample" and not s["is_observed"])
    return (trace.log_prob_sum() - prior).detach()


def test_the_conditional_kl_of_a_hierarchical_prior_is_unbiased():
    def model(x, y=None):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        w = pyro.sample("w", dist.Normal(m, 0.5).expand([x.shape[1]]).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)

    x, y = linear_data()
    path = make_path(model, x, y, scales=(0.4, 0.2))
    curve = evaluate_barrier(model, path, x, y, taus=3, num_samples=500)["kl"]
    for k, tau in enumerate((0.0, 0.5, 1.0)):
        (a, s), (m, v) = (path.posterior(tau).marginal(site) for site in ("m", "w"))
        top = torch.log(1 / s) + (s**2 + a**2) / 2 - 0.5
        below = (0.5 / v).log() + (v**2 + (m - a) ** 2 + s**2) / (2 * 0.25) - 0.5
        truth = float(top + below.sum()) / len(x)
        assert abs(curve.value[k] - truth) < 4.5 * curve.se[k]
        assert curve.se[k] > 0


# -- against Pyro ------------------------------------------------------------------------------------------------------


def test_the_negative_elbo_is_pyros(network):
    path, x, y = network
    curve = evaluate_barrier(classifier, path, x, y, taus=3, num_samples=256)["negative_elbo"]
    for k, elbo in ((0, Trace_ELBO), (1, Trace_ELBO), (2, Trace_ELBO), (1, TraceMeanField_ELBO)):
        guide = path(float(curve.taus[k]))
        theirs = [elbo().loss(classifier, guide, x, y) / len(x) for _ in range(256)]
        error = math.hypot(curve.se[k], np.std(theirs, ddof=1) / 16)
        assert abs(curve.value[k] - np.mean(theirs)) < 4.5 * error


def test_scales_and_subsampling_count_as_in_pyro():
    def model(x, y):
        with poutine.scale(scale=0.3):
            w = pyro.sample("w", dist.Normal(0.0, PRIOR).expand([x.shape[1]]).to_event(1))
        with pyro.plate("data", 30, subsample_size=12), poutine.scale(scale=2.0):
            pyro.sample("y", dist.Normal(x @ w, NOISE), obs=y)

    x, y = linear_data()
    path = make_path(model, x, y)
    barrier = evaluate_barrier(model, path, x, y, taus=3, num_samples=400)
    assert barrier.num_data == {"data": 30}
    theirs = [Trace_ELBO().loss(model, path(0.5), x, y) / 30 for _ in range(400)]
    curve = barrier["negative_elbo"]
    assert abs(curve.value[1] - np.mean(theirs)) < 4.5 * math.hypot(curve.se[1], np.std(theirs) / 20)
    truth = linear_truth(path, 0.5, x, y)
    nll = barrier["expected_nll"]
    assert abs(nll.value[1] - truth.expected_nll) < 4.5 * nll.se[1], "likelihood losses are not scaled"


def test_masked_data_count_nothing():
    keep = torch.arange(12) < 8

    def model(x, y):
        w = pyro.sample("w", dist.Normal(0.0, PRIOR).expand([x.shape[1]]).to_event(1))
        with pyro.plate("data", len(x)), poutine.mask(mask=keep):
            pyro.sample("y", dist.Normal(x @ w, NOISE), obs=y)

    x, y = linear_data()
    path = make_path(linear, x, y)
    masked = evaluate_barrier(model, path, x, y, taus=3)
    short = evaluate_barrier(linear, path, x[keep], y[keep], taus=3)
    for loss in ("expected_nll", "predictive_nll"):
        assert np.allclose(masked[loss].draws, short[loss].draws)
    assert np.allclose(masked["kl"].value, short["kl"].value)
    assert masked.num_data == short.num_data == {"data": 8}


def test_temperature_weighs_the_kl(regression):
    path, x, y = regression
    cold = evaluate_barrier(linear, path, x, y, taus=3, temperature=0.1)
    assert np.allclose(cold["negative_elbo"].draws, cold["expected_nll"].draws + 0.1 * cold["kl"].draws)


# -- what a datum is ---------------------------------------------------------------------------------------------------


def test_observed_sites_that_share_the_plate_are_one_datum():
    def model(x, y, z):
        w = pyro.sample("w", dist.Normal(0.0, PRIOR).expand([x.shape[1]]).to_event(1))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("y", dist.Normal(x @ w, NOISE), obs=y)
            with pyro.plate("more", 2, dim=-2):
                pyro.sample("z", dist.Normal(x @ w, 2.0), obs=z)

    x, y = linear_data()
    z = torch.randn(2, len(x))
    path = make_path(model, x, y, z)
    barrier = evaluate_barrier(model, path, x, y, z, taus=3, num_samples=8)
    assert barrier.num_data == {"data": len(x)}
    w = path.posterior(0.0).push(barrier.problem.noise)["w"]
    mean = w @ x.T
    log_lik = dist.Normal(mean, NOISE).log_prob(y) + dist.Normal(mean[:, None], 2.0).log_prob(z).sum(1)
    assert np.allclose(barrier["expected_nll"].draws[0], -log_lik.mean(1))
    assert barrier.at(0.0).log_likelihood["joint"].dims == ("chain", "draw", "data")


def test_two_plates_make_a_grid_of_data():
    def model(y):
        m = pyro.sample("m", dist.Normal(torch.zeros(4), 1.0).to_event(1))
        with pyro.plate("rows", 5, dim=-2), pyro.plate("columns", 4, dim=-1):
            pyro.sample("y", dist.Normal(m, 1.0), obs=y)

    y = torch.randn(5, 4)
    barrier = evaluate_barrier(model, make_path(model, y), y, taus=3)
    assert barrier.num_data == {"data": 20}
    point = barrier.at(0.5)
    assert point.log_likelihood["y"].dims == ("chain", "draw", "rows", "columns")
    assert point.observed_data["y"].dims == ("rows", "columns")


def test_data_without_plates_and_in_a_loop():
    def plain(x, y):
        w = pyro.sample("w", dist.Normal(0.0, PRIOR).expand([x.shape[1]]).to_event(1))
        pyro.sample("y", dist.Normal(x @ w, NOISE), obs=y)

    def loop(x, y):
        w = pyro.sample("w", dist.Normal(0.0, PRIOR).expand([x.shape[1]]).to_event(1))
        for i in pyro.plate("data", len(x)):
            pyro.sample(f"y{i}", dist.Normal(x[i] @ w, NOISE), obs=y[i])

    x, y = linear_data()
    path = make_path(linear, x, y)
    one, two, three = (evaluate_barrier(m, path, x, y, taus=3, num_samples=6) for m in (linear, plain, loop))
    for loss in one.losses:
        assert np.allclose(one[loss].draws, two[loss].draws)
        assert np.allclose(one[loss].draws, three[loss].draws)


def test_factors_belong_to_the_prior():
    def model(x, y):
        w = pyro.sample("w", dist.Normal(0.0, PRIOR).expand([x.shape[1]]).to_event(1))
        pyro.factor("penalty", -w.abs().sum())
        pyro.deterministic("norm", w.norm())
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, NOISE), obs=y)

    x, y = linear_data()
    path = make_path(linear, x, y)
    ours, plain = (evaluate_barrier(m, path, x, y, taus=3, num_samples=6) for m in (model, linear))
    w = path.posterior(0.0).push(ours.problem.noise)["w"]
    assert np.allclose(ours["expected_nll"].draws, plain["expected_nll"].draws)
    assert np.allclose(ours["kl"].draws[0] - plain["kl"].draws[0], w.abs().sum(1) / len(x))


# -- ways of running ---------------------------------------------------------------------------------------------------


def test_chunks_and_loops_give_the_same(network):
    path, x, y = network
    runs = [evaluate_barrier(classifier, path, x, y, taus=3, num_samples=7, chunk=c) for c in (None, 1, 3, 50)]
    with pytest.warns(DiagnosticWarning, match=r"cannot be vectorized.*draw by draw"):
        runs.append(evaluate_barrier(_unvectorizable, path, x, y, taus=3, num_samples=7))
    assert [run.vectorized for run in runs] == [True] * 4 + [False]
    for run in runs[1:]:
        for loss in runs[0].losses:
            assert np.allclose(run[loss].draws, runs[0][loss].draws, rtol=1e-10), loss


def _unvectorizable(x, y=None):
    with poutine.trace() as tracer:
        classifier(x, y)
    assert float(tracer.trace.nodes["b1"]["value"].sum()) < math.inf


def test_memory_sets_the_chunk(network):
    path, x, y = network
    with pytest.warns(DiagnosticWarning, match=r"more than max_memory, 9.54e-07 MiB"):
        small = evaluate_barrier(classifier, path, x, y, taus=3, num_samples=7, max_memory=1)
    large = evaluate_barrier(classifier, path, x, y, taus=3, num_samples=7)
    assert np.allclose(small["negative_elbo"].draws, large["negative_elbo"].draws)
    runner = small.problem.runner
    (size,) = runner.sizes.values()
    assert size >= 40 * 6 * 8, "at least the hidden layer of one draw"


def test_several_data_sets_and_batches(network):
    path, x, y = network
    dataset = torch.utils.data.TensorDataset(x, y)
    loader, state = torch.utils.data.DataLoader(dataset, batch_size=16), torch.get_rng_state()
    barrier = evaluate_barrier(
        classifier,
        path,
        taus=3,
        evaluation={
            "whole": (x, y),
            "batches": loader,
            "dataset": dataset,
            "named": {"x": x, "y": y},
            "half": (x[:20], y[:20]),
        },
    )
    assert torch.equal(state, torch.get_rng_state())
    assert barrier.evaluations == ("whole", "batches", "dataset", "named", "half")
    assert barrier.num_data == {"whole": 40, "batches": 40, "dataset": 40, "named": 40, "half": 20}
    for loss in barrier.losses:
        assert np.allclose(barrier["whole", loss].draws, barrier["batches", loss].draws), loss
        assert np.array_equal(barrier["whole", loss].draws, barrier["named", loss].draws), loss
        assert np.array_equal(barrier["whole", loss].draws, barrier["dataset", loss].draws), loss
    assert not np.allclose(barrier["whole", "expected_nll"].value, barrier["half", "expected_nll"].value)


def test_keyword_arguments_go_to_the_model(network):
    path, x, y = network
    a = evaluate_barrier(classifier, path, x, y, taus=3, num_samples=4)
    b = evaluate_barrier(classifier, path, x, y=y, taus=3, num_samples=4)
    assert np.array_equal(a["negative_elbo"].draws, b["negative_elbo"].draws)


def test_the_seed_fixes_every_figure(network):
    path, x, y = network
    first, again, other = (evaluate_barrier(classifier, path, x, y, taus=3, num_samples=4, seed=s) for s in (3, 3, 4))
    assert all(np.array_equal(first[k].draws, again[k].draws) for k in first.losses)
    assert not np.array_equal(first["negative_elbo"].draws, other["negative_elbo"].draws)


@pytest.mark.parametrize("guide_type", [AutoDiagonalNormal, AutoDelta])
def test_other_guides(guide_type):
    x, y = linear_data()

    def guide(seed):
        return make_guide(linear, x, y, seed=seed) if guide_type is not AutoDelta else _delta(seed, x, y)

    def _delta(seed, *args):
        pyro.set_rng_seed(seed)
        with pyro.get_param_store().scope():
            delta = AutoDelta(linear, init_loc_fn=pyro.infer.autoguide.init_to_sample)
            delta(*args)
        return delta

    path = displacement(guide(1), guide(2))
    barrier = evaluate_barrier(linear, path, x, y, taus=5, num_samples=3)
    w = path.posterior(0.5).push(barrier.problem.noise)["w"]
    nll = -dist.Normal(w @ x.T, NOISE).log_prob(y).mean(1)
    assert np.allclose(barrier["expected_nll"].draws[2], nll)


def test_a_pyro_module_with_batch_norm_is_left_as_it_was():
    class Net(PyroModule):
        def __init__(self):
            super().__init__()
            self.linear = PyroModule[nn.Linear](3, 4)
            self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([4, 3]).to_event(2))
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x, y=None):
            mean = self.norm(self.linear(x)).sum(-1)
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    x, y = linear_data()
    net = Net()
    path = make_path(net, x, y)
    net.train()
    state = {k: v.clone() for k, v in net.state_dict().items()}
    rng, store = torch.get_rng_state(), set(pyro.get_param_store().keys())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DiagnosticWarning)  # running statistics are updated in place
        barrier = evaluate_barrier(net, path, x, y, taus=3, num_samples=4)
    barrier.at(0.5, predictive=True)
    assert net.training
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert torch.equal(rng, torch.get_rng_state())
    assert set(pyro.get_param_store().keys()) == store


def test_a_prior_built_outside_with_validation_on():
    prior = dist.Normal(torch.zeros(3), PRIOR, validate_args=True).to_event(1)

    def model(x, y):
        w = pyro.sample("w", prior)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, NOISE), obs=y)

    x, y = linear_data()
    path = make_path(linear, x, y)
    ours, plain = (evaluate_barrier(m, path, x, y, taus=3, num_samples=4) for m in (model, linear))
    assert ours.vectorized
    assert np.allclose(ours["negative_elbo"].draws, plain["negative_elbo"].draws)
    assert prior._validate_args


# -- task losses -------------------------------------------------------------------------------------------------------


def test_error_rate_is_that_of_the_averaged_probabilities(network):
    path, x, y = network
    barrier = evaluate_barrier(classifier, path, x, y, taus=3, num_samples=9)
    values = path.posterior(0.5).push(barrier.problem.noise)
    hidden = torch.relu(torch.einsum("ni,sij->snj", x, values["w1"]) + values["b1"][:, None])
    probabilities = torch.softmax(hidden @ values["w2"], -1).mean(0)
    assert np.isclose(barrier["error_rate"].value[1], float((probabilities.argmax(-1) != y).double().mean()))


def test_error_rate_of_two_classes():
    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=x @ w), obs=y)

    x, y = linear_data()
    y = (y > 0).double()
    path = make_path(model, x, y)
    barrier = evaluate_barrier(model, path, x, y, taus=3)
    w = path.posterior(1.0).push(barrier.problem.noise)["w"]
    wrong = (torch.sigmoid(w @ x.T).mean(0) > 0.5) != (y > 0)
    assert np.isclose(barrier["error_rate"].value[-1], float(wrong.double().mean()))


def test_a_callable_judges_the_mean_prediction(regression):
    path, x, y = regression

    def squared_error(prediction, observed):
        return (prediction - observed) ** 2

    curve = evaluate_barrier(linear, path, x, y, taus=3, losses=["negative_elbo", squared_error])["squared_error"]
    w = path.posterior(0.0).push(path.posterior(0.0).noise(32, generator=torch.Generator().manual_seed(0)))["w"]
    assert np.isclose(curve.value[0], float(((w @ x.T).mean(0) - y).square().mean()))


def test_the_bootstrap_error_of_a_task_loss_is_that_of_repeated_runs():
    x, y = linear_data(n=300)
    path = make_path(linear, x, y, scales=(0.3, 0.1))
    runs = [
        evaluate_barrier(linear, path, x, y, taus=3, seed=s, losses={"over": lambda p, o: (p > o).double()})["over"]
        for s in range(60)
    ]
    spread = np.std([run.value[0] for run in runs])
    assert 0.6 < np.sqrt(np.mean([run.se[0] ** 2 for run in runs])) / spread < 1.6


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"taus": 2}, "at least 3"),
        ({"taus": [0.0, 1.0]}, "at least 3 values"),
        ({"taus": [0.0, 0.5, 0.9]}, "both endpoints"),
        ({"taus": [0.0, 0.5, 1.5]}, r"values in \[0, 1\]"),
        ({"taus": [-0.1, 0.0, 1.0]}, r"values in \[0, 1\]"),
        ({"taus": [0.0, 0.5, 0.5, 1.0]}, "repeated"),
        ({"taus": "many"}, "a number of taus"),
        ({"num_samples": 1}, "at least 2"),
        ({"num_samples": 0}, "at least 2"),
        ({"num_samples": 2.5}, "at least 2"),
        ({"seed": None}, "expected an int"),
        ({"temperature": -1.0}, ">= 0"),
        ({"temperature": math.nan}, ">= 0"),
        ({"chunk": 0}, "draws at a time"),
        ({"taus": 10**9}, "at most 10,000"),
        ({"num_data": 0}, "fitted to"),
        ({"max_memory": 0}, "bytes"),
        ({"nonfinite": "ignore"}, "'raise' or 'keep'"),
        ({"losses": ["nll"]}, "unknown loss 'nll'"),
        ({"losses": ["kl", "kl"]}, "twice"),
        ({"losses": []}, "empty"),
        ({"losses": [3]}, "a loss is a name"),
        ({"losses": ["error_rate"]}, "error_rate needs one observed site"),
        ({"losses": {"mean": lambda p, o: p.mean()}}, "one loss per datum"),
    ],
)
def test_bad_options(regression, options, message):
    path, x, y = regression
    with pytest.raises(BarrierError, match=message):
        evaluate_barrier(linear, path, x, y, **options)


def test_other_arguments_than_the_models(regression):
    path, x, y = regression
    with pytest.raises(BarrierError, match=r"could not be run with the arguments given \(tensor \(12, 3\) float64"):
        evaluate_barrier(linear, path, x, y, 3)
    with pytest.raises(BarrierError, match=r"'y'.*neither observed"):
        evaluate_barrier(linear, path, x)
    with pytest.raises(BarrierError, match=r"arguments given \(none\)"):
        evaluate_barrier(linear, path)


def test_data_of_another_dtype_or_device(regression):
    path, x, y = regression
    with pytest.raises(BarrierError, match=r"argument 0 is float32.*posterior is float64.*\.to\(torch\.float64\)"):
        evaluate_barrier(linear, path, x.float(), y)
    with pytest.raises(BarrierError, match="argument 1 is on device meta, the path's posterior on cpu"):
        evaluate_barrier(linear, path, x, y.to("meta"))


def test_sites_that_do_not_fit(regression):
    path, x, y = regression

    def more(x, y):
        pyro.sample("offset", dist.Normal(0.0, 1.0))
        linear(x, y)

    def fewer(x, y):
        pyro.sample("y", dist.Normal(x[:, 0], 1.0), obs=y)

    def discrete(x, y):
        pyro.sample("k", dist.Poisson(0.5))
        linear(x, y)

    with pytest.raises(BarrierError, match=r"\['offset'\] are neither observed nor in the path's posterior"):
        evaluate_barrier(more, path, x, y)
    with pytest.raises(BarrierError, match=r"\['w'\] that the model does not sample"):
        evaluate_barrier(fewer, path, x, y)
    with pytest.raises(BarrierError, match=r"\['k'\] are neither observed"):
        evaluate_barrier(discrete, path, x, y)
    with pytest.raises(BarrierError, match=r"site 'w': the model samples shape \(2,\).*has \(3,\)"):
        evaluate_barrier(linear, path, x[:, :2], y)


def test_a_model_without_data(regression):
    path, x, _y = regression

    def model(x):
        pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))

    with pytest.raises(BarrierError, match="observes no data"):
        evaluate_barrier(model, path, x)


def test_data_given_in_a_wrong_way(regression):
    path, x, y = regression
    with pytest.raises(BarrierError, match="given twice"):
        evaluate_barrier(linear, path, x, y, evaluation={"test": (x, y)})
    with pytest.raises(BarrierError, match="mapping of names"):
        evaluate_barrier(linear, path, evaluation=[(x, y)])
    with pytest.raises(BarrierError, match="read only once"):
        evaluate_barrier(linear, path, evaluation={"test": iter([(x, y)])})
    shuffled = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=4, shuffle=True)
    with pytest.raises(BarrierError, match="evaluation 'test': this DataLoader shuffles"):
        evaluate_barrier(linear, path, evaluation={"test": shuffled})
    with pytest.raises(BarrierError, match="no batch"):
        evaluate_barrier(linear, path, evaluation={"test": []})
    with pytest.raises(BarrierError, match="expected a tuple"):
        evaluate_barrier(linear, path, evaluation={"test": 3})
    with pytest.raises(BarrierError, match="expected a path"):
        evaluate_barrier(linear, x, path, y)


def test_losses_that_are_not_finite_are_located(regression):
    path, x, y = regression
    y = y.clone()
    y[3] = math.inf
    with pytest.raises(BarrierError, match=r"'data', tau=0, draw 0: the log probability of observed site 'y' is -inf"):
        evaluate_barrier(linear, path, x, y, taus=3)
    kept = evaluate_barrier(linear, path, x, y, taus=3, nonfinite="keep")
    assert np.isposinf(kept["expected_nll"].value).all()


def test_a_prior_that_is_not_finite_is_located():
    def model(x, y):
        w = pyro.sample("w", dist.Uniform(-1.0, 1.0).expand([3]).to_event(1))
        pyro.sample("y", dist.Normal(x @ w, NOISE), obs=y)

    x, y = linear_data()
    path = make_path(linear, x, y, scales=(3.0, 3.0))
    with pytest.raises(BarrierError, match=r"tau=0, draw \d+: the log probability of latent site 'w' is -inf"):
        evaluate_barrier(model, path, x, y, taus=3)
