"""The chains of posteriordb.py by NumPyro, whose compiled NUTS takes seconds where Pyro's takes minutes.

python validation/posteriordb_numpyro.py DATA RUNS            # then: python validation/posteriordb.py DATA --runs RUNS
python validation/posteriordb_numpyro.py DATA RUNS --quick

The models are those of posteriordb.py, written for NumPyro; there the Pyro models certify every relabeled draw.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax
from jax.nn import logsumexp
from numpyro.infer import MCMC, NUTS, init_to_uniform

numpyro.enable_x64()


def mixture(theta, mu, sigma, y) -> None:
    parts = dist.Normal(mu, sigma).log_prob(y[:, None]) + jnp.log(theta)
    numpyro.factor("y", logsumexp(parts, -1).sum())


def two_normals(data) -> None:
    theta = numpyro.sample("theta", dist.Dirichlet(jnp.full(2, 5.0)))
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0).expand([2]).to_event(1))
    mixture(theta, mu, sigma, data["y"])


def normal_mixture(data) -> None:
    theta = numpyro.sample("theta", dist.Dirichlet(jnp.ones(2)))
    mixture(theta, numpyro.sample("mu", dist.Normal(0.0, 10.0).expand([2]).to_event(1)), 1.0, data["y"])


def normal_mixture_k(data) -> None:
    theta = numpyro.sample("theta", dist.Dirichlet(jnp.ones(5)))
    mu = numpyro.sample("mu", dist.Normal(0.0, 10.0).expand([5]).to_event(1))
    mixture(theta, mu, numpyro.sample("sigma", dist.Uniform(0.0, 10.0).expand([5]).to_event(1)), data["y"])


def hidden_markov(theta, emissions) -> None:
    """Emissions are log densities ``(time, state)``; the first state is as likely to be one as the other."""

    def step(state, now):
        return logsumexp(state[:, None] + jnp.log(theta), 0) + now, None

    last, _ = lax.scan(step, emissions[0], emissions[1:])
    numpyro.factor("y", logsumexp(last))


def sorted_normal(site, standard, low, high):
    """Two values, the smaller Normal about ``low``, the larger about ``high``."""
    value = numpyro.sample(site, standard.expand([2]).to_event(1))
    numpyro.factor(f"{site}_sorted", low * value.min() + high * value.max())
    return value


def hmm_example(data) -> None:
    theta = numpyro.sample("theta", dist.Dirichlet(jnp.ones((2, 2))).to_event(1))
    mu = sorted_normal("mu", dist.HalfNormal(1.0), 3.0, 10.0)
    hidden_markov(theta, dist.Normal(mu, 1.0).log_prob(data["y"][:, None]))


def drive(data, prior, emission) -> None:
    theta = numpyro.sample("theta", dist.Dirichlet(data["alpha"]).to_event(1))
    phi, at = (sorted_normal(site, prior, 0.0, 3.0) for site in ("phi", "lambda"))
    hidden_markov(theta, emission(data["u"][:, None], phi, 0) + emission(data["v"][:, None], at, 1))


def hmm_drive_0(data) -> None:
    drive(data, dist.HalfNormal(1.0), lambda y, rate, _: dist.Exponential(rate).log_prob(y))


def hmm_drive_1(data) -> None:
    scale = (data["tau"], data["rho"])
    drive(data, dist.Normal(0.0, 1.0), lambda y, at, k: dist.Normal(at, scale[k]).log_prob(y))


def irt_2pl(data) -> None:
    questions, pupils = data["y"].shape
    theta = numpyro.sample(
        "theta", dist.Normal(0.0, numpyro.sample("sigma_theta", dist.HalfCauchy(2.0))).expand([pupils]).to_event(1)
    )
    a = numpyro.sample(
        "a", dist.LogNormal(0.0, numpyro.sample("sigma_a", dist.HalfCauchy(2.0))).expand([questions]).to_event(1)
    )
    center, scale = numpyro.sample("mu_b", dist.Normal(0.0, 5.0)), numpyro.sample("sigma_b", dist.HalfCauchy(2.0))
    b = numpyro.sample("b", dist.Normal(center, scale).expand([questions]).to_event(1))
    logits = a[:, None] * (theta - b[:, None])
    numpyro.sample("y", dist.Bernoulli(logits=logits).to_event(2), obs=data["y"])


def lda(data) -> None:
    counts = data["counts"]
    theta = numpyro.sample("theta", dist.Dirichlet(jnp.ones((len(counts), 2))).to_event(1))
    phi = numpyro.sample("phi", dist.Dirichlet(jnp.ones((2, counts.shape[1]))).to_event(1))
    numpyro.factor("words", (counts * jnp.log(theta @ phi)).sum())


MODELS = {
    "low_dim_gauss_mix": two_normals,
    "low_dim_gauss_mix_collapse": two_normals,
    "hmm_example": hmm_example,
    "bball_drive_event_0": hmm_drive_0,
    "bball_drive_event_1": hmm_drive_1,
    "normal_2": normal_mixture,
    "normal_5": normal_mixture_k,
    "irt_2pl": irt_2pl,
    "three_men1": lda,
}


def read_data(path: Path) -> dict:
    data = {k: np.asarray(v, float) for k, v in json.loads(path.read_text())["data"].items()}
    if "doc" in data:
        data["counts"] = np.zeros((int(data["M"]), int(data["V"])))
        np.add.at(data["counts"], (data["doc"].astype(int) - 1, data["w"].astype(int) - 1), 1.0)
    return {k: jnp.asarray(v) for k, v in data.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("runs", type=Path)
    parser.add_argument("posteriors", nargs="*")
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--warmup", type=int, default=1000)
    parser.add_argument("--quick", action="store_true", help="chains of 200 draws after 200")
    options = parser.parse_args()
    if options.quick:
        options.draws = options.warmup = 200
    options.runs.mkdir(exist_ok=True, parents=True)
    for name in options.posteriors or MODELS:
        data, start = read_data(options.folder / f"{name}.json"), time.process_time()
        kernel = NUTS(MODELS[name], init_strategy=init_to_uniform)
        how = {"num_warmup": options.warmup, "num_samples": options.draws, "num_chains": options.chains}
        mcmc = MCMC(kernel, **how, chain_method="sequential", progress_bar=False)
        mcmc.run(jax.random.PRNGKey(0), data, extra_fields=("diverging",))
        seconds = (time.process_time() - start) / options.chains
        chains = {k: np.asarray(v) for k, v in mcmc.get_samples(group_by_chain=True).items()}
        for seed in range(options.chains):
            path = options.runs / f"{name}_{options.draws}_{options.warmup}_{seed}.npz"
            np.savez_compressed(path, **{k: v[seed] for k, v in chains.items()}, cpu=np.array(seconds))
        print(f"{name}: {seconds * options.chains:.0f} s, {int(mcmc.get_extra_fields()['diverging'].sum())} divergent")


if __name__ == "__main__":
    main()
