"""Normal sites: their priors, and what is known in closed form between a Normal posterior and a Normal prior.

A site is a node of a Pyro trace, or the message it was made of: both hold ``fn``, ``mask`` and ``scale``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from pyro_align.model.effects.substitute import taken

LOG_TWO_PI = math.log(2 * math.pi)


def normal_kl(message: Mapping[str, Any], loc: Tensor, scale: Tensor) -> Tensor | None:
    """E_q[log q - c log p] of one site with q = N(loc, scale^2) and a Normal prior of scale c, in nats, or None.

    With c = 1 it is KL(q || p) = log(s_p / s) + (s^2 + (m - m_p)^2) / (2 s_p^2) - 1/2. A prior that depends on other
    latents gives the KL at their drawn values, an unbiased estimate where q's sites are independent. Of a site in a
    subsampled plate, the rows that the run took stand for all.
    """
    prior = normal_prior(message)
    if prior is None:
        return None
    prior_loc, prior_scale, _ = prior
    rows = 1.0
    for axis, index in message["infer"].get("_rows", ()):  # those of all data, of which a subsample took some
        rows *= loc.shape[axis] / len(index)
    loc, scale = taken(message, loc), taken(message, scale)
    variance = prior_scale.square()
    cross = 0.5 * (LOG_TWO_PI + variance.log() + (scale.square() + (loc - prior_loc).square()) / variance)
    entropy = 0.5 * (LOG_TWO_PI + 1) * loc.numel() + scale.log().sum()
    return (cross * _event_scale(message, cross)).sum() - rows * entropy


def normal_prior(message: Mapping[str, Any]) -> tuple[Tensor, Tensor, float | Tensor] | None:
    """Location, scale and weight of a site's Normal prior, or None where it is none or is masked."""
    *outer, base = layers(message["fn"])
    masked = message["mask"] is not None or any(type(layer).__name__ == "MaskedDistribution" for layer in outer)
    return None if masked or type(base).__name__ != "Normal" else (base.loc, base.scale, message["scale"])


def layers(fn: Any) -> Iterator[Any]:
    """A distribution, and those inside of it as long as it only reshapes or masks another."""
    yield fn
    while type(fn).__name__ in ("Independent", "ExpandedDistribution", "MaskedDistribution"):
        fn = fn.base_dist
        yield fn


def has_mask(fn: Any) -> bool:
    """Whether a distribution is masked, at any depth."""
    return any(type(layer).__name__ == "MaskedDistribution" for layer in layers(fn))


def _event_scale(message: Mapping[str, Any], value: Tensor) -> float | Tensor:
    """The site's scale, which is batch-shaped where it is a tensor, against a value that still has event dims."""
    scale = message["scale"]
    events = len(message["fn"].event_shape)
    return scale.reshape(*scale.shape, *(1,) * events) if isinstance(scale, Tensor) and scale.dim() else scale


def normal_log_prob(value: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """log N(value; loc, scale^2), summed, in nats."""
    return -0.5 * (((value - loc) / scale).square() + LOG_TWO_PI).sum() - scale.log().sum()


def unwrapped(fn: Any) -> Any:
    """The distribution inside wrappers that only reshape or mask."""
    return list(layers(fn))[-1]
