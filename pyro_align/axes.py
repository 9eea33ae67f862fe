"""Axis terms: what one dimension of a site's value is made of.

An axis is an :class:`Atom` (a set of interchangeable indices with a name and a size), a :class:`Product` of terms
(a flattened convolution output is channels x pixels, row-major: the last factor varies fastest) or a :class:`Sum` of
terms (concatenated features; the four gates of an LSTM are one atom four times). A *fixed* atom is never permuted.
An atom may be *nested* in others: it is then relabeled anew for each index of the outer atoms (the wreath product:
dimensions inside each attention head, units inside each expert).

Relabeling an axis is indexing. Every function here speaks of *new* positions: ``new[i] == old[index[i]]``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyro_align.errors import SymmetryError


@dataclass(frozen=True)
class Atom:
    """A set of ``size`` interchangeable indices.

    Attributes:
        name: The atom's name; axes that carry the same name are relabeled alike. Empty for an anonymous fixed axis.
        size: Number of indices, or None where a hand-written symmetry leaves it to the tensors' shapes.
        fixed: Whether the indices keep their places.
        within: Names of the atoms in which this one is nested, outermost first.
        odd: Whether the values along this axis change sign when a unit of the atom does (signed permutations).

    Example:
        >>> Atom("hidden", 128)
        Atom(name='hidden', size=128, fixed=False, within=(), odd=False)
    """

    name: str
    size: int | None = None
    fixed: bool = False
    within: tuple[str, ...] = ()
    odd: bool = False

    def __str__(self) -> str:
        if not self.name:
            return "1" if self.size == 1 else f"fixed {'?' if self.size is None else self.size}"
        sign = "±" if self.odd else ""
        return f"{sign}{self.name}" + ("!" if self.fixed else "")


@dataclass(frozen=True)
class Product:
    """A flattened product of terms, row-major: the last factor varies fastest.

    Example:
        >>> print(Product("channels", 49))
        channels x fixed 49
    """

    factors: tuple[Axis, ...]

    def __init__(self, *factors: AxisLike):
        object.__setattr__(self, "factors", tuple(as_axis(f) for f in factors))
        if len(self.factors) < 2:
            raise SymmetryError(f"a Product needs at least two factors, got {len(self.factors)}")

    def __str__(self) -> str:
        return " x ".join(f"({f})" if isinstance(f, Sum) else str(f) for f in self.factors)


@dataclass(frozen=True)
class Sum:
    """A concatenation of terms.

    Example:
        >>> print(Sum("encoder", "decoder"))
        encoder + decoder
    """

    terms: tuple[Axis, ...]

    def __init__(self, *terms: AxisLike):
        object.__setattr__(self, "terms", tuple(as_axis(t) for t in terms))
        if len(self.terms) < 2:
            raise SymmetryError(f"a Sum needs at least two terms, got {len(self.terms)}")

    def __str__(self) -> str:
        return " + ".join(str(t) for t in self.terms)


Axis = Atom | Product | Sum
AxisLike = Axis | str | int | None | tuple | list


def Fixed(size: int | None = None) -> Atom:
    """An anonymous axis whose indices keep their places.

    Example:
        >>> print(Fixed(10))
        fixed 10
    """
    return Atom("", size, fixed=True)


def Odd(name: str, size: int | None = None) -> Atom:
    """An atom along which the site's value changes sign together with the unit (signed permutations).

    Example:
        >>> print(Odd("hidden"))
        ±hidden
    """
    return Atom(name, size, odd=True)


def as_axis(spec: AxisLike) -> Axis:
    """Reads the short notation: a name is an atom, None or an int a fixed axis, a tuple a product, a list a sum."""
    if isinstance(spec, Atom | Product | Sum):
        return spec
    if spec is None:
        return Fixed()
    if isinstance(spec, bool):
        raise SymmetryError(f"an axis is a name, None, an int, a tuple (product) or a list (sum); got {spec!r}")
    if isinstance(spec, int):
        return Fixed(spec)
    if isinstance(spec, str):
        if not spec:
            raise SymmetryError("an atom's name may not be empty; use None for an axis that keeps its order")
        return Atom(spec)
    if isinstance(spec, tuple):
        return Product(*spec)
    if isinstance(spec, list):
        return Sum(*spec)
    raise SymmetryError(f"an axis is a name, None, an int, a tuple (product) or a list (sum); got {spec!r}")


def axis_size(axis: Axis) -> int | None:
    """Number of indices of an axis, or None while an atom's size is unknown."""
    if isinstance(axis, Atom):
        return axis.size
    sizes = [axis_size(t) for t in children(axis)]
    if any(s is None for s in sizes):
        return None
    return math.prod(sizes) if isinstance(axis, Product) else sum(sizes)


def children(axis: Axis) -> tuple[Axis, ...]:
    """The terms directly below an axis term; none below an atom."""
    if isinstance(axis, Product):
        return axis.factors
    if isinstance(axis, Sum):
        return axis.terms
    return ()


def leaves(axis: Axis) -> Iterator[Atom]:
    """The atoms of an axis from left to right, repeated ones included."""
    if isinstance(axis, Atom):
        yield axis
    for child in children(axis):
        yield from leaves(child)


def map_atoms(axis: Axis, function) -> Axis:
    """The same term with every atom replaced by ``function(atom)``."""
    if isinstance(axis, Atom):
        return function(axis)
    return type(axis)(*(map_atoms(child, function) for child in children(axis)))


def with_sizes(axis: Axis, sizes: Mapping[str, int], size: int) -> Axis:
    """The same term with sizes filled in from ``sizes`` and, where one unknown remains, from the whole ``size``.

    Raises:
        SymmetryError: The term cannot have that size.
    """
    axis = map_atoms(axis, lambda a: replace(a, size=sizes[a.name]) if a.name in sizes else a)
    unknown = {a.name for a in leaves(axis) if a.size is None}
    anonymous = [a for a in leaves(axis) if a.size is None and not a.name]
    if len(unknown) == 1 and len(anonymous) <= 1:
        solved = _solve(axis, size)
        if solved is not None:
            axis = map_atoms(axis, lambda a: replace(a, size=solved) if a.size is None else a)
    known = axis_size(axis)
    if known is not None and known != size:
        raise SymmetryError(f"the axis term '{axis}' has size {known}, the tensor has {size}")
    return axis


def _solve(axis: Axis, size: int) -> int | None:
    """The common size of the axis's unknown atoms that gives the whole axis ``size``, or None."""

    def measure(term: Axis, guess: int) -> int:
        if isinstance(term, Atom):
            return guess if term.size is None else term.size
        parts = [measure(t, guess) for t in children(term)]
        return math.prod(parts) if isinstance(term, Product) else sum(parts)

    low, high = 1, size  # the size of a term grows with its unknown, so bisection finds it
    while low < high:
        middle = (low + high) // 2
        if measure(axis, middle) < size:
            low = middle + 1
        else:
            high = middle
    return low if measure(axis, low) == size else None


def coordinates(axis: Axis) -> dict[str, Tensor]:
    """For each named atom that stands once on the axis, or once in each term of a sum, its index at every position.

    A position at which the atom is absent or stands more than once holds -1.

    Returns:
        Atom name -> int64 tensor ``(size,)``.
    """
    if isinstance(axis, Atom):
        return {axis.name: torch.arange(axis.size, device="cpu")} if axis.name else {}
    parts = [(axis_size(t), coordinates(t)) for t in children(axis)]
    names = {name for _, part in parts for name in part}
    if isinstance(axis, Sum):
        return {
            name: torch.cat([part[name] if name in part else torch.full((n,), -1, device="cpu") for n, part in parts])
            for name in names
        }
    found: dict[str, Tensor] = {}
    before, total = 1, axis_size(axis)
    for n, part in parts:
        after = total // (before * n)
        for name, index in part.items():
            spread = index.repeat_interleave(after).repeat(before)
            if name in found:
                both = (found[name] >= 0) & (spread >= 0)
                spread = torch.where(both, -1, torch.maximum(found[name], spread))
            found[name] = spread
        before *= n
    return found


def external(axis: Axis, inside: frozenset[str] = frozenset()) -> set[str]:
    """Names of outer atoms that the axis's nested atoms depend on and that are not found further up the same term."""
    if isinstance(axis, Atom):
        return set() if axis.fixed else set(axis.within) - inside
    if isinstance(axis, Sum):
        return set().union(*(external(t, inside) for t in axis.terms))
    missing: set[str] = set()
    for factor in axis.factors:
        missing |= external(factor, inside)
        inside = inside | {a.name for a in leaves(factor)}
    return missing


def axis_index(axis: Axis, indices: Mapping[str, Tensor], outer: Mapping[str, Tensor]) -> Tensor:
    """Where each new position of an axis comes from.

    Args:
        axis: The axis term, sizes known.
        indices: Free atom -> index tensor ``(*outer sizes, size)``; an atom without an entry keeps its order.
        outer: Outer atom -> new index of that atom, tensors of one common shape ``(*batch,)``.

    Returns:
        int64 tensor ``(*batch, size)``.
    """
    batch = next((tuple(t.shape) for t in outer.values()), ())
    if isinstance(axis, Atom):
        index = None if axis.fixed else indices.get(axis.name)
        if index is None:
            return torch.arange(axis.size, device="cpu").expand(*batch, axis.size)
        if axis.within:
            return index[tuple(outer[o] for o in axis.within)]
        return index.expand(*batch, axis.size)
    if isinstance(axis, Sum):
        parts, offset = [], 0
        for term in axis.terms:
            parts.append(axis_index(term, indices, outer) + offset)
            offset += axis_size(term)
        return torch.cat(parts, dim=-1)
    head, rest = axis.factors[0], _rest(axis)
    lead = axis_index(head, indices, outer)
    tail = axis_index(rest, indices, _descend(head, outer, batch))
    return (lead.unsqueeze(-1) * axis_size(rest) + tail.reshape(*lead.shape, -1)).flatten(-2)


def axis_sign(axis: Axis, signs: Mapping[str, Tensor], outer: Mapping[str, Tensor]) -> Tensor | None:
    """The sign of each new position of an axis, ``(*batch, size)`` of +-1, or None where no odd atom has a sign."""
    batch = next((tuple(t.shape) for t in outer.values()), ())
    if isinstance(axis, Atom):
        sign = signs.get(axis.name) if axis.odd else None
        if sign is None:
            return None
        return sign[tuple(outer[o] for o in axis.within)] if axis.within else sign.expand(*batch, axis.size)
    if isinstance(axis, Sum):
        parts = [(axis_sign(t, signs, outer), axis_size(t)) for t in axis.terms]
        if all(s is None for s, _ in parts):
            return None
        return torch.cat(
            [torch.ones(*batch, n, dtype=torch.int8, device="cpu") if s is None else s for s, n in parts], dim=-1
        )
    head, rest = axis.factors[0], _rest(axis)
    lead = axis_sign(head, signs, outer)
    tail = axis_sign(rest, signs, _descend(head, outer, batch))
    if lead is None and tail is None:
        return None
    n, m = axis_size(head), axis_size(rest)
    lead = torch.ones(*batch, n, dtype=torch.int8, device="cpu") if lead is None else lead
    tail = torch.ones(*batch, n, m, dtype=torch.int8, device="cpu") if tail is None else tail.reshape(*batch, n, m)
    return (lead.unsqueeze(-1) * tail).flatten(-2)


def _rest(axis: Product) -> Axis:
    return axis.factors[1] if len(axis.factors) == 2 else Product(*axis.factors[1:])


def _descend(head: Axis, outer: Mapping[str, Tensor], batch: tuple[int, ...]) -> dict[str, Tensor]:
    """The outer coordinates seen by the factors that follow ``head``."""
    n = axis_size(head)
    seen = {name: t.unsqueeze(-1).expand(*batch, n) for name, t in outer.items()}
    seen.update({name: c.expand(*batch, n) for name, c in coordinates(head).items()})
    if not seen:  # an anonymous fixed head still multiplies the batch
        seen[""] = torch.arange(n, device="cpu").expand(*batch, n)
    return seen
