"""Rules of rotations: linear maps pass vectors on, sums of squares are invariant, anything else ends a rotation."""

from __future__ import annotations

from typing import Any

from pyro_align.discovery.ops import aten, contraction_of
from pyro_align.discovery.registry import rotation_rule
from pyro_align.discovery.rotations.domain import (
    SQUARE,
    VECTOR,
    Outcome,
    RotationCall,
    RotationTensor,
    matrix_axes,
    places,
)


@rotation_rule(
    "family.view",
    "family.reshape",
    "family.same",
    "family.split",
    "family.over positions",
    "family.copies at borders",
    *aten("neg repeat flip roll tril triu select.int select_copy.int unbind.int unbind_copy.int"),
    *aten("pixel_shuffle cumsum unfold"),
)
def passes(call: RotationCall, x: Any, *args: Any, **kwargs: Any) -> Any:
    """The same entries elsewhere, or a linear map along axes that keep their order."""
    out = call.along(x)
    return [out for _ in call.shapes] if call.several else out


@rotation_rule("family.cast")
def converted(call: RotationCall, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Another floating-point type."""
    return call.along(x) if call.outputs[0].dtype.is_floating_point else None


@rotation_rule("aten.copy")
def copy(call: RotationCall, target: Any, source: Any, *args: Any, **kwargs: Any) -> Any:
    """The source, broadcast to the target's shape."""
    return call.along(source)


@rotation_rule("family.zeros")
def zeros(call: RotationCall, *args: Any, **kwargs: Any) -> Any:
    """Zeros go along with any rotation."""
    return Outcome(zero=True)


@rotation_rule("family.ones", "family.empty")
def ones(call: RotationCall, *args: Any, **kwargs: Any) -> Any:
    """The argument's shape alone matters."""
    return Outcome()


@rotation_rule("aten.full_like", "aten.fill.Scalar")
def full(call: RotationCall, x: Any, value: Any, **kwargs: Any) -> Any:
    """One number everywhere."""
    return Outcome(zero=value == 0)


@rotation_rule("aten.cat", "aten.stack")
def joined(call: RotationCall, tensors: Any, dim: Any = 0) -> Any:
    """Along the axis that is joined, each tensor carries what it carries; otherwise as if they were added."""
    new = call.name == "stack"
    joined_axis = dim % (tensors[0].ndim + new) - new * 0.5  # a stacked axis lies between two
    rest = []
    for x in tensors:
        kept = tuple(t for i, t in enumerate(x.axes) if i != joined_axis)
        around = {v for v in x.states if any(places(t, v) for t in kept)}
        zero = x.zero or (x.constant() is not None and not bool(x.constant().any()))
        rest.append(RotationTensor(kept, {v: s for v, s in x.states.items() if v in around}, zero, x.dtype))
    out = dict(call.add(*rest).states)
    for x in tensors:
        for var, state in x.states.items():
            if out.setdefault(var, state) != state:
                call.end(x)
    return Outcome(out)


@rotation_rule("aten.constant_pad_nd")
def pad(call: RotationCall, x: Any, pad: Any, value: Any = 0) -> Any:
    """Zeros are vectors too."""
    return call.along(x) if value == 0 else None


@rotation_rule("family.add")
def add(call: RotationCall, a: Any, b: Any, *, alpha: Any = 1) -> Any:
    """Sums and differences."""
    return call.add(a, b)


@rotation_rule("family.multiply")
def multiply(call: RotationCall, a: Any, b: Any) -> Any:
    """Products."""
    return call.multiply(a, b)


@rotation_rule("family.divide")
def divide(call: RotationCall, a: Any, b: Any, *, rounding_mode: Any = None) -> Any:
    """Quotients; the divisor is invariant."""
    if rounding_mode is not None:
        raise call.unsupported()
    call.end(b)
    return call.multiply(a, 1.0)


@rotation_rule("aten.addcmul")
def add_product(call: RotationCall, x: Any, a: Any, b: Any, *, value: Any = 1) -> Any:
    """``x + value a b``."""
    product = call.multiply(a, b)
    return call.add(x, RotationTensor(call.axes[0], product.states, product.zero))


@rotation_rule("aten.where.self", "aten.where.ScalarSelf", "aten.where.ScalarOther")
def where(call: RotationCall, condition: Any, a: Any, b: Any) -> Any:
    """One or the other."""
    call.end(condition)
    return call.add(a, b) if matrix_axes(condition) is None else None


@rotation_rule("aten.masked_fill")
def masked_fill(call: RotationCall, x: Any, mask: Any, value: Any) -> Any:
    """One or the other."""
    call.end(mask)
    return call.add(x, value) if matrix_axes(mask) is None else None


@rotation_rule("aten.square")
def square(call: RotationCall, x: Any) -> Any:
    """Squares await their sum."""
    return call.square(x)


@rotation_rule("aten.pow.Tensor_Scalar", "aten.pow.Tensor_Tensor")
def power(call: RotationCall, x: Any, exponent: Any) -> Any:
    """The second power is a square."""
    if isinstance(exponent, RotationTensor):
        value = exponent.constant()
        two = value is not None and value.numel() > 0 and bool((value == 2).all())
    else:
        two = exponent == 2
    return call.square(x) if two and isinstance(x, RotationTensor) else None


@rotation_rule("family.sum")
def total(call: RotationCall, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Sums."""
    return call.total(x, call.dims(x.ndim))


@rotation_rule("aten.linalg_vector_norm")
def norm(call: RotationCall, x: Any, ord: Any = 2, *args: Any, **kwargs: Any) -> Any:
    """The length of a vector."""
    dims = call.dims(x.ndim)
    whole = not call.carried(x, [i for i in range(x.ndim) if i not in dims])
    return call.total(_squared(x), dims) if ord == 2 and whole and _all(x, VECTOR) else None


@rotation_rule("family.variance", "family.variance and mean")
def variance(call: RotationCall, x: Any, *args: Any, **kwargs: Any) -> Any:
    """A mean of squares, beside the mean; both are invariant to centered rotations of what they are taken along."""
    dims = call.dims(x.ndim)
    inside = {v for v in x.states if any(places(x.axes[d], v) for d in dims)}
    rest = {v: s for v, s in x.states.items() if v not in inside}
    both = any(places(t, v) for i, t in enumerate(x.axes) if i not in dims for v in inside)
    if both or not _all(x, VECTOR) or (rest and not call.name.startswith("var")):
        return [None, None] if call.several else None
    call.center(inside)
    spread = Outcome(dict.fromkeys(rest, SQUARE))
    return [spread, Outcome(rest)] if call.several else spread


@rotation_rule("family.contraction")
def contraction(call: RotationCall, *args: Any, **kwargs: Any) -> Any:
    """An einsum of two factors, plus a broadcast term."""
    factors, added = contraction_of(call.node.target).read(args)
    product = call.contract(*factors)
    if added is None:
        return product
    shape = len(factors[-1])
    return call.add(RotationTensor(call.axes[0][len(call.axes[0]) - shape :], product.states, product.zero), added)


@rotation_rule("aten.convolution")
def convolution(call: RotationCall, x: Any, weight: Any, bias: Any, *args: Any) -> Any:
    """Of channels; positions keep their order."""
    if call.option("groups") != 1 or x.ndim != weight.ndim:
        raise call.unsupported()
    space = "klmn"[: x.ndim - 2]
    product = call.contract(
        x, "bc" + space.upper(), weight, ("co" if call.option("transposed") else "oc") + space, "bo"
    )
    if bias is None:
        return product
    flat = RotationTensor(call.axes[0][:2], product.states, product.zero)
    return call.add(flat, bias)


@rotation_rule("aten._cdist_forward")
def distances(call: RotationCall, a: Any, b: Any, p: Any, *args: Any) -> Any:
    """Euclidean distances between rows, a sum over columns; rows themselves are not followed."""
    if p != 2 or a.states != b.states or any(call.carried(x, range(x.ndim - 1)) for x in (a, b)):
        return None
    left, right = ("bcdefgh"[: x.ndim - 2] + row + "k" for x, row in ((a, "i"), (b, "j")))
    call.contract(a, left, b, right, "ij")
    return Outcome()


@rotation_rule("aten._pdist_forward")
def distances_of_pairs(call: RotationCall, x: Any, p: Any = 2) -> Any:
    """The same between all pairs of rows of one matrix."""
    return distances(call, x, x, p)


@rotation_rule("aten.embedding")
def embedding(call: RotationCall, weight: Any, indices: Any, *args: Any, **kwargs: Any) -> Any:
    """Rows of a table."""
    return call.along(weight, indices)


@rotation_rule("aten.index.Tensor", "aten._unsafe_index.Tensor")
def index(call: RotationCall, x: Any, indices: Any, *args: Any) -> Any:
    """Entries at given places; two indices may walk along a diagonal."""
    used = [i for i, given in enumerate(indices) if given is not None]
    if len(used) > 1 and call.carried(x, used):
        return None
    return call.along(x, *indices)


@rotation_rule("aten.index_select")
def index_select(call: RotationCall, x: Any, dim: Any, index: Any) -> Any:
    """Entries at given places along one axis."""
    return call.along(x, index)


@rotation_rule("aten.gather")
def gather(call: RotationCall, x: Any, dim: Any, index: Any, **kwargs: Any) -> Any:
    """The same, a different place for each index of the others."""
    if x.ndim and call.carried(x, [dim % x.ndim]):
        return None
    return call.along(x, index)


@rotation_rule("aten.diagonal", "aten.diagonal_copy")
def diagonal(call: RotationCall, x: Any, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Any:
    """Of a matrix that follows on both sides: a square."""
    a, b = dim1 % x.ndim, dim2 % x.ndim
    out = {}
    for var, state in x.states.items():
        here = [places(x.axes[d], var) for d in (a, b)]
        if not any(here):
            out[var] = state
        elif state == VECTOR and here[0] == here[1] and not call.carried(_only(x, var), _others(x, a, b)):
            out[var] = SQUARE
    return Outcome(out)


@rotation_rule("aten.trace")
def trace(call: RotationCall, x: Any) -> Any:
    """The trace of a matrix that follows on both sides."""
    for var in x.states:
        if x.states[var] != VECTOR or places(x.axes[0], var) != places(x.axes[1], var):
            call.end(_only(x, var))
    return Outcome()


@rotation_rule("aten.linalg_inv_ex")
def inverse(call: RotationCall, a: Any, **kwargs: Any) -> Any:
    """``(P A Q')^-1 = Q A^-1 P'``."""
    if call.carried(a, range(a.ndim - 2)) or not _all(a, VECTOR):
        return [None, None]
    return [call.along(a), Outcome()]


@rotation_rule("aten._linalg_slogdet", "aten._linalg_det")
def determinant(call: RotationCall, a: Any) -> Any:
    """``|P A Q'|`` is ``|A|`` up to its sign, which is lost where both sides are rotated alike or it is not used."""
    used = {user.args[1] for user in call.node.users}
    alike = all(places(a.axes[-2], var) == places(a.axes[-1], var) for var in a.states)
    if call.carried(a, range(a.ndim - 2)) or not _all(a, VECTOR) or (0 in used and not alike):
        return [None for _ in call.shapes]
    return [Outcome() for _ in call.shapes]


@rotation_rule("aten.linalg_solve_triangular")
def solve_triangular(
    call: RotationCall, a: Any, b: Any, *, upper: bool, left: bool = True, unitriangular: bool = False
) -> Any:
    """``L^-1 B``: linear in ``B`` along the other axis."""
    return call.along(b, a)


def _all(x: RotationTensor, state: str) -> bool:
    return all(s == state for s in x.states.values())


def _squared(x: RotationTensor) -> RotationTensor:
    return RotationTensor(x.axes, dict.fromkeys(x.states, SQUARE), x.zero, x.dtype, x.constant)


def _only(x: RotationTensor, var) -> RotationTensor:
    return RotationTensor(x.axes, {var: x.states[var]}, x.zero, x.dtype)


def _others(x: RotationTensor, *dims: int) -> list[int]:
    return [i for i in range(x.ndim) if i not in dims]
