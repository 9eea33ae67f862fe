"""Random calls of every operation that has a discovery rule, one sampler a rule or a family of rules.

A sampler takes a :class:`Draw` and the operation's name and returns a :class:`Case`. Sizes are small, often one, often
equal, and often divide each other: that is where a rule that matches axes by their sizes goes wrong.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

SIZES = (1, 2, 2, 3, 3, 4)
SAMPLERS: dict[str, Callable] = {}
aten = torch.ops.aten


@dataclass
class Case:
    """One call: the operator, its arguments, and which tensors among them are constants."""

    operation: Any
    args: tuple
    kwargs: dict = field(default_factory=dict)
    constants: tuple = ()
    outputs: tuple | None = None
    checked: bool = True  # False where the values are whatever lay in memory

    def __str__(self):
        shown = [tuple(a.shape) if isinstance(a, torch.Tensor) else a for a in self.args]
        return f"{self.operation}({shown}, {self.kwargs}), constants {self.constants}"


def sampler(*names: str):
    def register(function):
        for name in names:
            assert name not in SAMPLERS, name
            SAMPLERS[name] = function
        return function

    return register


class Draw(random.Random):
    """Random shapes, axes and tensors."""

    def __init__(self, seed):
        super().__init__(seed)
        self.generator = torch.Generator().manual_seed(self.randrange(2**31))

    def size(self):
        return self.choice(SIZES)

    def shape(self, low=1, high=3):
        return [self.size() for _ in range(self.randint(low, high))]

    def tensor(self, *shape):
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def any(self, low=1, high=3):
        return self.tensor(*self.shape(low, high))

    def dim(self, ndim):
        """An axis, counted from either end."""
        return self.randrange(-ndim, ndim) if ndim else self.choice((0, -1))

    def dims(self, ndim):
        """Some axes."""
        some = self.sample(range(ndim), self.randint(1, ndim)) if ndim else []
        return [d - ndim if self.flip() else d for d in some]

    def flip(self):
        return self.random() < 0.5

    def stretched(self, shape):
        """A tensor that broadcasts to a shape."""
        kept = shape[self.randint(0, len(shape)) :]
        return self.tensor(*(1 if self.random() < 0.25 else n for n in kept))

    def index(self, size, *shape):
        """Random places along an axis."""
        return torch.randint(size, shape, generator=self.generator)


def overload(name, *which):
    """`aten.sum` and "dim_IntList" -> the operator; the default overload where none is named."""
    space, packet, *rest = name.split(".")
    return getattr(getattr(getattr(torch.ops, space), packet), (rest or which or ["default"])[0])


# -- sums of products --------------------------------------------------------------------------------------------------


@sampler("aten.mm", "aten.mv", "aten.dot", "aten.vdot", "aten.bmm", "aten.ger", "aten.outer")
def products(r, name):
    i, j, k, b = (r.size() for _ in range(4))
    shapes = {
        "mm": ((i, k), (k, j)),
        "mv": ((i, k), (k,)),
        "dot": ((k,), (k,)),
        "vdot": ((k,), (k,)),
        "bmm": ((b, i, k), (b, k, j)),
        "ger": ((i,), (j,)),
        "outer": ((i,), (j,)),
    }[name.split(".")[1]]
    left, right = (r.tensor(*s) for s in shapes)
    same = shapes[0] == shapes[1] and r.flip()
    return Case(overload(name), (left, left if same else right))


@sampler("aten.addmm", "aten.addmv", "aten.baddbmm", "aten.addr", "aten.addbmm", "aten._sparse_addmm")
def sums_and_products(r, name):
    i, j, k, b = (r.size() for _ in range(4))
    out, left, right = {
        "addmm": ((i, j), (i, k), (k, j)),
        "_sparse_addmm": ((i, j), (i, k), (k, j)),
        "addmv": ((i,), (i, k), (k,)),
        "baddbmm": ((b, i, j), (b, i, k), (b, k, j)),
        "addr": ((i, j), (i,), (j,)),
        "addbmm": ((i, j), (b, i, k), (b, k, j)),
    }[name.split(".")[1]]
    scales = {"beta": 0.5, "alpha": 2.0} if r.flip() else {}
    return Case(overload(name), (r.stretched(out), r.tensor(*left), r.tensor(*right)), scales)


@sampler("aten.linear")
def linear(r, name):
    lead, n, m = r.shape(0, 2), r.size(), r.size()
    bias = r.tensor(m) if r.flip() else None
    return Case(overload(name), (r.tensor(*lead, n), r.tensor(m, n), bias))


# -- elementwise -------------------------------------------------------------------------------------------------------


@sampler("family.pointwise")
def pointwise(r, name):
    shape = r.shape(0, 3)
    x = r.tensor(*shape)
    y = x if r.random() < 0.2 else r.stretched(shape)
    args = [
        (aten.exp.default, (x,)),
        (aten.add.Tensor, (x, y)),
        (aten.mul.Tensor, (y, x)),
        (aten.pow.Tensor_Scalar, (x, 2)),
        (aten.where.self, (r.stretched(shape) > 0, x, y)),
        (aten.clamp.Tensor, (x, r.stretched(shape), None)),
        (aten.addcmul.default, (x, y, r.stretched(shape))),
    ]
    constants = (0,) if r.random() < 0.3 else ()
    return Case(*r.choice(args), constants=constants)


@sampler(
    "aten.clone",
    "aten.alias",
    "aten.detach",
    "aten.lift_fresh_copy",
    "aten.lift_fresh",
    "aten.contiguous",
    "aten._conj",
    "aten._neg_view",
    "aten._to_copy",
    "aten.to",
    "aten.view.dtype",
    "prims.convert_element_type",
    "prims.device_put",
)
def unchanged(r, name):
    x = (r.any(0) * (1 + 2j)) if name == "aten._conj" else r.any(0)
    rest = {
        "aten._to_copy": ((), {"dtype": torch.float32}),
        "aten.to": ((torch.float32,), {}),
        "aten.view.dtype": ((r.choice((torch.int64, torch.int32)) if x.ndim else torch.int64,), {}),
        "prims.convert_element_type": ((torch.float32,), {}),
        "prims.device_put": ((torch.device("cpu"),), {}),
    }
    args, kwargs = rest.get(name, ((), {}))
    return Case(overload(name, "dtype") if name == "aten.to" else overload(name), (x, *args), kwargs)


@sampler("aten.copy")
def copy(r, name):
    shape = r.shape(0)
    return Case(overload(name), (r.tensor(*shape), r.stretched(shape)))


@sampler(
    "aten.zeros_like",
    "aten.ones_like",
    "aten.full_like",
    "aten.empty_like",
    "aten.fill",
    "aten.zero",
    "aten.new_zeros",
    "aten.new_ones",
    "aten.new_full",
    "aten.new_empty",
    "aten.new_empty_strided",
)
def constant_like(r, name):
    x, short = r.any(0), name.split(".")[1]
    args = {"full_like": (2.0,), "new_full": (r.shape(), 2.0), "new_empty_strided": ([2, 3], [3, 1])}.get(short)
    if args is None:
        args = (r.shape(),) if short.startswith("new") else ()
    if short == "fill":
        tensor = r.flip()
        return Case(overload(name, "Tensor" if tensor else "Scalar"), (x, r.tensor() if tensor else 2.0))
    return Case(overload(name), (x, *args), checked="empty" not in short)


# -- reductions and what runs along an axis ----------------------------------------------------------------------------


@sampler("aten.sum", "aten.mean", "aten.amax", "aten.amin", "aten.logsumexp", "aten.nansum", "aten.linalg_vector_norm")
def reductions(r, name):
    x, short = r.any(0), name.split(".")[1]
    if short in ("sum", "mean") and r.random() < 0.3:
        return Case(overload(name), (x,))
    which = {"sum": "dim_IntList", "mean": "dim"}.get(short, "default")
    dims = r.dims(x.ndim) if short == "logsumexp" or r.random() < 0.8 else [] if short[0] == "a" else None
    order = (r.choice((1, 2, 3.0, float("inf"))),) if "norm" in short else ()
    return Case(overload(name, which), (x, *order, dims, r.flip()))


@sampler("aten.any", "aten.all", "aten.prod", "aten.count_nonzero")
def reductions_of_one(r, name):
    x, short = r.any(0).round(), name.split(".")[1]
    if short in ("any", "all"):
        x = x > 0
    if r.random() < 0.3:
        return Case(overload(name), (x,))
    if short == "count_nonzero":
        return Case(overload(name, "dim_IntList"), (x, r.dims(x.ndim)))
    if short == "prod":
        return Case(overload(name, "dim_int"), (x, r.dim(x.ndim), r.flip()))
    several = r.flip()
    return Case(overload(name, "dims" if several else "dim"), (x, (r.dims if several else r.dim)(x.ndim), r.flip()))


@sampler(
    "aten.max.default",
    "aten.min.default",
    "aten.median.default",
    "aten.var.default",
    "aten.std.default",
    "aten.norm.Scalar",
    "aten.var_mean.default",
    "aten.std_mean.default",
)
def reductions_of_all(r, name):
    x, unbiased = r.any(0), () if name[5] == "m" or "norm" in name else (False,)
    return Case(overload(name), (x, *unbiased))


@sampler("aten.aminmax", "aten.norm.ScalarOpt_dim")
def ranges_and_norms(r, name):
    x = r.any(0)
    if "norm" in name:
        return Case(overload(name), (x, r.choice((1, 2, None)), r.dims(x.ndim), r.flip()))
    return Case(overload(name), (x,), {"dim": r.dim(x.ndim), "keepdim": r.flip()} if r.flip() else {})


@sampler(
    "aten.var.correction",
    "aten.std.correction",
    "aten.var_mean.correction",
    "aten.std_mean.correction",
    "aten.var.dim",
    "aten.std.dim",
)
def spreads(r, name):
    x = r.any(1)
    dims = r.dims(x.ndim) if r.random() < 0.8 else None
    several = math.prod(x.shape if dims is None else [x.shape[d] for d in dims]) > 1
    if name.endswith("dim"):
        return Case(overload(name), (x, dims, several and r.flip(), r.flip()))
    return Case(overload(name), (x, dims), {"correction": r.choice((0, 1)) if several else 0, "keepdim": r.flip()})


@sampler("aten.max.dim", "aten.min.dim", "aten.median.dim", "aten.nanmedian.dim", "aten.kthvalue")
def extrema(r, name):
    x = r.any(0)
    dim = r.dim(x.ndim)
    which = (r.randint(1, x.shape[dim] if x.ndim else 1),) if "kth" in name else ()
    return Case(overload(name), (x, *which, dim, r.flip()), outputs=r.choice(((0,), (1,), (0, 1))))


@sampler("aten._softmax", "aten._log_softmax", "aten._safe_softmax")
def softmaxes(r, name):
    x = r.any(0)
    return Case(overload(name), (x, r.dim(x.ndim), *(() if "safe" in name else (False,))))


@sampler("aten.cumsum", "aten.cumprod", "aten.logcumsumexp", "aten.cummax", "aten.cummin", "aten.flip", "aten.roll")
def along(r, name):
    x, short = r.any(0), name.split(".")[1]
    if short == "flip":
        return Case(overload(name), (x, r.dims(x.ndim)))
    if short == "roll":
        dims = r.dims(x.ndim) if x.ndim and r.flip() else []
        return Case(overload(name), (x, [r.randint(-2, 2) for _ in dims or [0]], dims))
    return Case(overload(name), (x, r.dim(x.ndim)))


@sampler("aten._fft_c2c", "aten._fft_r2c", "aten._fft_c2r")
def fourier(r, name):
    x = r.any(1)
    dims = sorted({d % x.ndim for d in r.dims(x.ndim)})
    if "r2c" in name:
        return Case(overload(name), (x, dims, 0, r.flip()))
    z = torch.complex(x, r.tensor(*x.shape))
    last = (max(1, 2 * x.shape[dims[-1]] - r.choice((1, 2))),)  # what a real signal's half has room for
    return Case(overload(name), (z, dims, 0, *(last if "c2r" in name else (r.flip(),))))


@sampler("aten.complex", "aten.polar")
def complex_numbers(r, name):
    shape = r.shape(0)
    return Case(overload(name), (r.tensor(*shape).abs(), r.stretched(shape)))


@sampler("aten.view_as_real", "aten.view_as_real_copy")
def parts(r, name):
    x = r.any(0)
    return Case(overload(name), (torch.complex(x, r.tensor(*x.shape)),))


@sampler("aten.view_as_complex", "aten.view_as_complex_copy")
def pairs(r, name):
    return Case(overload(name), (r.tensor(*r.shape(0, 2), 2),))


@sampler("aten.bucketize.Tensor", "aten.searchsorted.Tensor")
def boundaries(r, name):
    x, bounds = r.any(0), r.tensor(r.size()).sort().values
    place = {"bucketize": 1, "searchsorted": 0}[name.split(".")[1]]
    args = (x, bounds) if place else (bounds, x)
    return Case(overload(name), args, {"right": r.flip()}, constants=(place,) if r.flip() else ())


# -- indexing ----------------------------------------------------------------------------------------------------------


@sampler("aten.index.Tensor", "aten._unsafe_index.Tensor")
def index(r, name):
    x = r.any(1)
    shape = r.shape(1, 2)
    used = [r.flip() for _ in range(x.ndim)]
    used[r.randrange(x.ndim)] = True
    together = r.flip()
    indices = []
    for i, is_used in enumerate(used):
        own = [1 if r.random() < 0.2 else n for n in shape] if together else shape[-1:]
        counts = sum(used) == 1 and r.random() < 0.3
        pick = torch.arange(x.shape[i]) if counts else r.index(x.shape[i], *own)
        indices.append(pick if is_used else None)
    places = tuple(range(1, 1 + sum(used)))
    return Case(overload(name), (x, indices), constants=places if r.random() < 0.7 else ())


@sampler("aten.index_select")
def index_select(r, name):
    x = r.any(1)
    dim = r.dim(x.ndim)
    places = torch.arange(x.shape[dim]) if r.random() < 0.3 else r.index(x.shape[dim], r.size())
    return Case(overload(name), (x, dim, places), constants=(1,) if r.flip() else ())


@sampler("aten.embedding")
def embedding(r, name):
    weight = r.any(2, 2)
    return Case(overload(name), (weight, r.index(len(weight), *r.shape(1, 2))), constants=(1,) if r.flip() else ())


@sampler("aten.gather")
def gather(r, name):
    x = r.any(1)
    dim = r.dim(x.ndim)
    shape = [n if r.flip() else r.randint(1, n) for n in x.shape]
    shape[dim] = r.size()
    if r.random() < 0.3:  # counts through the axis
        shape[dim] = x.shape[dim]
        around = [-1 if i == dim % x.ndim else 1 for i in range(x.ndim)]
        places = torch.arange(x.shape[dim]).reshape(around).expand(shape).clone()
    else:
        places = r.index(x.shape[dim], *shape)
    return Case(overload(name), (x, dim, places), constants=(1,) if r.flip() else ())


@sampler("aten.argsort", "aten.argmax", "aten.argmin")
def places_by_size(r, name):
    x = r.any(1)
    return Case(overload(name), (x, r.dim(x.ndim)))


@sampler("aten.sort", "aten.topk")
def order_statistics(r, name):
    x = r.any(1)
    dim = r.dim(x.ndim)
    outputs = r.choice(((0,), (0,), (0, 1)))
    if "sort" in name:
        if r.flip():
            return Case(overload(name, "stable"), (x,), {"stable": True, "dim": dim}, outputs=outputs)
        return Case(overload(name), (x, dim, r.flip()), outputs=outputs)
    return Case(overload(name), (x, r.randint(1, x.shape[dim]), dim, r.flip(), r.random() < 0.8), outputs=outputs)


@sampler("aten.scatter.src", "aten.scatter.value", "aten.scatter_add", "aten.scatter_reduce.two")
def scatters(r, name):
    x = r.any(1)
    dim = r.dim(x.ndim)
    shape = list(x.shape)
    shape[dim] = r.randint(1, x.shape[dim])
    order = torch.randperm(x.shape[dim], generator=r.generator)[: shape[dim]]  # every place once: writes have no order
    around = [-1 if i == dim % x.ndim else 1 for i in range(x.ndim)]
    index = order.reshape(around).expand(shape).clone()
    if "add" in name or "reduce" in name:
        index = r.index(x.shape[dim], *shape)
    source = 0.5 if "value" in name else r.tensor(*shape)
    rest = (r.choice(("sum", "prod", "amax")),) if "reduce" in name else ()
    return Case(overload(name), (x, dim, index, source, *rest), constants=(1,) if r.flip() else ())


@sampler("aten.index_reduce")
def index_reductions(r, name):
    x = r.any(1)
    dim, n = r.dim(x.ndim), r.size()
    shape = list(x.shape)
    shape[dim] = n
    return Case(overload(name), (x, dim, r.index(x.shape[dim], n), r.tensor(*shape), r.choice(("amax", "prod"))))


@sampler("aten.segment_reduce")
def segments(r, name):
    lengths = torch.tensor(r.shape(1, 3))
    x = r.tensor(int(lengths.sum()), *r.shape(0, 2))
    return Case(overload(name), (x, r.choice(("sum", "max"))), {"lengths": lengths, "axis": 0})


@sampler("aten._embedding_bag", "aten._embedding_bag_forward_only")
def bags(r, name):
    weight, n = r.any(2, 2), r.choice((2, 3, 4))
    offsets = torch.tensor([0, r.randrange(n)])
    given = (weight, r.index(len(weight), n), offsets, False, r.choice((0, 1, 2)))
    return Case(overload(name), given, constants=(1, 2) if r.flip() else (), outputs=(0,))


@sampler("aten.index_put", "aten._unsafe_index_put")
def index_puts(r, name):
    x = r.any(1)
    if r.random() < 0.3:
        mask = r.tensor(*x.shape[: r.randint(1, x.ndim)]) > 0
        return Case(overload(name), (x, [mask], r.tensor()), constants=(1,) if r.flip() else ())
    used = [r.flip() for _ in range(x.ndim)]
    used[r.randrange(x.ndim)] = True
    n = r.size()
    indices = [r.index(m, n) if is_used else None for m, is_used in zip(x.shape, used, strict=True)]
    places = [i for i, is_used in enumerate(used) if is_used]
    at = places[0] if places == list(range(places[0], places[-1] + 1)) else 0
    rest = [m for m, is_used in zip(x.shape, used, strict=True) if not is_used]
    values = r.stretched([*rest[:at], n, *rest[at:]])
    constants = tuple(range(1, 1 + len(places))) if r.flip() else ()
    return Case(overload(name), (x, indices, values, True), constants=constants)


@sampler("aten.tril", "aten.triu")
def triangles(r, name):
    return Case(overload(name), (r.any(2), r.randint(-1, 1)))


# -- matrices ----------------------------------------------------------------------------------------------------------


@sampler("aten.linalg_inv_ex", "aten.linalg_cholesky_ex")
def matrices(r, name):
    n, batch = r.size(), r.shape(0, 2)
    a = r.tensor(*batch, n, n)
    return Case(overload(name), (a @ a.mT + torch.eye(n) if "cholesky" in name else a + 3 * torch.eye(n),))


@sampler("aten._linalg_eigh", "aten._linalg_svd")
def decompositions(r, name):
    n, batch = r.size(), r.shape(0, 2)
    a = r.tensor(*batch, n, n if "eigh" in name else r.size())
    value = 1 if "svd" in name else 0
    return Case(overload(name), (a + a.mT if "eigh" in name else a,), outputs=(value,))


@sampler("aten._cdist_forward")
def distances(r, name):
    batch, columns = r.shape(0, 2), r.size()
    a, b = (r.tensor(*batch, r.size(), columns) for _ in range(2))
    return Case(overload(name), (a, b, r.choice((1.0, 2.0)), None))


@sampler("aten._pdist_forward")
def distances_of_pairs(r, name):
    return Case(overload(name), (r.tensor(r.choice((2, 3, 4)), r.size()), r.choice((1.0, 2.0))))


@sampler("aten._trilinear")
def trilinear(r, name):
    """``nn.Bilinear``, and sums over fewer axes."""
    n, i, j, k = (r.size() for _ in range(4))
    factors = (r.tensor(n, i), r.tensor(k, i, j), r.tensor(n, j))
    return Case(overload(name), (*factors, [1, 3], [0], [1, 2], r.choice(([2, 3], [2], [3]))))


@sampler("aten._linalg_slogdet", "aten._linalg_det")
def determinants(r, name):
    n = r.size()
    outputs = (0,) if name.endswith("_det") else r.choice(((0, 1), (1,), (0,)))
    return Case(overload(name), (r.tensor(*r.shape(0, 2), n, n),), outputs=outputs)


@sampler("aten.linalg_solve_triangular")
def triangular_systems(r, name):
    n, k, left = r.size(), r.size(), r.flip()
    batch = r.shape(0, 2)
    a = (r.tensor(*batch, n, n) + 4 * torch.eye(n)).tril()
    lead = tuple(r.stretched(batch).shape) if r.flip() else tuple(batch)
    return Case(overload(name), (a, r.tensor(*lead, *((n, k) if left else (k, n)))), {"upper": False, "left": left})


@sampler("aten.linalg_matrix_exp")
def matrix_exponentials(r, name):
    n = r.size()
    return Case(overload(name), (r.tensor(*r.shape(0, 2), n, n) / 2,))


@sampler("aten.trace")
def trace(r, name):
    n = r.size()
    return Case(overload(name), (r.tensor(n, r.choice((n, r.size()))),))


# -- spatial -----------------------------------------------------------------------------------------------------------


@sampler("aten.convolution")
def convolution(r, name):
    space, transposed = r.randint(1, 3), r.flip()
    groups, n, m, batch = r.choice((1, 1, 2, 3)), r.choice((1, 2, 3)), r.choice((1, 2, 3)), r.choice((1, 2, 3))
    kernel = [r.choice((1, 2, 3)) for _ in range(space)]
    stride, padding, dilation = [r.choice((1, 2))] * space, [r.choice((0, 1))] * space, [1] * space
    x = r.tensor(batch, groups * n, *(r.choice((3, 4)) for _ in kernel))
    first, second = (groups * n, m) if transposed else (groups * m, n)
    bias = r.tensor(groups * m) if r.flip() else None
    weight = r.tensor(first, second, *kernel)
    return Case(overload(name), (x, weight, bias, stride, padding, dilation, transposed, [0] * space, groups))


def image(r, space, batched=None):
    lead = [r.size(), r.size()] if batched or (batched is None and r.flip()) else [r.size()]
    return r.tensor(*lead, *(r.choice((3, 4, 5)) for _ in range(space)))


@sampler("aten.avg_pool1d", "aten.avg_pool2d", "aten.avg_pool3d")
def averages(r, name):
    space = int(name[-2])
    return Case(overload(name), (image(r, space), [2] * space, [r.choice((1, 2))] * space))


@sampler("aten.max_pool2d_with_indices", "aten.max_pool3d_with_indices")
def maxima(r, name):
    space = int(name.split("pool")[1][0])
    return Case(overload(name), (image(r, space), [2] * space), outputs=r.choice(((0,), (0, 1))))


@sampler(
    "aten._adaptive_avg_pool2d", "aten._adaptive_avg_pool3d", "aten.adaptive_max_pool2d", "aten.adaptive_max_pool3d"
)
def adaptive(r, name):
    space = int(name[-2])
    return Case(overload(name), (image(r, space), [r.choice((1, 2)) for _ in range(space)]))


@sampler(
    "aten.upsample_nearest1d",
    "aten.upsample_linear1d",
    "aten.upsample_nearest2d",
    "aten.upsample_bilinear2d",
    "aten.upsample_bicubic2d",
    "aten._upsample_bilinear2d_aa",
    "aten._upsample_nearest_exact2d",
    "aten.upsample_nearest3d",
    "aten.upsample_trilinear3d",
)
def resampling(r, name):
    space = int(name[name.index("d", name.index("upsample") + 8) - 1]) if name[-1] == "d" else 2
    corners = (False,) if "linear" in name or "cubic" in name else ()
    return Case(overload(name), (image(r, space, True), [r.choice((2, 6)) for _ in range(space)], *corners))


@sampler(
    "aten.reflection_pad1d",
    "aten.replication_pad1d",
    "aten.reflection_pad2d",
    "aten.replication_pad2d",
    "aten.reflection_pad3d",
    "aten.replication_pad3d",
)
def borders(r, name):
    space = int(name[-2])
    return Case(overload(name), (image(r, space), [r.choice((0, 1, 2)) for _ in range(2 * space)]))


@sampler("aten.unfold", "aten.unfold_copy")
def windows(r, name):
    x = r.any(1)
    dim = r.dim(x.ndim)
    return Case(overload(name), (x, dim, r.randint(1, x.shape[dim]), r.choice((1, 2))))


@sampler("aten.max_unpool2d", "aten.max_unpool3d")
def unpooled(r, name):
    space = int(name[-2])
    x = r.tensor(*(r.size() for _ in range(r.randint(1, 2))), *([2 * r.choice((1, 2))] * space))
    pool = torch.nn.functional.max_pool2d if space == 2 else torch.nn.functional.max_pool3d
    values, places = pool(x, 2, return_indices=True)
    more = ([2] * 3, [0] * 3) if space == 3 else ()
    return Case(overload(name), (values, places, list(x.shape[-space:]), *more))


@sampler("aten.grid_sampler_2d", "aten.grid_sampler_3d")
def places_of_images(r, name):
    space, batch = int(name[-2]), r.size()
    x = r.tensor(batch, r.size(), *(r.choice((2, 3)) for _ in range(space)))
    grid = r.tensor(batch, *(r.size() for _ in range(space)), space)
    return Case(overload(name), (x, grid, 0, r.choice((0, 1)), r.flip()), constants=(1,) if r.flip() else ())


@sampler("aten.pixel_shuffle")
def pixel_shuffle(r, name):
    factor = r.choice((1, 2, 3))
    return Case(overload(name), (r.tensor(*r.shape(0, 1), r.size() * factor**2, r.size(), r.size()), factor))


# -- views -------------------------------------------------------------------------------------------------------------


@sampler(
    "aten.view.default",
    "aten._unsafe_view",
    "aten.reshape",
    "aten._reshape_alias",
    "aten.view_copy.default",
    "aten._reshape_copy",
)
def views(r, name):
    sizes = [r.choice((1, 2, 2, 3, 4, 6)) for _ in range(r.randint(1, 4))]
    left, shape = math.prod(sizes), []
    while left > 1 and len(shape) < 4:
        shape.append(r.choice([d for d in range(1, left + 1) if left % d == 0]))
        left //= shape[-1]
    shape.append(left)
    if "alias" in name:
        strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
        return Case(overload(name), (r.tensor(*sizes), shape, strides))
    return Case(overload(name), (r.tensor(*sizes), shape))


@sampler("aten.permute", "aten.permute_copy")
def permute(r, name):
    x = r.any(0)
    dims = r.sample(range(x.ndim), x.ndim)
    return Case(overload(name), (x, [d - x.ndim if r.flip() else d for d in dims]))


@sampler("aten.t", "aten.t_copy")
def transpose_of_two(r, name):
    return Case(overload(name), (r.any(0, 2),))


@sampler("aten.transpose.int", "aten.transpose_copy.int", "aten.swapaxes")
def transpose(r, name):
    x = r.any(0)
    return Case(overload(name), (x, r.dim(x.ndim), r.dim(x.ndim)))


@sampler("aten.unsqueeze", "aten.unsqueeze_copy")
def unsqueeze(r, name):
    x = r.any(0)
    return Case(overload(name), (x, r.dim(x.ndim + 1)))


@sampler("aten.squeeze", "aten.squeeze_copy")
def squeeze(r, name):
    x = r.any(0)
    which = r.choice(("default", "dim", "dims"))
    rest = {"default": (), "dim": (r.dim(x.ndim),), "dims": (r.dims(x.ndim),)}[which]
    return Case(overload(name, which), (x, *rest))


@sampler("aten.expand", "aten.expand_copy", "aten.broadcast_to")
def expand(r, name):
    shape = r.shape(1, 4)
    return Case(overload(name), (r.stretched(shape), shape))


@sampler("aten.repeat")
def repeat(r, name):
    x = r.any(0)
    return Case(overload(name), (x, [r.choice((1, 1, 2, 3)) for _ in range(x.ndim + r.randint(0, 2))]))


@sampler("aten.cat")
def cat(r, name):
    shape = r.shape()
    dim = r.dim(len(shape))
    pieces = []
    for _ in range(r.randint(1, 3)):
        own = list(shape)
        own[dim] = r.size()
        pieces.append(pieces[0] if pieces and r.random() < 0.2 else r.tensor(*own))
    return Case(overload(name), (pieces, dim))


@sampler("aten.stack")
def stack(r, name):
    shape = r.shape(0)
    pieces = [r.tensor(*shape) for _ in range(r.randint(1, 3))]
    return Case(overload(name), (pieces + pieces[:1] if r.flip() else pieces, r.dim(len(shape) + 1)))


def piece(r, n):
    start = r.randrange(n)
    return start, r.randint(start + 1, n)


@sampler("aten.slice.Tensor", "aten.slice_copy.Tensor")
def slices(r, name):
    x = r.tensor(*(r.choice((1, 2, 4, 6)) for _ in range(r.randint(1, 3))))
    dim = r.dim(x.ndim)
    start, end = piece(r, x.shape[dim])
    if r.random() < 0.3:
        start, end = None, 2**63 - 1
    elif r.random() < 0.3:
        start, end = start - x.shape[dim], end
    return Case(overload(name), (x, dim, start, end, r.choice((1, 1, 2, 3))))


@sampler("aten.diagonal_scatter")
def diagonal_scatter(r, name):
    x = r.any(2, 4)
    one, two = r.sample(range(x.ndim), 2)
    offset = r.choice((0, 0, 0, 1)) if x.shape[two] > 1 else 0
    return Case(overload(name), (x, r.tensor(*x.diagonal(offset, one, two).shape), offset, one, two - x.ndim))


@sampler("aten.slice_scatter")
def slice_scatter(r, name):
    if r.random() < 0.2:  # the diagonal of a square matrix laid out as one axis
        n = r.choice((2, 3))
        rows = r.size()
        return Case(overload(name), (r.tensor(rows, n * n), r.tensor(rows, n), 1, 0, n * n, n + 1))
    x = r.any(1)
    dim = r.dim(x.ndim)
    start, end = piece(r, x.shape[dim])
    shape = list(x.shape)
    shape[dim] = end - start
    return Case(overload(name), (x, r.tensor(*shape), dim, start, end))


@sampler("aten.select_scatter")
def select_scatter(r, name):
    x = r.any(1)
    dim = r.dim(x.ndim)
    shape = [n for i, n in enumerate(x.shape) if i != dim % x.ndim]
    return Case(overload(name), (x, r.tensor(*shape), dim, r.dim(x.shape[dim])))


@sampler("aten.select.int", "aten.select_copy.int")
def select(r, name):
    x = r.any(1)
    dim = r.dim(x.ndim)
    return Case(overload(name), (x, dim, r.dim(x.shape[dim])))


@sampler(
    "aten.split.Tensor",
    "aten.split_copy.Tensor",
    "aten.unsafe_split.Tensor",
    "aten.chunk",
    "aten.unsafe_chunk",
    "aten.split_with_sizes",
    "aten.split_with_sizes_copy",
    "aten.unsafe_split_with_sizes",
)
def splits(r, name):
    x = r.any(1)
    dim = r.dim(x.ndim)
    n = x.shape[dim]
    if "sizes" in name:
        first = r.randint(1, n)
        lengths = [first, n - first] if first < n else [n]
        return Case(overload(name), (x, lengths, dim))
    return Case(overload(name), (x, r.randint(1, n), dim))


@sampler("aten.unbind.int", "aten.unbind_copy.int")
def unbind(r, name):
    x = r.any(1)
    return Case(overload(name), (x, r.dim(x.ndim)))


@sampler("aten.diagonal", "aten.diagonal_copy")
def diagonal(r, name):
    x = r.any(2, 4)
    one, two = r.sample(range(x.ndim), 2)
    return Case(overload(name), (x, r.choice((0, 0, 0, 1)) if x.shape[two] > 1 else 0, one, two - x.ndim))


@sampler("aten.constant_pad_nd")
def pad(r, name):
    x = r.any(1)
    low = -1 if r.random() < 0.2 else 0
    around = [r.choice((low, 0, 1, 2)) for _ in range(2 * r.randint(1, x.ndim))]
    sizes = [x.shape[-1 - k] + around[2 * k] + around[2 * k + 1] for k in range(len(around) // 2)]
    return Case(overload(name), (x, around if min(sizes) > 0 else [0, 1], r.choice((0.0, 2.0))))
