"""What pairs of an atom's units add to the objective: for many relabelings at once, of one moving side or of many."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from pyro_align.matching.soft import Pair, Parts
from pyro_align.symmetry.blocks import Dim

View = tuple[Sequence[Dim], Tensor, Tensor, bool]


@dataclass(frozen=True)
class Term:
    """What a block says about an atom, given the atoms on its other axes.

    Attributes:
        fixed: ``(n, others * rest)``.
        moving: ``(members or 1, *others, rest * n)``.
        others: The other atoms, each with whether its signs count.
        odd: Whether the gain counts for or against the unit's sign.
        first: Whether this is the block's first atom: a block's value is counted once.
    """

    fixed: Tensor
    moving: Tensor
    others: tuple[tuple[str, bool], ...]
    odd: bool
    first: bool

    def expected(self, soft: Mapping[str, Pair]) -> Tensor:
        """The moving side after the other atoms' matrices, ``(members, *others, rest * n)``."""
        value = self.moving
        for axis, (name, flips) in enumerate(self.others, start=1):
            matrix = soft[name][flips]
            matrix = matrix.reshape(len(matrix), *(1,) * (len(self.others) - 1), *matrix.shape[1:])
            value = (matrix @ value.movedim(axis, -2)).movedim(-2, axis)
        return value


@dataclass(frozen=True)
class Gains:
    """The terms of all atoms, and, by even and odd axes, what does not depend on other atoms."""

    terms: Mapping[str, list[Term]]
    constant: Mapping[str, list[Tensor | None]]

    @classmethod
    def of(cls, names: Collection[str], views: Iterable[View]) -> Gains:
        """Cuts features into terms.

        Args:
            names: The atoms; others keep their labels.
            views: For each block the fixed side ``dims``, the moving one ``(members or 1, *dims)``, and whether they
                are odd.
        """
        made = cls({name: [] for name in names}, {name: [None, None] for name in names})
        for dims, fixed, moving, odd in views:
            free = [i for i, d in enumerate(dims) if d.name in made.terms]
            for i in free:
                others = [j for j in free if j != i]
                left = fixed.movedim((i, *others), tuple(range(len(free)))).reshape(dims[i].size, -1)
                right = moving.movedim((*(j + 1 for j in others), i + 1), (*range(1, len(free)), -1))
                right = right.reshape(len(moving), *(dims[j].size for j in others), -1)
                around = tuple((dims[j].name, odd and dims[j].odd) for j in others)
                term = Term(left, right, around, odd and dims[i].odd, i == free[0])
                if others:
                    made.terms[dims[i].name].append(term)
                else:
                    _add(made.constant[dims[i].name], term, right)
        return made

    def parts(self, name: str, relabeled: Callable[[Term], Tensor], *, once: bool = False) -> Parts:
        """What each pair (new, old) of an atom's units adds to the objective, by even axes and by odd ones.

        Where an atom is on two axes of one site, the sum of either with the other held: the objective's derivative.

        Args:
            name: The atom.
            relabeled: A term's moving side with its other atoms relabeled.
            once: Whether to leave out the blocks that count for another atom.
        """
        parts = list(self.constant[name])
        for term in self.terms[name]:
            if term.first or not once:
                _add(parts, term, relabeled(term))
        return parts[0], parts[1]

    def expected(self, name: str, soft: Mapping[str, Pair]) -> Parts:
        """The parts, given the matrices of all atoms."""
        return self.parts(name, lambda term: term.expected(soft))


def _add(parts: list[Tensor | None], term: Term, moved: Tensor) -> None:
    gain = term.fixed @ moved.reshape(len(moved), -1, len(term.fixed))
    sofar = parts[term.odd]
    parts[term.odd] = gain if sofar is None else sofar + gain
