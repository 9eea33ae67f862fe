"""One scale for units that a likelihood lets grow before a ReLU and shrink behind it.

Two fits of one network may share scale between layers in different ways, for no other reason than how they began.
Before they are compared each is brought to the same gauge: that of least norm for points, and that of least KL to the
prior for mean-field posteriors. Either is convex in the logarithms of the scales, and a unit's
best scale, the others held, has a closed form where its exponents are one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_align.errors import GuideError, SymmetryError
from pyro_align.guides.families.entrywise import Point
from pyro_align.guides.families.mean_field import MeanFieldNormal
from pyro_align.guides.posterior import Guide, Posterior
from pyro_align.guides.registry import read_guide
from pyro_align.model.supports import is_real
from pyro_align.symmetry.group import Symmetry
from pyro_align.symmetry.scalings import Scaling

Scales = Mapping[str, Tensor]

_SWEEPS, _SETTLED = 1000, 1e-12  # over the atoms; the largest change of a logarithm at which they have ended
_NEWTON = 50  # steps for one unit whose exponents are not one


def canonical(guide: Any, symmetry: Symmetry, *, prior: float | Mapping[str, float | Tensor] = 1.0) -> Guide:
    """A guide, or a network, whose units have the one scale that fits its prior best; its likelihood is the same.

    Points get the least norm, ``sum (value / prior) ** 2``. Mean-field posteriors get the least KL to normal priors
    around zero. Where no unit may be scaled the guide comes back as it is. :func:`~pyro_align.align` does so itself.

    Args:
        guide: A guide with a point or an independent normal for each entry of its sites, a network, or a state dict.
        symmetry: The symmetry from ``find_symmetry(..., scope="likelihood", scalings=True)``, or of a module.
        prior: Standard deviation of the prior, one for all sites, or site -> number or tensor that broadcasts to it.

    Returns:
        A new guide of the same type; the old one stays as it is.

    Raises:
        GuideError: A posterior of another family, a scaled site that is not real, or a unit whose sites are all zero on
            one side of a scaling, which has no best scale.
        SymmetryError: A site that is scaled is missing, or has another shape.

    Example:
        >>> import torch
        >>> from pyro_align import canonical, find_symmetry
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> symmetry = find_symmetry(net, torch.randn(5, 3), scalings=True)
        >>> print(*symmetry.scalings)
        0: 0.weight[0], 0.bias[0], 2.weight[1]^-1
        >>> least, x = canonical(net, symmetry), torch.randn(5, 3)
        >>> bool((least(x) - net(x)).abs().max() < 1e-5)
        True
    """
    return one_scale(read_guide(guide), symmetry, prior)[0].to_guide()


def has_gauge(q: Posterior, symmetry: Symmetry) -> bool:
    """Whether the symmetry has scalings, and they have a gauge in closed form on this posterior."""
    scaled = {site for scaling in symmetry.scalings for site, _, _ in scaling.exponents}
    return bool(scaled) and isinstance(q, Point | MeanFieldNormal) and scaled.isdisjoint(symmetry.stacks)


def one_scale(
    q: Posterior, symmetry: Symmetry, prior: float | Mapping[str, float | Tensor] = 1.0
) -> tuple[Posterior, Scales]:
    """The posterior of :func:`canonical`, and scaling -> the factor of each unit by which it was brought there."""
    _check(q, symmetry)
    sites = {s for scaling in symmetry.scalings for s, _, _ in scaling.exponents}
    energy, entropy = {}, isinstance(q, MeanFieldNormal)
    for site in sites:
        loc, scale = (t.double().cpu() for t in q.marginal(site))
        width = prior.get(site, 1.0) if isinstance(prior, Mapping) else prior
        energy[site] = (loc.square() + scale.square()) / torch.as_tensor(width).double().square()
    parts = []
    for scaling in symmetry.scalings:
        powers = {s: scaling.powers(symmetry.sites, s) for s in dict.fromkeys(s for s, _, _ in scaling.exponents)}
        size = next(iter(powers.values())).shape[-1]
        parts.append(_Part(scaling, powers, torch.zeros(size, dtype=torch.float64, device="cpu")))
    for _ in range(_SWEEPS):
        largest = 0.0
        for part in parts:
            step = part.best(energy, entropy)
            for site, powers in part.powers.items():
                energy[site] = energy[site] * (2 * powers @ step).exp()
            part.total += step
            largest = max(largest, float(step.abs().max()))
        if largest <= _SETTLED:
            break
    factors: dict[str, Tensor] = {}
    for part in parts:
        for site, powers in part.powers.items():
            factor = (powers @ part.total).exp()
            factors[site] = factors[site] * factor if site in factors else factor

    def times(site: str, value: Tensor) -> Tensor:
        return value * factors[site].to(value) if site in factors else value

    return q.changed(times), {str(part.scaling): part.total.exp() for part in parts}


@dataclass
class _Part:
    """One scaling on its way: site -> exponents ``(*site_shape, size)`` by broadcasting, and the logarithms so far."""

    scaling: Scaling
    powers: dict[str, Tensor]
    total: Tensor

    def best(self, energy: Mapping[str, Tensor], entropy: bool) -> Tensor:
        """The step ``t`` that minimizes ``sum e^(2 k t) energy / 2 - k t`` (without entropy, its first part)."""
        terms: dict[float, Tensor] = {}  # exponent -> energy of each unit
        count = torch.zeros_like(self.total)
        for site, powers in self.powers.items():
            full = powers.expand(*energy[site].shape, powers.shape[-1])
            for k in powers.unique().tolist():
                if k:
                    here = (full == k).double()
                    terms[k] = terms.get(k, 0.0) + (here * energy[site].unsqueeze(-1)).flatten(0, -2).sum(0)
                    count = count + k * here.flatten(0, -2).sum(0)
        if not entropy:
            count = torch.zeros_like(count)
        up = sum((c for k, c in terms.items() if k > 0), torch.zeros_like(count))
        down = sum((c for k, c in terms.items() if k < 0), torch.zeros_like(count))
        if not bool(((up > 0) & (down > 0)).all()):
            raise GuideError(
                f"a unit of '{self.scaling.atom}' has only zeros on one side of the scaling {self.scaling}: any scale "
                "fits it. Remove such units, or use a symmetry that was found without scalings=True"
            )
        if set(terms) == {1.0, -1.0}:  # a quadratic in e^(2 t)
            return 0.5 * ((count + (count.square() + 4 * up * down).sqrt()) / (2 * up)).log()
        return _newton(terms, count)


def _newton(terms: Mapping[float, Tensor], count: Tensor) -> Tensor:
    t = torch.zeros_like(count)
    for _ in range(_NEWTON):
        grown = {k: c * (2 * k * t).exp() for k, c in terms.items()}
        slope = sum((k * c for k, c in grown.items()), -count)
        bend = sum((2 * k * k * c for k, c in grown.items()), torch.zeros_like(count))
        step = (slope / bend).clamp(-1.0, 1.0)
        t = t - step
        if float(step.abs().max()) <= _SETTLED:
            break
    return t


def _check(q: Posterior, symmetry: Symmetry) -> None:
    if not isinstance(q, Point | MeanFieldNormal):
        raise GuideError(
            f"{type(q).__name__} has no gauge in closed form; canonical() takes points (AutoDelta, networks, state "
            "dicts) and mean-field posteriors (AutoNormal, AutoDiagonalNormal)"
        )
    for scaling in symmetry.scalings:
        for site, _, _ in scaling.exponents:
            if site not in q.sites:
                raise SymmetryError(f"site '{site}' is scaled with '{scaling.atom}', and the guide does not have it")
            spec = q.sites[site]
            if spec.shape != symmetry.shapes[site]:
                raise SymmetryError(
                    f"site '{site}': shape {symmetry.shapes[site]} in the symmetry, {spec.shape} in the guide"
                )
            if not is_real(spec.support):
                raise GuideError(
                    f"site '{site}' is scaled with '{scaling.atom}', and its support is {spec.support}: write it as "
                    "the exponential of a real site"
                )
