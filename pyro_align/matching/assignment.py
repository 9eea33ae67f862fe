"""Linear assignment: the permutation that maximizes the sum of a gain matrix along it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from pyro_align.symmetry.element import is_permutation

_EASY = 0.6  # share of columns that some row wants most, above which a solver needs no help
_WIDE = 192  # smaller matrices are solved sooner than priced
_PRICING = 0.12  # temperature of the prices, in spreads of the gains
_ROUNDS = 6  # of normalizations, for prices
_SAMPLE = 256
FAINT = -80.0  # exponents below make float32 numbers on which processors are many times slower, and weigh nothing
_TINY = 1e-30


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
    best = _argmax(gain)
    n = gain.shape[-1]
    flat, matrices = best.reshape(-1, n), gain.reshape(-1, n, n)
    hard = (~is_permutation(flat)).nonzero().flatten()
    if n < _WIDE and len(hard):
        flat[hard] = assigned(matrices[hard])
    else:
        for b in hard.tolist():
            flat[b] = torch.from_numpy(_solve(matrices[b].cpu(), _distinct(flat[b]) / n)).to(flat.device)
    return flat.reshape(best.shape)


def assigned(gain: Tensor) -> Tensor:
    """The best assignment of each small matrix ``(batch, n, n)``, without a look at whether one is needed."""
    costs = (gain.amax(2, keepdim=True) - gain).cpu()
    return torch.from_numpy(np.stack([solved(cost) for cost in costs])).to(gain.device, torch.int64)


def argmax_assignment(gain: Tensor) -> Tensor | None:
    """The row-wise argmax ``(n,)`` of a matrix where it is a permutation, else None."""
    best = _argmax(gain)
    return best if _distinct(best) == best.numel() else None


def share_wanted(gain: Tensor) -> float:
    """Fraction of the columns of a matrix that are the best of some row."""
    return _distinct(_argmax(gain)) / len(gain)


def _argmax(gain: Tensor) -> Tensor:
    """The row-wise argmax. NumPy's is ten times as fast as PyTorch's on a CPU."""
    return torch.from_numpy(gain.detach().numpy().argmax(-1)) if gain.device.type == "cpu" else gain.argmax(-1)


def _distinct(index: Tensor) -> int:
    return int(np.count_nonzero(np.bincount(index.cpu().numpy())))


def _solve(gain: Tensor, wanted: float) -> np.ndarray:
    """The best assignment of one wide matrix; ``wanted`` is the share of columns that are the best of some row."""
    return solved((gain.amax(1, keepdim=True) - gain) if wanted > _EASY else _priced(gain))


def solved(cost: Tensor) -> np.ndarray:
    """The cheapest assignment of one matrix on the CPU."""
    if (fast := _fast_solver()) is not None:
        return fast(cost.numpy(), return_cost=False)[1]
    # subtracting what every assignment must pay anyway leaves SciPy's solver less to search
    return linear_sum_assignment((cost - cost.amin(0)).double().numpy())[1]


def _priced(gain: Tensor) -> Tensor:
    """The costs after rows and columns have been charged what Sinkhorn's scalings say they are worth.

    Charging rows and columns changes no assignment's rank. The scalings of ``exp(gain / T)`` are the optimal dual
    prices up to about T log n, so that little is left to search where many rows want the same columns.
    """
    cost = gain.amax(1, keepdim=True) - gain
    temperature = _PRICING * spread(gain)
    if not temperature > 0:
        return cost
    kernel = cost.mul(-1 / temperature).clamp_min_(FAINT).exp_()
    row, column = scalings(kernel, _ROUNDS)
    return cost.sub_(temperature * row.log().unsqueeze(1)).sub_(temperature * column.log())


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
    return gain.expand(*index.shape, -1).gather(-1, index.unsqueeze(-1)).squeeze(-1).double()


def best_sign(odd: Tensor | None, index: Tensor) -> Tensor:
    """The better sign of each unit of an assignment; plus where nothing speaks for either."""
    if odd is None:
        return torch.ones_like(index, dtype=torch.int8)
    return torch.where(picked(odd, index) < 0, -1, 1).to(torch.int8)


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


def spread(gain: Tensor) -> float:
    """Standard deviation of a matrix about its row and column means, which no assignment can tell from zero.

    Of a wide matrix a sample of its rows is looked at.
    """
    gain = gain[:: max(1, len(gain) // _SAMPLE)]
    rows, columns = gain.mean(1, keepdim=True), gain.mean(0)
    return float((gain - rows - columns + rows.mean()).square().mean().sqrt())


def scalings(kernel: Tensor, rounds: int) -> tuple[Tensor, Tensor]:
    """Factors of the rows and columns of a positive matrix that make them sum to one (Sinkhorn & Knopp 1967).

    Args:
        kernel: ``(n, n)``, with row maxima of one.
        rounds: Pairs of normalizations, columns last.

    Example:
        >>> row, column = scalings(torch.ones(2, 2), 3)
        >>> row.unsqueeze(1) * torch.ones(2, 2) * column
        tensor([[0.5000, 0.5000],
                [0.5000, 0.5000]])
    """
    column = torch.ones_like(kernel[0])
    for _ in range(rounds):
        row = 1 / (kernel @ column).clamp_min(_TINY)
        column = 1 / (row @ kernel).clamp_min(_TINY)
    return row, column
