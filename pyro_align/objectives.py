"""What an alignment minimizes: divergences of posteriors, likeness of activations, and their combinations."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from pyro_align.axes import axis_size, leaves
from pyro_align.discovery import ActivationProbe, probe_activations
from pyro_align.errors import MatchError
from pyro_align.guides import Posterior
from pyro_align.guides.features import Features, stacked_features
from pyro_align.matching import Match
from pyro_align.model.keywords import options_apart
from pyro_align.path_losses import MidpointLoss, PathLoss
from pyro_align.symmetry.element import Permutation
from pyro_align.symmetry.group import Symmetry

__all__ = ["Activations", "MidpointLoss", "PathLoss"]


@dataclass(frozen=True, eq=False, init=False)
class Activations:
    """Likeness of units by what they do on data, averaged over the posterior (activation matching).

    Two units are alike if their activations correlate over data and posterior draws (Tatro et al. 2020; Ainsworth et
    al. 2023, section 3.1); noise of the posterior lowers the correlation, so that units at the prior count little. The
    activations are found in the model's traced graph, whatever its architecture.

    Args:
        model: The Pyro model.
        args: Its arguments: the data on which to compare, a few hundred are plenty.
        num_samples: Posterior draws.
        seed: Seed of the draws.
        kwargs: The model's keyword arguments.

    Example:
        >>> import torch
        >>> from pyro_align.objectives import Activations
        >>> from pyro_align.demo.network import bayesian_mlp
        >>> x, y = torch.randn(50, 4), torch.arange(50) % 3
        >>> by_activation = Activations(bayesian_mlp([4, 8, 3]), x, y, num_samples=4)
        >>> by_activation.num_samples
        4
    """

    model: Callable[..., Any] = field(repr=False)
    args: tuple[Any, ...] = field(repr=False)
    kwargs: Mapping[str, Any] = field(repr=False)
    num_samples: int
    seed: int
    _probes: dict[Any, Any] = field(repr=False)

    @options_apart
    def __init__(self, model: Callable[..., Any], *args: Any, num_samples: int = 8, seed: int = 0, **kwargs: Any):
        if num_samples < 1:
            raise MatchError(f"num_samples: expected at least 1, got {num_samples}")
        self.__dict__.update(model=model, args=args, kwargs=kwargs, num_samples=num_samples, seed=seed, _probes={})

    def probe(self, symmetry: Symmetry) -> ActivationProbe:
        """Where the activations are in the model's graph."""
        key = id(symmetry)
        if key not in self._probes:
            probe = probe_activations(self.model, *self.args, symmetry=symmetry, **self.kwargs)
            if not probe.axes:
                raise MatchError("the model has no activations: no tensor carries both data and units of the symmetry")
            self._probes[key] = (symmetry, probe)  # holds the symmetry, so that its id stays taken
        return self._probes[key][1]

    def features(self, posterior: Posterior, symmetry: Symmetry) -> Features:
        """Standardized mean activations, pseudo-site -> one tensor."""
        probe = self.probe(symmetry)
        values = posterior.push(posterior.noise(self.num_samples, generator=self.seed))
        draws = ({site: v[s] for site, v in values.items()} for s in range(self.num_samples))
        found = {
            name: (_standardized(mean, square, probe.axes[name]).to(posterior.dtype),)
            for name, (mean, square) in probe(draws).items()
        }
        return Features(found, found.__getitem__, (False,))


def _standardized(mean: Tensor, square: Tensor, axes: Sequence[Any]) -> Tensor:
    """Activations less their mean over data, over their spread over data and draws; units that never vary give 0."""
    samples = [i for i, term in enumerate(axes) if not any(atom.name for atom in leaves(term))]
    center = mean.mean(samples, keepdim=True)
    variance = (square.mean(samples, keepdim=True) - center**2).clamp_min(0.0)
    count = math.prod(axis_size(axes[i]) for i in samples)
    scale = variance.sqrt()
    floor = 1e-8 * (center.abs() + scale.max())
    return ((mean - center) / scale.clamp_min(1e-300)).where(scale > floor, 0.0) / math.sqrt(count)


@dataclass(frozen=True, eq=False)
class Objective:
    """What is handed to a matcher.

    Attributes:
        group: The symmetry whose elements are wanted.
        symmetry: The same over the tensors that have features: sites, and a pseudo-site per tensor of activations.
        fixed: Features of the posterior that stays.
        moving: Features of the posterior to relabel.
    """

    group: Symmetry = field(repr=False)
    symmetry: Symmetry
    fixed: Features = field(repr=False)
    moving: Features = field(repr=False)

    def start(self, permutation: Permutation | None) -> Permutation | None:
        """A relabeling to start from, over the tensors that have features."""
        if permutation is None or self.symmetry is self.group:
            return permutation
        known = self.symmetry.atoms
        parts = (permutation.indices, permutation.signs, permutation.rotations)
        return self.symmetry.permutation(*({k: v for k, v in part.items() if k in known} for part in parts))

    def finish(self, found: Match) -> Match:
        """What was found, with its relabeling as an element of the group."""
        return replace(found, permutation=self.as_element(found.permutation), kept=self.kept)

    @property
    def kept(self) -> tuple[str, ...]:
        """Atoms on no tensor that has features: nothing says how they match, so they keep their order."""
        return tuple(name for name in self.group.atoms if name not in self.symmetry.atoms)

    def as_element(self, permutation: Permutation) -> Permutation:
        """A relabeling of the tensors with features as an element of the group; all other atoms keep their order."""
        if self.symmetry is self.group:
            return permutation
        return self.group.permutation(permutation.indices, permutation.signs, permutation.rotations)


def build_objective(a: Posterior, b: Posterior, symmetry: Symmetry, divergence: Any) -> Objective:
    """The features of a divergence, of activations, or of a weighted combination."""
    parts = dict(divergence) if isinstance(divergence, Mapping) else {divergence: 1.0}
    if not parts:
        raise MatchError("divergence: got an empty mapping; give names or Activations with their weights")
    fixed: list[tuple[Features, float]] = []
    moving: list[tuple[Features, float]] = []
    odd: dict[str, tuple[bool, ...]] = {}
    axes = dict(symmetry.sites)
    for part, weight in parts.items():
        if not (isinstance(weight, int | float) and 0 < weight < math.inf):
            raise MatchError(f"divergence: the weight of {part!r} must be a positive number, got {weight!r}")
        if isinstance(part, Activations):
            if symmetry.signed:
                raise MatchError("activations cannot be matched up to signs; use a symmetry found with signs=False")
            axes.update(part.probe(symmetry).axes)
            here, there = part.features(a, symmetry), part.features(b, symmetry)
        else:
            here, there = a.features(part, "fixed"), b.features(part, "moving")
            here, there = (stacked_features(f, symmetry.stacks) for f in (here, there))
        fixed.append((here, weight))
        moving.append((there, 1.0))
        for site in here:
            odd[site] = (*odd.get(site, ()), *here.odd[site])
    sides = (Features(odd, lambda s: _stacked(fixed, s), odd), Features(odd, lambda s: _stacked(moving, s), odd))
    return over(symmetry, *sides, axes)


def over(symmetry: Symmetry, fixed: Features, moving: Features, axes: Mapping[str, Any] | None = None) -> Objective:
    """The objective on the tensors that have features, of which ``axes`` gives the terms where they are no sites."""
    axes = symmetry.sites if axes is None else axes
    if axes.keys() == fixed.keys() == symmetry.sites.keys():
        return Objective(symmetry, symmetry, fixed, moving)
    kept = {site: terms for site, terms in axes.items() if site in fixed}
    return Objective(symmetry, replace(symmetry, sites=kept, certificate=None), fixed, moving)


def _stacked(parts: Sequence[tuple[Features, float]], site: str) -> tuple[Tensor, ...]:
    """One site's features of all parts that have it, each times its weight."""
    return tuple(t if weight == 1 else weight * t for part, weight in parts if site in part for t in part[site])
