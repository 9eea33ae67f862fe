"""Rules of scalings: how the degree of an operation's output follows from those of its operands.

What moves, adds or multiplies entries does to degrees what it does to parities, and shares its rule.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from pyro_align.discovery.ops import spatial_axes
from pyro_align.discovery.registry import scale_rule, sign_rule
from pyro_align.discovery.signs.domain import SignTensor
from pyro_align.discovery.signs.rules import elementwise, moves, sums

_SHARED = (
    *(moves.moved, moves.reshaped, moves.expand, moves.unchanged, moves.copy, moves.zeros, moves.ones, moves.full_like),
    *(moves.new_full, moves.pad, moves.pad_with_copies, moves.index, moves.index_select, moves.gather, moves.embedding),
    *(elementwise.add, elementwise.multiply, elementwise.lerp, elementwise.times_logarithm, elementwise.where),
    *(elementwise.masked_fill, elementwise.equal),
    *(sums.total, sums.running_sum, sums.product, sums.contraction, sums.convolution, sums.over_positions, sums.trace),
)
for _name, _function in list(sign_rule.rules.items()):
    if _function in _SHARED:
        scale_rule(_name)(_function)


HALF = Fraction(1, 2)


def _power(call, x, exponent: Fraction):
    return SignTensor(call.parities.power(x.ids, exponent)) if isinstance(x, SignTensor) else x


@scale_rule("family.cast")
def converted(call: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Another floating-point type; whether a number is zero does not change."""
    dtype = call.outputs[0].dtype
    return x if dtype.is_floating_point else call.even() if dtype.is_signed is False else call.hold(x)


@scale_rule("aten.neg", "aten.abs", "aten.relu", "aten.positive", "aten.leaky_relu")
def homogeneous(call: Any, x: Any, *args: Any) -> Any:
    """``f(a x) = a f(x)`` for positive ``a``."""
    return x


@scale_rule("aten._prelu_kernel")
def prelu(call: Any, x: Any, weight: Any) -> Any:
    """The same in the first argument."""
    call.hold(weight)
    return call.expand(x)


@scale_rule("aten.clamp", "aten.hardtanh", "aten.clamp_min", "aten.clamp_max")
def clamp(call: Any, x: Any, *bounds: Any, **named: Any) -> Any:
    """Homogeneous where the bounds are zero or absent."""
    given = [b for b in (*bounds, *named.values()) if b is not None]
    if any(isinstance(b, SignTensor) or b not in (0, math.inf, -math.inf) for b in given):
        raise call.unsupported()
    return x


@scale_rule("aten.threshold")
def threshold(call: Any, x: Any, threshold: Any, value: Any) -> Any:
    """A ReLU where both numbers are zero."""
    if threshold or value:
        raise call.unsupported()
    return x


@scale_rule("aten.sign", "aten.sgn", "aten.isnan", "aten.isinf", "aten.isfinite", "aten.logical_not")
def told_by_sign(call: Any, x: Any) -> Any:
    """What only asks whether a number is positive, zero, or finite."""
    return call.even()


@scale_rule("aten.gt", "aten.lt", "aten.ge", "aten.le")
def compared(call: Any, a: Any, b: Any) -> Any:
    """Numbers that grow alike compare alike."""
    call.add(a, b)
    return call.even()


@scale_rule("aten.maximum", "aten.minimum")
def larger(call: Any, a: Any, b: Any) -> Any:
    """One or the other."""
    return call.add(a, b)


@scale_rule("family.divide")
def divide(call: Any, a: Any, b: Any, *, rounding_mode: Any = None) -> Any:
    """Quotients."""
    if rounding_mode is not None:
        raise call.unsupported()
    return call.multiply(a, _power(call, b, Fraction(-1)))


@scale_rule("aten.reciprocal", "aten.square", "aten.sqrt", "aten.rsqrt")
def fixed_power(call: Any, x: Any) -> Any:
    """Powers that have a name."""
    return _power(call, x, {"reciprocal": Fraction(-1), "square": Fraction(2), "sqrt": HALF, "rsqrt": -HALF}[call.name])


@scale_rule("aten.pow.Tensor_Scalar", "aten.pow.Tensor_Tensor")
def power(call: Any, x: Any, exponent: Any) -> Any:
    """Powers by one number."""
    return call.expand(_power(call, x, Fraction(call.number(exponent))))


@scale_rule(
    "aten.linalg_vector_norm", "aten.amax", "aten.amin", "aten.max.default", "aten.min.default", "aten.median.default"
)
def extremum(call: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    """The length of a vector, or the largest of entries that grow alike."""
    return call.alike(x, call.dims(x.ndim), keepdim=call.option("keepdim", False))


@scale_rule("aten.max.dim", "aten.min.dim")
def extremum_and_place(call: Any, x: Any, dim: Any, keepdim: bool = False) -> Any:
    """The same, and where it is."""
    return [call.alike(x, [dim], keepdim=keepdim), call.even(call.shapes[1])]


@scale_rule("family.largest of positions")
def largest_of_positions(call: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    """The same, of a window."""
    space = spatial_axes(call.node.target)
    return [call.expand(call.alike(x, range(x.ndim - space, x.ndim), keepdim=True)), call.even(call.shapes[1])]


@scale_rule("family.variance", "family.variance and mean")
def variance(call: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Squares around the mean, or their root; and the mean."""
    mean = call.alike(x, call.dims(x.ndim), keepdim=True)
    spread = mean if call.name.startswith("std") else _power(call, mean, Fraction(2))
    out = [SignTensor(t.ids.reshape(shape)) for t, shape in zip((spread, mean), call.shapes, strict=False)]
    return out if call.several else out[0]
