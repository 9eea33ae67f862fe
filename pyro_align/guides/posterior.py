"""What every family of posteriors can do: the currency between Pyro's guides and the rest of the library.

A :class:`Posterior` is a snapshot. It owns its tensors, so nothing that later happens to the guide, or to the global
param store, reaches it; and nothing done with it reaches the guide.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from pyro_align.errors import GuideError
from pyro_align.guides.features import Features
from pyro_align.guides.sites import Noise, SiteSpec, Values, check_tau
from pyro_align.symmetry.element import Permutation
from pyro_align.symmetry.stacks import refused

_T = TypeVar("_T")


class Guide(Protocol):
    """What this package returns as a guide: something that can be called like a Pyro guide.

    Mostly a ``PyroModule``, in general of the type of the guide that was given, whose attributes it has.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Draws once from the posterior, as Pyro sample statements; returns site -> value, as autoguides do."""

    def __getattr__(self, name: str) -> Any:
        """Attributes are those of the guide's own type."""


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
        carriers = {site for name in moved for site, _ in p.symmetry.carriers[name]}
        stacks = {site: p.symmetry.stacks[site] for site in carriers if site in p.symmetry.stacks}
        if stacks and not self.moves_whole_sites:
            raise GuideError(
                f"{type(self).__name__} cannot follow this relabeling, as {refused(stacks)}, or wrap the guide, "
                "wrap_guide(guide, *args)"
            )
        carriers = {member for site in carriers for member in stacks.get(site, (site,))}
        missing = sorted(carriers - set(self.sites))
        if missing:
            raise GuideError(
                f"the relabeling moves sites that the guide does not have: {missing}; the guide has "
                f"{list(self.sites)}. Relabel a guide over all sites that carry the symmetry; parameters of the "
                "model that were learned beside it are given as parameters=model"
            )
        return self._permute(p)

    @abstractmethod
    def _permute(self, p: Permutation) -> Posterior:
        """`permute` without the check that all moved sites are there (members of a guide list hold a part of them)."""

    def permute_noise(self, p: Permutation, noise: Noise) -> Noise:
        """The noise for which the relabeled posterior gives the relabeled draws: the same, where it is not by entries.

        ``q.permute(p).push(q.permute_noise(p, noise)) == p.apply(q.push(noise))``.
        """
        return dict(noise)

    def with_labels(self, labels: Mapping[str, str | None]) -> Posterior:
        """The same posterior, told which of its discrete sites have labels as values.

        Args:
            labels: Discrete site -> the atom whose units its values number; None where they number none.

        Raises:
            GuideError: The posterior does not have this discrete site.
        """
        raise GuideError(f"labels= names the sites {list(labels)}, and the guide has no discrete sites")

    #: Whether it has ``parts`` each of which may come to be known by its draws while the others stay as they are.
    separate: bool = False
    parts: tuple[Posterior, ...]

    #: Discrete site -> the atom whose units its values number, or None where they number none.
    labels: Mapping[str, str | None] = {}

    #: Whether the posterior is known by its draws alone, so that it can be compared with any other that is.
    known_by_draws: bool = False

    #: Whether the family is one of unconstrained coordinates: closed under relabelings that commute with the bijection.
    in_unconstrained: bool = False

    #: Whether the family follows a relabeling by which sites change places as wholes.
    moves_whole_sites: bool = False

    #: Whether draws have a log density. Without one there is no entropy, hence no KL and no ELBO.
    has_density: bool = True

    #: The largest number of different draws that can be made; None where there is no limit.
    max_samples: int | None = None

    #: Arguments with which the guide is run when it is read, and its keyword arguments.
    arguments: tuple[tuple[Any, ...], Mapping[str, Any]] = ((), {})

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

    def marginal(self, site: str) -> tuple[Tensor, Tensor]:
        """Location and standard deviation of one site's unconstrained coordinates, ``unconstrained_shape`` each."""
        raise GuideError(f"{type(self).__name__} has no location and scale")

    def features(self, divergence: str = "w2", side: str = "fixed") -> Features:
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
    divergences: tuple[str, ...] = ("w2", "means")

    def _features(self, divergence: str, side: str) -> Features:
        """Location and, for ``"w2"``, standard deviation of every site's coordinates."""
        odd = (True, False) if divergence == "w2" else (True,)

        def make(name: str) -> tuple[Tensor, ...]:
            return tuple(self.sites[name].as_feature(t) for t in self.marginal(name)[: len(odd)])

        return Features(self.sites, make, odd)

    #: Whether the exact W2 also depends on a coupling, so that matching alternates with :meth:`coupled_features`.
    is_coupled: bool = False

    def coupled_features(self, other: Posterior, p: Permutation) -> tuple[Features, Features]:
        """Features of the true W2 between this posterior and ``other`` relabeled, the coupling held at ``p``.

        For Gaussians, W2 is a minimum over couplings Q of a function that is linear in the relabeling for fixed Q.
        Matching with these features, started from ``p``, and renewing them at the result lowers W2 at every step.

        Args:
            other: The moving posterior, before relabeling.
            p: The current relabeling of ``other``.

        Returns:
            Features of this posterior (fixed), and of ``other`` (moving, not relabeled). The sum of
            ``<fixed, p moving>`` is, up to a constant, minus half the squared W2 to ``other`` relabeled by p.
        """
        self.check_compatible(other)
        return self.features("w2", "fixed"), other.features("w2", "moving")

    @abstractmethod
    def distance(self, other: Posterior) -> float:
        """The Wasserstein-2 distance to another member of the family, in the coordinates the family lives in."""

    def distance_error(self, other: Posterior) -> float:
        """Standard error of :meth:`distance`; 0 where it is no estimate."""
        return 0.0

    def path_notes(self, other: Posterior) -> tuple[str, ...]:
        """What should be told of the path to another posterior: what it leaves out, what is approximate."""
        return ()

    def displace(self, other: Posterior, tau: float) -> Posterior:
        """The point at ``tau`` in [0, 1] on the Wasserstein-2 geodesic to ``other``; the end points are exact."""
        self.check_compatible(other)
        tau = check_tau(tau)
        return self if tau == 0.0 else self._displace(other, tau)

    @abstractmethod
    def _displace(self, other: Any, tau: float) -> Posterior:
        """:meth:`displace` to a posterior that fits, at ``tau`` above 0."""

    def _toward(self, end: object, make: Callable[[], _T]) -> _T:
        """What is made once for all points of a path to an end."""
        cache = self.__dict__.setdefault("_path", {})
        if cache.get("end") is not end:
            cache.update(end=end, made=make())
        return cache["made"]

    def check_compatible(self, other: Posterior) -> None:
        """Raises a :class:`GuideError` unless both posteriors are over the same sites with the same shapes."""
        if not isinstance(other, Posterior):
            raise TypeError(f"expected a Posterior, got {type(other).__name__}; read a guide with read_guide(guide)")
        if type(other) is not type(self):
            raise GuideError(
                f"the posteriors are of two families, {type(self).__name__} and {type(other).__name__}; "
                "fit both with guides of one type"
            )
        self.check_sites(other)

    def check_sites(self, other: Posterior) -> None:
        """Raises a :class:`GuideError` unless the other posterior has the same sites, shapes, dtypes and devices."""
        only_here, only_there = sorted(set(self.sites) - set(other.sites)), sorted(set(other.sites) - set(self.sites))
        if only_here or only_there:
            raise GuideError(
                f"the posteriors have different sites: only the first has {only_here}, only the second {only_there}"
            )
        for name, spec in self.sites.items():
            for what in ("shape", "dtype", "device"):
                here, there = getattr(spec, what), getattr(other.sites[name], what)
                if here != there:
                    raise GuideError(f"site '{name}': {what} {here} in the first posterior, {there} in the second")

    # -- back to Pyro ----------------------------------------------------------------------------------------------

    #: Makes a Pyro guide of a member of the family; families without it override :meth:`to_guide`.
    write: Callable[[Any], Any]

    def to_guide(self) -> Guide:
        """A new Pyro guide that owns its parameters, under names of its own in the param store."""
        return self.write(self)
