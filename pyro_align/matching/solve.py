"""The front door of the room: check the input, run a matcher, report what it found."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch

from pyro_align.errors import MatchError
from pyro_align.matching.clock import Clock
from pyro_align.matching.labels import Labels, relabelled
from pyro_align.matching.matcher import Matcher, Run, as_matcher, print_progress, start_labels
from pyro_align.matching.problem import Features, Problem, inner
from pyro_align.symmetry import Permutation, Symmetry, same_group


@dataclass(frozen=True)
class Match:
    """What a matcher found.

    Attributes:
        permutation: The relabelling of the moving side.
        objective: Its exact objective: sum over sites and features of ``<fixed, permutation moving>``.
        history: Objective at the start of the sweeps and after each; never falls.
        sweeps: Sweeps done.
        status: ``"converged"`` (a local optimum, or the best of all for ``exhaustive``), ``"max_sweeps"``,
            ``"time_limit"`` or ``"interrupted"``. The permutation is valid whatever the status.
        seconds: Wall time by part: ``gain``, ``assignment``, ``rest``.
        matcher: The matcher's name.
        seed: The seed it ran with.
    """

    permutation: Permutation
    objective: float
    history: tuple[float, ...]
    sweeps: int
    status: str
    seconds: Mapping[str, float] = field(default_factory=dict, compare=False)
    matcher: str = ""
    seed: int = 0

    def __str__(self) -> str:
        parts = ", ".join(f"{k} {v:.3g} s" for k, v in self.seconds.items())
        return f"{self.matcher}: objective {self.objective:.8g}, {self.status} after {self.sweeps} sweeps ({parts})"


def match(
    symmetry: Symmetry,
    fixed: Features,
    moving: Features,
    *,
    odd=None,
    matcher: str | Matcher = "coordinate",
    init: Permutation | None = None,
    seed: int = 0,
    max_sweeps: int = 100,
    time_limit: float | None = None,
    restarts: int = 0,
    progress: bool | Callable[[int, float], None] = False,
) -> Match:
    """Finds a relabelling of ``moving`` that makes it most like ``fixed``.

    Maximises the sum over sites and features of ``<fixed, P moving>``. In general this is NP-hard; all matchers but
    ``exhaustive`` end in a local optimum.

    Args:
        symmetry: The group, with known sizes.
        fixed: Site -> features, tensors of the site's shape. Sites that the symmetry does not name are ignored.
        moving: Site -> as many features.
        odd: Which features change sign with the units of signed atoms: one bool per feature, or site -> such a
            sequence. Needed only where the symmetry has signs.
        matcher: A name in ``MATCHERS``, or a configured matcher such as ``Coordinate(anchored=False)``.
        init: Relabelling to start from. Without one the matcher chooses its start, and what it finds is never worse
            than the identity.
        seed: Seed of the order of the sweeps and of the restarts.
        max_sweeps: Sweeps after which to stop.
        time_limit: Wall time in seconds after which to stop with the best so far, or None.
        restarts: Number of further searches from random relabellings; the best is kept.
        progress: True prints one line a sweep to standard error; a callable gets (sweep, objective).

    Raises:
        MatchError: The features do not fit the symmetry or each other, or an option is out of range.

    Example:
        >>> symmetry = Symmetry.from_axes({"w": ("unit", None)}, shapes={"w": (3, 2)})
        >>> fixed = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> found = match(symmetry, {"w": (fixed,)}, {"w": (fixed[[2, 0, 1]],)})
        >>> found.permutation.indices["unit"]
        tensor([1, 2, 0])
        >>> found.objective, found.status
        (4.0, 'converged')
    """
    chosen = as_matcher(matcher)
    if max_sweeps < 0 or restarts < 0 or (time_limit is not None and not time_limit > 0):
        raise MatchError(
            "expected max_sweeps >= 0, restarts >= 0 and time_limit > 0 or None; "
            f"got {max_sweeps}, {restarts} and {time_limit}"
        )
    clock = Clock(time_limit)
    problem = Problem(symmetry, fixed, moving, odd)
    if init is not None and not same_group(init.symmetry, symmetry):
        raise MatchError("init= belongs to another symmetry than the one given")
    report = print_progress if progress is True else progress or None
    generator = torch.Generator().manual_seed(seed)
    best: Match | None = None
    with torch.no_grad():
        for k in range(restarts + 1):
            start = init if k == 0 else symmetry.random(generator)
            run = Run(problem, start_labels(problem, start), clock, generator, max_sweeps, start is None, report)
            found = _search(chosen, run, start, seed)
            best = found if best is None or found.objective > best.objective else best
            if found.status in ("interrupted", "time_limit"):
                best = replace(best, status=found.status)
                break
    return replace(best, seconds=clock.seconds())


def _search(matcher: Matcher, run: Run, start: Permutation | None, seed: int) -> Match:
    try:
        status = matcher.search(run)
    except KeyboardInterrupt:
        status = "interrupted"
        run.history.append(run.value)
    found = _finish(matcher, run, status, seed)
    floor = run.problem.symmetry.identity()
    if start is None and value(run.problem, start_labels(run.problem, floor)) > found.objective:
        # the matcher's own start led below where it began: begin there
        again = replace(run, labels=start_labels(run.problem, floor), anchored=False, value=0.0, history=[])
        try:
            status = matcher.search(again) if status not in ("interrupted", "time_limit") else status
        except KeyboardInterrupt:
            status = "interrupted"
            again.history.append(again.value)
        return _finish(matcher, again, status, seed)
    return found


def _finish(matcher: Matcher, run: Run, status: str, seed: int) -> Match:
    permutation = run.labels.permutation()
    exact = value(run.problem, run.labels)
    if not math.isfinite(exact):
        raise MatchError(f"the objective is {exact}: the features overflow; scale them down")
    # searches add up rises; counted back from the exact value at the end they give the history
    last = run.history[-1] if run.history else 0.0
    history = tuple(exact + (h - last) for h in run.history) or (exact,)
    return Match(permutation, exact, history, run.sweeps, status, {}, matcher.name, seed)


def value(problem: Problem, labels: Labels) -> float:
    """The objective of ``labels``, as :meth:`Problem.objective` but from the blocks, without planning gathers anew."""
    return math.fsum(
        inner(fixed, relabelled(block, moving, labels, odd=odd))
        for block in problem.all_blocks
        for fixed, moving, odd in problem.views(block)
    )
