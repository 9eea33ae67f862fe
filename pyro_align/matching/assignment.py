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
    hard = (~_is_permutation(flat)).nonzero().flatten().tolist()
    if hard:
        matrices = gain.reshape(-1, n, n)
        for b in hard:
            flat[b] = torch.from_numpy(_solve(matrices[b].cpu().numpy())).to(flat.device)
    return flat.reshape(best.shape)


def argmax_assignment(gain: Tensor) -> Tensor | None:
    """The row-wise argmax ``(*batch, n)`` where it is a permutation in every matrix, else None."""
    best = gain.argmax(-1)
    return best if bool(_is_permutation(best).all()) else None


def _is_permutation(index: Tensor) -> Tensor:
    counts = torch.zeros_like(index).scatter_add_(-1, index, torch.ones_like(index))
    return (counts == 1).all(-1)


def _solve(gain: np.ndarray) -> np.ndarray:
    return linear_sum_assignment(gain, maximize=True)[1]


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
