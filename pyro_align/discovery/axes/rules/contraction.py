"""Sums of products."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyro_align.discovery.ops import contraction_of
from pyro_align.discovery.registry import rule

if TYPE_CHECKING:
    from pyro_align.discovery.axes.inference import AxisCall


@rule("family.contraction")
def contraction(call: AxisCall, *args: Any, **kwargs: Any) -> Any:
    """An einsum of two factors, plus a broadcast term."""
    spec = contraction_of(call.node.target)
    left, right = (args[i] for i in spec.factors)
    first, second, out = spec.labels((left.ndim, right.ndim))
    axes, added = call.contract(left, first, right, second, out), spec.added_to(args)
    return axes if added is None else call.broadcast(call.tensor(axes), added)
