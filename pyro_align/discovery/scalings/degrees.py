"""Degrees of tensors: how entries grow when units do, as linear algebra over the rationals.

The same as parities (:mod:`pyro_align.discovery.signs.parity`) with rational exponents in place of bits: an entry of
degree ``sum e_k u_k`` is multiplied by ``exp(e . u)`` when the unknowns are ``u``.
"""

from __future__ import annotations

from fractions import Fraction

from torch import Tensor

from pyro_align.discovery.signs.parity import EVEN, ZERO, Parities

Degree = tuple[tuple[int, Fraction], ...]  # (unknown, exponent), by unknown, none of them zero


class RationalEquations:
    """Linear equations over the rationals in reduced row echelon form."""

    none: Degree = ()

    def __init__(self):
        self.rows: dict[int, dict[int, Fraction]] = {}

    @staticmethod
    def plus(a: Degree, b: Degree) -> Degree:
        """The sum of two degrees."""
        return _sum(a, b, Fraction(1))

    @staticmethod
    def minus(a: Degree, b: Degree) -> Degree:
        """Their difference."""
        return _sum(a, b, Fraction(-1))

    def reduce(self, degree: Degree) -> Degree:
        """The same sum, written with free unknowns only."""
        out = dict(degree)
        for pivot, row in self.rows.items():
            if factor := out.get(pivot):
                _add(out, row, -factor)
        return tuple(sorted(out.items()))

    def require(self, degree: Degree) -> None:
        """Adds the equation that a sum is zero."""
        degree = self.reduce(degree)
        if not degree:
            return
        pivot, lead = degree[-1]
        row = {k: v / lead for k, v in degree}
        for other in self.rows.values():
            if factor := other.get(pivot):
                _add(other, row, -factor)
        self.rows[pivot] = row

    def solutions(self, count: int) -> list[list[Fraction]]:
        """A basis of the values of ``count`` unknowns that satisfy every equation."""
        basis = []
        for free in (k for k in range(count) if k not in self.rows):
            vector = [Fraction(0)] * count
            vector[free] = Fraction(1)
            for pivot, row in self.rows.items():
                vector[pivot] = -row.get(free, Fraction(0))
            basis.append(vector)
        return basis


class Degrees(Parities):
    """The table of degrees met so far, and what operations require of them."""

    def __init__(self):
        super().__init__(RationalEquations())

    def power(self, x: Tensor, exponent: Fraction) -> Tensor:
        """Entrywise powers; of what is zero, the power is not told and does not change."""

        def raised(a: int) -> int:
            if a == ZERO:
                return ZERO if exponent > 0 else EVEN
            return self.number(_sum((), self.sums[a], exponent))

        return self._unary(x, raised)


def _add(into: dict[int, Fraction], row: dict[int, Fraction], factor: Fraction) -> None:
    for k, v in row.items():
        total = into.get(k, Fraction(0)) + factor * v
        if total:
            into[k] = total
        else:
            into.pop(k, None)


def _sum(a: Degree, b: Degree, factor: Fraction) -> Degree:
    out = dict(a)
    _add(out, dict(b), factor)
    return tuple(sorted(out.items()))
