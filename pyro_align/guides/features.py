"""Features: what a posterior is matched by, made site by site when it is looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_align.symmetry.stacks import Stacks, stacked

_KEEP = 1 << 18  # tensors of up to this many entries are made once


Odd = tuple[bool, ...]


class Features(Mapping[str, tuple[Tensor, ...]]):
    """Site -> tensors of its shape, made at each look; small ones are kept, as making them again would cost more.

    Args:
        sites: The sites.
        make: Site -> its tensors.
        odd: For each tensor of a site, whether it changes sign together with a signed unit (locations do, scales do
            not); or site -> these.

    Attributes:
        odd: Site -> which of its tensors are odd.
    """

    def __init__(self, sites: Iterable[str], make: Callable[[str], tuple[Tensor, ...]], odd: Odd | Mapping[str, Odd]):
        self._sites, self._make = dict.fromkeys(sites), make
        self.odd: dict[str, Odd] = dict(odd) if isinstance(odd, Mapping) else dict.fromkeys(self._sites, odd)
        self._kept: dict[str, tuple[Tensor, ...]] = {}

    def __getitem__(self, site: str) -> tuple[Tensor, ...]:
        if site not in self._sites:
            raise KeyError(site)
        if site in self._kept:
            return self._kept[site]
        made = self._make(site)
        if all(t.numel() <= _KEEP for t in made):
            self._kept[site] = made
        return made

    def __contains__(self, site: object) -> bool:  # the inherited one would make the tensors
        return site in self._sites

    def __iter__(self) -> Iterator[str]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)

    def __reduce__(self) -> tuple[Any, ...]:  # a worker gets the tensors: what makes them cannot be pickled
        made = {site: self[site] for site in self}
        return Features, (list(made), made.__getitem__, self.odd)


def stacked_features(features: Features, stacks: Stacks) -> Features:
    """The features with the sites that change places as wholes stacked."""
    if not stacks:
        return features
    parts = {site: (site,) for site in features} | {site: stacks[site] for site in stacks}
    odd = stacked(features.odd, stacks, lambda marks: marks[0])

    def make(site: str) -> tuple[Tensor, ...]:
        found = [features[member] for member in parts[site]]
        return tuple(map(torch.stack, zip(*found, strict=True))) if site in stacks else found[0]

    return Features(odd, make, odd)


def squared_distance(a: Tensor, b: Tensor) -> float:
    """The sum of squared differences in float64, a run at a time."""
    return sum(
        float((x.double() - y.double()).square().sum())
        for x, y in zip(a.reshape(-1).split(_KEEP), b.reshape(-1).split(_KEEP), strict=True)
    )
