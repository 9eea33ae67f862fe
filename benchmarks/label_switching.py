"""R-hat before and after relabelling, on chains of NUTS that were really run.

python benchmarks/label_switching.py mixture        # three Gaussian components
python benchmarks/label_switching.py network        # one hidden layer of ten tanh units, with and without signs

Chains start at random and run one per process. ``--data FILE`` takes a regression from a text table, last column last.
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

from pyro_align import Odd, Symmetry, align_draws, find_symmetry
from pyro_align.draws.diagnostics import rhat_and_ess

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


def signed() -> Symmetry:
    """tanh is odd: a unit's incoming and outgoing weights may change sign together."""
    unit = Odd("unit")
    return Symmetry.from_axes({"w1": (unit, None), "b1": (unit,), "w2": (unit,)})


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=["mixture", "network"])
    parser.add_argument("--data", help="text table of a regression, for the network")
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--warmup", type=int, default=300)
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--depth", type=int, default=10, help="largest depth of the tree")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
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
        symmetries["signed"] = signed()
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
