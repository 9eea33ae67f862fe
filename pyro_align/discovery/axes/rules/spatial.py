"""Convolution, pooling and resampling: channels pass, positions keep their order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyro_align.discovery.axes.terms import ONE, size_of
from pyro_align.discovery.ops import spatial_axes
from pyro_align.discovery.registry import rule

if TYPE_CHECKING:
    from pyro_align.discovery.axes.inference import AxisCall


@rule("aten.convolution")
def convolution(call: AxisCall, x: Any, weight: Any, bias: Any, *args: Any) -> Any:
    """Input ``(batch, groups x in, *space)``, weight ``(groups x out, in, *kernel)``; transposed swaps in and out."""
    space, groups, transposed = weight.ndim - 2, call.option("groups"), call.option("transposed")
    for t in (*x.axes[x.ndim - space :], *weight.axes[2:]):
        call.fix(t)
    if x.ndim != weight.ndim:
        raise call.unsupported("unbatched")
    kernel = "klmn"[:space]
    batch, channels = x.axes[0], x.axes[1]
    if groups == 1:
        labels = "co" if transposed else "oc"
        axes = call.contract(call.tensor([batch, channels]), "bc", weight, labels + kernel, "bo")
    else:
        first = weight.axes[0]
        g, inner = call.fresh(groups), call.fresh(size_of(channels) // groups)
        call.merge(channels, call.product([g, inner]))
        other = call.fresh(size_of(first) // groups)
        call.merge(first, call.product([g, other]))
        left = call.tensor([batch, g, inner], (x.shape[0], groups, size_of(inner)))
        right = call.tensor([g, other, *weight.axes[1:]], (groups, size_of(other), *weight.shape[1:]))
        labels = "gco" if transposed else "goc"
        b, g_out, o = call.contract(left, "bgc", right, labels + kernel, "bgo")
        axes = [b, call.product([g_out, o])]
    if bias is not None:
        axes[1] = call.merge(axes[1], bias.axes[0])
    return [*axes, *call.fixed(call.shape[2:])]


@rule("family.over positions", "family.copies at borders", "family.largest of positions")
def over_positions(call: AxisCall, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Positions, the trailing axes, keep their order; all others pass."""
    kept = x.ndim - spatial_axes(call.node.target)
    for t in x.axes[kept:]:
        call.fix(t)
    axes = [*x.axes[:kept], *call.fixed(call.shape[len(call.shape) - x.ndim + kept :])]
    return [list(axes) for _ in call.shapes] if call.several else axes


@rule("aten.max_unpool2d", "aten.max_unpool3d")
def max_unpool(call: AxisCall, x: Any, places: Any, size: Any, *args: Any) -> Any:
    """Puts entries back to the positions that they were pooled from."""
    kept = x.ndim - len(size)
    for t in (*x.axes[kept:], *places.axes[kept:]):
        call.fix(t)
    lead = [call.merge(a, b) for a, b in zip(x.axes[:kept], places.axes[:kept], strict=True)]
    return [*lead, *call.fixed(call.shape[kept:])]


@rule("aten.unfold", "aten.unfold_copy")
def unfold(call: AxisCall, x: Any, dim: Any, size: Any, step: Any) -> Any:
    """Windows along an axis: their number in its place, and the places within each as a new last axis."""
    if x.ndim == 0:
        return call.fixed(call.shape)
    dim %= x.ndim
    if size == step and x.shape[dim] == call.shape[dim] * size:  # next to each other
        windows, inside = call.reshape([x.axes[dim]], (call.shape[dim], size))
        return [*x.axes[:dim], windows, *x.axes[dim + 1 :], inside]
    call.fix(x.axes[dim])
    windows = call.fresh(call.shape[dim], fixed=True)
    return [*x.axes[:dim], windows, *x.axes[dim + 1 :], call.fresh(size, fixed=True)]


@rule("aten.grid_sampler_2d", "aten.grid_sampler_3d")
def grid_sample(call: AxisCall, x: Any, grid: Any, *args: Any) -> Any:
    """An image looked at at given places: channels pass, and the result is laid out as the places are."""
    for t in (*x.axes[2:], grid.axes[-1]):
        call.fix(t)
    return [call.merge(x.axes[0], grid.axes[0]), x.axes[1], *grid.axes[1:-1]]


@rule("aten.pixel_shuffle", family="moves")
def pixel_shuffle(call: AxisCall, x: Any, factor: Any) -> Any:
    """``(*, channels x r x r, h, w)`` to ``(*, channels, h x r, w x r)``."""
    c, h, w = x.axes[-3:]
    call.fix(h)
    call.fix(w)
    channels = call.fresh(size_of(c) // factor**2)
    inner = [call.fresh(factor, fixed=True), call.fresh(factor, fixed=True)]
    call.merge(c, call.product([channels, *inner]))
    return [*x.axes[:-3], channels if size_of(channels) > 1 else ONE, *call.fixed(call.shape[-2:])]
