"""Views, joins and cuts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyro_align.discovery.axes.rules.elementwise import carried, expand_to
from pyro_align.discovery.axes.terms import ONE, Prod, Uniform, has_uniform, is_fixed, resolve, size_of
from pyro_align.discovery.ops import aten
from pyro_align.discovery.registry import rule

if TYPE_CHECKING:
    from pyro_align.discovery.axes.inference import AxisCall


@rule("family.reshape")
def view(call: AxisCall, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Splits and joins products."""
    return carried(call, x, call.reshape(x.axes, call.shape))


@rule("aten.permute", "aten.permute_copy", family="view")
def permute(call: AxisCall, x: Any, dims: Any) -> Any:
    """Reorders axes."""
    return carried(call, x, [x.axes[d] for d in dims])


@rule("aten.t", "aten.t_copy", family="view")
def t(call: AxisCall, x: Any) -> Any:
    """Reverses at most two axes."""
    return carried(call, x, list(reversed(x.axes)))


@rule("aten.transpose.int", "aten.transpose_copy.int", "aten.swapaxes", family="view")
def transpose(call: AxisCall, x: Any, a: Any, b: Any) -> Any:
    """Swaps two axes."""
    out = list(x.axes)
    if out:
        out[a], out[b] = out[b], out[a]
    return carried(call, x, out)


@rule("aten.unsqueeze", "aten.unsqueeze_copy", family="view")
def unsqueeze(call: AxisCall, x: Any, dim: Any) -> Any:
    """Adds an axis of size one."""
    out = list(x.axes)
    out.insert(dim % (x.ndim + 1), ONE)
    return carried(call, x, out)


@rule("aten.squeeze", "aten.squeeze_copy", family="view")
def squeeze(call: AxisCall, x: Any, dim: Any = None) -> Any:
    """Drops axes of size one."""
    dims = (
        range(x.ndim)
        if dim is None
        else [d % x.ndim for d in (dim if isinstance(dim, list | tuple) else [dim])]
        if x.ndim
        else []
    )
    return carried(call, x, [t for i, t in enumerate(x.axes) if not (i in dims and x.shape[i] == 1)])


@rule("aten.expand", "aten.expand_copy", "aten.broadcast_to", family="view")
def expand(call: AxisCall, x: Any, size: Any, **kwargs: Any) -> Any:
    """New and stretched axes are uniform."""
    return carried(call, x, expand_to(x, call.shape))


@rule("aten.repeat", family="moves")
def repeat(call: AxisCall, x: Any, repeats: Any) -> Any:
    """Tiles: the tile index is a uniform leading factor."""
    lead = len(repeats) - x.ndim
    axes = [ONE] * lead + list(x.axes)
    return [call.product([Uniform(r), t]) if r != 1 else t for r, t in zip(repeats, axes, strict=True)]


@rule("aten.cat", family="moves")
def cat(call: AxisCall, tensors: Any, dim: Any = 0) -> Any:
    """Concatenates along one axis, merges the others; the same tensor again and again is tiled."""
    tensors = [x for x in tensors if not (x.ndim == 1 and x.shape[0] == 0 and len(call.shape) != 1)]
    dim %= len(call.shape)
    if len(tensors) > 1 and all(x is tensors[0] for x in tensors):
        axes = list(tensors[0].axes)
        axes[dim] = call.product([Uniform(len(tensors)), axes[dim]])
        return axes
    out = []
    for i in range(len(call.shape)):
        if i == dim:
            out.append(call.concat([_marked(call, x, i, len(tensors)) for x in tensors]))
            continue
        axis = tensors[0].axes[i]
        for x in tensors[1:]:
            axis = call.merge(axis, x.axes[i])
        out.append(axis)
    return out


def _marked(call, x, dim, count):
    """A piece of size one stands at a place of its own, unlike a uniform piece that was stretched."""
    if x.shape[dim] == 1 and count > 1:
        return call.fresh_single()
    return x.axes[dim]


@rule("aten.stack", family="moves")
def stack(call: AxisCall, tensors: Any, dim: Any = 0) -> Any:
    """Joins along a new axis, whose indices keep their order."""
    dim %= len(call.shape)
    axes = list(tensors[0].axes)
    for x in tensors[1:]:
        axes = [call.merge(a, b) for a, b in zip(axes, x.axes, strict=True)]
    same = all(x is tensors[0] for x in tensors)
    axes.insert(dim, Uniform(len(tensors)) if same else call.fresh(len(tensors), fixed=True))
    return axes


@rule("aten.slice.Tensor", "aten.slice_copy.Tensor", family="view")
def slice_(call: AxisCall, x: Any, dim: Any = 0, start: Any = None, end: Any = None, step: Any = 1) -> Any:
    """A piece of a concatenation, or every k-th index of a product."""
    dim %= x.ndim
    n = x.shape[dim]
    start, end, _ = slice(start, end, step).indices(n)
    out = list(x.axes)
    out[dim] = _sliced(call, x.axes[dim], n, start, end, step)
    return out


def _sliced(call, axis, n, start, end, step):
    if (start, end, step) == (0, n, 1):
        return axis
    if isinstance(resolve(axis), Uniform):
        return Uniform(len(range(start, end, step)))
    count = len(range(start, end, step))
    if is_fixed(axis):
        pieces = None
    elif (both := _sides(call, n, start, end, step)) is not None:
        return call.merge(*call.reshape([axis], both))
    elif step == 1:
        pieces = call.split(axis, [start, end - start, n - end])
        if pieces is not None:
            return pieces[1]
    elif n % step == 0 and start < step and end > n - step + start:
        head, tail = call.fresh(n // step), call.fresh(step, fixed=True)
        merged = call.merge(axis, call.product([head, tail]))
        if isinstance(merged, Prod):
            return resolve(head)
    call.fix(axis)
    return call.fresh(count, fixed=True)


def _sides(call, n, start, end, step):
    """The sides of a square matrix, laid out as one axis, of which a slice is the diagonal."""
    side = step - 1
    return (side, side) if side > 1 and side * side == n and start == 0 and end == n else None


@rule("aten.slice_scatter", family="moves")
def slice_scatter(
    call: AxisCall, x: Any, source: Any, dim: Any = 0, start: Any = None, end: Any = None, step: Any = 1
) -> Any:
    """Writes one tensor into a piece of another."""
    dim %= x.ndim
    n = x.shape[dim]
    start, end, _ = slice(start, end, step).indices(n)
    sides = _sides(call, n, start, end, step)
    if step != 1 and sides is None:
        raise call.unsupported()
    source_axes = expand_to(source, (*call.shape[:dim], len(range(start, end, step)), *call.shape[dim + 1 :]))
    out = []
    for i in range(x.ndim):
        if i != dim:
            out.append(call.merge(x.axes[i], source_axes[i]))
            continue
        if sides is not None:
            out.append(call.product([_diagonal_axis(call, source_axes[i], call.reshape([x.axes[i]], sides))] * 2))
            continue
        pieces = call.split(x.axes[dim], [start, end - start, n - end])
        if pieces is None:
            raise call.unsupported()
        middle = source_axes[i] if end - start != 1 else call.fresh_single()
        out.append(call.concat([_piece(call, pieces[0]), middle, _piece(call, pieces[2])]))
    return out


@rule("aten.select_scatter", family="moves")
def select_scatter(call: AxisCall, x: Any, source: Any, dim: Any, index: Any) -> Any:
    """Writes one slice of a tensor."""
    dim, index = dim % x.ndim, index % x.shape[dim]
    axes = expand_to(source, [n for i, n in enumerate(call.shape) if i != dim])
    return slice_scatter(call, x, call.tensor([*axes[:dim], ONE, *axes[dim:]]), dim, index, index + 1)


def _piece(call, term):
    return call.fresh_single() if size_of(term) == 1 else term


@rule("aten.select.int", "aten.select_copy.int", family="moves")
def select(call: AxisCall, x: Any, dim: Any, index: Any) -> Any:
    """One index of an axis: it stands apart, the others stay interchangeable."""
    dim %= x.ndim
    n = x.shape[dim]
    axis = x.axes[dim]
    if not is_fixed(axis) and not isinstance(resolve(axis), Uniform):
        index %= n
        pieces = call.split(axis, [index, 1, n - index - 1])
        if pieces is None:
            call.fix(axis)
        else:
            call.fix(pieces[1])
    return [t for i, t in enumerate(x.axes) if i != dim]


@rule(
    *aten("split.Tensor split_with_sizes split_copy.Tensor split_with_sizes_copy unsafe_split.Tensor"),
    *aten("unsafe_split_with_sizes chunk unsafe_chunk"),
    family="split",
)
def split(call: AxisCall, x: Any, sizes: Any, dim: Any = 0) -> Any:
    """Pieces of a concatenation."""
    dim %= x.ndim
    lengths = [s[dim] for s in call.shapes]
    pieces = None if is_fixed(x.axes[dim]) else call.split(x.axes[dim], lengths)
    if pieces is None:
        call.fix(x.axes[dim])
        pieces = [call.fresh(n, fixed=True) for n in lengths]
    return [[*x.axes[:dim], piece, *x.axes[dim + 1 :]] for piece in pieces]


@rule("aten.unbind.int", "aten.unbind_copy.int", family="moves")
def unbind(call: AxisCall, x: Any, dim: Any = 0) -> Any:
    """Every index of an axis on its own."""
    call.fix(x.axes[dim])
    rest = [t for i, t in enumerate(x.axes) if i != dim % x.ndim]
    return [list(rest) for _ in call.shapes]


@rule("aten.diagonal", "aten.diagonal_copy", family="moves")
def diagonal(call: AxisCall, x: Any, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Any:
    """Two axes walked together."""
    dim1, dim2 = dim1 % x.ndim, dim2 % x.ndim
    rest = [t for i, t in enumerate(x.axes) if i not in (dim1, dim2)]
    if offset != 0 or x.shape[dim1] != x.shape[dim2]:
        call.fix(x.axes[dim1])
        call.fix(x.axes[dim2])
        return [*rest, call.fresh(call.shape[-1], fixed=True)]
    return [*rest, call.merge(x.axes[dim1], x.axes[dim2])]


@rule("aten.diagonal_scatter", family="moves")
def diagonal_scatter(call: AxisCall, x: Any, source: Any, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Any:
    """Writes the diagonal of a matrix."""
    dim1, dim2 = dim1 % x.ndim, dim2 % x.ndim
    out, rest = list(x.axes), [i for i in range(x.ndim) if i not in (dim1, dim2)]
    for i, t in zip(rest, source.axes, strict=False):
        out[i] = call.merge(out[i], t)
    if offset != 0 or x.shape[dim1] != x.shape[dim2]:
        call.fix(source.axes[-1])
        out[dim1], out[dim2] = call.pinned(out[dim1]), call.pinned(out[dim2])
        return out
    out[dim1] = out[dim2] = _diagonal_axis(call, source.axes[-1], (x.axes[dim1], x.axes[dim2]))
    return out


def _diagonal_axis(call, own, sides):
    """The axis of rows and columns alike; even of a uniform matrix, they no longer move each on its own."""
    axis = call.fresh(size_of(own)) if has_uniform(own) else own
    for side in sides:
        axis = call.merge(axis, side)
    return axis


@rule("aten.constant_pad_nd")
def pad(call: AxisCall, x: Any, pad: Any, value: Any = 0) -> Any:
    """Pads with one value: the new entries are interchangeable with each other."""
    out = list(x.axes)
    for k in range(len(pad) // 2):
        before, after = pad[2 * k], pad[2 * k + 1]
        dim = x.ndim - 1 - k
        if before == after == 0:
            continue
        axis = out[dim]
        if before < 0 or after < 0 or is_fixed(axis):
            call.fix(axis)
            out[dim] = call.fresh(call.shape[dim], fixed=True)
            continue
        axis = call.fresh_single() if size_of(axis) == 1 else axis
        out[dim] = call.concat([_border(call, before), axis, _border(call, after)])
    return out


def _border(call, n):
    return call.fresh_single() if n == 1 else Uniform(n)
