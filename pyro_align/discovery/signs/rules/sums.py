"""Reductions, sums of products, and sums over positions."""

from __future__ import annotations

from pyro_align.discovery.rules.contraction import ADDED_PRODUCTS
from pyro_align.discovery.rules.elementwise import axes_of
from pyro_align.discovery.signs.call import SignTensor
from pyro_align.discovery.signs.registry import sign_rule


@sign_rule("aten.sum", "aten.mean", "aten.nansum")
def total(call, x, dim=None, keepdim=False, **kwargs):
    """Sums: what is added changes sign together."""
    return call.alike(x, axes_of(dim, x.ndim), keepdim=keepdim)


@sign_rule("aten.cumsum")
def running_sum(call, x, dim, **kwargs):
    """Sums so far."""
    return call.expand(call.alike(x, [dim], keepdim=True)) if x.ndim else x


@sign_rule("aten.prod")
def product(call, x, dim=None, keepdim=False, **kwargs):
    """Products: parities add."""
    return call.multiply_along(x, axes_of(dim, x.ndim), keepdim=keepdim)


@sign_rule("aten.linalg_vector_norm", "aten.norm", "aten.count_nonzero", "aten.any", "aten.all")
def norm(call, x, *args, **kwargs):
    """A function of absolute values."""
    return call.even()


@sign_rule("aten.var", "aten.std")
def spread(call, x, *args, **kwargs):
    """Entries around their mean, squared: they change sign together."""
    call.alike(x, _dims(call, x, args, kwargs), keepdim=True)
    return call.even()


@sign_rule("aten.var_mean", "aten.std_mean")
def spread_and_mean(call, x, *args, **kwargs):
    """The same, and the mean."""
    mean = call.alike(x, _dims(call, x, args, kwargs), keepdim=True)
    ids = mean.ids.reshape(call.shapes[1])
    return [call.even(), SignTensor(ids)]


def _dims(call, x, args, kwargs):
    dim = kwargs.get("dim", args[0] if args else None)
    if isinstance(dim, bool):  # `var(x, unbiased)`
        dim = None
    return axes_of(dim, x.ndim)


@sign_rule("aten.mm")
def mm(call, a, b, **kwargs):
    """Matrix times matrix."""
    return call.contract(a, "ik", b, "kj", "ij")


@sign_rule("aten.mv")
def mv(call, a, b):
    """Matrix times vector."""
    return call.contract(a, "ik", b, "k", "i")


@sign_rule("aten.dot", "aten.vdot")
def dot(call, a, b):
    """Inner product."""
    return call.contract(a, "k", b, "k", "")


@sign_rule("aten.bmm")
def bmm(call, a, b, **kwargs):
    """Batched matrix product."""
    return call.contract(a, "bik", b, "bkj", "bij")


@sign_rule("aten.ger", "aten.outer")
def outer(call, a, b):
    """Outer product."""
    return call.contract(a, "i", b, "j", "ij")


@sign_rule("aten.addmm", "aten.addmv", "aten.baddbmm", "aten.addr", "aten.addbmm")
def add_product(call, c, a, b, **kwargs):
    """A product plus a broadcast term."""
    left, right, out = ADDED_PRODUCTS[call.node.target._opname]
    return call.add(call.contract(a, left, b, right, out), c)


@sign_rule("aten.linear")
def linear(call, x, weight, bias=None):
    """``x @ weight.T + bias``."""
    lead = "abcdefgh"[: x.ndim - 1]
    out = call.contract(x, lead + "k", weight, "jk"[-weight.ndim :], lead + ("j" if weight.ndim == 2 else ""))
    return out if bias is None else call.add(out, bias)


@sign_rule("aten.convolution")
def convolution(call, x, weight, bias, stride, padding, dilation, transposed, output_padding, groups):
    """Input ``(batch, groups x in, *space)``, weight ``(groups x out, in, *kernel)``; transposed swaps in and out."""
    if x.ndim != weight.ndim:
        raise call.unsupported("unbatched")
    x = call.alike(x, range(2, x.ndim))  # every output adds up some positions, or none
    weight = call.alike(weight, range(2, weight.ndim))
    left = SignTensor(x.ids.reshape(x.shape[0], groups, x.shape[1] // groups))
    right = SignTensor(weight.ids.reshape(groups, weight.shape[0] // groups, weight.shape[1]))
    out = call.contract(left, "bgc", right, "gco" if transposed else "goc", "bgo")
    out = SignTensor(out.ids.reshape(out.shape[0], -1))
    if bias is not None:
        out = call.add(out, bias)
    return call.expand(SignTensor(out.ids[(..., *[None] * (len(call.shape) - 2))]))


@sign_rule(
    *(f"aten.{name}{d}d" for d in (1, 2, 3) for name in ("avg_pool", "upsample_nearest")),
    "aten._adaptive_avg_pool2d",
    "aten._adaptive_avg_pool3d",
    "aten._upsample_nearest_exact2d",
    "aten._upsample_bilinear2d_aa",
    "aten.upsample_linear1d",
    "aten.upsample_bilinear2d",
    "aten.upsample_bicubic2d",
    "aten.upsample_trilinear3d",
)
def over_positions(call, x, *args, **kwargs):
    """Weighted sums over positions."""
    space = next(int(d) for d in "123" if f"{d}d" in call.node.target._opname)
    return call.expand(call.alike(x, range(x.ndim - space, x.ndim), keepdim=True))


@sign_rule("aten.trace")
def trace(call, x):
    """The sum of the diagonal."""
    return call.alike(SignTensor(x.ids.diagonal()), [0])
