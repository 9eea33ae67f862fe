"""Relabeling methods: each alternates between assigning units to a reference and renewing the reference.

They differ in what is compared (coordinates of the draws, or allocations of the data) and in how the reference is made
(kept, or averaged). Every one of them is a linear objective per unit, so all share one matcher.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from pyro_align.draws.search import UnitMatcher
from pyro_align.draws.stack import Features, Labels
from pyro_align.draws.units import Sums, Units, assign_all
from pyro_align.errors import SymmetryError
from pyro_align.symmetry.group import Symmetry

METHODS = ("pivot", "barycenter", "stephens", "ecr", "ecr_iterative_1", "ecr_iterative_2", "ordering")
BY_VALUE = ("pivot", "barycenter")
BY_ALLOCATION = ("stephens", "ecr", "ecr_iterative_1", "ecr_iterative_2")
WEIGHTS = ("equal", "pooled", "diagonal")
_FLOOR = 1e-10  # allocation probabilities below this count as this: a logarithm must stay finite


@dataclass(frozen=True)
class Outcome:
    """How a method ended.

    Attributes:
        labels: The relabeling of every unit.
        reference: Site -> what the units were assigned to, ``site_shape``.
        iterations: Passes over the draws.
        converged: Whether the last pass changed nothing.
        improved: Number of units that a second search improved.
        fixed: Site -> what features were multiplied with; None where nothing was compared.
        scale: What differences of the objective are divided by to be log odds, nats.
        log_odds: Computes, for each draw, the log odds of its labeling against the second best, ``(chain, draw)``.
    """

    labels: Labels
    reference: Mapping[str, Tensor]
    iterations: int
    converged: bool
    improved: int = 0
    fixed: Features | None = None
    scale: float = 1.0
    log_odds: Callable[[], np.ndarray] | None = None


def by_values(
    units: Units,
    matcher: UnitMatcher,
    start: Features,
    *,
    averaged: bool,
    weights: str | Mapping[str, float],
    max_iterations: int,
) -> Outcome:
    """Pivotal reordering (Marin, Mengersen & Robert 2005) and its iteration to a barycenter.

    Minimizes the squared distance of each unit to the reference, site by site over the site's variance where weights
    are ``"pooled"``, element by element where ``"diagonal"``: then it is the maximum of the likelihood of independent
    normals over relabelings (Stephens 1997; the data-based and iterative methods of Papastamoulis 2016 are of this
    kind).

    Args:
        units: What is relabeled; with ``weights="diagonal"`` the second feature is the square of the first.
        matcher: Finds one unit's relabeling.
        start: Features of the first reference.
        averaged: Whether the reference becomes the mean of the relabeled units.
        weights: ``"equal"``, ``"pooled"``, ``"diagonal"``, or site -> weight.
        max_iterations: Passes after which to stop.
    """
    labels = Labels.identity(units.symmetry, units.count)
    center = {k: tuple(f.double() for f in v) for k, v in start.items()}
    fixed = _multiplied(center, None, weights)
    estimated = weights in ("pooled", "diagonal")
    improved = 0
    for iteration in range(1, max_iterations + 1):
        sums = assign_all(units, matcher, fixed, labels)
        improved = max(improved, sums.improved)
        done = (sums.changed == 0 and iteration > 1) or not (averaged or estimated)
        if done or iteration == max_iterations:
            scale = 1.0 if estimated else _scale(center, sums, weights)
            return Outcome(labels, {k: v[0] for k, v in center.items()}, iteration, done, improved, fixed, scale)
        if averaged:
            center = sums.mean
        fixed = _multiplied(center, sums, weights)
    raise AssertionError("max_iterations is at least one")


def _scale(center: Features, sums: Sums, weights: str | Mapping[str, float]) -> float:
    """Mean weighted squared distance of a relabeled element to the reference."""
    weight = {} if isinstance(weights, str) else weights
    numel = {k: v[0].numel() for k, v in center.items()}
    total = sum(weight.get(k, 1.0) * v * numel[k] for k, v in _pooled(center, sums).items())
    return max(total / max(1, sum(numel.values())), 1e-300)


def _multiplied(center: Features, sums: Sums | None, weights: str | Mapping[str, float]) -> Features:
    """What features are multiplied with; before the first pass variances are not known, and squares do not count."""
    pooled = _pooled(center, sums) if sums is not None and weights in ("pooled", "diagonal") else {}
    if weights == "diagonal":
        if sums is None:
            return {k: (m, torch.zeros_like(square)) for k, (m, square) in center.items()}
        fixed = {}
        for k, (m, *_) in center.items():
            first, second = sums.mean[k]
            variance = (second - 2 * m * first + m.square()).clamp_min(1e-2 * pooled[k])
            fixed[k] = (m / variance, -0.5 / variance)
        return fixed
    weight = {k: 1.0 / v for k, v in pooled.items()} if isinstance(weights, str) else weights
    return {k: tuple(f * weight.get(k, 1.0) for f in v) for k, v in center.items()}


def _pooled(center: Features, sums: Sums) -> dict[str, float]:
    """Mean squared distance of a relabeled element to the reference, by site."""
    out = {}
    for k, (m, *_) in center.items():
        value = sums.square[k] - 2 * float((m * sums.mean[k][0]).mean()) + float(m.square().mean())
        out[k] = max(value, 1e-12 * (1.0 + sums.square[k]))
    return out


def by_allocations(units: Units, matcher: UnitMatcher, method: str, pivot: Features, *, max_iterations: int) -> Outcome:
    """Relabeling from allocations. One site, ``(data, components)``, stands for the model's.

    ``"stephens"`` minimizes the Kullback-Leibler divergence from each draw's allocation probabilities to their mean
    (Stephens 2000, algorithm 2). The equivalence classes representatives (Papastamoulis & Iliopoulos 2010) agree with a
    pivot's allocations in as many data as possible: ``"ecr"`` keeps the pivot, ``"ecr_iterative_1"`` renews it by the
    most frequent allocations, ``"ecr_iterative_2"`` by the largest mean probability.

    Args:
        units: Features are the probabilities for ``"stephens"``, the allocations as indicators for ``"ecr"`` and
            ``"ecr_iterative_1"``, both for ``"ecr_iterative_2"``.
        matcher: Finds one unit's relabeling.
        method: One of the four.
        pivot: Features of the pivot.
        max_iterations: Passes after which to stop.
    """
    (site,) = pivot
    labels = Labels.identity(units.symmetry, units.count)
    reference, fixed = _reference(method, pivot[site])
    for iteration in range(1, max_iterations + 1):
        sums = assign_all(units, matcher, {site: fixed}, labels)
        if method == "ecr" or (sums.changed == 0 and iteration > 1):
            return Outcome(labels, {site: reference}, iteration, True, fixed={site: fixed})
        reference, fixed = _reference(method, sums.mean[site])
    return Outcome(labels, {site: reference}, max_iterations, False, fixed={site: fixed})


def _reference(method: str, mean: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The reference that mean features make, and what relabeled features are multiplied with."""
    if method == "stephens":  # sum_ik p log(p / q): only - sum p log q depends on the relabeling
        return mean[0], (mean[0].clamp_min(_FLOOR).log(),)
    hard = one_hot(mean[-1].argmax(-1), mean[-1].shape[-1]).to(mean[0].dtype)
    return hard, (hard, torch.zeros_like(mean[1])) if len(mean) > 1 else (hard,)


def by_ordering(
    values: Tensor, symmetry: Symmetry, atom: str, axis: int, labels: Labels, units: slice, valid: Tensor
) -> None:
    """An artificial identifiability constraint: units of an atom in increasing order of one site's values.

    Args:
        values: One site's draws ``(units, *site_shape)``; along its other axes the first entry decides.
        symmetry: The group.
        atom: The atom to be ordered.
        axis: The site's axis that carries it.
        labels: Changed in place.
        units: Where in ``labels``.
        valid: Draws that can be ordered.
    """
    if symmetry.outer_shape(atom):
        raise SymmetryError(f"atom '{atom}' is nested; ordering needs one that is not")
    key = values.movedim(axis + 1, 1).flatten(2)[..., 0] if values.dim() > 2 else values
    index = key.argsort(dim=1, stable=True).to(labels.indices[atom].dtype)
    labels.indices[atom][units] = torch.where(valid.unsqueeze(-1), index, labels.indices[atom][units])
