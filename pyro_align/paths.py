"""Paths between two posteriors: a path maps tau in [0, 1] to a Pyro guide."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pyro_align.guides import Posterior, SiteSpec, check_distinct, read_guide


@dataclass(frozen=True, eq=False)
class Path:
    """The Wasserstein-2 geodesic (displacement interpolation, McCann 1997) between two members of one family.

    For diagonal Gaussians, location and *standard deviation* are linear in tau.

    Attributes:
        start: The posterior at ``tau = 0``.
        end: The posterior at ``tau = 1``.
    """

    start: Posterior = field(repr=False)
    end: Posterior = field(repr=False)

    def __post_init__(self):
        self.start.check_compatible(self.end)

    @property
    def sites(self) -> Mapping[str, SiteSpec]:
        """The sites, by name."""
        return self.start.sites

    @cached_property
    def length(self) -> float:
        """The Wasserstein-2 distance from start to end, in the coordinates of the family."""
        return self.start.distance(self.end)

    def posterior(self, tau: float) -> Posterior:
        """The posterior at ``tau``; the end points are exact.

        Raises:
            ValueError: ``tau`` lies outside [0, 1].
        """
        return self.start.displace(self.end, tau)

    def __call__(self, tau: float):
        """A new Pyro guide at ``tau``, of the type of the first guide, owning its parameters."""
        return self.posterior(tau).to_guide()

    def reversed(self) -> Path:
        """The same path walked from its end."""
        return Path(self.end, self.start)

    def __repr__(self) -> str:
        return f"Path({type(self.start).__name__}, {len(self.sites)} sites, length {self.length:.6g})"


def displacement(guide_a: Any, guide_b: Any) -> Path:
    """The optimal-transport path from one posterior to another.

    Both guides are read as snapshots: fitting them further does not move the path.

    Args:
        guide_a: A guide, or a posterior read from one; the path's guides are of its type.
        guide_b: A guide of the same family over the same sites.

    Raises:
        GuideError: The guides share parameters, are untrained, differ in sites, shapes, dtype, device or family, or
            hold NaN or infinite parameters.
    """
    check_distinct(guide_a, guide_b)
    return Path(read_guide(guide_a), read_guide(guide_b))
