"""Divergences of mean-field Gaussians that are inner products of features: one registration each.

With location m and standard deviation s of every entry, the alignment maximizes the sum over sites of
``<fixed(m0, s0), P moving(m1, s1)>``. A divergence is of this kind if it is a sum over entries, and each entry's part
is a sum of products of something of one posterior and something of the other, up to what holds one posterior alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class Divergence:
    """A divergence by which mean-field Gaussians can be matched.

    Attributes:
        name: What it is called in ``align(divergence=)``.
        fixed: Location and standard deviation of the posterior that stays -> features, each of their shape.
        moving: The same of the posterior to relabel.
        odd: For each feature, whether it changes sign with a signed unit, as locations do and standard deviations do
            not. A product must not change where both sides change: a feature is odd on both sides or on neither.
    """

    name: str
    fixed: Callable[[Tensor, Tensor], Tensors]
    moving: Callable[[Tensor, Tensor], Tensors]
    odd: tuple[bool, ...]


_KNOWN: dict[str, Divergence] = {}


def register_divergence(divergence: Divergence) -> Divergence:
    """Makes a divergence known by its name to ``align``, ``align_many`` and weighted combinations.

    Args:
        divergence: The divergence; one of the same name is replaced.

    Returns:
        The divergence.

    Example:
        >>> from pyro_align.guides import Divergence, register_divergence
        >>> def precisions(loc, scale):  # locations, weighted by how well either posterior knows them
        ...     return (loc / scale**2, 1 / scale**2)
        >>> register_divergence(Divergence("precision", precisions, precisions, odd=(True, False))).name
        'precision'
    """
    _KNOWN[divergence.name] = divergence
    return divergence


def known_divergences() -> tuple[str, ...]:
    """The names of the registered divergences."""
    return tuple(_KNOWN)


def divergence_of(name: str) -> Divergence:
    """A registered divergence by its name."""
    return _KNOWN[name]


# With KL(q0 || q1) = sum log(s1/s0) + (s0^2 + (m0 - m1)^2) / (2 s1^2) - 1/2, whatever holds one side alone is constant.


def _averaged(m: Tensor, s: Tensor) -> Tensors:
    """Of the posterior over which a KL is averaged."""
    return -(s**2 + m**2), 2 * m


def _judged(m: Tensor, s: Tensor) -> Tensors:
    """Of the posterior whose log density a KL averages."""
    return 0.5 / s**2, 0.5 * m / s**2


def _alike(name: str, features: Callable[[Tensor, Tensor], Tensors], odd: tuple[bool, ...]) -> None:
    register_divergence(Divergence(name, features, features, odd))


_alike("w2", lambda m, s: (m, s), (True, False))
_alike("means", lambda m, s: (m,), (True,))
register_divergence(Divergence("kl", _averaged, _judged, (False, True)))
register_divergence(Divergence("reverse_kl", _judged, _averaged, (False, True)))
register_divergence(
    Divergence(
        "jeffreys",
        lambda m, s: (*_averaged(m, s), *_judged(m, s)),
        lambda m, s: (*_judged(m, s), *_averaged(m, s)),
        (False, True, False, True),
    )
)
_alike("snr", lambda m, s: (m / s,), (True,))
