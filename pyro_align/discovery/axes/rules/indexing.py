"""Indexing with tensors: it tells indices apart, unless the index counts through the axis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pyro_align.discovery.axes.rules.elementwise import expand_to, positions_used, reduce_axes
from pyro_align.discovery.axes.terms import ONE, Uniform, size_of
from pyro_align.discovery.constants import identity_axis
from pyro_align.discovery.registry import rule
from pyro_align.discovery.walk import axes_of

if TYPE_CHECKING:
    from pyro_align.discovery.axes.inference import AxisCall

_MASKS = (torch.bool, torch.uint8)


def _index_axes(call, index, source_axis, size):
    """Axes that an index tensor gives to the result; fixes the axis it selects from unless it counts through it."""
    if index.places is not None and size_of(index.places) == size:
        call.follow(index)
        call.merge(source_axis, index.places)
        return list(index.axes)
    value = index.constant()
    if value is not None and value.dtype.is_floating_point is False:
        axis = identity_axis(value, size)
        if axis is not None:
            return [source_axis if i == axis else Uniform(n) if n != 1 else ONE for i, n in enumerate(index.shape)]
    if size != 1:
        call.fix(source_axis)
    for t in index.axes:  # where the index varies, so does what is selected; the selected axis cannot follow it
        if index.constant() is None:
            continue
        call.fix(t)
    return list(index.axes)


@rule("aten.index.Tensor", "aten._unsafe_index.Tensor")
def index(call: AxisCall, x: Any, indices: Any, *args: Any) -> Any:
    """Advanced indexing: the indices broadcast together and stand where they were if they were neighbors."""
    used = [(i, ix) for i, ix in enumerate(indices) if ix is not None]
    if any(ix.dtype in _MASKS for _, ix in used):
        raise call.unsupported("boolean mask")
    parts = [call.tensor(_index_axes(call, ix, x.axes[i], x.shape[i]), ix.shape) for i, ix in used]
    selected = call.broadcast(*parts)
    positions = [i for i, _ in used]
    rest = [t for i, t in enumerate(x.axes) if i not in positions]
    adjacent = positions == list(range(positions[0], positions[-1] + 1))
    at = positions[0] if adjacent else 0
    out = rest[:at] + selected + rest[at:]
    return _as_shape(call, out)


def _as_shape(call, out):
    if [size_of(t) for t in out] != list(call.shape):
        raise call.unsupported()
    return out


@rule("aten.index_select")
def index_select(call: AxisCall, x: Any, dim: Any, index: Any) -> Any:
    """Selects along one axis."""
    if x.ndim == 0:
        return []
    dim %= x.ndim
    part = _index_axes(call, index, x.axes[dim], x.shape[dim])
    return [*x.axes[:dim], part[0] if part else ONE, *x.axes[dim + 1 :]]


@rule("aten.embedding")
def embedding(call: AxisCall, weight: Any, indices: Any, *args: Any, **kwargs: Any) -> Any:
    """Rows of a table."""
    return [*_index_axes(call, indices, weight.axes[0], weight.shape[0]), *weight.axes[1:]]


@rule("aten.gather")
def gather(call: AxisCall, x: Any, dim: Any, index: Any, **kwargs: Any) -> Any:
    """Selects along one axis, a different place for each index of the others."""
    if x.ndim == 0:
        return []
    dim %= x.ndim
    picked = _index_axes(call, index, x.axes[dim], x.shape[dim])
    out = []
    for i in range(x.ndim):
        if i == dim:
            out.append(picked[i])
            continue
        axis = x.axes[i]
        if index.shape[i] != x.shape[i]:
            pieces = call.split(axis, [index.shape[i], x.shape[i] - index.shape[i]])
            if pieces is None:
                raise call.unsupported()
            axis = pieces[0]
        out.append(call.merge(axis, picked[i]))
    return out


@rule("aten.argmax", "aten.argmin")
def position_of_extremum(call: AxisCall, x: Any, dim: Any = None, keepdim: bool = False) -> Any:
    """Which index of the axis it is."""
    if dim is None and x.ndim != 1:
        raise call.unsupported("of all entries")
    axis = x.axes[dim or 0]
    out = reduce_axes(x, call.dims(x.ndim), keepdim)
    call.places[0] = axis
    return out


@rule("aten.argsort")
def positions(call: AxisCall, x: Any, *args: Any, **kwargs: Any) -> Any:
    """The axis is told apart by where its entries stand."""
    raise call.unsupported()


@rule("aten.sort")
def sort(call: AxisCall, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Values by size, in whatever order they came, and which index of the axis each is."""
    named = [a for a in args if not isinstance(a, bool)]
    return _ordered(call, x, kwargs.get("dim", named[0] if named else -1))


@rule("aten.topk")
def topk(call: AxisCall, x: Any, k: Any, dim: Any = -1, largest: Any = True, sorted: Any = True) -> Any:
    """The same for the largest; unsorted, they come in an order of the implementation's own."""
    if not sorted and k > 1:
        raise call.unsupported("unsorted")
    return _ordered(call, x, dim)


def _ordered(call, x, dim):
    dims = axes_of(dim, x.ndim)
    call.witness(reduce_axes(x, dims, False))  # mixed: nothing may be relabeled anew for each index of the axis
    out = [
        call.fresh(n, fixed=True) if i in dims else t for i, (n, t) in enumerate(zip(call.shape, x.axes, strict=True))
    ]
    if x.ndim and positions_used(call):
        call.places[1] = x.axes[dims[0]]
    return [out, list(out)]


@rule("aten.scatter.src", "aten.scatter.value", "aten.scatter_add", "aten.scatter_reduce.two")
def scatter(call: AxisCall, x: Any, dim: Any, index: Any, source: Any, *args: Any, **kwargs: Any) -> Any:
    """Writes or adds at places along one axis, which is the one of the places if they are so; others are lined up."""
    if x.ndim == 0 or (hasattr(source, "places") and source.places is not None):
        raise call.unsupported()
    dim %= x.ndim
    tensors = [x, index, source] if hasattr(source, "axes") else [x, index]
    out = []
    for i in range(x.ndim):
        if i == dim:
            for t in tensors[1:]:
                call.fix(t.axes[i])
            if index.places is not None and size_of(index.places) == x.shape[i]:
                call.follow(index)
                out.append(call.merge(x.axes[i], index.places))
            else:
                out.append(call.pinned(x.axes[i]))
            continue
        if len({t.shape[i] for t in tensors}) > 1:
            raise call.unsupported("part of an axis")
        axis = x.axes[i]
        for t in tensors[1:]:
            axis = call.merge(axis, t.axes[i])
        out.append(axis)
    return out


@rule("aten.index_put", "aten._unsafe_index_put")
def index_put(call: AxisCall, x: Any, indices: Any, values: Any, accumulate: Any = False) -> Any:
    """Writes or adds at places along some axes, which keep their order; the others are lined up."""
    used = [(i, ix) for i, ix in enumerate(indices) if ix is not None]
    if any(ix.dtype in _MASKS for _, ix in used):
        return _masked(call, x, used, values)
    places = [i for i, _ in used]
    for _, ix in used:
        for t in ix.axes:
            call.fix(t)
    shape = list(torch.broadcast_shapes(*(ix.shape for _, ix in used)))
    at = places[0] if places == list(range(places[0], places[-1] + 1)) else 0
    rest = [i for i in range(x.ndim) if i not in places]
    selected = [*(x.shape[i] for i in rest[:at]), *shape, *(x.shape[i] for i in rest[at:])]
    given = expand_to(values, selected)
    for t in given[at : at + len(shape)]:
        call.fix(t)
    given = given[:at] + given[at + len(shape) :]
    out = list(x.axes)
    for i in places:
        out[i] = call.pinned(x.axes[i])
    for i, t in zip(rest, given, strict=True):
        out[i] = call.merge(x.axes[i], t)
    return out


def _masked(call, x, used, values):
    """One number where a mask says so, as ``torch.where`` writes it."""
    (start, mask), *more = used
    if more or values.shape not in ((), (1,)):
        raise call.unsupported("boolean mask")
    out = list(x.axes)
    for i, t in enumerate(mask.axes, start):
        out[i] = call.merge(out[i], t) if x.shape[i] != 1 else ONE
    return out


@rule("aten.index_reduce")
def index_reduce(call: AxisCall, x: Any, dim: Any, index: Any, source: Any, *args: Any, **kwargs: Any) -> Any:
    """Combines slices at places along one axis, which keeps its order; the others are lined up."""
    dim %= x.ndim
    for t in (index.axes[0], source.axes[dim]):
        call.fix(t)
    others = [call.merge(a, b) for i, (a, b) in enumerate(zip(x.axes, source.axes, strict=True)) if i != dim]
    others.insert(dim, call.pinned(x.axes[dim]))
    return others


@rule("aten.segment_reduce")
def segment_reduce(call: AxisCall, x: Any, reduce: Any, *, axis: Any = 0, **kwargs: Any) -> Any:
    """Combines neighbors along an axis, segment by segment."""
    for t in (x.axes[axis], *(t for a in kwargs.values() if hasattr(a, "axes") for t in a.axes)):
        call.fix(t)
    return [*x.axes[:axis], call.fresh(call.shape[axis], fixed=True), *x.axes[axis + 1 :]]


@rule("aten._embedding_bag", "aten._embedding_bag_forward_only")
def embedding_bag(call: AxisCall, weight: Any, indices: Any, offsets: Any, *args: Any) -> Any:
    """Combines rows of a table, bag by bag: features pass."""
    if any(user.args[1] for user in call.node.users):
        raise call.unsupported("other than the result")
    for t in (indices, offsets, *(a for a in args if hasattr(a, "axes"))):
        for axis in t.axes:
            call.fix(axis)
    call.fix(weight.axes[0])
    return [[call.fresh(call.shape[0], fixed=True), weight.axes[1]], *map(call.fixed, call.shapes[1:])]


@rule("aten.tril", "aten.triu", family="moves")
def triangle(call: AxisCall, x: Any, *args: Any) -> Any:
    """Half of a matrix: both of its axes keep their order."""
    return [*x.axes[:-2], call.pinned(x.axes[-2]), call.pinned(x.axes[-1])]
