"""The relabeling in the making: index and sign tensors per atom, and how a block is gathered by them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from pyro_align.symmetry.action import aligned, select, take
from pyro_align.symmetry.blocks import Block
from pyro_align.symmetry.element import Permutation
from pyro_align.symmetry.group import Symmetry


class Labels:
    """Index and sign tensors per free atom, on the device of the problem.

    A change replaces whole tensors in one step, so whatever interrupts a matcher leaves a valid relabeling behind.

    Attributes:
        indices: Atom -> int64 ``(*outer sizes, size)``, new position -> old.
        signs: Signed atom -> +-1, same shape.
        versions: Atom -> how often its relabeling has changed.
    """

    def __init__(self, permutation: Permutation, device: torch.device):
        self.symmetry: Symmetry = permutation.symmetry
        self.device = device
        self.indices: Mapping[str, Tensor] = {k: v.to(device) for k, v in permutation.indices.items()}
        self.signs: Mapping[str, Tensor] = {
            k: permutation.signs.get(k, torch.ones_like(permutation.indices[k])).to(device)
            for k in self.symmetry.signed
        }
        self.versions: dict[str, int] = dict.fromkeys(self.indices, 0)

    def copy(self) -> Labels:
        """Another that starts from the same tables; none is ever changed in place."""
        other = object.__new__(Labels)
        other.__dict__.update(self.__dict__)
        other.versions = dict(self.versions)
        return other

    def replace(self, indices: Mapping[str, Tensor], signs: Mapping[str, Tensor]) -> None:
        """Sets some atoms' relabelings; the version of each that changes goes up, and only its tensors are new."""
        indices = {k: v for k, v in indices.items() if not torch.equal(v, self.indices[k])}
        signs = {k: v for k, v in signs.items() if not torch.equal(v, self.signs[k])}
        self.indices, self.signs = {**self.indices, **indices}, {**self.signs, **signs}
        for name in {**indices, **signs}:
            self.versions[name] += 1

    def differs(self, other: Labels) -> bool:
        """Whether this one and the copy it was taken from have parted."""
        return self.versions != other.versions

    def permutation(self) -> Permutation:
        """The element of the group."""
        return Permutation(self.symmetry, self.indices, self.signs)

    def by_old(self, name: str, held: Collection[str], table: Tensor) -> Tensor:
        """A table ``(*outer sizes, size)`` of a nested atom, with the outer atoms in ``held`` in their old order."""
        where: dict[str, Tensor] = {}
        for outer, g in self._grid(name, table):
            where[outer] = g
            if outer in held and outer in self.indices:
                back = self.indices[outer].argsort(-1)
                where[outer] = back[(*(where[o] for o in self.symmetry.atoms[outer].within), g)]
        return table[tuple(where.values())]

    def by_new(self, name: str, table: Tensor, held: Collection[str]) -> Tensor:
        """The way back from :meth:`by_old`."""
        grid = dict(self._grid(name, table))
        where = dict(grid)
        for outer in grid:
            if outer in held and outer in self.indices:
                around = tuple(grid[o] for o in self.symmetry.atoms[outer].within)
                where[outer] = self.indices[outer][(*around, grid[outer])]
        return table[tuple(where.values())]

    def _grid(self, name: str, table: Tensor) -> list[tuple[str, Tensor]]:
        around = self.symmetry.atoms[name].within
        ranges = [torch.arange(n, device=self.device) for n in table.shape[: len(around)]]
        return list(zip(around, torch.meshgrid(*ranges, indexing="ij"), strict=True))


def relabeled(
    block: Block,
    value: Tensor,
    labels: Labels,
    *,
    free: Collection[int] = (),
    odd: bool = True,
    rows: tuple[int, Any] | None = None,
    soft: Mapping[str, Any] = MappingProxyType({}),
) -> Tensor:
    """A block's value with every dimension relabeled, except those in ``free``, which keep their old order.

    What is nested in a free dimension is carried along with it.

    Args:
        block: The block.
        value: Its view of a moving feature.
        labels: The relabeling.
        free: Dimensions to leave as they are.
        odd: Whether the feature changes sign with signed atoms.
        rows: A dimension that is not nested and an index of the only new positions wanted along it.
        soft: Atom, with nothing nested in it -> its soft relabeling in place of the hard one, an
            :class:`~pyro_align.matching.annealing.Soft`.
    """
    for i, dim, held in block.gathers(tuple(free)):
        if dim.name in soft:
            value = soft[dim.name].apply(value, i, odd and dim.odd)
            continue
        index = labels.indices[dim.name]
        sign = labels.signs.get(dim.name) if odd and dim.odd else None
        if rows is not None and rows[0] == i:
            index, sign = index[rows[1]], None if sign is None else sign[rows[1]]
        if held:
            index = labels.by_old(dim.name, held, index)
            sign = None if sign is None else labels.by_old(dim.name, held, sign)
        if dim.outer:
            value = take(value, aligned(block, i, index), i)
        else:
            value = select(value, i, index)
        if sign is not None:
            value = value * aligned(block, i, sign).to(value.dtype)
    return value


def pairs(
    block: Block, fixed: Tensor, moving: Tensor, labels: Labels, odd: bool
) -> Iterator[tuple[Any, Tensor, Tensor]]:
    """Pieces of a fixed feature beside those of the relabeled moving one, and what they index of the first dimension.

    The pieces are small, as what is made of them is read once more at most.
    """
    for here, there in block.runs(fixed, moving):
        for slab in block.slabs(here):
            if slab is ...:
                yield slab, here, relabeled(block, there, labels, odd=odd)
            elif block.dims[0].name:
                yield slab, here[slab], relabeled(block, there, labels, odd=odd, rows=(0, slab))
            else:
                yield slab, here[slab], relabeled(block, there[slab], labels, odd=odd)
