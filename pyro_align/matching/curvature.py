"""The second-order term of a move, where an atom appears on two axes of one block (recurrent weights).

With P0 the relabeling before, P after and ``D = P - P0``, the objective of such a block changes by
``<F, D M P0^T> + <F, P0 M D^T> + <F, D M D^T>``. The first two are the change of the gains at P0; the last involves
only the units that move, so that late in a search, when few do, it costs next to nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from pyro_align.matching.labels import Labels, relabeled
from pyro_align.matching.problem import Problem
from pyro_align.matching.sums import inner
from pyro_align.symmetry.action import select
from pyro_align.symmetry.blocks import Block


def is_plain(block: Block, name: str) -> bool:
    """Whether an atom appears on exactly two axes of a block, without nesting and without signs."""
    places = block.positions(name)
    return len(places) == 2 and all(
        not block.dims[i].outer and not block.dims[i].odd and not block.inside(i) for i in places
    )


def second_order(problem: Problem, blocks: Iterable[Block], name: str, old: Labels, new: Labels) -> float:
    """The sum over blocks and features of ``<F, D M D^T>``."""
    before, after = old.indices[name], new.indices[name]
    rows = (before != after).nonzero().flatten()
    before, after = before[rows], after[rows]
    return math.fsum(
        inner(select(select(here, i, rows), j, rows), _twice(there, i, j, before, after))
        for block in blocks
        for i, j in [block.positions(name)]
        for fixed, moving, odd in problem.views(block)
        for here, there in _pieces(block, fixed, relabeled(block, moving, old, free=(i, j), odd=odd))
    )


def swap_curvature(
    problem: Problem, blocks: Iterable[Block], name: str, labels: Labels, pairs: tuple[Tensor, Tensor]
) -> Tensor:
    """The second-order terms of swapping the partners of two units, ``(count,)``.

    With a and b the partners of i and k, ``D`` has the rows ``b - a`` and ``a - b``, and the term is
    ``(M_aa - M_ab - M_ba + M_bb) (F_ii - F_ik - F_ki + F_kk)``.

    Args:
        problem: What is matched.
        blocks: Blocks with the atom on two axes, plainly.
        name: The atom.
        labels: The present relabeling.
        pairs: The new positions i and k, ``(count,)`` each.
    """
    partners = tuple(labels.indices[name][position] for position in pairs)
    total = torch.zeros(len(pairs[0]), dtype=torch.float64, device=labels.device)
    for block in blocks:
        places = block.positions(name)
        for fixed, whole, odd in problem.views(block):
            moving = relabeled(block, whole, labels, free=places, odd=odd)
            term = _cross(fixed, places, pairs) * _cross(moving, places, partners)
            total += term.double().sum_to_size(total.shape)
    return total


def _cross(value: Tensor, places: tuple[int, int], pairs: tuple[Tensor, Tensor]) -> Tensor:
    value, (i, k) = value.movedim(places, (-2, -1)), pairs
    return value[..., i, i] - value[..., i, k] - value[..., k, i] + value[..., k, k]


def _pieces(block: Block, fixed: Tensor, moving: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Small pieces where the first dimension keeps its order, so that what is made of them stays in cache."""
    for slab in block.slabs(fixed) if not block.dims[0].name else (...,):
        yield fixed[slab], moving[slab]


def _twice(moving: Tensor, i: int, j: int, before: Tensor, after: Tensor) -> Tensor:
    rows = select(moving, i, after).sub_(select(moving, i, before))
    return select(rows, j, after).sub_(select(rows, j, before))
