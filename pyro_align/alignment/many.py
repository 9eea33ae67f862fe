"""Many posteriors aligned at once: to a reference, or to their common barycenter."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm.auto import tqdm

from pyro_align.alignment.coupled import is_coupled
from pyro_align.alignment.pair import fit_symmetry, match_posteriors
from pyro_align.discovery.resting import check_resting
from pyro_align.errors import DiagnosticWarning, GuideError, PyroAlignError
from pyro_align.guides import Posterior, barycenter, check_distinct, read_guide
from pyro_align.guides.canonical import Scales, has_gauge, one_scale
from pyro_align.guides.families.network import by_axes
from pyro_align.matching import Match, Matcher, match
from pyro_align.matching.starts import kick
from pyro_align.objectives import Activations, build_objective
from pyro_align.symmetry.element import Permutation
from pyro_align.symmetry.group import Symmetry
from pyro_align.symmetry.spec import SymmetrySpec

if TYPE_CHECKING:
    from pyro_align.guides.posterior import Guide

_ROUNDING = 1e-9  # relative falls below this are none


@dataclass(frozen=True, eq=False)
class ManyAlignments:
    """Posteriors relabeled to lie near one another.

    The relabelings lead to one common frame, so they are cycle-consistent by construction: :meth:`relative` of (i, j)
    composed with that of (j, k) is that of (i, k).

    Attributes:
        permutations: The relabeling of each posterior.
        posteriors: The relabeled posteriors.
        center: What they were aligned to in the end: the barycenter of the relabeled posteriors, or the reference.
        distances_before: W2 distance of each pair as given, ``(n, n)``.
        distances: W2 distance of each pair after relabeling, ``(n, n)``.
        history: Mean squared W2 distance to the barycenter after each round; never rises. One entry for a reference.
        status: ``"converged"`` (a local optimum: no posterior comes nearer by itself) or ``"max_rounds"``.
        matches: How the last match of each posterior went; None for a reference.
        falls: How much each restart lowered the mean squared distance.
        scales: For each posterior, scaling -> the factor of each unit by which it was brought to one scale before, as
            by :func:`~pyro_align.canonical`; empty where there are none.

    Example:
        >>> from pyro_align import Symmetry, align_many, permute_guide
        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer.autoguide import AutoNormal, init_to_sample
        >>> def model():
        ...     pyro.sample("w", dist.Normal(0.0, 1.0).expand([6, 2]).to_event(2))
        >>> with pyro.get_param_store().scope():
        ...     guide = AutoNormal(model, init_loc_fn=init_to_sample)
        ...     _ = guide()
        >>> symmetry = Symmetry.from_axes({"w": ("unit", None)}, shapes={"w": (6, 2)})
        >>> copies = [permute_guide(guide, symmetry.random(seed)) for seed in range(3)]
        >>> bool(align_many(copies, symmetry).distances.max() < 1e-6)
        True
    """

    permutations: tuple[Permutation, ...]
    posteriors: tuple[Posterior, ...] = field(repr=False)
    center: Posterior = field(repr=False)
    distances_before: np.ndarray = field(repr=False)
    distances: np.ndarray = field(repr=False)
    history: tuple[float, ...]
    status: str
    matches: tuple[Match | None, ...] = field(repr=False)
    falls: tuple[float, ...] = ()
    scales: tuple[Scales, ...] = ()

    @cached_property
    def guides(self) -> tuple[Any, ...]:
        """The relabeled guides, each of the type of the one given."""
        return tuple(q.to_guide() for q in self.posteriors)

    @cached_property
    def center_guide(self) -> Guide:
        """The center as a guide."""
        return self.center.to_guide()

    def relative(self, i: int, j: int) -> Permutation:
        """The relabeling that takes posterior ``j``, as given, into the labels of posterior ``i`` as given."""
        return self.permutations[i].inverse() @ self.permutations[j]

    def __str__(self) -> str:
        n = len(self.permutations)
        pairs = np.triu_indices(n, 1)
        before, after = self.distances_before[pairs].mean(), self.distances[pairs].mean()
        return (
            f"{n} posteriors, {self.status} after {len(self.history)} rounds: mean pairwise W2 distance "
            f"{before:.6g} -> {after:.6g}{self._restarts()}{'; brought to one scale first' if self.scales else ''}"
        )

    def _restarts(self) -> str:
        lowered = sum(fall > 0 for fall in self.falls)
        return f"; {lowered} of {len(self.falls)} restarts lowered it" if self.falls else ""


def align_many(
    guides: Sequence[Any],
    symmetry: Symmetry | SymmetrySpec,
    *,
    reference: int | None = None,
    divergence: str | Activations | Mapping[Any, float] = "w2",
    matcher: str | Matcher = "coordinate",
    restarts: int = 0,
    max_sweeps: int = 100,
    max_rounds: int = 50,
    seed: int = 0,
    executor: Executor | None = None,
    progress: bool = False,
) -> ManyAlignments:
    """Relabels several posteriors so that they lie near one another.

    Where the symmetry has scalings, each is brought to one scale first, as by :func:`~pyro_align.align`.

    Without a reference, alignment to the barycenter and the barycenter of the aligned alternate until no unit moves,
    and each is then matched to the barycenter of the others: each step lowers the mean squared W2 distance to the
    barycenter.

    Args:
        guides: Two or more guides, or posteriors read from guides, over the same sites.
        symmetry: The model's symmetry.
        reference: Index of the guide that stays and to which all others are aligned; None aligns to the barycenter.
        divergence: What each match minimizes; the barycenter is that of W2 in any case.
        matcher: Name of a matcher, or one configured.
        restarts: Further starts: the other guides in turn as the first reference, then kicks of the best so far. The
            first start, and each match to a reference, also searches that often.
        max_sweeps: Sweeps over the atoms in each match.
        max_rounds: Rounds of barycenter and alignment.
        seed: Seed of the matchers.
        executor: Runs the matches, which are independent of each other; any ``concurrent.futures.Executor``: a process
            pool, a thread pool, a Dask cluster's ``Client.get_executor()``. None runs them here, one after the other.
            The result does not depend on it. A match whose worker dies is run again here, with a warning.
        progress: Whether to show a progress bar over the matches.

    Raises:
        GuideError: Fewer than two guides, guides that do not fit together, or a family without a barycenter.
        SymmetryError: The symmetry does not fit the guides' sites.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> from pyro.infer.autoguide import AutoNormal, init_to_sample
        >>> from pyro_align import SymmetrySpec, align_many
        >>> def model():
        ...     pyro.sample("w", dist.Normal(0.0, 1.0).expand([6, 2]).to_event(2))
        >>> def guide():
        ...     with pyro.get_param_store().scope():
        ...         made = AutoNormal(model, init_loc_fn=init_to_sample)
        ...         made()
        ...     return made
        >>> aligned = align_many([guide() for _ in range(3)], SymmetrySpec({"w": ("unit", None)}))
        >>> aligned.status, len(aligned.guides)
        ('converged', 3)
    """
    guides = [by_axes(guide, symmetry) for guide in guides]
    posteriors = _read(guides)
    symmetry = fit_symmetry(symmetry, posteriors[0])
    check_resting(symmetry, *guides)
    given, scales = posteriors, ()
    if has_gauge(posteriors[0], symmetry):
        posteriors, scales = map(list, zip(*(one_scale(q, symmetry) for q in posteriors), strict=True))
    options = {"matcher": matcher, "seed": seed, "max_sweeps": max_sweeps, "divergence": divergence}
    first = _check_reference(reference, len(posteriors))
    bar = tqdm(desc="align", unit="match", disable=not progress)

    def match_all(center: Posterior, which: Iterable[int], inits, **extra) -> dict[int, Match]:
        jobs = {i: (center, posteriors[i], symmetry, inits[i]) for i in which}
        return _run(jobs, {**options, **extra}, executor, bar)

    with bar:
        if reference is not None:
            start = _from_reference(posteriors, symmetry, first, match_all, restarts)
            moved = _moved(posteriors, start.permutations)
            frame = replace(start, history=(_spread(posteriors[first], moved),), status="converged")
            return _result(given, moved, frame, posteriors[first], scales)
        best: _Frame | None = None
        rises = []
        generator = torch.Generator().manual_seed(seed)
        k = 0
        # where matches are cheap enough to be proven, every posterior may be the first reference
        while best is None or k <= restarts or (k < len(posteriors) and best.proven):
            if k < len(posteriors):
                start = _from_reference(posteriors, symmetry, k, match_all, restarts if k == 0 else 0)
            else:
                assert best is not None  # every posterior has been the reference by now
                start = _Frame(tuple(kick(p, 0.4, generator) for p in best.permutations), (None,) * len(posteriors))
            frame = _settle(posteriors, start, match_all, max_rounds)
            if best is not None:
                rises.append(max(0.0, best.history[-1] - frame.history[-1]))
            best = frame if best is None or frame.history[-1] < best.history[-1] else best
            k += 1
        moved = _moved(posteriors, best.permutations)
        return replace(_result(given, moved, best, barycenter(moved), scales), falls=tuple(rises))


@dataclass(frozen=True, eq=False)
class _Frame:
    """One relabeling for each posterior, how the last matches went, and how the rounds did."""

    permutations: tuple[Permutation, ...]
    matches: tuple[Match | None, ...]
    history: tuple[float, ...] = ()
    status: str = "max_rounds"

    @property
    def proven(self) -> bool:
        return all(m is not None and m.status == "optimal" for m in self.matches)


def _from_reference(posteriors, symmetry: Symmetry, first: int, match_all, restarts: int) -> _Frame:
    """Every posterior matched to one of them."""
    everyone = range(len(posteriors))
    found = match_all(
        posteriors[first], [i for i in everyone if i != first], [None] * len(posteriors), restarts=restarts
    )
    permutations = tuple(found[i].permutation if i in found else symmetry.identity() for i in everyone)
    return _Frame(permutations, tuple(found.get(i) for i in everyone))


def _settle(posteriors: Sequence[Posterior], start: _Frame, match_all, max_rounds: int) -> _Frame:
    """Alternates barycenter and alignment until no unit moves, nor any posterior when matched to the others alone."""
    permutations, matches, history = list(start.permutations), list(start.matches), []
    everyone = range(len(posteriors))
    for _ in range(max_rounds):
        moved = _moved(posteriors, permutations)
        center = barycenter(moved)
        history.append(_spread(center, moved))
        found = match_all(center, everyone, permutations)
        matches = [found[i] for i in everyone]
        renewed = [_nearer(center, posteriors[i], found[i].permutation, permutations[i]) for i in everyone]
        if renewed == permutations and not _one_by_one(posteriors, renewed, history[-1], match_all):
            return _Frame(tuple(permutations), tuple(matches), tuple(history), "converged")
        permutations = renewed
    return _Frame(tuple(permutations), tuple(matches), tuple(history), "max_rounds")


def _one_by_one(posteriors: Sequence[Posterior], permutations: list[Permutation], spread: float, match_all) -> bool:
    """Matches each posterior to the barycenter of the others, which it does not hold in place itself.

    Changes ``permutations``; whether any lies nearer then.
    """
    moved = False
    for i in range(len(posteriors)):
        others = [j for j in range(len(posteriors)) if j != i]
        center = barycenter([posteriors[j].permute(permutations[j]) for j in others])
        new = match_all(center, [i], permutations)[i].permutation
        if new == permutations[i]:
            continue
        trial = [*permutations[:i], new, *permutations[i + 1 :]]
        relabeled = _moved(posteriors, trial)
        now = _spread(barycenter(relabeled), relabeled)
        if now < spread * (1 - _ROUNDING):
            permutations[i], spread, moved = new, now, True
    return moved


def _moved(posteriors: Sequence[Posterior], permutations: Sequence[Permutation]) -> list[Posterior]:
    return [q.permute(p) for q, p in zip(posteriors, permutations, strict=True)]


def _read(guides: Sequence[Any]) -> list[Posterior]:
    guides = list(guides)
    if len(guides) < 2:
        raise GuideError(f"align_many needs at least two guides, got {len(guides)}")
    for i, guide in enumerate(guides):
        for j in range(i):
            check_distinct(guides[j], guide)
    posteriors = [read_guide(guide) for guide in guides]
    for i, other in enumerate(posteriors[1:], start=1):
        try:
            posteriors[0].check_compatible(other)
        except GuideError as error:
            raise GuideError(f"guide {i} does not fit guide 0: {error}") from None
    return posteriors


def _check_reference(reference: int | None, count: int) -> int:
    if reference is None:
        return 0
    if isinstance(reference, bool) or not isinstance(reference, int) or not 0 <= reference < count:
        raise GuideError(f"reference must be None or the index of a guide, 0 to {count - 1}; got {reference!r}")
    return reference


def _nearer(center: Posterior, posterior: Posterior, new: Permutation, old: Permutation) -> Permutation:
    """The new relabeling where it lies nearer, so that no round moves apart (other divergences might)."""
    if new == old:
        return old
    return new if center.distance(posterior.permute(new)) < center.distance(posterior.permute(old)) else old


def _spread(center: Posterior, posteriors: Sequence[Posterior]) -> float:
    return float(np.mean([center.distance(q) ** 2 for q in posteriors]))


def _pairwise(posteriors: Sequence[Posterior]) -> np.ndarray:
    out = np.zeros((len(posteriors), len(posteriors)))
    for i, a in enumerate(posteriors):
        for j in range(i):
            out[i, j] = out[j, i] = a.distance(posteriors[j])
    return out


def _result(
    given: Sequence[Posterior], moved: Sequence[Posterior], frame: _Frame, center: Posterior, scales: Iterable[Scales]
) -> ManyAlignments:
    return ManyAlignments(
        permutations=frame.permutations,
        posteriors=tuple(moved),
        center=center,
        distances_before=_pairwise(given),
        distances=_pairwise(moved),
        history=frame.history,
        status=frame.status,
        matches=frame.matches,
        scales=tuple(scales),
    )


# -- running matches ---------------------------------------------------------------------------------------------------


def _run(
    jobs: dict[int, tuple[Any, ...]], options: dict[str, Any], executor: Executor | None, bar: tqdm
) -> dict[int, Match]:
    """Matches every job; what an executor loses is done here."""
    found: dict[int, Match] = {}
    if executor is not None:
        pending = {i: _submit(executor, job, options) for i, job in jobs.items()}
        for i, future in pending.items():
            try:
                found[i] = future()
                bar.update()
            except PyroAlignError:
                raise
            except Exception as error:
                warnings.warn(
                    f"the worker that matched guide {i} failed ({type(error).__name__}: {error}); it is matched here "
                    "instead, the results of the other workers are kept",
                    DiagnosticWarning,
                    stacklevel=4,
                )
    for i, (center, posterior, symmetry, init) in jobs.items():
        if i not in found:
            found[i] = match_posteriors(center, posterior, symmetry, init=init, **options)
            bar.update()
        if found[i].status == "interrupted":  # the rounds to come would go on as if nothing had been
            raise KeyboardInterrupt
    return found


def _submit(executor: Executor, job: tuple[Any, ...], options: dict[str, Any]) -> Callable[[], Match]:
    """Sends one match away as plain tensors, which any worker can unpickle; posteriors hold models, which need not."""
    center, posterior, symmetry, init = job
    rest = {k: v for k, v in options.items() if k != "divergence"}
    if is_coupled(center, options["divergence"]):  # alternates with couplings: runs where the posteriors are
        return lambda: match_posteriors(center, posterior, symmetry, init=init, **options)
    goal = build_objective(center, posterior, symmetry, options["divergence"])
    try:
        future = executor.submit(
            match, goal.symmetry, goal.fixed, goal.moving, odd=goal.fixed.odd, init=goal.start(init), **rest
        )
    except RuntimeError as error:  # a pool that broke refuses new work
        future = Future()
        future.set_exception(error)
    return lambda: goal.finish(future.result())
