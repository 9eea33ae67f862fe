"""Published worked examples of label switching, recomputed.

The counts and the estimates are those of the papers; draws are our own, by Gibbs sampling with labels that are shuffled
at every step, so that as sampled no component has a mean of its own.
"""

import math

import pytest
import torch

from pyro_align import Symmetry, align_draws

# Movements of a fetal lamb in 240 intervals of 5 seconds (Leroux & Puterman 1992, Biometrics 48:545-558); zeros between
# the others are written as how many there are, in brackets
LAMB = """
(5) 1 (1) 1 (6) 1 (1) 1 (4) 2 2 (4) 1 (2) 1 1 (2) 1 1 1 (2) 1 (18) 2 (1) 1 (17) 1 (5) 7 3 2 3 2 4 (4) 1 (7) 1 (1) 2
(4) 1 (4) 1 (14) 1 (5) 2 1 (2) 1 (3) 1 (1) 1 1 (3) 1 (2) 1 (3) 1 2 (3) 1 (1) 1 1 (1) 1 (2) 2 (1) 1 2 1 1 2 1 (1) 1 1
(2) 1 1 (3) 1 1 1 (1) 4 (2) 2 (44)
"""
# maximum likelihood: rates, and the transition matrix (the same paper: 0.256, 3.101, 0.989, 0.690)
RATES, MOVES = torch.tensor([0.256, 3.101]), torch.tensor([[0.989, 0.011], [0.310, 0.690]])
STATES = Symmetry.from_axes({"rate": ("state",), "move": ("state", "state")})


def lamb() -> torch.Tensor:
    counts = []
    for word in LAMB.split():
        counts += [0] * int(word[1:-1]) if word.startswith("(") else [int(word)]
    return torch.tensor(counts, dtype=torch.float64)


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
    """They maximise the likelihood, to the digits printed."""
    y = lamb()
    best = float(log_likelihood(y, RATES, MOVES))
    assert best == pytest.approx(-177.48, abs=0.01)
    for k, step in [(0, 0.02), (0, -0.02), (1, 0.2), (1, -0.2)]:
        other = RATES.clone()
        other[k] += step
        assert float(log_likelihood(y, other, MOVES)) < best - 0.01


@pytest.mark.parametrize("method", ["pivot", "barycenter", "ecr", "ecr_iterative_1", "stephens"])
def test_states_of_a_hidden_markov_model_are_told_apart(method, draws):
    """Relabelled, the posterior means lie within a posterior standard deviation of the published estimates."""
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


def test_relabelled_states_agree_with_each_other(draws):
    """Allocations whose values are labels follow: in most intervals, all draws say the same state."""
    given = {k: draws[k] for k in ("rate", "move")}
    aligned = align_draws(given, STATES, method="ecr", allocations=draws["states"])
    for labels, agreed in ((draws["states"], False), (aligned.relabel_allocations(draws["states"]), True)):
        share = labels.double().flatten(0, 1).mean(0)
        certain = (torch.maximum(share, 1 - share) > 0.9).double().mean()
        assert (float(certain) > 0.8) == agreed
