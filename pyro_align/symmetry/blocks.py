"""Blocks: a site's tensor seen as pieces whose every dimension is one atom.

Axis terms are trees of products and sums. Splitting products and narrowing to the terms of sums turns each site into a
few views, without copying, whose dimensions are plain atoms. An element acts on a block with one step for each free
dimension, and all matchers work on blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

from torch import Tensor

from pyro_align.axes import Atom, Axis, Fixed, Kind, Product, Sum, axis_size
from pyro_align.errors import SymmetryError

_RUN = 1 << 22  # entries worked on at a time, where an axis of fixed order lets a site be cut
_SLAB = 1 << 17  # entries summed at a time, so that what is made on the way stays in the processor's cache


@dataclass(frozen=True)
class Dim:
    """One dimension of a block."""

    name: str  # the free atom along it, or ``""`` where the order is kept
    size: int
    kind: Kind = "permutation"  # what moves along it, see :class:`~pyro_align.axes.Atom`
    # positions, in the block, of the dimensions of the atoms around this one, outermost first
    outer: tuple[int, ...] = ()
    around: tuple[str, ...] = ()  # names of those atoms

    @property
    def odd(self) -> bool:
        """Whether values change sign with the atom's units here."""
        return self.kind == "signed"


@dataclass(frozen=True, eq=False)
class Block:
    """One piece of a site."""

    site: str
    dims: tuple[Dim, ...]  # one entry per dimension of the view
    # how the view is cut from the site's tensor: ``("split", dim, sizes)`` and ``("narrow", dim, start, n)``
    steps: tuple[tuple[Any, ...], ...] = ()

    def view(self, value: Tensor, batch_dims: int = 0) -> Tensor:
        """The piece of the site's tensor ``(*batch, *site_shape)``, sharing its memory."""
        for kind, dim, *rest in self.steps:
            if kind == "split":
                value = value.unflatten(batch_dims + dim, rest[0])
            else:
                value = value.narrow(batch_dims + dim, *rest)
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
    def plans(self) -> dict[Any, Any]:
        """What has been worked out about the block, by what it is for."""
        return {}

    def inside(self, position: int) -> tuple[int, ...]:
        """The dimensions nested, directly or not, in the one at ``position``, outer ones first."""
        found = [i for i, d in enumerate(self.dims) if position in d.outer]
        return tuple(sorted(found, key=lambda i: len(self.dims[i].outer)))


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


def _pieces(term: Axis) -> list[tuple[list[tuple[Any, ...]], list[Atom]]]:
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


def _shifted(steps: Sequence[tuple[Any, ...]], by: int) -> list[tuple[Any, ...]]:
    return [(kind, dim + by, *rest) for kind, dim, *rest in steps]


def _dim(site: str, leaves: Sequence[Atom], owner: Sequence[int], i: int) -> Dim:
    atom = leaves[i]
    if atom.fixed or not atom.name:
        return Dim("", atom.size)
    outer = []
    for name in atom.within:
        # the nearest one before it on the same axis; else the only one behind it or on another axis
        before = [j for j in range(i) if owner[j] == owner[i] and leaves[j].name == name]
        elsewhere = [j for j in range(len(leaves)) if leaves[j].name == name]
        if not before and len(elsewhere) != 1:
            raise SymmetryError(
                f"site '{site}': '{atom.name}' is nested in '{name}', so every part of the site that carries it needs "
                f"'{name}' before it on the same axis, or once elsewhere; found {len(elsewhere)}"
            )
        outer.append(before[-1] if before else elsewhere[0])
    return Dim(atom.name, atom.size, atom.kind, tuple(outer), atom.within)
