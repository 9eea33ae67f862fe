"""The plane through three posteriors: where a path is a line, a plane shows what lies beside it.

In the coordinates of a family that is closed under affine combinations, such as location and standard deviation of
diagonal Gaussians, three members span a plane (for networks' weights: Garipov et al. 2018, figure 1). Distances in it
are Wasserstein-2 distances, and the triangle's edges are the displacements between its corners.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyro_align.errors import GuideError
from pyro_align.guides import MeanFieldNormal, Point, SiteSpec, check_distinct, read_guide

if TYPE_CHECKING:
    from pyro_align.guides.posterior import Guide, Posterior

FLOOR = 0.1  # outside the triangle, no scale falls below this share of the least of the three corners' scales


@dataclass(frozen=True, eq=False)
class Plane:
    """The affine plane through three posteriors of one family, with Wasserstein-2 lengths as coordinates.

    The first posterior is the origin; the second lies on the x axis, the third above it. Inside the triangle the
    posteriors are members of the family as they come. Outside, standard deviations go on linearly until they reach a
    tenth of the least of the three corners' and stay there: :meth:`clipped` says how many do.

    Attributes:
        corners: The three posteriors.
    """

    corners: tuple[Any, Any, Any] = field(repr=False)

    @property
    def sites(self) -> Mapping[str, SiteSpec]:
        """The sites, by name."""
        return self.corners[0].sites

    @cached_property
    def coordinates(self) -> np.ndarray:
        """Where the three posteriors lie, ``(3, 2)``, by the law of cosines from their distances.

        Raises:
            GuideError: The three lie on one line.
        """
        a, b, c = self.corners
        ab, ac, bc = a.distance(b), a.distance(c), b.distance(c)
        x = (ab**2 + ac**2 - bc**2) / (2 * ab) if ab > 0 else 0.0
        height = math.sqrt(max(0.0, ac**2 - x**2))
        if min(ab, height) <= 1e-6 * max(ab, ac, bc):
            raise GuideError(
                f"the three posteriors span no plane: their distances are {ab:.3g}, {ac:.3g} and {bc:.3g}; "
                "two of them are equal, or all lie on one path"
            )
        return np.array([[0.0, 0.0], [ab, 0.0], [x, height]])

    def weights(self, x: float, y: float) -> tuple[float, float, float]:
        """Barycentric coordinates of a point: the weights of the three posteriors, which add up to 1."""
        (_, (ab, _), (cx, cy)) = self.coordinates
        c = y / cy
        b = (x - c * cx) / ab
        return 1.0 - b - c, b, c

    def posterior(self, x: float, y: float) -> Posterior:
        """The posterior at a point of the plane; the corners are exact.

        Raises:
            GuideError: A point mass would leave its support there.
        """
        weights = self.weights(float(x), float(y))
        for corner, weight in zip(self.corners, weights, strict=True):
            if abs(weight - 1.0) < 1e-9 and sum(map(abs, weights)) < 1.0 + 2e-9:
                return self.corners[0].displace(corner, 1.0)
        return _blend(self.corners, weights)

    def clipped(self, x: float, y: float) -> float:
        """Fraction of standard deviations that are held at their floor at a point; 0 inside the triangle."""
        if not isinstance(self.corners[0], MeanFieldNormal):
            return 0.0
        weights, held, total = self.weights(float(x), float(y)), 0, 0
        for name in self.sites:
            scales = [q.marginal(name)[1] for q in self.corners]
            held += int((_mix(scales, weights) < _floor(scales)).sum())
            total += scales[0].numel()
        return held / total

    def __call__(self, x: float, y: float) -> Guide:
        """A new Pyro guide at a point of the plane."""
        return self.posterior(x, y).to_guide()

    def __repr__(self) -> str:
        corners = ", ".join(f"({x:.4g}, {y:.4g})" for x, y in self.coordinates)
        return f"Plane({type(self.corners[0]).__name__}, {len(self.sites)} sites, corners at {corners})"


def plane(guide_a: Any, guide_b: Any, guide_c: Any) -> Plane:
    """The plane through three posteriors, for :func:`~pyro_align.evaluate_plane`.

    Args:
        guide_a: A mean-field Gaussian guide or ``AutoDelta``, or a posterior read from one: the origin.
        guide_b: Another, on the x axis; align it to the first.
        guide_c: A third, above the x axis, such as the second as it was before the alignment.

    Raises:
        GuideError: The guides share parameters, are of a family without affine combinations, do not fit each other,
            or lie on one line.

    Example:
        >>> import torch
        >>> from pyro_align.demo.network import bayesian_mlp
        >>> from pyro_align.demo.training import Recipe, fit
        >>> from pyro_align.paths import plane
        >>> model, x, y = bayesian_mlp([4, 8, 3]), torch.randn(50, 4), torch.arange(50) % 3
        >>> a, b, c = (fit(model, x, y, seed=s, recipe=Recipe(epochs=1), progress=False) for s in range(3))
        >>> type(plane(a, b, c)(1.0, 1.0)).__name__
        'AutoNormal'
    """
    guides = (guide_a, guide_b, guide_c)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        check_distinct(guides[i], guides[j])
    corners = (read_guide(guide_a), read_guide(guide_b), read_guide(guide_c))
    for q in corners:
        if not isinstance(q, MeanFieldNormal | Point):
            raise GuideError(f"a plane needs mean-field Gaussians or point masses, got {type(q).__name__}")
        corners[0].check_compatible(q)
    made = Plane(corners)
    _ = made.coordinates  # refuses three on a line
    return made


def _blend(corners: Sequence[Any], weights: Sequence[float]):
    first, *others = corners
    plain = first.entries[:1]  # scales have a floor
    made = first.changed(lambda _, *values: _mix(values, weights), *others, parts=plain, what="plane's point")
    if isinstance(first, Point):
        return made

    def floored(site: str, *scales: Tensor) -> Tensor:
        return torch.maximum(_mix(scales, weights), _floor(scales))

    return replace(made, scales=first.changed(floored, *others, parts=("scales",)).scales)


def _mix(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    return torch.stack([weight * tensor for weight, tensor in zip(weights, tensors, strict=True)]).sum(0)


def _floor(scales: Sequence[Tensor]) -> Tensor:
    return FLOOR * torch.stack(list(scales)).amin(0)
