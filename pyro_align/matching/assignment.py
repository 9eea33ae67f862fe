"""Linear assignment: the permutation that maximises the sum of a gain matrix along it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

# where rows want the same few columns, SciPy's solver is the faster one, above this share `lapjvr` is, 2 to 6 times
_EASY = 0.55


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
    matrices = gain.reshape(-1, n, n)
    if len(flat) == 1:
        hard = [0]
    else:
        hard = (flat.sort(-1).values != torch.arange(n, device=flat.device)).any(-1).nonzero().flatten().tolist()
    for b in hard:
        if (wanted := _distinct(flat[b])) < n:
            flat[b] = torch.from_numpy(_solve(matrices[b].cpu().numpy(), wanted / n)).to(flat.device)
    return flat.reshape(best.shape)


def argmax_assignment(gain: Tensor) -> Tensor | None:
    """The row-wise argmax ``(n,)`` of a matrix where it is a permutation, else None."""
    best = gain.argmax(-1)
    return best if _distinct(best) == best.numel() else None


def _distinct(index: Tensor) -> int:
    return int(np.count_nonzero(np.bincount(index.cpu().numpy())))


def _solve(gain: np.ndarray, wanted: float) -> np.ndarray:
    """The best assignment of one matrix; ``wanted`` is the share of columns that are the best of some row."""
    if wanted > _EASY and (fast := _fast_solver()) is not None:
        return fast(np.negative(gain), return_cost=False)[1]
    # subtracting what every assignment must pay anyway leaves SciPy's solver less to search
    cost = gain.max(1, keepdims=True) - gain.astype(np.float64)
    cost -= cost.min(0)
    return linear_sum_assignment(cost)[1]


@cache
def _fast_solver() -> Callable[..., tuple[np.ndarray, np.ndarray]] | None:
    """``lapjvr`` of the optional package `lapx`, or None without it."""
    try:
        from lap import lapjvr
    except ImportError:
        return None
    return lapjvr


def picked(gain: Tensor, index: Tensor) -> Tensor:
    """The entries of each matrix along an assignment, ``(*batch, n)`` in float64."""
    return gain.gather(-1, index.unsqueeze(-1)).squeeze(-1).double()


def swap_costs(gain: Tensor, index: Tensor) -> Tensor:
    """What swapping the partners of two rows costs: ``g[i, p(i)] + g[k, p(k)] - g[i, p(k)] - g[k, p(i)]``.

    Args:
        gain: ``(batch, n, n)``.
        index: An assignment p, ``(batch, n)``.

    Returns:
        ``(batch, n, n)``; infinite on the diagonal.
    """
    theirs = gain.gather(2, index.unsqueeze(1).expand_as(gain))  # entry (i, k): what i gains from k's partner
    kept = theirs.diagonal(dim1=1, dim2=2)
    cost = kept.unsqueeze(2) + kept.unsqueeze(1) - theirs - theirs.transpose(1, 2)
    cost.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    return cost
