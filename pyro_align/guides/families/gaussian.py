"""Correlated Gaussians: ``AutoMultivariateNormal``, a fitted Laplace approximation, ``AutoLowRankMultivariateNormal``.

The family: the concatenated unconstrained coordinates are ``loc + root @ eps`` with standard normal ``eps`` and any
``root`` of the covariance. Relabeling indexes the rows of the root, exactly; only writing a guide back makes the root
triangular, by a QR decomposition, so that no condition number is squared.

Between two members, ``W2^2 = |m0 - m1|^2 + min over orthogonal Q of |R0 - R1 Q|_F^2``, the minimum at the polar factor
of ``R1^T R0``, and the geodesic is the straight line from ``R0`` to ``R1 Q`` (Takatsu 2011, Section 2; Bhatia, Jain &
Lim 2019). Linear in Cholesky factors is *not* the geodesic.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from pyro_align.errors import GuideError
from pyro_align.guides.features import Features
from pyro_align.guides.posterior import Guide, Posterior
from pyro_align.guides.pyro_state.modules import Prototype, RawParameter
from pyro_align.guides.relabel import Relabeling
from pyro_align.guides.sites import (
    Noise,
    SiteSpec,
    Values,
    as_generator,
    check_finite,
    check_tau,
    split_flat,
    standard_normal,
)
from pyro_align.symmetry.element import Permutation

RANK_NOISE = "_rank"  # the noise of the root's columns beyond one per coordinate
_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True, eq=False)
class StoredForm(ABC):
    """How a guide stores a Gaussian, where that form can be relabeled: the relabeled guide is of the same type.

    Attributes:
        prototype: Makes the guide.
        sites: The sites, in the order in which coordinates are concatenated.
        locs: Site -> location.
        scales: Site -> scale.
    """

    prototype: Prototype
    sites: Mapping[str, SiteSpec]
    locs: Mapping[str, RawParameter] = field(repr=False)
    scales: Mapping[str, RawParameter] = field(repr=False)

    @abstractmethod
    def permute(self, p: Permutation) -> StoredForm:
        """The form of the relabeled Gaussian."""

    @abstractmethod
    def build(self) -> object:
        """A new guide that stores this form, bit for bit."""

    @abstractmethod
    def moments(self) -> tuple[Tensor, Tensor]:
        """Location ``(D,)`` and lower root ``(D, D)`` of the covariance."""


class FlatNormal(Posterior):
    """A Gaussian over the ``D`` concatenated unconstrained coordinates of all sites."""

    loc: Tensor
    in_unconstrained = True
    is_coupled = True

    @property
    @abstractmethod
    def extra(self) -> int:
        """Columns of the root beyond one per coordinate."""

    @property
    @abstractmethod
    def deviations(self) -> Tensor:
        """Standard deviation of every coordinate, ``(D,)``."""

    def marginal(self, site: str) -> tuple[Tensor, Tensor]:
        """Location and standard deviation of one site's unconstrained coordinates, ``unconstrained_shape`` each."""
        return split_flat(self.sites, self.loc)[site], split_flat(self.sites, self.deviations)[site]

    def noise(self, num_samples: int, *, generator: torch.Generator | int = 0) -> Noise:
        """Standard normal noise per site, and :attr:`extra` more entries under :data:`RANK_NOISE`."""
        generator = as_generator(generator)
        noise = standard_normal(self.sites, num_samples, generator)
        if self.extra:
            rank = torch.randn((num_samples, self.extra), generator=generator, dtype=self.dtype, device="cpu")
            noise[RANK_NOISE] = rank.to(self.device)
        return noise

    @abstractmethod
    def _shift(self, eps: Tensor) -> Tensor:
        """How far from the location noise ``(draws, R)`` leads: ``(draws, D)``."""

    def push_with_log_prob(self, noise: Noise) -> tuple[Values, Tensor]:
        shift = self._shift(flat_noise(self.sites, noise))
        values, log_prob = {}, self._log_prob_at(shift)
        for name, part in split_flat(self.sites, self.loc + shift).items():
            values[name] = self.sites[name].constrain(part)
            log_prob = log_prob - self.sites[name].log_volume(part, values[name])
        return values, log_prob

    @abstractmethod
    def _log_prob_at(self, shift: Tensor) -> Tensor:
        """Log density of coordinates that lie ``shift``, ``(draws, D)``, from the location: ``(draws,)`` nats."""

    def log_prob(self, values: Values) -> Tensor:
        """Log density (nats) of constrained values ``(draws, *site_shape)``, ``(draws,)``."""
        latents = {k: spec.unconstrain(values[k]) for k, spec in self.sites.items()}
        flat = torch.cat([v.reshape(len(v), -1) for v in latents.values()], dim=-1)
        return self._log_prob_at(flat - self.loc) - sum(
            self.sites[k].log_volume(v, values[k]) for k, v in latents.items()
        )

    def check_compatible(self, other: Posterior) -> None:
        super().check_compatible(other)
        if other.extra != self.extra:
            raise GuideError(
                f"the posteriors have ranks {self.extra} and {other.extra}; fit both guides with the same rank"
            )


@dataclass(frozen=True, eq=False)
class DenseNormal(FlatNormal):
    """A Gaussian over all unconstrained coordinates.

    Attributes:
        sites: The sites, in the order in which they are concatenated.
        loc: Location, ``(D,)``.
        root: A root of the covariance ``root @ root.T``, ``(D, R)`` with ``R >= D``.
        write: Makes a Pyro guide of a member of the family.
        stored: What the guide stored, while nothing has changed: written back bit for bit. A :class:`StoredForm` is
            kept under relabeling, too.
    """

    sites: Mapping[str, SiteSpec]
    loc: Tensor = field(repr=False)
    root: Tensor = field(repr=False)
    write: Callable[[DenseNormal], object] = field(repr=False)
    stored: object = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name, loc in split_flat(self.sites, self.loc).items():
            check_finite("location", name, loc)
        for name, rows in split_flat(self.sites, self.root.T).items():
            check_finite("covariance", name, rows)

    @property
    def deviations(self) -> Tensor:
        return self.root.square().sum(-1).sqrt()

    @cached_property
    def tril(self) -> Tensor:
        """The lower-triangular root with a positive diagonal, ``(D, D)``."""
        return lower_root(self.root)

    @property
    def moves_whole_sites(self) -> bool:
        return not isinstance(self.stored, StoredForm)

    @property
    def extra(self) -> int:
        return self.root.shape[1] - self.root.shape[0]

    def _permute(self, p: Permutation) -> DenseNormal:
        act = Relabeling(p, self.sites)
        if not any(map(act.moves, self.sites)):
            return self
        stored = self.stored.permute(p) if isinstance(self.stored, StoredForm) else None
        return replace(self, loc=act.rows(self.loc), root=act.rows(self.root), stored=stored)

    def permute_noise(self, p: Permutation, noise: Noise) -> Noise:
        return dict(noise)  # the rows of the root move, its columns do not

    def _shift(self, eps: Tensor) -> Tensor:
        return eps @ self.root.T

    def _log_prob_at(self, shift: Tensor) -> Tensor:
        white = torch.linalg.solve_triangular(self.tril, shift.T, upper=False)
        return -0.5 * white.square().sum(0) - self.tril.diagonal().log().sum() - len(self.loc) * _HALF_LOG_2PI

    # features for "w2" are those of the marginals: the start from which `coupled_features` finds the true W2

    def coupled_features(self, other: Posterior, p: Permutation) -> tuple[Features, Features]:
        self.check_compatible(other)
        theirs = in_order(other, self.sites)
        turned = theirs.root @ coupling(self.root, theirs._permute(p).root)
        return _columns(self.sites, self.loc, self.root), _columns(self.sites, theirs.loc, turned)

    def distance(self, other: Posterior) -> float:
        self.check_compatible(other)
        theirs = in_order(other, self.sites)
        gap = self.root.double() - theirs.root.double() @ coupling(self.root.double(), theirs.root.double())
        return math.sqrt(float((self.loc.double() - theirs.loc.double()).square().sum() + gap.square().sum()))

    def displace(self, other: Posterior, tau: float) -> DenseNormal:
        self.check_compatible(other)
        tau = check_tau(tau)
        theirs = in_order(other, self.sites)
        if tau == 0.0:
            return self
        # one SVD serves every tau of a path
        turned = theirs.root @ self._toward(other, lambda: coupling(self.root, theirs.root))
        if tau == 1.0:  # turned, so that the same noise gives the coupled draws; what is written back is the end itself
            return replace(self, loc=theirs.loc, root=turned, stored=theirs.stored)
        root = torch.lerp(self.root, turned, tau)
        return replace(self, loc=torch.lerp(self.loc, theirs.loc, tau), root=root, stored=None)

    def to_guide(self) -> Guide:
        return self.stored.build() if isinstance(self.stored, StoredForm) else self.write(self)


def lower_root(root: Tensor) -> Tensor:
    """The lower-triangular root of ``root @ root.T`` with a positive diagonal, by QR in float64."""
    n = root.shape[0]
    if root.shape[1] == n and bool((root.triu(1) == 0).all()) and bool((root.diagonal() > 0).all()):
        return root
    r = torch.linalg.qr(root.double().T, mode="r").R[:n]
    lower = (r * torch.where(r.diagonal() < 0, -1.0, 1.0).unsqueeze(-1)).T.tril()
    if not bool((lower.diagonal() > 0).all()):
        raise GuideError("the covariance is singular; refit with a larger initial scale, or in float64")
    return lower.to(root.dtype).contiguous()


def coupling(fixed: Tensor, moving: Tensor) -> Tensor:
    """The orthogonal Q that brings ``moving @ Q`` nearest to ``fixed`` (orthogonal Procrustes), ``(R, R)``."""
    u, _, vh = torch.linalg.svd(moving.double().T @ fixed.double())
    return (u @ vh).to(fixed.dtype)


def in_order(q: DenseNormal, sites: Mapping[str, SiteSpec]) -> DenseNormal:
    """The same posterior with its sites concatenated in the order of ``sites``."""
    if list(q.sites) == list(sites):
        return q
    index = places_of(q.sites, sites, q.loc.device)
    return replace(q, sites={k: q.sites[k] for k in sites}, loc=q.loc[index], root=q.root[index], stored=None)


def places_of(given: Mapping[str, SiteSpec], wanted: Mapping[str, SiteSpec], device: torch.device) -> Tensor:
    """Where the coordinates of sites in a wanted order are among those in the given one, ``(D,)``."""
    places = split_flat(given, torch.arange(sum(spec.numel for spec in given.values()), device=device))
    return torch.cat([places[name].flatten() for name in wanted])


def _columns(sites: Mapping[str, SiteSpec], loc: Tensor, root: Tensor) -> Features:
    """Site -> the location and every column of the root, in the shape of the site."""
    parts = split_flat(sites, torch.cat([loc.unsqueeze(-1), root], dim=-1).T)
    odd = (True,) * (1 + root.shape[1])
    return Features(sites, lambda name: tuple(sites[name].as_feature(column) for column in parts[name]), odd)


def flat_noise(sites: Mapping[str, SiteSpec], noise: Noise) -> Tensor:
    """The noise as ``(draws, R)``."""
    parts = [noise[k].flatten(1) if noise[k].dim() > 1 else noise[k].unsqueeze(-1) for k in sites]
    return torch.cat(parts + ([noise[RANK_NOISE]] if RANK_NOISE in noise else []), dim=-1)
