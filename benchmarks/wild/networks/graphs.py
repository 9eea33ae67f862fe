"""Networks on graphs, sets and point clouds."""

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.wild.catalog import layer, net, network

N = 5  # nodes
SRC, DST = torch.tensor([0, 1, 2, 3, 4, 0, 2]), torch.tensor([1, 2, 3, 4, 0, 2, 4])
NODES = (N, 3)
TWO = layer("a", "h", None) | {"b.weight": (None, "h")}


def adjacency(dtype=None):
    dense = torch.eye(N)
    dense[DST, SRC] = 1.0
    return dense / dense.sum(1, keepdim=True)


def sparse():
    return adjacency().to_sparse_coo().coalesce()


def two_layers(convolve, width=4):
    """A convolution from three features to a width, and one to two outputs."""
    return lambda: net(convolve, a=nn.Linear(3, width), b=nn.Linear(width, 2))


network(
    "gcn_dense",
    "Kipf and Welling 2017, dense adjacency",
    TWO,
    two_layers(lambda s, x: adjacency() @ s.b(F.relu(adjacency() @ s.a(x)))),
    NODES,
)
network(
    "gcn_sparse_mm",
    "Kipf and Welling 2017, torch.sparse.mm",
    TWO,
    two_layers(lambda s, x: torch.sparse.mm(sparse(), s.b(F.relu(torch.sparse.mm(sparse(), s.a(x)))))),
    NODES,
)
network(
    "gcn_sparse_argument",
    "the sparse adjacency is an argument",
    TWO,
    two_layers(lambda s, x, a: a @ s.b(F.relu(a @ s.a(x)))),
    NODES,
    sparse,
)
network(
    "messages_index_add",
    "message passing by index_add",
    TWO,
    two_layers(lambda s, x: (lambda h: s.b(torch.zeros_like(h).index_add(0, DST, h[SRC])))(F.relu(s.a(x)))),
    NODES,
)
network(
    "messages_scatter_mean",
    "GraphSAGE: mean of neighbors by scatter_reduce",
    layer("a", "h", None) | {"b.weight": (None, ["h", "h"])},
    lambda: net(
        lambda s, x: (
            lambda h: s.b(
                torch.cat(
                    [
                        h,
                        torch.zeros_like(h).scatter_reduce(
                            0, DST[:, None].expand(-1, 4), h[SRC], "mean", include_self=False
                        ),
                    ],
                    -1,
                )
            )
        )(F.relu(s.a(x))),
        a=nn.Linear(3, 4),
        b=nn.Linear(8, 2),
    ),
    NODES,
)
network(
    "messages_index_reduce",
    "maximum over neighbors by index_reduce",
    TWO,
    two_layers(lambda s, x: (lambda h: s.b(torch.zeros_like(h).index_reduce(0, DST, h[SRC], "amax")))(F.relu(s.a(x)))),
    NODES,
)
network(
    "messages_segment_reduce",
    "sums over sorted segments",
    TWO,
    two_layers(lambda s, x: s.b(torch.segment_reduce(F.relu(s.a(x)), "sum", lengths=torch.tensor([2, 3]), axis=0))),
    NODES,
)
network(
    "messages_index_put",
    "message passing by index_put with accumulate",
    TWO,
    two_layers(
        lambda s, x: (lambda h: s.b(torch.zeros_like(h).index_put((DST,), h[SRC], accumulate=True)))(F.relu(s.a(x)))
    ),
    NODES,
)
network(
    "gat",
    "Velickovic et al. 2018: three heads, additive scores, concatenated",
    {"w": (("k", "d"), None), "al": ("k", "d"), "ar": ("k", "d"), "b.weight": (None, ("k", "d"))},
    lambda: net(
        lambda s, x: (
            lambda h: s.b(
                F.elu(
                    torch.einsum(
                        "ijk,jkd->ikd",
                        (
                            F.leaky_relu((h * s.al).sum(-1)[:, None] + (h * s.ar).sum(-1)[None], 0.2)
                            + torch.log(adjacency())[..., None]
                        ).softmax(1),
                        h,
                    )
                ).flatten(1)
            )
        )(F.linear(x, s.w).view(N, 3, 2)),
        w=(6, 3),
        al=(3, 2),
        ar=(3, 2),
        b=nn.Linear(6, 2),
    ),
    NODES,
    within={"d": "k"},
    sizes={"k": 3, "d": 2},
)
network(
    "gin",
    "Xu et al. 2019: sums, a perceptron, a learned epsilon, sum readout of every layer",
    layer("a", "h", None)
    | layer("b", "d", "h")
    | layer("c", "k", "d")
    | layer("e", "f", "k")
    | {"out.weight": (None, ["d", "f"])},
    lambda: net(
        lambda s, x: (lambda g: (lambda h1: s.out(torch.cat([h1.sum(0), g(h1, s.c, s.e).sum(0)])))(g(x, s.a, s.b)))(
            lambda x, p, q: q(F.relu(p((1 + s.eps) * x + adjacency() @ x)))
        ),
        a=nn.Linear(3, 4),
        b=nn.Linear(4, 3),
        c=nn.Linear(3, 5),
        e=nn.Linear(5, 4),
        eps=1,
        out=nn.Linear(7, 2),
    ),
    NODES,
)
network(
    "edge_conv",
    "DGCNN (Wang et al. 2019): differences along edges, maximum",
    {
        "a.weight": ("h", None),
        "a.bias": ("h",),
        "b.weight": ("d", ["h", "h"]),
        "b.bias": ("d",),
        "out.weight": (None, "d"),
    },
    lambda: net(
        lambda s, x: (
            lambda h: s.out(
                torch.relu(s.b(torch.cat([h[:, None].expand(N, N, -1), h[None] - h[:, None]], -1))).amax(1).mean(0)
            )
        )(F.relu(s.a(x))),
        a=nn.Linear(3, 4),
        b=nn.Linear(8, 3),
        out=nn.Linear(3, 2),
    ),
    NODES,
)
network(
    "gated_graph",
    "Li et al. 2016: messages into a GRU cell",
    layer("inp", "h", None)
    | {"m.weight": ("h2", "h"), "m.bias": ("h2",)}
    | {f"r.weight_{k}": (["h"] * 3, "h" if k == "hh" else "h2") for k in ("ih", "hh")}
    | {f"r.bias_{k}": (["h"] * 3,) for k in ("ih", "hh")}
    | {"out.weight": (None, "h")},
    lambda: net(
        lambda s, x: (lambda step: s.out(step(step(s.inp(x)))))(lambda h: s.r(adjacency() @ s.m(h), h)),
        inp=nn.Linear(3, 4),
        m=nn.Linear(4, 5),
        r=nn.GRUCell(5, 4),
        out=nn.Linear(4, 2),
    ),
    NODES,
)
network(
    "edge_network",
    "Gilmer et al. 2017: the matrix of a message made from the edge",
    layer("inp", "h", None)
    | layer("e1", "k", None)
    | {"e2.weight": (("d", "h"), "k"), "e2.bias": (("d", "h"),), "out.weight": (None, "d")},
    lambda: net(
        lambda s, x, e: s.out(
            torch.tanh(
                torch.zeros(N, 3).index_add(
                    0, DST, torch.einsum("edh,eh->ed", s.e2(F.relu(s.e1(e))).view(-1, 3, 4), s.inp(x)[SRC])
                )
            )
        ),
        inp=nn.Linear(3, 4),
        e1=nn.Linear(2, 5),
        e2=nn.Linear(5, 12),
        out=nn.Linear(3, 2),
    ),
    NODES,
    (7, 2),
    sizes={"d": 3, "h": 4},
)
network(
    "relational_basis",
    "R-GCN (Schlichtkrull et al. 2018): relations as mixtures of basis matrices",
    {"c": (None, "b"), "v": ("b", None, "h"), "out.weight": (None, "h")},
    lambda: net(
        lambda s, x: s.out(
            F.relu(torch.einsum("rij,jx,rb,bxh->ih", torch.stack([adjacency(), adjacency().T]), x, s.c, s.v))
        ),
        c=(2, 3),
        v=(3, 3, 4),
        out=nn.Linear(4, 2),
    ),
    NODES,
)
network(
    "chebyshev",
    "Defferrard et al. 2016: polynomials of the Laplacian",
    {"w": (None, None, "h"), "out.weight": (None, "h")},
    lambda: net(
        lambda s, x: (lambda t: s.out(F.relu(sum(t[k] @ s.w[k] for k in range(3)))))(
            (lambda a: [x, a @ x, 2 * a @ (a @ x) - x])(torch.eye(N) - adjacency())
        ),
        w=(3, 3, 4),
        out=nn.Linear(4, 2),
    ),
    NODES,
)
network(
    "continuous_filters",
    "SchNet (Schuett et al. 2017): filters of distances, elementwise messages",
    layer("emb", "c", None)
    | layer("f1", "k", None)
    | layer("f2", "c", "k")
    | layer("i", "c", "c")
    | {"out.weight": (None, "c")},
    lambda: net(
        lambda s, x, p: (
            lambda h: s.out(
                torch.einsum(
                    "ijc,jc->ic",
                    s.f2(
                        F.softplus(
                            s.f1(
                                torch.exp(
                                    -(((p[:, None] - p[None]).abs().sum(-1)[..., None] - torch.linspace(0, 2, 4)) ** 2)
                                )
                            )
                        )
                    ),
                    s.i(h),
                )
                + h
            )
        )(s.emb(x)),
        emb=nn.Linear(3, 4),
        f1=nn.Linear(4, 5),
        f2=nn.Linear(5, 4),
        i=nn.Linear(4, 4),
        out=nn.Linear(4, 2),
    ),
    NODES,
    NODES,
)
network(
    "principal_aggregation",
    "PNA (Corso et al. 2020): mean, maximum and deviation, with degree scalers",
    layer("a", "h", None) | {"out.weight": (None, (2, ["h", "h", "h"]))},
    lambda: net(
        lambda s, x: (
            lambda m: (lambda g: s.out(torch.cat([g, g * torch.linspace(1, 2, N)[:, None]], -1)))(
                torch.cat([m.mean(1), m.amax(1), m.var(1, unbiased=False).sqrt()], -1)
            )
        )(torch.relu(s.a(x))[None] * adjacency()[..., None] + 0.1 * torch.sin(torch.arange(N * N).view(N, N, 1))),
        a=nn.Linear(3, 4),
        out=nn.Linear(24, 2),
    ),
    NODES,
)
