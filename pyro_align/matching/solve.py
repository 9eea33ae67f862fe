"""The front door of the room: check the input, run a matcher, report what it found."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pyro_align.errors import MatchError
from pyro_align.matching.clock import Clock
from pyro_align.matching.labels import Labels, relabelled
from pyro_align.matching.margins import margins
from pyro_align.matching.matcher import Matcher, Run, as_matcher, print_progress, start_labels
from pyro_align.matching.problem import Features, Problem, inner
from pyro_align.matching.starts import kick, named_start
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
        loss: What ``select`` gave for the permutation, where it was given.
        margins: Atom -> what each unit's second-best partner would cost, ``(*outer sizes, size)``, where asked for.
    """

    permutation: Permutation
    objective: float
    history: tuple[float, ...]
    sweeps: int
    status: str
    seconds: Mapping[str, float] = field(default_factory=dict, compare=False)
    matcher: str = ""
    seed: int = 0
    loss: float | None = None
    margins: Mapping[str, Tensor] | None = field(default=None, compare=False)

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
    init: Permutation | str | None = None,
    seed: int = 0,
    max_sweeps: int = 100,
    time_limit: float | None = None,
    restarts: int = 0,
    select: Callable[[Permutation], float] | None = None,
    with_margins: bool = False,
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
        init: Relabelling to start from, or ``"identity"``, ``"random"`` or ``"spectral"``. Without one the matcher
            chooses its start, and what it finds is never worse than the identity.
        seed: Seed of the order of the sweeps and of the restarts.
        max_sweeps: Sweeps after which to stop.
        time_limit: Wall time in seconds after which to stop with the best so far, or None.
        restarts: Number of further searches, from kicked, random and otherwise ordered starts; the best is kept.
        select: Loss of a relabelling, lower is better (say, the model's loss at the midpoint): chooses among the
            searches in place of the objective.
        with_margins: Whether to compute each unit's margin at the end; see :func:`margins`.
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
    if isinstance(init, Permutation) and not same_group(init.symmetry, symmetry):
        raise MatchError("init= belongs to another symmetry than the one given")
    report = print_progress if progress is True else progress or None
    generator = torch.Generator().manual_seed(seed)
    if isinstance(init, str):
        init = named_start(problem, init, generator)
    best: Match | None = None
    with torch.no_grad():
        for k in range(restarts + 1):
            start, random_order = _start(problem, init, best, k, generator)
            run = Run(problem, start_labels(problem, start), clock, generator, max_sweeps, start is None)
            run.random_order, run.progress = random_order, report
            found = _search(chosen, run, start, seed)
            if select is not None:
                with torch.enable_grad():
                    found = replace(found, loss=float(select(found.permutation)))
            best = found if best is None or _better(found, best) else best
            if found.status in ("interrupted", "time_limit"):
                best = replace(best, status=found.status)
                break
    if with_margins:
        best = replace(best, margins=margins(problem, best.permutation))
    return replace(best, seconds=clock.seconds())


def _better(a: Match, b: Match) -> bool:
    return a.objective > b.objective if a.loss is None or b.loss is None else a.loss < b.loss


def _start(problem: Problem, init, best: Match | None, k: int, generator) -> tuple[Permutation | None, bool]:
    """Where search k begins, and whether an anchored pass takes a random order.

    Most restarts shuffle a tenth of the units of the best so far and climb again: on independent problems this finds
    better optima than fresh random starts do.
    """
    if k == 0 or best is None:
        return init, False
    kind = k % 8
    if kind in (0, 4):
        return problem.symmetry.random(generator), False
    if kind in (3, 6):
        return None, True
    return kick(best.permutation, 0.3 if kind == 5 else 0.1, generator), False


def _search(matcher: Matcher, run: Run, start: Permutation | None, seed: int) -> Match:
    try:
        status = matcher.search(run)
    except KeyboardInterrupt:
        status = "interrupted"
        run.history.append(run.value)
    found = _finish(matcher, run, status, seed)
    floor = run.problem.symmetry.identity()
    if (
        start is None
        and not matcher.own_loss
        and value(run.problem, start_labels(run.problem, floor)) > found.objective
    ):
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
        inner(here, relabelled(block, there, labels, odd=odd))
        for block in problem.all_blocks
        for fixed, moving, odd in problem.views(block)
        for here, there in block.runs(fixed, moving)
    )
