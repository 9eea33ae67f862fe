"""Operations that move entries: the parities move with them."""

from __future__ import annotations

import math

import torch

from pyro_align.discovery.signs.registry import sign_rule

PLAIN = "permute t unsqueeze squeeze diagonal split_with_sizes"
OVERLOADED = "transpose.int slice.Tensor select.int unbind.int split.Tensor"


@sign_rule(
    *(f"aten.{name}{copy}" for name in PLAIN.split() for copy in ("", "_copy")),
    *(f"aten.{name.replace('.', copy + '.')}" for name in OVERLOADED.split() for copy in ("", "_copy")),
    "aten.swapaxes",
    "aten.chunk",
    "aten.unsafe_chunk",
    "aten.unsafe_split.Tensor",
    "aten.unsafe_split_with_sizes",
    "aten.cat",
    "aten.stack",
    "aten.repeat",
    "aten.flip",
    "aten.roll",
    "aten.tril",
    "aten.triu",
    "aten.slice_scatter",
    "aten.select_scatter",
    "aten.pixel_shuffle",
)
def moved(call, *args, **kwargs):
    """The same entries elsewhere; places left empty hold zeros."""
    return call.rearrange(*args, **kwargs)


@sign_rule(
    "aten.view.default",
    "aten._unsafe_view",
    "aten.reshape",
    "aten._reshape_alias",
    "aten.view_copy.default",
    "aten._reshape_copy",
)
def reshaped(call, x, *args, **kwargs):
    """Parities are laid out in a way of their own, so a view is a reshape."""
    ids = x.ids
    if math.prod(call.shape) and all(s == 0 or n == 1 for s, n in zip(ids.stride(), ids.shape, strict=True)):
        return type(x)(ids[(0,) * ids.dim()].expand(call.shape))
    return type(x)(ids.reshape(call.shape))


@sign_rule("aten.expand", "aten.expand_copy", "aten.broadcast_to")
def expand(call, x, *args, **kwargs):
    """Copies along new and stretched axes."""
    return call.expand(x)


@sign_rule("aten.clone", "aten.alias", "aten.detach", "aten.lift_fresh_copy", "aten.lift_fresh", "aten.contiguous")
def unchanged(call, x, *args, **kwargs):
    """The same tensor again."""
    return x


@sign_rule("aten._to_copy", "aten.to", "prims.convert_element_type", "prims.device_put")
def converted(call, x, *args, **kwargs):
    """Rounding towards zero is odd; a boolean forgets the sign."""
    dtype = call.outputs[0].dtype
    if dtype is torch.bool:
        return call.even()
    if dtype.is_complex or dtype is torch.uint8:
        return call.hold(x)
    return x


@sign_rule("aten.copy")
def copy(call, target, source, *args, **kwargs):
    """The source, broadcast to the target's shape."""
    return call.expand(source)


@sign_rule("aten.zeros_like", "aten.new_zeros", "aten.zero")
def zeros(call, *args, **kwargs):
    """Zeros go along with any sign."""
    return call.zero()


@sign_rule("aten.ones_like", "aten.new_ones")
def ones(call, *args, **kwargs):
    """Ones."""
    return call.even()


@sign_rule("aten.full_like", "aten.fill.Scalar")
def full_like(call, x, value, **kwargs):
    """One number everywhere."""
    return call.zero() if value == 0 else call.even()


@sign_rule("aten.new_full")
def new_full(call, x, size, value, **kwargs):
    """One number everywhere."""
    return call.zero() if value == 0 else call.even()


@sign_rule("aten.constant_pad_nd")
def pad(call, x, pad, value=0):
    """Pads with one number, which is zero or never changes sign."""
    return type(x)(torch.constant_pad_nd(x.ids, pad, 0 if value == 0 else 1))


@sign_rule(*(f"aten.{kind}_pad{d}d" for kind in ("reflection", "replication") for d in (1, 2, 3)))
def pad_with_copies(call, x, pad):
    """Copies of entries; the axes are padded as they are, whatever lies before them."""
    kind = "reflect" if "reflection" in str(call.node.target) else "replicate"
    ids = torch.nn.functional.pad(x.ids.double(), pad, mode=kind)  # numbers are small, so this is exact
    return type(x)(ids.to(torch.int32))


@sign_rule("aten.index.Tensor", "aten._unsafe_index.Tensor")
def index(call, x, indices, *args):
    """Advanced indexing. Where a place is not known beforehand, it must not matter which it is."""
    used = [(i, ix) for i, ix in enumerate(indices) if ix is not None]
    values = {i: ix.constant() for i, ix in used}
    unknown = [i for i, value in values.items() if value is None]
    if any(ix.dtype in (torch.bool, torch.uint8) for _, ix in used):
        raise call.unsupported("boolean mask")
    for i, ix in used:
        if i in unknown:
            call.hold(ix)
    ids = x.ids
    if unknown:
        ids = call.alike(x, unknown, keepdim=True).ids
    places = [None if ix is None else _places(values[i], ix) for i, ix in enumerate(indices)]
    return type(x)(torch.ops.aten.index.Tensor(ids, places))


def _places(value, index):
    return torch.zeros(tuple(index.shape), dtype=torch.long) if value is None else value.cpu()


@sign_rule("aten.index_select")
def index_select(call, x, dim, index):
    """Selects along one axis."""
    if index.constant() is not None:
        return type(x)(x.ids.index_select(dim, index.constant().cpu()))
    call.hold(index)
    return call.expand(call.alike(x, [dim], keepdim=True) if x.ndim else x)


@sign_rule("aten.gather")
def gather(call, x, dim, index, **kwargs):
    """Selects along one axis, a different place for each index of the others."""
    if index.constant() is not None:
        return type(x)(x.ids.gather(dim, index.constant().cpu()))
    call.hold(index)
    if not x.ndim:
        return call.expand(x)
    ids = call.alike(x, [dim], keepdim=True).ids
    dim %= x.ndim
    return call.expand(type(x)(ids[tuple(slice(None) if i == dim else slice(n) for i, n in enumerate(call.shape))]))


@sign_rule("aten.embedding")
def embedding(call, weight, indices, *args, **kwargs):
    """Rows of a table: all entries of a column change sign together."""
    call.hold(indices)
    return call.expand(call.alike(weight, [0]))
