"""Convolution, pooling and resampling: channels pass, positions keep their order."""

from __future__ import annotations

from pyro_align.discovery.rules import rule
from pyro_align.discovery.rules.contraction import contract
from pyro_align.discovery.terms import ONE, size_of


@rule("aten.convolution")
def convolution(call, x, weight, bias, stride, padding, dilation, transposed, output_padding, groups):
    """Input ``(batch, groups x in, *space)``, weight ``(groups x out, in, *kernel)``; transposed swaps in and out."""
    space = weight.ndim - 2
    for t in (*x.axes[x.ndim - space :], *weight.axes[2:]):
        call.fix(t)
    if x.ndim != weight.ndim:
        raise call.unsupported("unbatched")
    kernel = "klmn"[:space]
    batch, channels = x.axes[0], x.axes[1]
    if groups == 1:
        labels = "co" if transposed else "oc"
        axes = contract(call, _pick(call, x, [batch, channels]), "bc", weight, labels + kernel, "bo")
    else:
        first = weight.axes[0]
        g, inner = call.fresh(groups), call.fresh(size_of(channels) // groups)
        call.merge(channels, call.product([g, inner]))
        other = call.fresh(size_of(first) // groups)
        call.merge(first, call.product([g, other]))
        left = call.tensor([batch, g, inner], (x.shape[0], groups, size_of(inner)))
        right = call.tensor([g, other, *weight.axes[1:]], (groups, size_of(other), *weight.shape[1:]))
        labels = "gco" if transposed else "goc"
        b, g_out, o = contract(call, left, "bgc", right, labels + kernel, "bgo")
        axes = [b, call.product([g_out, o])]
    if bias is not None:
        axes[1] = call.merge(axes[1], bias.axes[0])
    return [*axes, *call.fixed(call.shape[2:])]


def _pick(call, x, axes):
    return call.tensor(axes, tuple(size_of(t) for t in axes))


def _positions_fixed(call, x, space: int):
    for t in x.axes[x.ndim - space :]:
        call.fix(t)
    return [*x.axes[: x.ndim - space], *call.fixed(call.shape[len(call.shape) - space :])]


def _spatial(names: list[str], space: int, outputs: int = 1):
    @rule(*names)
    def passes(call, x, *args, **kwargs):
        axes = _positions_fixed(call, x, space)
        return axes if outputs == 1 else [list(axes) for _ in call.shapes]

    return passes


_spatial(
    [
        "aten.avg_pool1d",
        "aten.upsample_nearest1d",
        "aten.upsample_linear1d",
        "aten.reflection_pad1d",
        "aten.replication_pad1d",
    ],
    1,
)
_spatial(
    [
        "aten.avg_pool2d",
        "aten._adaptive_avg_pool2d",
        "aten.upsample_nearest2d",
        "aten.upsample_bilinear2d",
        "aten.upsample_bicubic2d",
        "aten._upsample_bilinear2d_aa",
        "aten._upsample_nearest_exact2d",
        "aten.reflection_pad2d",
        "aten.replication_pad2d",
    ],
    2,
)
_spatial(
    [
        "aten.avg_pool3d",
        "aten._adaptive_avg_pool3d",
        "aten.upsample_nearest3d",
        "aten.upsample_trilinear3d",
        "aten.reflection_pad3d",
        "aten.replication_pad3d",
    ],
    3,
)
_spatial(["aten.max_pool2d_with_indices", "aten.adaptive_max_pool2d"], 2, outputs=2)
_spatial(["aten.max_pool3d_with_indices", "aten.adaptive_max_pool3d"], 3, outputs=2)


@rule("aten.unfold", "aten.unfold_copy")
def unfold(call, x, dim, size, step):
    """Windows along an axis: their number in its place, and the places within each as a new last axis."""
    if x.ndim == 0:
        return call.fixed(call.shape)
    dim %= x.ndim
    call.fix(x.axes[dim])
    windows = call.fresh(call.shape[dim], fixed=True)
    return [*x.axes[:dim], windows, *x.axes[dim + 1 :], call.fresh(size, fixed=True)]


@rule("aten.grid_sampler_2d", "aten.grid_sampler_3d")
def grid_sample(call, x, grid, *args):
    """An image looked at at given places: channels pass, and the result is laid out as the places are."""
    for t in (*x.axes[2:], grid.axes[-1]):
        call.fix(t)
    return [call.merge(x.axes[0], grid.axes[0]), x.axes[1], *grid.axes[1:-1]]


@rule("aten.pixel_shuffle")
def pixel_shuffle(call, x, factor):
    """``(*, channels x r x r, h, w)`` to ``(*, channels, h x r, w x r)``."""
    c, h, w = x.axes[-3:]
    call.fix(h)
    call.fix(w)
    channels = call.fresh(size_of(c) // factor**2)
    inner = [call.fresh(factor, fixed=True), call.fresh(factor, fixed=True)]
    call.merge(c, call.product([channels, *inner]))
    return [*x.axes[:-3], channels if size_of(channels) > 1 else ONE, *call.fixed(call.shape[-2:])]
