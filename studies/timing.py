"""CPU seconds of one step of a fit, beside the network's forward and backward pass and a step of Pyro's SVI.

python -m studies.timing
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import pandas as pd
import pyro
import torch
import torch.nn.functional as F
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

from studies import runner
from studies.elbo import NOISES, ChannelsLast
from studies.networks import bayesian_lenet, bayesian_resnet
from studies.training import Recipe, Training, make_guide

NETWORKS = {
    "LeNet": (lambda: bayesian_lenet((16, 32, 120, 84)), 28 * 28),
    "ResNet-20, width 1": (lambda: bayesian_resnet(), 3 * 32 * 32),
}


def main(argv: Sequence[str] | None = None) -> pd.DataFrame:
    """Prints the table, on random images."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), help="networks")
    made.add_argument("--batch", type=int, default=128, help="images a step")
    made.add_argument("--repeats", type=int, default=5, help="steps, of which the fastest counts")
    made.add_argument("--threads", type=int, default=1, help="CPU threads")
    options = made.parse_args(argv)
    torch.set_num_threads(options.threads)
    rows = []
    for name in options.networks:
        make, inputs = NETWORKS[name]
        torch.manual_seed(0)
        x, y = torch.randn(options.batch, inputs), torch.arange(options.batch) % 10
        found = {kind: fastest(step, options.repeats) for kind, step in steps(make(), x, y).items()}
        plain = found["forward and backward"]
        rows += [
            {"network": name, "step": kind, "CPU seconds": f"{seconds:.3f}", "ratio": f"{seconds / plain:.1f}"}
            for kind, seconds in found.items()
        ]
    frame = pd.DataFrame(rows)
    print(runner.markdown(frame))
    return frame


def steps(model: Callable[..., Tensor], x: Tensor, y: Tensor) -> dict[str, Callable[[], object]]:
    """What is compared, as functions that take one step."""
    fits = {"point estimate": Recipe(guide="delta"), **{f"posterior, {noise}": Recipe(noise=noise) for noise in NOISES}}
    kinds = {
        kind: Training(model, x, y, seed=0, recipe=Recipe(**{**vars(recipe), "batch_size": len(x), "epochs": 10**6}))
        for kind, recipe in fits.items()
    }
    values = {k: v.clone().requires_grad_() for k, v in kinds["point estimate"].parameters["locs"].items()}
    network = poutine.condition(model, data=values)

    def forward_and_backward() -> None:
        with ChannelsLast(), pyro.validation_enabled(False):
            F.cross_entropy(network(x), y).backward()

    guide = make_guide(model, Recipe())
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.001}), Trace_ELBO())

    def by_svi() -> None:
        with pyro.validation_enabled(False):
            svi.step(x, y, len(x))

    made: dict[str, Callable[[], object]] = {"forward and backward": forward_and_backward}
    made |= {kind: lambda training=training: list(training) for kind, training in kinds.items()}
    return {**made, "posterior, Pyro's SVI": by_svi}


def fastest(step: Callable[[], object], repeats: int) -> float:
    """CPU seconds of the fastest of some steps, after one that does not count."""
    step()
    seconds = []
    for _ in range(repeats):
        started = time.process_time()
        step()
        seconds.append(time.process_time() - started)
    return min(seconds)


if __name__ == "__main__":
    main()
