"""Pyro effect handlers: the relabeled model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.distributions import constraints

from pyro_align.errors import SymmetryError
from pyro_align.symmetry.element import Permutation
from pyro_align.symmetry.stacks import refused

_NO_SHAPE = torch.Size()


def permute_model(model: Callable[..., Any], permutation: Permutation) -> Callable[..., Any]:
    """The model whose latent sites are relabeled.

    ``log_joint(permute_model(model, p), p.apply(z)) == log_joint(model, z)`` for every ``z`` and every permutation
    ``p`` of the sites' axes, whether the model is symmetric or not. So the ELBO of a relabeled guide under the
    relabeled model is the old ELBO, draw by draw; where the model is symmetric, it is the old model again.

    Args:
        model: A Pyro model. It may use plates, enumeration, ``poutine.scale`` and ``poutine.mask``, and may be trained
            (SVI) or sampled like any other.
        permutation: The relabeling; sites of the model that it does not name are left alone.

    Returns:
        A Pyro model with the same sites and shapes.

    Raises:
        SymmetryError: Sites change places as wholes, which a model's own order of sites does not allow; or, when run, a
            site's shape is not what the permutation expects.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> from pyro_align import Symmetry
        >>> def model():
        ...     pyro.sample("z", dist.Normal(torch.arange(3.0), 1.0).to_event(1))
        >>> p = Symmetry.from_axes({"z": ("k",)}, shapes={"z": (3,)}).permutation({"k": [2, 0, 1]})
        >>> pyro.poutine.trace(permute_model(model, p)).get_trace().nodes["z"]["fn"].mean
        tensor([2., 0., 1.])
    """
    if stacks := permutation.symmetry.stacks:
        raise SymmetryError(f"a relabeled model cannot follow this symmetry, as {refused(stacks)}")
    return PermuteMessenger(permutation)(model)


class PermuteMessenger(Messenger):
    """Samples, scores and records relabeled values, and hands the model its own labels back."""

    inverse: Permutation
    permutation: Permutation

    def __init__(self, permutation: Permutation):
        super().__init__()
        self.permutation, self.inverse = permutation, permutation.inverse()

    def _pyro_sample(self, msg):
        if self._moves(msg) and not isinstance(msg["fn"], RelabeledDistribution):
            msg["fn"] = RelabeledDistribution(msg["fn"], msg["name"], self.permutation, self.inverse)

    def _pyro_post_sample(self, msg):
        # Handlers outside this one, a trace among them, have seen the relabeled value by now.
        if self._moves(msg):
            msg["value"] = _relabeled(msg["name"], msg["value"], self.inverse)

    def _pyro_post_param(self, msg):
        if msg["name"] in self.permutation.symmetry.sites:
            msg["value"] = _relabeled(msg["name"], msg["value"], self.inverse)

    def _moves(self, msg) -> bool:
        known = msg["name"] in self.permutation.symmetry.sites
        return known and not msg["is_observed"] and not isinstance(msg["fn"], _Subsample)


class RelabeledDistribution(TorchDistribution):
    """The distribution of ``p.apply(z)`` with ``z`` drawn from another one."""

    base: TorchDistribution  # the distribution of ``z``
    inverse: Permutation
    permutation: Permutation  # the relabeling ``p``
    site: str  # its site's name in the permutation

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, base: TorchDistribution, site: str, permutation: Permutation, inverse: Permutation):
        self.base, self.site, self.permutation, self.inverse = base, site, permutation, inverse
        self.has_rsample: bool = base.has_rsample
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        """The base's support, its bounds relabeled where they differ from entry to entry."""
        return _relabeled_support(self.base.support, self.site, self.shape(), self.permutation)

    @property
    def has_enumerate_support(self) -> bool:
        """Relabeled sites are continuous."""
        return False

    def expand(self, batch_shape: Any, _instance: Any = None) -> RelabeledDistribution:
        """The same distribution over a larger batch."""
        return RelabeledDistribution(self.base.expand(batch_shape), self.site, self.permutation, self.inverse)

    def sample(self, sample_shape: Any = _NO_SHAPE) -> Tensor:
        """Draws ``(*sample_shape, *batch_shape, *event_shape)``."""
        return _relabeled(self.site, self.base.sample(sample_shape), self.permutation)

    def rsample(self, sample_shape: Any = _NO_SHAPE) -> Tensor:
        """The same, reparameterised."""
        return _relabeled(self.site, self.base.rsample(sample_shape), self.permutation)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats, ``batch_shape``: entries belong to the model's own labels, as scales and masks do."""
        return self.base.log_prob(_relabeled(self.site, value, self.inverse))

    @property
    def mean(self) -> Tensor:
        """Mean of the relabeled value."""
        return _relabeled(self.site, self.base.mean, self.permutation)

    @property
    def variance(self) -> Tensor:
        """Variance of the relabeled value; signs do not matter to it."""
        shape = len(self.permutation.symmetry.shapes[self.site])
        variance = self.base.variance
        return self.permutation.apply_site(self.site, variance, batch_dims=variance.dim() - shape, signs=False)


def _relabeled(site: str, value: Tensor, permutation: Permutation) -> Tensor:
    """Relabels the site's own axes; those to their left (particles) are batch axes."""
    ndim = len(permutation.symmetry.shapes[site])
    if value.dim() < ndim:
        shape = permutation.symmetry.shapes[site]
        raise SymmetryError(
            f"site '{site}': expected shape (..., {', '.join(map(str, shape))}), got {tuple(value.shape)}"
        )
    return permutation.apply_site(site, value, batch_dims=value.dim() - ndim)


def _relabeled_support(support, site: str, shape, permutation: Permutation):
    if isinstance(support, constraints.independent):
        base = _relabeled_support(support.base_constraint, site, shape, permutation)
        return constraints.independent(base, support.reinterpreted_batch_ndims)
    bounds = {k: v for k, v in vars(support).items() if isinstance(v, Tensor) and v.dim()}
    if not bounds:
        return support
    moved = {k: _relabeled(site, v.expand(shape), permutation) for k, v in bounds.items()}
    out = type(support).__new__(type(support))
    vars(out).update({**vars(support), **moved})
    return out
