"""Posteriors of posteriordb whose labels switch, without the order constraints that its Stan programs need.

python validation/posteriordb.py DATA                      # all nine: NUTS from random starts, aligned
python validation/posteriordb.py DATA hmm_example --quick  # one of them, shorter chains
python validation/posteriordb.py DATA --runs DIR           # chains are kept in DIR, and read where they are there

DATA is a folder of ``<posterior>.json`` with the data and, where posteriordb has reference draws (10 chains of 1,000),
their means and Monte Carlo standard errors. A prior that names states by their order (``mu[1] ~ normal(3, 1)`` of
``positive_ordered mu``) is put on the sorted values: on Stan's ordered half of the space the posterior is Stan's.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import arviz as az
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
import xarray as xr
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide.initialization import init_to_uniform
from torch.distributions import biject_to

from pyro_align import Symmetry, SymmetrySpec, align_draws, find_symmetry
from pyro_align.draws import AlignedDraws

Table = Mapping[str, torch.Tensor]


def two_normals(data: Table) -> None:
    """``low_dim_gauss_mix`` and ``low_dim_gauss_mix_collapse``."""
    theta = pyro.sample("theta", dist.Dirichlet(torch.full((2,), 5.0)))
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(2.0).expand([2]).to_event(1))
    _mixture(theta, mu, sigma, data["y"])


def normal_mixture(data: Table) -> None:
    """``normal_2``: known variances."""
    theta = pyro.sample("theta", dist.Dirichlet(torch.ones(2)))
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0).expand([2]).to_event(1))
    _mixture(theta, mu, torch.ones(2), data["y"])


def normal_mixture_k(data: Table) -> None:
    """``normal_5``: a uniform prior of the standard deviations."""
    theta = pyro.sample("theta", dist.Dirichlet(torch.ones(5)))
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0).expand([5]).to_event(1))
    sigma = pyro.sample("sigma", dist.Uniform(0.0, 10.0).expand([5]).to_event(1))
    _mixture(theta, mu, sigma, data["y"])


def _mixture(theta, mu, sigma, y) -> None:
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(theta), dist.Normal(mu, sigma)), obs=y)


def hmm_example(data: Table) -> None:
    """Two states; Stan's prior of ``theta`` is uniform."""
    theta = pyro.sample("theta", dist.Dirichlet(torch.ones(2, 2)).to_event(1))
    mu = _sorted_normal("mu", dist.HalfNormal(1.0), 3.0, 10.0)
    _hidden_markov(theta, dist.Normal(mu, 1.0), data["y"])


def hmm_drive_0(data: Table) -> None:
    """Speed and distance of a basketball player, exponential in either state."""
    _drive(data, dist.HalfNormal(1.0), lambda both: dist.Exponential(both).to_event(1))


def hmm_drive_1(data: Table) -> None:
    """The same, normal with known scales."""
    scale = torch.stack([data["tau"], data["rho"]])
    _drive(data, dist.Normal(0.0, 1.0), lambda both: dist.Normal(both, scale).to_event(1))


def _drive(data: Table, prior, emission: Callable) -> None:
    theta = pyro.sample("theta", dist.Dirichlet(data["alpha"]).to_event(1))
    both = torch.stack([_sorted_normal(site, prior, 0.0, 3.0) for site in ("phi", "lambda")], -1)
    _hidden_markov(theta, emission(both), torch.stack([data["u"], data["v"]], -1))


def _sorted_normal(site: str, standard, low: float, high: float) -> torch.Tensor:
    """Two values, the smaller Normal about ``low``, the larger about ``high``: a tilted standard Normal (or half)."""
    value = pyro.sample(site, standard.expand([2]).to_event(1))
    pyro.factor(f"{site}_sorted", low * value.min() + high * value.max())
    return value


def _hidden_markov(theta: torch.Tensor, emission, y: torch.Tensor) -> None:
    """The states summed out; the first is as likely to be one as the other."""
    even = dist.Categorical(torch.full((2,), 0.5))
    pyro.sample("first", dist.MixtureSameFamily(even, emission), obs=y[0])
    later = dist.DiscreteHMM(emission.log_prob(y[0]), theta.log(), emission, duration=len(y) - 1)
    pyro.sample("later", later, obs=y[1:])


def irt_2pl(data: Table) -> None:
    """Answers of 100 pupils to 20 questions; positive discriminations leave no sign."""
    questions, pupils = data["y"].shape
    spread = pyro.sample("sigma_theta", dist.HalfCauchy(2.0))
    theta = pyro.sample("theta", dist.Normal(0.0, spread).expand([pupils]).to_event(1))
    a = pyro.sample(
        "a", dist.LogNormal(0.0, pyro.sample("sigma_a", dist.HalfCauchy(2.0))).expand([questions]).to_event(1)
    )
    center, scale = pyro.sample("mu_b", dist.Normal(0.0, 5.0)), pyro.sample("sigma_b", dist.HalfCauchy(2.0))
    b = pyro.sample("b", dist.Normal(center, scale).expand([questions]).to_event(1))
    logits = a.unsqueeze(-1) * (theta - b.unsqueeze(-1))
    pyro.sample("y", dist.Bernoulli(logits=logits).to_event(2), obs=data["y"])


def lda(data: Table) -> None:
    """``three_men1-ldaK2``: two topics of six documents, the topic of each word summed out."""
    counts = data["counts"]
    theta = pyro.sample("theta", dist.Dirichlet(torch.ones(len(counts), 2)).to_event(1))
    phi = pyro.sample("phi", dist.Dirichlet(torch.ones(2, counts.shape[1])).to_event(1))
    words = dist.Multinomial(probs=theta @ phi, total_count=int(counts.sum(-1).max()), validate_args=False)
    pyro.sample("words", words.to_event(1), obs=counts)


@dataclass(frozen=True)
class Posterior:
    """A program, and which site tells the units apart once labels agree: units are then named in its order.

    Attributes:
        model: The Pyro model of a table of data.
        by: The site whose posterior means order the units.
        symmetry: By hand, where the prior's constants are beyond what is found.
        names: Site -> how posteriordb writes its rows; others are written ``site[1]``.
        depth: Deepest tree of NUTS.
    """

    model: Callable
    by: str = "mu"
    symmetry: SymmetrySpec | None = None
    depth: int = 6


_DRIVE = SymmetrySpec({"theta": ("state", "state"), "phi": ("state",), "lambda": ("state",)})
POSTERIORS = {
    "low_dim_gauss_mix": Posterior(two_normals),
    "low_dim_gauss_mix_collapse": Posterior(two_normals),
    "hmm_example": Posterior(hmm_example),
    "bball_drive_event_0": Posterior(hmm_drive_0, "phi", _DRIVE),
    "bball_drive_event_1": Posterior(hmm_drive_1, "phi", _DRIVE),
    "normal_2": Posterior(normal_mixture),
    "normal_5": Posterior(normal_mixture_k),
    "irt_2pl": Posterior(irt_2pl, ""),
    "three_men1": Posterior(lda, "phi"),
}


def read_data(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, tuple[float, float]]]:
    """The data, and parameter -> (mean, its Monte Carlo standard error) of the reference draws."""
    given = json.loads(path.read_text())
    data = {k: torch.tensor(v, dtype=torch.float64) for k, v in given["data"].items()}
    if "doc" in data:
        counts = torch.zeros(int(data["M"]), int(data["V"]))
        data["counts"] = counts.index_put_(
            (data["doc"].long() - 1, data["w"].long() - 1), torch.ones(()), accumulate=True
        )
    known = given.get("mean_value", {"names": [], "mean_value": [], "mcse_mean": []})
    return data, {n: (m, e) for n, m, e in zip(*known.values(), strict=True)}


def sample(posterior: Posterior, data: Table, seed: int, draws: int, warmup: int) -> dict[str, np.ndarray]:
    """One chain of NUTS, started where every unconstrained value is uniform in -2 to 2."""
    pyro.set_rng_seed(seed)
    start = time.process_time()
    options = {"jit_compile": True, "ignore_jit_warnings": True, "init_strategy": init_to_uniform}
    kernel = NUTS(posterior.model, max_tree_depth=posterior.depth, **options)
    mcmc = MCMC(kernel, num_samples=draws, warmup_steps=warmup, disable_progbar=True)
    mcmc.run(data)
    return {**{k: v.numpy() for k, v in mcmc.get_samples().items()}, "cpu": np.array(time.process_time() - start)}


def chain(name: str, data: Table, folder: Path | None, seed: int, draws: int, warmup: int) -> dict[str, np.ndarray]:
    """One chain, read where it is kept."""
    path = folder / f"{name}_{draws}_{warmup}_{seed}.npz" if folder else None
    if path is not None and path.exists():
        return dict(np.load(path))
    run = sample(POSTERIORS[name], data, seed, draws, warmup)
    if path is not None:
        np.savez_compressed(path, **run)
    return run


def chains(name: str, data: Table, folder: Path | None, count: int, draws: int, warmup: int) -> tuple[dict, float]:
    """Site -> ``(chain, draw, *shape)``, and the seconds of CPU that sampling took."""
    runs = [chain(name, data, folder, seed, draws, warmup) for seed in range(count)]
    sites = [k for k in runs[0] if k != "cpu"]
    return {k: np.stack([r[k] for r in runs]) for k in sites}, float(sum(r["cpu"] for r in runs))


def mean_and_error(draws: Mapping) -> dict[str, dict[str, np.ndarray]]:
    """Site -> its posterior ``mean``, the Monte Carlo ``error`` of it, and ``rhat``, each of the site's shape."""
    out = {}
    for name, value in draws.items():
        value = np.asarray(value, float)
        data = xr.Dataset({name: (("chain", "draw", *(f"d{i}" for i in range(value.ndim - 2))), value)})
        error, rhat = az.mcse(data, method="mean"), az.rhat(data)
        out[name] = {"mean": value.mean((0, 1)), "error": error[name].values, "rhat": rhat[name].values}
    return out


def entries(draws: Mapping, symmetry: Symmetry, by: str) -> pd.DataFrame:
    """Mean, standard error and R-hat of every parameter, its units in the order of the means of one site."""
    found = mean_and_error(draws)
    if symmetry.atoms:
        ((atom, places),) = symmetry.carriers.items()
        axis = next(axis for site, axis in places if site == by)
        means = torch.as_tensor(found[by]["mean"]).movedim(axis, 0).reshape(symmetry.atoms[atom].size, -1)
        p = symmetry.permutation({atom: means[:, 0].argsort()})
        for site in {site for site, _ in places}:
            found[site] = {k: p.apply_site(site, torch.as_tensor(v)).numpy() for k, v in found[site].items()}
    rows = {}
    for site, columns in found.items():
        for index in np.ndindex(columns["mean"].shape):
            rows[_name(site, index)] = {k: float(v[index]) for k, v in columns.items()}
    return pd.DataFrame.from_dict(rows, orient="index")


def _name(site: str, index: tuple[int, ...]) -> str:
    """``theta1[2]`` for the second entry of the first row of a site of two axes."""
    if len(index) == 2:
        return f"{site}{index[0] + 1}[{index[1] + 1}]"
    return f"{site}[{index[0] + 1}]" if index else site


def mode_weights(aligned: AlignedDraws, labels: np.ndarray, model: Callable, data: Table) -> np.ndarray:
    """Posterior weights of modes, by a normal approximation of each: mean log joint plus entropy, unconstrained.

    Chains that stay in the mode in which they started say nothing about the weights by their number.
    """
    nodes = pyro.poutine.trace(model).get_trace(data).nodes
    parts, jacobian = [], torch.zeros(labels.shape)
    for site, value in aligned.draws.items():
        to = biject_to(nodes[site]["fn"].support)
        free = to.inv(value)
        change = to.log_abs_det_jacobian(free, value)
        jacobian = jacobian + change.reshape(*labels.shape, -1).sum(-1)
        parts.append(free.reshape(*labels.shape, -1))
    free, joint = torch.cat(parts, -1), torch.as_tensor(aligned.log_joint) + jacobian
    evidence = []
    for k in range(labels.max() + 1):
        here = torch.as_tensor(labels == k)
        spread = torch.logdet(2 * torch.pi * torch.e * torch.cov(free[here].T))
        evidence.append(float(joint[here].mean() + 0.5 * spread))
    return torch.softmax(torch.tensor(evidence), 0).numpy()


def compare(name: str, folder: Path, options: argparse.Namespace) -> tuple[pd.DataFrame, str]:
    """Ours beside the reference, and what align_draws says."""
    data, reference = read_data(folder / f"{name}.json")
    posterior = POSTERIORS[name]
    draws, seconds = chains(name, data, options.runs, options.chains, options.draws, options.warmup)
    symmetry = posterior.symmetry or find_symmetry(posterior.model, data)
    tensors = {k: torch.as_tensor(v) for k, v in draws.items()}
    aligned = align_draws(tensors, symmetry, model=posterior.model, args=(data,), method="barycenter")
    modes, said, kept = aligned.modes(), "", aligned.draws
    if len(modes) > 1:  # told apart by chain: the table is that of the chains in the weightiest
        weights = mode_weights(aligned, modes.labels, posterior.model, data)
        best = int(weights.argmax())
        looked = modes.labels >= 0  # a part of the draws of long chains
        chains_there = np.flatnonzero((modes.labels == best).sum(1) > 0.99 * looked.sum(1))
        said = f"\n{modes}, of which by evidence {weights.round(6).tolist()}\n{modes.summary()}"
        said += f"\nthe table is that of chains {chains_there.tolist()}"
        kept = {k: v[chains_there] for k, v in kept.items()}
    table = entries(kept, aligned.symmetry, posterior.by)
    if reference:
        known = {n.replace("theta", "theta[1]") if n == "theta" else n: v for n, v in reference.items()}
        table = table.loc[list(known)]
        table["theirs"], theirs_error = zip(*known.values(), strict=True)
        table["z"] = (table["mean"] - table["theirs"]) / np.hypot(table["error"], theirs_error)
    before = mean_and_error(tensors)
    worst = max(np.nanmax(v["rhat"]) for v in before.values())
    said = f"{seconds:.0f} s of CPU{said}; largest R-hat {worst:.3f} as sampled, {table['rhat'].max():.4f} aligned"
    return table, f"{said}\n{aligned}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("posteriors", nargs="*", choices=[[], *POSTERIORS])
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--warmup", type=int, default=300)
    parser.add_argument("--quick", action="store_true", help="chains of 200 draws after 200")
    parser.add_argument("--runs", type=Path, help="folder where chains are kept")
    parser.add_argument("--sample", type=int, nargs="+", help="only run the chains of these seeds, into --runs")
    options = parser.parse_args()
    if options.quick:
        options.draws = options.warmup = 200
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    for name in options.posteriors or POSTERIORS:
        if options.sample is not None:
            data, _ = read_data(options.folder / f"{name}.json")
            for seed in options.sample:
                chain(name, data, options.runs, seed, options.draws, options.warmup)
            continue
        table, said = compare(name, options.folder, options)
        print(f"\n{name}: {said}")
        print((table if len(table) < 30 else table.describe()).round(4).to_string())


if __name__ == "__main__":
    main()
