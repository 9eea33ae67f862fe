"""What a matcher is: one algorithm, configured by a frozen dataclass. The registry, and what a run may use.

To add a matcher, write one file with a frozen dataclass that derives from :class:`Matcher`, decorate it with
``@register("its name")``, and import the file in ``matching/__init__.py``. The laws in ``tests/test_matching_laws.py``
then run over it. Its ``search`` starts from ``run.labels``, changes them only to valid relabelings, adds what it gains
to ``run.value``, calls ``run.record()`` at the start and after each sweep, stops when ``run.stopped`` says so, and
returns its status.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from tqdm.auto import tqdm

from pyro_align.errors import MatchError
from pyro_align.matching.labels import Labels
from pyro_align.matching.problem import Problem
from pyro_align.symmetry.element import Permutation

if TYPE_CHECKING:
    from pyro_align.matching.population import Pool
    from pyro_align.matching.updates import Update

MATCHERS: dict[str, type[Matcher]] = {}


class Clock:
    """Wall time in seconds since it was made, split by part.

    Args:
        limit: Seconds after which :attr:`expired` holds, or None.
    """

    def __init__(self, limit: float | None = None):
        self._start = time.perf_counter()
        self._limit = limit
        self._parts = {"gain": 0.0, "assignment": 0.0}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self._parts[part] += time.perf_counter() - start

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._start

    @property
    def left(self) -> float | None:
        """Seconds until the limit, positive, or None without one."""
        return None if self._limit is None else max(1e-9, self._limit - self.elapsed)

    @property
    def expired(self) -> bool:
        """Whether the limit has passed."""
        return self._limit is not None and self.elapsed >= self._limit

    def seconds(self) -> dict[str, float]:
        """Seconds by part; ``rest`` is what is neither gain matrices nor assignments."""
        return {**self._parts, "rest": max(0.0, self.elapsed - sum(self._parts.values()))}


@dataclass
class Run:
    """What one search works with.

    Attributes:
        problem: What is matched.
        labels: The best relabeling so far; the search replaces it.
        clock: Wall time by part, and the limit.
        generator: The only source of randomness.
        max_sweeps: Sweeps after which to stop.
        anchored: Whether the search may choose its own start, as none was given.
        random_order: Whether an anchored pass settles atoms in random order, and annealing begins at a random
            temperature.
        progress: Called with (sweep, objective), or None.
        value: Objective at present, up to a constant; the search adds each rise to it.
        history: Value at the start and after each sweep.
        updates: The moves of the sweeps, whose gains may still hold at the end.
        pool: The best of each earlier search of a small problem and, in the end, of this one.
        settled: Whether all starts of this search ended in the best of the earlier ones: another would as well.
    """

    problem: Problem
    labels: Labels
    clock: Clock
    generator: torch.Generator
    max_sweeps: int
    anchored: bool = True
    random_order: bool = False
    progress: Callable[[int, float], None] | None = None
    value: float = 0.0
    history: list[float] = field(default_factory=list)
    updates: Sequence[Update] = ()
    pool: Pool | None = None
    settled: bool = False

    def record(self) -> None:
        """Notes the value at the end of a sweep; the first entry is that of the start."""
        self.history.append(self.value)
        self.show()

    def show(self) -> None:
        """Reports the sweep and the exact objective; rises are summed up from an unknown start."""
        if self.progress is not None:
            self.progress(self.sweeps, self.problem.objective(self.labels.permutation()))

    @property
    def sweeps(self) -> int:
        """Sweeps done."""
        return max(0, len(self.history) - 1)

    @property
    def stopped(self) -> str | None:
        """Why the search must stop now, or None."""
        if self.clock.expired:
            return "time_limit"
        return "max_sweeps" if self.sweeps >= self.max_sweeps else None


class Matcher(ABC):
    """One algorithm that maximizes the objective over relabelings.

    Attributes:
        name: Its name in the registry.
        own_loss: Whether it minimizes a loss of the caller's instead, so that the objective may fall.
    """

    name = ""
    own_loss = False

    @abstractmethod
    def search(self, run: Run) -> str:
        """Improves ``run.labels``.

        Returns:
            ``"optimal"``, ``"converged"``, ``"max_sweeps"`` or ``"time_limit"``.
        """


def register(name: str) -> Callable[[type[Matcher]], type[Matcher]]:
    """Class decorator that makes a matcher known under a name."""

    def add(cls: type[Matcher]) -> type[Matcher]:
        cls.name = name
        MATCHERS[name] = cls
        return cls

    return add


def as_matcher(matcher: str | Matcher) -> Matcher:
    """A matcher by name, with its defaults, or as configured by the caller."""
    if isinstance(matcher, Matcher):
        return matcher
    if matcher not in MATCHERS:
        raise MatchError(f"unknown matcher {matcher!r}; there are {sorted(MATCHERS)}")
    return MATCHERS[matcher]()


@contextmanager
def reporting(progress: bool | Callable[[int, float], None]) -> Iterator[Callable[[int, float], None] | None]:
    """What a search calls with (sweep, objective): the caller's own, a progress bar, or nothing."""
    if not isinstance(progress, bool):
        yield progress
    elif not progress:
        yield None
    else:
        with tqdm(desc="match", unit="sweep") as bar:

            def show(sweep: int, objective: float) -> None:
                bar.set_postfix(objective=f"{objective:.8g}", refresh=False)
                bar.update(int(sweep > 0))

            yield show


def start_labels(problem: Problem, init: Permutation | None) -> Labels:
    """The relabeling to start from."""
    return Labels(problem.symmetry.identity() if init is None else init, problem.device)
