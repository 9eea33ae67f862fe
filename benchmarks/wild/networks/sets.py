"""Networks on sets, point clouds and functions."""

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.wild.catalog import layer, net, network
from benchmarks.wild.networks.graphs import NODES, N, adjacency

network(
    "deep_sets",
    "Zaheer et al. 2017",
    layer("a", "h", None) | layer("b", "d", "h") | layer("c", "k", "d") | {"out.weight": (None, "k")},
    lambda: net(
        lambda s, x: s.out(F.elu(s.c(s.b(F.elu(s.a(x))).sum(-2)))),
        a=nn.Linear(3, 4),
        b=nn.Linear(4, 5),
        c=nn.Linear(5, 3),
        out=nn.Linear(3, 1),
    ),
    NODES,
)
network(
    "point_net",
    "Qi et al. 2017: a learned transform of features, maximum over points",
    layer("t", "k", None)
    | {"m.weight": (("h", "h"), "k"), "m.bias": (("h", "h"),)}
    | layer("a", "h", None)
    | layer("b", "d", "h")
    | {"out.weight": (None, "d")},
    lambda: net(
        lambda s, x: (lambda m: s.out(F.relu(s.b(torch.bmm(F.relu(s.a(x)), m))).max(1)[0]))(
            s.m(F.relu(s.t(x)).max(1)[0]).view(-1, 4, 4) + torch.eye(4)
        ),
        t=nn.Linear(3, 5),
        m=nn.Linear(5, 16),
        a=nn.Linear(3, 4),
        b=nn.Linear(4, 3),
        out=nn.Linear(3, 2),
    ),
    (2, N, 3),
    sizes={"h": 4},
)
network(
    "gated_attention_pooling",
    "Ilse et al. 2018: multiple instances",
    layer("h", "h", None) | layer("v", "k", "h") | layer("u", "k", "h") | {"w": ("k",), "out.weight": (None, "h")},
    lambda: net(
        lambda s, x: (
            lambda h: s.out((h.T * torch.softmax((torch.tanh(s.v(h)) * s.u(h).sigmoid()).mv(s.w), 0)).sum(1))
        )(F.relu(s.h(x))),
        h=nn.Linear(3, 4),
        v=nn.Linear(4, 3),
        u=nn.Linear(4, 3),
        w=3,
        out=nn.Linear(4, 1),
    ),
    NODES,
)
network(
    "differentiable_pooling",
    "DiffPool (Ying et al. 2018): clusters are interchangeable",
    layer("a", "h", None)
    | {"s.weight": ("c", "h"), "s.bias": ("c",), "b.weight": ("d", "h"), "b.bias": ("d",), "out.weight": (None, "d")},
    lambda: net(
        lambda s, x: (
            lambda h: (lambda p: s.out(F.relu(s.b((p.T @ adjacency() @ p) @ (p.T @ h))).sum(0)))(s.s(h).softmax(-1))
        )(F.relu(s.a(x))),
        a=nn.Linear(3, 4),
        s=nn.Linear(4, 3),
        b=nn.Linear(4, 5),
        out=nn.Linear(5, 2),
    ),
    NODES,
)
network(
    "deep_o_net",
    "Lu et al. 2021: branch and trunk meet in an inner product",
    layer("b1", "h", None) | layer("b2", "p", "h") | layer("t1", "k", None) | layer("t2", "p", "k"),
    lambda: net(
        lambda s, u, y: torch.inner(s.b2(torch.tanh(s.b1(u))), torch.tanh(s.t2(torch.tanh(s.t1(y))))),
        b1=nn.Linear(3, 4),
        b2=nn.Linear(4, 5),
        t1=nn.Linear(2, 3),
        t2=nn.Linear(3, 5),
    ),
    (4, 3),
    (6, 2),
)
network(
    "fourier_neural_operator",
    "Li et al. 2021: mixing of a few modes, real and imaginary parts as parameters",
    layer("lift", "c", None)
    | {
        "re": ("c", "d", None),
        "im": ("c", "d", None),
        "skip.weight": ("d", "c"),
        "skip.bias": ("d",),
        "out.weight": (None, "d"),
    },
    lambda: net(
        lambda s, x: (
            lambda h: s.out(
                F.gelu(
                    torch.fft.irfft(
                        torch.einsum("bkc,cdk->bkd", torch.fft.rfft(h, dim=1)[:, :3], torch.complex(s.re, s.im)),
                        n=6,
                        dim=1,
                    )
                    + s.skip(h)
                )
            )
        )(s.lift(x)),
        lift=nn.Linear(2, 3),
        re=(3, 4, 3),
        im=(3, 4, 3),
        skip=nn.Linear(3, 4),
        out=nn.Linear(4, 1),
    ),
    (2, 6, 2),
)
