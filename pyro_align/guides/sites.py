"""The latent sites of a guide, their noise, and checks of what a caller gives."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.transforms import IndependentTransform, Transform

from pyro_align.errors import GuideError
from pyro_align.model.supports import is_real

Noise = dict[str, Tensor]
Values = dict[str, Tensor]


@dataclass(frozen=True)
class SiteSpec:
    """One latent site, as the guide knows it.

    Attributes:
        name: The site's name.
        shape: Shape of its constrained value; subsampled plates have their full size where the guide covers it.
        support: Support of the site's prior.
        event_dim: Number of its rightmost axes that belong to the prior's event.
        dtype: Dtype of its value.
        device: Device of its value.
        frames: Name, size and dim of each plate it stands in.
        enumerated: Whether the guide leaves its values to be summed over instead of drawing one.
    """

    name: str
    shape: tuple[int, ...]
    support: Any
    event_dim: int
    dtype: torch.dtype
    device: torch.device
    frames: tuple[tuple[str, int, int], ...] = ()
    enumerated: bool = False

    @property
    def is_discrete(self) -> bool:
        """Whether its values are discrete."""
        return bool(self.support.is_discrete)

    @property
    def transform(self) -> Transform:
        """The bijection from unconstrained to constrained values, without a cache."""
        return biject_to(self.support)

    @cached_property
    def unconstrained_shape(self) -> tuple[int, ...]:
        """Shape of the unconstrained value."""
        return tuple(self.transform.inverse_shape(torch.Size(self.shape)))

    @cached_property
    def numel(self) -> int:
        """Number of unconstrained entries."""
        return math.prod(self.unconstrained_shape)

    @cached_property
    def core_event_dims(self) -> tuple[int, int]:
        """Numbers of axes that the bijection really mixes: of the constrained and of the unconstrained value.

        ``(0, 0)`` for elementwise bijections, ``(1, 1)`` for a simplex, ``(2, 1)`` for a Cholesky factor.
        """
        transform = self.transform
        while isinstance(transform, IndependentTransform):
            transform = transform.base_transform
        return transform.codomain.event_dim, transform.domain.event_dim

    @cached_property
    def is_real(self) -> bool:
        """Whether the unconstrained value is the value itself."""
        return is_real(self.support)

    def constrain(self, value: Tensor) -> Tensor:
        """The constrained values of ``(draws, *unconstrained_shape)``."""
        return self.transform(value)

    def unconstrain(self, value: Tensor) -> Tensor:
        """The unconstrained values of ``(draws, *shape)``."""
        return self.transform.inv(value)

    def log_volume(self, unconstrained: Tensor, constrained: Tensor) -> Tensor:
        """Log of the volume change from unconstrained to constrained, ``(draws,)``, nats."""
        if self.is_real:
            return unconstrained.new_zeros(unconstrained.shape[0])
        change = self.transform.log_abs_det_jacobian(unconstrained, constrained)
        return change.reshape(change.shape[0], -1).sum(-1)

    def as_feature(self, unconstrained: Tensor) -> Tensor:
        """An unconstrained tensor in the shape of the site: mixed axes, never relabeled, are padded with zeros."""
        mixed, stored = self.core_event_dims
        if unconstrained.shape == self.shape or mixed == 0:
            return unconstrained.reshape(self.shape)
        lead = unconstrained.shape[: unconstrained.dim() - stored]
        flat = unconstrained.reshape(*lead, -1)
        missing = math.prod(self.shape[len(self.shape) - mixed :]) - flat.shape[-1]
        return torch.nn.functional.pad(flat, (0, missing)).reshape(self.shape)


def check_tau(tau: float) -> float:
    """``tau`` as a float in [0, 1]."""
    tau = float(tau)
    if not 0.0 <= tau <= 1.0:
        raise ValueError(f"tau must lie in [0, 1], got {tau}")
    return tau


def as_generator(generator: torch.Generator | int) -> torch.Generator:
    """A CPU generator from itself or from a seed."""
    if isinstance(generator, torch.Generator):
        if generator.device.type != "cpu":
            raise ValueError(f"expected a CPU torch.Generator, got one on {generator.device}")
        return generator
    if isinstance(generator, bool) or not isinstance(generator, int):
        raise TypeError(f"generator must be a CPU torch.Generator or an int seed, got {generator!r}")
    return torch.Generator().manual_seed(generator)


def check_draws(num_samples: int) -> int:
    """``num_samples`` where it is a positive int."""
    if isinstance(num_samples, bool) or not isinstance(num_samples, int) or num_samples < 1:
        raise ValueError(f"num_samples must be a positive int, got {num_samples!r}")
    return num_samples


def standard_normal(sites: Mapping[str, SiteSpec], num_samples: int, generator: torch.Generator | int) -> Noise:
    """Standard normal noise in the sites' unconstrained shapes, drawn on the CPU so that a seed fixes it anywhere."""
    generator, num_samples = as_generator(generator), check_draws(num_samples)
    return {
        name: torch.randn(
            (num_samples, *spec.unconstrained_shape), generator=generator, dtype=spec.dtype, device="cpu"
        ).to(spec.device)
        for name, spec in sites.items()
    }


def check_scale(site: str, scale: Tensor) -> None:
    """Raises a :class:`GuideError` where a scale is not finite and positive."""
    check_finite("scale", site, scale)
    if not bool((scale > 0).all()):
        raise GuideError(
            f"site '{site}': {int((scale <= 0).sum())} of its scales are not positive (underflow?); "
            "use float64 or a larger initial scale"
        )


def check_finite(what: str, site: str, tensor: Tensor) -> None:
    """Raises a :class:`GuideError` where a tensor holds NaN or infinity."""
    if bool(tensor.sum().isfinite()):  # tells of any NaN or infinity without a copy; only a suspect sum is looked into
        return
    bad = int((~torch.isfinite(tensor)).sum())
    if bad:
        raise GuideError(
            f"site '{site}': {bad} of {tensor.numel()} entries of its {what} are NaN or infinite; "
            "the fit has diverged (a smaller learning rate, or clipped gradients, usually helps)"
        )


def split_flat(sites: Mapping[str, SiteSpec], vector: Tensor) -> dict[str, Tensor]:
    """The parts ``(*batch, *unconstrained_shape)`` of a vector ``(*batch, D)`` that concatenates the sites."""
    total = sum(spec.numel for spec in sites.values())
    if vector.shape[-1] != total:
        raise GuideError(
            f"the guide's parameters have {vector.shape[-1]} entries, its sites {list(sites)} have {total}"
        )
    parts = vector.split([spec.numel for spec in sites.values()], dim=-1)
    lead = vector.shape[:-1]
    return {
        k: part.reshape((*lead, *sites[k].unconstrained_shape)).clone() for k, part in zip(sites, parts, strict=True)
    }
