"""Factor loadings brought to one frame, beside the R package factor.switching and textbook patterns.

python validation/factor_rotation.py planted DATA       # small_posterior and planted loadings, as rsp_exact left them
python validation/factor_rotation.py holzinger DATA     # nine tests of 301 pupils, three factors
python validation/factor_rotation.py simulated --factors 2   # R-hat and ESS of aligned loadings and of w w'

`--sampler numpyro` is NUTS on the same density, compiled (needs JAX and NumPyro), `--sampler gibbs` a Gibbs sampler:
seconds where Pyro's NUTS takes minutes, whose chains `--samples` keeps, to go on from there.

DATA is a folder with `small_posterior_2chains.npz`, `planted_12_3.npz`, `planted_20_5.npz` (draws, and what `rsp_exact`
of factor.switching 1.4 made of them) and `holzinger_swineford.csv` (Holzinger & Swineford 1939).
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS
from scipy.optimize import linear_sum_assignment

from pyro_align import SymmetrySpec, align_draws
from pyro_align.draws.diagnostics import rhat_and_ess

LOADINGS = SymmetrySpec({"w": (None, "factor")})


def align(w: np.ndarray, method: str) -> tuple[np.ndarray, float]:
    """Draws ``(chain, draw, variable, factor)`` aligned, and seconds of CPU."""
    start = time.process_time()
    aligned = align_draws({"w": w}, LOADINGS, method=method)
    return np.asarray(aligned.draws["w"]), time.process_time() - start


def match(mean: np.ndarray, other: np.ndarray) -> np.ndarray:
    """A matrix of loadings with the order and signs of its factors as in another's."""
    gain = mean.T @ other
    rows, places = linear_sum_assignment(np.abs(gain), maximize=True)
    out = np.empty_like(mean)
    out[:, places] = mean[:, rows] * np.sign(gain[rows, places])
    return out


def planted(folder: Path) -> pd.DataFrame:
    """Ours beside the R package's."""
    rows = []
    small = np.load(folder / "small_posterior_2chains.npz")
    ours, seconds = align(np.stack([small["chain1"], small["chain2"]]), "varimax")
    theirs = np.concatenate([small["rsp_joint_chain1"], small["rsp_joint_chain2"]]).mean(0)
    gap = np.abs(match(ours.mean((0, 1)), theirs) - theirs).max()
    rows.append(("small_posterior_2chains", "varimax", "largest difference of a mean", 0.0, gap, seconds))
    for name in ("planted_12_3", "planted_20_5"):
        data = np.load(folder / f"{name}.npz")
        theirs = data["rsp"].std(0, ddof=1).mean()
        for method in ("varimax", "procrustes"):
            ours, seconds = align(data["draws"][None], method)
            rows.append((name, method, "mean sd of an entry", theirs, ours[0].std(0, ddof=1).mean(), seconds))
    return pd.DataFrame(rows, columns=["data", "method", "what", "factor.switching", "pyro_align", "CPU s"])


def factor_model(y: torch.Tensor, factors: int) -> None:
    """Loadings with a spherical prior: the joint does not change when the factors rotate."""
    n, p = y.shape
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([p, factors]).to_event(2))
    s = pyro.sample("s", dist.HalfNormal(1.0).expand([p]).to_event(1))
    factor = w / s.unsqueeze(-1)
    inner = torch.eye(factors) + factor.T @ factor  # det(w w' + diag(s^2)) and its inverse by a small matrix
    root = torch.linalg.cholesky(inner)
    scaled = y / s
    explained = torch.linalg.solve_triangular(root, factor.T @ scaled.T, upper=False).square().sum()
    log_det = 2 * (root.diagonal().log().sum() + s.log().sum())
    pyro.factor("y", -0.5 * (scaled.square().sum() - explained + n * log_det), has_rsample=False)


def sample(y: torch.Tensor, options: argparse.Namespace) -> dict[str, torch.Tensor]:
    """NUTS from random starts, one chain after another; with `--samples`, chains already sampled are read."""
    runs = []
    for seed in range(options.chains):
        size = f"{options.factors}_{options.draws}_{options.warmup}_{options.depth}_{seed}"
        file = options.samples and options.samples / f"{options.part}_{size}.pt"
        if file and file.exists():
            runs.append(torch.load(file))
            continue
        pyro.set_rng_seed(seed)
        kernel = NUTS(factor_model, jit_compile=True, ignore_jit_warnings=True, max_tree_depth=options.depth)
        mcmc = MCMC(kernel, num_samples=options.draws, warmup_steps=options.warmup, disable_progbar=True)
        mcmc.run(y, options.factors)
        runs.append(mcmc.get_samples())
        if file:
            torch.save(runs[-1], file)
    return {k: torch.stack([r[k] for r in runs]) for k in runs[0]}


def numpyro_nuts(y: torch.Tensor, options: argparse.Namespace) -> dict[str, torch.Tensor]:
    """NUTS on the density of :func:`factor_model`, by NumPyro."""
    import jax
    import numpyro
    from numpyro import distributions as ndist

    numpyro.enable_x64()

    def model(y):
        w = numpyro.sample("w", ndist.Normal(0.0, 1.0).expand([y.shape[1], options.factors]).to_event(2))
        s = numpyro.sample("s", ndist.HalfNormal(1.0).expand([y.shape[1]]).to_event(1))
        noise = ndist.LowRankMultivariateNormal(jax.numpy.zeros(y.shape[1]), w, s**2)
        numpyro.sample("y", noise.expand([len(y)]).to_event(1), obs=y)

    mcmc = numpyro.infer.MCMC(
        numpyro.infer.NUTS(model, max_tree_depth=options.depth),
        num_warmup=options.warmup, num_samples=options.draws, num_chains=options.chains,
        chain_method="sequential", progress_bar=False,
    )  # fmt: skip
    mcmc.run(jax.random.PRNGKey(0), jax.numpy.asarray(y.numpy()))
    found = {name: torch.tensor(np.asarray(v)) for name, v in mcmc.get_samples(group_by_chain=True).items()}
    point = {name: v[0, 0] for name, v in found.items()}
    theirs = numpyro.infer.util.log_density(model, (y.numpy(),), {}, {k: v.numpy() for k, v in point.items()})[0]
    trace = pyro.poutine.trace(pyro.poutine.condition(factor_model, point)).get_trace(y, options.factors)
    gap = float(theirs) - float(trace.log_prob_sum()) + 0.5 * y.numel() * np.log(2 * np.pi)
    assert abs(gap) < 1e-6 * abs(float(theirs)), f"the densities of the two models differ by {gap} nats"
    return found


def gibbs(y: torch.Tensor, options: argparse.Namespace) -> dict[str, torch.Tensor]:
    """The same posterior by Gibbs steps for loadings and scores, Metropolis steps for scales; chains side by side."""
    pyro.set_rng_seed(0)
    (n, p), k, chains = y.shape, options.factors, options.chains
    w, s = torch.randn(chains, p, k), torch.rand(chains, p) + 0.5
    eye, kept = torch.eye(k), {"w": [], "s": []}

    def draw(precision: torch.Tensor, linear: torch.Tensor) -> torch.Tensor:
        root = torch.linalg.cholesky(precision)
        mean = torch.cholesky_solve(linear, root)
        return mean + torch.linalg.solve_triangular(root.mT, torch.randn_like(mean), upper=True)

    for step in range(options.thin * options.draws + options.warmup):
        scaled = w / s.square().unsqueeze(-1)
        z = draw(eye + w.mT @ scaled, scaled.mT @ y.T).mT  # (chains, n, k)
        noise = s.square()[..., None, None]
        w = draw(eye + (z.mT @ z).unsqueeze(1) / noise, (z.mT @ y).mT.unsqueeze(-1) / noise).squeeze(-1)
        rest = (y - z @ w.mT).square().sum(1)

        def target(v: torch.Tensor, rest: torch.Tensor = rest) -> torch.Tensor:  # of log v, with its Jacobian
            return -n * v.log() - 0.5 * rest / v.square() - 0.5 * v.square() + v.log()

        for _ in range(3):
            other = s * (1.5 / n**0.5 * torch.randn_like(s)).exp()
            s = torch.where(torch.rand_like(s).log() < target(other) - target(s), other, s)
        if step >= options.warmup and (step - options.warmup) % options.thin == 0:
            kept["w"].append(w)
            kept["s"].append(s)
    return {name: torch.stack(values, 1) for name, values in kept.items()}


def convergence(y: torch.Tensor, factors: int, draws: dict[str, torch.Tensor]) -> pd.DataFrame:
    """Largest R-hat and least ESS of loadings, before, aligned, and of ``w w'``, which no rotation changes."""
    w = draws["w"]
    values = {"as sampled": w, "w w'": w @ w.mT}
    for method in ("procrustes", "varimax"):
        options = {"model": factor_model, "args": (y, factors), "by": "w"}
        values[method] = align_draws(draws, LOADINGS, method=method, **options).draws["w"]
    found = {k: rhat_and_ess({"v": v.numpy()})["v"] for k, v in values.items()}
    return pd.DataFrame.from_dict(found, orient="index", columns=["R-hat", "ESS"])


def simulated(factors: int) -> torch.Tensor:
    """Four variables a factor, 150 observations."""
    g = torch.Generator().manual_seed(0)
    truth = torch.kron(torch.eye(factors), torch.tensor([[0.9], [0.8], [0.7], [0.6]]))
    return torch.randn(150, factors, generator=g) @ truth.T + 0.5 * torch.randn(150, 4 * factors, generator=g)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["planted", "holzinger", "simulated"])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--factors", type=int, default=2)
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--warmup", type=int, default=300)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--sampler", choices=["nuts", "numpyro", "gibbs"], default="nuts")
    parser.add_argument("--thin", type=int, default=5, help="Gibbs: keep every so many-th draw")
    parser.add_argument("--samples", type=Path, help="a folder that keeps each chain as it ends")
    parser.add_argument("--quick", action="store_true", help="100 draws by Gibbs sampling")
    options = parser.parse_args()
    if options.quick:
        options.sampler, options.draws, options.warmup = "gibbs", 100, 50
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    if options.part == "planted":
        print(planted(options.folder).round(4).to_string(index=False))
        return
    if options.part == "holzinger":
        table = pd.read_csv(options.folder / "holzinger_swineford.csv")
        tests = [f"x{k}" for k in range(1, 10)]
        y = torch.tensor(((table[tests] - table[tests].mean()) / table[tests].std()).to_numpy())
        options.factors = 3
    else:
        y = simulated(options.factors)
    start = time.process_time()
    draws = {"nuts": sample, "numpyro": numpyro_nuts, "gibbs": gibbs}[options.sampler](y, options)
    print(f"sampling {time.process_time() - start:.0f} s of CPU")
    print(convergence(y, options.factors, draws).round(3).to_string())
    if options.part == "holzinger":
        aligned = align_draws(draws, LOADINGS, method="varimax", by="w")
        print(pd.DataFrame(aligned.draws["w"].mean((0, 1)).numpy(), index=tests).round(2).to_string())


if __name__ == "__main__":
    main()
