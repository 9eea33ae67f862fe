"""Point masses: ``AutoDelta``.

``AutoDelta`` keeps its values in the *constrained* space, so relabeling is indexing for every support; where the
relabeled value leaves the support (an ordered vector, a Cholesky factor) the relabeling is refused. Displacement is
linear in the constrained space, which stays inside the support where that is convex.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace

import torch
from pyro.infer.autoguide import AutoDelta
from torch import Tensor

from pyro_align.errors import GuideError
from pyro_align.guides.families.entrywise import Entrywise, read_entries
from pyro_align.guides.features import Features
from pyro_align.guides.pyro_state.modules import RawParameter
from pyro_align.guides.registry import register_guide
from pyro_align.guides.relabel import Relabeling
from pyro_align.guides.sites import Noise, SiteSpec, Values, as_generator, check_draws, check_finite
from pyro_align.symmetry.element import Permutation


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
