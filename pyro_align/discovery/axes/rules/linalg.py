"""Sums of products, and functions of matrices that follow, or ignore, a joint relabeling of rows and columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyro_align.discovery.axes.terms import ONE
from pyro_align.discovery.ops import contraction_of
from pyro_align.discovery.registry import rule

if TYPE_CHECKING:
    from pyro_align.discovery.axes.inference import AxisCall


@rule("family.contraction")
def contraction(call: AxisCall, *args: Any, **kwargs: Any) -> Any:
    """An einsum of two factors, plus a broadcast term."""
    factors, added = contraction_of(call.node.target).read(args)
    axes = call.contract(*factors)
    return axes if added is None else call.broadcast(call.tensor(axes), added)


@rule("aten.linalg_inv_ex")
def inverse(call: AxisCall, a: Any, **kwargs: Any) -> Any:
    """``(P A Q^T)^-1 = Q A^-1 P^T``."""
    batch = a.axes[:-2]
    for axis in a.axes[-2:]:  # neither axis may be relabeled independently for each index of the other
        call.witness([*batch, axis])
    return [[*batch, a.axes[-1], a.axes[-2]], list(batch)]


@rule("aten._linalg_slogdet", "aten._linalg_det")
def determinant(call: AxisCall, a: Any) -> Any:
    """Rows and columns may be relabeled alike; where its sign is not used, each as they like."""
    last = 1 if call.name == "_linalg_det" else 2
    used = {user.args[1] for user in call.node.users}
    if max(used, default=0) >= last:
        raise call.unsupported("the factors")
    batch = list(a.axes[:-2])
    if 0 in used:
        call.merge(a.axes[-2], a.axes[-1])
    for axis in a.axes[-2:]:
        call.witness([*batch, axis])
    return [list(batch) if i < last else call.fixed(shape) for i, shape in enumerate(call.shapes)]


@rule("aten.linalg_solve_triangular")
def solve_triangular(
    call: AxisCall, a: Any, b: Any, *, upper: bool, left: bool = True, unitriangular: bool = False
) -> Any:
    """``L^-1 B``: the triangle keeps the order of its axes, and so of the one it is solved along."""
    batch = _leading(call, a, b)
    solved, other = (b.axes[-2], b.axes[-1]) if left else (b.axes[-1], b.axes[-2])
    for axis in (*a.axes[-2:], solved):
        call.fix(axis)
    call.witness([*batch, other])  # the solved axis is mixed: nothing may be relabeled anew for each index of it
    kept = call.fresh(call.shape[-2 if left else -1], fixed=True)
    return [*batch, kept, other] if left else [*batch, other, kept]


@rule("aten.linalg_cholesky_ex")
def cholesky(call: AxisCall, a: Any, **kwargs: Any) -> Any:
    """Rows and columns keep their order; the matrices of a batch are factorized one by one."""
    batch = list(a.axes[:-2])
    for axis in a.axes[-2:]:
        call.fix(axis)
    call.witness(batch)
    return [[*batch, *call.fixed(a.shape[-2:])], list(batch)]


@rule("aten.linalg_matrix_exp")
def matrix_exponential(call: AxisCall, a: Any) -> Any:
    """``exp(P A P^T) = P exp(A) P^T``."""
    axis = call.merge(a.axes[-2], a.axes[-1])
    call.witness([*a.axes[:-2], axis])
    return [*a.axes[:-2], axis, axis]


def _leading(call, a, b):
    """The batch axes of two stacks of matrices, broadcast together."""
    return call.broadcast(*(call.tensor(x.axes[:-2], x.shape[:-2]) for x in (a, b)))


@rule("aten.trace")
def trace(call: AxisCall, a: Any) -> Any:
    """Invariant under a joint relabeling; a matrix that is not square keeps its order."""
    if a.shape[0] == a.shape[1]:
        call.merge(a.axes[0], a.axes[1])
    else:
        call.fix(a.axes[0])
        call.fix(a.axes[1])
    return []


@rule("aten._trilinear")
def trilinear(
    call: AxisCall, a: Any, b: Any, c: Any, expand_a: Any, expand_b: Any, expand_c: Any, summed: Any, unroll: Any = 1
) -> Any:
    """The product of three tensors with new axes of size one, summed over some."""
    factors = []
    for x, new in ((a, expand_a), (b, expand_b), (c, expand_c)):
        axes = list(x.axes)
        for i in sorted(new):
            axes.insert(i, ONE)
        factors.append(call.tensor(axes))
    axes = call.broadcast(*factors)
    call.witness(axes)
    return [t for i, t in enumerate(axes) if i not in summed]


@rule("aten._cdist_forward")
def distances(call: AxisCall, a: Any, b: Any, *args: Any) -> Any:
    """Distances between the rows of two matrices: a sum over columns."""
    rows, columns = call.tensor(a.axes[-2:]), call.tensor(b.axes[-2:])
    return [*_leading(call, a, b), *call.contract(rows, "ik", columns, "jk", "ij")]


@rule("aten._pdist_forward")
def distances_of_pairs(call: AxisCall, x: Any, *args: Any) -> Any:
    """Distances between all pairs of rows, one after the other."""
    call.fix(x.axes[0])
    call.witness(x.axes[1:])
    return call.fixed(call.shape)


@rule("aten._linalg_eigh")
def eigenvalues(call: AxisCall, a: Any, *args: Any, **kwargs: Any) -> Any:
    """Eigenvalues come in order of size, whatever the order of rows and columns."""
    if any(user.args[1] for user in call.node.users):
        raise call.unsupported("eigenvectors")
    batch = list(a.axes[:-2])
    call.witness([*batch, call.merge(a.axes[-2], a.axes[-1])])
    return [[*batch, call.fresh(a.shape[-1], fixed=True)], call.fixed(call.shapes[1])]


@rule("aten._linalg_svd")
def singular_values(call: AxisCall, a: Any, *args: Any, **kwargs: Any) -> Any:
    """Singular values come in order of size, whatever the order of rows and of columns."""
    if any(user.args[1] != 1 for user in call.node.users):
        raise call.unsupported("singular vectors")
    batch = list(a.axes[:-2])
    for axis in a.axes[-2:]:
        call.witness([*batch, axis])
    return [
        call.fixed(call.shapes[0]),
        [*batch, call.fresh(call.shapes[1][-1], fixed=True)],
        call.fixed(call.shapes[2]),
    ]
