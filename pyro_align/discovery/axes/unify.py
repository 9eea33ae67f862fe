"""Unification of axis terms: merging two says that they are relabeled alike, cutting one gives it structure.

A variable merged with a structure takes that structure; structures that do not fit together are fixed, which is always
sound.
"""

from __future__ import annotations

from collections.abc import Sequence

from pyro_align.discovery.axes.causes import giving_up, tied
from pyro_align.discovery.axes.terms import (
    Cat,
    Prod,
    Term,
    Uniform,
    Var,
    concat,
    fix,
    instantiate,
    is_fixed,
    product,
    resolve,
    size_of,
    variables,
)


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
        with giving_up():
            fix(a)
            fix(b)
            return Var(size_of(a), fixed=True)  # neither term: each may hold a uniform part where the other varies
    return merged


def _bind(var: Var, term: Term) -> Term:
    if isinstance(term, Var):
        if var.fixed:
            fix(term, tied(var.cause))
        var.bound = term
        return term
    if any(v is var for v in variables(term)):  # a part cannot equal its whole unless nothing moves
        with giving_up():
            fix(term)
        return var
    term = instantiate(term)
    if var.fixed:
        fix(term, tied(var.cause))
    var.bound = term
    return resolve(term)


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
        head, tail = _pieces(term, at, n - at)
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
        return _pieces(next(variables(term), None), at, n - at) if is_fixed(term) else None
    cut = _cut(head, at // size_of(inner))
    if cut is None:
        return None
    return product([cut[0], inner]), product([cut[1], inner])


def _pieces(var: Var | None, *sizes: int) -> tuple[Var, ...]:
    """Variables for the parts of one, fixed if it is, for the same cause; fixed for None."""
    fixed = var is None or var.fixed
    return tuple(Var(n, fixed=fixed, cause=var.cause if var is not None and fixed else None) for n in sizes)


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
    left, right, merged = list(factors_of(a)), list(factors_of(b)), []
    while left and right:
        x, y = _next_factor(left), _next_factor(right)
        n, m = size_of(x), size_of(y)
        if n != m:
            coarse, queue = (x, left) if n > m else (y, right)
            parts = factorize(coarse, min(n, m))
            if parts is None:
                return None
            queue.insert(0, parts[1])
            x, y = (parts[0], y) if n > m else (x, parts[0])
        merged.append(merge(x, y))
    return product(merged)


def _next_factor(queue: list[Term]) -> Term:
    """Takes the first factor of a product; a variable that became a product meanwhile is opened."""
    while isinstance(term := resolve(queue.pop(0)), Prod):
        queue[:0] = term.factors
    return term


def factors_of(term: Term) -> tuple[Term, ...]:
    return term.factors if isinstance(term, Prod) else (term,)


def factorize(term: Term, lead: int) -> tuple[Term, Term] | None:
    """Splits one factor into ``lead`` x the rest."""
    n = size_of(term)
    if n % lead:
        return None
    if isinstance(term, Uniform):
        return Uniform(lead), Uniform(n // lead)
    if isinstance(term, Var):
        head, tail = _pieces(term, lead, n // lead)
        term.bound = product([head, tail])
        return head, tail
    if is_fixed(term):  # nothing moves, so any cut will do
        return _pieces(next(variables(term), None), lead, n // lead)
    if isinstance(term, Cat) and (parts := _factorize_terms(term, n // lead)) is not None:
        return parts
    if isinstance(term, Cat):  # equal pieces, one for each index of a leading factor that keeps its order
        head, tail = Var(lead, fixed=True), Var(n // lead)
        pieces = split(term, [n // lead] * lead)
        if pieces is None:
            return None
        for piece in pieces:
            merge(tail, piece)
        return head, resolve(tail)
    return None


def _factorize_terms(term: Cat, inner: int) -> tuple[Term, Term] | None:
    """``(1 + k) x m`` from ``m + k x m``, where some piece has more than one index of the leading factor."""
    pieces = _multiples(term.terms, inner)
    if pieces is None or all(size_of(piece) == inner for piece in pieces):
        return None
    tail, heads = Var(inner), []
    for piece in pieces:
        count = size_of(piece) // inner
        parts = (Var(1, fixed=True), piece) if count == 1 else _leading(piece, count)
        if parts is None:
            return None
        heads.append(parts[0])
        merge(tail, parts[1])
    return concat(heads), resolve(tail)


def _multiples(terms: Sequence[Term], inner: int) -> list[Term] | None:
    """The terms of a concatenation, joined where it takes several to have a multiple of so many indices."""
    pieces, waiting = [], []
    for term in terms:
        waiting.append(term)
        if sum(map(size_of, waiting)) % inner == 0:
            pieces.append(concat(waiting))
            waiting = []
    return None if waiting or len(pieces) == 1 else pieces


def _leading(term: Term, lead: int) -> tuple[Term, Term] | None:
    """Splits ``lead`` indices off a factor or a product."""
    factors = list(factors_of(term))
    head = factors.pop(0)
    if size_of(head) == lead:
        return head, product(factors)
    return factorize(term, lead) if not factors else None
