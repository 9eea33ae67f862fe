"""Axis terms: what one dimension of a site's value is made of.

An axis is an :class:`Atom` (a set of interchangeable indices with a name and a size), a :class:`Product` of terms
(a flattened convolution output is channels x pixels, row-major: the last factor varies fastest) or a :class:`Sum` of
terms (concatenated features; the four gates of an LSTM are one atom four times). A *fixed* atom is never permuted.
An atom may be *nested* in others: it is then relabeled anew for each index of the outer atoms (the wreath product:
dimensions inside each attention head, units inside each expert).

Beside the order of units, their signs may change (:func:`Odd`), and an atom may stand for the dimensions of a space
that is rotated as a whole (:func:`Rotated`).
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pyro_align.errors import SymmetryError

Kind = Literal["permutation", "signed", "rotation", "centered rotation", "plane rotation"]
MARKS: dict[Kind, str] = {
    "permutation": "",
    "signed": "±",
    "rotation": "↻",
    "centered rotation": "↻₁",
    "plane rotation": "↻₂",
}
OPEN = -1  # the size of an atom until a hand-written symmetry meets shapes


@dataclass(frozen=True)
class Atom:
    """A set of ``size`` interchangeable indices, or the dimensions of a space that may be rotated.

    Attributes:
        name: The atom's name; axes that carry the same name are relabeled alike. Empty for an anonymous fixed axis.
        size: Number of indices; ``OPEN`` where a hand-written symmetry leaves it to the tensors' shapes.
        fixed: Whether the indices keep their places.
        within: Names of the atoms in which this one is nested, outermost first.
        kind: What moves along this axis: ``"permutation"``, the order of the units; ``"signed"``, the order, and the
            values change sign with their units; ``"rotation"``, an orthogonal matrix acts;
            ``"centered rotation"``, one that leaves the vector of ones as it is (the mean, behind a LayerNorm);
            ``"plane rotation"``, one of two dimensions by an angle, without reflections (a pair of a rotary embedding).

    Example:
        >>> Atom("hidden", 128)
        Atom(name='hidden', size=128, fixed=False, within=(), kind='permutation')
    """

    name: str
    size: int = OPEN
    fixed: bool = False
    within: tuple[str, ...] = ()
    kind: Kind = "permutation"

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise SymmetryError(f"atom '{self.name}': kind must be one of {get_args(Kind)}, got {self.kind!r}")
        if self.kind == "plane rotation" and self.size != 2:
            raise SymmetryError(f"atom '{self.name}': a plane has 2 dimensions, got {self.size}")

    @property
    def odd(self) -> bool:
        """Whether the values along this axis change sign when a unit of the atom does."""
        return self.kind == "signed"

    def unsigned(self) -> Atom:
        """The same, along an axis whose values do not change sign."""
        return replace(self, kind="permutation") if self.odd else self

    @property
    def rotates(self) -> bool:
        """Whether orthogonal matrices act along this axis."""
        return self.kind in ("rotation", "centered rotation", "plane rotation")

    @property
    def centered(self) -> bool:
        """Whether these matrices leave the vector of ones as it is."""
        return self.kind == "centered rotation"

    def __str__(self) -> str:
        if not self.name:
            return "1" if self.size == 1 else f"fixed {shown_size(self.size)}"
        return f"{MARKS[self.kind]}{self.name}" + ("!" if self.fixed else "")


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
AxisLike = Axis | str | int | None | tuple[Any, ...] | list[Any]


def Fixed(size: int | None = None) -> Atom:
    """An anonymous axis whose indices keep their places.

    Example:
        >>> print(Fixed(10))
        fixed 10
    """
    return Atom("", OPEN if size is None else size, fixed=True)


def Odd(name: str, size: int | None = None) -> Atom:
    """An atom along which the site's value changes sign together with the unit (signed permutations).

    Example:
        >>> print(Odd("hidden"))
        ±hidden
    """
    return Atom(name, OPEN if size is None else size, kind="signed")


def Rotated(name: str, size: int | None = None, *, centered: bool = False, plane: bool = False) -> Atom:
    """An atom along which orthogonal matrices act: the factors of a factor model with spherical priors, say.

    Args:
        name: The atom's name.
        size: Number of dimensions, if it is known.
        centered: Whether the matrices leave the vector of ones as it is, as between layer normalizations.
        plane: Whether they are rotations of a plane by an angle, as of the pairs of a rotary embedding.

    Example:
        >>> print(Rotated("factor"))
        ↻factor
        >>> print(Rotated("stream", centered=True))
        ↻₁stream
    """
    kind: Kind = "plane rotation" if plane else "centered rotation" if centered else "rotation"
    return Atom(name, 2 if plane else OPEN if size is None else size, kind=kind)


def as_axis(spec: AxisLike) -> Axis:
    """Reads the short notation: a name is an atom, None or an int a fixed axis, a tuple a product, a list a sum."""
    if isinstance(spec, Atom | Product | Sum):
        return spec
    if spec is None:
        return Fixed()
    if isinstance(spec, int) and not isinstance(spec, bool):
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


def axis_size(axis: Axis) -> int:
    """Number of indices of an axis; ``OPEN`` while an atom's size is."""
    if isinstance(axis, Atom):
        return axis.size
    sizes = [axis_size(t) for t in children(axis)]
    if OPEN in sizes:
        return OPEN
    return math.prod(sizes) if isinstance(axis, Product) else sum(sizes)


def shown_size(size: int) -> str:
    """A size for reading; ``?`` while it is open."""
    return "?" if size == OPEN else str(size)


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


def map_atoms(axis: Axis, function: Callable[[Atom], Axis]) -> Axis:
    """The same term with every atom replaced by ``function(atom)``."""
    if isinstance(axis, Atom):
        return function(axis)
    return type(axis)(*(map_atoms(child, function) for child in children(axis)))


def with_sizes(axis: Axis, sizes: Mapping[str, int], size: int) -> Axis:
    """The same term with sizes filled in from ``sizes`` and, where one unknown remains, from the whole ``size``."""
    axis = map_atoms(axis, lambda a: replace(a, size=sizes[a.name]) if a.name in sizes else a)
    unknown = {a.name for a in leaves(axis) if a.size == OPEN}
    anonymous = [a for a in leaves(axis) if a.size == OPEN and not a.name]
    if len(unknown) == 1 and len(anonymous) <= 1:
        solved = _solve(axis, size)
        if solved is not None:
            axis = map_atoms(axis, lambda a: replace(a, size=solved) if a.size == OPEN else a)
    known = axis_size(axis)
    if known not in (OPEN, size):
        raise SymmetryError(f"the axis term '{axis}' has size {known}, the tensor has {size}")
    return axis


def _solve(axis: Axis, size: int) -> int | None:
    """The common size of the axis's unknown atoms that gives the whole axis ``size``, or None."""

    def measure(term: Axis, guess: int) -> int:
        if isinstance(term, Atom):
            return guess if term.size == OPEN else term.size
        parts = [measure(t, guess) for t in children(term)]
        return math.prod(parts) if isinstance(term, Product) else sum(parts)

    # the size of a term grows with its unknown, so bisection finds it
    guess = 1 + bisect.bisect_left(range(1, size), size, key=lambda n: measure(axis, n))
    return guess if measure(axis, guess) == size else None


def coordinates(axis: Axis) -> dict[str, Tensor]:
    """For each named atom that appears once on the axis, or once in each term of a sum, its index at every position.

    A position at which the atom is absent or appears more than once holds -1.
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
