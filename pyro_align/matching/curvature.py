"""The second-order term of a move, where an atom stands on two axes of one block (recurrent weights).

With P0 the relabelling before, P after and ``D = P - P0``, the objective of such a block changes by
``<F, D M P0^T> + <F, P0 M D^T> + <F, D M D^T>``. The first two are the change of the gains at P0; the last involves
only the units that move, so that late in a search, when few do, it costs next to nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from pyro_align.matching.blocks import Block
from pyro_align.matching.labels import Labels, relabelled
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
        inner(fixed.index_select(i, rows).index_select(j, rows), _twice(moving, i, j, before, after))
        for block in blocks
        for i, j in [block.positions(name)]
        for fixed, whole, odd in problem.views(block)
        for moving in [relabelled(block, whole, old, free=(i, j), odd=odd)]
    )


def _twice(moving, i: int, j: int, before, after):
    rows = moving.index_select(i, after) - moving.index_select(i, before)
    return rows.index_select(j, after) - rows.index_select(j, before)
