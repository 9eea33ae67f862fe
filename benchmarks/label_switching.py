"""R-hat before and after relabeling, on chains that were really run; and which method mistakes fewest labels.

python benchmarks/label_switching.py mixture        # three Gaussian components
python benchmarks/label_switching.py network        # one hidden layer of ten tanh units, with and without signs
python benchmarks/label_switching.py methods        # misclassified data by method, on simulated mixtures

Chains of NUTS start at random and run one per process. ``--data FILE`` takes a regression from a text table, whose last
column is the target.
"""

from __future__ import annotations

import argparse
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS
from scipy.optimize import linear_sum_assignment
from torch.distributions import constraints

from pyro_align import align_draws, find_symmetry
from pyro_align.draws.diagnostics import rhat_and_ess
from pyro_align.symmetry import SymmetrySpec

UNITS = 10


@dataclass(frozen=True)
class Run:
    """What one chain needs to know."""

    name: str
    data: str | None
    warmup: int
    draws: int
    depth: int


def mixture(y):
    """Three components, their allocations summed out."""
    weights = pyro.sample("weights", dist.Dirichlet(2 * torch.ones(3)))
    loc = pyro.sample("loc", dist.Normal(0.0, 4.0).expand([3]).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(-0.2, 0.4).expand([3]).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(loc, scale)), obs=y)


def mean(weights, x):
    """The network's output at every input."""
    hidden = torch.tanh(x @ weights["w1"].mT + weights["b1"].unsqueeze(-2))
    return (hidden @ weights["w2"].unsqueeze(-1)).squeeze(-1) + weights["b2"].unsqueeze(-1)


def network(x, y):
    """Standard normal weights, known noise."""
    shapes = {"w1": (UNITS, x.shape[1]), "b1": (UNITS,), "w2": (UNITS,), "b2": ()}
    weights = {k: pyro.sample(k, dist.Normal(0.0, 1.0).expand(s).to_event(len(s))) for k, s in shapes.items()}
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(mean(weights, x), 0.3), obs=y)


def problem(run: Run):
    """The model and its arguments."""
    g = torch.Generator().manual_seed(0)
    if run.name == "mixture":
        truth = torch.multinomial(torch.tensor([0.5, 0.3, 0.2]), 120, replacement=True, generator=g)
        loc, scale = torch.tensor([-2.0, 0.5, 4.0])[truth], torch.tensor([0.6, 0.6, 1.0])[truth]
        return mixture, (loc + scale * torch.randn(120, generator=g),)
    if run.data:
        table = np.loadtxt(run.data)
        table = torch.tensor((table - table.mean(0)) / table.std(0))
        return network, (table[:, :-1], table[:, -1])
    x = torch.linspace(-2.0, 2.0, 40).unsqueeze(-1)
    return network, (x, torch.sin(2 * x[:, 0]) + 0.3 * x[:, 0] + 0.3 * torch.randn(40, generator=g))


def chain(run: Run, seed: int) -> dict[str, torch.Tensor]:
    """One chain, in a process of its own."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    warnings.simplefilter("ignore")
    pyro.set_rng_seed(seed)
    model, args = problem(run)
    kernel = NUTS(model, jit_compile=True, ignore_jit_warnings=True, max_tree_depth=run.depth)
    sampler = MCMC(kernel, num_samples=run.draws, warmup_steps=run.warmup, disable_progbar=True)
    sampler.run(*args)
    return sampler.get_samples()


def worst(values: dict) -> str:
    """The largest R-hat and smallest effective sample size of each site."""
    return "  ".join(f"{k} {r:.3f} ({n:.0f})" for k, (r, n) in rhat_and_ess(values).items())


# -- methods -----------------------------------------------------------------------------------------------------------

# weights, means, standard deviations, data: from components far apart to such as share their mean
MIXTURES = {
    "3 apart": ([0.3, 0.4, 0.3], [-4.0, 0.0, 4.0], [1.0, 1.0, 1.0], 150),
    "3 overlapping": ([0.3, 0.4, 0.3], [-2.5, 0.0, 2.5], [1.0, 0.7, 1.0], 150),
    "2 with one mean": ([0.5, 0.5], [0.0, 0.0], [0.5, 3.0], 150),
    "5, unequal": ([0.2, 0.2, 0.25, 0.2, 0.15], [-6.0, -3.0, 0.0, 3.0, 7.0], [0.7, 0.7, 0.7, 0.7, 1.5], 250),
}
SYMMETRY = SymmetrySpec({"weights": ("k",), "loc": ("k",), "scale": ("k",)})
METHODS = ("ordering", "pivot", "ecr", "ecr_iterative_1", "ecr_iterative_2", "stephens", "barycenter")


def simulated(name: str, seed: int):
    """Data ``(n,)`` and the component that each came from."""
    weights, loc, scale, n = (torch.tensor(v) for v in MIXTURES[name])
    g = torch.Generator().manual_seed(seed)
    truth = torch.multinomial(weights, int(n), replacement=True, generator=g)
    return loc[truth] + scale[truth] * torch.randn(int(n), generator=g), truth


def gibbs(y, k: int, draws: int, seed: int, warmup: int = 200) -> dict[str, torch.Tensor]:
    """A Gaussian mixture under weak conjugate priors (Fruehwirth-Schnatter 2001); labels shuffled at every step."""
    pyro.set_rng_seed(seed)
    spread = float(y.max() - y.min())
    loc = torch.quantile(y, (torch.arange(k) + 0.5) / k)
    var, weights = torch.full((k,), (spread / 10) ** 2) * torch.linspace(0.5, 2.0, k), torch.full((k,), 1.0 / k)
    kept = []
    for step in range(warmup + draws):
        logits = weights.log() - 0.5 * var.log() - 0.5 * (y.unsqueeze(-1) - loc) ** 2 / var
        z = torch.nn.functional.one_hot(dist.Categorical(logits=logits).sample(), k).to(y.dtype)
        count = z.sum(0)
        weights = dist.Dirichlet(1 + count).sample()
        precision = count / var + 1 / spread**2
        loc = dist.Normal((z.T @ y / var + y.mean() / spread**2) / precision, precision.rsqrt()).sample()
        rest = (z * (y.unsqueeze(-1) - loc) ** 2).sum(0)
        var = 1 / dist.Gamma(2 + count / 2, spread**2 / 50 + rest / 2).sample()
        order = torch.randperm(k)
        loc, var, weights = loc[order], var[order], weights[order]
        if step >= warmup:
            kept.append({"loc": loc, "scale": var.sqrt(), "weights": weights})
    return {name: torch.stack([draw[name] for draw in kept]) for name in kept[0]}


def allocations(draws: dict, y) -> torch.Tensor:
    """Probability of each component for each datum, ``(chain, draw, n, k)``."""
    loc, scale, weights = (draws[name].unsqueeze(-2) for name in ("loc", "scale", "weights"))
    return torch.softmax(dist.Normal(loc, scale).log_prob(y.unsqueeze(-1)) + weights.log(), -1)


def log_joint(draws: dict, y) -> torch.Tensor:
    """Log density of data, means, variances and weights (uniform) up to a constant, ``(chain, draw)`` nats."""
    loc, scale, weights = (draws[name] for name in ("loc", "scale", "weights"))
    spread = float(y.max() - y.min())
    parts = dist.Normal(loc.unsqueeze(-2), scale.unsqueeze(-2)).log_prob(y.unsqueeze(-1)) + weights.unsqueeze(-2).log()
    prior = dist.Normal(y.mean(), spread).log_prob(loc) + dist.InverseGamma(2.0, spread**2 / 50).log_prob(scale**2)
    return parts.logsumexp(-1).sum(-1) + prior.sum(-1)


def mistaken(p: torch.Tensor, truth) -> tuple[float, float]:
    """What mean allocation probabilities say of the components that the data came from, under the best naming.

    Args:
        p: Probabilities ``(n, k)``.
        truth: Components ``(n,)``.

    Returns:
        Share of data whose most probable component is another, and mean of minus the log probability of the right one.
    """
    right = torch.nn.functional.one_hot(truth, p.shape[-1]).to(p.dtype)
    agree = torch.nn.functional.one_hot(p.argmax(-1), p.shape[-1]).to(p.dtype).T @ right
    loss = -(p.log().T @ right)
    rows, columns = linear_sum_assignment(agree.numpy(), maximize=True)
    share = 1 - float(agree[rows, columns].sum()) / len(truth)
    rows, columns = linear_sum_assignment(loss.numpy())
    return share, float(loss[rows, columns].sum()) / len(truth)


def compare_methods(draws: int, seeds: int) -> None:
    """Prints, by mixture and method, the share of misclassified data and the log loss, means over data sets."""
    print(f"{'mixture':<18}" + "".join(f"{name:>17}" for name in ("true parameters", *METHODS)))
    for name, (weights, loc, scale, _) in MIXTURES.items():
        found: dict[str, list] = {key: [] for key in ("true parameters", *METHODS)}
        for seed in range(seeds):
            y, truth = simulated(name, seed)
            chains = [gibbs(y, len(loc), draws, 10 * seed + c) for c in range(2)]
            given = {k: torch.stack([c[k] for c in chains]) for k in chains[0]}
            known = {"loc": torch.tensor(loc), "scale": torch.tensor(scale), "weights": torch.tensor(weights)}
            found["true parameters"].append(mistaken(allocations(known, y), truth))
            p, density = allocations(given, y), log_joint(given, y)
            pivot = divmod(int(density.argmax()), density.shape[1])
            supports = {"scale": constraints.positive, "weights": constraints.simplex}
            for method in METHODS:
                options = {"allocations": p, "reference": pivot}
                if method in ("pivot", "barycenter"):
                    options = {"weights": "diagonal", "supports": supports, "reference": pivot}
                elif method == "ordering":
                    options = {"by": "loc"}
                aligned = align_draws(given, SYMMETRY, method=method, **options)
                found[method].append(mistaken(allocations(aligned.draws, y).mean((0, 1)), truth))
        print(f"{name:<18}" + "".join("{:>10.3f} {:.4f}".format(*np.mean(v, 0)) for v in found.values()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=["mixture", "network", "methods"])
    parser.add_argument("--data", help="text table of a regression, for the network")
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--warmup", type=int, default=300)
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--depth", type=int, default=10, help="largest depth of the tree")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=5, help="data sets of each simulated mixture, for methods")
    options = parser.parse_args()
    if options.name == "methods":
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(1)
        compare_methods(options.draws, options.seeds)
        return
    run = Run(options.name, options.data, options.warmup, options.draws, options.depth)
    torch.set_default_dtype(torch.float64)
    start = time.perf_counter()
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        chains = list(pool.map(chain, [run] * options.chains, range(options.chains)))
    draws = {k: torch.stack([c[k] for c in chains]) for k in chains[0]}
    print(f"{options.chains} chains of {options.draws} draws: {time.perf_counter() - start:.0f} s")
    print(f"R-hat (ESS) as sampled: {worst(draws)}")
    model, args = problem(run)
    if run.name == "network":
        at = args[0][:: max(1, len(args[0]) // 20)]
        print(f"of the function:        {worst({'values': mean(draws, at)})}")
    symmetries = {"found": find_symmetry(model, *args)}
    if run.name == "network":
        symmetries["signed"] = find_symmetry(model, *args, signs=True)  # tanh is odd
    for name, symmetry in symmetries.items():
        for method in ("pivot", "barycenter"):
            start = time.perf_counter()
            aligned = align_draws(draws, symmetry, method=method, model=model, args=args)
            seconds = time.perf_counter() - start
            print(f"\nsymmetry {name}, {method}, {seconds:.1f} s: {worst(aligned.draws)}")
            print(aligned.report().round(3).to_string())
            print(aligned, aligned.modes(), sep="\n", flush=True)


if __name__ == "__main__":
    main()
