"""The chains of uci.py by NumPyro, whose compiled NUTS takes minutes where Pyro's takes hours.

python validation/uci_numpyro.py UCI RUNS               # then: python validation/uci.py UCI RUNS
python validation/uci_numpyro.py UCI RUNS yacht --quick
"""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS, init_to_uniform
from uci_data import HIDDEN, load, read_options


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
    options = read_options(__doc__)
    options.runs.mkdir(exist_ok=True, parents=True)
    for name in options.names:
        x, y, train, _ = load(options.uci, name)
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
            print(f"{path.name}: {found['cpu']:.0f} s, {steps:.0f} steps a draw, {bad} divergent", flush=True)


if __name__ == "__main__":
    main()
