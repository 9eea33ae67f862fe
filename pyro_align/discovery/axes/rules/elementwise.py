"""Elementwise operations, reductions, and what runs along an axis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.utils import _pytree as pytree

from pyro_align.discovery.axes.terms import ONE, Uniform, size_of
from pyro_align.discovery.constants import identity_axis
from pyro_align.discovery.registry import rule
from pyro_align.discovery.walk import axes_of

if TYPE_CHECKING:
    from pyro_align.discovery.axes.inference import AxisCall


def _tensors(args, kwargs):
    return [a for a in pytree.tree_leaves((args, kwargs)) if hasattr(a, "axes")]


@rule("family.pointwise")
def pointwise(call: AxisCall, *args: Any, **kwargs: Any) -> Any:
    """Axes that are lined up by broadcasting are relabeled alike."""
    if call.name == "eq" and (same := _same_place(call, *args)) is not None:
        return same
    out = call.broadcast(*_tensors(args, kwargs))
    if any(shape is None or len(shape) != len(out) for shape in call.shapes):
        raise call.unsupported()
    return out if len(call.shapes) == 1 else [list(out) for _ in call.shapes]


def _same_place(call, first, second):
    """``index == arange(n)`` along another axis: that axis is the one of which the index is one."""
    if not hasattr(second, "axes"):
        return None
    index, counted = (first, second) if first.places is not None else (second, first)
    value = counted.constant()
    if index.places is None or value is None:
        return None
    axis = identity_axis(value, size_of(index.places))
    if axis is None or (axis >= counted.ndim - index.ndim and index.shape[axis - counted.ndim] != 1):
        return None
    call.follow(index)
    out = call.broadcast(index, call.tensor([Uniform(n) if n != 1 else ONE for n in counted.shape]))
    out[axis - counted.ndim] = index.places
    return out


def carried(call: AxisCall, x: Any, axes: Any) -> Any:
    """The axes of another layout of the tensor's entries, which are indices still if they were."""
    call.follow(x)
    if x.places is not None:
        call.places[0] = x.places
    return axes


@rule("family.same", "family.cast", "aten.view.dtype", "aten._conj", "aten._neg_view")
def unchanged(call: AxisCall, x: Any, *args: Any, **kwargs: Any) -> Any:
    """The same tensor again."""
    if x.shape != call.shape:
        raise call.unsupported()
    return carried(call, x, x.axes) if call.name != "view" else x.axes


@rule("aten.copy")
def copy(call: AxisCall, target: Any, source: Any, *args: Any, **kwargs: Any) -> Any:
    """The source, broadcast to the target's shape."""
    return expand_to(source, call.shape)


@rule("family.zeros", "family.ones", "family.full", "family.empty")
def constant_like(call: AxisCall, *args: Any, **kwargs: Any) -> Any:
    """A tensor of equal entries: only the shape of the argument matters."""
    if any(a.ndim for a in _tensors(args[1:], kwargs)):
        raise call.unsupported("filled with a tensor")
    return [Uniform(n) for n in call.shape]


def expand_to(x: Any, shape: Any) -> Any:
    """The axes of a tensor broadcast to a shape: new and stretched axes are uniform."""
    lead = len(shape) - x.ndim
    return [
        Uniform(n) if i < lead or (x.shape[i - lead] == 1 and n != 1) else x.axes[i - lead] for i, n in enumerate(shape)
    ]


def reduce_axes(x: Any, dims: list[int], keepdim: bool) -> Any:
    """What remains of a tensor's axes when some are summed away."""
    if keepdim:
        return [ONE if i in dims else t for i, t in enumerate(x.axes)]
    return [t for i, t in enumerate(x.axes) if i not in dims]


@rule(
    *("family.sum", "family.extremum", "family.product", "aten.any", "aten.all", "aten.count_nonzero", "aten.aminmax"),
    *("aten.norm.Scalar", "aten.norm.ScalarOpt_dim", "aten.linalg_vector_norm"),
    *(f"aten.{kind}.{overload}" for kind in ("var", "std") for overload in ("correction", "dim", "default")),
    *(f"aten.{kind}_mean.{overload}" for kind in ("var", "std") for overload in ("correction", "default")),
)
def reduction(call: AxisCall, x: Any, *args: Any, **kwargs: Any) -> Any:
    """A symmetric function of the entries along the reduced axes, or two of them."""
    out = reduce_axes(x, call.dims(x.ndim), call.option("keepdim", False))
    if len(out) != len(call.shape):
        raise call.unsupported()
    return [list(out) for _ in call.shapes] if call.several else out


@rule("aten.max.dim", "aten.min.dim", "aten.median.dim", "aten.nanmedian.dim")
def extremum(call: AxisCall, x: Any, dim: Any, keepdim: bool = False) -> Any:
    """Values and positions: which index of the axis it is."""
    if x.ndim and positions_used(call):
        call.places[1] = x.axes[dim]
    return reduction(call, x)


@rule("aten.kthvalue")
def order_statistic(call: AxisCall, x: Any, k: Any, dim: Any = -1, keepdim: bool = False) -> Any:
    """The same for the k-th smallest."""
    return extremum(call, x, dim, keepdim)


def positions_used(call: AxisCall) -> bool:
    """Whether anything reads the second of two outputs."""
    return any(user.args[1] == 1 for user in call.node.users)


@rule("family.softmax")
def softmax(call: AxisCall, x: Any, dim: Any, *args: Any, **kwargs: Any) -> Any:
    """Normalizes along an axis: symmetric in it, but it mixes its entries."""
    call.witness(reduce_axes(x, call.dims(x.ndim), False))
    return x.axes


@rule("aten._fft_c2c", "aten._fft_r2c", "aten._fft_c2r")
def fourier(call: AxisCall, x: Any, dim: Any, *args: Any) -> Any:
    """Mixes axes by place; one of them may get another length."""
    dims = call.dims(x.ndim)
    call.witness(reduce_axes(x, dims, False))
    for i in dims:
        call.fix(x.axes[i])
    return [
        call.fresh(n, fixed=True) if i in dims else t for i, (n, t) in enumerate(zip(call.shape, x.axes, strict=True))
    ]


@rule("aten.complex", "aten.polar")
def of_two_parts(call: AxisCall, a: Any, b: Any) -> Any:
    """Complex numbers from their parts: elementwise."""
    return call.broadcast(a, b)


@rule("aten.view_as_real", "aten.view_as_real_copy")
def parts(call: AxisCall, x: Any) -> Any:
    """Real and imaginary part along a new last axis."""
    return [*x.axes, call.fresh(2, fixed=True)]


@rule("aten.view_as_complex", "aten.view_as_complex_copy")
def as_complex(call: AxisCall, x: Any) -> Any:
    """The other way round."""
    call.fix(x.axes[-1])
    return x.axes[:-1]


@rule("aten.bucketize.Tensor", "aten.searchsorted.Tensor")
def between(
    call: AxisCall, first: Any, second: Any, *, right: Any = False, side: Any = None, sorter: Any = None, **kwargs: Any
) -> Any:
    """Counts, for each entry, the boundaries below it; boundaries of one axis serve all entries."""
    bounds, x = (second, first) if call.name == "bucketize" else (first, second)
    if bounds.ndim != 1 or sorter is not None:
        raise call.unsupported()
    call.fix(bounds.axes[0])
    return x.axes


@rule("aten.cumsum", "aten.cumprod", "aten.logcumsumexp", "aten.cummax", "aten.cummin", "aten.flip", "aten.roll")
def along(call: AxisCall, x: Any, dim: Any, *args: Any, **kwargs: Any) -> Any:
    """Depends on the order along an axis."""
    if call.name == "roll":  # the second argument says how far; without axes the tensor is flattened
        dim = args[0] if args else None
    dims = axes_of(dim, x.ndim)
    call.witness(reduce_axes(x, dims, False))
    out = [call.pinned(t) if i in dims else t for i, t in enumerate(x.axes)]
    return [list(out) for _ in call.shapes] if len(call.shapes) > 1 else out
