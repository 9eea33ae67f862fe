"""What moving an atom involves, whatever the relabeling: where it stands, what moves along, whether that is linear."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from pyro_align.matching.curvature import is_plain
from pyro_align.matching.parts import Part, find_parts
from pyro_align.matching.problem import Problem
from pyro_align.symmetry.blocks import Block


@dataclass(frozen=True)
class Move:
    """The relabeling of one atom, with everything nested in it, while the others are held.

    Attributes:
        parts: The occurrences of the atom.
        tree: Atom -> the atoms directly inside it that are matched along, outer ones first; the moved one alone where
            nested ones are carried.
        alone: Whether the atom has no signs, is not nested, and no other is matched along.
        flips: Whether an atom that others are nested in has signs, which it chooses after the joint move.
        curved: The blocks in which the objective is not linear in the move.
        plain: Whether the exact change of these follows from the gains and the units that move.
        depends: The atoms on whose relabelings the best move depends.
    """

    parts: tuple[Part, ...]
    tree: Mapping[str, tuple[str, ...]]
    alone: bool
    flips: bool
    curved: frozenset[Block]
    plain: bool
    depends: frozenset[str]

    @property
    def exact(self) -> bool:
        """Whether one assignment, or one for each pair of outer units, finds the best move."""
        return not (self.curved or self.flips)

    @classmethod
    def of(cls, problem: Problem, name: str, joint: bool) -> Move:
        """The move of an atom; with ``joint``, nested atoms are matched independently for each pair of its units."""
        symmetry = problem.symmetry
        found = {block: find_parts(block, name, joint) for block in problem.touching[name]}
        parts = tuple(part for parts in found.values() for part in parts)
        tree = _tree(parts) if joint else {name: ()}
        alone = len(tree) == 1 and not symmetry.atoms[name].within and name not in symmetry.signed
        flips = any(n in symmetry.signed for n, inside in tree.items() if inside)
        curved = frozenset(b for b, parts in found.items() if not all(p.linear for p in parts))
        plain = alone and joint and all(is_plain(b, name) for b in curved)
        around = frozenset().union(*(p.block.names for p in parts))
        return cls(parts, tree, alone, flips, curved, plain, around if curved or flips else around - set(tree))

    def solves(self, family: Collection[str]) -> bool:
        """Whether one move finds the best relabeling of all atoms of a family, the others held."""
        return self.exact and set(family) == set(self.tree)


def _tree(parts: Sequence[Part]) -> dict[str, tuple[str, ...]]:
    """Atom -> the atoms directly inside it that move along; outer ones first."""
    tree: dict[str, dict[str, None]] = {}
    for part in parts:
        names = [part.block.dims[i].name for i in part.chain]
        for name, inside in zip(names, (*names[1:], None), strict=True):
            tree.setdefault(name, {})
            if inside is not None:
                tree[name][inside] = None
    ordered: dict[str, tuple[str, ...]] = {}
    waiting = [parts[0].block.dims[parts[0].chain[0]].name] if parts else []
    while waiting:
        name = waiting.pop(0)
        ordered[name] = tuple(tree[name])
        waiting += ordered[name]
    return ordered
