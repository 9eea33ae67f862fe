"""Indexing with tensors: it tells indices apart, unless the index counts through the axis."""

from __future__ import annotations

from pyro_align.discovery.constants import identity_axis
from pyro_align.discovery.rules import rule
from pyro_align.discovery.terms import ONE, Uniform


def _index_axes(call, index, source_axis, size):
    """Axes that an index tensor gives to the result; fixes the axis it selects from unless it counts through it."""
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
def index(call, x, indices, *args):
    """Advanced indexing: the indices broadcast together and stand where they were if they were neighbours."""
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
    from pyro_align.discovery.terms import size_of

    if [size_of(t) for t in out] != list(call.shape):
        raise call.unsupported()
    return out


@rule("aten.index_select")
def index_select(call, x, dim, index):
    """Selects along one axis."""
    if x.ndim == 0:
        return []
    dim %= x.ndim
    part = _index_axes(call, index, x.axes[dim], x.shape[dim])
    return [*x.axes[:dim], part[0] if part else ONE, *x.axes[dim + 1 :]]


@rule("aten.embedding")
def embedding(call, weight, indices, *args, **kwargs):
    """Rows of a table."""
    return [*_index_axes(call, indices, weight.axes[0], weight.shape[0]), *weight.axes[1:]]


@rule("aten.gather")
def gather(call, x, dim, index, **kwargs):
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


@rule("aten.sort", "aten.topk", "aten.argsort", "aten.argmax", "aten.argmin")
def positions(call, x, *args, **kwargs):
    """Order statistics: the axis is told apart by where its entries stand."""
    raise call.unsupported()


@rule("aten.tril", "aten.triu")
def triangle(call, x, *args):
    """Half of a matrix: both of its axes keep their order."""
    return [*x.axes[:-2], call.pinned(x.axes[-2]), call.pinned(x.axes[-1])]


import torch  # noqa: E402

_MASKS = (torch.bool, torch.uint8)
