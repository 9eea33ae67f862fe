"""Posteriors that are a set of draws: MCMC samples, ensembles, and the points between wrapped guides.

Relabeling indexes every draw. Between two sets of equally many draws the optimal coupling is an assignment, and the
displacement moves each draw on a straight line to its partner (McCann 1997; the discrete case is an exact W2 geodesic).
Lines are straight in unconstrained coordinates where the bijection is elementwise, and in the constrained ones else.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.nn import PyroModule
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.distributions import constraints

from pyro_align.errors import GuideError
from pyro_align.guides.families.point import Point
from pyro_align.guides.features import Features
from pyro_align.guides.labels import Labels, check_labels, label_moves, move_labels
from pyro_align.guides.posterior import Posterior
from pyro_align.guides.registry import read_guide, register_guide
from pyro_align.guides.relabel import Relabeling
from pyro_align.guides.sites import Noise, SiteSpec, Values, as_generator, check_draws, check_finite, check_tau
from pyro_align.symmetry.group import Permutation

NUM_DRAWS = 256  # draws by which a posterior without a closed form is represented


class EmpiricalGuide(PyroModule):
    """A Pyro guide that picks one of a set of draws with equal probability.

    The index is drawn as an auxiliary site that is not scored: a set of draws has no density.

    Args:
        sites: The sites.
        draws: Site -> draws, ``(draws, *site_shape)``; held as buffers.
        labels: Discrete site -> the atom whose units its values number, or None.
    """

    def __init__(self, sites: Mapping[str, SiteSpec], draws: Mapping[str, Tensor], labels: Labels | None = None):
        super().__init__(name=f"EmpiricalGuide_{uuid.uuid4().hex[:12]}")
        self._sites, self._labels = dict(sites), dict(labels or {})
        for i, name in enumerate(self._sites):
            self.register_buffer(f"draws_{i}", draws[name].detach().clone())

    @property
    def draws(self) -> Values:
        """Site -> draws, ``(draws, *site_shape)``."""
        return {name: self._buffers[f"draws_{i}"] for i, name in enumerate(self._sites)}

    def forward(self, *args, **kwargs):
        """Picks a draw; returns site -> value."""
        draws = self.draws
        first = next(iter(draws.values()))
        with poutine.mask(mask=False):
            weights = torch.ones(len(first), dtype=first.dtype, device=first.device)
            picked = pyro.sample(f"_{self._pyro_name}_index", dist.Categorical(weights), infer={"is_auxiliary": True})
        result = {}
        frames = {frame for spec in self._sites.values() for frame in spec.frames}
        plates = {frame[0]: pyro.plate(frame[0], frame[1], dim=frame[2]) for frame in sorted(frames)}
        for name, spec in self._sites.items():
            batch = len(spec.shape) - spec.event_dim
            lead = picked.shape[: picked.dim() - batch] if picked.dim() > batch else ()
            value = draws[name][picked.reshape(lead)]
            with ExitStack() as stack:
                for frame, *_ in spec.frames:
                    stack.enter_context(plates[frame])
                result[name] = pyro.sample(name, dist.Delta(value, event_dim=spec.event_dim))
        return result


@dataclass(frozen=True, eq=False)
class Empirical(Posterior):
    """A set of draws of equal weight.

    Attributes:
        sites: The sites.
        draws: Site -> constrained draws, ``(draws, *site_shape)``.
        labels: Discrete site -> the atom whose units its values number, or None.
    """

    sites: Mapping[str, SiteSpec]
    draws: Mapping[str, Tensor] = field(repr=False)
    labels: Labels = field(default_factory=dict)

    divergences = ("w2", "means")
    is_coupled = True

    def __post_init__(self):
        sizes = {name: len(value) for name, value in self.draws.items()}
        if len(set(sizes.values())) != 1 or 0 in sizes.values():
            raise GuideError(f"every site needs the same positive number of draws, got {sizes}")
        for name, value in self.draws.items():
            check_finite("draws", name, value)

    @property
    def num_draws(self) -> int:
        """Number of draws."""
        return len(next(iter(self.draws.values())))

    @cached_property
    def coordinates(self) -> Tensor:
        """The draws in the coordinates in which they move on straight lines, ``(draws, D)``."""
        parts = [_straight(self.sites[k], v).reshape(self.num_draws, -1) for k, v in self.draws.items()]
        return torch.cat(parts, dim=-1)

    def _permute(self, p: Permutation) -> Empirical:
        act, moves = Relabeling(p, self.sites), label_moves(p, self.sites, self.labels)
        draws = {k: act.constrained(k, v, batch_dims=1) for k, v in self.draws.items()}
        return replace(self, draws={**draws, **{k: move_labels(self.sites[k], i, draws[k]) for k, i in moves.items()}})

    def with_labels(self, labels: Labels) -> Empirical:
        return replace(self, labels={**self.labels, **check_labels(labels, self.sites)})

    def permute_noise(self, p: Permutation, noise: Noise) -> Noise:
        return dict(noise)

    def noise(self, num_samples: int, *, generator: torch.Generator | int = 0) -> Noise:
        """One uniform number per draw, stratified, so that the draws are used evenly."""
        return empirical_noise(num_samples, generator)

    def push_with_log_prob(self, noise: Noise) -> tuple[Values, Tensor]:
        """The draws picked; a set of draws has no density, so the second value is zero, as for a point mass."""
        picked = (noise["_draw"] * self.num_draws).long().clamp_max(self.num_draws - 1)
        values = {k: v[picked.to(v.device)] for k, v in self.draws.items()}
        return values, torch.zeros(len(picked), dtype=self.dtype, device=self.device)

    # -- geometry --------------------------------------------------------------------------------------------------

    def marginal(self, site: str) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of one site's draws, in the coordinates in which they move on straight lines."""
        return moment_features(self, "w2")[site]

    def _features(self, divergence: str, side: str) -> Features:
        return moment_features(self, divergence)

    def coupled_features(self, other: Posterior, p: Permutation):
        self.check_compatible(other)
        partner = _assignment(self.coordinates, other._permute(p).coordinates)
        return _per_draw(self), _per_draw(other, partner)

    def distance(self, other: Posterior) -> float:
        self.check_compatible(other)
        here, there = self.coordinates.double(), _reordered(other, self.sites).coordinates.double()
        gap = here - there[_assignment(here, there)]
        return math.sqrt(float(gap.square().sum()) / self.num_draws)

    def displace(self, other: Posterior, tau: float) -> Empirical:
        self.check_compatible(other)
        tau = check_tau(tau)
        if tau == 0.0:
            return self
        partner = self._partner(other)
        draws = {}
        for name, spec in self.sites.items():
            there = other.draws[name][partner.to(other.draws[name].device)]
            draws[name] = there if tau == 1.0 else _bent(spec, self.draws[name], there, tau)
        return replace(self, draws=draws)

    def _partner(self, other: Empirical) -> Tensor:
        cache = self.__dict__.setdefault("_partners", {})  # one assignment serves every tau of a path
        if cache.get("to") is not other:
            cache.update(to=other, value=_assignment(self.coordinates, _reordered(other, self.sites).coordinates))
        return cache["value"]

    def check_compatible(self, other: Posterior) -> None:
        super().check_compatible(other)
        if other.num_draws != self.num_draws:
            raise GuideError(
                f"the posteriors have {self.num_draws} and {other.num_draws} draws; take equally many (thin the longer)"
            )

    def to_guide(self) -> EmpiricalGuide:
        return EmpiricalGuide(self.sites, self.draws, self.labels)


# -- helpers -----------------------------------------------------------------------------------------------------------


def empirical_noise(num_samples: int, generator: torch.Generator | int) -> Noise:
    """One uniform number per draw, stratified."""
    generator, n = as_generator(generator), check_draws(num_samples)
    order = torch.rand(n, generator=generator, dtype=torch.float64, device="cpu").argsort()
    return {"_draw": (order + torch.rand(n, generator=generator, dtype=torch.float64, device="cpu")) / n}


def _straight(spec: SiteSpec, values: Tensor) -> Tensor:
    if spec.is_discrete:  # labels have no geometry
        return values.new_zeros((), dtype=torch.get_default_dtype()).expand(values.shape)
    return values if spec.core_event_dims[0] else spec.unconstrain(values)


def _bent(spec: SiteSpec, here: Tensor, there: Tensor, tau: float) -> Tensor:
    if spec.is_discrete:
        return here if tau < 0.5 else there
    if spec.core_event_dims[0]:
        value = torch.lerp(here, there, tau)
        if not bool(spec.support.check(value).all()):
            raise GuideError(f"site '{spec.name}': its support {spec.support} is not convex, draws cannot be displaced")
        return value
    return spec.constrain(torch.lerp(spec.unconstrain(here), spec.unconstrain(there), tau))


def _reordered(q: Empirical, sites: Mapping[str, SiteSpec]) -> Empirical:
    return q if list(q.draws) == list(sites) else replace(q, draws={k: q.draws[k] for k in sites})


def _assignment(here: Tensor, there: Tensor) -> Tensor:
    """For each row of ``here`` the row of ``there`` it goes to under the cheapest assignment."""
    cost = torch.cdist(here.double(), there.double()).square()
    return torch.as_tensor(linear_sum_assignment(cost.cpu().numpy())[1], device="cpu")


def _per_draw(q: Empirical, order: Tensor | None = None) -> Features:
    features = {}
    for name, spec in q.sites.items():
        values = _straight(spec, q.draws[name]) / math.sqrt(q.num_draws)
        features[name] = tuple(values if order is None else values[order.to(values.device)])
    return Features(features, features.__getitem__, (True,) * q.num_draws)


def moment_features(q: Empirical, divergence: str) -> Features:
    """Mean and standard deviation of the draws, in the coordinates in which they move on straight lines."""
    features = {}
    for name, spec in q.sites.items():
        values = _straight(spec, q.draws[name])
        scale = values.std(0, correction=0)
        features[name] = (values.mean(0), scale) if divergence == "w2" else (values.mean(0),)
    return Features(features, features.__getitem__, (True, False) if divergence == "w2" else (True,))


def draws_from(q: Posterior, labels: Labels | None = None, *, num_samples: int = NUM_DRAWS, seed: int = 0) -> Empirical:
    """A posterior as a set of its draws."""
    return Empirical(q.sites, q.push(q.noise(num_samples, generator=seed)), dict(labels or {}))


# -- draws and ensembles as guides -------------------------------------------------------------------------------------


@register_guide(EmpiricalGuide)
def read_empirical_guide(guide: EmpiricalGuide) -> Empirical:
    """Reads the draws."""
    return Empirical(guide._sites, {k: v.clone() for k, v in guide.draws.items()}, guide._labels)


@register_guide(dict)
def read_draws(draws: Mapping[str, Tensor]) -> Empirical:
    """Reads site -> draws ``(draws, *site_shape)``, as ``MCMC.get_samples()`` and ``Predictive`` return them."""
    if not draws:
        raise GuideError("there are no draws: the dict is empty")
    for name, value in draws.items():
        if not isinstance(value, Tensor) or value.dim() == 0:
            raise GuideError(f"site '{name}': expected a tensor (draws, *site_shape), got {type(value).__name__}")
    return Empirical(
        {k: _plain_site(k, v[0]) for k, v in draws.items()}, {k: v.detach().clone() for k, v in draws.items()}
    )


@register_guide(list, tuple)
def read_ensemble(members: Sequence) -> Empirical:
    """Reads a list of point guides (``AutoDelta``) or of state dicts, one draw each.

    Raises:
        GuideError: The list is empty, or holds something else.
    """
    if not members:
        raise GuideError("the ensemble is empty")
    if all(isinstance(m, Mapping) for m in members):
        names = list(members[0])
        if any(list(m) != names for m in members):
            raise GuideError("the state dicts of the ensemble have different names")
        draws = read_draws({k: torch.stack([_tensor(m[k]) for m in members]) for k in names})
        # integers of a state dict are counters of batches and the like, never labels
        return draws.with_labels({k: None for k, spec in draws.sites.items() if spec.is_discrete})
    points = [read_guide(m) for m in members]
    if not all(isinstance(q, Point) for q in points):
        raise GuideError("an ensemble is a list of AutoDelta guides or of state dicts (site -> value)")
    for q in points[1:]:
        points[0].check_compatible(q)
    draws = {k: torch.stack([q.points[k].value for q in points]) for k in points[0].sites}
    return Empirical(points[0].sites, draws)


def _tensor(value: Any) -> Tensor:
    return value.detach() if isinstance(value, Tensor) else torch.as_tensor(value, device="cpu")


def _plain_site(name: str, value: Tensor) -> SiteSpec:
    if not value.is_floating_point():
        support = constraints.boolean if value.dtype == torch.bool else constraints.nonnegative_integer
        return SiteSpec(name, tuple(value.shape), support, 0, value.dtype, value.device)
    return SiteSpec(name, tuple(value.shape), constraints.real, value.dim(), value.dtype, value.device)
