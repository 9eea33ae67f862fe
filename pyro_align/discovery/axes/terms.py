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

_counter = itertools.count()


class Var:
    """A set of indices. ``bound`` holds the structure it turned out to have, or the variable it was united with."""

    __slots__ = ("bound", "fixed", "size", "uid")

    def __init__(self, size: int, *, fixed: bool = False):
        self.size, self.fixed, self.bound, self.uid = size, fixed, None, next(_counter)

    def __repr__(self) -> str:
        return f"{'F' if self.fixed else 'v'}{self.uid}({self.size})"


@dataclass(frozen=True)
class Uniform:
    """An axis along which the tensor is constant."""

    size: int


@dataclass(frozen=True)
class Prod:
    """A flattened product, last factor fastest."""

    factors: tuple


@dataclass(frozen=True)
class Cat:
    """A concatenation."""

    terms: tuple


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


def fix(term: Term) -> None:
    """Keeps every index of the term in its place."""
    for var in variables(resolve(term)):
        var.fixed = True


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


def merge(a: Term, b: Term) -> Term:
    """Says that two axes are relabeled alike; returns what both now are.

    A uniform axis goes along with any relabeling, so it says nothing about its partner.
    """
    a, b = resolve(a), resolve(b)
    if a is b:
        return a
    if size_of(a) != size_of(b):
        raise ValueError(f"cannot merge axes of sizes {size_of(a)} and {size_of(b)}")
    if isinstance(a, Uniform):
        return b
    if isinstance(b, Uniform):
        return a
    if isinstance(a, Var):
        return _bind(a, b)
    if isinstance(b, Var):
        return _bind(b, a)
    merged = _merge_runs(a, b) or _merge_runs(b, a)
    if merged is None:
        merged = _merge_cats(a, b) if isinstance(a, Cat) or isinstance(b, Cat) else _merge_prods(a, b)
    if merged is None:
        fix(a)
        fix(b)
        return Var(size_of(a), fixed=True)  # neither term: each may hold a uniform part where the other varies
    return merged


def _bind(var: Var, term: Term) -> Term:
    if isinstance(term, Var):
        term.fixed = term.fixed or var.fixed
        var.bound = term
        return term
    if any(v is var for v in variables(term)):  # a part cannot equal its whole unless nothing moves
        fix(term)
        return var
    term = instantiate(term)
    if var.fixed:
        fix(term)
    var.bound = term
    return resolve(term)


def instantiate(term: Term) -> Term:
    """The term with fresh variables in place of its uniform parts: a variable's structure holds for every tensor."""
    if isinstance(term, Uniform):
        return Var(term.size)
    if isinstance(term, Prod):
        return product([instantiate(f) for f in term.factors])
    if isinstance(term, Cat):
        return concat([instantiate(t) for t in term.terms])
    return term


def split(term: Term, sizes: Sequence[int]) -> list[Term] | None:
    """Cuts an axis into consecutive pieces, giving variables the structure this needs; None where it cannot."""
    pieces: list[Term] = []
    rest = resolve(term)
    for size in sizes[:-1]:
        cut = _cut(rest, size)
        if cut is None:
            return None
        piece, rest = cut
        pieces.append(piece)
    pieces.append(rest)
    return [resolve(p) for p in pieces]


def _cut(term: Term, at: int) -> tuple[Term, Term] | None:
    term = resolve(term)
    n = size_of(term)
    if at == 0:
        return Uniform(0), term
    if at == n:
        return term, Uniform(0)
    if isinstance(term, Uniform):
        return Uniform(at), Uniform(n - at)
    if isinstance(term, Var):
        head, tail = Var(at, fixed=term.fixed), Var(n - at, fixed=term.fixed)
        term.bound = concat([head, tail])
        return head, tail
    if isinstance(term, Cat):
        done: list[Term] = []
        for i, part in enumerate(term.terms):
            m = size_of(part)
            if at < m:
                cut = _cut(part, at)
                if cut is None:
                    return None
                return concat([*done, cut[0]]), concat([cut[1], *term.terms[i + 1 :]])
            done.append(part)
            at -= m
            if at == 0:
                return concat(done), concat(term.terms[i + 1 :])
    head, *rest = term.factors
    inner = product(rest)
    if at % size_of(inner):
        return (Var(at, fixed=True), Var(n - at, fixed=True)) if is_fixed(term) else None
    cut = _cut(head, at // size_of(inner))
    if cut is None:
        return None
    return product([cut[0], inner]), product([cut[1], inner])


def _merge_runs(runs: Term, whole: Term) -> Term | None:
    """A tensor constant along blocks meets a product whose inner factors lie within the blocks: only the head is told.

    Cutting the product instead would leave the head in pieces, and what is nested in it without an index to follow.
    """
    if not (isinstance(runs, Cat) and isinstance(whole, Prod) and all(map(_is_run, runs.terms))):
        return None
    head, inner = whole.factors[0], size_of(product(whole.factors[1:]))
    lengths = [size_of(t) for t in runs.terms]
    if any(n % inner for n in lengths):
        return None
    if set(lengths) == {inner}:
        fix(head)
    else:
        merge(head, concat([Uniform(n // inner) if n > inner else Var(1, fixed=True) for n in lengths]))
    return resolve(whole)


def _merge_leading_runs(rest: Term, whole: Term) -> Term | None:
    """The same where blocks and product are the first pieces of longer concatenations."""
    if not (isinstance(rest, Cat) and isinstance(whole, Prod)):
        return None
    left, count = size_of(whole), 0
    while left > 0:
        left -= size_of(rest.terms[count])
        count += 1
    return _merge_runs(concat(rest.terms[:count]), whole) if left == 0 else None


def _is_run(term: Term) -> bool:
    return isinstance(term, Uniform) or size_of(term) == 1


def _merge_cats(a: Term, b: Term) -> Term | None:
    """Merges piece by piece, cutting where the boundaries of the two differ."""
    merged: list[Term] = []
    rest_a, rest_b = a, b
    while size_of(rest_a):
        rest_a, rest_b = resolve(rest_a), resolve(rest_b)
        head_a = rest_a.terms[0] if isinstance(rest_a, Cat) else rest_a
        head_b = rest_b.terms[0] if isinstance(rest_b, Cat) else rest_b
        told = _merge_leading_runs(rest_a, head_b) or _merge_leading_runs(rest_b, head_a)
        n = size_of(told) if told else min(size_of(head_a), size_of(head_b))
        cut_a, cut_b = _cut(rest_a, n), _cut(rest_b, n)
        if cut_a is None or cut_b is None:
            return None
        merged.append(told or merge(resolve(cut_a[0]), resolve(cut_b[0])))
        rest_a, rest_b = cut_a[1], cut_b[1]
    return concat(merged)


def _merge_prods(a: Term, b: Term) -> Term | None:
    """Merges factor by factor, splitting a factor where the other product is finer."""
    left, right = list(_factors(a)), list(_factors(b))
    merged: list[Term] = []
    while left and right:
        x, y = resolve(left.pop(0)), resolve(right.pop(0))
        if isinstance(x, Prod):
            left[:0] = x.factors
            right.insert(0, y)
            continue
        if isinstance(y, Prod):
            right[:0] = y.factors
            left.insert(0, x)
            continue
        n, m = size_of(x), size_of(y)
        if n == m:
            merged.append(merge(x, y))
            continue
        swap = n > m
        if swap:
            x, y, n, m = y, x, m, n
        parts = _factorize(y, n)
        if parts is None:
            return None
        merged.append(merge(x, parts[0]))
        (left if swap else right).insert(0, parts[1])
    return product(merged)


def _factors(term: Term) -> tuple[Term, ...]:
    return term.factors if isinstance(term, Prod) else (term,)


def _factorize(term: Term, lead: int) -> tuple[Term, Term] | None:
    """Splits one factor into ``lead`` x the rest."""
    n = size_of(term)
    if n % lead:
        return None
    if isinstance(term, Uniform):
        return Uniform(lead), Uniform(n // lead)
    if isinstance(term, Var):
        head, tail = Var(lead, fixed=term.fixed), Var(n // lead, fixed=term.fixed)
        term.bound = product([head, tail])
        return head, tail
    if is_fixed(term):  # nothing moves, so any cut will do
        return Var(lead, fixed=True), Var(n // lead, fixed=True)
    if isinstance(term, Cat):  # equal pieces, one for each index of a leading factor that keeps its order
        head, tail = Var(lead, fixed=True), Var(n // lead)
        pieces = split(term, [n // lead] * lead)
        if pieces is None:
            return None
        for piece in pieces:
            merge(tail, piece)
        return head, resolve(tail)
    return None


def reshape(terms: Sequence[Term], shape: Sequence[int]) -> list[Term]:
    """The axes of a tensor after ``view``: products are split and joined; what does not divide is fixed."""
    queue = [t for t in map(resolve, terms) if size_of(t) != 1]
    sizes = list(shape)
    if math.prod(map(size_of, queue)) == 0:
        return [Var(n, fixed=True) for n in sizes]
    out: list[Term] = []
    while len(out) < len(sizes):
        got, fits = _take(queue, sizes[len(out)])
        if fits:
            out.append(product(got))
        else:
            out += _give_up(got, queue, sizes[len(out) :])
    return out


def _take(queue: list[Term], want: int) -> tuple[list[Term], bool]:
    """Takes terms of total size ``want`` from the queue, or, where none fit, as many as it takes to exceed it."""
    got: list[Term] = []
    have = 1
    while have < want:
        term = resolve(queue.pop(0))
        if isinstance(term, Prod):
            queue[:0] = term.factors
            continue
        n = size_of(term)
        if n == 1:
            continue
        need = want // have
        divides = want % have == 0
        if divides and n > need:
            parts = _factorize(term, need)
            if parts is not None:
                queue[:0] = parts
                continue
        got.append(term)
        have *= n
        if not divides or need % n:
            return got, False
    return got, True


def _give_up(got: list[Term], queue: list[Term], sizes: Sequence[int]) -> list[Term]:
    """Fixes the terms whose indices cannot be written as products that fit, up to where both sides agree again."""
    have, want, out = math.prod(map(size_of, got)), 1, []
    for n in sizes:
        out.append(Var(n, fixed=True) if n != 1 else ONE)
        want *= n
        while have < want:
            term = resolve(queue.pop(0))
            got.append(term)
            have *= size_of(term)
        if have == want:
            break
    for term in got:
        fix(term)
    return out
