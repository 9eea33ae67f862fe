"""Supports of sites, and values in them."""

from __future__ import annotations

import contextlib

import torch
from pyro.distributions import ImproperUniform
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import IndependentTransform, Transform, biject_to, constraints, transform_to

# what newer versions of PyTorch say of a mixture's values, older ones as of its components'
_OF_MIXTURES: type = getattr(constraints, "MixtureSameFamilyConstraint", constraints.independent)


def is_real(support: constraints.Constraint) -> bool:
    """Whether a support is all real numbers, for each entry of a value."""
    return isinstance(base_support(support), type(constraints.real))


def is_elementwise(support: constraints.Constraint) -> bool:
    """Whether a support says of every entry by itself what it may be."""
    return base_support(support).event_dim == 0


def is_cone(support: constraints.Constraint) -> bool:
    """Whether the entries of a value may be multiplied by any positive number."""
    base = base_support(support)
    zero = (
        isinstance(base, constraints.greater_than | constraints.greater_than_eq)
        and not torch.as_tensor(base.lower_bound).any()
    )
    return is_real(support) or bool(zero)


def base_support(support: constraints.Constraint) -> constraints.Constraint:
    """A support without the wrappers that only reinterpret batch axes as event axes."""
    while isinstance(support, (constraints.independent, _OF_MIXTURES)):
        support = support.base_constraint
    return support


def centered_log_ratio(value: Tensor) -> Tensor:
    """Coordinates of points of a simplex in which relabeling is linear (Aitchison 1982)."""
    logs = value.clamp_min(torch.finfo(value.dtype).tiny).log()
    return logs - logs.mean(-1, keepdim=True)


def transform_onto(support: constraints.Constraint) -> Transform | None:
    """A map from the real line onto a support; not one to one where torch has none that is. None where it has none."""
    if isinstance(support, constraints.independent):
        base = transform_onto(support.base_constraint)
        return None if base is None else IndependentTransform(base, support.reinterpreted_batch_ndims)
    if isinstance(support, _OF_MIXTURES):
        return transform_onto(support.base_constraint)
    for registry in (biject_to, transform_to):
        with contextlib.suppress(NotImplementedError):
            return registry(support)
    return None


class AnyValueMessenger(Messenger):
    """Gives a site whose prior cannot be drawn from (an improper one) some value in its support."""

    def _pyro_sample(self, msg):
        fn = msg["fn"]
        if msg["is_observed"] or msg["value"] is not None or not isinstance(fn, ImproperUniform):
            return
        transform = transform_onto(fn.support)
        if transform is not None:
            shape = transform.inverse_shape(fn.batch_shape + fn.event_shape)
            msg["value"] = transform(torch.randn(shape))
