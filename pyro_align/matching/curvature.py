"""The second-order term of a move, where an atom stands on two axes of one block (recurrent weights).

With P0 the relabelling before, P after and ``D = P - P0``, the objective of such a block changes by
``<F, D M P0^T> + <F, P0 M D^T> + <F, D M D^T>``. The first two are the change of the gains at P0; the last involves
only the units that move, so that late in a search, when few do, it costs next to nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from torch import Tensor

from pyro_align.matching.blocks import Block
from pyro_align.matching.labels import Labels, relabelled, select
from pyro_align.matching.problem import Problem
from pyro_align.matching.sums import inner


def is_plain(block: Block, name: str) -> bool:
    """Whether an atom stands on exactly two axes of a block, without nesting and without signs."""
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
        for here, there in _pieces(block, fixed, relabelled(block, moving, old, free=(i, j), odd=odd))
    )


def _pieces(block: Block, fixed: Tensor, moving: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Small pieces where the first dimension keeps its order, so that what is made of them stays in cache."""
    for slab in block.slabs(fixed) if not block.dims[0].name else (...,):
        yield fixed[slab], moving[slab]


def _twice(moving: Tensor, i: int, j: int, before: Tensor, after: Tensor) -> Tensor:
    rows = select(moving, i, after).sub_(select(moving, i, before))
    return select(rows, j, after).sub_(select(rows, j, before))
