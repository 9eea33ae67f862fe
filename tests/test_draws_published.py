"""Published worked examples of label switching, recomputed.

The counts and the estimates are those of the papers; draws are our own, by Gibbs sampling with labels that are shuffled
at every step, so that as sampled no component has a mean of its own.
"""

import itertools
import math
import sys
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal

from pyro_align import Symmetry, align_draws, symmetrize
from pyro_align.model.draws import DrawDensity
from pyro_align.symmetry import SymmetrySpec

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from validation.label_switching import GALAXIES, LAMB

# maximum likelihood: rates, and the transition matrix (the same paper: 0.256, 3.101, 0.989, 0.690)
RATES, MOVES = torch.tensor([0.256, 3.101]), torch.tensor([[0.989, 0.011], [0.310, 0.690]])
STATES = SymmetrySpec({"rate": ("state",), "move": ("state", "state")})


def lamb() -> torch.Tensor:
    return torch.tensor([float(count) for count in LAMB])


def log_likelihood(y, rate, move):
    """Of a Poisson hidden Markov model that starts in state 0, by the forward recursion."""
    emission = y.unsqueeze(-1) * rate.log() - rate - torch.lgamma(y + 1).unsqueeze(-1)
    alpha = torch.tensor([0.0, -1e30]) + emission[0]
    for e in emission[1:]:
        alpha = torch.logsumexp(alpha.unsqueeze(-1) + move.log(), 0) + e
    return torch.logsumexp(alpha, 0)


def sample_states(y, rate, move, start, uniform):
    """Forward filtering, backward sampling, in plain numbers: two states are too few for tensors."""
    rate, move = rate.tolist(), move.tolist()
    filtered, prior = [], list(start)
    for v in y:
        joint = [prior[k] * math.exp(v * math.log(rate[k]) - rate[k]) for k in range(2)]
        total = sum(joint)
        filtered.append([j / total for j in joint])
        prior = [sum(filtered[-1][j] * move[j][k] for j in range(2)) for k in range(2)]
    states = [int(uniform[-1] > filtered[-1][0])]
    for f, u in zip(filtered[-2::-1], uniform[-2::-1], strict=True):
        back = [f[j] * move[j][states[-1]] for j in range(2)]
        states.append(int(u > back[0] / (back[0] + back[1])))
    return states[::-1]


def gibbs(y, draws, warmup, seed):
    """Rates under Gamma(1, 0.5), rows of the matrix under Dirichlet(1, 1); labels shuffled after every step."""
    out = {"rate": [], "move": [], "states": []}
    numbers = y.tolist()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        rate, move, start = torch.tensor([0.3, 3.0]), torch.tensor([[0.9, 0.1], [0.3, 0.7]]), [1.0, 0.0]
        for step in range(warmup + draws):
            states = torch.tensor(sample_states(numbers, rate, move, start, torch.rand(len(y)).tolist()))
            count = torch.bincount(states, minlength=2)
            total = torch.zeros(2).index_add(0, states, y)
            rate = torch.distributions.Gamma(1 + total, 0.5 + count).sample()
            jumps = torch.bincount(2 * states[:-1] + states[1:], minlength=4).reshape(2, 2)
            move = torch.distributions.Dirichlet(1.0 + jumps).sample()
            order = torch.randperm(2)
            rate, move, states, start = rate[order], move[order][:, order], order.argsort()[states], [*start]
            start = [start[i] for i in order.tolist()]
            if step >= warmup:
                out["rate"].append(rate)
                out["move"].append(move)
                out["states"].append(states)
    return {k: torch.stack(v) for k, v in out.items()}


@pytest.fixture(scope="module")
def draws():
    torch.set_default_dtype(torch.float64)
    runs = [gibbs(lamb(), 300, 50, seed) for seed in range(2)]
    return {k: torch.stack([r[k] for r in runs]) for k in runs[0]}


def test_the_counts_are_the_published_ones():
    y = lamb()
    assert len(y) == 240
    assert torch.bincount(y.long()).tolist() == [182, 41, 12, 2, 2, 0, 0, 1]


def test_the_estimates_are_the_published_ones():
    """They maximize the likelihood, to the digits printed."""
    y = lamb()
    best = float(log_likelihood(y, RATES, MOVES))
    assert best == pytest.approx(-177.48, abs=0.01)
    for k, step in [(0, 0.02), (0, -0.02), (1, 0.2), (1, -0.2)]:
        other = RATES.clone()
        other[k] += step
        assert float(log_likelihood(y, other, MOVES)) < best - 0.01


@pytest.mark.parametrize("method", ["pivot", "barycenter", "ecr", "ecr_iterative_1", "stephens"])
def test_states_of_a_hidden_markov_model_are_told_apart(method, draws):
    """Relabeled, the posterior means lie within a posterior standard deviation of the published estimates."""
    given = {k: draws[k] for k in ("rate", "move")}
    assert float(given["rate"].flatten(0, 1).mean(0).diff().abs()) < 0.6, "as sampled, both states have the same rate"
    allocations = None if method in ("pivot", "barycenter") else draws["states"]
    supports = {"rate": torch.distributions.constraints.positive, "move": torch.distributions.constraints.simplex}
    aligned = align_draws(given, STATES, method=method, allocations=allocations, supports=supports)
    first = int(aligned.draws["rate"][0, 0].argmin())
    order = [first, 1 - first]
    rate = aligned.draws["rate"].flatten(0, 1)[:, order]
    move = aligned.draws["move"].flatten(0, 1)[:, order][:, :, order]
    assert bool(((rate.mean(0) - RATES).abs() < rate.std(0)).all())
    assert bool(((move.mean(0) - MOVES).abs() < move.std(0) + 0.01).all())
    sizes = (rate[:, 0] < rate[:, 1]).double().mean()
    assert float(sizes) > 0.99, "quiet and moving states do not overlap: sorting by rate knows the labels"


def test_relabeled_states_agree_with_each_other(draws):
    """Allocations whose values are labels follow: in most intervals, all draws say the same state."""
    given = {k: draws[k] for k in ("rate", "move")}
    aligned = align_draws(given, STATES, method="ecr", allocations=draws["states"])
    for labels, agreed in ((draws["states"], False), (aligned.relabel_allocations(draws["states"]), True)):
        share = labels.double().flatten(0, 1).mean(0)
        certain = (torch.maximum(share, 1 - share) > 0.9).double().mean()
        assert (float(certain) > 0.8) == agreed


# -- the velocities of galaxies ----------------------------------------------------------------------------------------

# The log marginal likelihood of three components of one variance (Chib 1995, Table 4). The sampler saw one labeling
# only, so it is too low by log 3!, as Neal noticed (1999, Erroneous results in "Marginal likelihood from the Gibbs
# output").
CHIB = -228.620
VELOCITIES = Symmetry.from_axes({"share": ("k",), "loc": ("k",)}, shapes={"share": (3,), "loc": (3,)})


def galaxies() -> torch.Tensor:
    return torch.tensor([float(v) for v in GALAXIES.split()]) / 1000


def galaxy_model(y):
    """Chib's priors: weights Dirichlet(1, 1, 1), as normalized exponentials; means N(20, 100); variance IG(3, 20)."""
    share = pyro.sample("share", dist.Exponential(1.0).expand([3]).to_event(1))
    loc = pyro.sample("loc", dist.Normal(20.0, 10.0).expand([3]).to_event(1))
    var = pyro.sample("var", dist.InverseGamma(3.0, 20.0))
    components = dist.Normal(loc, var.sqrt().unsqueeze(-1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(share), components), obs=y)


def galaxy_gibbs(y, draws, warmup, seed):
    """Chib's sampler, with labels shuffled after every step; and the probability of each component for each galaxy."""
    out = {"share": [], "loc": [], "var": [], "allocations": []}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        q, loc, var = torch.full((3,), 1 / 3), torch.tensor([10.0, 20.0, 30.0]), torch.tensor(4.0)
        for step in range(warmup + draws):
            p = torch.softmax(q.log() - 0.5 * (y.unsqueeze(-1) - loc) ** 2 / var, -1)
            z = torch.nn.functional.one_hot(torch.multinomial(p, 1).squeeze(-1), 3).to(y.dtype)
            count = z.sum(0)
            q = torch.distributions.Dirichlet(1 + count).sample()
            precision = count / var + 0.01
            loc = (z.T @ y / var + 0.2) / precision + precision.rsqrt() * torch.randn(3)
            rest = ((y - z @ loc) ** 2).sum()
            var = 1 / torch.distributions.Gamma((6 + len(y)) / 2, (40 + rest) / 2).sample()
            order = torch.randperm(3)
            q, loc = q[order], loc[order]
            if step >= warmup:
                share = q * torch.distributions.Gamma(3.0, 1.0).sample()  # whose sum is Gamma(3), whatever they are
                p = torch.softmax(q.log() - 0.5 * (y.unsqueeze(-1) - loc) ** 2 / var, -1)
                for name, value in (("share", share), ("loc", loc), ("var", var), ("allocations", p)):
                    out[name].append(value)
    return {k: torch.stack(v) for k, v in out.items()}


@pytest.fixture(scope="module")
def velocities():
    torch.set_default_dtype(torch.float64)
    runs = [galaxy_gibbs(galaxies(), 500, 100, seed) for seed in range(2)]
    return {k: torch.stack([r[k] for r in runs]) for k in runs[0]}


def relabeled(velocities, method):
    given = {k: velocities[k] for k in ("share", "loc", "var")}
    options = {"allocations": velocities["allocations"]} if method != "pivot" else {}
    return align_draws(given, VELOCITIES, method=method, model=galaxy_model, args=(galaxies(),), **options)


def test_methods_agree_on_the_galaxies(velocities):
    """Seven slow galaxies, three fast ones, and the rest (as all analyzes of the data find), under every method."""
    y = galaxies()
    groups = torch.tensor([float(y[:7].mean()), float(y[7:79].mean()), float(y[79:].mean())])
    assert groups[[0, 2]].tolist() == pytest.approx([9.710, 33.044], abs=1e-3)
    assert float(velocities["loc"].mean((0, 1)).std()) < 1.0, "as sampled, all components have the same mean"
    found = {}
    for method in ("pivot", "stephens", "ecr", "ecr_iterative_1", "ecr_iterative_2"):
        aligned = relabeled(velocities, method)
        mean = aligned.draws["loc"].mean((0, 1))
        order = mean.argsort()
        assert bool(((mean[order] - groups).abs() < 0.5).all()), method
        assert float(aligned.report().loc["(all sites)", "rhat"]) < 1.05, method
        index = aligned.permutations["k"].long()
        p = velocities["allocations"].gather(-1, index.unsqueeze(-2).expand_as(velocities["allocations"]))
        found[method] = p.mean((0, 1)).argmax(-1).unsqueeze(-1).eq(order).long().argmax(-1)
    for a, b in itertools.combinations(found, 2):
        assert torch.equal(found[a], found[b]), (a, b)
    assert torch.bincount(found["ecr"]).tolist() == [7, 72, 3]


def test_the_evidence_of_the_galaxies_is_the_published_one(velocities):
    """Importance sampling by a Gaussian fitted to relabeled draws finds one copy, which is Chib's figure; by the
    mixture of its relabelings all six, which is the evidence. The entropy correction, log 3! nats, lies between them.
    """
    y = galaxies()
    aligned = relabeled(velocities, "pivot")
    assert aligned.entropy_correction == pytest.approx(math.log(6))
    flat = torch.cat([_flat(aligned.draws[k], k) for k in ("share", "loc", "var")], -1)
    with pyro.get_param_store().scope():
        guide = AutoMultivariateNormal(galaxy_model)
        guide(y)
    root = torch.linalg.cholesky(1.3 * flat.T.cov())
    with torch.no_grad():
        guide.loc.copy_(flat.mean(0))
        guide.scale_unconstrained.copy_(torch.distributions.transform_to(guide.scale_constraint).inv(root.diagonal()))
        tril = root / root.diagonal().unsqueeze(-1)
        guide.scale_tril_unconstrained.copy_(torch.distributions.transform_to(guide.scale_tril_constraint).inv(tril))
    density = DrawDensity(galaxy_model, (y,))
    evidence = {}
    for name, components in (("one copy", 1), ("all", 6)):
        values, log_q = symmetrize(guide, VELOCITIES, components=components).sample(6000)
        log_weight = density.log_probs(values)[0] - log_q
        evidence[name] = float(log_weight.logsumexp(0) - math.log(len(log_weight)))
    assert evidence["one copy"] == pytest.approx(CHIB, abs=0.05)
    assert evidence["all"] == pytest.approx(CHIB + aligned.entropy_correction, abs=0.05)
    found = symmetrize(guide, VELOCITIES).elbo(galaxy_model, y, num_samples=1000)
    assert found.gain == pytest.approx(math.log(6), abs=0.01)
    assert found.mixture < evidence["all"]


def _flat(value, site):
    value = value if site == "loc" else value.log()
    return value.flatten(0, 1).reshape(value.shape[0] * value.shape[1], -1)
