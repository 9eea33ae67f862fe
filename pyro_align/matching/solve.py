"""The entry point: check the input, run a matcher, report what it found, and how sure each match is."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyro_align.errors import MatchError
from pyro_align.matching.assignment import swap_costs
from pyro_align.matching.coordinate import Coordinate
from pyro_align.matching.curvature import is_plain, swap_curvature
from pyro_align.matching.enumeration import best_of_cover, least_cover
from pyro_align.matching.labels import Labels
from pyro_align.matching.matcher import Clock, Matcher, as_matcher, reporting
from pyro_align.matching.population import Pool, fittest
from pyro_align.matching.problem import Features, Problem
from pyro_align.matching.result import Match
from pyro_align.matching.rotations import match_rotated
from pyro_align.matching.searches import Searches, Task, waves
from pyro_align.matching.starts import named_start
from pyro_align.matching.updates import Update
from pyro_align.symmetry.element import Permutation
from pyro_align.symmetry.group import Symmetry, same_group
from pyro_align.symmetry.spec import SymmetrySpec


def match(
    symmetry: Symmetry | SymmetrySpec,
    fixed: Features,
    moving: Features,
    *,
    odd: Any = None,
    matcher: str | Matcher = "coordinate",
    init: Permutation | str | None = None,
    seed: int = 0,
    max_sweeps: int = 100,
    time_limit: float | None = None,
    restarts: int = 0,
    select: Callable[[Permutation], float] | None = None,
    wave: int = 1,
    executor: Executor | None = None,
    with_margins: bool = False,
    progress: bool | Callable[[int, float], None] = False,
) -> Match:
    """Finds a relabeling of ``moving`` that makes it most like ``fixed``.

    Maximizes the sum over sites and features of ``<fixed, P moving>``. In general this is NP-hard, and a search ends in
    a local optimum. Where some thousands of tries are enough to be sure, the best of all is found, and ``status`` says
    so.

    Args:
        symmetry: The group.
        fixed: Site -> features, tensors of the site's shape. Sites that the symmetry does not name are ignored.
        moving: Site -> as many features.
        odd: Which features change sign with the units of signed atoms: one bool per feature, or site -> such a
            sequence. Needed only where the symmetry has signs.
        matcher: A name in ``MATCHERS``, or a configured matcher such as ``Coordinate(anchored=False)``.
        init: Relabeling to start from, or ``"identity"``, ``"random"`` or ``"spectral"``. Without one the matcher
            chooses its start, and what it finds is never worse than the identity.
        seed: Seed of the order of the sweeps and of the restarts.
        max_sweeps: Sweeps after which to stop.
        time_limit: Wall time in seconds after which to stop with the best so far, or None.
        restarts: Number of further searches, from kicked, random and otherwise ordered starts; the best is kept. One of
            those of ``coordinate``, the second, is ``frank_wolfe``. They end early where on a small problem all starts
            of one of them led to the best so far.
        select: Loss of a relabeling, lower is better (say, the model's loss at the midpoint): chooses among the
            searches in place of the objective.
        wave: Restarts that begin from the same best so far and can run at the same time. Larger ones lose quality: each
            restart then sees fewer of those before it.
        executor: Where the restarts of a wave run, such as a ``ProcessPoolExecutor``; here, one after another, by
            default. The result does not depend on it. Their sweeps are not reported, and an interrupt ends them
            only between restarts.
        with_margins: Whether to compute each unit's margin at the end; see :func:`margins`.
        progress: True shows a progress bar with the objective; a callable gets (sweep, objective).

    Raises:
        MatchError: The features do not fit the symmetry or each other, or an option is out of range.

    Example:
        >>> symmetry = Symmetry.from_axes({"w": ("unit", None)}, shapes={"w": (3, 2)})
        >>> fixed = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> found = match(symmetry, {"w": (fixed,)}, {"w": (fixed[[2, 0, 1]],)})
        >>> found.permutation.indices["unit"]
        tensor([1, 2, 0])
        >>> found.objective, found.status
        (4.0, 'optimal')
    """
    chosen = as_matcher(matcher)
    whole = all(isinstance(n, int) for n in (max_sweeps, restarts, wave))
    timed = time_limit is None or (isinstance(time_limit, int | float) and time_limit > 0)
    if not whole or max_sweeps < 0 or restarts < 0 or wave < 1 or not timed:
        raise MatchError(
            "expected whole numbers max_sweeps >= 0, restarts >= 0, wave >= 1 and time_limit > 0 or None; "
            f"got {max_sweeps!r}, {restarts!r}, {wave!r} and {time_limit!r}"
        )
    clock = Clock(time_limit)
    problem = Problem(symmetry, fixed, moving, odd)
    if isinstance(init, Permutation) and not same_group(init.symmetry, problem.symmetry):
        raise MatchError("init= belongs to another symmetry than the one given")
    generator = torch.Generator().manual_seed(seed)
    if isinstance(init, str):
        init = named_start(problem, init, generator)
    with reporting(progress) as report:
        if problem.symmetry.rotated:
            if not isinstance(chosen, Coordinate):
                raise MatchError(f"matcher '{chosen.name}' does not follow rotations; use 'coordinate'")
            limits = {"seed": seed, "max_sweeps": max_sweeps, "restarts": restarts, "select": select, "report": report}
            return replace(match_rotated(problem, init, clock, **limits), seconds=clock.seconds())
        searches = Searches(problem, chosen, clock, seed, max_sweeps, report)
        found = _proven_or_searched(searches, init, generator, restarts, select, wave, executor)
    judged = margins(problem, found.permutation) if with_margins else None
    return replace(found, margins=judged, seconds=clock.seconds())


def _proven_or_searched(
    searches: Searches,
    init: Permutation | None,
    generator: torch.Generator,
    restarts: int,
    select: Callable[[Permutation], float] | None,
    wave: int,
    executor: Executor | None,
) -> Match:
    """The best of all, where few tries prove it, else of the first search and its restarts."""
    chosen = searches.matcher
    proves = select is None and isinstance(chosen, Coordinate) and chosen.prove and searches.max_sweeps
    cover = least_cover(searches.problem) if proves else None
    if cover and (proven := _proven(searches, cover)) is not None:
        return proven
    best: Match | None = None
    rises: list[float] = []
    pool: Pool | None = None
    settled = cover == ()  # without a cover one search settles every atom
    for numbers in waves(restarts, wave):
        if settled and best is not None:
            break
        tasks = [Task(init, False, generator) if best is None else searches.restart(k, best, pool) for k in numbers]
        pools: list[Pool] = []
        for found, left, sure in searches.run(tasks, executor):
            pools += [left] if left else []
            settled |= sure and select is None
            if select is not None:
                found = replace(found, loss=float(select(found.permutation)))
            if best is not None:
                rises.append(max(0.0, found.objective - best.objective))
            best = found if best is None or _better(found, best) else best
            if found.status in ("interrupted", "time_limit"):
                return replace(best, status=found.status, rises=tuple(rises))
        if pools and select is None:  # a loss wants candidates that differ
            pool = fittest(pools)
    assert best is not None  # there is always a first search
    status = "optimal" if cover == () and best.status == "converged" else best.status
    return replace(best, status=status, rises=tuple(rises))


def _proven(searches: Searches, cover: tuple[str, ...]) -> Match | None:
    """The best of a group whose cover can be enumerated; None where time runs out before all of it is seen."""
    problem, element, status = searches.problem, None, "optimal"
    try:
        element = best_of_cover(problem, cover, searches.clock)
        if element is not None and searches.report is not None:
            searches.report(0, problem.objective(element))
    except KeyboardInterrupt:
        element, status = element or problem.symmetry.identity(), "interrupted"
    if element is None:
        return None
    value = problem.objective(element)
    return Match(element, value, (value,), 0, status, matcher=searches.matcher.name, seed=searches.seed)


def _better(a: Match, b: Match) -> bool:
    return a.objective > b.objective if a.loss is None or b.loss is None else a.loss < b.loss


def margins(problem: Problem, permutation: Permutation) -> dict[str, Tensor]:
    """For each unit, how much the objective falls if it swaps partners with the unit that makes that cheapest.

    All other atoms held, swapping the partners of new positions i and k changes the objective by
    ``g[i, p(k)] + g[k, p(i)] - g[i, p(i)] - g[k, p(k)]`` with g the atom's gain matrix; the margin of i is the least
    fall over k. A margin near 0 means that the unit is exchangeable: it sits at the prior, or has a twin, and its match
    means nothing. A negative one means that a swap would gain: the relabeling is not a local optimum. Where an atom is
    on two axes of a site the second-order term of the swap is added, so that the fall is exact there too; only where
    such an atom is nested, signed, or on three axes is it the linearized one.

    Args:
        problem: What was matched.
        permutation: The relabeling to judge.

    Returns:
        Atom -> ``(*outer sizes, size)`` in units of the objective; infinite for atoms of one unit.
    """
    out = {}
    labels = Labels(permutation, problem.device)
    with torch.no_grad():
        for name, atom in problem.symmetry.atoms.items():
            gain = Update(problem, name, joint=False).gain(labels)
            now = labels.indices[name].reshape(-1, atom.size)
            cost = swap_costs(gain, now)
            twice = [b for b in problem.touching[name] if is_plain(b, name)]
            if twice and len(cost) == 1:
                n = atom.size
                every = torch.arange(n * n, device=problem.device)
                bent = swap_curvature(problem, twice, name, labels, (every // n, every % n))
                cost = cost - bent.reshape(1, n, n).to(cost)
            out[name] = cost.amin(2).reshape(labels.indices[name].shape).cpu()
    return out
