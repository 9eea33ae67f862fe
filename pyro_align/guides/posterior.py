"""What every family of posteriors can do: the currency between Pyro's guides and the rest of the library.

A :class:`Posterior` is a snapshot. It owns its tensors, so nothing that later happens to the guide, or to the global
param store, reaches it; and nothing done with it reaches the guide.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.transforms import IndependentTransform, Transform

from pyro_align.errors import GuideError
from pyro_align.model.density import is_real
from pyro_align.symmetry.group import Permutation

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


class Posterior(ABC):
    """A family's member, read from a guide.

    Every family is one file with one frozen dataclass that implements this class. All tensors are detached and owned.

    Attributes:
        sites: Site name -> :class:`SiteSpec`, in the guide's order.
    """

    sites: Mapping[str, SiteSpec]

    # -- what it is ------------------------------------------------------------------------------------------------

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the first site."""
        return next(iter(self.sites.values())).dtype

    @property
    def device(self) -> torch.device:
        """Device of the first site."""
        return next(iter(self.sites.values())).device

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Site -> shape of its constrained value."""
        return {name: spec.shape for name, spec in self.sites.items()}

    # -- relabeling -----------------------------------------------------------------------------------------------

    def permute(self, p: Permutation) -> Posterior:
        """The exact push-forward under a relabeling: its draws are the relabeled draws of this posterior.

        Sites that the symmetry does not name stay as they are.

        Raises:
            GuideError: A relabeled site is missing, or cannot be relabeled exactly within this family.
            SymmetryError: A site's shape does not fit the symmetry.
        """
        moved = {name for name, count in p.moved().items() if count}
        missing = sorted({site for name in moved for site, _ in p.symmetry.carriers[name] if site not in self.sites})
        if missing:
            raise GuideError(
                f"the relabeling moves sites that the guide does not have: {missing}; the guide has "
                f"{list(self.sites)}. Relabel a guide over all sites that carry the symmetry"
            )
        return self._permute(p)

    @abstractmethod
    def _permute(self, p: Permutation) -> Posterior:
        """`permute` without the check that all moved sites are there (members of a guide list hold a part of them)."""

    @abstractmethod
    def permute_noise(self, p: Permutation, noise: Noise) -> Noise:
        """The noise for which the relabeled posterior gives the relabeled draws.

        ``q.permute(p).push(q.permute_noise(p, noise)) == p.apply(q.push(noise))``.
        """

    def with_labels(self, labels: Mapping[str, str | None]) -> Posterior:
        """The same posterior, told which of its discrete sites have labels as values.

        Args:
            labels: Discrete site -> the atom whose units its values number; None where they number none.

        Raises:
            GuideError: The posterior does not have this discrete site.
        """
        raise GuideError(f"labels= names the sites {list(labels)}, and the guide has no discrete sites")

    #: Discrete site -> the atom whose units its values number, or None where they number none.
    labels: Mapping[str, str | None] = {}

    def read_again(self, guide: Any) -> Posterior:
        """Reads a guide of the same type as this posterior's was read: with the same labels and arguments."""
        from pyro_align.guides.registry import read_guide  # here: it stands above this module

        return read_guide(guide, labels=self.labels)

    # -- draws -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def noise(self, num_samples: int, *, generator: torch.Generator | int = 0) -> Noise:
        """Standard noise with a leading axis of draws, for any member of the family with the same sites.

        Args:
            num_samples: Number of draws.
            generator: A CPU ``torch.Generator`` or a seed.
        """

    def push(self, noise: Noise) -> Values:
        """Constrained draws, site -> ``(draws, *site_shape)``."""
        return self.push_with_log_prob(noise)[0]

    @abstractmethod
    def push_with_log_prob(self, noise: Noise) -> tuple[Values, Tensor]:
        """Constrained draws and the log density (nats) of each constrained draw, ``(draws,)``.

        The density includes the Jacobian of the bijection to the constrained space, as in Pyro's guides, so that the
        mean of ``log p - log q`` is Pyro's ELBO. A point mass scores zero, as Pyro's ``Delta`` does.
        """

    # -- geometry --------------------------------------------------------------------------------------------------

    def features(self, divergence: str = "w2", side: str = "fixed") -> Mapping[str, tuple[Tensor, ...]]:
        """Tensors of the sites' shapes whose inner products are a divergence.

        The sum over sites and features of ``<fixed, P moving>`` is, up to a constant, minus the divergence between the
        fixed posterior and the relabeled moving one (half of it for the squared W2).

        Args:
            divergence: One of :attr:`divergences`.
            side: ``"fixed"`` or ``"moving"``.

        Raises:
            GuideError: The family does not have this divergence.
        """
        if divergence not in self.divergences:
            raise GuideError(
                f"{type(self).__name__} has no divergence {divergence!r}; it has {', '.join(self.divergences)}"
            )
        if side not in ("fixed", "moving"):
            raise ValueError(f"side must be 'fixed' or 'moving', got {side!r}")
        return self._features(divergence, side)

    #: The divergences that the family can be matched by.
    divergences: tuple[str, ...] = ()

    def _features(self, divergence: str, side: str) -> Mapping[str, tuple[Tensor, ...]]:
        raise GuideError(f"{type(self).__name__} has no features to match by")

    def feature_odd(self, divergence: str = "w2") -> tuple[bool, ...]:
        """For each feature, whether it changes sign together with a signed unit (locations do, scales do not)."""
        raise GuideError(f"{type(self).__name__} has no features to match by")

    #: Whether the exact W2 also depends on a coupling, so that matching alternates with :meth:`coupled_features`.
    is_coupled: bool = False

    def coupled_features(
        self, other: Posterior, p: Permutation
    ) -> tuple[dict[str, tuple[Tensor, ...]], dict[str, tuple[Tensor, ...]], tuple[bool, ...]]:
        """Features of the true W2 between this posterior and ``other`` relabeled, the coupling held at ``p``.

        For Gaussians, W2 is a minimum over couplings Q of a function that is linear in the relabeling for fixed Q.
        Matching with these features, started from ``p``, and renewing them at the result lowers W2 at every step.

        Args:
            other: The moving posterior, as it stands.
            p: The current relabeling of ``other``.

        Returns:
            Features of this posterior (fixed), of ``other`` (moving, not relabeled), and which of them are odd. The
            sum of ``<fixed, p moving>`` is, up to a constant, minus half the squared W2 to ``other`` relabeled by p.
        """
        self.check_compatible(other)
        return self.features("w2", "fixed"), other.features("w2", "moving"), self.feature_odd("w2")

    @abstractmethod
    def distance(self, other: Posterior) -> float:
        """The Wasserstein-2 distance to another member of the family, in the coordinates the family lives in."""

    @abstractmethod
    def displace(self, other: Posterior, tau: float) -> Posterior:
        """The point at ``tau`` in [0, 1] on the Wasserstein-2 geodesic to ``other``; the end points are exact."""

    def check_compatible(self, other: Posterior) -> None:
        """Raises a :class:`GuideError` unless both posteriors are over the same sites with the same shapes."""
        if not isinstance(other, Posterior):
            raise TypeError(f"expected a Posterior, got {type(other).__name__}; read a guide with read_guide(guide)")
        if type(other) is not type(self):
            raise GuideError(
                f"the posteriors are of two families, {type(self).__name__} and {type(other).__name__}; "
                "fit both with guides of one type"
            )
        only_here, only_there = sorted(set(self.sites) - set(other.sites)), sorted(set(other.sites) - set(self.sites))
        if only_here or only_there:
            raise GuideError(
                f"the posteriors have different sites: only the first has {only_here}, only the second {only_there}"
            )
        for name, spec in self.sites.items():
            there = other.sites[name]
            if spec.shape != there.shape:
                raise GuideError(
                    f"site '{name}': shape {spec.shape} in the first posterior, {there.shape} in the second"
                )
            if spec.dtype != there.dtype:
                raise GuideError(f"site '{name}': {spec.dtype} in the first posterior, {there.dtype} in the second")
            if spec.device != there.device:
                raise GuideError(
                    f"site '{name}': on {spec.device} in the first posterior, on {there.device} in the second"
                )

    # -- back to Pyro ----------------------------------------------------------------------------------------------

    @abstractmethod
    def to_guide(self):
        """A new Pyro guide that owns its parameters, under names of its own in the param store."""


def check_tau(tau: float) -> float:
    """``tau`` as a float in [0, 1].

    Raises:
        ValueError: It is not.
    """
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
