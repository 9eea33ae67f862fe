"""A user's own loss: one class or one registration, and it is in tables, plots and ArviZ objects."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from barrier_problems import classifier, classifier_data, linear, linear_data, make_guide, make_path
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoDelta

from pyro_align import displacement, evaluate_barrier, plots
from pyro_align.barrier.cautions import curve_cautions
from pyro_align.errors import BarrierError
from pyro_align.losses import Batch, Curve, Estimate, Label, Loss, TaskLoss, Totals, register_loss, registry
from pyro_align.losses.likelihood import PredictiveNLL


class WorstNLL(Loss):
    """The expected NLL of the worst datum: merged by the greatest, not by a sum."""

    name, label = "worst_nll", Label("NLL of the worst datum", "nats")

    def contribution(self, batch):
        return {"worst": -batch.log_likelihood.min(1).values.numpy()}

    def merge(self, one, other):
        return {"worst": np.maximum(one["worst"], other["worst"])}

    def finish(self, total, totals):
        return Estimate(total["worst"])


def accuracy(probabilities, observed):
    return (probabilities.argmax(-1) == observed).double()


@pytest.fixture
def known(monkeypatch):
    """Registrations of this test alone."""
    monkeypatch.setattr(registry, "_KNOWN", dict(registry._KNOWN))
    monkeypatch.setattr(registry, "_DEFAULT", list(registry._DEFAULT))


@pytest.fixture
def barrier(known):
    register_loss(WorstNLL())
    register_loss(TaskLoss("accuracy", accuracy, title="accuracy", unit="fraction of data", better="higher"))
    x, y = classifier_data()
    path, batches = make_path(classifier, x, y), [(x[:15], y[:15]), (x[15:], y[15:])]
    losses = ["worst_nll", "accuracy", "error_rate"]
    return evaluate_barrier(classifier, path, evaluation={"train": batches}, taus=5, losses=losses)


def test_it_is_in_the_table(barrier):
    table = barrier.summary()
    assert table.loc[("train", "worst_nll"), ["title", "unit"]].tolist() == ["NLL of the worst datum", "nats"]
    assert table.loc[("train", "accuracy"), "unit"] == "fraction of data"
    assert "worst_nll" in str(barrier)


def test_batches_merge_as_it_says(barrier):
    ones = []
    for s in range(32):
        noise = {k: v[s : s + 1] for k, v in barrier.problem.noise.items()}
        draw = barrier.problem.path.posterior(0.5).push(noise)
        x, y = (torch.cat(parts) for parts in zip(*barrier.problem.data[0].source, strict=True))
        logits = torch.relu(x @ draw["w1"][0] + draw["b1"][0]) @ draw["w2"][0]
        ones.append(float(torch.nn.functional.cross_entropy(logits, y, reduction="none").max()))
    assert np.allclose(barrier["worst_nll"].draws[2], ones, rtol=1e-5)


def test_where_higher_is_better_a_barrier_is_a_fall(barrier):
    up, down = barrier["accuracy"], barrier["error_rate"]
    assert np.allclose(up.value, 1 - down.value)
    assert np.allclose(up.excess, down.excess)
    assert up.barrier.height == pytest.approx(down.barrier.height)
    ax = plots.plot_curve(up, ax=plt.subplots()[1])
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert band.min() >= (up.chord - up.band().upper).min() - 1e-12
    assert band.max() <= (up.chord - up.band().lower).max() + 1e-12


def test_it_is_in_plots(barrier):
    axes = barrier.plot()
    assert [(ax.get_title(), ax.get_ylabel()) for ax in axes[0]] == [
        ("NLL of the worst datum", "nats"),
        ("accuracy", "fraction of data"),
        ("error rate", "fraction of data"),
    ]
    together = barrier.plot(plt.subplots()[1])
    assert together.get_ylabel() == "fraction of data (NLL of the worst datum: nats)"
    plt.close("all")


def test_it_is_in_arviz(barrier):
    constant = barrier.to_arviz()["constant_data"]
    assert constant["title"].sel(loss="worst_nll").item() == "NLL of the worst datum"
    assert constant["unit"].sel(loss="worst_nll").item() == "nats"
    assert np.array_equal(constant["value"].sel(loss="worst_nll")[0], barrier["worst_nll"].value)


def test_a_default_loss_is_evaluated_where_the_model_has_it(known):
    class OfClasses(TaskLoss):
        def unsuited(self, layout):
            return None if layout.categorical else "no classes"

    register_loss(OfClasses("hits", accuracy, better="higher"), default=True)
    for model, data in ((classifier, classifier_data()), (linear, linear_data())):
        barrier = evaluate_barrier(model, make_path(model, *data), *data, taus=3, num_samples=4)
        assert ("hits" in barrier.losses) == (model is classifier)
    with pytest.raises(BarrierError, match="no classes"):
        evaluate_barrier(model, make_path(model, *data), *data, taus=3, num_samples=4, losses="hits")


def test_another_name_is_the_title():
    x, y = linear_data()
    barrier = evaluate_barrier(linear, make_path(linear, x, y), x, y, taus=3, losses={"mine": "expected_nll"})
    assert barrier["mine"].label == Label("mine")
    assert registry.label_of("expected_nll").title == "expected NLL", "the known loss keeps its own"


def test_only_losses_are_registered():
    with pytest.raises(BarrierError, match="wrap a function in a TaskLoss"):
        register_loss(accuracy)
    with pytest.raises(BarrierError, match=r"register|unknown loss 'accuracy'"):
        registry.read_losses("accuracy")


# -- calibrated probabilities ------------------------------------------------------------------------------------------


def sharper(factor):
    def model(x, y=None):
        sites = {"w1": [4, 4], "b1": [4], "w2": [4, 3]}
        w1, b1, w2 = (pyro.sample(k, dist.Normal(0.0, 1.0).expand(n).to_event(len(n))) for k, n in sites.items())
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(logits=factor * (torch.relu(x @ w1 + b1) @ w2)), obs=y)

    return model


def test_a_calibrated_loss_does_not_mind_the_scale_of_logits():
    x, y = classifier_data()
    losses, options = ["predictive_nll", "calibrated_nll"], {"taus": 3, "num_samples": 2}
    ends = {factor: make_path(sharper(factor), x, y, scales=(1e-7, 1e-7)) for factor in (1.0, 3.0)}
    noise = ends[1.0].posterior(0.5).noise(1, generator=torch.Generator().manual_seed(0))
    draw = {k: v[0] for k, v in ends[1.0].posterior(0.5).push(noise).items()}
    logits = torch.relu(x @ draw["w1"] + draw["b1"]) @ draw["w2"]
    y = (logits.argmax(-1) + (torch.arange(len(x)) % 4 == 0)) % 3
    one, three = (evaluate_barrier(sharper(f), path, x, y, losses=losses, **options) for f, path in ends.items())
    assert np.allclose(one["calibrated_nll"].value, three["calibrated_nll"].value, atol=1e-4)
    assert (np.abs(one["predictive_nll"].value - three["predictive_nll"].value) > 0.1).any()
    assert (three["calibrated_nll"].value <= three["predictive_nll"].value + 1e-6).all()
    scales = torch.linspace(-3, 3, 4001).exp().tolist()
    best = min(float(torch.nn.functional.cross_entropy(logits * s, y)) for s in scales)
    assert one["calibrated_nll"].value[1] == pytest.approx(best, abs=1e-4)


def test_a_calibrated_loss_of_batches_is_that_of_the_whole():
    x, y = classifier_data()
    path, halves = make_path(classifier, x, y), [(x[:15], y[:15]), (x[15:], y[15:])]
    sets = {"whole": (x, y), "halves": halves}
    barrier = evaluate_barrier(classifier, path, evaluation=sets, taus=3, losses=["calibrated_nll"])
    whole, parts = (barrier[name, "calibrated_nll"] for name in sets)
    assert np.allclose(whole.draws, parts.draws)
    assert whole.se.max() > 0, "thirty-two draws differ"
    assert "calibrated_nll" not in evaluate_barrier(classifier, path, x, y, taus=3, num_samples=2).losses, "on request"
    with pytest.raises(BarrierError, match="calibrated_nll needs one observed site, with classes"):
        evaluate_barrier(linear, make_path(linear, *linear_data()), *linear_data(), losses=["calibrated_nll"])


# -- what is printed ---------------------------------------------------------------------------------------------------


def test_no_certainty_is_printed_where_there_is_none():
    taus, rng = np.linspace(0, 1, 5), np.random.default_rng(0)
    noise = rng.standard_normal((5, 30))
    noise = 1e-6 * (noise - noise.mean(1, keepdims=True) - np.array([0, 0.01, 0.02, 0.01, 0])[:, None])
    sag = Curve("d", "kl", taus, noise)
    assert sag.barrier.height == 0
    text = sag.text()
    assert text.startswith("0.00000000 [0.00000000, 0.000000")
    assert float(text.split()[2].rstrip("]")) == pytest.approx(sag.band().interval[1], rel=0.1)
    below = Curve("d", "kl", taus, noise - np.array([0, 1, 2, 1, 0.0])[:, None])
    assert below.text() == "0 (nowhere above the chord)"
    same = Curve("d", "error_rate", taus, np.full((5, 30), 0.25))
    assert same.text() == "0 (all 30 draws agree)"


def test_p_value_and_interval_are_of_the_same_side():
    taus = np.linspace(0, 1, 3)
    agree = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        draws = rng.standard_normal((3, 25)) + np.array([0, 0.06 * (seed % 20), 0])[:, None]
        band = Curve("d", "kl", taus, draws).band(resamples=2000)
        if abs(band.p_value - 0.05) > 0.01:  # at the border, either may be said
            agree.append(band.positive == (band.p_value < 0.05))
            assert band.positive == (band.interval[0] > 0)
    assert len(agree) > 40
    assert all(agree)


# -- observations whose likelihood hangs on few draws ------------------------------------------------------------------


def regression_curve(far, seed, num_samples=32):
    """The predictive NLL between two posteriors of a linear model, near the data or far from them."""
    rng, taus = np.random.default_rng(3), np.linspace(0, 1, 7)
    x = rng.standard_normal((12, 3))
    y = x @ [1.0, -0.5, 0.3] + 0.7 * rng.standard_normal(12)
    ends = np.array([[1.6, -1.2, 0.3], [0.2, 0.3, 0.9]] if far else [[1.1, -0.6, 0.3], [0.9, -0.4, 0.4]])
    scales = np.array([[0.15, 0.15, 0.15], [0.1, 0.25, 0.2]]) * (1.0 if far else 0.5)
    noise, loss, estimates = np.random.default_rng(seed).standard_normal((num_samples, 3)), PredictiveNLL(), []
    for tau in taus:
        draws = (1 - tau) * ends[0] + tau * ends[1] + ((1 - tau) * scales[0] + tau * scales[1]) * noise
        residual = torch.tensor(y - draws @ x.T)
        batches = [Batch(-0.5 * (part / 0.7).square(), torch.eye(2)) for part in residual.split([5, 7], 1)]
        total = loss.merge(*map(loss.contribution, batches))
        estimates.append(loss.finish(total, Totals(12, 12, np.zeros(num_samples), np.zeros(num_samples))))
    return Curve.of("data", "predictive_nll", taus, estimates)


@pytest.mark.parametrize("num_samples", [16, 32, 128])
def test_heavy_tails_are_told_in_nearly_every_run(num_samples):
    warned = {}
    for far in (False, True):
        curves = [regression_curve(far, seed, num_samples) for seed in range(40)]
        texts = [list(curve_cautions({("data", "predictive_nll"): curve})) for curve in curves]
        warned[far] = np.mean([any("count for some observations" in text for text in told) for told in texts])
    assert warned[True] >= 0.95
    assert warned[False] <= 0.1


def test_the_least_effective_number_counts_over_all_batches():
    curve = regression_curve(True, 0)
    assert curve.effective[0] < 6 < regression_curve(False, 0).effective[0]
    assert curve.fragile.shape == curve.draws.shape
    assert np.abs(curve.fragile.mean(1)).max() < 1e-12


# -- one posterior, one KL ---------------------------------------------------------------------------------------------


def test_held_out_data_share_the_posteriors_kl():
    x, y = linear_data(n=30)
    path = make_path(linear, x, y)
    sets = {"test": (x[:5], y[:5]), "train": (x[5:], y[5:])}
    barrier = evaluate_barrier(linear, path, evaluation=sets, taus=3, num_samples=8)
    assert np.allclose(barrier["train", "kl"].draws, barrier["test", "kl"].draws, rtol=1e-6)
    alone = evaluate_barrier(linear, path, x[:5], y[:5], taus=3, num_samples=8, num_data=25)
    assert np.allclose(alone["kl"].draws, barrier["train", "kl"].draws, rtol=1e-6)
    assert np.allclose(alone["negative_elbo"].draws, barrier["test", "negative_elbo"].draws, rtol=1e-6)
    assert np.allclose(alone["negative_elbo"].draws, alone["expected_nll"].draws + alone["kl"].draws, rtol=1e-5)
    first = evaluate_barrier(linear, path, evaluation={"a": sets["train"], "b": sets["test"]}, taus=3, num_samples=8)
    assert np.allclose(first["b", "kl"].draws, barrier["test", "kl"].draws, rtol=1e-6), "else the first says N"


def test_held_out_data_share_the_kl_of_pyros_losses():
    x, y = linear_data(n=30)

    def point(model, init_loc_fn, init_scale):
        return AutoDelta(model, init_loc_fn)

    path = displacement(*(make_guide(linear, x, y, seed=s, guide_type=point) for s in (1, 2)))
    sets = {"test": (x[:5], y[:5]), "train": (x[5:], y[5:])}
    barrier = evaluate_barrier(
        linear, path, evaluation=sets, taus=3, num_samples=2, losses=["negative_elbo", Trace_ELBO()]
    )
    for name in sets:
        assert np.allclose(barrier[name, "Trace_ELBO"].value, barrier[name, "negative_elbo"].value, rtol=1e-6)


def test_the_log_joint_of_a_subsample_stands_for_all_data():
    x, y = linear_data(n=30)

    def part(x, y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        with pyro.plate("data", 30, subsample=torch.arange(10)):
            pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)

    path = make_path(linear, x, y)
    stats = evaluate_barrier(part, path, x[:10], y[:10], taus=3, num_samples=4).at(0.5)["sample_stats"]
    point = evaluate_barrier(part, path, x[:10], y[:10], taus=3, num_samples=4).at(0.5)
    seen = point["log_likelihood"]["y"].values.sum(-1)
    assert np.allclose(stats["lp"], stats["log_prior"] + 3 * seen, rtol=1e-5)


def test_the_least_effective_number_is_told_by_data_set():
    x, y = linear_data()
    barrier = evaluate_barrier(linear, make_path(linear, x, y), x, y, taus=3, num_samples=8)
    assert np.array_equal(barrier.effective_draws["data"], barrier["predictive_nll"].effective)
    assert (barrier.effective_draws["data"] <= 8).all()
