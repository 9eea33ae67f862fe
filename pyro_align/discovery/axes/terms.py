"""Axis terms under inference: union-find with structure.

While a graph is read, an axis is a :class:`Var` (a set of indices about which nothing is known yet), a :class:`Prod`
(row-major), a :class:`Cat`, or :class:`Uniform`: an axis along which the tensor does not vary, so that any relabeling
leaves it alone (an expanded scalar, a constant of equal entries). Merging two terms says that they must be relabeled
alike; a variable merged with a structure takes that structure; structures that do not fit together are fixed, which is
always sound.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pyro_align.discovery.axes.causes import Cause, current

_counter = itertools.count()


class Var:
    """A set of indices.

    ``bound`` holds the structure it turned out to have, or the variable it was united with; ``cause`` what made it,
    and, once it is fixed, what fixed it.
    """

    bound: Any  # the term that stands for the variable, once there is one
    cause: Cause | None
    fixed: bool
    size: int
    uid: int

    __slots__ = ("bound", "cause", "fixed", "size", "uid")

    def __init__(self, size: int, *, fixed: bool = False, cause: Cause | None = None):
        self.size, self.fixed, self.bound, self.uid = size, fixed, None, next(_counter)
        self.cause = cause or current()

    def __repr__(self) -> str:
        return f"{'F' if self.fixed else 'v'}{self.uid}({self.size})"


@dataclass(frozen=True)
class Uniform:
    """An axis along which the tensor is constant."""

    size: int


@dataclass(frozen=True)
class Prod:
    """A flattened product, last factor fastest."""

    factors: tuple[Any, ...]


@dataclass(frozen=True)
class Cat:
    """A concatenation."""

    terms: tuple[Any, ...]


Term = Var | Uniform | Prod | Cat
ONE = Uniform(1)


def size_of(term: Term) -> int:
    """Number of indices."""
    if isinstance(term, Var | Uniform):
        return term.size
    if isinstance(term, Prod):
        return math.prod(size_of(f) for f in term.factors)
    return sum(size_of(t) for t in term.terms)


def product(factors: Sequence[Term]) -> Term:
    """The normal form of a product: flat, without factors of size one, a leading concatenation distributed."""
    flat: list[Term] = []
    for factor in map(resolve, factors):
        for f in factor.factors if isinstance(factor, Prod) else (factor,):
            if size_of(f) == 1:
                continue
            if flat and isinstance(f, Uniform) and isinstance(flat[-1], Uniform):
                flat[-1] = Uniform(flat[-1].size * f.size)
            else:
                flat.append(f)
    if not flat:
        return ONE
    if len(flat) == 1:
        return flat[0]
    if isinstance(flat[0], Cat):
        return concat([product([t, *flat[1:]]) for t in flat[0].terms])
    return Prod(tuple(flat))


def concat(terms: Sequence[Term]) -> Term:
    """The normal form of a concatenation: flat, without empty terms.

    Neighboring uniform terms stay apart: each is constant along itself, but not with the same value.
    """
    flat: list[Term] = []
    for term in map(resolve, terms):
        flat.extend(term.terms if isinstance(term, Cat) else (term,))
    flat = [t for t in flat if size_of(t)]
    if not flat:
        return Uniform(0)
    return flat[0] if len(flat) == 1 else Cat(tuple(flat))


def resolve(term: Term) -> Term:
    """The term with everything known about its variables filled in."""
    if isinstance(term, Var):
        if term.bound is None:
            return term
        term.bound = resolve(term.bound)
        return term.bound
    if isinstance(term, Prod):
        return product(term.factors)
    if isinstance(term, Cat):
        return concat(term.terms)
    return term


def variables(term: Term) -> Iterator[Var]:
    """The variables of a resolved term, left to right, repeated ones included."""
    if isinstance(term, Var):
        yield term
    elif isinstance(term, Prod):
        for f in term.factors:
            yield from variables(f)
    elif isinstance(term, Cat):
        for t in term.terms:
            yield from variables(t)


def fix(term: Term, cause: Cause | None = None) -> None:
    """Keeps every index of the term in its place, because of what is being read unless a cause is given."""
    for var in variables(resolve(term)):
        if not var.fixed:
            var.fixed, var.cause = True, cause or current()


def has_uniform(term: Term) -> bool:
    """Whether the tensor is constant along some part of the axis."""
    term = resolve(term)
    if isinstance(term, Uniform):
        return term.size > 1
    return any(
        map(has_uniform, term.factors if isinstance(term, Prod) else term.terms if isinstance(term, Cat) else ())
    )


def is_fixed(term: Term) -> bool:
    """Whether no index of the term can move (uniform axes count as movable)."""
    term = resolve(term)
    if isinstance(term, Uniform):
        return term.size == 1
    parts = term.factors if isinstance(term, Prod) else term.terms if isinstance(term, Cat) else None
    if parts is None:
        return term.fixed or term.size == 1
    return all(map(is_fixed, parts))


def instantiate(term: Term) -> Term:
    """The term with fresh variables in place of its uniform parts: a variable's structure holds for every tensor."""
    if isinstance(term, Uniform):
        return Var(term.size)
    if isinstance(term, Prod):
        return product([instantiate(f) for f in term.factors])
    if isinstance(term, Cat):
        return concat([instantiate(t) for t in term.terms])
    return term
