"""Paths between two posteriors: a path maps tau in [0, 1] to a Pyro guide."""

from __future__ import annotations

import bisect
import itertools
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

from pyro_align.errors import GuideError
from pyro_align.guides import Guide, LowRankNormal, Posterior, SiteSpec, check_distinct, read_guide
from pyro_align.guides.registry import alike
from pyro_align.guides.sites import check_tau


class PosteriorPath(ABC):
    """What maps tau in [0, 1] to a posterior, and so to a guide."""

    @property
    def sites(self) -> Mapping[str, SiteSpec]:
        """The sites, by name."""
        return self.posterior(0.0).sites

    @abstractmethod
    def posterior(self, tau: float) -> Posterior:
        """The posterior at ``tau``; the end points are exact.

        Raises:
            ValueError: ``tau`` lies outside [0, 1].
        """

    def __call__(self, tau: float) -> Guide:
        """A new Pyro guide at ``tau`` that owns its parameters."""
        return self.posterior(tau).to_guide()


@dataclass(frozen=True, eq=False)
class Path(PosteriorPath):
    """The Wasserstein-2 geodesic (displacement interpolation, McCann 1997) between two members of one family.

    For diagonal Gaussians, location and *standard deviation* are linear in tau. Guides have the type of the first. Two
    exceptions: between Gaussians of low rank, or stored by factors (``AutoGaussian``, ``AutoStructured``), the geodesic
    leaves the family, and the guide is an ``AutoMultivariateNormal``; between guides known by draws it is a
    ``SampledGuide``.

    Attributes:
        start: The posterior at ``tau = 0``.
        end: The posterior at ``tau = 1``.
        coupling: ``"optimal"``, or ``"low_rank"`` for low-rank Gaussians that are to stay low rank: a path between
            the same ends that is not the geodesic, but as short as a coupling within the family allows.
    """

    start: Posterior = field(repr=False)
    end: Posterior = field(repr=False)
    coupling: str = "optimal"

    def __post_init__(self) -> None:
        self.start.check_compatible(self.end)
        if self.coupling not in ("optimal", "low_rank"):
            raise ValueError(f"coupling must be 'optimal' or 'low_rank', got {self.coupling!r}")
        if self.coupling == "low_rank" and not isinstance(self.start, LowRankNormal):
            raise GuideError(
                f"coupling='low_rank' is for AutoLowRankMultivariateNormal guides, not {type(self.start).__name__}"
            )

    @cached_property
    def length(self) -> float:
        """The path's length: the Wasserstein-2 distance from start to end, in the coordinates of the family."""
        if self.coupling == "low_rank":
            return cast(LowRankNormal, self.start).distance_low_rank(self.end)
        return self.start.distance(self.end)

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What should be told of the path: what it leaves out, what is approximate. Empty for closed forms."""
        return self.start.path_notes(self.end)

    def posterior(self, tau: float) -> Posterior:
        if self.coupling == "low_rank":
            return cast(LowRankNormal, self.start).displace_low_rank(self.end, tau)
        return self.start.displace(self.end, tau)

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
    start, end = alike(read_guide(guide_a), read_guide(guide_b))
    return Path(start, end, coupling)


@dataclass(frozen=True, eq=False)
class PiecewisePath(PosteriorPath):
    """Displacements one after another, through several posteriors.

    Attributes:
        pieces: The displacements; each begins where the one before it ends, with the same draws for the same noise.
        breaks: The taus at which the path passes its posteriors, from 0 to 1, one more than there are pieces.
    """

    pieces: tuple[Path, ...] = field(repr=False)
    breaks: tuple[float, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """What should be told of the pieces, each thing once."""
        return tuple(dict.fromkeys(note for piece in self.pieces for note in piece.notes))

    @property
    def length(self) -> float:
        """The sum of the pieces' Wasserstein-2 lengths."""
        return sum(piece.length for piece in self.pieces)

    def posterior(self, tau: float) -> Posterior:
        """The posterior at ``tau``; at the breaks, the posteriors that the path goes through are exact."""
        tau = check_tau(tau)
        if tau == 1.0:
            return self.pieces[-1].posterior(1.0)
        i = bisect.bisect_right(self.breaks, tau) - 1  # of pieces without length, the last
        low, high = self.breaks[i : i + 2]
        return self.pieces[i].posterior((tau - low) / (high - low))

    def __repr__(self) -> str:
        stops = ", ".join(f"{tau:.3g}" for tau in self.breaks)
        return f"PiecewisePath({len(self.pieces)} pieces, breaks at {stops}, length {self.length:.6g})"


def path_through(guides: Any, *, spacing: str = "equal", coupling: str = "optimal") -> PiecewisePath:
    """The path that visits guides in order, along the displacement from each to the next.

    Through a posterior of its own between two ends, such as a third fit or a barycenter, a path may avoid a barrier.
    Pass ``taus`` to ``evaluate_barrier`` that hold ``path.breaks``, where the losses have kinks.

    Args:
        guides: At least two guides of one family over the same sites, or posteriors read from them; align them first.
        spacing: ``"equal"`` gives each piece an equal share of tau; ``"length"`` a share as long as the piece is, so
            that the path is walked at constant speed.
        coupling: As in :func:`displacement`.

    Raises:
        ValueError: Fewer than two guides, or an unknown spacing.
        GuideError: Two guides share parameters, or do not fit each other.

    Example:
        >>> import torch
        >>> from pyro_align.demo.network import bayesian_mlp
        >>> from pyro_align.demo.training import Recipe, fit
        >>> from pyro_align.paths import path_through
        >>> model, x, y = bayesian_mlp([4, 8, 3]), torch.randn(50, 4), torch.arange(50) % 3
        >>> a, b, c = (fit(model, x, y, seed=s, recipe=Recipe(epochs=1), progress=False) for s in range(3))
        >>> path_through([a, b, c]).breaks
        (0.0, 0.5, 1.0)
    """
    guides = list(guides)
    if len(guides) < 2:
        raise ValueError(f"path_through needs at least two guides, got {len(guides)}")
    if spacing not in ("equal", "length"):
        raise ValueError(f"spacing must be 'equal' or 'length', got {spacing!r}")
    for a, b in itertools.combinations(guides, 2):
        check_distinct(a, b)
    posteriors = alike(*(read_guide(guide) for guide in guides))
    start, pieces = posteriors[0], []
    for q in posteriors[1:]:
        pieces.append(Path(start, q, coupling))
        reached = pieces[-1].posterior(1.0)
        # turned towards the start, so that one noise gives coupled draws all along; not where the family was left
        start = reached if type(reached) is type(q) else q
    lengths = [piece.length for piece in pieces]
    shares = lengths if spacing == "length" and sum(lengths) > 0 else [1.0] * len(pieces)
    ends = [end / sum(shares) for end in itertools.accumulate(shares)]
    return PiecewisePath(tuple(pieces), (0.0, *ends[:-1], 1.0))
