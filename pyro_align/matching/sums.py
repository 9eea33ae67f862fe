"""Sums over a block, by unit: squared norms, and inner products under a relabeling.

One pass over a block serves all atoms on it, and what a pass found is kept until one of the block's atoms moves. A
move puts new tensors in the place of the old ones (:meth:`Labels.replace`), so identity tells.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_align.matching.labels import Labels, pairs
from pyro_align.symmetry.blocks import Block

if TYPE_CHECKING:
    from pyro_align.matching.problem import Problem

_RUN = 1 << 14  # products summed in the dtype of the features
BySite = dict[int, Tensor]  # dimension of a block -> one number per index along it


class UnitSums:
    """Sums over the blocks of a problem.

    Args:
        problem: What is matched.
    """

    def __init__(self, problem: Problem):
        self.problem = problem
        self._norms: dict[Block, tuple[BySite, BySite]] = {}
        self._products: dict[Block, tuple[list[Any], BySite]] = {}
        self._values: dict[Block, tuple[list[Any], float]] = {}

    def norms(self, block: Block) -> tuple[BySite, BySite]:
        """Squared norms of the fixed and of the moving units along each free dimension.

        Relabeling the other dimensions does not change them.
        """
        if block not in self._norms:
            left, right = self._zeros(block), self._zeros(block)
            for fixed, moving, _ in self.problem.views(block):
                for here, there in block.runs(fixed, moving):
                    for slab in block.slabs(here):
                        _add(left, slab, here[slab].square())
                        _add(right, slab, there[slab].square())
            self._norms[block] = left, right
        return self._norms[block]

    def products(self, block: Block, labels: Labels) -> BySite:
        """What each unit gains at its present partner, along each free dimension."""
        state = _state(block, labels)
        if not _same(self._products.get(block), state):
            found = self._zeros(block)
            for fixed, moving, odd in self.problem.views(block):
                for slab, here, there in pairs(block, fixed, moving, labels, odd):
                    _add(found, slab, here * there)
            self._products[block] = state, found
            self._values[block] = state, float(found[block.free[0]].sum(dtype=torch.float64))
        return self._products[block][1]

    def value(self, block: Block, labels: Labels) -> float:
        """The block's share of the objective."""
        state = _state(block, labels)
        if not _same(self._values.get(block), state):
            total = sum(
                inner(here, there)
                for fixed, moving, odd in self.problem.views(block)
                for _, here, there in pairs(block, fixed, moving, labels, odd)
            )
            self._values[block] = state, total
        return self._values[block][1]

    def _zeros(self, block: Block) -> BySite:
        dtype, device = self.problem.work_dtype, self.problem.device
        return {i: torch.zeros(block.dims[i].size, dtype=dtype, device=device) for i in block.free}


def _state(block: Block, labels: Labels) -> list[Any]:
    tables = (labels.indices, labels.signs)
    return [table.get(block.dims[i].name) for i in block.free for table in tables]


def _same(known: tuple[list[Any], Any] | None, state: list[Any]) -> bool:
    return known is not None and all(a is b for a, b in zip(known[0], state, strict=True))


def _add(into: BySite, slab: Any, value: Tensor) -> None:
    """Adds the sums of a piece, which lies at ``slab`` of the first dimension."""
    for place, total in into.items():
        (total if place else total[slab]).add_(sum_to(value, place))


def sum_to(value: Tensor, place: int) -> Tensor:
    """The sum over all dimensions but one.

    The dimensions before it go first, as whole rows in the order in which they lie in memory, and those after it next:
    all at once would be many times slower.
    """
    if place:
        value = value.flatten(0, place - 1).sum(0)
    return value.flatten(1).sum(1) if value.dim() > 1 else value


def inner(a: Tensor, b: Tensor) -> float:
    """The inner product of two tensors: runs of 16384 products in their own dtype, those in float64."""
    if a.dim() != 1:
        a, b = a.reshape(-1), b.reshape(-1)
    if a.numel() <= _RUN:
        return float(torch.dot(a, b))
    runs = [torch.dot(x, y) for x, y in zip(a.split(_RUN), b.split(_RUN), strict=True)]
    return float(torch.stack(runs).sum(dtype=torch.float64))
