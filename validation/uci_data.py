"""What uci.py and uci_numpyro.py share: the sizes of the network, and the standardized tables."""

from pathlib import Path

import numpy as np

HIDDEN = (16, 16)
TARGETS = {"yacht": 6, "energy": 8, "concrete": 8}  # column of the target; inputs are those before it


def load(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs and target, standardized over all rows, and the rows in an order of which four fifths are for training."""
    table = np.loadtxt(folder / f"{name}.txt")
    table = (table - table.mean(0)) / table.std(0)
    return table[:, : TARGETS[name]], table[:, TARGETS[name]], np.random.default_rng(0).permutation(len(table))
