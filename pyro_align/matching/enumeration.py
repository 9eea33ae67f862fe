"""Optima that are proven: relabelings are tried in every way, many at a time as one stack.

All of a small group, or all relabelings of a few atoms, the others then settled by assignments. A stack of tries is one
more axis in which the atoms are nested.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_align.axes import Atom, map_atoms
from pyro_align.errors import MatchError
from pyro_align.matching.labels import Labels
from pyro_align.matching.matcher import Clock, Matcher, Run, register
from pyro_align.matching.moves import Move
from pyro_align.matching.problem import Problem
from pyro_align.matching.updates import Update
from pyro_align.symmetry.element import Permutation
from pyro_align.symmetry.group import Symmetry
from pyro_align.symmetry.terms import carrying

LIMIT = 5040  # elements of a cover that are tried: 7!
_WORK = 1 << 28  # values of all tries together, above which searching is faster than proving
_HELD = 1 << 22  # values relabeled at a time
_FAMILIES = 12  # small families among which the least cover is looked for
MEMBER = "(member)"


def per_member(symmetry: Symmetry, count: int) -> Symmetry:
    """The symmetry of a stack ``(count, *site_shape)`` whose members are relabeled one by one.

    Example:
        >>> symmetry = Symmetry.from_axes({"w": ("unit",)}, shapes={"w": (3,)})
        >>> per_member(symmetry, 5).outer_shape("unit")
        (5,)
    """
    outer = Atom(MEMBER, count, fixed=True)

    def nest(atom: Atom) -> Atom:
        return Atom(atom.name, atom.size, False, (MEMBER, *atom.within), atom.kind) if moves(atom) else atom

    def moves(atom: Atom) -> bool:
        return atom.name in symmetry.atoms

    kept = carrying(symmetry.sites)
    return Symmetry({s: (outer, *(map_atoms(t, nest) for t in symmetry.sites[s])) for s in symmetry.sites if s in kept})


@register("exhaustive")
@dataclass(frozen=True)
class Exhaustive(Matcher):
    """Tries every relabeling.

    Attributes:
        limit: Largest number of relabelings to try.
    """

    limit: int = 100_000

    def search(self, run: Run) -> str:
        symmetry = run.problem.symmetry
        if symmetry.log_order > math.log(self.limit) + 1e-9:
            raise MatchError(
                f"the group has e^{symmetry.log_order:.1f} relabelings, more than limit={self.limit}; "
                "use matcher='coordinate', or Exhaustive(limit=...) for a larger limit"
            )
        run.value = run.problem.objective(run.labels.permutation())
        run.record()
        for values, stack in tried(run.problem):
            if run.clock.expired:
                run.record()
                return "time_limit"
            best = int(values.argmax())
            if float(values[best]) > run.value:
                run.value = float(values[best])
                run.labels = Labels(member(symmetry, stack, best), run.labels.device)
        run.record()
        return "optimal"


def elements(symmetry: Symmetry) -> Iterator[Permutation]:
    """All relabelings of a group, the identity first.

    Example:
        >>> symmetry = Symmetry.from_axes({"w": ("a",)}, shapes={"w": (3,)})
        >>> len(list(elements(symmetry)))
        6
    """
    for numbers in _chunks(round(math.exp(symmetry.log_order)), 1024):
        made = tables(symmetry, tuple(symmetry.atoms), numbers)
        yield from (_row(symmetry, made, k) for k in range(len(numbers)))


def tried(problem: Problem, names: tuple[str, ...] | None = None) -> Iterator[tuple[Tensor, Permutation]]:
    """What relabelings give, ``(members,)`` in float64, and they themselves as an element of a stack's group.

    Args:
        problem: The features.
        names: Atoms to try in every way, each try completed by assignments; None for all.
    """
    names = tuple(problem.symmetry.atoms) if names is None else names
    order = math.prod(_choices(problem.symmetry, name, math.inf) for name in names)
    for numbers in _chunks(order, max(1, _HELD // _numel(problem))):
        yield _tried(problem, names, numbers)


def member(symmetry: Symmetry, stack: Permutation, k: int) -> Permutation:
    """One of a stack's relabelings."""
    return _row(symmetry, (stack.indices, stack.signs), k)


def _row(symmetry: Symmetry, made: tuple[Mapping[str, Tensor], Mapping[str, Tensor]], k: int) -> Permutation:
    return symmetry.permutation(*({name: table[k] for name, table in part.items()} for part in made))


def _chunks(count: int, size: int) -> Iterator[Tensor]:
    for start in range(0, count, size):
        yield torch.arange(start, min(count, start + size), device="cpu")


def best_of_cover(problem: Problem, cover: tuple[str, ...], clock: Clock) -> Permutation | None:
    """The best element of the group, from every element of the cover's; None where the time is up before.

    With some atoms held, an atom that appears once in every block, and in no block beside another that moves, has an
    optimum that one assignment finds. So it is enough to try a *cover*: atoms without which no block carries two
    others. Of three layers that is the middle one; a single layer needs none.
    """
    best: tuple[float, Permutation] | None = None
    for values, stack in tried(problem, cover):
        k = int(values.argmax())
        if best is None or float(values[k]) > best[0]:
            best = float(values[k]), member(problem.symmetry, stack, k)
        if clock.expired:
            return None
    return None if best is None else best[1]


def _families(symmetry: Symmetry) -> dict[str, tuple[str, ...]]:
    """Outermost free atom -> it and the atoms nested in it."""
    roots = [n for n, a in symmetry.atoms.items() if not any(o in symmetry.atoms for o in a.within)]
    return {r: tuple(n for n, a in symmetry.atoms.items() if n == r or r in a.within) for r in roots}


def least_cover(problem: Problem) -> tuple[str, ...] | None:
    """The atoms to enumerate, outer ones first; None where their group, or the work, is too large."""
    families = _families(problem.symmetry)
    owner = {name: root for root, names in families.items() for name in names}
    size = {r: math.prod(_choices(problem.symmetry, n) for n in names) for r, names in families.items()}
    small = [r for r in families if size[r] <= LIMIT]
    edges = {frozenset(owner[n] for n in block.names) for block in problem.blocks}
    if any(len(edge - set(small)) > 1 for edge in edges):
        return None
    forced = {r for edge in edges if len(edge) > 1 for other in edge - set(small) for r in edge - {other}}
    for root in families:
        if root not in forced and not Move.of(problem, root, joint=True).solves(families[root]):
            if root not in small:
                return None
            forced.add(root)
    open_edges = [e for e in (edge - forced for edge in edges) if len(e) > 1]
    free = sorted(set().union(*open_edges))
    if len(free) > _FAMILIES:
        return None
    picks = (set(p) for k in range(len(free) + 1) for p in itertools.combinations(free, k))
    covers = (forced | p for p in picks if all(len(e - p) <= 1 for e in open_edges))
    least = min(covers, key=lambda c: sum(math.log(size[r]) for r in c))
    count = math.prod(size[r] for r in least)
    if count > LIMIT or (least and count * _numel(problem) > _WORK):
        return None
    return tuple(name for name in problem.symmetry.atoms if owner[name] in least)


def _numel(problem: Problem) -> int:
    return max(1, sum(math.prod(d.size for d in b.dims) * problem.counts[b.site] for b in problem.blocks))


def _choices(symmetry: Symmetry, name: str, limit: float = LIMIT) -> int:
    """Number of relabelings of one atom; beyond the limit, any larger number."""
    atom = symmetry.atoms[name]
    copies = math.prod(symmetry.outer_shape(name))
    log_one = math.lgamma(atom.size + 1) + atom.size * math.log(2) * atom.odd
    if copies * log_one > math.log(limit) + 1e-9:
        return LIMIT + 1
    return (math.factorial(atom.size) * (2**atom.size if atom.odd else 1)) ** copies


def tables(symmetry: Symmetry, names: tuple[str, ...], numbers: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Indices and signs of the elements with these numbers, ``(count, *outer sizes, size)`` each.

    Element 0 is the identity.
    """
    indices, signs = {}, {}
    for name in names:
        atom, shape = symmetry.atoms[name], symmetry.outer_shape(name)
        orders = torch.tensor(list(itertools.permutations(range(atom.size))), device="cpu").reshape(-1, atom.size)
        flips = torch.ones(1, atom.size, dtype=torch.int8, device="cpu")
        if atom.odd:
            flips = torch.tensor(list(itertools.product((1, -1), repeat=atom.size)), dtype=torch.int8, device="cpu")
        index, sign = [], []
        for _ in range(math.prod(shape)):
            numbers, k = numbers // len(orders), numbers % len(orders)
            index.append(orders[k])
            numbers, k = numbers // len(flips), numbers % len(flips)
            sign.append(flips[k])
        indices[name] = torch.stack(index, 1).reshape(-1, *shape, atom.size)
        if atom.odd:
            signs[name] = torch.stack(sign, 1).reshape(-1, *shape, atom.size)
    return indices, signs


class _Repeated(Mapping):
    """Features as if there were many members, without a copy."""

    def __init__(self, problem: Problem, side: int, count: int):
        self.problem, self.side, self.count = problem, side, count

    def __getitem__(self, site: str) -> tuple[Tensor, ...]:
        return tuple(pair[self.side].expand(self.count, *pair[0].shape) for pair in self.problem.features(site))

    def __iter__(self) -> Iterator[str]:
        return iter(self.problem.symmetry.sites)

    def __len__(self) -> int:
        return len(self.problem.symmetry.sites)


def _tried(problem: Problem, names: tuple[str, ...], numbers: Tensor) -> tuple[Tensor, Permutation]:
    count = len(numbers)
    symmetry = per_member(problem.symmetry, count)
    stack = Problem(symmetry, *(_Repeated(problem, side, count) for side in (0, 1)), problem.odd)
    labels = Labels(symmetry.permutation(*tables(problem.symmetry, names, numbers)), problem.device)
    for root, family in _families(symmetry).items():
        if not set(family) & set(names):
            update = Update(stack, root)
            labels.replace(*update.decide(update.linear.bring(labels), labels))
    still = (s for s in problem.symmetry.sites if s not in symmetry.sites)
    constant = sum(float((f * m).sum(dtype=torch.float64)) for s in still for f, m, _ in problem.features(s))
    values = torch.full((count,), constant, dtype=torch.float64, device=problem.device)
    element = labels.permutation()
    for site in symmetry.sites:
        for fixed, moving, odd in stack.features(site):
            values += (fixed * element.apply_site(site, moving, signs=odd)).flatten(1).sum(-1, dtype=torch.float64)
    return values, element
