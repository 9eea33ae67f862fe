"""Layers that are used inside perceptrons."""

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.wild.catalog import layer, net, network
from pyro_align.axes import Atom

DEGREES = [Atom("a", 3), Atom("b", 3)]

network(
    "bilinear",
    "torch.nn.Bilinear between two encoders",
    layer("f", "h", None)
    | layer("g", "k", None)
    | {"m.weight": ("o", "h", "k"), "m.bias": ("o",), "out.weight": (None, "o")},
    lambda: net(
        lambda s, x, y: s.out(torch.tanh(s.m(torch.relu(s.f(x)), torch.relu(s.g(y))))),
        f=nn.Linear(3, 4),
        g=nn.Linear(2, 5),
        m=nn.Bilinear(4, 5, 3),
        out=nn.Linear(3, 2),
    ),
    (6, 3),
    (6, 2),
)
network(
    "low_rank",
    "a matrix as a product of two",
    {"u": ("h", "r"), "v": ("r", None), "out.weight": (None, "h")},
    lambda: net(lambda s, x: s.out(F.linear(x, torch.mm(s.u, s.v)).relu()), u=(4, 2), v=(2, 3), out=nn.Linear(4, 2)),
    (6, 3),
)
network(
    "lora",
    "Hu et al. 2021: a low-rank update beside the weight",
    layer("lin", "h", None) | {"a": ("r", None), "b": ("h", "r"), "out.weight": (None, "h")},
    lambda: net(
        lambda s, x: s.out(torch.relu(s.lin(x) + 2.0 * (x @ s.a.mT) @ s.b.mT)),
        lin=nn.Linear(3, 4),
        a=(2, 3),
        b=(4, 2),
        out=nn.Linear(4, 2),
    ),
    (6, 3),
)
network(
    "hypernetwork",
    "Ha et al. 2016: the last layer makes the weights of a perceptron",
    layer("z", "k", None) | {"w.weight": ([("h", 3), "h", (2, "h")], "k"), "w.bias": ([("h", 3), "h", (2, "h")],)},
    lambda: net(
        lambda s, c, x: (lambda w1, b1, w2: torch.tanh(x @ w1.view(4, 3).T + b1) @ w2.view(2, 4).T)(
            *s.w(torch.relu(s.z(c))).split([12, 4, 8])
        ),
        z=nn.Linear(2, 5),
        w=nn.Linear(5, 24),
    ),
    (2,),
    (6, 3),
)
network(
    "kan",
    "Kolmogorov-Arnold network, splines as sums of fixed bumps",
    {"c1": ("h", None, None), "c2": (None, "h", None)},
    lambda: net(
        lambda s, x: (lambda f: f(f(x, s.c1), s.c2))(
            lambda x, c: torch.einsum("big,oig->bo", torch.exp(-((x[..., None] - torch.linspace(-1, 1, 5)) ** 2)), c)
        ),
        c1=(4, 3, 5),
        c2=(2, 4, 5),
    ),
    (6, 3),
)
network(
    "kan_loops",
    "Kolmogorov-Arnold network in loops over edges",
    {"a": ("h", None), "b": ("h", None), "c": ("h",)},
    lambda: net(
        lambda s, x: sum(
            s.c[h] * torch.tanh(sum(s.a[h, i] * torch.sin(s.b[h, i] * x[:, i]) for i in range(2))) for h in range(3)
        ),
        a=(3, 2),
        b=(3, 2),
        c=3,
    ),
    (6, 2),
)
network(
    "rbf_cdist",
    "radial basis functions by cdist",
    {"c": ("h", None), "s": ("h",), "out.weight": (None, "h")},
    lambda: net(
        lambda s, x: s.out(torch.exp(-torch.cdist(x, s.c) * s.s.exp())), c=(4, 3), s=4, out=nn.Linear(4, 2, bias=False)
    ),
    (6, 3),
)
network(
    "rbf_expanded",
    "radial basis functions, distances by broadcasting and a norm",
    {"c": ("h", None), "w": ("h", None)},
    lambda: net(
        lambda s, x: torch.softmax(-torch.linalg.vector_norm(x[:, None] - s.c, dim=-1), -1) @ s.w, c=(4, 3), w=(4, 2)
    ),
    (6, 3),
)
network(
    "radial_network_cosine",
    "cosine classifier over hidden units (Gidaris and Komodakis 2018)",
    layer("f", "h", None) | {"w": (None, "h")},
    lambda: net(
        lambda s, x: 5 * F.cosine_similarity(torch.tanh(s.f(x))[:, None], s.w, dim=-1), f=nn.Linear(3, 4), w=(2, 4)
    ),
    (6, 3),
)
network(
    "product_units",
    "product units: exponents by logarithms (Durbin and Rumelhart 1989)",
    {"w": ("h", None), "v": (None, "h")},
    lambda: net(lambda s, x: torch.exp(F.linear(torch.log(x.abs() + 1), s.w)).matmul(s.v.t()), w=(4, 3), v=(2, 4)),
    (6, 3),
)
network(
    "prod_reduction",
    "multiplicative units by prod",
    {"w": ("h", None), "b": ("h", None), "v": ("h",)},
    lambda: net(lambda s, x: torch.inner(torch.tanh(x[:, None] * s.w + s.b).prod(-1), s.v), w=(4, 3), b=(4, 3), v=4),
    (6, 3),
)
network(
    "mixture_density",
    "Bishop 1994: the outputs are a mixture whose log density is returned",
    layer("f", "h", None) | {"out.weight": ((3, "k"), "h"), "out.bias": ((3, "k"),)},
    lambda: net(
        lambda s, x, y: (lambda w, m, t: torch.logsumexp(w.log_softmax(-1) - t - 0.5 * ((y - m) / t.exp()) ** 2, -1))(
            *s.out(torch.tanh(s.f(x))).chunk(3, -1)
        ),
        f=nn.Linear(3, 4),
        out=nn.Linear(4, 9),
    ),
    (6, 3),
    (6, 1),
)
network(
    "made",
    "Germain et al. 2015: units of one degree are interchangeable",
    {"w1": (DEGREES, None), "b1": (DEGREES,), "w2": (None, DEGREES)},
    lambda: net(
        lambda s, x: torch.relu(x @ (s.w1 * s.m1).T + s.b1) @ (s.w2 * s.m2).T,
        w1=(6, 3),
        b1=6,
        w2=(3, 6),
        m1=(torch.tensor([1, 1, 1, 2, 2, 2])[:, None] >= torch.tensor([1, 2, 3])).to(torch.get_default_dtype()),
        m2=(torch.tensor([1, 2, 3])[:, None] > torch.tensor([1, 1, 1, 2, 2, 2])).to(torch.get_default_dtype()),
    ),
    (6, 3),
)
network(
    "made_degrees_in_turn",
    "Germain et al. 2015, degrees in turn as in published code: 1 2 1 2 1 2",
    {},
    lambda: net(
        lambda s, x: torch.relu(x @ (s.w1 * s.m1).T + s.b1) @ (s.w2 * s.m2).T,
        w1=(6, 3),
        b1=6,
        w2=(3, 6),
        m1=(torch.tensor([1, 2, 1, 2, 1, 2])[:, None] >= torch.tensor([1, 2, 3])).to(torch.get_default_dtype()),
        m2=(torch.tensor([1, 2, 3])[:, None] > torch.tensor([1, 2, 1, 2, 1, 2])).to(torch.get_default_dtype()),
    ),
    (6, 3),
    moves=[
        (
            3,
            lambda v, o, first=first: (lambda i: {"w1": v["w1"][i], "b1": v["b1"][i], "w2": v["w2"][:, i]})(
                [first + 2 * o[j // 2] if j % 2 == first else j for j in range(6)]
            ),
        )
        for first in (0, 1)
    ],
)
