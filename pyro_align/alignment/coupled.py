"""The true W2 of correlated families: couplings and relabelings in turn, from several starts.

For Gaussians with covariance roots L, W2^2 is the minimum over orthogonal Q of ``|m0 - P m1|^2 + |L0 - P L1 Q|^2``
(Takatsu 2011): given P, Q is an orthogonal Procrustes problem; given Q, P is an assignment. The distance never rises.
W2 is at least that of the marginals of single coordinates, which all relabelings of a small group are given in one
batch: the true distance is taken of the few that may be nearest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from pyro_align.guides import Posterior
from pyro_align.guides.features import stacked_features
from pyro_align.matching import Match, Problem, match
from pyro_align.matching.enumeration import LIMIT, member, tried
from pyro_align.matching.starts import kick
from pyro_align.objectives import build_objective, over
from pyro_align.symmetry.element import Permutation
from pyro_align.symmetry.group import Symmetry

_WORK = 1 << 30  # multiplications that a proof may take
_ROUNDING = 1e-6  # of squared distances, relative to the posteriors' size
_KICKS = (0.2, 0.3, 0.4, 1.0)


def is_coupled(a: Posterior, divergence: Any) -> bool:
    """Whether matching alternates with couplings."""
    return a.is_coupled and isinstance(divergence, str) and divergence == "w2"


def match_coupled(
    a: Posterior,
    b: Posterior,
    symmetry: Symmetry,
    found: Match,
    *,
    select: Callable[[Permutation], float] | None = None,
    restarts: int = 0,
    **options: Any,
) -> Match:
    """The relabeling of ``b`` that is nearest to ``a`` in true W2, from that of the marginals on.

    Args:
        a: The posterior that stays.
        b: The posterior to relabel.
        symmetry: The group.
        found: What matching the marginals found: a good start, but only a start.
        select: Loss of a relabeling, by which to choose among the starts in place of the distance.
        restarts: Further starts, from kicked and random relabelings, each with a coupling of its own.
        options: Options of ``match``.
    """

    def distance(p: Permutation) -> float:
        return a.distance(b.permute(p))

    if select is None and (nearest := _nearest(a, b, symmetry, distance)) is not None:
        return replace(found, permutation=nearest, status="optimal")
    score = distance if select is None else select
    best, least, rises = found, math.inf, []
    for k, start in enumerate(_starts(symmetry, found.permutation, restarts, options.get("seed", 0))):
        start = kick(best.permutation, *start) if isinstance(start, tuple) else start
        ended = _alternate(a, b, symmetry, replace(found, permutation=start), distance, options)
        now = score(ended.permutation)
        if k > 1:
            rises.append(max(0.0, least - now))
        if k == 0 or now < least:
            best, least = ended, now
        if ended.status in ("interrupted", "time_limit"):
            best = replace(best, status=ended.status)
            break
    return replace(best, rises=tuple(rises), loss=None if select is None else least)


def _nearest(
    a: Posterior, b: Posterior, symmetry: Symmetry, distance: Callable[[Permutation], float]
) -> Permutation | None:
    """The nearest of all relabelings; None where they, or those that may be nearest, are too many."""
    if symmetry.rotated or symmetry.log_order > math.log(LIMIT) + 1e-9:
        return None
    goal = build_objective(a, b, symmetry, "w2")
    fixed, moving = goal.fixed, goal.moving
    sizes = sum(float(t.double().square().sum()) for s in goal.symmetry.sites for t in (*fixed[s], *moving[s]))
    candidates = [
        (sizes - 2 * value, k, stack)
        for values, stack in tried(Problem(goal.symmetry, fixed, moving, fixed.odd))
        for k, value in enumerate(values.tolist())
    ]
    width = sum(math.prod(shape) for shape in a.shapes.values())
    best, least, tries = None, math.inf, max(1, _WORK // width**3)
    for bound, k, stack in sorted(candidates, key=lambda candidate: candidate[0]):
        if bound - _ROUNDING * sizes > least**2:
            break
        if not tries:
            return None
        element, tries = goal.as_element(member(goal.symmetry, stack, k)), tries - 1
        if (now := distance(element)) < least:
            best, least = element, now
    return best


def _starts(
    symmetry: Symmetry, found: Permutation, restarts: int, seed: int
) -> Iterator[Permutation | tuple[Any, ...]]:
    """The marginals' optimum, the identity, and restarts: a relabeling, or how to kick the best so far."""
    yield found
    if not found.is_identity:
        yield symmetry.identity()
    generator = torch.Generator().manual_seed(seed)
    for k in range(restarts):
        yield symmetry.random(generator) if k % 4 == 3 else (_KICKS[k % 4], generator)


def _alternate(
    a: Posterior,
    b: Posterior,
    symmetry: Symmetry,
    found: Match,
    distance: Callable[[Permutation], float],
    options: Mapping[str, Any],
) -> Match:
    best, least = found.permutation, distance(found.permutation)
    while True:
        goal = over(symmetry, *(stacked_features(f, symmetry.stacks) for f in a.coupled_features(b, best)))
        how = {"odd": goal.fixed.odd, "init": goal.start(best), **options}
        found = goal.finish(match(goal.symmetry, goal.fixed, goal.moving, **how))
        nearer = distance(found.permutation)
        status = "converged" if found.status == "optimal" else found.status  # given the coupling, which may not be best
        if found.permutation == best or not nearer < least:
            return replace(found, permutation=best, status=status)
        best, least = found.permutation, nearer
        if status in ("interrupted", "time_limit"):
            return found
