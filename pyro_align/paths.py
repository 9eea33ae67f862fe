"""Paths between two posteriors: a path maps tau in [0, 1] to a Pyro guide."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pyro_align.errors import GuideError
from pyro_align.guides import LowRankNormal, Posterior, SiteSpec, check_distinct, read_guide


@dataclass(frozen=True, eq=False)
class Path:
    """The Wasserstein-2 geodesic (displacement interpolation, McCann 1997) between two members of one family.

    For diagonal Gaussians, location and *standard deviation* are linear in tau.

    Attributes:
        start: The posterior at ``tau = 0``.
        end: The posterior at ``tau = 1``.
        coupling: ``"optimal"``, or ``"low_rank"`` for low-rank Gaussians that shall stay low rank: a path between
            the same ends that is not the geodesic, but as short as a coupling within the family allows.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer.autoguide import AutoNormal, init_to_sample
        >>> from pyro_align import displacement
        >>> def model():
        ...     pyro.sample("w", dist.Normal(0.0, 1.0).expand([6, 2]).to_event(2))
        >>> def fit():
        ...     with pyro.get_param_store().scope():
        ...         guide = AutoNormal(model, init_loc_fn=init_to_sample)
        ...         _ = guide()
        ...     return guide
        >>> path = displacement(fit(), fit())
        >>> abs(path.posterior(0.0).distance(path.posterior(0.5)) - path.length / 2) < 1e-4
        True
    """

    start: Posterior = field(repr=False)
    end: Posterior = field(repr=False)
    coupling: str = "optimal"

    def __post_init__(self):
        self.start.check_compatible(self.end)
        if self.coupling not in ("optimal", "low_rank"):
            raise ValueError(f"coupling must be 'optimal' or 'low_rank', got {self.coupling!r}")
        if self.coupling == "low_rank" and not isinstance(self.start, LowRankNormal):
            raise GuideError(
                f"coupling='low_rank' is for AutoLowRankMultivariateNormal guides, not {type(self.start).__name__}"
            )

    @property
    def sites(self) -> Mapping[str, SiteSpec]:
        """The sites, by name."""
        return self.start.sites

    @cached_property
    def length(self) -> float:
        """The path's length: the Wasserstein-2 distance from start to end, in the coordinates of the family."""
        if self.coupling == "low_rank":
            return self.start.distance_low_rank(self.end)
        return self.start.distance(self.end)

    def posterior(self, tau: float) -> Posterior:
        """The posterior at ``tau``; the end points are exact.

        Raises:
            ValueError: ``tau`` lies outside [0, 1].
        """
        if self.coupling == "low_rank":
            return self.start.displace_low_rank(self.end, tau)
        return self.start.displace(self.end, tau)

    def __call__(self, tau: float):
        """A new Pyro guide at ``tau`` that owns its parameters.

        It has the type of the first guide. Two exceptions: between low-rank Gaussians the geodesic leaves the family,
        and the guide is an ``AutoMultivariateNormal``; between guides without a closed form it is an empirical one.
        """
        return self.posterior(tau).to_guide()

    def reversed(self) -> Path:
        """The same path walked from its end."""
        return Path(self.end, self.start, self.coupling)

    def __repr__(self) -> str:
        return f"Path({type(self.start).__name__}, {len(self.sites)} sites, length {self.length:.6g})"


def displacement(guide_a: Any, guide_b: Any, *, coupling: str = "optimal") -> Path:
    """The optimal-transport path from one posterior to another.

    Both guides are read as snapshots: fitting them further does not move the path.

    Args:
        guide_a: A guide, or a posterior read from one; the path's guides are of its type.
        guide_b: A guide of the same family over the same sites.
        coupling: ``"optimal"`` for the geodesic, or ``"low_rank"``, see :class:`Path`.

    Raises:
        GuideError: The guides share parameters, are untrained, differ in sites, shapes, dtype, device or family, or
            hold NaN or infinite parameters.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer.autoguide import AutoNormal, init_to_sample
        >>> from pyro_align import displacement
        >>> def model():
        ...     pyro.sample("w", dist.Normal(0.0, 1.0).expand([6, 2]).to_event(2))
        >>> def fit():
        ...     with pyro.get_param_store().scope():
        ...         guide = AutoNormal(model, init_loc_fn=init_to_sample)
        ...         _ = guide()
        ...     return guide
        >>> path = displacement(fit(), fit())
        >>> type(path(0.5)).__name__
        'AutoNormal'
    """
    check_distinct(guide_a, guide_b)
    return Path(read_guide(guide_a), read_guide(guide_b), coupling)
