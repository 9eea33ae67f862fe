"""Functions of single entries: odd ones keep a parity, even ones drop it, products add."""

from __future__ import annotations

from typing import Any

import torch

from pyro_align.discovery.registry import sign_rule
from pyro_align.discovery.signs.domain import SignCall, SignTensor
from pyro_align.discovery.signs.parity import ZERO


@sign_rule("family.odd")
def odd(call: SignCall, x: Any, *args: Any, **kwargs: Any) -> Any:
    """``f(-x) = -f(x)``."""
    return x


@sign_rule("family.even")
def even(call: SignCall, *args: Any, **kwargs: Any) -> Any:
    """``f(-x) = f(x)``, in each argument."""
    return call.even()


@sign_rule("family.add")
def add(call: SignCall, a: Any, b: Any, *args: Any, **kwargs: Any) -> Any:
    """Sums and differences."""
    return call.add(a, b)


@sign_rule("family.multiply")
def multiply(call: SignCall, a: Any, b: Any) -> Any:
    """Products."""
    return call.multiply(a, b)


@sign_rule("family.divide")
def divide(call: SignCall, a: Any, b: Any, *, rounding_mode: Any = None) -> Any:
    """Quotients; rounding towards zero is odd, rounding down is not."""
    if rounding_mode == "floor":
        raise call.unsupported()
    return call.multiply(a, _inverted(b))


@sign_rule("aten.reciprocal")
def reciprocal(call: SignCall, x: Any) -> Any:
    """``1 / x``."""
    return _inverted(x)


def _inverted(x):
    """What a divisor of zero gives is not zero, but does not notice signs of its zero either."""
    if isinstance(x, SignTensor):
        return SignTensor(torch.where(x.ids == ZERO, 1, x.ids)) if bool((x.ids == ZERO).any()) else x
    return 1


@sign_rule("aten.pow.Tensor_Scalar", "aten.pow.Tensor_Tensor", "aten.float_power.Tensor_Scalar")
def power(call: SignCall, x: Any, exponent: Any) -> Any:
    """Whole powers: odd ones keep the parity, even ones drop it."""
    exponent = call.number(exponent)
    if exponent != int(exponent):
        raise call.unsupported()
    if exponent % 2 == 0:
        return call.even()
    return call.expand(x if exponent > 0 else _inverted(x))


@sign_rule("aten.hardtanh")
def hardtanh(call: SignCall, x: Any, min_val: Any = -1, max_val: Any = 1) -> Any:
    """Odd where the bounds are."""
    return clamp(call, x, min_val, max_val)


@sign_rule("aten.clamp.default")
def clamp(call: SignCall, x: Any, min: Any = None, max: Any = None) -> Any:
    """Odd where the bounds are."""
    if min is None or max is None or min != -max:
        raise call.unsupported()
    return x


@sign_rule("aten.addcmul", "aten.addcdiv")
def add_product(call: SignCall, total: Any, a: Any, b: Any, *, value: Any = 1) -> Any:
    """``total + value a b``, or ``a / b``."""
    return call.add(total, call.multiply(a, b if call.name == "addcmul" else _inverted(b), value))


@sign_rule("aten.lerp")
def lerp(call: SignCall, a: Any, b: Any, weight: Any) -> Any:
    """``a + weight (b - a)``."""
    call.hold(weight)
    return call.expand(call.add(a, b))


@sign_rule("aten.xlogy", "aten.special_xlog1py")
def times_logarithm(call: SignCall, x: Any, y: Any) -> Any:
    """``x log y``, linear in ``x``."""
    call.hold(y)
    return call.expand(x) if isinstance(x, SignTensor) else call.even()


@sign_rule("aten.where.self", "aten.where.ScalarSelf", "aten.where.ScalarOther", "aten.where.Scalar")
def where(call: SignCall, condition: Any, a: Any, b: Any) -> Any:
    """One or the other."""
    call.hold(condition)
    return call.expand(call.add(a, b))


@sign_rule("aten.masked_fill")
def masked_fill(call: SignCall, x: Any, mask: Any, value: Any) -> Any:
    """One or the other."""
    call.hold(mask)
    return call.expand(call.add(x, value))


@sign_rule("aten.eq", "aten.ne")
def equal(call: SignCall, a: Any, b: Any) -> Any:
    """Equal numbers stay equal if both change sign."""
    call.add(a, b)
    return call.even()
