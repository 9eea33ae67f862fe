"""What a constant tensor tells apart, and what it leaves interchangeable."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from pyro_align.discovery.axes.terms import ONE, Term, Uniform, Var, concat, product
from pyro_align.model.forward import unexpanded

LARGEST = 1024  # rows of a constant matrix whose blocks are compared
ROUNDING = 1e-14  # relative; four orders below what the certificate tells from rounding


def constant_axes(value: Tensor) -> list[Term]:
    """One term per axis of a constant.

    An axis is uniform where all its slices are equal, a concatenation of runs where neighbors are equal, fixed
    otherwise. Two axes along which the tensor is ``a I + b 11'`` may be relabeled together, and share a variable.
    """
    value = value if value.layout == torch.strided else value.to_dense()
    axes = [_term(value, axis) for axis in range(value.dim())]
    varying = [i for i, t in enumerate(axes) if not isinstance(t, Uniform)]
    if len(varying) == 2 and value.shape[varying[0]] == value.shape[varying[1]]:
        core = value[tuple(slice(None) if i in varying else 0 for i in range(value.dim()))]
        if is_scaled_identity(core):
            shared = Var(core.shape[0])
            for i in varying:
                axes[i] = shared
        elif core.shape[0] <= LARGEST:
            for i, term in zip(varying, _kronecker(core), strict=True):
                axes[i] = axes[i] if term is None else term
    return axes


def _kronecker(core: Tensor) -> tuple[Term | None, Term | None]:
    """Rows and columns of a matrix made of blocks, one for those on the diagonal and one for all others."""
    n = len(core)
    for size in range(2, n // 2 + 1):
        if n % size:
            continue
        count = n // size
        blocks = core.view(count, size, count, size).transpose(1, 2)
        on, off = blocks.diagonal().movedim(-1, 0), blocks[~torch.eye(count, dtype=torch.bool, device=core.device)]
        if not bool(_differ(on, on[:1]).any()) and not bool(_differ(off, off[:1]).any()):
            head = Var(count)
            inside = constant_axes(torch.stack([on[0], off[0]], -1))
            return product([head, inside[0]]), product([head, inside[1]])
    return None, None


def _term(value: Tensor, axis: int) -> Term:
    n = value.shape[axis]
    if n == 1:
        return ONE
    if value.numel() == 0:
        return Var(n, fixed=True)
    lengths = runs(value, axis)
    if len(lengths) == 1:
        return Uniform(n)
    if len(lengths) == n:
        return _in_turn(value, axis) or Var(n, fixed=True)
    return concat([Uniform(k) if k > 1 else Var(1, fixed=True) for k in lengths])


def _in_turn(value: Tensor, axis: int) -> Term | None:
    """The axis of slices that come again in turn, 1 2 3 1 2 3: the rounds are alike."""
    n = value.shape[axis]
    moved = value.movedim(axis, 0)
    for period in range(2, n // 2 + 1):
        if n % period == 0 and not bool(_differ(moved[period:], moved[:-period]).any()):
            return product([Uniform(n // period), Var(period, fixed=True)])
    return None


def runs(value: Tensor, axis: int) -> list[int]:
    """Lengths of the runs of equal slices along an axis of a tensor with entries."""
    n = value.shape[axis]
    if value.stride(axis) == 0:
        return [n]
    moved = unexpanded(value).movedim(axis, 0)
    differs = _differ(moved[1:], moved[:-1]).reshape(n - 1, -1).any(-1)
    cuts = [0, *(torch.nonzero(differs).flatten() + 1).tolist(), n]
    return [b - a for a, b in itertools.pairwise(cuts)]


def is_scaled_identity(core: Tensor) -> bool:
    """Whether a matrix is ``a I + b 11'``."""
    n = core.shape[0]
    if core.shape != (n, n):
        return False
    diagonal = core.diagonal()
    off = core[~torch.eye(n, dtype=torch.bool, device=core.device)]
    return not bool(_differ(diagonal, diagonal[0]).any()) and not bool(_differ(off, off[0]).any())


def _differ(a: Tensor, b: Tensor) -> Tensor:
    """Entries that differ by more than the rounding of a few float64 operations on numbers of their own size."""
    if a.dtype != torch.float64:
        return a != b
    largest = torch.maximum(a.abs(), b.abs())
    same = largest.isfinite() & ((a - b).abs() <= ROUNDING * largest)  # an infinity has no numbers of its own size
    return ~(same | (a == b) | (a.isnan() & b.isnan()))


def identity_axis(index: Tensor, size: int) -> int | None:
    """The axis along which an index tensor counts 0, 1, ..., size - 1 while it is uniform along all others."""
    for axis, n in enumerate(index.shape):
        if n != size or n == 1:
            continue
        shape = [1] * index.dim()
        shape[axis] = size
        if torch.equal(
            index, torch.arange(size, device=index.device, dtype=index.dtype).view(shape).expand(index.shape)
        ):
            return axis
    return None
