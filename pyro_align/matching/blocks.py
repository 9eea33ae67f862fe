"""Blocks: a site's tensor seen as pieces whose every dimension is one atom.

Axis terms are trees of products and sums. Splitting products and narrowing to the terms of sums turns each site into a
few views, without copying, whose dimensions are plain atoms. All matchers work on these blocks: the objective is the
sum over blocks and features of ``<fixed, P moving>``, with one index gather per free dimension.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor

from pyro_align.axes import Atom, Axis, Fixed, Product, Sum, axis_size
from pyro_align.errors import MatchError
from pyro_align.symmetry.group import Symmetry

_RUN = 1 << 22  # entries worked on at a time, where an axis of fixed order lets a site be cut
_VECTOR = 1 << 13  # blocks of up to this many entries are stacked where they are alike
_SLAB = 1 << 17  # entries summed at a time, so that what is made on the way stays in the processor's cache


_KEPT: WeakKeyDictionary[Symmetry, dict] = WeakKeyDictionary()  # a symmetry never changes, nor do its blocks


@dataclass(frozen=True)
class Dim:
    """One dimension of a block.

    Attributes:
        name: The free atom along it, or ``""`` where the order is kept.
        size: Number of indices.
        odd: Whether odd features change sign with the atom's units here.
        outer: Positions, in the block, of the dimensions of the atoms around this one, outermost first.
        around: Names of those atoms.
    """

    name: str
    size: int
    odd: bool = False
    outer: tuple[int, ...] = ()
    around: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Block:
    """One piece of a site.

    Attributes:
        site: The site's name.
        dims: One entry per dimension of the view.
        steps: How the view is cut from the site's tensor: ``("split", dim, sizes)`` and
            ``("narrow", dim, start, n)``.
        members: The blocks that are stacked along the first dimension, where this one stands for several.
    """

    site: str
    dims: tuple[Dim, ...]
    steps: tuple[tuple, ...] = ()
    members: tuple[Block, ...] = ()

    def view(self, value: Tensor) -> Tensor:
        """The piece of the site's tensor, sharing its memory."""
        for kind, dim, *rest in self.steps:
            if kind == "split":
                value = value.unflatten(dim, rest[0])
            else:
                value = value.narrow(dim, *rest)
        return value

    def runs(self, *values: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Views of the piece, cut along an axis of fixed order into runs of bounded size."""
        if values[0].numel() <= _RUN:
            yield values
            return
        free = [i for i, d in enumerate(self.dims) if not d.name and not self.inside(i)]
        if not free:
            yield values
            return
        axis = max(free, key=lambda i: values[0].shape[i])
        step = max(1, _RUN * values[0].shape[axis] // values[0].numel())
        yield from zip(*(v.split(step, axis) for v in values), strict=True)

    def slabs(self, value: Tensor) -> Iterator[Any]:
        """Indices of runs of bounded size along the first dimension of a run; one of all where others nest in it."""
        step = max(1, _SLAB * value.shape[0] // value.numel()) if value.numel() > _SLAB else 0
        if step == 0 or step >= value.shape[0] or self.dims[0].outer or self.inside(0):
            yield ...
        else:
            yield from (slice(start, start + step) for start in range(0, value.shape[0], step))

    @cached_property
    def names(self) -> frozenset[str]:
        """The free atoms of the block."""
        return frozenset(d.name for d in self.dims if d.name)

    def positions(self, name: str) -> tuple[int, ...]:
        """The dimensions that carry an atom."""
        return tuple(i for i, d in enumerate(self.dims) if d.name == name)

    @cached_property
    def free(self) -> tuple[int, ...]:
        """The dimensions that carry a free atom."""
        return tuple(i for i, d in enumerate(self.dims) if d.name)

    def gathers(self, held: tuple[int, ...]) -> tuple[tuple[int, Dim, frozenset[str]], ...]:
        """How to relabel all but some dimensions: dimension, what it is, and which atoms around it are held.

        What lies around comes before what lies within.
        """
        if held not in self.plans:
            order = sorted((i for i in self.free if i not in held), key=lambda i: len(self.dims[i].outer))
            self.plans[held] = tuple(
                (i, d, frozenset(name for o, name in zip(d.outer, d.around, strict=True) if o in held))
                for i in order
                for d in [self.dims[i]]
            )
        return self.plans[held]

    @cached_property
    def plans(self) -> dict:
        """What has been worked out about the block, by what it is for."""
        return {}

    def inside(self, position: int) -> tuple[int, ...]:
        """The dimensions nested, directly or not, in the one at ``position``, outer ones first."""
        found = [i for i, d in enumerate(self.dims) if position in d.outer]
        return tuple(sorted(found, key=lambda i: len(self.dims[i].outer)))


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
        blocks = tuple(b for site, terms in symmetry.sites.items() for b in site_blocks(site, terms))
        alike: dict[Any, list[Block]] = {}
        for block in blocks:
            small = math.prod(d.size for d in block.dims) <= _VECTOR
            if block.names:
                alike.setdefault((block.dims, odd[block.site]) if small else block, []).append(block)
        kept[flags] = blocks, tuple(_stack(group) for group in alike.values())
    return kept[flags]


def site_blocks(site: str, terms: Sequence[Axis]) -> tuple[Block, ...]:
    """The blocks of one site."""
    blocks = []
    for pieces in product(*(_pieces(term) for term in terms)):
        steps, leaves, owner = [], [], []
        for axis in reversed(range(len(terms))):  # last axis first, so that earlier dims keep their positions
            steps += _shifted(pieces[axis][0], axis)
        for axis, (_, atoms) in enumerate(pieces):
            leaves += atoms
            owner += [axis] * len(atoms)
        dims = tuple(_dim(site, leaves, owner, i) for i in range(len(leaves)))
        blocks.append(Block(site, dims, tuple(steps)))
    return tuple(blocks)


def _stack(blocks: Sequence[Block]) -> Block:
    """Blocks with the same dimensions as one, with a first dimension of fixed order for which is which."""
    if len(blocks) == 1:
        return blocks[0]
    dims = (replace(d, outer=tuple(o + 1 for o in d.outer)) for d in blocks[0].dims)
    return Block(" + ".join(b.site for b in blocks), (Dim("", len(blocks)), *dims), members=tuple(blocks))


def _pieces(term: Axis) -> list[tuple[list[tuple], list[Atom]]]:
    """Each way down an axis term: the steps that cut it (dims counted from the axis) and the atoms it leads to."""
    if isinstance(term, Atom):
        return [([], [term])]
    if isinstance(term, Sum):
        if all(t == term.terms[0] for t in term.terms):  # k equal terms are one product k x term: fewer, larger blocks
            return _pieces(Product(Fixed(len(term.terms)), term.terms[0]))
        found, start = [], 0
        for part in term.terms:
            n = axis_size(part)
            found += [([("narrow", 0, start, n), *steps], atoms) for steps, atoms in _pieces(part)]
            start += n
        return found
    sizes = tuple(axis_size(f) for f in term.factors)
    found = []
    for choice in product(*(_pieces(f) for f in term.factors)):
        steps: list[tuple] = [("split", 0, sizes)]
        for i in reversed(range(len(choice))):
            steps += _shifted(choice[i][0], i)
        found.append((steps, [a for _, atoms in choice for a in atoms]))
    return found


def _shifted(steps: Sequence[tuple], by: int) -> list[tuple]:
    return [(kind, dim + by, *rest) for kind, dim, *rest in steps]


def _dim(site: str, leaves: Sequence[Atom], owner: Sequence[int], i: int) -> Dim:
    atom = leaves[i]
    if atom.fixed or not atom.name:
        return Dim("", atom.size)
    outer = []
    for name in atom.within:
        # the nearest one before it on the same axis, as in `axes.axis_index`; else the only one on another axis
        before = [j for j in range(i) if owner[j] == owner[i] and leaves[j].name == name]
        elsewhere = [j for j in range(len(leaves)) if owner[j] != owner[i] and leaves[j].name == name]
        if not before and len(elsewhere) != 1:
            raise MatchError(f"site '{site}': cannot tell which '{name}' the nested atom '{atom.name}' belongs to")
        outer.append(before[-1] if before else elsewhere[0])
    return Dim(atom.name, atom.size, atom.odd, tuple(outer), atom.within)
