"""Draws whose labels are known: simulated mixtures, a Gibbs sampler, networks with planted relabelings."""

from __future__ import annotations

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch

from pyro_align import Symmetry
from pyro_align.axes import Odd
from pyro_align.symmetry import SymmetrySpec

MIXTURE = SymmetrySpec({"weights": ("k",), "loc": ("k",), "scale": ("k",)})

# Waiting times, in minutes, between 272 eruptions of the Old Faithful geyser (Azzalini & Bowman 1990): minutes, count
FAITHFUL = """
43:1 45:3 46:5 47:4 48:3 49:5 50:5 51:6 52:5 53:7 54:9 55:6 56:4 57:3 58:4 59:7 60:6 62:4 63:3 64:4 65:3 66:2 67:1 68:1
69:2 70:4 71:5 72:1 73:7 74:6 75:8 76:9 77:12 78:15 79:10 80:8 81:13 82:12 83:14 84:10 85:6 86:6 87:2 88:6 89:3 90:6
91:1 92:1 93:2 94:1 96:1
"""


def faithful() -> torch.Tensor:
    pairs = [pair.split(":") for pair in FAITHFUL.split()]
    return torch.cat([torch.full((int(count),), float(minutes)) for minutes, count in pairs])


@dataclass(frozen=True)
class Simulated:
    """Draws around known components, their labels shuffled draw by draw.

    Attributes:
        draws: Site -> ``(chain, draw, K)``, shuffled.
        order: ``(chain, draw, K)``: ``draws[..., k] == clean[..., order[k]]``.
        clean: The draws with constant labels.
        data: ``(n,)``.
        truth: Component of each datum.
    """

    draws: dict
    order: torch.Tensor
    clean: dict
    data: torch.Tensor
    truth: torch.Tensor

    def probabilities(self, draws=None) -> torch.Tensor:
        """Allocation probabilities ``(chain, draw, n, K)``."""
        draws = self.draws if draws is None else draws
        loc, scale, weights = (draws[k].unsqueeze(-2) for k in ("loc", "scale", "weights"))
        return torch.softmax(dist.Normal(loc, scale).log_prob(self.data.unsqueeze(-1)) + weights.log(), -1)

    def wrong(self, aligned, atom="k") -> float:
        """Fraction of units labeled otherwise than most draws label them."""
        index = aligned.permutations[atom].long()
        landed = self.order.gather(-1, index)  # which true component sits at each position
        usual = landed.flatten(0, 1).mode(0).values
        return float((landed != usual).double().mean())


def simulate(loc, spread, *, chains=3, draws=200, n=60, seed=0, scale=1.0) -> Simulated:
    g = torch.Generator().manual_seed(seed)
    loc, k = torch.tensor(loc), len(loc)
    truth = torch.arange(n) % k
    data = loc[truth] + scale * torch.randn(n, generator=g)
    noise = [torch.randn(chains, draws, k, generator=g) for _ in range(3)]
    clean = {
        "loc": loc + spread * noise[0],
        "scale": scale * (0.5 * spread * noise[1]).exp(),
        "weights": torch.softmax(0.5 * spread * noise[2], -1),
    }
    order = torch.rand(chains, draws, k, generator=g).argsort(-1)
    return Simulated({s: v.gather(-1, order) for s, v in clean.items()}, order, clean, data, truth)


def gibbs(y: torch.Tensor, k: int, draws: int, warmup: int, seed: int) -> dict:
    """A Gaussian mixture under weak conjugate priors, labels shuffled uniformly after every step.

    The sampler of Fruehwirth-Schnatter (2001): priors N(mean, range^2), InverseGamma(2, range^2 / 50), Dirichlet(1).
    """
    g = torch.Generator().manual_seed(seed)
    spread = float(y.max() - y.min())
    loc = torch.quantile(y, torch.linspace(0.1, 0.9, k))
    var, w, out = torch.full((k,), (spread / 10) ** 2), torch.full((k,), 1.0 / k), []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for step in range(warmup + draws):
            logits = w.log() - 0.5 * var.log() - 0.5 * (y.unsqueeze(-1) - loc) ** 2 / var
            z = torch.nn.functional.one_hot(torch.distributions.Categorical(logits=logits).sample(), k).double()
            count = z.sum(0)
            w = torch.distributions.Dirichlet(1 + count).sample()
            precision = count / var + 1 / spread**2
            mean = (z.T @ y / var + y.mean() / spread**2) / precision
            loc = mean + precision.rsqrt() * torch.randn(k)
            rest = (z * (y.unsqueeze(-1) - loc) ** 2).sum(0)
            var = 1 / torch.distributions.Gamma(2 + count / 2, spread**2 / 50 + rest / 2).sample()
            order = torch.randperm(k, generator=g)
            loc, var, w = loc[order], var[order], w[order]
            if step >= warmup:
                out.append((loc, var.sqrt(), w))
    return {name: torch.stack(v) for name, v in zip(("loc", "scale", "weights"), zip(*out, strict=True), strict=True)}


def mixture(y, k=3):
    """A mixture whose allocations are summed out by enumeration."""
    weights = pyro.sample("weights", dist.Dirichlet(2 * torch.ones(k)))
    loc = pyro.sample("loc", dist.Normal(0.0, 5.0).expand([k]).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5).expand([k]).to_event(1))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("y", dist.Normal(loc[z], scale[z]), obs=y)


def marginal_mixture(y, k=3):
    """The same model, its allocations summed out in the likelihood."""
    weights = pyro.sample("weights", dist.Dirichlet(2 * torch.ones(k)))
    loc = pyro.sample("loc", dist.Normal(0.0, 5.0).expand([k]).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5).expand([k]).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(loc, scale)), obs=y)


def markov(y, k=2):
    """A hidden Markov model with an initial state of zero's row."""
    move = pyro.sample("move", dist.Dirichlet(torch.ones(k, k)).to_event(1))
    loc = pyro.sample("loc", dist.Normal(0.0, 3.0).expand([k]).to_event(1))
    state = None
    for t in pyro.markov(range(len(y))):
        start = torch.ones(k) / k if state is None else move[state]
        state = pyro.sample(f"z{t}", dist.Categorical(start))
        pyro.sample(f"y{t}", dist.Normal(loc[state], 1.0), obs=y[t])


def network(x, y=None, hidden=4):
    """One hidden layer of tanh units."""
    w1 = pyro.sample("w1", dist.Normal(0.0, 1.0).expand([hidden, x.shape[1]]).to_event(2))
    b1 = pyro.sample("b1", dist.Normal(0.0, 1.0).expand([hidden]).to_event(1))
    w2 = pyro.sample("w2", dist.Normal(0.0, 1.0).expand([hidden]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(torch.tanh(x @ w1.T + b1) @ w2, 0.3), obs=y)


def signed_network() -> Symmetry:
    unit = Odd("hidden")
    return SymmetrySpec({"w1": (unit, None), "b1": (unit,), "w2": (unit,)})


def planted(symmetry: Symmetry, *, chains=2, draws=15, noise=0.05, seed=0):
    """Draws around one point, each relabeled at random.

    Returns:
        The draws, the point, and the relabeling of each draw as ``[chain][draw]``.
    """
    g = torch.Generator().manual_seed(seed)
    point = {s: torch.randn(shape, generator=g) for s, shape in symmetry.shapes.items()}
    moves = [[symmetry.random(g) for _ in range(draws)] for _ in range(chains)]
    out = {s: torch.empty(chains, draws, *shape) for s, shape in symmetry.shapes.items()}
    for c in range(chains):
        for d in range(draws):
            near = {s: v + noise * torch.randn(v.shape, generator=g) for s, v in point.items()}
            for s, v in moves[c][d].apply(near).items():
                out[s][c, d] = v
    return out, point, moves
