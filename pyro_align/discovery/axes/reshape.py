"""What a view makes of the axes: products are split and joined."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pyro_align.discovery.axes.causes import giving_up
from pyro_align.discovery.axes.terms import ONE, Prod, Term, Var, fix, product, resolve, size_of
from pyro_align.discovery.axes.unify import factorize


def reshape(terms: Sequence[Term], shape: Sequence[int]) -> list[Term]:
    """The axes of a tensor laid out in another shape; what does not divide is fixed."""
    waiting = [t for t in map(resolve, terms) if size_of(t) != 1]
    if math.prod(map(size_of, waiting)) == 0:
        return [Var(n, fixed=True) for n in shape]
    out: list[Term] = []
    while len(out) < len(shape):
        want = shape[len(out)]
        taken = _take(waiting, want)
        if math.prod(map(size_of, taken)) == want:
            out.append(product(taken))
        else:
            with giving_up():
                out += _give_up(taken, waiting, shape[len(out) :])
    return out


def _take(waiting: list[Term], want: int) -> list[Term]:
    """The first factors, of total size ``want``; where none fit, as many as it takes to see that."""
    taken: list[Term] = []
    missing = want  # the size of what has not been taken yet
    while missing > 1:
        factor = resolve(waiting.pop(0))
        n = size_of(factor)
        if isinstance(factor, Prod):
            waiting[:0] = factor.factors
        elif n > missing and (parts := factorize(factor, missing)) is not None:
            waiting[:0] = parts
        elif n > 1:
            taken.append(factor)
            if missing % n:
                break
            missing //= n
    return taken


def _give_up(taken: list[Term], waiting: list[Term], shape: Sequence[int]) -> list[Term]:
    """Fixes the terms whose indices cannot be written as products that fit, up to where both sides agree again."""
    have, want, out = math.prod(map(size_of, taken)), 1, []
    for n in shape:
        out.append(Var(n, fixed=True) if n != 1 else ONE)
        want *= n
        while have < want:
            taken.append(resolve(waiting.pop(0)))
            have *= size_of(taken[-1])
        if have == want:
            break
    for term in taken:
        fix(term)
    return out
