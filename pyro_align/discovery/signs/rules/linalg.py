"""Matrices that change sign by rows and columns, ``D A E`` with ``D`` and ``E`` diagonal of plus and minus one."""

from __future__ import annotations

from typing import Any

import torch

from pyro_align.discovery.registry import sign_rule
from pyro_align.discovery.signs.domain import SignCall, SignTensor
from pyro_align.discovery.signs.parity import EVEN, ZERO


@sign_rule("aten.linalg_inv_ex")
def inverse(call: SignCall, a: Any, **kwargs: Any) -> Any:
    """``(D A E)^-1 = E A^-1 D``."""
    a = _by_rows_and_columns(call, a)
    return [SignTensor(a.ids.mT), call.even(call.shapes[1])]


@sign_rule("aten._linalg_slogdet", "aten._linalg_det")
def determinant(call: SignCall, a: Any) -> Any:
    """``|D A E| = |D| |A| |E|``."""
    a = _by_rows_and_columns(call, a)
    sign = call.multiply_along(SignTensor(a.ids.diagonal(dim1=-2, dim2=-1)), [-1])
    return [sign, *(call.even(shape) for shape in call.shapes[1:])]


@sign_rule("aten.linalg_cholesky_ex")
def cholesky(call: SignCall, a: Any, **kwargs: Any) -> Any:
    """``D A D = (D L D) (D L D)^T``, and ``D L D`` is the triangle with the positive diagonal."""
    a = _by_rows_and_columns(call, a)
    call.hold(SignTensor(a.ids.diagonal(dim1=-2, dim2=-1)))
    return [a, call.even(call.shapes[1])]


@sign_rule("aten.linalg_solve_triangular")
def solve_triangular(
    call: SignCall, a: Any, b: Any, *, upper: bool, left: bool = True, unitriangular: bool = False
) -> Any:
    """``(D A E)^-1 B = E A^-1 D B``."""
    if unitriangular:
        raise call.unsupported()
    a = _by_rows_and_columns(call, a)
    lead = call.shape[:-2]
    a, b = (SignTensor(x.ids.expand(*lead, *x.shape[-2:]).reshape(-1, *x.shape[-2:])) for x in (a, b))
    back = SignTensor(a.ids.mT)
    out = call.contract(back, "bik", b, "bkj", "bij") if left else call.contract(b, "bik", back, "bkj", "bij")
    return SignTensor(out.ids.reshape(call.shape))


def _by_rows_and_columns(call, a: SignTensor) -> SignTensor:
    """Requires ``p[i, j] = p[i, 0] + p[0, j] + p[0, 0]``; the outcome has no zeros where the matrix has them."""
    a = SignTensor(torch.where(a.ids == ZERO, EVEN, a.ids))
    row, column, corner = a.ids[..., :1], a.ids[..., :1, :], a.ids[..., :1, :1]
    call.hold(call.multiply(*(SignTensor(t) for t in (a.ids, row, column, corner))))
    return a
