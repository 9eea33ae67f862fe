"""Which atoms are nested in which: the wreath products.

An atom may be relabeled anew for each index of another one if every tensor in which it appears, those met on the way
through an operation included, tells that index exactly once for each of its entries. A contraction witnesses the full
product of its operands, a softmax the tensor without its axis, so one test per tensor covers every operation.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from functools import reduce

from pyro_align.discovery.axes.terms import Cat, Prod, Term, Var, resolve, variables


def nested(tensors: Iterable[Sequence[Term]], rank: dict[Var, int]) -> dict[Var, tuple[Var, ...]]:
    """Free variable -> the variables it is nested in, outermost first; fixed ones come first in ``rank``."""
    within = _without_mutual(told_everywhere(tensors, rank), rank)
    while sum(_closed(within, var) for var in within):
        pass
    return {
        var: tuple(sorted(outer, key=lambda o: (len(within.get(o, ())), rank[o])))
        for var, outer in within.items()
        if outer
    }


def told_everywhere(tensors: Iterable[Sequence[Term]], known: Collection[Var]) -> dict[Var, set[Var]]:
    """Free variable -> the known variables that are told exactly once at each of its occurrences."""
    found: dict[Var, set[Var]] = {}
    for axes in {tuple(resolve(t) for t in tensor) for tensor in tensors}:
        for var, outer in _outer_of(axes):
            found[var] = found[var] & outer if var in found else outer.intersection(known)
    return {var: outer for var, outer in found.items() if var in known}


def _without_mutual(told: dict[Var, set[Var]], rank: dict[Var, int]) -> dict[Var, set[Var]]:
    """Where each of two variables could be nested in the other, the one that appears first is the outer one."""
    return {var: {o for o in outer if var not in told.get(o, ()) or rank[o] < rank[var]} for var, outer in told.items()}


def _closed(within: dict[Var, set[Var]], var: Var) -> bool:
    """Removes outer variables whose own outer variables are not around the inner one too; whether there were any."""
    outer = within[var]
    bad = {o for o in outer if not within.get(o, set()) <= outer - {o} or var in within.get(o, ())}
    within[var] = outer - bad
    return bool(bad)


def _outer_of(axes: Sequence[Term]):
    """For each occurrence of a free variable, the variables whose index is told exactly once beside it."""
    names = {v for t in axes for v in variables(t) if v.size > 1}
    free = [v for v in names if not v.fixed]
    if not free:
        return
    cover = [{o: _cover(t, o) for o in names} for t in axes]
    for i, term in enumerate(axes):
        other_axes = [c for j, c in enumerate(cover) if j != i]
        for var, beside in _walk(term, {}):
            if var.fixed or var.size == 1:
                continue
            told = {o: reduce(_add, (c[o] for c in other_axes), beside.get(o, 0)) for o in names if o is not var}
            yield var, {o for o, count in told.items() if count == 1}


def _add(a: int, b: int) -> int:
    return -1 if a < 0 or b < 0 else a + b


def _cover(term: Term, var: Var) -> int:
    """How often every position of an axis tells the variable's index: 0, 1, 2, ...; -1 where positions differ."""
    if isinstance(term, Prod):
        total = 0
        for f in term.factors:
            total = _add(total, _cover(f, var))
        return total
    if isinstance(term, Cat):
        counts = {_cover(t, var) for t in term.terms}
        return counts.pop() if len(counts) == 1 else -1
    return int(term is var)


def _walk(term: Term, beside: dict[Var, int]):
    """The variables of an axis, each with how often the factors around it tell each other variable."""
    if isinstance(term, Var):
        yield term, beside
    elif isinstance(term, Cat):
        for t in term.terms:
            yield from _walk(t, beside)
    elif isinstance(term, Prod):
        for i, factor in enumerate(term.factors):
            around = dict(beside)
            for j, other in enumerate(term.factors):
                if j == i:
                    continue
                for var in set(variables(other)):
                    around[var] = _add(around.get(var, 0), _cover(other, var))
            yield from _walk(factor, around)
