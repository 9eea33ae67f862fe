"""Ensembles: lists of point guides or of state dicts. Members are paired, not smoothed.

The law is the few points themselves. Between two ensembles of equally many members the optimal coupling is an
assignment, and the displacement moves each member on a straight line to its partner (McCann 1997; the discrete case is
an exact W2 geodesic). Lines are straight in unconstrained coordinates where the bijection is elementwise, and in the
constrained ones else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from pyro_align.errors import GuideError
from pyro_align.guides.families.draws import Draws, plain_sites, straight
from pyro_align.guides.families.entrywise import Point
from pyro_align.guides.features import Features
from pyro_align.guides.posterior import Posterior
from pyro_align.guides.registry import read_guide, register_guide
from pyro_align.guides.sites import SiteSpec, check_tau
from pyro_align.symmetry.element import Permutation


@dataclass(frozen=True, eq=False)
class Ensemble(Draws):
    """A few points of equal weight; attributes as those of :class:`Draws`."""

    is_coupled = True

    def _linear(self, site: str, values: Tensor) -> Tensor:
        return straight(self.sites[site], values)

    def coupled_features(self, other: Posterior, p: Permutation) -> tuple[Features, Features]:
        self.check_compatible(other)
        return self._members(), other._members(self._partners(other._permute(p)))

    def _members(self, order: Tensor | None = None) -> Features:
        def make(name: str) -> tuple[Tensor, ...]:
            values = self._linear(name, self.draws[name]) / math.sqrt(self.num_draws)
            return tuple(values if order is None else values[order.to(values.device)])

        return Features(self.sites, make, (True,) * self.num_draws)

    def distance(self, other: Posterior) -> float:
        self.check_compatible(other)
        gap = self.coordinates - other._coordinates_like(self)[self._partners(other)]
        return math.sqrt(float(gap.square().sum()) / self.num_draws)

    def distance_error(self, other: Posterior) -> float:
        return 0.0

    def displace(self, other: Posterior, tau: float) -> Ensemble:
        self.check_compatible(other)
        tau = check_tau(tau)
        if tau == 0.0:
            return self
        partners, draws = self._toward(other, lambda: self._partners(other)), {}
        for name, spec in self.sites.items():
            there = other.draws[name][partners.to(other.draws[name].device)]
            draws[name] = there if tau == 1.0 else _between(spec, self.draws[name], there, tau)
        return replace(self, draws=draws)

    def _partners(self, other: Ensemble) -> Tensor:
        """For each member the one of the other ensemble that it goes to under the cheapest assignment."""
        cost = torch.cdist(self.coordinates, other._coordinates_like(self)).square()
        return torch.as_tensor(linear_sum_assignment(cost.cpu().numpy())[1], device="cpu")

    def path_notes(self, other: Posterior) -> tuple[str, ...]:
        return ("kl and the negative ELBO are absent: an ensemble has no density",)

    def check_compatible(self, other: Posterior) -> None:
        Posterior.check_compatible(self, other)
        if other.num_draws != self.num_draws:
            raise GuideError(f"the ensembles have {self.num_draws} and {other.num_draws} members; take equally many")


def _between(spec: SiteSpec, here: Tensor, there: Tensor, tau: float) -> Tensor:
    if spec.is_discrete:
        return here if tau < 0.5 else there
    if spec.core_event_dims[0]:
        value = torch.lerp(here, there, tau)
        if not bool(spec.support.check(value).all()):
            raise GuideError(f"site '{spec.name}': its support {spec.support} is not convex, draws cannot be displaced")
        return value
    return spec.constrain(torch.lerp(spec.unconstrain(here), spec.unconstrain(there), tau))


@register_guide(list, tuple)
def read_ensemble(members: Sequence[Any]) -> Ensemble:
    """Reads a list of point guides (``AutoDelta``) or of state dicts, one member each."""
    if not members:
        raise GuideError("the ensemble is empty")
    if all(isinstance(m, Mapping) for m in members):
        names = list(members[0])
        if any(list(m) != names for m in members):
            raise GuideError("the state dicts of the ensemble have different names")
        draws = {k: torch.stack([_tensor(m[k]) for m in members]) for k in names}
        sites = plain_sites(draws)
        # integers of a state dict are counters of batches and the like, never labels
        return Ensemble(sites, draws, {k: None for k, spec in sites.items() if spec.is_discrete})
    points = [read_guide(m) for m in members]
    if not all(type(q) is Point for q in points):
        raise GuideError("an ensemble is a list of AutoDelta guides or of state dicts (site -> value)")
    for q in points[1:]:
        points[0].check_compatible(q)
    return Ensemble(points[0].sites, {k: torch.stack([q.points[k].value for q in points]) for k in points[0].sites})


def _tensor(value: Any) -> Tensor:
    return value.detach() if isinstance(value, Tensor) else torch.as_tensor(value, device="cpu")
