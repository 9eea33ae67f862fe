"""Sum-product contraction in log space that ``torch.func`` can transform, unlike Pyro's own.

As an ``opt_einsum`` backend this module offers ``einsum``, ``tensordot`` and ``transpose``.
"""

from __future__ import annotations

from pyro.ops.contract import contract_to_tensor
from pyro.ops.einsum.util import Tensordot
from pyro.ops.rings import LogRing
from torch import Tensor


def transpose(a: Tensor, axes) -> Tensor:
    """The array with its axes reordered."""
    return a.permute(tuple(axes))


def einsum(equation: str, *operands: Tensor) -> Tensor:
    """Log-sum-exp over the symbols that the output lacks, of the broadcast sum of the operands."""
    inputs, output = equation.split("->")
    inputs = inputs.split(",")
    summed = "".join(dict.fromkeys(s for dims in inputs for s in dims if s not in output))
    layout = summed + output
    total = sum(_laid_out(a, dims, layout) for a, dims in zip(operands, inputs, strict=True))
    return total.logsumexp(tuple(range(len(summed)))) if summed else total


tensordot = Tensordot(einsum)


def _laid_out(a: Tensor, dims: str, layout: str) -> Tensor:
    present = [s for s in layout if s in dims]
    sizes = dict(zip(dims, a.shape, strict=True))
    return a.permute([dims.index(s) for s in present]).reshape([sizes.get(s, 1) for s in layout])


class _Ring(LogRing):
    _backend = __name__


def contract_logs(factors, summed: set) -> Tensor:
    """Contracts log factors, grouped by plates as Pyro's ``contract_to_tensor`` wants them, to a scalar."""
    return contract_to_tensor(factors, summed, ring=_Ring(cache={}))
