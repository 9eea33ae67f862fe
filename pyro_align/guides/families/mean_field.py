"""Mean-field Gaussians: ``AutoNormal`` and ``AutoDiagonalNormal``.

The family: in the unconstrained coordinates of each site, independent normals with location m and scale s. Relabeling
indexes both (signs turn m, not s). The Wasserstein-2 geodesic between two members moves m and s linearly, because
diagonal covariances commute: W2^2 = |m0 - m1|^2 + |s0 - s1|^2 (Takatsu 2011).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal
from pyro.infer.autoguide.effect import AutoMessenger, AutoNormalMessenger
from pyro.nn import PyroModule
from torch import Tensor

from pyro_align.errors import GuideError
from pyro_align.guides.divergences import divergence_of, known_divergences
from pyro_align.guides.families.entrywise import Entrywise, read_entries
from pyro_align.guides.features import Features
from pyro_align.guides.pyro_state.modules import Prototype, RawParameter, latent_nodes, read_parameter, site_specs
from pyro_align.guides.registry import register_guide
from pyro_align.guides.relabel import Relabeling
from pyro_align.guides.sites import Noise, SiteSpec, Values, check_finite, check_scale, split_flat, standard_normal
from pyro_align.symmetry.element import Permutation

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True, eq=False)
class MeanFieldNormal(Entrywise):
    """Independent normals in unconstrained coordinates.

    Attributes:
        sites: The sites.
        locs: Site -> the location's parameter, ``unconstrained_shape``.
        scales: Site -> the scale's parameter.
        write: Makes a Pyro guide of a member of the family.
    """

    sites: Mapping[str, SiteSpec]
    locs: Mapping[str, RawParameter] = field(repr=False)
    scales: Mapping[str, RawParameter] = field(repr=False)
    write: Callable[[MeanFieldNormal], object] = field(repr=False)

    entries = ("locs", "scales")
    in_unconstrained = True
    moves_whole_sites = True

    @property
    def divergences(self) -> tuple[str, ...]:
        return known_divergences()

    def __post_init__(self) -> None:
        for name in self.sites:
            check_finite("location", name, self.locs[name].value)
            check_scale(name, self.scales[name].value)

    def marginal(self, site: str) -> tuple[Tensor, Tensor]:
        """Location and scale of one site in unconstrained coordinates, ``unconstrained_shape`` each."""
        return self.locs[site].value, self.scales[site].value

    def _permute(self, p: Permutation) -> MeanFieldNormal:
        act = Relabeling(p, self.sites)
        locs, scales = (
            {k: v.with_raw(act.unconstrained(k, v.raw, signs=signs)) for k, v in act.renamed(part).items()}
            for part, signs in ((self.locs, True), (self.scales, False))
        )
        return replace(self, locs=locs, scales=scales)

    def permute_noise(self, p: Permutation, noise: Noise) -> Noise:
        act = Relabeling(p, self.sites)
        return {k: act.unconstrained(k, v, batch_dims=1) for k, v in act.renamed(noise).items()}

    def noise(self, num_samples: int, *, generator: torch.Generator | int = 0) -> Noise:
        return standard_normal(self.sites, num_samples, generator)

    def push_with_log_prob(self, noise: Noise) -> tuple[Values, Tensor]:
        values, total = {}, 0.0
        for name, spec in self.sites.items():
            loc, scale = self.marginal(name)
            eps = noise[name]
            latent = torch.addcmul(loc, scale, eps)
            values[name] = spec.constrain(latent)
            # sums before differences: no term is written out for every entry of every draw but the squares
            square = eps.reshape(len(eps), -1).square().sum(-1)
            constant = scale.log().sum() + scale.numel() * _HALF_LOG_2PI
            total = total - 0.5 * square - constant - spec.log_volume(latent, values[name])
        return values, total

    def log_prob(self, values: Values) -> Tensor:
        """Log density (nats) of constrained values ``(draws, *site_shape)``, ``(draws,)``."""
        noise = {}
        for name, spec in self.sites.items():
            loc, scale = self.marginal(name)
            noise[name] = (spec.unconstrain(values[name]) - loc) / scale
        return self.push_with_log_prob(noise)[1]

    def _features(self, divergence: str, side: str) -> Features:
        known = divergence_of(divergence)
        make = known.fixed if side == "fixed" else known.moving
        return Features(
            self.sites,
            lambda name: tuple(self.sites[name].as_feature(t) for t in make(*self.marginal(name))),
            known.odd,
        )

    def with_moments(self, moments: Mapping[str, tuple[Tensor, Tensor]]) -> MeanFieldNormal:
        """The same with the locations and scales given for some sites."""
        locs = {k: self.locs[k].with_value(loc) for k, (loc, _) in moments.items()}
        scales = {k: self.scales[k].with_value(scale) for k, (_, scale) in moments.items()}
        return replace(self, locs={**self.locs, **locs}, scales={**self.scales, **scales})


AUTO_NORMAL = {"locs": "locs.{}", "scales": "scales.{}"}


@register_guide(AutoNormal, AutoNormalMessenger)
def read_auto_normal(guide: AutoNormal | AutoNormalMessenger) -> MeanFieldNormal:
    """Reads ``locs.<site>`` and ``scales.<site>``, whatever constraint the scales have."""
    q = read_entries(MeanFieldNormal, guide, AUTO_NORMAL)
    if not isinstance(guide, AutoNormalMessenger):
        return q
    return replace(q, sites={k: own_plates_only(guide, spec, q.locs[k].raw) for k, spec in q.sites.items()})


def own_plates_only(guide: AutoMessenger, spec: SiteSpec, loc: Tensor) -> SiteSpec:
    """The site without the particle plates that stood around the messenger's last run."""
    outer = len(spec.unconstrained_shape) - loc.dim()
    if {name for name, *_ in spec.frames} & set(guide.amortized_plates) or spec.unconstrained_shape[
        max(outer, 0) :
    ] != loc.shape:
        raise GuideError(
            f"site '{spec.name}': its parameters, of shape {tuple(loc.shape)}, are shared along a plate, so they "
            "cannot be relabeled one by one; relabel the guide by wrapping: wrap_guide(guide, *args)"
        )
    return replace(spec, shape=tuple(spec.transform.forward_shape(loc.shape)))


@register_guide(AutoDiagonalNormal)
def read_auto_diagonal_normal(guide: AutoDiagonalNormal) -> MeanFieldNormal:
    """Reads the flat ``loc`` and ``scale``, which concatenate the sites in the order of the prototype trace."""
    sites = site_specs(latent_nodes(guide), guide, full_plates=False)
    loc, scale = read_parameter(guide, "loc"), read_parameter(guide, "scale")
    writer = partial(_write_diagonal, Prototype.of(guide), loc, scale)
    locs, scales = ({k: p.with_raw(v) for k, v in split_flat(sites, p.raw).items()} for p in (loc, scale))
    return MeanFieldNormal(sites, locs, scales, writer)


def _write_diagonal(prototype: Prototype, loc: RawParameter, scale: RawParameter, q: MeanFieldNormal) -> PyroModule:
    made = {"loc": (loc, q.locs), "scale": (scale, q.scales)}
    return prototype.build(
        {k: p.with_raw(torch.cat([v.raw.flatten() for v in parts.values()])) for k, (p, parts) in made.items()}
    )
