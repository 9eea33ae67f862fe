"""Curves: barriers, their errors and bands, from pseudo-values; and the coverage of those errors."""

import functools

import numpy as np
import pytest
import torch
from barrier_problems import excess_of, linear, linear_data, make_guide, true_curve
from pyro.infer.autoguide import AutoDiagonalNormal

from pyro_align import displacement, wrap_guide
from pyro_align.barrier import Curve, evaluate_barrier
from pyro_align.losses import Batch, Totals
from pyro_align.losses.likelihood import PredictiveNLL, predictive_pseudo_values
from pyro_align.losses.task import bootstrap_weights, task_pseudo_values

TAUS = np.linspace(0, 1, 5)
LOSSES = ["expected_nll", "predictive_nll", "negative_elbo"]


def curve_of(mean, noise=0.0, draws=40, seed=0):
    """A curve of known mean with common and with independent noise."""
    rng = np.random.default_rng(seed)
    common = rng.standard_normal(draws)
    return Curve(
        "data", "negative_elbo", TAUS, np.asarray(mean)[:, None] + common + noise * rng.standard_normal((5, draws))
    )


def test_common_noise_cancels():
    curve = curve_of([1.0, 2.0, 4.0, 3.0, 2.0])
    assert np.allclose(curve.excess, [0, 0.75, 2.5, 1.25, 0])
    assert np.allclose(curve.excess_se, 0)
    assert curve.se.min() > 0.1
    peak = curve.barrier
    assert (round(peak.height, 12), peak.tau) == (2.5, 0.5)
    assert np.isclose(curve.barrier_over_mean.height, 2.5)
    assert np.isclose(curve.area[0], (0.75 + 2.5 + 1.25) / 4)


def test_the_two_baselines_differ_on_a_slope():
    curve = curve_of([0.0, 1.0, 2.0, 3.0, 4.0])
    assert np.isclose(curve.barrier.height, 0, atol=1e-12)
    assert np.isclose(curve.barrier_over_mean.height, 2.0)
    assert curve.barrier_over_mean.tau == 1.0


def test_errors_are_those_of_paired_differences():
    curve = curve_of([0.0, 1.0, 2.0, 1.0, 0.0], noise=0.3)
    excess = curve.draws[2] - (curve.draws[0] + curve.draws[-1]) / 2
    assert np.isclose(curve.barrier.se, excess.std(ddof=1) / np.sqrt(40))


def test_a_band_is_wider_than_pointwise_and_tells_zero_from_more():
    flat, high = curve_of([0.0] * 5, noise=0.3), curve_of([0.0, 1.0, 2.0, 1.0, 0.0], noise=0.3)
    band = high.band()
    half = (band.upper - band.lower)[1:-1] / 2
    assert np.all(half > 2.02 * high.excess_se[1:-1])  # Student's t of 39, one point
    assert np.all(half < 3.2 * high.excess_se[1:-1])
    assert band.positive
    assert band.p_value < 0.01
    assert not flat.band().positive
    assert flat.band().p_value > 0.05
    low, upper = band.interval
    assert low < high.barrier.height < upper
    assert band.lower[0] == band.upper[0] == 0


def test_a_band_of_a_loss_without_noise():
    band = Curve("data", "kl", TAUS, np.tile(np.array([0.0, 1, 2, 1, 0])[:, None], 6)).band()
    assert np.array_equal(band.lower, band.upper)
    assert band.positive
    assert band.p_value == 0


def test_level_is_checked():
    with pytest.raises(ValueError, match="between 0 and 1"):
        curve_of([0.0] * 5).band(1.0)


def test_infinite_losses_are_kept():
    draws = np.ones((5, 4))
    draws[2, 1] = np.inf
    curve = Curve("data", "expected_nll", TAUS, draws)
    assert np.isposinf(curve.barrier.height)
    assert curve.barrier.tau == 0.5
    assert curve.band().upper[2] == np.inf


# -- pseudo-values -----------------------------------------------------------------------------------------------------


def test_pseudo_values_are_the_jackknife():
    log_likelihood = torch.randn(6, 9) * 3

    def loss(rows):
        return -(torch.logsumexp(rows, 0) - np.log(len(rows))).sum()

    naive = [6 * loss(log_likelihood) - 5 * loss(log_likelihood[torch.arange(6) != s]) for s in range(6)]
    assert torch.allclose(predictive_pseudo_values(log_likelihood), torch.stack(naive))


def test_pseudo_values_survive_a_dominating_draw():
    log_likelihood = torch.zeros(4, 1)
    log_likelihood[2] = 800.0
    pseudo = predictive_pseudo_values(log_likelihood)
    whole, without = -(800 - np.log(4)), torch.tensor([-(800 - np.log(3)), 0.0])
    assert torch.allclose(pseudo, 4 * whole - 3 * without[[0, 0, 1, 0]])


def test_impossible_data_in_one_draw():
    log_likelihood = torch.tensor([[0.0], [-torch.inf], [0.0]])
    assert torch.isfinite(predictive_pseudo_values(log_likelihood)).all()


def test_the_jackknife_removes_the_bias():
    generator = torch.Generator().manual_seed(0)
    draws = 0.8 * torch.randn(4000, 8, 1, generator=generator)  # E exp = exp(0.32)
    plain = -(torch.logsumexp(draws, 1) - np.log(8)).mean() + 0.32
    corrected = torch.stack([predictive_pseudo_values(d).mean() for d in draws]).mean() + 0.32
    assert plain > 0.03
    assert corrected.abs() < plain / 3


def test_bootstrap_spread_of_a_linear_loss_is_the_standard_error():
    generator = torch.Generator().manual_seed(0)
    prediction = torch.randn(400, 1, generator=generator)
    weights = bootstrap_weights(400, 0)
    assert torch.allclose(weights.sum(1), torch.ones(400))
    pseudo = task_pseudo_values("mean", lambda p, o: p, prediction, torch.zeros(1), weights)
    assert torch.isclose(pseudo.mean(), prediction.mean())
    assert torch.isclose(pseudo.std(), prediction.std(), rtol=0.15)


def test_no_side_of_a_band_is_narrower_than_students():
    rng = np.random.default_rng(3)
    skewed = np.zeros((3, 12))
    skewed[1] = rng.exponential(size=12)
    curve = Curve("data", "negative_elbo", np.array([0.0, 0.5, 1.0]), skewed)
    band, se = curve.band(resamples=20_000), curve.excess_se[1]
    students = 2.201  # 0.975 quantile, 11 degrees of freedom
    assert (curve.excess - band.lower)[1] > 0.97 * students * se
    assert (band.upper - curve.excess)[1] > 1.2 * students * se, "and the long tail's side is wider"


def test_what_moves_with_the_draws_widens_the_band():
    still = curve_of([0.0, 1.0, 2.0, 1.0, 0.0], noise=0.3)
    drift = np.array([0.1, 0.1, 0.4, 0.1, 0.1])
    moved = Curve("data", "predictive_nll", TAUS, still.draws, drift)
    assert np.allclose(moved.excess_drift, [0, 0, 0.3, 0, 0])
    assert np.isclose(moved.settling, 0.3 / still.excess_se[2])
    wide, narrow = (band.upper - band.lower for band in (moved.band(), still.band()))
    assert np.isclose(wide[2] / narrow[2], np.hypot(1, moved.settling))
    assert np.allclose(wide[[1, 3]], narrow[[1, 3]])
    assert np.array_equal(moved.excess_se, still.excess_se)


def test_the_drift_is_what_the_halves_lack():
    log_likelihood = 2 * torch.randn(9, 5)
    loss, weights = PredictiveNLL(), bootstrap_weights(9, 0)
    total = loss.merge(*(loss.contribution(Batch(part, weights)) for part in log_likelihood.split([2, 3], 1)))
    found = loss.finish(total, Totals(5, 5, np.zeros(9), np.zeros(9)))
    halves = [predictive_pseudo_values(log_likelihood[i::2]).mean() for i in (0, 1)]
    whole = predictive_pseudo_values(log_likelihood).mean()
    assert np.isclose(found.drift, float(whole - (5 * halves[0] + 4 * halves[1]) / 9) / 5)
    assert np.isnan(loss.contribution(Batch(log_likelihood[:3], weights))["drift"])
    curve = Curve("data", "predictive_nll", TAUS, curve_of([0.0] * 5, 0.3).draws, np.full(5, np.nan))
    assert np.array_equal(curve.excess_drift, np.zeros(5))


# -- coverage on the conjugate model, where every loss has a closed form -----------------------------------------------


@functools.cache
def conjugate_runs(repeats, num_samples, num_taus, wrapped):
    """Barriers of one path, each run with a seed of its own."""
    x, y = linear_data()
    ends = [
        make_guide(linear, x, y, seed=i + 1, scale=s, guide_type=AutoDiagonalNormal) for i, s in enumerate((0.3, 0.1))
    ]
    exact = displacement(*ends)
    path = displacement(*(wrap_guide(g, x, y) for g in ends)) if wrapped else exact
    options = {"taus": num_taus, "num_samples": num_samples, "losses": LOSSES}
    return x, y, exact, [evaluate_barrier(linear, path, x, y, seed=s, **options) for s in range(repeats)]


def coverage(repeats, num_samples, num_taus, loss, *, wrapped=False):
    """Fraction of runs whose band holds the whole true curve, and mean squared error against reported variance.

    The truth is that of the closed form; where the guides are wrapped, they are known to the path by draws alone.
    """
    x, y, path, found = conjugate_runs(repeats, num_samples, num_taus, wrapped)
    runs = [run[loss] for run in found]
    taus = runs[0].taus
    truth = excess_of(true_curve(path, taus, x, y, loss), taus)
    inside = [bool(((b.lower <= truth + 1e-12) & (truth <= b.upper + 1e-12)).all()) for b in (r.band() for r in runs)]
    middle = num_taus // 2
    errors = np.array([r.excess[middle] - truth[middle] for r in runs])
    claimed = np.mean([r.excess_se[middle] ** 2 for r in runs])
    return np.mean(inside), np.mean(errors**2) / claimed, errors.mean() / np.sqrt(claimed)


@pytest.mark.parametrize("loss", LOSSES)
def test_errors_and_bands_are_honest(loss):
    covered, ratio, bias = coverage(repeats=120, num_samples=32, num_taus=5, loss=loss)
    assert 0.87 <= covered <= 0.995
    assert 0.65 < ratio < 1.5
    assert abs(bias) < 0.3


@pytest.mark.parametrize("loss", LOSSES)
def test_errors_and_bands_are_honest_where_posteriors_are_known_by_draws(loss):
    covered, ratio, bias = coverage(repeats=60, num_samples=32, num_taus=5, loss=loss, wrapped=True)
    assert covered >= 0.84
    assert 0.6 < ratio < 1.7
    assert abs(bias) < 0.45


@pytest.mark.slow
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("num_samples", [16, 64])
@pytest.mark.parametrize("loss", LOSSES)
def test_errors_and_bands_are_honest_at_length(loss, num_samples, wrapped):
    covered, ratio, bias = coverage(repeats=400, num_samples=num_samples, num_taus=7, loss=loss, wrapped=wrapped)
    kind = ", wrapped" if wrapped else ""
    print(f"{loss}, {num_samples} draws{kind}: coverage {covered:.3f}, variance ratio {ratio:.3f}, bias {bias:.3f} se")
    assert 0.91 <= covered <= 0.995
    assert 0.75 < ratio < 1.3
    assert abs(bias) < 0.2
