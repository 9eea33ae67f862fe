"""``AutoGuideList``: independent parts over disjoint sites, each under its own rule.

Relabeling, displacement, features and distances go part by part: the parts are independent, so W2^2 is the sum of
theirs, and the geodesic is the product of theirs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from pyro.infer.autoguide import AutoGuideList
from pyro.nn import PyroModule
from torch import Tensor

from pyro_align.errors import GuideError
from pyro_align.guides.families.wrapped import Wrapped
from pyro_align.guides.features import Features
from pyro_align.guides.posterior import Posterior
from pyro_align.guides.pyro_state.modules import UNTRAINED, Prototype
from pyro_align.guides.registry import read_guide, register_guide, registered_guides
from pyro_align.guides.relabel import Labels, check_labels
from pyro_align.guides.sites import Noise, SiteSpec, Values, as_generator
from pyro_align.symmetry.element import Permutation


@dataclass(frozen=True, eq=False)
class Independent(Posterior):
    """Independent posteriors over disjoint sites.

    Attributes:
        parts: The posteriors, in the order of the list.
        write: Makes a Pyro guide of a member of the family.
        separate: Whether a part may come to be known by its draws while the others stay as they are.
    """

    parts: tuple[Posterior, ...]
    write: Callable[[Independent], object] = field(repr=False)
    separate: bool = False

    def __post_init__(self) -> None:
        names = [name for part in self.parts for name in part.sites]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise GuideError(f"two parts of the guide list both have the sites {twice}")

    @property
    def sites(self) -> Mapping[str, SiteSpec]:
        return {name: spec for part in self.parts for name, spec in part.sites.items()}

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the first part."""
        return self.parts[0].dtype

    @property
    def moves_whole_sites(self) -> bool:
        return all(part.moves_whole_sites for part in self.parts)

    @property
    def labels(self) -> Labels:
        """The labels of all parts."""
        return {name: atom for part in self.parts for name, atom in part.labels.items()}

    @property
    def divergences(self) -> tuple[str, ...]:
        return tuple(d for d in self.parts[0].divergences if all(d in part.divergences for part in self.parts))

    @property
    def has_density(self) -> bool:
        return all(part.has_density for part in self.parts)

    @property
    def is_coupled(self) -> bool:
        return any(part.is_coupled for part in self.parts)

    def with_labels(self, labels: Labels) -> Independent:
        check_labels(labels, self.sites)
        parts = []
        for part in self.parts:
            own = {k: v for k, v in labels.items() if k in part.sites}
            parts.append(part.with_labels(own) if own else part)
        return replace(self, parts=tuple(parts))

    def marginal(self, site: str) -> tuple[Tensor, Tensor]:
        """Location and scale of one site, from the part that has it."""
        return next(part for part in self.parts if site in part.sites).marginal(site)

    def _permute(self, p: Permutation) -> Independent:
        return replace(self, parts=tuple(part._permute(p) for part in self.parts))

    def permute_noise(self, p: Permutation, noise: Noise) -> Noise:
        moved = {}
        for i, part in enumerate(self.parts):
            moved.update({f"{i}/{key}": value for key, value in part.permute_noise(p, _own(noise, i)).items()})
        return moved

    def noise(self, num_samples: int, *, generator: torch.Generator | int = 0) -> Noise:
        generator = as_generator(generator)
        return {
            f"{i}/{key}": value
            for i, part in enumerate(self.parts)
            for key, value in part.noise(num_samples, generator=generator).items()
        }

    def push_with_log_prob(self, noise: Noise) -> tuple[Values, Tensor]:
        values, total = {}, 0.0
        for i, part in enumerate(self.parts):
            drawn, log_prob = part.push_with_log_prob(_own(noise, i))
            values.update(drawn)
            total = total + log_prob
        return values, total

    def _features(self, divergence: str, side: str) -> Features:
        return _united([part.features(divergence, side) for part in self.parts])

    def coupled_features(self, other: Posterior, p: Permutation) -> tuple[Features, Features]:
        self.check_compatible(other)
        pairs = zip(self.parts, other.parts, strict=True)
        fixed, moving = zip(*(here.coupled_features(there, p) for here, there in pairs), strict=True)
        return _united(fixed), _united(moving)

    def distance(self, other: Posterior) -> float:
        self.check_compatible(other)
        return math.sqrt(sum(a.distance(b) ** 2 for a, b in zip(self.parts, other.parts, strict=True)))

    def _displace(self, other: Independent, tau: float) -> Independent:
        return replace(self, parts=tuple(a.displace(b, tau) for a, b in zip(self.parts, other.parts, strict=True)))

    def check_compatible(self, other: Posterior) -> None:
        super().check_compatible(other)
        if len(self.parts) != len(other.parts):
            raise GuideError(f"the guide lists have {len(self.parts)} and {len(other.parts)} parts")
        for here, there in zip(self.parts, other.parts, strict=True):
            here.check_compatible(there)


def _own(noise: Noise, part: int) -> Noise:
    prefix = f"{part}/"
    return {key.removeprefix(prefix): value for key, value in noise.items() if key.startswith(prefix)}


def _united(parts: Sequence[Features]) -> Features:
    own = {site: part for part in parts for site in part}
    return Features(own, lambda site: own[site][site], {site: part.odd[site] for site, part in own.items()})


@register_guide(AutoGuideList)
def read_auto_guide_list(guide: AutoGuideList) -> Independent:
    """Reads every part under its own rule."""
    children = list(guide._modules.values())
    if guide.prototype_trace is None or not children:
        raise GuideError(f"this AutoGuideList is untrained or empty: {UNTRAINED}")
    parts = []
    for i, part in enumerate(children):
        q = read_guide(part) if type(part) in registered_guides() else None
        if q is None or isinstance(q, Wrapped):
            raise GuideError(
                f"part {i} of the guide list ({type(part).__name__}) can only be wrapped; wrap the whole list: "
                "wrap_guide(guide, *args)"
            )
        parts.append(q)
    return Independent(tuple(parts), partial(_write, Prototype.of(guide)))


def _write(prototype: Prototype, q: Independent) -> PyroModule:
    guide = prototype.build({})
    for part in q.parts:
        child = part.to_guide()
        if "master" in child.__dict__:
            guide.append(child)
        else:  # not an AutoGuide
            guide.add_module(str(len(guide)), child)
    return guide.train(prototype.training)
