"""Laws of relabeling and displacement, over every registered family and guide type."""

import copy
import functools
import io
import pickle
from collections import OrderedDict

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoDiscreteParallel,
    AutoGaussian,
    AutoGuideList,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalMessenger,
    AutoRegressiveMessenger,
    AutoStructured,
    init_to_sample,
)
from pyro.infer.autoguide.effect import AutoHierarchicalNormalMessenger

from pyro_align.axes import Odd
from pyro_align.guides import (
    DenseNormal,
    Independent,
    LowRankNormal,
    MeanFieldNormal,
    Point,
    RelabeledGuide,
    SampledGuide,
    permute_guide,
    read_guide,
    registered_guides,
)
from pyro_align.guides.families.network import GuideAndModel
from pyro_align.paths.geodesic import displacement
from pyro_align.symmetry.group import Symmetry

UNITS, INPUTS, OUTPUTS = 4, 2, 3
X = torch.linspace(-1, 1, 10, dtype=torch.float64).reshape(5, INPUTS)
Y = torch.linspace(0, 1, 15, dtype=torch.float64).reshape(5, OUTPUTS)


def model(x, y=None):
    """Real, positive and simplex supports, a dotted name, a plate, a scalar; all priors alike for every unit."""
    w1 = pyro.sample("w1", dist.Normal(0, 1).expand([UNITS, INPUTS]).to_event(2))
    gain = pyro.sample("layer.gain", dist.LogNormal(0, 0.5).expand([UNITS]).to_event(1))
    mix = pyro.sample("mix", dist.Dirichlet(torch.ones(3)).expand([UNITS]).to_event(1))
    w2 = pyro.sample("w2", dist.Normal(0, 1).expand([OUTPUTS, UNITS]).to_event(2))
    noise = pyro.sample("noise", dist.LogNormal(0.0, 0.1))
    hidden = torch.tanh(x @ w1.mT * gain.unsqueeze(-2)) * mix[..., 0].unsqueeze(-2)
    with pyro.plate("data", len(x), dim=-1):
        scale = noise.unsqueeze(-1).unsqueeze(-1)
        pyro.sample("y", dist.Normal(hidden @ w2.mT, scale).to_event(1), obs=y)


SYMMETRY = Symmetry.from_axes(
    {"w1": ("unit", None), "layer.gain": ("unit",), "mix": ("unit", None), "w2": (None, "unit")},
    shapes={"w1": (UNITS, INPUTS), "layer.gain": (UNITS,), "mix": (UNITS, 3), "w2": (OUTPUTS, UNITS)},
)


def scatter(guide, seed):
    """Gives a guide that has run once random parameters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in guide.parameters():
            tensor += 0.4 * torch.randn(tensor.shape, generator=generator)
    return guide


def fitted(make, seed):
    pyro.set_rng_seed(seed)
    with pyro.get_param_store().scope():
        guide = make()
        guide(X, Y)
    return scatter(guide, seed)


def guide_list(seed):
    def make():
        guide = AutoGuideList(model)
        guide.append(AutoMultivariateNormal(poutine.block(model, expose=["w1", "layer.gain"])))
        guide.append(AutoNormal(poutine.block(model, hide=["w1", "layer.gain", "y"])))
        return guide

    return fitted(make, seed)


def laplace(seed):
    return copy.deepcopy(_laplace(seed))


@functools.cache
def _laplace(seed):
    pyro.set_rng_seed(seed)
    with pyro.get_param_store().scope():
        guide = AutoLaplaceApproximation(model, init_loc_fn=init_to_sample)
        svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.98}), Trace_ELBO())
        for _ in range(250):
            svi.step(X, Y)
        return guide.laplace_approximation(X, Y)


GUIDES = {
    "AutoNormal": lambda seed: fitted(lambda: AutoNormal(model), seed),
    "AutoDiagonalNormal": lambda seed: fitted(lambda: AutoDiagonalNormal(model), seed),
    "AutoDelta": lambda seed: fitted(lambda: AutoDelta(model), seed),
    "AutoMultivariateNormal": lambda seed: fitted(lambda: AutoMultivariateNormal(model), seed),
    "AutoLowRankMultivariateNormal": lambda seed: fitted(lambda: AutoLowRankMultivariateNormal(model, rank=3), seed),
    "laplace_approximation": laplace,
    "AutoGuideList": guide_list,
    "AutoNormalMessenger": lambda seed: fitted(lambda: AutoNormalMessenger(model), seed),
    "AutoGaussian": lambda seed: fitted(lambda: AutoGaussian(model), seed),
    "AutoStructured": lambda seed: fitted(lambda: AutoStructured(model), seed),
    "AutoStructured, normal": lambda seed: fitted(lambda: AutoStructured(model, conditionals="normal"), seed),
}
ELSEWHERE = {  # in the files beside this
    *(AutoLaplaceApproximation, RelabeledGuide, SampledGuide, list, tuple, dict, OrderedDict, GuideAndModel),
    *(AutoHierarchicalNormalMessenger, AutoRegressiveMessenger, AutoDiscreteParallel),
}

every_guide = pytest.mark.parametrize("name", GUIDES)
GAUSSIAN = [name for name in GUIDES if name != "AutoDelta"]


def state_of(guide):
    return {k: v.detach().clone() for k, v in guide.state_dict().items()}


def flat(values, sites):
    return torch.cat([values[k].reshape(len(values[k]), -1) for k in sites], dim=-1)


def moments(q):
    """Mean and covariance of a Gaussian family's unconstrained coordinates, from its definition."""
    if isinstance(q, Independent):
        means, covs = zip(*(moments(part) for part in q.parts), strict=True)
        return torch.cat(means), torch.block_diag(*covs)
    if isinstance(q, MeanFieldNormal):
        parts = [q.marginal(k) for k in q.sites]
        scale = torch.cat([s.flatten() for _, s in parts])
        return torch.cat([m.flatten() for m, _ in parts]), torch.diag(scale**2)
    if isinstance(q, LowRankNormal):
        return q.loc, torch.diag(q.scale.value**2) + q.low_rank_part @ q.low_rank_part.T
    assert isinstance(q, DenseNormal)
    return q.loc, q.root @ q.root.T


def parameters_of(guide):
    """What a guide's parameters mean: a triangular parameter's ignored half, say, is left out."""
    q = read_guide(guide)
    return (
        torch.cat([q.marginal(k)[0].flatten() for k in q.sites])
        if isinstance(q, Point)
        else torch.cat([part.flatten() for part in moments(q)])
    )


def prototype(guide):
    return guide.trace if isinstance(guide, AutoNormalMessenger) else guide.prototype_trace


def draws_of(guide, num_samples, seed):
    """Draws of a Pyro guide itself, through a plate of particles."""
    pyro.set_rng_seed(seed)
    with torch.no_grad(), pyro.plate("particles", num_samples, dim=-2):
        out = guide(X, Y)
    return {
        k: out[k].detach().expand(num_samples, *out[k].shape[1:]).reshape(num_samples, *SITE_SHAPES[k])
        for k in SITE_SHAPES
    }


SITE_SHAPES = {**SYMMETRY.shapes, "noise": ()}


def test_every_registered_guide_is_under_the_laws():
    tested = {type(make(0)) for make in GUIDES.values()}
    examples = {
        cls for cls in registered_guides() if cls.__module__ == "pyro_align.guides.registry"
    }  # of its docstring
    assert set(registered_guides()) - ELSEWHERE - examples <= tested


@every_guide
def test_relabeled_draws(name):
    """Draws of the relabeled posterior are the relabeled draws, and keep their log density."""
    q = read_guide(GUIDES[name](0))
    for seed in range(3):
        p = SYMMETRY.random(seed)
        noise = q.noise(7, generator=seed)
        values, log_prob = q.push_with_log_prob(noise)
        moved, moved_log_prob = q.permute(p).push_with_log_prob(q.permute_noise(p, noise))
        expected = p.apply({k: values[k] for k in SYMMETRY.sites}, batch_dims=1)
        for site, value in expected.items():
            assert not torch.equal(value, values[site])
            torch.testing.assert_close(moved[site], value, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(moved["noise"], values["noise"], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(moved_log_prob, log_prob, rtol=1e-10, atol=1e-10)


@every_guide
def test_elbo_is_the_old_one(name):
    """With common draws: those of the guide, relabeled, scored by the model and by the returned guide's density."""
    guide, p = GUIDES[name](0), SYMMETRY.random(6)
    q, new = read_guide(guide), read_guide(permute_guide(guide, p))
    noise = q.noise(4, generator=2)
    values, log_q = q.push_with_log_prob(noise)
    moved = {**p.apply({k: values[k] for k in SYMMETRY.sites}, batch_dims=1), "noise": values["noise"]}
    before, after = elbo(values, log_q), elbo(moved, density_at(new, moved, q.permute(p), noise, p))
    assert after == pytest.approx(before, rel=1e-9)


def elbo(values, log_q):
    """The mean over draws of the model's log joint less the guide's log density."""
    joint = []
    for i in range(len(log_q)):
        drawn = poutine.condition(model, {k: v[i] for k, v in values.items()})
        joint.append(poutine.trace(drawn).get_trace(X, Y).log_prob_sum())
    return float((torch.stack(joint) - log_q).mean())


def density_at(q, values, same, noise, p):
    """Log density of the returned guide's posterior at given values, from its moments; of a point, zero."""
    if isinstance(q, Point):
        return q.push_with_log_prob(same.permute_noise(p, noise))[1]
    mean, cov = moments(q)
    latent = {k: s.unconstrain(values[k]) for k, s in q.sites.items()}
    total = torch.distributions.MultivariateNormal(mean, cov).log_prob(flat(latent, q.sites))
    return total - sum(s.log_volume(latent[k], values[k]) for k, s in q.sites.items())


@every_guide
def test_relabeled_guide_in_distribution(name):
    """The returned Pyro guide, drawn through Pyro, against relabeled draws of the old one: means and covariances."""
    guide, p, n = GUIDES[name](1), SYMMETRY.random(5), 4000
    new = permute_guide(guide, p)
    with pyro.get_param_store().scope():
        old_draws = draws_of(guide, n, seed=1)
    expected = {**p.apply({k: old_draws[k] for k in SYMMETRY.sites}, batch_dims=1), "noise": old_draws["noise"]}
    q = read_guide(guide)
    a, b = (
        flat({k: s.unconstrain(v[k]) for k, s in q.sites.items()}, q.sites)
        for v in (expected, draws_of(new, n, seed=2))
    )
    assert a.shape == b.shape
    error = ((a.var(0) + b.var(0)) / n).sqrt()
    assert bool(((a.mean(0) - b.mean(0)).abs() <= 5 * error + 1e-12).all())
    scale = a.std(0).clamp_min(1e-12)
    gap = (a / scale).T.cov() - (b / scale).T.cov()
    assert float(gap.abs().max()) < 6 * (2 / n) ** 0.5 * 1.5


@pytest.mark.parametrize("name", GAUSSIAN)
def test_moments_move_with_the_units(name):
    """The relabeled unconstrained covariance is the old one with rows and columns indexed, also in the new guide."""
    guide, p = GUIDES[name](0), SYMMETRY.random(2)
    q = read_guide(guide)
    index, offset = [], 0
    for site, spec in q.sites.items():
        places = torch.arange(spec.numel).reshape(spec.unconstrained_shape) + offset
        offset += spec.numel
        if site in SYMMETRY.sites:
            axis = SYMMETRY.carriers["unit"]
            places = places.index_select(dict(axis)[site], p.indices["unit"])
        index.append(places.flatten())
    index = torch.cat(index)
    mean, cov = moments(q)
    for moved in (q.permute(p), read_guide(permute_guide(guide, p))):
        new_mean, new_cov = moments(moved)
        torch.testing.assert_close(new_mean, mean[index], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(new_cov, cov[index][:, index], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", GAUSSIAN)
def test_log_density_is_pyros(name):
    """The log density of a constrained draw is what Pyro's trace of the returned guide gives it."""
    new = permute_guide(GUIDES[name](0), SYMMETRY.random(1))
    trace = poutine.trace(new).get_trace(X, Y)
    if isinstance(new, AutoNormalMessenger):  # Pyro's ELBOs take this guide's density from here
        trace = new.get_traces()[1]
    q = read_guide(new)
    values = {k: trace.nodes[k]["value"].detach().unsqueeze(0) for k in q.sites}
    latent = {k: s.unconstrain(values[k]) for k, s in q.sites.items()}
    mean, cov = moments(q)
    expected = torch.distributions.MultivariateNormal(mean, cov).log_prob(flat(latent, q.sites))
    for k, spec in q.sites.items():
        expected = expected - spec.log_volume(latent[k], values[k])
    torch.testing.assert_close(trace.log_prob_sum().detach(), expected[0], rtol=1e-8, atol=1e-8)
    eps = torch.linalg.solve_triangular(torch.linalg.cholesky(cov), (flat(latent, q.sites) - mean).T, upper=False)
    if not isinstance(q, LowRankNormal | Independent):  # square roots: the noise of this very draw
        root = q.root if isinstance(q, DenseNormal) else cov.diagonal().sqrt().diag()
        eps = torch.linalg.solve(root, (flat(latent, q.sites) - mean).T).T
        noise, at = {}, 0
        for k, spec in q.sites.items():
            noise[k] = eps[:, at : at + spec.numel].reshape(1, *spec.unconstrained_shape)
            at += spec.numel
        pushed, log_prob = q.push_with_log_prob(noise)
        torch.testing.assert_close(log_prob, expected, rtol=1e-8, atol=1e-8)
        for k, value in values.items():
            torch.testing.assert_close(pushed[k], value, rtol=1e-8, atol=1e-8)


@every_guide
def test_group_laws(name):
    """Composition, inverse and identity act on guides as on values; the identity changes no bit."""
    guide = GUIDES[name](0)
    p, q = SYMMETRY.random(1), SYMMETRY.random(2)
    original = state_of(guide)
    same = state_of(permute_guide(guide, SYMMETRY.identity()))
    assert same.keys() == original.keys()
    assert all(torch.equal(same[k], v) for k, v in original.items())
    back = permute_guide(permute_guide(guide, p), p.inverse())
    torch.testing.assert_close(parameters_of(back), parameters_of(guide), rtol=1e-9, atol=1e-12)
    once, twice = permute_guide(guide, p @ q), permute_guide(permute_guide(guide, q), p)
    torch.testing.assert_close(parameters_of(once), parameters_of(twice), rtol=1e-9, atol=1e-12)
    assert read_guide(guide).distance(read_guide(permute_guide(guide, p))) > 0.1


@every_guide
def test_distance_laws(name):
    a, b = read_guide(GUIDES[name](0)), read_guide(GUIDES[name](1))
    p = SYMMETRY.random(3)
    assert a.distance(a) < 1e-7
    assert a.distance(b) == pytest.approx(b.distance(a), rel=1e-9)
    assert a.permute(p).distance(b.permute(p)) == pytest.approx(a.distance(b), rel=1e-9)
    # exact relabeling undone leaves no distance at all
    assert a.permute(p).permute(p.inverse()).distance(a) < 1e-7


@every_guide
def test_path_laws(name):
    """End points exact, distances along the path linear in tau, every point a guide that runs."""
    guide_a, guide_b = GUIDES[name](0), GUIDES[name](1)
    path = displacement(guide_a, guide_b)
    for tau, guide in ((0.0, guide_a), (1.0, guide_b)):
        end, state = state_of(path(tau)), state_of(guide)
        assert type(path(tau)) is type(guide)
        assert end.keys() == state.keys()
        assert all(torch.equal(end[k], v) for k, v in state.items())
    dense_start, length = path.posterior(0.0), path.length
    assert length > 0.1
    for tau in (0.3, 0.75):
        point = path.posterior(tau)
        start = dense_start.dense if isinstance(dense_start, LowRankNormal) else dense_start
        assert start.distance(point) == pytest.approx(tau * length, rel=1e-8)
        out = path(tau)(X, Y)
        assert {k: tuple(out[k].shape) for k in SITE_SHAPES} == SITE_SHAPES
    with pytest.raises(ValueError, match="tau"):
        path(1.5)
    with pytest.raises(ValueError, match="tau"):
        path(float("nan"))


@every_guide
def test_same_noise_gives_coupled_draws_along_the_path(name):
    """Draws with one noise move on straight lines in the family's coordinates: the coupling of the geodesic."""
    path = displacement(GUIDES[name](0), GUIDES[name](1))
    noise = path.posterior(0.0).noise(6, generator=3)
    spec = path.sites

    def latent(tau):
        values = path.posterior(tau).push(noise)
        if name == "AutoDelta":
            return flat(values, spec)
        return flat({k: s.unconstrain(values[k]) for k, s in spec.items()}, spec)

    start, middle, end = latent(0.0), latent(0.5), latent(1.0)
    torch.testing.assert_close(middle, (start + end) / 2, rtol=1e-8, atol=1e-8)


@every_guide
def test_nothing_is_touched(name):
    guide, other = GUIDES[name](0), GUIDES[name](1)
    guide.eval()
    store = pyro.get_param_store()
    pyro.param("mine", torch.ones(2))
    state, kept = state_of(guide), {k: v.detach().clone() for k, v in store.named_parameters()}
    attributes = dict(guide.__dict__)
    trace_values = {k: dict(n) for k, n in prototype(guide).nodes.items()}
    rng = torch.get_rng_state()
    new = permute_guide(guide, SYMMETRY.random(1))
    path = displacement(guide, other)
    path(0.5)
    path.posterior(0.25).push_with_log_prob(path.posterior(0.0).noise(3, generator=1))
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(v, state[k]) for k, v in state_of(guide).items())
    assert dict(store.named_parameters()).keys() == kept.keys()
    assert all(torch.equal(v, kept[k]) for k, v in store.named_parameters())
    assert guide.__dict__.keys() == attributes.keys()
    assert all(guide.__dict__[k] is v for k, v in attributes.items())
    assert {k: dict(n) for k, n in prototype(guide).nodes.items()} == trace_values
    assert not new.training
    # and the snapshot does not follow the guide, nor the guide the new one
    snapshot = read_guide(guide)
    before = snapshot.push(snapshot.noise(2, generator=0))
    scatter(guide, 9)
    scatter(new, 10)
    after = snapshot.push(snapshot.noise(2, generator=0))
    assert all(torch.equal(before[k], after[k]) for k in before)


@every_guide
def test_returned_guides_work_in_pyro(name):
    """SVI, both ELBOs, Predictive, deepcopy and torch.save, with the store cleared and a second guide beside it."""
    guide, p = GUIDES[name](0), SYMMETRY.random(1)
    first, second = permute_guide(guide, p), displacement(guide, GUIDES[name](1))(0.5)
    state = state_of(first)
    pyro.clear_param_store()
    first(X, Y)
    pyro.clear_param_store()
    second(X, Y)
    first(X, Y)
    assert all(torch.equal(v, state[k]) for k, v in state_of(first).items())
    assert torch.isfinite(torch.tensor(TraceMeanField_ELBO().loss(model, first, X, Y)))
    copied = copy.deepcopy(permute_guide(guide, p))
    assert all(torch.equal(v, state[k]) for k, v in state_of(copied).items())
    buffer = io.BytesIO()
    torch.save(permute_guide(guide, p), buffer)
    buffer.seek(0)
    pyro.clear_param_store()
    loaded = torch.load(buffer, weights_only=False)
    loaded(X, Y)
    assert all(torch.equal(v, state[k]) for k, v in state_of(loaded).items())
    samples = Predictive(model, guide=first, num_samples=3)(X)
    assert samples["y"].shape == (3, len(X), OUTPUTS)
    svi = SVI(model, first, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    untouched = state_of(second)
    svi.step(X, Y)
    if name != "laplace_approximation":  # holds buffers: nothing to train, in Pyro too
        assert any(not torch.equal(v, state[k]) for k, v in state_of(first).items())
    assert all(torch.equal(v, untouched[k]) for k, v in state_of(second).items())


@every_guide
def test_paths_can_be_pickled(name):
    """So that taus can be evaluated in other processes."""
    path = displacement(GUIDES[name](0), GUIDES[name](1))
    noise = path.posterior(0.0).noise(3, generator=0)
    expected = path.posterior(0.5).push_with_log_prob(noise)
    loaded = pickle.loads(pickle.dumps(path))
    values, log_prob = loaded.posterior(0.5).push_with_log_prob(noise)
    assert torch.equal(log_prob, expected[1])
    assert all(torch.equal(v, expected[0][k]) for k, v in values.items())
    assert loaded(0.5)(X, Y)["w1"].shape == (UNITS, INPUTS)


@every_guide
@pytest.mark.parametrize("signed", [False, True])
def test_matching_features_of_every_family(name, signed):
    """Coupled features give the true W2 at their own relabeling, and bound it from above at others."""
    a, b = read_guide(GUIDES[name](0)), read_guide(GUIDES[name](1))
    symmetry = SYMMETRY
    if signed:  # real sites alone can change sign
        symmetry = Symmetry.from_axes(
            {"w1": (Odd("unit"), None), "w2": (None, Odd("unit"))},
            shapes={"w1": (UNITS, INPUTS), "w2": (OUTPUTS, UNITS)},
        )
    here = symmetry.random(3)
    fixed, moving = a.coupled_features(b, here)
    assert {k: len(f) for k, f in fixed.items()} == {k: len(f) for k, f in moving.items()}
    assert {k: len(f) for k, f in fixed.items()} == {k: len(odd) for k, odd in fixed.odd.items()}

    def inner(p):
        total = 0.0
        for site in fixed:
            for f, m, o in zip(fixed[site], moving[site], fixed.odd[site], strict=True):
                m = p.apply_site(site, m, signs=o) if site in p.symmetry.sites else m
                total += float((f * m).detach().sum())
        return total

    def half_w2(p):
        return a.distance(b.permute(p)) ** 2 / 2

    constant = inner(here) + half_w2(here)
    gaps = [constant - inner(p) - half_w2(p) for p in (symmetry.random(seed) for seed in range(5))]
    assert min(gaps) > -1e-8 * constant
    assert max(gaps) > 1e-6 or not a.is_coupled
    for side in ("fixed", "moving"):
        features = a.features("w2", side)
        assert {k: len(f) for k, f in features.items()} == {k: len(odd) for k, odd in features.odd.items()}
        assert {k: {tuple(t.shape) for t in v} for k, v in features.items()} == {k: {v} for k, v in a.shapes.items()}
