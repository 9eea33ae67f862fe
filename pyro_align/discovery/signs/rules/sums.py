"""Reductions, sums of products, and sums over positions."""

from __future__ import annotations

from typing import Any

from pyro_align.discovery.ops import contraction_of, spatial_axes
from pyro_align.discovery.registry import sign_rule
from pyro_align.discovery.signs.domain import SignCall, SignTensor


@sign_rule("family.sum")
def total(call: SignCall, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Sums: what is added changes sign together."""
    return call.alike(x, call.dims(x.ndim), keepdim=call.option("keepdim", False))


@sign_rule("aten.cumsum")
def running_sum(call: SignCall, x: Any, dim: Any, **kwargs: Any) -> Any:
    """Sums so far."""
    return call.expand(call.alike(x, [dim], keepdim=True)) if x.ndim else x


@sign_rule("family.product")
def product(call: SignCall, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Products: parities add."""
    return call.multiply_along(x, call.dims(x.ndim), keepdim=call.option("keepdim", False))


@sign_rule("family.norm")
def norm(call: SignCall, x: Any, *args: Any, **kwargs: Any) -> Any:
    """A function of absolute values."""
    return call.even()


@sign_rule("family.variance", "family.variance and mean")
def spread(call: SignCall, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Entries around their mean, squared: they change sign together; and the mean."""
    mean = call.alike(x, call.dims(x.ndim), keepdim=True)
    return [call.even(), SignTensor(mean.ids.reshape(call.shapes[1]))] if call.several else call.even()


@sign_rule("family.contraction")
def contraction(call: SignCall, *args: Any, **kwargs: Any) -> Any:
    """An einsum of two factors, plus a broadcast term."""
    factors, added = contraction_of(call.node.target).read(args)
    total = call.contract(*factors)
    return total if added is None else call.add(total, added)


@sign_rule("aten.convolution")
def convolution(call: SignCall, x: Any, weight: Any, bias: Any, *args: Any) -> Any:
    """Input ``(batch, groups x in, *space)``, weight ``(groups x out, in, *kernel)``; transposed swaps in and out."""
    groups, transposed = call.option("groups"), call.option("transposed")
    if x.ndim != weight.ndim:
        raise call.unsupported("unbatched")
    x = call.alike(x, range(2, x.ndim))  # every output adds up some positions, or none
    weight = call.alike(weight, range(2, weight.ndim))
    left = SignTensor(x.ids.reshape(x.shape[0], groups, x.shape[1] // groups))
    right = SignTensor(weight.ids.reshape(groups, weight.shape[0] // groups, weight.shape[1]))
    out = call.contract(left, "bgc", right, "gco" if transposed else "goc", "bgo")
    out = SignTensor(out.ids.reshape(out.shape[0], -1))
    if bias is not None:
        out = call.add(out, bias)
    return call.expand(SignTensor(out.ids[(..., *[None] * (len(call.shape) - 2))]))


@sign_rule("family.over positions")
def over_positions(call: SignCall, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Weighted sums over positions."""
    space = spatial_axes(call.node.target)
    return call.expand(call.alike(x, range(x.ndim - space, x.ndim), keepdim=True))


@sign_rule("aten.trace")
def trace(call: SignCall, x: Any) -> Any:
    """The sum of the diagonal."""
    return call.alike(SignTensor(x.ids.diagonal()), [0])
