"""Families with parameters of their own for every entry, and the simplest: point masses, ``AutoDelta``.

``AutoDelta`` keeps its values in the *constrained* space, so relabeling is indexing for every support; where the
relabeled value leaves the support (an ordered vector, a Cholesky factor) the relabeling is refused. Displacement is
linear in the constrained space, which stays inside the support where that is convex.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, TypeVar

import torch
from pyro.infer.autoguide import AutoDelta
from torch import Tensor

from pyro_align.errors import GuideError
from pyro_align.guides.features import Features, squared_distance
from pyro_align.guides.posterior import Posterior
from pyro_align.guides.pyro_state.modules import (
    Prototype,
    RawParameter,
    latent_nodes,
    read_parameter,
    site_specs,
)
from pyro_align.guides.registry import register_guide
from pyro_align.guides.relabel import Relabeling
from pyro_align.guides.sites import Noise, SiteSpec, Values, as_generator, check_draws, check_finite, check_tau
from pyro_align.symmetry.element import Permutation

_RUN = 1 << 22  # entries evaluated at a time for a distance
_E = TypeVar("_E", bound="Entrywise")


class Entrywise(Posterior):
    """A dataclass some of whose fields, the ``entries``, map each site to a parameter.

    Raw tensors are kept in the parameters, so that indexing rounds nothing.
    """

    entries: ClassVar[tuple[str, ...]]

    def changed(
        self: _E, rule: Callable[..., Tensor], *others: Any, parts: Sequence[str] = (), what: str = "value"
    ) -> _E:
        """The member whose parameters have the values ``rule(site, value, *values of others)``."""

        def made(site: str, own: RawParameter, *there: RawParameter) -> RawParameter:
            value = own.value
            new = rule(site, value, *(parameter.value for parameter in there))
            return own if new is value else own.with_value(self._inside(site, new, what))

        return self._from(made, others, parts or self.entries)

    def _from(self: _E, made: Callable[..., RawParameter], others: Sequence[Any], parts: Sequence[str]) -> _E:
        return replace(
            self,
            **{
                part: {k: made(k, v, *(getattr(q, part)[k] for q in others)) for k, v in getattr(self, part).items()}
                for part in parts
            },
        )

    def _inside(self, site: str, value: Tensor, what: str) -> Tensor:
        """A new value, once it is known to be in the family."""
        return value

    def displace(self: _E, other: Posterior, tau: float) -> _E:
        self.check_compatible(other)
        tau = check_tau(tau)
        if tau in (0.0, 1.0):  # raw tensors, so that the end points are exact
            return self._from(lambda _, own, end: own.adopt(end), [other if tau else self], self.entries)
        return self.changed(lambda _, a, b: torch.lerp(a, b, tau), other, what=f"point at tau = {tau:g}")

    def distance(self, other: Posterior) -> float:
        return math.sqrt(sum(part**2 for part in self.site_distances(other).values()))

    def site_distances(self, other: Posterior) -> dict[str, float]:
        """The W2 distance of each site's marginals; their squares add up to the squared distance."""
        self.check_compatible(other)
        pairs = {k: [(getattr(self, part)[k], getattr(other, part)[k]) for part in self.entries] for k in self.sites}
        return {
            k: math.sqrt(sum(squared_distance(x, y) for a, b in pair for x, y in zip(_runs(a), _runs(b), strict=True)))
            for k, pair in pairs.items()
        }


def _runs(parameter: RawParameter) -> Iterator[Tensor]:
    """The values of a parameter by runs of its first axis, so that no large one is held as a whole."""
    raw, step = parameter.raw, parameter.raw.numel()
    if step > _RUN and raw.dim() > parameter.constraint.event_dim:
        step = max(1, _RUN * len(raw) // step)
    for part in raw.split(max(1, step)) if raw.dim() else (raw,):
        yield parameter.with_raw(part).value


def read_entries(
    family: type[_E],
    guide: Any,
    paths: Mapping[str, str],
    *,
    full_plates: bool = True,
    prototype: Prototype | None = None,
    **facts: Any,
) -> _E:
    """Reads a guide that stores every part under a path made of the site's name: ``{"locs": "locs.{}"}``."""
    sites = site_specs(latent_nodes(guide), guide, full_plates=full_plates)
    for part, path in paths.items():
        facts[part] = {site: read_parameter(guide, path.format(site)) for site in sites}
    return family(sites=sites, write=partial(write_entries, prototype or Prototype.of(guide), paths), **facts)


def write_entries(prototype: Prototype, paths: Mapping[str, str], q: Entrywise) -> Any:
    """A guide that stores every part under its path."""
    return prototype.build(
        {path.format(site): v for part, path in paths.items() for site, v in getattr(q, part).items()}
    )


@dataclass(frozen=True, eq=False)
class Point(Entrywise):
    """A point mass at one value per site.

    Attributes:
        sites: The sites.
        points: Site -> its value's parameter, in the constrained space.
        write: Makes a Pyro guide of a member of the family.
    """

    sites: Mapping[str, SiteSpec]
    points: Mapping[str, RawParameter] = field(repr=False)
    write: Callable[[Point], object] = field(repr=False)

    entries = ("points",)
    moves_whole_sites = True

    def __post_init__(self) -> None:
        for name, parameter in self.points.items():
            check_finite("value", name, parameter.value)

    def marginal(self, site: str) -> tuple[Tensor, Tensor]:
        """The value and a scale of zero, both of the site's shape, in the *constrained* space."""
        value = self.points[site].value
        return value, torch.zeros_like(value)

    def _permute(self, p: Permutation) -> Point:
        act = Relabeling(p, self.sites)
        return replace(self, points={k: self._relabeled(k, v, act) for k, v in act.renamed(self.points).items()})

    def _relabeled(self, site: str, parameter: RawParameter, act: Relabeling) -> RawParameter:
        value = parameter.value
        moved = self._inside(site, act.constrained(site, value), "relabeled value")
        if parameter.raw.shape == value.shape:  # elementwise and softmax constraints: index the raw tensor, no rounding
            raw = parameter.with_raw(act.constrained(site, parameter.raw))
            if torch.equal(raw.value, moved) or torch.allclose(raw.value, moved, rtol=1e-6, atol=0.0):
                return raw
        return parameter.with_value(moved)

    def permute_noise(self, p: Permutation, noise: Noise) -> Noise:
        return dict(noise)

    def noise(self, num_samples: int, *, generator: torch.Generator | int = 0) -> Noise:
        as_generator(generator)
        shape = (check_draws(num_samples), 0)  # a point mass needs no noise, only the number of draws
        return {k: torch.empty(shape, dtype=spec.dtype, device=spec.device) for k, spec in self.sites.items()}

    def push_with_log_prob(self, noise: Noise) -> tuple[Values, Tensor]:
        values = {k: v.value.expand(len(noise[k]), *self.sites[k].shape) for k, v in self.points.items()}
        first = next(iter(values.values()))
        return values, first.new_zeros(len(first))

    def _features(self, divergence: str, side: str) -> Features:
        return Features(self.points, lambda name: (self.points[name].value,), (True,))

    def _inside(self, site: str, value: Tensor, what: str) -> Tensor:
        spec = self.sites[site]
        with suppress(NotImplementedError):  # a support that cannot be checked cannot be left either
            if not bool(spec.support.check(value).all()):
                raise GuideError(
                    f"site '{spec.name}': the {what} leaves its support {spec.support}; "
                    "use a parametrization in which the support is closed under it (real, positive, simplex)"
                )
        return value


@register_guide(AutoDelta)
def read_auto_delta(guide: AutoDelta) -> Point:
    """Reads one parameter per site, named like the site."""
    return read_entries(Point, guide, {"points": "{}"})
