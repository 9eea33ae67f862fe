"""Functions of matrices that follow, or ignore, a joint relabelling of rows and columns."""

from __future__ import annotations

from pyro_align.discovery.rules import rule


@rule("aten.linalg_inv_ex")
def inverse(call, a, **kwargs):
    """``(P A Q^T)^-1 = Q A^-1 P^T``."""
    batch = a.axes[:-2]
    for axis in a.axes[-2:]:  # neither axis may be relabelled anew for each index of the other
        call.witness([*batch, axis])
    return [[*batch, a.axes[-1], a.axes[-2]], list(batch)]


@rule("aten.trace")
def trace(call, a):
    """Invariant under a joint relabelling."""
    call.merge(a.axes[0], a.axes[1])
    return []
