"""Allocation probabilities of the data, given or computed from the model, a slice of draws at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from pyro_align.draws.shapes import as_tensor
from pyro_align.draws.sources import Source

if TYPE_CHECKING:
    from pyro_align.model.draws import DrawDensity

_LABELS = 1000  # draws whose labels are read at a time
_KEEP = 1 << 28  # computed probabilities up to this many numbers are kept between passes


@dataclass(frozen=True, eq=False)
class Allocations:
    """For each draw, the probability of each component for each datum.

    Attributes:
        source: The draws.
        sizes: Numbers of components that there may be: those of the atom, or more where others stand beside them.
        usable: Which draws are finite, ``(chain, draw)`` bool: those of others are not checked.
        given: Probabilities ``(chain, draw, data, components)`` or labels ``(chain, draw, data)``, maybe on disk.
        density: What they are computed from where they are not given.
        sites: The model's discrete or mixture sites.
    """

    source: Source
    sizes: tuple[int, ...]
    usable: Tensor
    given: Any = None
    density: DrawDensity | None = None
    sites: tuple[str, ...] = ()
    _kept: dict[tuple[int, int, int], Tensor] = field(default_factory=dict, repr=False)

    @property
    def data(self) -> int:
        """Number of data."""
        return self.read(0, 0, 1).shape[1]

    @cached_property
    def size(self) -> int:
        """Number of components."""
        if self.given is None:
            return self.read(0, 0, 1).shape[-1]
        first = as_tensor(self.given[0, :1])
        if first.is_floating_point():
            return first.shape[-1]
        chains, draws = self.source.shape
        high = max(
            int(as_tensor(self.given[c, lo : lo + _LABELS]).max())
            for c in range(chains)
            for lo in range(0, draws, _LABELS)
        )
        return min((n for n in self.sizes if n > high), default=min(self.sizes))

    def read(self, chain: int, start: int, stop: int) -> Tensor:
        """Probabilities of draws ``start`` to ``stop`` of a chain, ``(draws, data, components)``."""
        if self.given is not None:
            return self._checked(as_tensor(self.given[chain, start:stop]), chain, start)
        key = (chain, start, stop)
        if key in self._kept:
            return self._kept[key]
        latents = {k: self.source.read(k, chain, slice(start, stop)) for k in self.density.latents}
        p = self._checked(self.density.allocations(latents, self.sites).float(), chain, start)
        if sum(v.numel() for v in self._kept.values()) + p.numel() <= _KEEP:
            self._kept[key] = p
        return p

    def _checked(self, p: Tensor, chain: int, start: int) -> Tensor:
        usable = self.usable[chain, start : start + len(p)]
        if not p.is_floating_point():
            low, high = int(p.min()), int(p.max())
            if low < 0 or high >= self.size:
                raise ValueError(f"allocations: labels must lie in 0..{self.size - 1}, got {low}..{high}")
            return one_hot(p.flatten(1).long(), self.size).float()
        p = p.flatten(1, -2) if p.dim() > 3 else p
        if p.dim() != 3 or p.shape[-1] not in self.sizes:
            sizes = " or ".join(str(n) for n in self.sizes)
            raise ValueError(
                f"allocations: expected (chain, draw, data, {sizes} components), got {tuple(p.shape[1:])} per draw"
            )
        if not bool((p[usable] >= 0).all()) or not bool(((p[usable].sum(-1) - 1).abs() < 1e-3).all()):
            raise ValueError("allocations: every row must hold probabilities that add up to one")
        return p


def allocations(
    source: Source,
    sizes: tuple[int, ...],
    usable: Tensor,
    density: DrawDensity | None,
    given: Any,
    site: str | None,
    method: str,
) -> Allocations:
    """The probabilities that the user gave, or those of the model."""
    if given is None:
        if density is None:
            raise ValueError(f"method={method!r} needs allocations= or model= (with args=)")
        return Allocations(source, sizes, usable, density=density, sites=density.allocation_sites(site))
    if isinstance(given, list | tuple):
        given = torch.stack([as_tensor(chain) for chain in given])
    if tuple(given.shape[:2]) != source.shape:
        chains, draws = source.shape
        raise ValueError(f"allocations: expected {chains} chains of {draws} draws, got shape {tuple(given.shape)}")
    return Allocations(source, sizes, usable, given)
