"""What uci.py and uci_numpyro.py share: the sizes of the network, the standardized tables, the options."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

HIDDEN = (16, 16)
TARGETS = {"yacht": 6, "energy": 8, "concrete": 8}  # column of the target; inputs are those before it


def load(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Inputs and target, standardized over all rows; rows for training (four fifths, at random) and for testing."""
    table = np.loadtxt(folder / f"{name}.txt")
    table = (table - table.mean(0)) / table.std(0)
    order = np.random.default_rng(0).permutation(len(table))
    train, test = np.split(order, [int(0.8 * len(order))])
    return table[:, : TARGETS[name]], table[:, TARGETS[name]], train, test


def read_options(about: str) -> argparse.Namespace:
    """Where the tables and the chains are, which tables, and how long the chains are."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("uci", type=Path, help="folder of the tables yacht.txt, energy.txt, concrete.txt")
    parser.add_argument("runs", type=Path, help="folder of the chains")
    parser.add_argument("names", nargs="*", default=list(TARGETS), help="tables")
    parser.add_argument("--chains", type=int, default=4, help="chains to sample")
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--warmup", type=int, default=1000)
    parser.add_argument("--quick", action="store_true", help="two chains of 50 draws after 50")
    options = parser.parse_args()
    if options.quick:
        options.chains, options.draws, options.warmup = 2, 50, 50
    return options
