"""The searches of one matching: the first and its restarts, here or on an executor.

Restarts run in waves. Every restart of a wave begins from the best of the waves before and has a generator of its own,
so that what it finds does not depend on where, or in which order, the searches run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any

import torch

from pyro_align.errors import MatchError
from pyro_align.matching.matcher import MATCHERS, Clock, Matcher, Run, start_labels
from pyro_align.matching.population import Pool, fits
from pyro_align.matching.problem import Problem
from pyro_align.matching.result import Match
from pyro_align.matching.starts import kick
from pyro_align.matching.updates import Update
from pyro_align.symmetry.element import Permutation


def waves(restarts: int, size: int = 1) -> Iterator[range]:
    """The numbers of the searches, wave by wave; the first search is a wave of its own.

    Example:
        >>> [list(wave) for wave in waves(6, 4)]
        [[0], [1, 2, 3, 4], [5, 6]]
    """
    yield range(1)
    for k in range(1, restarts + 1, size):
        yield range(k, min(k + size, restarts + 1))


@dataclass(frozen=True)
class Task:
    """One search.

    Attributes:
        start: Relabeling to start from, or None where the matcher may choose.
        random_order: Whether an anchored pass takes a random order, annealing a random temperature, and a small
            problem's start is kicked.
        generator: The search's randomness; None while the task travels.
        matcher: Another matcher than the caller's, or None.
        pool: The best of each earlier search of a small problem, or None.
    """

    start: Permutation | None
    random_order: bool
    generator: torch.Generator | None
    matcher: Matcher | None = None
    pool: Pool | None = None


Found = tuple[Match, Pool | None, bool]  # with the run's pool, and whether another search would end there as well


@dataclass(frozen=True)
class Searches:
    """What all searches of one matching share."""

    problem: Problem
    matcher: Matcher
    clock: Clock
    seed: int
    max_sweeps: int
    report: Any = None

    def restart(self, k: int, best: Match, pool: Pool | None) -> Task:
        """The k-th restart.

        On small problems each has a population of its own, crossed with the best of those before. Elsewhere most
        shuffle a tenth of the units of the best so far and climb again, which is cheap, and some are annealed from
        another temperature, more slowly, and give those that follow a better place to begin. The second, for coordinate
        ascent, is Frank-Wolfe as the caller would run it with the same seed: it is now and then the better of the two,
        and two restarts or more never end below it.
        """
        generator = torch.Generator().manual_seed((self.seed + 0x9E3779B97F4A7C15 * k) % 2**63)
        kind = k % 8
        if self.matcher.name == "coordinate" and k != 2 and fits(self.problem):
            return Task(None, True, generator, pool=pool)
        if kind == 0:
            return Task(self.problem.symmetry.random(generator), False, generator)
        if kind in (1, 4):
            return Task(None, True, generator)
        if k == 2 and self.matcher.name == "coordinate":
            return Task(None, False, torch.Generator().manual_seed(self.seed), MATCHERS["frank_wolfe"]())
        return Task(kick(best.permutation, 0.05 if kind == 5 else 0.1, generator), False, generator)

    def run(self, tasks: Sequence[Task], executor: Executor | None) -> Iterator[Found]:
        """What each task found, in order, and the best of it and of those before."""
        if executor is None or len(tasks) == 1:
            for task in tasks:
                yield self.search(task)
            return
        limit = self.clock.left
        work = (self.problem.contents(), self.matcher, self.seed, self.max_sweeps, limit)
        tasks = [(replace(t, generator=None), t.generator.get_state()) for t in tasks]  # generators do not travel
        futures = [executor.submit(_elsewhere, *work, *task) for task in tasks]
        try:
            for future in futures:
                yield future.result()
        except KeyboardInterrupt:
            start = Task(self.problem.symmetry.identity(), False, torch.Generator())
            found, *left = self.search(start, sweeps=0)
            yield replace(found, status="interrupted"), *left
        finally:
            for future in futures:
                future.cancel()

    def search(self, task: Task, sweeps: int | None = None) -> Found:
        """One search, here."""
        labels = start_labels(self.problem, task.start)
        sweeps = self.max_sweeps if sweeps is None else sweeps
        run = Run(self.problem, labels, self.clock, task.generator, sweeps, task.start is None)
        run.random_order, run.progress, run.pool = task.random_order, self.report, task.pool
        with torch.no_grad():
            found = _search(task.matcher or self.matcher, run, task.start, self.seed)
        return replace(found, matcher=self.matcher.name), run.pool, run.settled


def _elsewhere(contents, matcher, seed, max_sweeps, limit, task, state) -> Found:
    """One search in another process or thread."""
    generator = torch.Generator()
    generator.set_state(state)
    searches = Searches(Problem(*contents), matcher, Clock(limit), seed, max_sweeps)
    return searches.search(replace(task, generator=generator))


def _search(matcher: Matcher, run: Run, start: Permutation | None, seed: int) -> Match:
    try:
        status = matcher.search(run)
    except KeyboardInterrupt:
        status = "interrupted"
        run.history.append(run.value)
    found = _finish(matcher, run, status, seed)
    lost = run.problem.as_given - found.objective
    if start is None and not matcher.own_loss and lost > run.problem.rounding * abs(found.objective):
        # the matcher's own start led below where it began: begin there
        again = replace(run, labels=start_labels(run.problem, None), anchored=False, value=0.0, history=[], updates=())
        try:
            status = matcher.search(again) if status not in ("interrupted", "time_limit") else status
        except KeyboardInterrupt:
            status = "interrupted"
            again.history.append(again.value)
        return _finish(matcher, again, status, seed)
    return found


def _finish(matcher: Matcher, run: Run, status: str, seed: int) -> Match:
    permutation = run.labels.permutation()
    exact = math.fsum(_values(run, () if status == "interrupted" else run.updates))  # or a move may be half made
    if not math.isfinite(exact):
        raise MatchError(f"the objective is {exact}: the features overflow; scale them down")
    # searches add up rises; counted back from the exact value at the end they give the history
    last = run.history[-1] if run.history else 0.0
    history = tuple(exact + (h - last) for h in run.history) or (exact,)
    return Match(permutation, exact, history, run.sweeps, status, {}, matcher.name, seed)


def _values(run: Run, updates: Sequence[Update]) -> Iterator[float]:
    """What adds up to the objective: gains that are at hand, as far as they share no block, and the other blocks."""
    problem = run.problem
    left = {*problem.blocks, *(b for b in problem.all_blocks if not b.names)}
    for update in sorted(updates, key=lambda u: -len(u.move.parts)):
        blocks = {part.block for part in update.move.parts}
        if blocks <= left and (value := update.value(run.labels)) is not None:
            left -= blocks
            yield value
    yield from (problem.sums.value(block, run.labels) for block in left)
