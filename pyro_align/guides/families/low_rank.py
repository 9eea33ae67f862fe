"""``AutoLowRankMultivariateNormal``: covariance ``diag(s^2) + W W^T`` with ``W = s[:, None] * cov_factor``.

Relabeling indexes rows, and stays in the family. Its root is ``[diag(s), W]``. A point inside a Wasserstein-2
geodesic generally has full rank: :meth:`LowRankNormal.displace` then gives an ``AutoMultivariateNormal``. The
restricted coupling ``low_rank`` couples diagonal with diagonal noise and factor with factor noise; its path keeps type
and rank, is linear in ``s`` and ``W``, and is at least as long as the geodesic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

import torch
from pyro.distributions import LowRankMultivariateNormal
from pyro.infer.autoguide import AutoLowRankMultivariateNormal
from torch import Tensor

from pyro_align.errors import GuideError
from pyro_align.guides.families.gaussian import (
    DenseNormal,
    FlatNormal,
    coupling,
    flat_noise,
    places_of,
)
from pyro_align.guides.families.multivariate import dense_writer
from pyro_align.guides.posterior import Posterior
from pyro_align.guides.pyro_state.modules import Prototype, RawParameter, latent_nodes, read_parameter, site_specs
from pyro_align.guides.registry import register_guide
from pyro_align.guides.relabel import Relabeling
from pyro_align.guides.sites import Noise, SiteSpec, check_finite, check_scale, check_tau, split_flat
from pyro_align.symmetry.element import Permutation

if TYPE_CHECKING:
    from pyro_align.guides.features import Features

LARGEST_DENSE = 8192  # above this many coordinates a dense root no longer fits comfortably: 0.5 GB in float64


@dataclass(frozen=True, eq=False)
class LowRankNormal(FlatNormal):
    """A Gaussian with covariance ``diag(scale^2) + W W^T``, ``W = scale[:, None] * factor``.

    Attributes:
        sites: The sites, in the order in which they are concatenated.
        loc: Location, ``(D,)``.
        scale: The scale's parameter, ``(D,)``.
        factor: The scaled factor's parameter, ``(D, K)``.
        write: Makes a Pyro guide of a member of the family.
        write_dense: Makes a Pyro guide of a :class:`DenseNormal` over the same sites.
    """

    sites: Mapping[str, SiteSpec]
    loc: Tensor = field(repr=False)
    scale: RawParameter = field(repr=False)
    factor: RawParameter = field(repr=False)
    write: Callable[[LowRankNormal], object] = field(repr=False)
    write_dense: Callable[[DenseNormal], object] = field(repr=False)

    moves_whole_sites = True

    @property
    def extra(self) -> int:
        return self.factor.raw.shape[-1]

    def __post_init__(self) -> None:
        for what, rows in (("location", self.loc), ("factor", self.factor.value.T)):
            for name, part in split_flat(self.sites, rows).items():
                check_finite(what, name, part)
        for name, part in split_flat(self.sites, self.scale.value).items():
            check_scale(name, part)

    @property
    def low_rank_part(self) -> Tensor:
        """``W``, ``(D, K)``."""
        return self.scale.value.unsqueeze(-1) * self.factor.value

    @cached_property
    def dense(self) -> DenseNormal:
        """The same Gaussian as a :class:`DenseNormal` with root ``[diag(s), W]``.

        Raises:
            GuideError: It has more coordinates than a dense root can hold.
        """
        if len(self.loc) > LARGEST_DENSE:
            raise GuideError(
                f"the exact Wasserstein-2 geometry of {len(self.loc)} coordinates needs a dense root (at most "
                f"{LARGEST_DENSE}); use displacement(a, b, coupling='low_rank')"
            )
        root = torch.cat([torch.diag(self.scale.value), self.low_rank_part], dim=-1)
        return DenseNormal(self.sites, self.loc, root, self.write_dense)

    @property
    def deviations(self) -> Tensor:
        return self.scale.value * (1 + self.factor.value.square().sum(-1)).sqrt()

    def _permute(self, p: Permutation) -> LowRankNormal:
        act = Relabeling(p, self.sites)
        scale = self.scale.with_raw(act.rows(self.scale.raw, signs=False))
        factor = self.factor.with_raw(act.rows(self.factor.raw))
        return replace(self, loc=act.rows(self.loc), scale=scale, factor=factor)

    def permute_noise(self, p: Permutation, noise: Noise) -> Noise:
        eps = flat_noise(self.sites, noise)[:, : len(self.loc)]
        return {**noise, **split_flat(self.sites, Relabeling(p, self.sites).rows(eps.T).T)}

    def _shift(self, eps: Tensor) -> Tensor:
        size = len(self.loc)
        return eps[:, :size] * self.scale.value + eps[:, size:] @ self.low_rank_part.T

    def _log_prob_at(self, shift: Tensor) -> Tensor:
        center, variance = torch.zeros_like(self.loc), self.scale.value**2
        return LowRankMultivariateNormal(center, self.low_rank_part, variance, validate_args=False).log_prob(shift)

    def coupled_features(self, other: Posterior, p: Permutation) -> tuple[Features, Features]:
        self.check_compatible(other)
        return self.dense.coupled_features(other.dense, p)

    def distance(self, other: Posterior) -> float:
        self.check_compatible(other)
        return self.dense.distance(other.dense)

    def displace(self, other: Posterior, tau: float) -> Posterior:
        self.check_compatible(other)
        tau = check_tau(tau)
        if tau == 0.0:
            return self
        between = self.dense.displace(other.dense, tau)
        if tau == 1.0:
            end = self._with_values_of(other)
            return replace(between, stored=end, write=partial(_write_end, end, self.write_dense))
        return between

    def displace_low_rank(self, other: Posterior, tau: float) -> LowRankNormal:
        """The point at ``tau`` on the path of the restricted coupling, which keeps the type and the rank."""
        self.check_compatible(other)
        tau = check_tau(tau)
        theirs = self._with_values_of(other)
        if tau in (0.0, 1.0):
            return theirs if tau else self
        here, there = self.low_rank_part, theirs.low_rank_part
        scale = torch.lerp(self.scale.value, theirs.scale.value, tau)
        part = torch.lerp(here, there @ coupling(here, there), tau)
        return replace(
            self,
            loc=torch.lerp(self.loc, theirs.loc, tau),
            scale=self.scale.with_value(scale),
            factor=self.factor.with_value(part / scale.unsqueeze(-1)),
        )

    def distance_low_rank(self, other: Posterior) -> float:
        """Length of the path of the restricted coupling: an upper bound of the Wasserstein-2 distance."""
        self.check_compatible(other)
        theirs = self._with_values_of(other)
        here, there = self.low_rank_part.double(), theirs.low_rank_part.double()
        gaps = (self.loc - theirs.loc, self.scale.value - theirs.scale.value, here - there @ coupling(here, there))
        return math.sqrt(sum(float(gap.double().square().sum()) for gap in gaps))

    def _with_values_of(self, other: LowRankNormal) -> LowRankNormal:
        """The other's values, in the order of this posterior's sites and with its writer."""
        index = places_of(other.sites, self.sites, other.loc.device)
        scale, factor = self.scale.adopt(other.scale), self.factor.adopt(other.factor)
        return replace(
            self,
            loc=other.loc[index],
            scale=scale.with_raw(scale.raw[index]),
            factor=factor.with_raw(factor.raw[index]),
        )


@register_guide(AutoLowRankMultivariateNormal)
def read_auto_low_rank(guide: AutoLowRankMultivariateNormal) -> LowRankNormal:
    """Reads ``loc``, ``scale`` and ``cov_factor``."""
    sites = site_specs(latent_nodes(guide), guide, full_plates=False)
    loc, scale, factor = (read_parameter(guide, name) for name in ("loc", "scale", "cov_factor"))
    prototype = Prototype.of(guide)
    return LowRankNormal(sites, loc.value, scale, factor, partial(_write, prototype, loc), dense_writer(prototype))


def _write(prototype: Prototype, loc: RawParameter, q: LowRankNormal) -> AutoLowRankMultivariateNormal:
    return prototype.build({"loc": loc.with_value(q.loc), "scale": q.scale, "cov_factor": q.factor})


def _write_end(end: LowRankNormal, dense: Callable[[DenseNormal], object], q: DenseNormal) -> object:
    """The end of a path as the low-rank guide it is, and whatever is made of it as a dense one."""
    return end.to_guide() if q.stored is end else dense(q)
