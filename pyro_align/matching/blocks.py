"""The blocks of all sites, and those worth working on: they carry a free atom, small ones are stacked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

from pyro_align.symmetry.blocks import Block, Dim
from pyro_align.symmetry.group import Symmetry

_VECTOR = 1 << 13  # blocks of up to this many entries are stacked where they are alike
_KEPT: WeakKeyDictionary[Symmetry, dict[str, Any]] = WeakKeyDictionary()  # a symmetry never changes, nor do its blocks


def symmetry_blocks(
    symmetry: Symmetry, odd: Mapping[str, tuple[bool, ...]]
) -> tuple[tuple[Block, ...], tuple[Block, ...]]:
    """The blocks of all sites, and those that carry a free atom, small ones of the same dimensions stacked.

    A network has many vectors for each atom. Both live as long as the symmetry, with all that is planned on them.

    Args:
        symmetry: The group, with known sizes.
        odd: Site -> which of its features change sign with signed atoms.
    """
    kept, flags = _KEPT.setdefault(symmetry, {}), tuple(odd[site] for site in symmetry.sites)
    if flags not in kept:
        blocks = tuple(b for site in symmetry.sites for b in symmetry.blocks(site))
        alike: dict[Any, list[Block]] = {}
        for block in blocks:
            small = math.prod(d.size for d in block.dims) <= _VECTOR
            if block.names:
                alike.setdefault((block.dims, odd[block.site]) if small else block, []).append(block)
        kept[flags] = blocks, tuple(_stack(group) for group in alike.values())
    return kept[flags]


def _stack(blocks: Sequence[Block]) -> Block:
    """Blocks with the same dimensions as one, with a first dimension of fixed order for which is which."""
    if len(blocks) == 1:
        return blocks[0]
    dims = (replace(d, outer=tuple(o + 1 for o in d.outer)) for d in blocks[0].dims)
    return Block(" + ".join(b.site for b in blocks), (Dim("", len(blocks)), *dims), members=tuple(blocks))
