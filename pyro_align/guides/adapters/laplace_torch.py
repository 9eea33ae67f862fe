"""laplace-torch: Laplace approximations over all weights of a module, with three structures of the precision.

| type | relabeling | between two of them |
|---|---|---|
| ``DiagLaplace`` | exact, same type | W2 geodesic, ``DiagLaplace`` |
| ``FullLaplace`` | exact, same type | Bures-Wasserstein geodesic, ``FullLaplace`` |
| ``KronLaplace`` | exact, same type: rows and columns of the factors move | leaves the family: ``FullLaplace`` |

Sites are the module's trainable parameters, by name. What is written back is a copy of what was read: its module has
the new mean as weights, its ``H`` is such that the posterior precision is the new one under the old prior precision.
Its ``loss``, the negative log likelihood at the mode, is kept, and right for relabeled approximations alone.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import vector_to_parameters

from pyro_align.axes import leaves
from pyro_align.errors import GuideError
from pyro_align.guides.adapters.mean_field import EXP
from pyro_align.guides.families.gaussian import DenseNormal
from pyro_align.guides.families.low_rank import LARGEST_DENSE
from pyro_align.guides.families.mean_field import MeanFieldNormal
from pyro_align.guides.posterior import Posterior
from pyro_align.guides.pyro_state.modules import RawParameter, raw_parameters, sites_of
from pyro_align.guides.registry import register_guide
from pyro_align.guides.sites import split_flat
from pyro_align.symmetry.element import Permutation


@register_guide("laplace.baselaplace.DiagLaplace")
def read_diag(laplace: Any) -> MeanFieldNormal:
    """Reads a ``DiagLaplace``."""
    locs = _means(laplace)
    sites = sites_of(locs)
    scales = split_flat(sites, laplace.posterior_scale.detach())
    logs = {k: RawParameter(v.log(), EXP) for k, v in scales.items()}
    return MeanFieldNormal(sites, locs, logs, _DiagWriter(_twin(laplace), scales))


@register_guide("laplace.baselaplace.FullLaplace")
def read_full(laplace: Any) -> DenseNormal:
    """Reads a ``FullLaplace``: its root is the one that it draws with."""
    locs = _means(laplace)
    root = laplace.posterior_scale.detach().clone()
    stored = (laplace.H.detach().clone(), root)
    return DenseNormal(sites_of(locs), _flat(locs), root, _FullWriter(_twin(laplace)), stored)


@register_guide("laplace.baselaplace.KronLaplace")
def read_kron(laplace: Any) -> KronNormal:
    """Reads a ``KronLaplace``."""
    locs = _means(laplace)
    if laplace.n_params > LARGEST_DENSE:
        raise GuideError(
            f"this KronLaplace has {laplace.n_params} weights; its Wasserstein-2 geometry needs a dense root (at most "
            f"{LARGEST_DENSE}). Use hessian_structure='diag'"
        )
    root = laplace.posterior_precision.to_matrix(exponent=-0.5).detach()
    blocks = {
        name: KronBlock(*(tuple(t.detach().clone() for t in part) for part in parts))
        for name, *parts in zip(locs, laplace.H_facs.kfacs, laplace.H.eigenvectors, laplace.H.eigenvalues, strict=True)
    }
    return KronNormal(sites_of(locs), _flat(locs), root, _KronWriter(_twin(laplace)), None, blocks)


@register_guide(
    "laplace.baselaplace.LowRankLaplace",
    "laplace.baselaplace.FunctionalLaplace",
    "laplace.lllaplace.FunctionalLLLaplace",
    "laplace.lllaplace.FullLLLaplace",
    "laplace.lllaplace.KronLLLaplace",
    "laplace.lllaplace.DiagLLLaplace",
    "laplace.subnetlaplace.FullSubnetLaplace",
    "laplace.subnetlaplace.DiagSubnetLaplace",
)
def refuse(laplace: Any) -> Posterior:
    """Refuses approximations over a part of the weights: relabeling a unit moves all of its weights."""
    raise GuideError(
        f"a {type(laplace).__name__} is not a Gaussian over all weights in the form that can be relabeled; use "
        "Laplace(model, likelihood, subset_of_weights='all', hessian_structure='diag', 'kron' or 'full')"
    )


# -- the Kronecker family ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class KronBlock:
    """The curvature of one parameter: one factor for a vector, two for a matrix (rows; the rest), and their spectra."""

    factors: tuple[Tensor, ...] = field(repr=False)
    vectors: tuple[Tensor, ...] = field(repr=False)
    values: tuple[Tensor, ...] = field(repr=False)

    def moved(self, moves: tuple[tuple[Tensor, Tensor], ...]) -> KronBlock:
        """The block of the relabeled parameter; eigenvalues stay."""
        factors = tuple(
            f[i] if f.dim() == 1 else s.unsqueeze(-1) * s * f[i][:, i]
            for f, (i, s) in zip(self.factors, moves, strict=True)
        )
        vectors = tuple(s.unsqueeze(-1) * v[i] for v, (i, s) in zip(self.vectors, moves, strict=True))
        return KronBlock(factors, vectors, self.values)


@dataclass(frozen=True, eq=False)
class KronNormal(DenseNormal):
    """A Gaussian whose precision is, for each site, a Kronecker product and a multiple of the identity.

    Attributes:
        blocks: Site -> its curvature.
    """

    blocks: Mapping[str, KronBlock] = field(default_factory=dict, repr=False)

    def _permute(self, p: Permutation) -> KronNormal:
        moved = super()._permute(p)
        if moved is self:
            return self
        blocks = {
            name: block.moved(_factor_moves(p, name, self.sites[name].shape)) if name in p.symmetry.sites else block
            for name, block in self.blocks.items()
        }
        return replace(moved, blocks=blocks)

    def displace(self, other: Posterior, tau: float) -> DenseNormal:
        """Between the endpoints a :class:`DenseNormal`, written back as a ``FullLaplace``."""
        point = super().displace(other, tau)
        if point is self:
            return self
        if tau == 1.0:
            return replace(point, blocks=other.blocks)
        return DenseNormal(point.sites, point.loc, point.root, _FullWriter(self.write.like))


def _factor_moves(p: Permutation, name: str, shape: tuple[int, ...]) -> tuple[tuple[Tensor, Tensor], ...]:
    """Index and sign of a site's rows, and of the rest of its axes, flattened."""
    terms = p.symmetry.sites[name]
    for axes in (terms[:1], terms[1:]):
        own = {atom.name for term in axes for atom in leaves(term)}
        outer = {o for term in axes for atom in leaves(term) if not atom.fixed for o in atom.within}
        if not outer <= own:
            raise GuideError(
                f"site '{name}': its units are nested in units of another axis ({sorted(outer - own)}), and the "
                "relabeled covariance has no Kronecker form; use hessian_structure='full'"
            )
    places = torch.arange(1, 1 + math.prod(shape), device="cpu").reshape(shape)
    moved = p.apply_site(name, places)
    if len(shape) == 1:
        return ((moved.abs() - 1, moved.sign()),)
    places, moved = moved.abs().reshape(shape[0], -1) - 1, moved.sign().reshape(shape[0], -1)
    columns = places.shape[1]
    rows, rest = moved[:, 0] * moved[0, 0], moved[0]  # their product is the sign of every entry
    return (places[:, 0] // columns, rows), (places[0] % columns, rest)


# -- writing back ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Writer:
    like: Any  # a private copy of the approximation that was read

    def start(self, mean: Tensor) -> Any:
        made = _twin(self.like)
        made.mean = mean.clone()
        with torch.no_grad():
            vector_to_parameters(made.mean, made.params)
        return made

    def curvature(self, precision: Tensor) -> Tensor:
        """The ``H`` under which a posterior has this precision, a matrix or its diagonal."""
        prior = self.like.prior_precision_diag.detach()
        return (precision - (prior if precision.dim() == 1 else prior.diag())) / self.like._H_factor


@dataclass(frozen=True, eq=False)
class _DiagWriter(_Writer):
    scales: Mapping[str, Tensor] = field(repr=False)  # those of `like`

    def __call__(self, q: MeanFieldNormal) -> Any:
        made = self.start(_flat(q.locs))
        if any(not torch.equal(q.scales[k].raw, v.log()) for k, v in self.scales.items()):
            made.H = self.curvature((-2 * _flat(q.scales)).exp())
        return made


class _FullWriter(_Writer):
    def __call__(self, q: DenseNormal) -> Any:
        made = self.start(q.loc)
        if hasattr(made, "H_facs"):  # `like` is a KronLaplace
            made = self._dense(made)
        if q.stored is not None:
            made.H, made._posterior_scale = (t.clone() for t in q.stored)
        else:
            made.H = self.curvature(torch.cholesky_inverse(q.tril.double()).to(q.tril.dtype))
            made._posterior_scale = q.tril.clone()
        return made

    def _dense(self, kron: Any) -> Any:
        from laplace import FullLaplace

        full = FullLaplace(
            kron.model,
            kron.likelihood,
            sigma_noise=kron.sigma_noise,
            prior_precision=kron.prior_precision,
            prior_mean=kron.prior_mean,
            temperature=kron.temperature,
            enable_backprop=kron.enable_backprop,
            dict_key_x=kron.dict_key_x,
            dict_key_y=kron.dict_key_y,
        )
        full.mean, full.loss, full.n_data, full.n_outputs = kron.mean, kron.loss, kron.n_data, kron.n_outputs
        return full


class _KronWriter(_Writer):
    def __call__(self, q: KronNormal) -> Any:
        made = self.start(q.loc)
        made.H_facs.kfacs = [[t.clone() for t in q.blocks[k].factors] for k in q.sites]
        made.H.eigenvectors = [[t.clone() for t in q.blocks[k].vectors] for k in q.sites]
        made.H.eigenvalues = [[t.clone() for t in q.blocks[k].values] for k in q.sites]
        return made


def _means(laplace: Any) -> dict[str, RawParameter]:
    """Parameter name -> mean, in the order in which laplace-torch concatenates them."""
    if laplace.n_data == 0:
        raise GuideError(f"this {type(laplace).__name__} is not fitted: call fit(train_loader) first")
    shapes = {k: v.shape for k, v in laplace.model.named_parameters() if v.requires_grad}
    parts = laplace.mean.detach().split([shape.numel() for shape in shapes.values()])
    return raw_parameters({k: part.reshape(shape) for (k, shape), part in zip(shapes.items(), parts, strict=True)})


def _flat(parts: Mapping[str, RawParameter]) -> Tensor:
    return torch.cat([part.raw.flatten() for part in parts.values()])


def _twin(laplace: Any) -> Any:
    """A copy with a module of its own; the original stays as it is."""
    memo: dict = {id(laplace._backend): None} if laplace._backend is not None else {}  # built again when needed
    for value in laplace.__dict__.values():
        if isinstance(value, Tensor) and value.grad_fn is not None:  # a tuned prior precision, say
            memo[id(value)] = value.detach().clone()
    return copy.deepcopy(laplace, memo)
