"""R-hat of weights and of functions, and transpositions, for Bayesian networks as Sommer et al. (2024) sample them.

python validation/uci_numpyro.py UCI RUNS     # the chains, with NumPyro
python validation/uci.py UCI RUNS             # relabels them; one row a data set and relabeling
python validation/uci.py UCI RUNS yacht --quick

The network, priors and standardized data are those of their configuration file (two hidden layers of 16 tanh units,
mean and log standard deviation as outputs, standard normal weights). A Pyro model of it gives the symmetry and
certifies every relabeled draw. R-hat is ArviZ's, split and rank-normalized; *within* is its mean over chains taken
alone, each in two halves, which labels can disturb only where they switch inside a chain.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from uci_data import HIDDEN, load, read_options

from pyro_align import align_draws, find_symmetry
from pyro_align.draws.diagnostics import rhat_and_ess


def output(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """Mean and log standard deviation ``(*batch, rows, 2)`` for weights ``(*batch, *site_shape)``."""
    for layer in range(1, len(HIDDEN) + 2):
        x = x @ weights[f"w{layer}"] + weights[f"b{layer}"].unsqueeze(-2)
        x = torch.tanh(x) if layer <= len(HIDDEN) else x
    return x


def network(x: Tensor, y: Tensor) -> None:
    sizes, weights = (x.shape[1], *HIDDEN, 2), {}
    for layer in range(1, len(sizes)):
        shape = torch.Size(sizes[layer - 1 : layer + 1])
        weights[f"w{layer}"] = pyro.sample(f"w{layer}", dist.Normal(0.0, 1.0).expand(shape).to_event(2))
        weights[f"b{layer}"] = pyro.sample(f"b{layer}", dist.Normal(0.0, 1.0).expand(shape[1:]).to_event(1))
    mean, log_scale = output(weights, x).unbind(-1)
    pyro.sample("y", dist.Normal(mean, log_scale.exp().clamp(1e-6, 1e6)).to_event(1), obs=y)


def read_runs(folder: Path, name: str, draws: int, warmup: int) -> tuple[dict[str, Tensor], int, float]:
    """Draws ``(chain, draw, *site_shape)``, the number of divergent ones, and CPU seconds of all chains."""
    paths = sorted(folder.glob(f"{name}_{draws}_{warmup}_*.npz"))
    if not paths:
        raise SystemExit(f"no chains of {name} with {draws} draws in {folder}; make them with uci_numpyro.py")
    runs = [dict(np.load(path)) for path in paths]
    sites = [k for k in runs[0] if k[0] in "wb"]
    found = {k: torch.from_numpy(np.stack([run[k] for run in runs])).double() for k in sites}
    return found, int(sum(run["diverging"].sum() for run in runs)), float(sum(run["cpu"] for run in runs))


def rhats(values: Tensor) -> np.ndarray:
    """R-hat of each entry of ``(chain, draw, *shape)``."""
    flat = values.reshape(*values.shape[:2], -1).numpy()
    return np.array([r for r, _ in rhat_and_ess({i: flat[..., i] for i in range(flat.shape[-1])}).values()])


def row(name: str, relabeling: str, draws: dict[str, Tensor], at: Tensor, y: Tensor, swaps: str) -> None:
    weights = torch.cat([v.flatten(2) for v in draws.values()], -1)
    of_weights, within = rhats(weights), np.mean([rhats(chain.unflatten(0, (2, -1))) for chain in weights])
    values = output(draws, at)
    mean, scale = values[..., 0], values[..., 1].exp().clamp(1e-6, 1e6)
    of_function = rhats(mean)
    each = torch.distributions.Normal(mean, scale).log_prob(y).flatten(0, 1)
    lppd = (each.logsumexp(0) - np.log(len(each))).mean()
    rmse = (mean.flatten(0, 1).mean(0) - y).square().mean().sqrt()
    print(
        f"{name:9} {relabeling:20} weights: largest {of_weights.max():.3f} median {np.median(of_weights):.3f} "
        f"within {within:.3f} | function: largest {of_function.max():.3f} median {np.median(of_function):.3f} | "
        f"transpositions {swaps} | test RMSE {rmse:.3f}, LPPD {lppd:.3f} nats",
        flush=True,
    )


def main() -> None:
    options = read_options(__doc__)
    torch.set_default_dtype(torch.float64)
    for name in options.names:
        x, y, train, test = map(torch.from_numpy, load(options.uci, name))
        draws, divergent, seconds = read_runs(options.runs, name, options.draws, options.warmup)
        chains, length = next(iter(draws.values())).shape[:2]
        print(f"{name}: {chains} chains of {length} draws, {divergent} divergent, {seconds:.0f} CPU s")
        row(name, "as sampled", draws, x[test], y[test], "-")
        for relabeling, signs in {"permutations": False, "signed permutations": True}.items():
            args = (x[train], y[train])
            symmetry = find_symmetry(network, *args, signs=signs)
            aligned = align_draws(draws, symmetry, model=network, args=args)
            swaps = ", ".join(f"{atom} {np.mean(n):.1f}" for atom, n in aligned.transpositions.items())
            row(name, relabeling, aligned.draws, x[test], y[test], swaps)


if __name__ == "__main__":
    main()
