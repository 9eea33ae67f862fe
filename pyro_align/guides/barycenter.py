"""Wasserstein-2 barycenters: the member of a family with the least mean squared distance to others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor

from pyro_align.errors import GuideError
from pyro_align.guides.families.entrywise import Point
from pyro_align.guides.families.gaussian import DenseNormal, coupling, in_order
from pyro_align.guides.families.mean_field import MeanFieldNormal
from pyro_align.guides.posterior import Posterior

_ROUNDS, _TOLERANCE = 200, 1e-12


def barycenter(posteriors: Sequence[Posterior]) -> Posterior:
    """The W2 barycenter with equal weights, a member of the same family.

    Diagonal Gaussians and point masses: means of locations and of standard deviations. Dense Gaussians: the fixed
    point of Alvarez-Esteban et al. (2016), reached by averaging roots that are turned to the current one.

    Raises:
        GuideError: No posterior, posteriors over different sites, or a family without a barycenter.
    """
    if not posteriors:
        raise GuideError("a barycenter needs at least one posterior")
    for other in posteriors[1:]:
        posteriors[0].check_compatible(other)
    return _barycenter(posteriors[0], list(posteriors))


@singledispatch
def _barycenter(first: Posterior, posteriors: list[Any]) -> Posterior:
    raise GuideError(
        f"the barycenter of {type(first).__name__} posteriors has no rule; align to a reference instead: "
        "align_many(guides, symmetry, reference=0)"
    )


@_barycenter.register(MeanFieldNormal)
@_barycenter.register(Point)
def _(first: Any, posteriors: list[Any]) -> Posterior:
    return first.changed(lambda _, *values: _mean(values), *posteriors[1:], what="barycenter")


@_barycenter.register
def _(first: DenseNormal, posteriors: list[Any]) -> Posterior:
    if type(first) is not DenseNormal:  # a subfamily, which the barycenter leaves
        return _barycenter.dispatch(object)(first, posteriors)
    members = [in_order(q, first.sites) for q in posteriors]
    root = first.root
    for _ in range(_ROUNDS):
        turned = _mean([q.root @ coupling(root, q.root) for q in members])
        moved = float((turned - root).norm())
        root = turned
        if moved <= _TOLERANCE * float(root.norm()):
            break
    return replace(first, loc=_mean([q.loc for q in members]), root=root, stored=None)


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    if len(tensors) == 1:
        return tensors[0].clone()
    total = torch.zeros_like(tensors[0], dtype=torch.float64)
    for t in tensors:
        total += t
    return (total / len(tensors)).to(tensors[0].dtype)
