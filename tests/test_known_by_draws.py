"""Posteriors known by their draws: matched without pairs, paths that are laws, densities by change of volume."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoNormal, init_to_sample

import pyro_align
from pyro_align.errors import BarrierError, DiagnosticWarning, GuideError
from pyro_align.guides import Draws, Wrapped, mean_field_guide, permute_guide, read_guide, wrap_guide
from pyro_align.guides.transport import energy_coefficient, fit_transport, squared_distance
from pyro_align.symmetry.group import Symmetry

X = torch.linspace(-1, 1, 60, dtype=torch.float64).reshape(20, 3)
Y = X.sum(-1) + 0.1


def model(x, y=None):
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


def diagonal(seed, cls=AutoDiagonalNormal):
    generator = torch.Generator().manual_seed(seed)
    with pyro.get_param_store().scope():
        guide = cls(model, init_scale=0.1 + 0.2 * seed)
        guide(X, Y)
    guide.loc.data = torch.randn(3, generator=generator, dtype=torch.float64)
    return guide


def gaussian_draws(seed, size, count=400, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, size, generator=generator, dtype=torch.float64) + shift


# -- the map -----------------------------------------------------------------------------------------------------------


def test_the_map_is_exact_where_the_noise_is_common():
    """Draws m + s eps of both laws with the same eps: the map is the affine one between the laws."""
    eps = gaussian_draws(0, 3)
    scale, shift = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64), torch.tensor([3.0, 0.0, -5.0]).double()
    found = fit_transport(eps, shift + scale * eps, [3])
    moved, volume = found.displace(eps, 1.0)
    torch.testing.assert_close(moved, shift + scale * eps, rtol=1e-3, atol=1e-2)
    assert float(volume) == pytest.approx(float(scale.log().sum()), abs=1e-3)
    back, there = found.displace(moved, 0.3, from_end=True)
    forth, here = found.displace(eps, 0.3)
    torch.testing.assert_close(back, forth)
    assert float(here) == pytest.approx(float(there + volume))


def test_the_map_carries_correlations():
    root = torch.tensor([[1.0, 0.0], [0.9, 0.3]], dtype=torch.float64)
    x, y = gaussian_draws(0, 2, 4000), gaussian_draws(1, 2, 4000) @ root.T
    found = fit_transport(x, y, [2])
    moved = found.displace(x, 1.0)[0]
    torch.testing.assert_close(moved.T.cov(), y.T.cov(), rtol=0.05, atol=0.02)
    assert energy_coefficient(moved, y) < 0.002 < energy_coefficient(x, y)


@pytest.mark.parametrize("size", [10, 150, 1000])
def test_one_law_twice_has_distance_zero_and_the_identity_for_a_map(size):
    x, y = gaussian_draws(0, size), gaussian_draws(1, size)
    squared, error = squared_distance(x, y)
    assert abs(squared) < 2 * error < 0.05 * size
    moved, volume = fit_transport(x, y, [size]).displace(x, 1.0)
    assert float((moved - x).square().sum(-1).mean()) < 0.002 * size
    assert abs(float(volume)) < 0.01 * size**0.5
    apart, error = squared_distance(x, gaussian_draws(2, size, shift=1.0))
    assert abs(apart - size) < 3 * error


# -- barriers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, 150, 1000])
def test_one_law_twice_has_no_barrier(size):
    """Two sets of draws of one law: every point of the path is that law, whatever the number of dimensions."""
    weights = torch.full((size,), size**-0.5, dtype=torch.float64)

    def sparse(y):
        w = pyro.sample("w", dist.Normal(torch.zeros(size, dtype=torch.float64), 2.0).to_event(1))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal((w.square() * weights).sum(), 1.0), obs=y)

    y = torch.full((5,), float(size**0.5), dtype=torch.float64)
    a, b = ({"w": gaussian_draws(seed, size)} for seed in (0, 1))
    path = pyro_align.displacement(a, b)
    assert path.length == 0.0
    barrier = pyro_align.evaluate_barrier(sparse, path, y, taus=3, num_samples=400)
    curve = barrier["expected_nll"]
    assert abs(curve.excess[1]) < 3 * curve.excess_se[1]
    middle = path.posterior(0.5).push(path.posterior(0.0).noise(400))["w"]
    assert float(middle.var(0).mean()) == pytest.approx(1.0, abs=3 * (2 / 400 / size) ** 0.5 + 0.005)


@pytest.mark.parametrize("size", [10, 1000])
def test_errors_of_the_excess_are_what_they_say(size):
    """Over pairs of sets of draws of one law, the excess at the midpoint in units of its error is about standard."""

    def loss(w):
        return ((w.square().sum(-1) - size) / size**0.5).square()

    scores = []
    for seed in range(20):
        path = pyro_align.displacement(*({"w": gaussian_draws(100 * seed + k, size)} for k in (0, 1)))
        noise = path.posterior(0.0).noise(400, generator=seed)
        start, middle, end = (loss(path.posterior(tau).push(noise)["w"]) for tau in (0.0, 0.5, 1.0))
        excess = middle - 0.5 * (start + end)
        scores.append(float(excess.mean() / excess.std() * 20))
    assert 0.6 < float(torch.tensor(scores).square().mean().sqrt()) < 1.5


def test_wrapping_a_closed_form_reproduces_its_barrier():
    a, b = diagonal(0), diagonal(1)
    exact = pyro_align.evaluate_barrier(model, pyro_align.displacement(a, b), X, Y, taus=5, num_samples=200, seed=1)
    path = pyro_align.displacement(wrap_guide(a), wrap_guide(b))
    found = pyro_align.evaluate_barrier(model, path, X, Y, taus=5, num_samples=200)
    for loss in exact.losses:
        error = (exact[loss].excess_se ** 2 + found[loss].excess_se ** 2) ** 0.5
        assert (abs(exact[loss].excess - found[loss].excess) <= 3 * error + 1e-9).all(), loss
        assert found[loss].excess_se[2] < 3 * exact[loss].excess_se[2] + 1e-3
    assert path.length == pytest.approx(pyro_align.displacement(a, b).length, rel=0.05)
    assert path.notes == ()


def test_points_between_are_scored_and_drawn_without_limit():
    a, b = diagonal(0), diagonal(1)
    path, exact = pyro_align.displacement(wrap_guide(a), wrap_guide(b)), pyro_align.displacement(a, b)
    middle, true = path.posterior(0.5), exact.posterior(0.5)
    values, log_prob = middle.push_with_log_prob(middle.noise(50, generator=3))
    loc, scale = true.marginal("w")
    expected = dist.Normal(loc, scale).to_event(1).log_prob(values["w"])
    torch.testing.assert_close(log_prob, expected, rtol=0.01, atol=0.05)
    assert len({tuple(row.tolist()) for row in middle.push(middle.noise(600))["w"]}) == 600
    guide = path(0.5)
    assert Predictive(model, guide=guide, num_samples=3)(X)["y"].shape == (3, 20)
    pyro.set_rng_seed(0)
    losses = [Trace_ELBO(num_particles=200).loss(model, g, X, Y) for g in (guide, exact(0.5))]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    values = read_guide(guide).push(middle.noise(4))
    assert torch.equal(values["w"], middle.push(middle.noise(4))["w"])


def test_draws_have_no_density_and_are_not_counted_twice():
    path = pyro_align.displacement({"w": gaussian_draws(0, 3, 40)}, {"w": gaussian_draws(1, 3, 60)})
    barrier = pyro_align.evaluate_barrier(model, path, X, Y, taus=3, num_samples=100)
    assert barrier.losses == ("expected_nll", "predictive_nll")
    assert barrier.num_samples == 40
    with pytest.warns(DiagnosticWarning) as said:
        barrier.summary()
    told = " ".join(str(w.message) for w in said)
    assert "kl and the negative ELBO are absent" in told
    assert "num_samples is 40 instead of 100" in told
    for losses in (["kl"], [Trace_ELBO()]):
        with pytest.raises(BarrierError, match="no density"):
            pyro_align.evaluate_barrier(model, path, X, Y, taus=3, losses=losses)
    drawn = path.posterior(0.0).push(path.posterior(0.0).noise(40))["w"]
    assert len({tuple(row.tolist()) for row in drawn}) == 40


def test_draws_and_guides_can_be_compared():
    guide = diagonal(0)
    loc, scale = read_guide(guide).marginal("w")
    draws = {"w": loc + scale * gaussian_draws(5, 3)}
    assert pyro_align.displacement(draws, guide).length < 0.05
    assert pyro_align.displacement(guide, {"w": draws["w"] + 1.0}).length == pytest.approx(3**0.5, rel=0.05)


# -- simplices under mean-field guides ---------------------------------------------------------------------------------


def mixture(y):
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3, dtype=torch.float64)))
    loc = pyro.sample("loc", dist.Normal(torch.zeros(3, dtype=torch.float64), 5.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(loc, 1.0)), obs=y)


def mixture_guide(order, y):
    values = {
        "weights": torch.tensor([0.2, 0.3, 0.5]).double()[order],
        "loc": torch.tensor([-4.0, 0, 4]).double()[order],
    }
    with pyro.get_param_store().scope():
        guide = AutoNormal(mixture, init_loc_fn=lambda site: values[site["name"]], init_scale=0.1)
        guide(y)
    return guide


def test_mixtures_under_mean_field_guides_go_through_the_five_lines():
    y = torch.cat([torch.full((4,), -4.0), torch.zeros(6), torch.full((10,), 4.0)]).double()
    a, b = mixture_guide([0, 1, 2], y), mixture_guide([2, 0, 1], y)
    symmetry = pyro_align.find_symmetry(mixture, y)
    alignment = pyro_align.align(a, b, symmetry)
    assert alignment.permutation.indices[next(iter(symmetry.atoms))].tolist() == [1, 2, 0]
    assert alignment.distance < 0.2 < alignment.distance_before
    assert alignment.distance_error > 0
    assert "+-" in str(alignment)
    barrier = pyro_align.evaluate_barrier(
        mixture, pyro_align.displacement(a, alignment.guide), y, taus=3, num_samples=64
    )
    assert {"expected_nll", "predictive_nll", "negative_elbo", "kl"} <= set(barrier.losses)
    curve = barrier["negative_elbo"]
    assert abs(curve.excess[1]) < 3 * curve.excess_se[1]
    moved = permute_guide(a, alignment.permutation)
    assert isinstance(read_guide(moved), Wrapped)
    torch.testing.assert_close(moved()["weights"].sum(), torch.tensor(1.0).double())


# -- exact types -------------------------------------------------------------------------------------------------------


class RadialNormal(dist.Normal):
    """Another law by the same parameters."""


def test_subclasses_of_normal_are_not_taken_for_normals():
    def radial():
        scale = pyro.param("s", torch.ones(3), constraint=dist.constraints.positive)
        pyro.sample("w", RadialNormal(torch.zeros(3), scale).to_event(1))

    radial()
    with pytest.raises(GuideError, match=r"site 'w': drawn from RadialNormal.*wrap_guide"):
        mean_field_guide(radial)
    assert isinstance(read_guide(radial), Wrapped)


def test_wrapping_does_not_fill_the_param_store():
    guide = diagonal(0)
    before = len(pyro.get_param_store())
    for _ in range(3):
        q = wrap_guide(guide)
        q.push(q.noise(3))
        pyro_align.displacement(q, wrap_guide(diagonal(1))).posterior(0.5).drawn(0)
    assert len(pyro.get_param_store()) == before


def test_what_is_returned_keeps_its_promise():
    """Ensembles are paired; dicts of draws are not; either is relabeled exactly."""
    symmetry = Symmetry.from_axes({"w": ("unit",)}, shapes={"w": (3,)})
    draws = {"w": gaussian_draws(0, 3, 20)}
    p = symmetry.permutation({"unit": [2, 0, 1]})
    q = read_guide(draws)
    assert isinstance(q, Draws)
    assert torch.equal(permute_guide(q, p).draws["w"], draws["w"][:, [2, 0, 1]])
    between = pyro_align.displacement(q, {"w": gaussian_draws(1, 3, 20)}).posterior(0.5)
    noise = between.noise(7)
    assert torch.equal(between.permute(p).push(noise)["w"], between.push(noise)["w"][:, [2, 0, 1]])
    with pyro.get_param_store().scope():
        point = AutoDelta(model, init_loc_fn=init_to_sample)
        point(X, Y)
    assert pyro_align.displacement([point], [point]).length == 0.0
