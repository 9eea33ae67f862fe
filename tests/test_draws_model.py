"""Draws of models: certificates, pivots by log joint, allocations by enumeration, MCMC, symmetrized guides."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from draws_problems import MIXTURE, marginal_mixture, markov, mixture, network, signed_network, simulate
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)

from pyro_align import align_draws, find_symmetry, symmetrize
from pyro_align.errors import GuideError, SymmetryError, TraceError
from pyro_align.guides import read_guide
from pyro_align.model.density import Density
from pyro_align.model.draws import DrawDensity
from pyro_align.symmetry import SymmetrySpec

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def prior_draws(model, *args, count=6, seed=0):
    density = Density(model, args)
    draws = [density.initial_values(seed=seed + i) for i in range(count)]
    return {k: torch.stack([d[k] for d in draws]) for k in draws[0]}


# -- densities at many draws -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [mixture, marginal_mixture, markov, network])
def test_log_probs_are_those_of_the_model(model):
    data = torch.randn(5, 2) if model is network else torch.randn(5)
    args = (data, torch.randn(5)) if model is network else (data,)
    values = prior_draws(model, *args)
    density = DrawDensity(model, args)
    joint, likelihood = density.log_probs(values)
    assert density.vectorized
    plain = Density(model, args)
    for i in range(6):
        draw = {k: v[i] for k, v in values.items()}
        torch.testing.assert_close(joint[i], plain.log_joint(draw))
        torch.testing.assert_close(likelihood[i], plain.log_likelihood(draw))


def test_a_model_that_cannot_be_vectorized_is_run_draw_by_draw():
    def model(y):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        shift = 1.0 if float(loc.sum()) > 0 else -1.0
        pyro.sample("y", dist.Normal(loc.sum() + shift, 1.0), obs=y)

    values = prior_draws(model, torch.tensor(0.3))
    density = DrawDensity(model, (torch.tensor(0.3),))
    joint, _ = density.log_probs(values)
    assert not density.vectorized
    expected = [Density(model, (torch.tensor(0.3),)).log_joint({"loc": v}) for v in values["loc"]]
    torch.testing.assert_close(joint, torch.stack(expected))


def test_allocations_of_a_mixture():
    y = torch.randn(7)
    values = prior_draws(mixture, y)
    enumerated = DrawDensity(mixture, (y,)).allocations(values, ["z"])
    marginal = DrawDensity(marginal_mixture, (y,)).allocations(values, ["y"])
    loc, scale, weights = (values[k].unsqueeze(1) for k in ("loc", "scale", "weights"))
    expected = torch.softmax(dist.Normal(loc, scale).log_prob(y.unsqueeze(-1)) + weights.log(), -1)
    torch.testing.assert_close(enumerated, expected)
    torch.testing.assert_close(marginal, expected)


def test_allocations_of_a_hidden_markov_model():
    """By summing over all paths."""
    y = torch.tensor([-1.0, 0.3, 2.0, 1.0])
    values = prior_draws(markov, y, count=2)
    sites = [f"z{t}" for t in range(4)]
    found = DrawDensity(markov, (y,)).allocations(values, sites)
    for i in range(2):
        move, loc = values["move"][i], values["loc"][i]
        total = torch.zeros(4, 2)
        for path in itertools.product(range(2), repeat=4):
            log_p = torch.tensor(0.5).log() + sum(
                dist.Normal(loc[s], 1.0).log_prob(v) for s, v in zip(path, y, strict=True)
            )
            log_p = log_p + sum(move[a, b].log() for a, b in itertools.pairwise(path))
            for t, s in enumerate(path):
                total[t, s] += log_p.exp()
        torch.testing.assert_close(found[i], total / total.sum(-1, keepdim=True))


# -- with the model ----------------------------------------------------------------------------------------------------


@pytest.fixture
def switching():
    return simulate([-3.0, 0.0, 3.0], 0.2, chains=2, draws=40, n=30)


@pytest.mark.parametrize("model", [mixture, marginal_mixture])
def test_the_pivot_is_the_draw_of_highest_log_joint(model, switching):
    aligned = align_draws(switching.draws, MIXTURE, model=model, args=(switching.data,))
    c, d = aligned.reference_draw
    best = max(
        float(Density(model, (switching.data,)).log_joint({k: v[i, j] for k, v in switching.draws.items()}))
        for i in range(2)
        for j in range(40)
    )
    assert aligned.log_joint[c, d] == pytest.approx(best)
    assert aligned.permutation(c, d).is_identity
    assert switching.wrong(aligned) == 0


@pytest.mark.parametrize("model", [mixture, marginal_mixture])
@pytest.mark.parametrize("method", ["pivot", "stephens", "ecr"])
def test_relabeled_draws_have_the_same_log_joint(model, method, switching):
    aligned = align_draws(switching.draws, MIXTURE, method=method, model=model, args=(switching.data,))
    assert aligned.invariance.draws == int(aligned.relabeled.sum()) > 0
    assert aligned.invariance.error <= 1e-8
    density = DrawDensity(model, (switching.data,))
    before, after = (
        density.log_probs({k: v.flatten(0, 1) for k, v in d.items()}) for d in (switching.draws, aligned.draws)
    )
    torch.testing.assert_close(before[0], after[0])
    torch.testing.assert_close(before[1], after[1])
    assert switching.wrong(aligned) == 0


def test_a_symmetry_that_is_none_is_refused(switching):
    forgotten = SymmetrySpec({"loc": ("k",), "scale": ("k",)})
    with pytest.raises(SymmetryError, match=r"relabeling changes the log joint of .* draws"):
        align_draws(switching.draws, forgotten, model=mixture, args=(switching.data,))
    assert align_draws(switching.draws, forgotten, model=mixture, args=(switching.data,), certify=False) is not None


def test_a_symmetry_of_the_likelihood_is_checked_on_the_likelihood():
    def model(y):
        loc = pyro.sample("loc", dist.Normal(torch.tensor([-1.0, 1.0]), 3.0).to_event(1))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(loc, 1.0)), obs=y)

    y = torch.randn(5)
    draws = {"loc": torch.randn(1, 20, 2)}
    axes = {"loc": ("k",)}
    with pytest.raises(SymmetryError, match="log joint"):
        align_draws(draws, SymmetrySpec(axes), model=model, args=(y,))
    aligned = align_draws(draws, SymmetrySpec(axes, scope="likelihood"), model=model, args=(y,))
    assert aligned.invariance.draws > 0


def test_supports_come_from_the_model(switching):
    """Scales are compared by their logs: the reference is reported in these coordinates."""
    aligned = align_draws(switching.draws, MIXTURE, model=mixture, args=(switching.data,))
    c, d = aligned.reference_draw
    torch.testing.assert_close(aligned.reference["scale"], switching.draws["scale"][c, d].log())
    weights = switching.draws["weights"][c, d].log()
    torch.testing.assert_close(aligned.reference["weights"], weights - weights.mean())


def test_nothing_of_the_callers_changes(switching):
    state = torch.get_rng_state()
    store = dict(pyro.get_param_store().items())
    align_draws(switching.draws, MIXTURE, method="stephens", model=mixture, args=(switching.data,))
    assert torch.equal(torch.get_rng_state(), state)
    assert dict(pyro.get_param_store().items()) == store


def test_a_finished_run(switching):
    """NUTS, tiny: the model, its data and the divergences come with it."""
    mcmc = MCMC(NUTS(marginal_mixture, max_tree_depth=3), num_samples=8, warmup_steps=4, disable_progbar=True)
    mcmc.run(switching.data)
    aligned = align_draws(mcmc, find_symmetry(marginal_mixture, switching.data))
    assert aligned.draws["loc"].shape == (1, 8, 3)
    assert aligned.invariance is not None
    assert aligned.source.model[0] is marginal_mixture
    marked = mcmc.diagnostics()["divergences"]["chain 0"]
    assert aligned.source.divergent[0].nonzero()[0].tolist() == list(marked)


def test_signs_of_tanh_units():
    """Draws that differ by signed relabelings only: permutations alone cannot undo them."""
    x = torch.randn(12, 2)
    y = torch.randn(12)
    symmetry = signed_network().bind({"w1": (4, 2), "b1": (4,), "w2": (4,)})
    point = {k: v[0] for k, v in prior_draws(network, x, y, count=1).items()}
    g = torch.Generator().manual_seed(0)
    moves = [symmetry.random(g) for _ in range(20)]
    moved = [m.apply(point) for m in moves]
    draws = {k: torch.stack([m[k] for m in moved]).reshape(2, 10, *point[k].shape) for k in point}
    signed = align_draws(draws, symmetry, model=network, args=(x, y))
    assert float(max(v.std((0, 1)).max() for v in signed.draws.values())) < 1e-12
    plain = SymmetrySpec({"w1": ("hidden", None), "b1": ("hidden",), "w2": ("hidden",)})
    unsigned = align_draws(draws, plain, model=network, args=(x, y))
    assert float(unsigned.draws["w2"].std((0, 1)).max()) > 0.1
    assert signed.signs["hidden"].shape == (2, 10, 4)


@pytest.mark.slow
@pytest.mark.filterwarnings(r"ignore:.torch.jit.\w+. is deprecated:DeprecationWarning")  # Pyro's NUTS compiles with it
def test_rhat_of_a_real_run():
    """Three components, NUTS, four chains: R-hat above 1.5 as they are, below 1.01 relabeled."""
    g = torch.Generator().manual_seed(1)
    z = torch.arange(150) % 3
    y = torch.tensor([-2.0, 0.5, 4.0])[z] + torch.tensor([0.6, 0.6, 1.0])[z] * torch.randn(150, generator=g)
    runs = []
    for seed in range(4):
        pyro.set_rng_seed(seed)
        kernel = NUTS(marginal_mixture, jit_compile=True, ignore_jit_warnings=True)
        mcmc = MCMC(kernel, num_samples=1000, warmup_steps=300, disable_progbar=True)
        mcmc.run(y)
        runs.append(mcmc.get_samples())
    draws = {k: torch.stack([r[k] for r in runs]) for k in runs[0]}
    aligned = align_draws(draws, find_symmetry(marginal_mixture, y), model=marginal_mixture, args=(y,))
    total = aligned.report().loc["(all sites)"]
    assert total["rhat before"] > 1.5
    assert total["rhat"] < 1.01
    assert total["modes"] == 1


# -- guides ------------------------------------------------------------------------------------------------------------


def two_means():
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 2.0).to_event(1))
    with pyro.plate("data", 20):
        y = torch.tensor([-1.5, 1.5]).repeat(10)
        pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(loc, 0.7)), obs=y)


def fitted(cls, seed, steps=150, **options):
    pyro.set_rng_seed(seed)
    with pyro.get_param_store().scope():
        guide = cls(two_means, **options)
        svi = SVI(two_means, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
        for _ in range(steps):
            svi.step()
    return guide


SWAP = SymmetrySpec({"loc": ("k",)})


def test_an_ensemble_of_guides():
    starts = [torch.tensor([-1.0, 1.0]), torch.tensor([1.0, -1.0]), torch.tensor([-1.0, 1.0])]
    guides = [fitted(AutoNormal, s, init_loc_fn=lambda site, v=v: v) for s, v in enumerate(starts)]
    aligned = align_draws(guides, SWAP, method="barycenter")
    assert aligned.draws["loc"].shape == (1, 3, 2)
    assert len({tuple(q) for q in aligned.permutations["k"][0].tolist()}) == 2
    assert aligned.report().loc["loc", "relabeled"] >= 1
    medians = torch.stack([g.median()["loc"] for g in aligned.guides])
    assert float(medians.std(0).max()) < 0.3
    assert isinstance(aligned.guides[1], AutoNormal)
    with pytest.raises(TypeError, match="not an ensemble"):
        _ = align_draws({"loc": torch.randn(1, 4, 2)}, SWAP).guides


@pytest.mark.parametrize("cls", [AutoNormal, AutoDiagonalNormal, AutoMultivariateNormal, AutoLowRankMultivariateNormal])
def test_log_density_at_given_values(cls):
    posterior = read_guide(fitted(cls, 0, steps=20))
    values, log_q = posterior.push_with_log_prob(posterior.noise(6))
    torch.testing.assert_close(posterior.log_prob(values), log_q)


@pytest.mark.parametrize("cls", [AutoNormal, AutoMultivariateNormal])
def test_what_symmetry_is_worth(cls):
    """Two copies that do not overlap: log 2 nats, neither more nor less."""
    guide = fitted(cls, 0, init_loc_fn=lambda site: torch.tensor([-1.0, 1.0]))
    mixture_guide = symmetrize(guide, SWAP)
    found = mixture_guide.elbo(two_means, num_samples=500)
    assert found.exhaustive
    assert found.gain == pytest.approx(math.log(2), abs=0.01)
    assert found.mixture <= found.upper + 1e-9
    assert "ELBO" in str(found)


def test_bounds_hold_and_tighten():
    """A broad guide, whose copies overlap: the mixture gains less than the bound, and more components gain more."""

    def model():
        pyro.sample("loc", dist.Normal(torch.zeros(4), 1.0).to_event(1))

    guide = AutoNormal(model, init_loc_fn=lambda site: torch.tensor([-1.0, -0.3, 0.3, 1.0]), init_scale=0.6)
    guide()
    symmetry = SymmetrySpec({"loc": ("k",)})
    found = [symmetrize(guide, symmetry, components=n).elbo(model, num_samples=2000) for n in (1, 4, 24)]
    assert found[0].gain == pytest.approx(0.0, abs=1e-12)
    assert found[0].gain < found[1].gain < found[2].gain < math.log(24)
    assert [f.exhaustive for f in found] == [False, False, True]
    assert found[2].upper == pytest.approx(found[2].elbo + math.log(24))
    assert found[2].mixture <= 0.0 + 3 * found[2].mixture_se  # the evidence of a model without data is one


def test_the_mixture_is_symmetric_and_a_pyro_guide():
    guide = fitted(AutoNormal, 0, init_loc_fn=lambda site: torch.tensor([-1.0, 1.0]))
    mixture_guide = symmetrize(guide, SWAP)
    values, log_q = mixture_guide.sample(50)
    swapped = {"loc": values["loc"].flip(-1)}
    torch.testing.assert_close(mixture_guide.log_prob(swapped), log_q)
    assert 0.3 < float((values["loc"][:, 0] > 0).double().mean()) < 0.7
    losses = torch.tensor([Trace_ELBO().loss(two_means, mixture_guide) for _ in range(60)])
    expected = -mixture_guide.elbo(two_means, num_samples=1000).mixture
    assert float(losses.mean()) == pytest.approx(expected, abs=5 * float(losses.std()) / 60**0.5 + 0.05)
    drawn = Predictive(two_means, guide=mixture_guide, num_samples=40, return_sites=("loc",))()["loc"]
    assert 0.1 < float((drawn.reshape(40, 2)[:, 0] > 0).double().mean()) < 0.9


def test_what_cannot_be_made_symmetric():
    point = fitted(AutoDelta, 0, steps=2)
    with pytest.raises(GuideError, match="density"):
        symmetrize(point, SWAP)
    with pytest.raises(GuideError, match="'other'"):
        symmetrize(fitted(AutoNormal, 0, steps=2), SymmetrySpec({"other": ("k",)}))
    with pytest.raises(ValueError, match="components"):
        symmetrize(fitted(AutoNormal, 0, steps=2), SWAP, components=0)


def test_a_model_that_is_another(switching):
    with pytest.raises(TraceError, match="'w1'"):
        align_draws(switching.draws, MIXTURE, model=network, args=(torch.randn(3, 2),))
    with pytest.raises(TraceError, match=r"'weights': shape \(2,\) in the model"):
        align_draws(switching.draws, MIXTURE, model=mixture, args=(switching.data, 2))


def test_the_predictive_density_of_every_datum_is_checked():
    """Relabeling that exchanges two data's likelihoods leaves the log joint alone, but is no symmetry."""

    def model(y):
        loc = pyro.sample("loc", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
        with pyro.plate("data", 2):
            pyro.sample("y", dist.Normal(loc, 1.0), obs=y)

    y = torch.zeros(2)
    draws = {"loc": torch.randn(1, 20, 2)}
    with pytest.raises(SymmetryError, match="log likelihood of single data"):
        align_draws(draws, SymmetrySpec({"loc": ("k",)}), model=model, args=(y,))


def test_relabelings_of_a_mixture_are_drawn_without_replacement():
    def pair():
        pyro.sample("loc", dist.Normal(torch.zeros(4), 1.0).to_event(1))

    with pyro.get_param_store().scope():
        guide = AutoNormal(pair)
        guide()
        mixture = symmetrize(guide, SymmetrySpec({"loc": ("k",)}), components=23)  # of 24
    drawn = {tuple(p.indices["k"].tolist()) for p in mixture.permutations}
    assert len(drawn) == 23
