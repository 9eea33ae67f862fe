"""Sums over a block, by unit: squared norms, and inner products under a relabelling.

One pass over a block serves all atoms on it, and what a pass found is kept until one of the block's atoms moves. A
move puts new tensors in the place of the old ones (:meth:`Labels.replace`), so identity tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_align.matching.blocks import Block
from pyro_align.matching.labels import Labels, relabelled

if TYPE_CHECKING:
    from pyro_align.matching.problem import Problem

_RUN = 4096  # products summed in the dtype of the features
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

        Relabelling the other dimensions does not change them.
        """
        if block not in self._norms:
            left, right = {}, {}
            for fixed, moving, _ in self.problem.views(block):
                for here, there in block.runs(fixed, moving):
                    _add(left, here.square(), block.free)
                    _add(right, there.square(), block.free)
            self._norms[block] = left, right
        return self._norms[block]

    def products(self, block: Block, labels: Labels) -> BySite:
        """What each unit gains at its present partner, along each free dimension."""
        state = _state(block, labels)
        if not _same(self._products.get(block), state):
            found: BySite = {}
            for fixed, moving, odd in self.problem.views(block):
                for here, there in block.runs(fixed, moving):
                    _add(found, here * relabelled(block, there, labels, odd=odd), block.free)
            self._products[block] = state, found
            self._values[block] = state, float(found[block.free[0]].double().sum())
        return self._products[block][1]

    def value(self, block: Block, labels: Labels) -> float:
        """The block's share of the objective."""
        state = _state(block, labels)
        if not _same(self._values.get(block), state):
            total = sum(
                inner(here, relabelled(block, there, labels, odd=odd))
                for fixed, moving, odd in self.problem.views(block)
                for here, there in block.runs(fixed, moving)
            )
            self._values[block] = state, total
        return self._values[block][1]


def _state(block: Block, labels: Labels) -> list[Any]:
    tables = (labels.indices, labels.signs)
    return [table.get(block.dims[i].name) for i in block.free for table in tables]


def _same(known: tuple[list[Any], Any] | None, state: list[Any]) -> bool:
    return known is not None and all(a is b for a, b in zip(known[0], state, strict=True))


def _add(into: BySite, value: Tensor, places: Sequence[int]) -> None:
    for place in places:
        total = sum_to(value, place)
        into[place] = into[place] + total if place in into else total


def sum_to(value: Tensor, place: int) -> Tensor:
    """The sum over all dimensions but one.

    The dimensions before it go first, as whole rows in the order in which they lie in memory, and those after it next:
    all at once would be many times slower.
    """
    if place:
        value = value.flatten(0, place - 1).sum(0)
    return value.flatten(1).sum(1) if value.dim() > 1 else value


def inner(a: Tensor, b: Tensor) -> float:
    """The inner product of two tensors: runs of 4096 products in their own dtype, those in float64."""
    if a.dim() != 1:
        a, b = a.reshape(-1), b.reshape(-1)
    if a.numel() <= _RUN:
        return float(torch.dot(a, b))
    whole = a.numel() // _RUN * _RUN
    runs = torch.linalg.vecdot(a[:whole].view(-1, _RUN), b[:whole].view(-1, _RUN))
    return float(runs.sum(dtype=torch.float64)) + float(torch.dot(a[whole:], b[whole:]))
