"""Symmetries from a log density alone, beside those that the graph of its Pyro twin gives."""

import pyro.distributions as dist
import pytest
import torch
from problems import normal
from pyro import poutine, sample

from pyro_align import find_symmetry, find_symmetry_of_density
from pyro_align.errors import DiagnosticWarning, TraceError

G = torch.Generator().manual_seed(0)
X, Y = (torch.randn(20, n, generator=G, dtype=torch.float64) for n in (3, 2))


def see(mean, y=Y):
    sample("y", dist.Normal(mean, 1.0).to_event(2), obs=y)


def mixture():
    w = sample("w", dist.Dirichlet(torch.ones(3)))
    mu, s = normal("mu", 3), sample("s", dist.HalfNormal(torch.ones(3)).to_event(1))
    y = dist.MixtureSameFamily(dist.Categorical(w), dist.Normal(mu, s))
    sample("y", y.expand([20]).to_event(1), obs=Y[:, 0])


def hmm():
    p0, t = sample("p0", dist.Dirichlet(torch.ones(3))), sample("T", dist.Dirichlet(torch.ones(3, 3)).to_event(1))
    emission = dist.Normal(normal("mu", 3), 1.0).log_prob(Y[:, :1])
    a = p0.log() + emission[0]
    for k in range(1, 5):
        a = torch.logsumexp(a[:, None] + t.log(), 0) + emission[k]
    sample("y", dist.Unit(a.logsumexp(0)), obs=torch.empty(0))


def network():
    tau = sample("tau", dist.HalfNormal(torch.ones(4)).to_event(1))
    w1 = sample("w1", dist.Normal(0.0, tau).expand([3, 4]).to_event(2))
    see(torch.tanh(torch.tanh(X @ w1 + normal("b1", 4)) @ normal("w2", 4, 4)) @ normal("w3", 4, 2))


def two_scales():
    """Two components of one prior, two of another."""
    mu = sample("mu", dist.Normal(torch.zeros(4), torch.tensor([1.0, 1.0, 2.0, 2.0])).to_event(1))
    y = dist.MixtureSameFamily(dist.Categorical(torch.ones(4) / 4), dist.Normal(mu, 1.0))
    sample("y", y.expand([20]).to_event(1), obs=Y[:, 0])


def factors():
    see(normal("z", 20, 3) @ normal("w", 2, 3).T)


def ordered_factors():
    see(normal("z", 20, 3) @ normal("w", 2, 3, scale=torch.tensor([1.0, 0.5, 0.25])).T)


def regression():
    see(X @ normal("w", 3, 2))


def density_of(model):
    trace = poutine.trace(model).get_trace()
    sites = {k: n for k, n in trace.nodes.items() if n["type"] == "sample" and not n["is_observed"]}

    def log_density(values):
        return poutine.trace(poutine.condition(model, values)).get_trace().log_prob_sum()

    draws = {k: torch.stack([n["fn"].sample() for _ in range(3)]) for k, n in sites.items()}
    return log_density, {k: tuple(n["value"].shape) for k, n in sites.items()}, draws


def group(symmetry):
    """What moves along which axes, without the names."""
    return {(frozenset(symmetry.carriers[n]), a.size, a.kind) for n, a in symmetry.atoms.items()}


@pytest.mark.parametrize("options", [{}, {"signs": True}, {"signs": True, "rotations": True}], ids=str)
@pytest.mark.parametrize(
    "model", [mixture, hmm, network, two_scales, factors, ordered_factors, regression], ids=lambda m: m.__name__
)
def test_it_is_the_group_of_the_twin(model, options):
    log_density, shapes, draws = density_of(model)
    found = find_symmetry_of_density(log_density, shapes, draws=draws, **options)
    assert group(found) == group(find_symmetry(model, **options))
    assert found.certificate.error <= found.certificate.tolerance


def test_it_takes_few_evaluations():
    log_density, shapes, draws = density_of(network)
    calls = []

    def counted(values):
        calls.append(1)
        return log_density(values)

    find_symmetry_of_density(counted, shapes, draws=draws)
    assert len(calls) <= 120


def test_points_of_its_own_suit_unconstrained_densities():
    log_density, shapes, _ = density_of(factors)
    assert find_symmetry_of_density(log_density, shapes, rotations=True).dimension == 3


def test_rotations_that_leave_the_mean():
    def log_density(v):
        spread = v["w"] - v["w"].mean(-1, keepdim=True)
        weight = torch.arange(1.0, 6.0, dtype=torch.float64)
        return -(spread.square().sum(-1) * weight + v["w"].mean(-1).exp()).sum()

    found = find_symmetry_of_density(log_density, {"w": (5, 4)}, rotations=True)
    assert [(atom.kind, atom.size) for atom in found.atoms.values()] == [("centered rotation", 4)]


def test_running_out_of_evaluations_is_told():
    log_density, shapes, draws = density_of(network)
    with pytest.warns(DiagnosticWarning, match="stopped after 10 evaluations"):
        found = find_symmetry_of_density(log_density, shapes, draws=draws, max_evaluations=10)
    assert len(found.atoms) < 2


def test_bad_input_is_refused():
    log_density, shapes, draws = density_of(mixture)
    with pytest.raises(TraceError, match="not finite"):
        find_symmetry_of_density(lambda v: float("nan"), shapes, draws=draws)
    with pytest.raises(ValueError, match=r"at least 3 draws .* \['mu'\]"):
        find_symmetry_of_density(log_density, shapes, draws={**draws, "mu": draws["mu"][:2]})
