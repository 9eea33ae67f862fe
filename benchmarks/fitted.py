"""Matchers on posteriors that the studies fitted: objectives against Frank-Wolfe's, and CPU seconds.

    python -m benchmarks.fitted OUT/fits ...   # from the root of the repository

A folder holds what a study left there: of every network with two seeds or more, the first two are matched under
Wasserstein-2. Only convolutional networks are taken; for perceptrons see ``matching.py --kinds trained``.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

import pyro_align
from pyro_align.matching import Coordinate, match
from studies.lab import Setting, make_model
from studies.width_depth import KINDS

METHODS = {
    "default": {},
    "anneal=0": {"matcher": Coordinate(anneal=0)},
    "anneal=8": {"matcher": Coordinate(anneal=8)},
    "restarts=8": {"restarts": 8},
    "frank_wolfe": {"matcher": "frank_wolfe"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="of the matchers")
    options = parser.parse_args()
    torch.set_num_threads(1)
    columns = [m for m in METHODS if m != "frank_wolfe"]
    print("| network | fit | frank_wolfe | " + " | ".join(f"{m}, %" for m in columns) + " | CPU s |")
    print("|---|---|---|" + "---|" * (len(columns) + 1))
    for name, fits in read(options.folders).items():
        what = json.loads(name)
        if what.get("network", "mlp") == "mlp" or len(fits) < 2:
            continue
        symmetry = find_symmetry(what)
        features = [{k: tuple(part[k] for part in fits[s].values()) for k in symmetry.sites} for s in sorted(fits)[:2]]
        found, seconds = {}, {}
        for method, how in METHODS.items():
            started = time.process_time()
            found[method] = match(symmetry, *features, seed=options.seed, **how).objective
            seconds[method] = time.process_time() - started
        base = found["frank_wolfe"]
        gains = " | ".join(f"{100 * (found[m] / base - 1):+.2f}" for m in columns)
        times = ", ".join(f"{seconds[m]:.2f}" for m in METHODS)
        network = f"{what['network']} {what['hidden']}, {what['data']}"
        print(f"| {network} | {describe(what)} | {base:.1f} | {gains} | {times} |", flush=True)


def read(folders: list[Path]) -> dict[str, dict[int, dict]]:
    """What a fit is, without its seed -> seed -> locations, and scales where there are any."""
    found: dict[str, dict[int, dict]] = {}
    for path in sorted(path for folder in folders for path in folder.glob("*.pt")):
        held = torch.load(path, weights_only=True)
        what = json.loads(held["name"])
        seed = what.pop("seed")
        found.setdefault(json.dumps(what, sort_keys=True), {})[seed] = held["tensors"]
    return found


def find_symmetry(what: dict) -> pyro_align.Symmetry:
    inputs = 28**2 if what["network"] == "lenet" else 3 * (32 // what.get("pool", 1)) ** 2
    setting = Setting(what["data"], tuple(what["hidden"]), network=what["network"])
    x, y = torch.randn(4, inputs), torch.zeros(4, dtype=torch.long)
    return pyro_align.find_symmetry(make_model(setting, inputs, classes=10), x, y)


def describe(what: dict) -> str:
    return f"{KINDS[what['guide']]}, {what['size']} images, {what['epochs']} passes, gain {what.get('gain', 1):g}"


if __name__ == "__main__":
    main()
