"""Many at once: relabelings of several sets of tensors that make all of them alike (Crisostomi et al. 2024, C2M3).

Maximizes the sum over pairs k < l of ``<P_k m_k, P_l m_l>``. Relabelings found pair by pair do not agree with each
other: going from a to b to c is not going from a to c. Here each set has one relabeling into a common frame, the
first set's own, so every round trip comes back to where it began.

With S the sum of the relabeled sets, the objective is ``(|S|^2 - sum_k |P_k m_k|^2) / 2``. Frank-Wolfe climbs it on
the convex hulls of all relabelings jointly: towards the relabelings that maximize its linearisation, by the length at
which the objective, a polynomial of low degree along the segment, is largest. The result is rounded and polished: in
turn each set is matched to the sum of the others, which never lowers the objective.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pyro_align.errors import MatchError
from pyro_align.matching.assignment import assign
from pyro_align.matching.clock import Clock
from pyro_align.matching.problem import Features, Problem
from pyro_align.matching.sinkhorn import soft_values
from pyro_align.matching.solve import match
from pyro_align.symmetry.element import Permutation
from pyro_align.symmetry.group import Symmetry

Soft = list[dict[str, Tensor]]


@dataclass(frozen=True)
class ManyMatch:
    """What :func:`match_many` found.

    Attributes:
        permutations: One relabeling per set; the first is the identity.
        objective: Sum over pairs of sets of the inner products of their relabeled features.
        history: Objective before the polish and after each of its rounds; never falls but by rounding.
        steps: Frank-Wolfe steps made.
        status: ``"converged"``, ``"max_sweeps"`` or ``"time_limit"``.
    """

    permutations: tuple[Permutation, ...]
    objective: float
    history: tuple[float, ...]
    steps: int
    status: str


def match_many(
    symmetry: Symmetry,
    features: Sequence[Features],
    *,
    odd=None,
    steps: int = 50,
    tolerance: float = 1e-4,
    max_sweeps: int = 100,
    time_limit: float | None = None,
    seed: int = 0,
) -> ManyMatch:
    """Relabels several sets of tensors so that all of them are alike.

    Args:
        symmetry: The group, with known sizes.
        features: Two or more sets: site -> features, as in :func:`match`.
        odd: Which features change sign with signed units, as in :func:`match`.
        steps: Largest number of Frank-Wolfe steps. With signed units there are none, and the polish starts from every
            set matched to the first.
        tolerance: Ends when a step can gain no more than this share of the objective's present size.
        max_sweeps: Rounds of the polish.
        time_limit: Wall time in seconds after which to stop with the best so far, or None.
        seed: Seed of the matchings.

    Raises:
        MatchError: Fewer than two sets, or sets that do not fit the symmetry or each other.

    Example:
        >>> symmetry = Symmetry.from_axes({"w": ("unit", None)}, shapes={"w": (3, 2)})
        >>> w = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> found = match_many(symmetry, [{"w": (w,)}, {"w": (w[[2, 0, 1]],)}, {"w": (w[[1, 2, 0]],)}])
        >>> [p.indices["unit"].tolist() for p in found.permutations]
        [[0, 1, 2], [1, 2, 0], [2, 0, 1]]
        >>> found.objective  # three pairs
        12.0
    """
    if len(features) < 2:
        raise MatchError(f"features: expected two sets or more, got {len(features)}")
    clock = Clock(time_limit)
    problems = [Problem(symmetry, features[0], m, odd) for m in features]
    total = _Total(problems)
    with torch.no_grad():
        first = symmetry.identity()
        star = [first, *(match(symmetry, features[0], m, odd=odd, seed=seed).permutation for m in features[1:])]
        candidates, made = [[first] * len(problems), star], 0
        if not symmetry.signed and symmetry.atoms:
            rounded, made = _climb(problems, steps, tolerance, clock)
            candidates.append(rounded)
        best = max(candidates, key=total)
        permutations, history, status = _polish(total, features, odd, best, max_sweeps, clock, seed)
    back = permutations[0].inverse()
    return ManyMatch(tuple(back @ p for p in permutations), history[-1], tuple(history), made, status)


class _Total:
    """The objective of relabelings, and the sum of all sets but one."""

    def __init__(self, problems: Sequence[Problem]):
        self.problems = problems

    def __call__(self, permutations: Sequence[Permutation]) -> float:
        return 0.5 * sum(
            float(whole.double().square().sum()) - sum(float(v.double().square().sum()) for v in values)
            for site in self.problems[0].symmetry.sites
            for values in zip(*(self._moved(k, p, site) for k, p in enumerate(permutations)), strict=True)
            for whole in [torch.stack(values).sum(0)]
        )

    def others(self, permutations: Sequence[Permutation], k: int) -> dict[str, tuple[Tensor, ...]]:
        """The sum of the relabeled sets but the k-th."""
        rest = [i for i in range(len(permutations)) if i != k]
        return {
            site: tuple(sum(v) for v in zip(*(self._moved(i, permutations[i], site) for i in rest), strict=True))
            for site in self.problems[0].symmetry.sites
        }

    def _moved(self, k: int, permutation: Permutation, site: str) -> list[Tensor]:
        return [permutation.apply_site(site, m, signs=o) for _, m, o in self.problems[k].features(site)]


def _polish(total: _Total, features, odd, start, max_sweeps: int, clock: Clock, seed: int):
    permutations, history = list(start), [total(start)]
    symmetry = permutations[0].symmetry
    for sweep in range(max_sweeps):
        moved = False
        for k, moving in enumerate(features):
            if clock.expired:
                return permutations, history, "time_limit"
            rest = total.others(permutations, k)
            found = match(symmetry, rest, moving, odd=odd, init=permutations[k], seed=seed + sweep)
            moved |= found.permutation != permutations[k]
            permutations[k] = found.permutation
        history.append(total(permutations))
        if not moved:
            return permutations, history, "converged"
    return permutations, history, "max_sweeps"


# -- Frank-Wolfe ------------------------------------------------------------------------------------------------------


def _climb(problems: Sequence[Problem], steps: int, tolerance: float, clock: Clock) -> tuple[list[Permutation], int]:
    """The rounded end point, and the steps made. The first set stays; the others begin where all are equally likely."""
    symmetry = problems[0].symmetry
    identity = {k: _matrices(v, problems[0]) for k, v in symmetry.identity().indices.items()}
    even = {k: torch.full_like(v, 1 / v.shape[-1]) for k, v in identity.items()}
    point: Soft = [identity, *(even for _ in problems[1:])]
    degree = 2 * max((sum(bool(d.name) for d in b.dims) for b in problems[0].all_blocks), default=1)
    times = np.linspace(0.0, 1.0, degree + 1)
    made = 0
    for _ in range(steps):
        if clock.expired:
            break
        gradient = _gradient(problems, point)
        vertex: Soft = [identity, *({k: _matrices(assign(g), problems[0]) for k, g in gs.items()} for gs in gradient)]
        ways = zip(gradient, vertex[1:], point[1:], strict=True)
        slope = sum(float((g[k] * (v[k] - x[k])).sum()) for g, v, x in ways for k in g)
        values = [_value(problems, _between(point, vertex, float(t))) for t in times]
        if slope <= tolerance * abs(values[0]):
            break
        length = _longest(times, values)
        if length <= 0:
            break
        point = _between(point, vertex, length)
        made += 1
    rounded = [symmetry.permutation({k: assign(v).cpu() for k, v in x.items()}) for x in point]
    return rounded, made


def _longest(times: np.ndarray, values: Sequence[float]) -> float:
    """Where in [0, 1] the polynomial through these values is largest."""
    curve = np.polynomial.Polynomial.fit(times, values, len(times) - 1)
    inside = [float(r.real) for r in curve.deriv().roots() if abs(r.imag) < 1e-9 and 0 < r.real < 1]
    return max([0.0, 1.0, *inside], key=lambda t: float(curve(t)))


def _between(a: Soft, b: Soft, t: float) -> Soft:
    return [{k: torch.lerp(x[k], y[k], t) for k in x} for x, y in zip(a, b, strict=True)]


def _matrices(index: Tensor, problem: Problem) -> Tensor:
    """Index tensors ``(*outer sizes, n)`` as permutation matrices."""
    return torch.nn.functional.one_hot(index.to(problem.device), index.shape[-1]).to(problem.work_dtype)


def _value(problems: Sequence[Problem], point: Soft) -> float:
    return float(_soft_total(problems, point))


def _gradient(problems: Sequence[Problem], point: Soft) -> list[Mapping[str, Tensor]]:
    """The gradient of the objective by every matrix but the first set's."""
    with torch.enable_grad():
        leaves = [{k: v.detach().requires_grad_() for k, v in x.items()} for x in point[1:]]
        flat = [v for x in leaves for v in x.values()]
        grads = iter(torch.autograd.grad(_soft_total(problems, [point[0], *leaves]), flat))
    return [{k: next(grads) for k in x} for x in leaves]


def _soft_total(problems: Sequence[Problem], point: Soft) -> Tensor:
    values = [soft_values(p, x, {}) for p, x in zip(problems, point, strict=True)]
    total = 0.0
    for site in problems[0].symmetry.sites:
        for features in zip(*(v[site] for v in values), strict=True):
            total = total + sum(features).square().sum() - sum(f.square().sum() for f in features)
    return 0.5 * total
