"""Log densities that look at the values that they are given: each stands in the graph as one operation.

A stable law's chooses between formulas by where its argument lies, so its trace at one value does not hold at another.
It is elementwise, though, and that is all that a symmetry has to know of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pyro.distributions.stable as stable
import torch
from torch import Tensor

_LIBRARY = torch.library.Library("pyro_align", "FRAGMENT")
_LIBRARY.define(
    "stable_log_prob(Tensor alpha, Tensor beta, Tensor value, str coords) -> Tensor", tags=(torch.Tag.pointwise,)
)
_log_prob = stable._stable_log_prob


def _stable(alpha: Tensor, beta: Tensor, value: Tensor, coords: str) -> Tensor:
    with torch.no_grad():
        return _log_prob(alpha, beta, value, coords)


_LIBRARY.impl("stable_log_prob", _stable, "CompositeExplicitAutograd")


@torch.library.register_fake("pyro_align::stable_log_prob", lib=_LIBRARY)
def _shape_of(alpha: Tensor, beta: Tensor, value: Tensor, coords: str) -> Tensor:
    return torch.empty_like(torch.broadcast_tensors(alpha, beta, value)[2])


@contextlib.contextmanager
def densities_as_operations() -> Iterator[None]:
    """Pyro's own log densities of this kind, as operations while a model is traced."""
    stable._stable_log_prob = torch.ops.pyro_align.stable_log_prob
    try:
        yield
    finally:
        stable._stable_log_prob = _log_prob
