"""Families with parameters of their own for every entry: moved on straight lines and averaged, each by itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from pyro_align.guides.features import squared_distance
from pyro_align.guides.posterior import Posterior
from pyro_align.guides.pyro_state.modules import (
    Prototype,
    RawParameter,
    latent_nodes,
    read_parameter,
    site_specs,
)
from pyro_align.guides.sites import check_tau

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
