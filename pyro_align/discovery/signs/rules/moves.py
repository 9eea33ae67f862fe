"""Operations that move entries: the parities move with them."""

from __future__ import annotations

import math
from typing import Any

import torch

from pyro_align.discovery.registry import sign_rule
from pyro_align.discovery.signs.domain import SignCall, SignTensor


@sign_rule("family.view", "family.moves", "family.split")
def moved(call: SignCall, *args: Any, **kwargs: Any) -> Any:
    """The same entries elsewhere; places left empty hold zeros."""
    return call.rearrange(*args, **kwargs)


@sign_rule("family.reshape")
def reshaped(call: SignCall, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Parities are laid out in a way of their own, so a view is a reshape."""
    ids = x.ids
    if math.prod(call.shape) and all(s == 0 or n == 1 for s, n in zip(ids.stride(), ids.shape, strict=True)):
        return SignTensor(ids[(0,) * ids.dim()].expand(call.shape))
    return SignTensor(ids.reshape(call.shape))


@sign_rule("aten.expand", "aten.expand_copy", "aten.broadcast_to")
def expand(call: SignCall, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Copies along new and stretched axes."""
    return call.expand(x)


@sign_rule("family.same")
def unchanged(call: SignCall, x: Any, *args: Any, **kwargs: Any) -> Any:
    """The same tensor again."""
    return x


@sign_rule("family.cast")
def converted(call: SignCall, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Rounding towards zero is odd; a boolean forgets the sign."""
    dtype = call.outputs[0].dtype
    if dtype is torch.bool:
        return call.even()
    if dtype.is_complex or dtype is torch.uint8:
        return call.hold(x)
    return x


@sign_rule("aten.copy")
def copy(call: SignCall, target: Any, source: Any, *args: Any, **kwargs: Any) -> Any:
    """The source, broadcast to the target's shape."""
    return call.expand(source)


@sign_rule("family.zeros")
def zeros(call: SignCall, *args: Any, **kwargs: Any) -> Any:
    """Zeros go along with any sign."""
    return call.zero()


@sign_rule("family.ones")
def ones(call: SignCall, *args: Any, **kwargs: Any) -> Any:
    """Ones."""
    return call.even()


@sign_rule("aten.full_like", "aten.fill.Scalar")
def full_like(call: SignCall, x: Any, value: Any, **kwargs: Any) -> Any:
    """One number everywhere."""
    return call.zero() if value == 0 else call.even()


@sign_rule("aten.new_full")
def new_full(call: SignCall, x: Any, size: Any, value: Any, **kwargs: Any) -> Any:
    """One number everywhere."""
    return call.zero() if value == 0 else call.even()


@sign_rule("aten.constant_pad_nd")
def pad(call: SignCall, x: Any, pad: Any, value: Any = 0) -> Any:
    """Pads with one number, which is zero or never changes sign."""
    return SignTensor(torch.constant_pad_nd(x.ids, pad, 0 if value == 0 else 1))


@sign_rule("family.copies at borders")
def pad_with_copies(call: SignCall, x: Any, pad: Any) -> Any:
    """Copies of entries; the axes are padded as they are, whatever lies before them."""
    kind = "reflect" if "reflection" in str(call.node.target) else "replicate"
    ids = torch.nn.functional.pad(x.ids.double(), pad, mode=kind)  # numbers are small, so this is exact
    return SignTensor(ids.to(torch.int32))


@sign_rule("aten.index.Tensor", "aten._unsafe_index.Tensor")
def index(call: SignCall, x: Any, indices: Any, *args: Any) -> Any:
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
    return SignTensor(torch.ops.aten.index.Tensor(ids, places))


def _places(value, index):
    return torch.zeros(tuple(index.shape), dtype=torch.long) if value is None else value.cpu()


@sign_rule("aten.index_select")
def index_select(call: SignCall, x: Any, dim: Any, index: Any) -> Any:
    """Selects along one axis."""
    if index.constant() is not None:
        return SignTensor(x.ids.index_select(dim, index.constant().cpu()))
    call.hold(index)
    return call.expand(call.alike(x, [dim], keepdim=True) if x.ndim else x)


@sign_rule("aten.gather")
def gather(call: SignCall, x: Any, dim: Any, index: Any, **kwargs: Any) -> Any:
    """Selects along one axis, a different place for each index of the others."""
    if index.constant() is not None:
        return SignTensor(x.ids.gather(dim, index.constant().cpu()))
    call.hold(index)
    if not x.ndim:
        return call.expand(x)
    ids = call.alike(x, [dim], keepdim=True).ids
    dim %= x.ndim
    return call.expand(SignTensor(ids[tuple(slice(None) if i == dim else slice(n) for i, n in enumerate(call.shape))]))


@sign_rule("aten.embedding")
def embedding(call: SignCall, weight: Any, indices: Any, *args: Any, **kwargs: Any) -> Any:
    """Rows of a table: all entries of a column change sign together."""
    call.hold(indices)
    return call.expand(call.alike(weight, [0]))
