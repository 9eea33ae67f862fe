"""Linear assignment: the permutation that maximises the sum of a gain matrix along it."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def assign(gain: Tensor) -> Tensor:
    """The best assignment of each matrix of a batch.

    A matrix whose row-wise argmax is a permutation needs no solver: no assignment can do better in any row.

    Args:
        gain: ``(*batch, n, n)``; entry ``(i, j)`` is what new position i gains from old index j.

    Returns:
        int64 ``(*batch, n)`` on the gain's device: new -> old.

    Example:
        >>> assign(torch.tensor([[1.0, 3.0], [0.0, 2.5]]))
        tensor([0, 1])
    """
    best = gain.argmax(-1)
    n = gain.shape[-1]
    flat = best.reshape(-1, n)
    counts = torch.zeros_like(flat).scatter_add_(1, flat, torch.ones_like(flat))
    hard = (counts != 1).any(-1).nonzero().flatten().tolist()
    if hard:
        matrices = gain.reshape(-1, n, n)
        for b in hard:
            cost = matrices[b].to("cpu", torch.float64).numpy()
            flat[b] = torch.from_numpy(_solve(cost)).to(flat.device)
    return flat.reshape(best.shape)


def _solve(gain: np.ndarray) -> np.ndarray:
    return linear_sum_assignment(gain, maximize=True)[1]


def picked(gain: Tensor, index: Tensor) -> Tensor:
    """The entries of each matrix along an assignment, ``(*batch, n)`` in float64."""
    return gain.gather(-1, index.unsqueeze(-1)).squeeze(-1).double()
