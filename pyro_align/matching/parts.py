"""Where an atom stands: one occurrence in a block, and the two factors of what it contributes to the gain matrix."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_align.matching.labels import Labels, relabeled
from pyro_align.symmetry.action import aligned, select
from pyro_align.symmetry.blocks import Block

SMALL = 16  # parts with at most this many values per unit are stacked
_FEW = 0.6  # share of moved units below which only their columns are gathered


@dataclass(frozen=True, eq=False)
class Part:
    """One occurrence of the moved atoms in a block.

    Attributes:
        block: The block.
        batch: Dimensions of the atoms around the moved one.
        chain: Dimensions of the moved atom and of those nested in it, outermost first.
        linear: Whether the block is linear in the move.
        carries: Whether further nested dimensions are carried along, not matched.
        node: The innermost atom that moves.
        others: The dimensions summed over.
        shape: Sizes of batch, chain and the rest, each flattened.
        moving: The free atoms summed over: while they stand still, so does the contribution.
        still: Whether the contribution never changes and is cheap, so that it is added to begin with.
    """

    block: Block
    batch: tuple[int, ...]
    chain: tuple[int, ...]
    linear: bool
    carries: bool = False

    def __post_init__(self) -> None:
        # plain attributes: a network has hundreds of parts, and these are read at every look
        dims, known = self.block.dims, vars(self)
        held = (*self.batch, *self.chain)
        known["node"] = dims[self.chain[-1]].name
        known["others"] = others = tuple(i for i in range(len(dims)) if i not in held)
        known["shape"] = shape = tuple(
            math.prod(dims[i].size for i in part) for part in (self.batch, self.chain, others)
        )
        known["moving"] = tuple(dims[i].name for i in others if dims[i].name)
        known["still"] = not known["moving"] and not self.batch and shape[2] <= SMALL
        # a convolution's inputs are cheaper to lay out as (batch, rest, chain)
        known["_chain_last"] = last = bool(others) and others[0] < self.chain[0]
        known["_order"] = (*self.batch, *others, *self.chain) if last else (*held, *others)

    def signed(self, odd: bool) -> bool:
        """Whether the gain of a feature counts for or against the sign of the innermost atom."""
        return odd and self.block.dims[self.chain[-1]].odd

    def matrices(
        self,
        fixed: Tensor,
        moving: Tensor,
        labels: Labels,
        odd: bool,
        *,
        old: Labels | None = None,
        soft: Mapping[str, Any] = MappingProxyType({}),
    ) -> tuple[Tensor, Tensor]:
        """The two factors of the gain, ``(batch, chain, rest)``: gain = left @ right^T.

        Args:
            fixed: The block's view of a fixed feature.
            moving: The block's view of the moving one.
            labels: The relabeling of everything else.
            odd: Whether the feature changes sign with signed atoms.
            old: With it, the factors of how the gain has changed since that relabeling.
            soft: Atom -> soft relabeling, where one takes the place of the hard one.
        """
        # gathers run over the tensor as it lies in memory: over a transposed view they are many times slower
        rows = None if old is None else self.moved(old, labels)
        right = relabeled(self.block, moving, labels, free=self.chain, odd=odd, rows=rows, soft=soft)
        if old is not None:
            right = right.sub_(relabeled(self.block, moving, old, free=self.chain, odd=odd, rows=rows))
        if rows is not None:
            fixed = select(fixed, *rows)
        if odd:  # an outer atom that moves keeps its sign by new position; only the innermost one chooses
            for i in self.chain[:-1]:
                dim = self.block.dims[i]
                if dim.odd and dim.name in labels.signs:
                    fixed = fixed * aligned(self.block, i, labels.signs[dim.name]).to(fixed.dtype)
        return self.flat(fixed), self.flat(right)

    def flat(self, value: Tensor) -> Tensor:
        """A block's value as ``(batch, chain, rest)``."""
        batch, size, _ = self.shape
        if value.dim() == 1:
            return value.view(batch, size, 1)
        if self._chain_last:
            return laid_out(value.permute(self._order)).view(batch, -1, size).transpose(1, 2)
        return value.permute(self._order).reshape(batch, size, -1)

    def moved(self, old: Labels, new: Labels) -> tuple[int, Tensor] | None:
        """The dimension along which alone something moved, and the positions that did, where they are few."""
        dims = self.block.dims
        moved = [i for i in self.others if (n := dims[i].name) and old.versions[n] != new.versions[n]]
        if len(moved) != 1 or dims[moved[0]].outer or self.block.inside(moved[0]):
            return None
        name = dims[moved[0]].name
        change = old.indices[name] != new.indices[name]
        if name in new.signs:
            change |= old.signs[name] != new.signs[name]
        rows = change.nonzero().flatten()
        return (moved[0], rows) if rows.numel() <= _FEW * change.numel() else None


def laid_out(value: Tensor) -> Tensor:
    """A tensor laid out in the order of its axes. NumPy takes half of PyTorch's time for it on a CPU."""
    if value.is_contiguous() or value.device.type != "cpu":
        return value.contiguous()
    return torch.from_numpy(np.ascontiguousarray(value.detach().numpy()))


def find_parts(block: Block, name: str, joint: bool) -> list[Part]:
    """The occurrences of an atom in a block; with ``joint``, together with a chain of atoms nested in it."""
    if (name, joint) not in block.plans:
        block.plans[name, joint] = _find_parts(block, name, joint)
    return block.plans[name, joint]


def _find_parts(block: Block, name: str, joint: bool) -> list[Part]:
    places = block.positions(name)
    parts = []
    for place in places:
        chain = [place]
        around = (*block.dims[place].around, name)
        inside = set(block.inside(place))
        while joint:
            nested = [i for i in sorted(inside) if block.dims[i].around == around]
            if not nested:
                break
            chain.append(nested[0])
            around = (*around, block.dims[nested[0]].name)
            inside.discard(nested[0])
        # what is left inside is not matched along but carried, so the block is only approximated
        linear = len(places) == 1 and (not joint or not inside)
        parts.append(Part(block, block.dims[place].outer, tuple(chain), linear, bool(inside)))
    return parts
