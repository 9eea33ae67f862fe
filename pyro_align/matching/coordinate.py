"""Coordinate ascent: one atom at a time, the others held (Ainsworth et al. 2023, section 3.2), with an anchored start.

Plain coordinate ascent from the identity begins by matching atoms to neighbors that are themselves wrongly matched.
The anchored first pass settles atoms in the order in which evidence becomes available: it begins with those that sites
tie to fixed axes (data, outputs), uses only the sites whose other atoms are settled, and goes on from there.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pyro_align.matching import population
from pyro_align.matching.annealing import anneal, crowded, doubtful
from pyro_align.matching.matcher import Matcher, Run, register
from pyro_align.matching.updates import Update

if TYPE_CHECKING:
    from pyro_align.matching.problem import Problem

_SMALL = 200_000  # values of all sites up to which annealing takes next to no time


@register("coordinate")
@dataclass(frozen=True)
class Coordinate(Matcher):
    """Coordinate ascent by linear assignments; monotone, and ends in a local optimum.

    Attributes:
        anchored: Whether to begin with the anchored pass where no ``init`` is given.
        anneal: Rounds of annealing after the anchored pass, see :mod:`pyro_align.matching.annealing`; never any where
            that pass leaves no doubt, as on relabeled copies. None decides: small problems are searched as a
            population, see :mod:`pyro_align.matching.population`; others get four where units crowd on few partners,
            as fitted weights do, or where all sites together are not large; eight on restarts that anneal; else none.
        prove: Whether to find the best of all relabelings where it is enough to try some thousands, see
            :mod:`pyro_align.matching.enumeration`.
    """

    anchored: bool = True
    anneal: int | None = None
    prove: bool = True

    def search(self, run: Run) -> str:
        updates = make_updates(run.problem)
        as_population = self.anneal is None and population.fits(run.problem)
        if self.anchored and run.anchored:
            order: list[Update] = []
            if not anchored_pass(run, updates, order=order):
                return "time_limit"
            if not (doubtful(order) or run.random_order):
                return sweep_until_converged(run, updates)
            if not (population.search(run) if as_population else anneal(run, order, self._rounds(run, order))):
                return "time_limit"
        elif as_population and run.random_order and not population.search(run):
            return "time_limit"
        return sweep_until_converged(run, updates)

    def _rounds(self, run: Run, order: list[Update]) -> int:
        if self.anneal is not None:
            return self.anneal
        if run.random_order:
            return 8
        size = sum(shape.numel() for shape in map(torch.Size, run.problem.symmetry.shapes.values()))
        return 4 if size <= _SMALL or crowded(order) else 0


def make_updates(problem: Problem) -> list[Update]:
    """The moves of one sweep.

    Atoms nested in free ones move with them. Where such a joint move is not the best possible one, each of its atoms
    also moves alone.
    """
    updates: list[Update] = []
    atoms = problem.symmetry.atoms
    for name, atom in atoms.items():
        if any(outer in atoms for outer in atom.within):
            continue
        joint = Update(problem, name)
        updates.append(joint)
        family = [n for n, a in atoms.items() if n == name or name in a.within]
        if len(family) > 1 and not joint.move.solves(family):
            updates += [Update(problem, n, joint=False) for n in family]
    return updates


def anchored_pass(
    run: Run, updates: list[Update], settled: Collection[str] = (), order: list[Update] | None = None
) -> bool:
    """Settles every atom once, by the evidence of those already settled.

    Args:
        run: The search.
        updates: The moves.
        settled: Atoms that are settled to begin with.
        order: Gets the moves in the order in which they settled their atoms.

    Returns:
        Whether it came to its end before the time limit.
    """
    ready = set(settled)
    waiting = list(updates)
    while waiting := [u for u in waiting if u.name not in ready]:
        if run.clock.expired:
            return False
        evidence = [u.evidence(ready) for u in waiting]
        if any(evidence):
            update = waiting[_choose(run, evidence)]
            update.anchor(run.labels, run.clock, ready)
        else:  # nothing speaks for any: leave one as it is and see what that says about the others
            update = waiting[0]
        ready |= set(update.move.tree)
        if order is not None:
            order.append(update)
    return True


def _choose(run: Run, evidence: list[int]) -> int:
    """The atom with most evidence; on a random pass one drawn in proportion to it."""
    if run.random_order:
        return int(
            torch.multinomial(torch.tensor(evidence, dtype=torch.float64, device="cpu"), 1, generator=run.generator)
        )
    return max(range(len(evidence)), key=evidence.__getitem__)


def sweep_until_converged(run: Run, updates: list[Update]) -> str:
    """Sweeps over the atoms in random order until none moves."""
    run.updates = updates
    run.record()
    while True:
        if run.stopped:
            return run.stopped
        moved = False
        for k in torch.randperm(len(updates), generator=run.generator, device="cpu").tolist():
            rise = updates[k].run(run.labels, run.clock)
            moved |= rise > 0
            run.value += rise
            if run.clock.expired:
                break
        run.record()
        if not moved and not run.clock.expired:
            return "converged"
