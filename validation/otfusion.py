"""Two MNIST perceptrons that Singh & Jaggi (2020) published, before and after alignment.

python validation/otfusion.py DATA MNIST           # 10,000 test images
python validation/otfusion.py DATA MNIST --quick   # 1,000 of them

DATA is a folder with ``mnist_mlp_0.npz`` and ``mnist_mlp_1.npz``, their weights (784-400-200-100-10, ReLU, no biases);
MNIST one with the IDX files. Losses are nats per test image, of plain averages of weights.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from pyro_align import align, evaluate_barrier, find_symmetry
from pyro_align.objectives import Activations
from pyro_align.paths import evaluate_networks
from pyro_align.paths.geodesic import displacement
from studies.data import load

SIZES = [784, 400, 200, 100, 10]
PUBLISHED = {"barrier": 1.193, "accuracy": 0.738}  # of the plain average, as published with the weights


class Perceptron(nn.Module):
    """The layers by the names that the weights have."""

    def __init__(self):
        super().__init__()
        for k in range(4):
            setattr(self, f"fc{k + 1}", nn.Linear(SIZES[k], SIZES[k + 1], bias=False))

    def forward(self, x):
        for k in range(1, 4):
            x = torch.relu(getattr(self, f"fc{k}")(x))
        return self.fc4(x)


def network(path: Path) -> Perceptron:
    made = Perceptron()
    made.load_state_dict({k: torch.from_numpy(v) for k, v in np.load(path).items()})
    return made.eval()


def classifier(skeleton: nn.Module):
    """The network as a model whose sites are its weights; the prior plays no part in these losses."""

    def model(x, y=None):
        weights = {
            name: pyro.sample(name, dist.Normal(0.0, 1.0).expand(w.shape).to_event(w.dim()))
            for name, w in skeleton.named_parameters()
        }
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(logits=torch.func.functional_call(skeleton, weights, (x,))), obs=y)

    return model


def compare(folder: Path, mnist: Path, limit: int | None) -> pd.DataFrame:
    """Barriers of the plain path and of the aligned ones, with and without a temperature for each point."""
    a, b = (network(folder / f"mnist_mlp_{k}.npz") for k in (0, 1))
    data = load("mnist", mnist, limit=limit).flat()
    model = classifier(a)
    x, seen = ((part - 0.1307) / 0.3081 for part in (data.x_test, data.x[:2000]))
    symmetry = find_symmetry(a, x[:2])
    print(f"{symmetry}\n")
    rows = []
    ways = {
        "before alignment": None,
        "weights (W2)": {},
        "weights (W2), restarts=8": {"restarts": 8},
        "activations on 2,000 training images": {"divergence": Activations(model, seen, data.y[:2000], num_samples=1)},
    }
    for name, options in ways.items():
        start = time.process_time()
        path = displacement(a, b) if options is None else align(a, b, symmetry, **options).path
        seconds = time.process_time() - start
        losses = ["predictive_nll", "calibrated_nll", "error_rate"]
        barrier = evaluate_barrier(model, path, x, data.y_test, taus=11, num_samples=2, losses=losses)
        middle = {k: barrier[k].value[5] for k in losses}
        rows.append(
            {
                "alignment": name,
                "barrier": barrier["predictive_nll"].barrier.height,
                "calibrated": barrier["calibrated_nll"].barrier.height,
                "NLL at 1/2": middle["predictive_nll"],
                "accuracy at 1/2": 1 - middle["error_rate"],
                "CPU s": seconds,
            }
        )
    ends = evaluate_networks(displacement(a, b), lambda net: cross_entropy(net(x), data.y_test), taus=[0.0, 1.0])
    print(f"the networks themselves: {ends['loss'].round(4).tolist()} nats")
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("mnist", type=Path, help="folder that has the folder mnist")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = compare(options.folder, options.mnist, 1000 if options.quick else None)
    print(f"published for the plain average: {PUBLISHED}")
    print(table.round(4).to_string(index=False))


if __name__ == "__main__":
    main()
