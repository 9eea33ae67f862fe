"""Paths on which every hidden unit keeps its spread: pre-activations rescaled and shifted along the way.

Between two networks, the average of two imperfectly matched units varies less over data than either: layer by layer
the signal fades, and deep networks lose it on the straight path even where they are aligned. Repair gives each unit the
mean and the standard deviation that interpolate those at the ends, by scaling its incoming weights and moving its bias
(Jordan et al. 2023, "REPAIR: REnormalizing Permuted Activations for Interpolation Repair").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pyro_align.discovery import PreactivationProbe, find_symmetry, probe_preactivations
from pyro_align.errors import GuideError
from pyro_align.guides import MeanFieldNormal
from pyro_align.model.keywords import options_apart
from pyro_align.paths.geodesic import PosteriorPath
from pyro_align.symmetry.group import Symmetry
from pyro_align.symmetry.spec import SymmetrySpec, bound

FLOOR = 1e-6  # of the largest spread in a layer: units that never vary are left alone


@dataclass(frozen=True, eq=False)
class RepairedPath(PosteriorPath):
    """A path whose hidden units keep the interpolated mean and spread of their pre-activations.

    The ends are those of the path that was repaired. Between them a posterior is again a mean-field Gaussian: a unit's
    incoming weights are scaled as a whole, location and standard deviation alike.

    Attributes:
        path: The path before repair.
        model: The Pyro model.
        args: Its arguments: the data over which spreads are measured.
        kwargs: Its keyword arguments.
        symmetry: The model's symmetry, which says what a hidden unit is.
        num_samples: Posterior draws over which spreads are measured.
        seed: Seed of the draws; the same at every tau.
    """

    path: Any
    model: Callable[..., Any] = field(repr=False)
    args: tuple[Any, ...] = field(repr=False)
    kwargs: Mapping[str, Any] = field(repr=False)
    symmetry: Symmetry = field(repr=False)
    num_samples: int = 8
    seed: int = 0
    _cache: dict[float, MeanFieldNormal] = field(default_factory=dict, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        kept = {k: v for k, v in self.__dict__.items() if k not in ("_probe", "_ends")}
        return {**kept, "_cache": {}}  # graphs do not travel; they are traced again where the path arrives

    @property
    def layers(self) -> tuple[Any, ...]:
        """Which weight and bias sites set which units' pre-activations, in the order of the network."""
        return self._probe.layers

    @cached_property
    def _probe(self) -> PreactivationProbe:
        probe = probe_preactivations(self.model, *self.args, symmetry=self.symmetry, **self.kwargs)
        if not probe.layers:
            raise GuideError(
                "repair found no layer whose units' pre-activations are set by a weight site of their own; units "
                "must be an axis of a site that enters one sum of products with data"
            )
        return probe

    def posterior(self, tau: float) -> MeanFieldNormal:
        """The posterior at ``tau``; the end points are exact, and kept are those asked for before.

        Raises:
            ValueError: ``tau`` lies outside [0, 1].
            GuideError: The path's posteriors are no mean-field Gaussians.
        """
        q = self.path.posterior(tau)
        if tau in (0.0, 1.0):
            return q
        if tau not in self._cache:
            self._cache[tau] = self._repaired(_checked(q), tau)
        return self._cache[tau]

    def spreads(self, tau: float) -> dict[str, tuple[Tensor, Tensor]]:
        """Weight site -> mean and standard deviation of each unit's pre-activation over data and draws at ``tau``."""
        found = self._moments(self.posterior(tau))
        return {layer.weight[0]: moments for layer, moments in zip(self.layers, found, strict=True)}

    def _moments(self, q: MeanFieldNormal, adjust: Callable[..., Any] | None = None) -> list[tuple[Tensor, Tensor]]:
        values = q.push(q.noise(self.num_samples, generator=self.seed))
        return self._probe.moments(({k: v[s] for k, v in values.items()} for s in range(self.num_samples)), adjust)

    @cached_property
    def _ends(self) -> list[list[tuple[Tensor, Tensor]]]:
        return [self._moments(_checked(self.path.posterior(t))) for t in (0.0, 1.0)]

    def _repaired(self, q: MeanFieldNormal, tau: float) -> MeanFieldNormal:
        """Layer by layer: what a layer sees is repaired already."""
        ends, changes = self._ends, []

        def adjust(place: int, mean: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
            (m0, s0), (m1, s1) = (end[place] for end in ends)
            alive = spread > FLOOR * spread.max()
            factor = torch.where(alive, ((1 - tau) * s0 + tau * s1) / spread.clamp_min(1e-300), 1.0)
            shift = torch.where(alive, (1 - tau) * m0 + tau * m1 - factor * mean, 0.0)
            changes.append((factor, shift if self.layers[place].bias is not None else torch.zeros_like(shift)))
            return changes[-1]

        self._moments(q, adjust)
        for layer, (factor, shift) in zip(self.layers, changes, strict=True):
            q = _scaled(q, layer.weight, factor)
            if layer.bias is not None:
                q = _scaled(q, layer.bias, factor, shift)
        return q


@options_apart
def repair(
    model: Callable[..., Any],
    path: Any,
    *args: Any,
    symmetry: Symmetry | SymmetrySpec | None = None,
    num_samples: int = 8,
    seed: int = 0,
    **kwargs: Any,
) -> RepairedPath:
    """Repairs the spread of hidden units along a path between mean-field Gaussians.

    A unit's incoming weights and bias are found in the model's traced graph: a weight site with the units on one axis
    that enters one sum of products with data, and a bias site added to it. What does not look like that, such as a
    recurrent weight, whose units are on both axes, is left as it is; ``path.layers`` says what is repaired. Where a
    network normalizes its activations itself, repair changes nothing that matters.

    Args:
        model: The Pyro model.
        path: The path; align its ends first.
        *args: Its arguments: the data over which spreads are measured; a few hundred are plenty.
        symmetry: The model's symmetry; found if it is not given.
        num_samples: Posterior draws over which spreads are measured.
        seed: Seed of the draws.
        **kwargs: The model's keyword arguments.

    Raises:
        GuideError: The ends are no mean-field Gaussians, or no layer can be repaired.
        SymmetryError: The symmetry is not the one that discovery finds.
        TraceError: The model cannot be traced.

    Example:
        >>> import torch
        >>> from pyro_align import displacement, repair
        >>> from pyro_align.demo.network import bayesian_mlp
        >>> from pyro_align.demo.training import Recipe, fit
        >>> model, x, y = bayesian_mlp([4, 8, 8, 3]), torch.randn(50, 4), torch.arange(50) % 3
        >>> guides = [fit(model, x, y, seed=s, recipe=Recipe(epochs=1), progress=False) for s in (0, 1)]
        >>> len(repair(model, displacement(*guides), x, y).layers)
        2
    """
    if num_samples < 1:
        raise ValueError(f"num_samples: expected at least 1, got {num_samples}")
    for tau in (0.0, 1.0):
        _checked(path.posterior(tau))
    shapes = path.posterior(0.0).shapes
    found = find_symmetry(model, *args, **kwargs) if symmetry is None else bound(symmetry, shapes, of="path")
    repaired = RepairedPath(path, model, args, kwargs, found, num_samples, seed)
    for layer in repaired.layers:
        for site, _ in filter(None, (layer.weight, layer.bias)):
            if not repaired.sites[site].is_real:
                raise GuideError(f"repair scales values, which site '{site}' does not allow: its support is bounded")
    return repaired


def _checked(q: Any) -> MeanFieldNormal:
    if not isinstance(q, MeanFieldNormal):
        raise GuideError(f"repair needs a path between mean-field Gaussians, got {type(q).__name__}")
    return q


def _scaled(q: MeanFieldNormal, where: tuple[str, int], factor: Tensor, shift: Tensor | None = None) -> MeanFieldNormal:
    """One site scaled along an axis, and its location shifted, unit by unit."""
    site, axis = where
    loc, scale = q.marginal(site)
    shape = [-1 if i == axis else 1 for i in range(loc.dim())]
    by = factor.to(loc).reshape(shape)
    moved = by * loc if shift is None else by * loc + shift.to(loc).reshape(shape)
    return q.with_moments({site: (moved, by * scale)})
