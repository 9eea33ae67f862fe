"""The chains of uci.py by NumPyro, whose compiled NUTS takes minutes where Pyro's takes hours.

python validation/uci_numpyro.py UCI RUNS               # then: python validation/uci.py UCI RUNS
python validation/uci_numpyro.py UCI RUNS yacht --quick
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS, init_to_uniform
from uci_data import HIDDEN, TARGETS, load


def network(x, y) -> None:
    """Two hidden layers of tanh units; mean and log standard deviation of the target; all weights standard normal."""
    hidden = x
    for layer, units in enumerate((*HIDDEN, 2), 1):
        w = numpyro.sample(f"w{layer}", dist.Normal(0.0, 1.0).expand([hidden.shape[1], units]).to_event(2))
        b = numpyro.sample(f"b{layer}", dist.Normal(0.0, 1.0).expand([units]).to_event(1))
        hidden = hidden @ w + b
        hidden = jnp.tanh(hidden) if layer <= len(HIDDEN) else hidden
    scale = jnp.exp(hidden[:, 1]).clip(1e-6, 1e6)
    numpyro.sample("y", dist.Normal(hidden[:, 0], scale).to_event(1), obs=y)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("uci", type=Path, help="folder of the tables yacht.txt, energy.txt, concrete.txt")
    parser.add_argument("runs", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--warmup", type=int, default=1000)
    parser.add_argument("--quick", action="store_true", help="two chains of 50 draws after 50")
    options = parser.parse_args()
    if options.quick:
        options.chains, options.draws, options.warmup = 2, 50, 50
    options.runs.mkdir(exist_ok=True, parents=True)
    for name in options.names or TARGETS:
        x, y, order = load(options.uci, name)
        train = order[: int(0.8 * len(order))]
        for seed in range(options.chains):
            path = options.runs / f"{name}_{options.draws}_{options.warmup}_{seed}.npz"
            if path.exists():
                continue
            start = time.process_time()
            kernel = NUTS(network, init_strategy=init_to_uniform)
            mcmc = MCMC(kernel, num_warmup=options.warmup, num_samples=options.draws, progress_bar=False)
            mcmc.run(jax.random.PRNGKey(seed), x[train], y[train], extra_fields=("diverging", "num_steps"))
            found = {k: np.asarray(v) for k, v in {**mcmc.get_samples(), **mcmc.get_extra_fields()}.items()}
            found["cpu"] = np.array(time.process_time() - start)
            np.savez_compressed(path, **found)
            steps, bad = found["num_steps"].mean(), int(found["diverging"].sum())
            print(
                f"{path.name}: {time.process_time() - start:.0f} s, {steps:.0f} steps a draw, {bad} divergent",
                flush=True,
            )


if __name__ == "__main__":
    main()
