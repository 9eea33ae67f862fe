"""Embeddings that meet: recommendation, knowledge graphs, metric learning, autoencoders and flows."""

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.wild.catalog import net, network

E4 = {"u.weight": (None, "d"), "v.weight": (None, "d")}


def ids(n, size=6):
    return lambda: torch.randint(0, n, (size,))


def two_tables(forward, d=4, **parts):
    return lambda: net(forward, u=nn.Embedding(5, d), v=nn.Embedding(6, d), **parts)


network(
    "matrix_factorization",
    "Koren et al. 2009, with biases",
    E4,
    two_tables(lambda s, i, j: (s.u(i) * s.v(j)).sum(-1) + s.a[i] + s.b[j], a=5, b=6),
    ids(5),
    ids(6),
)
network(
    "skip_gram",
    "word2vec with negative samples",
    E4,
    two_tables(
        lambda s, i, j, k: (
            F.logsigmoid((s.u(i) * s.v(j)).sum(-1)) + F.logsigmoid(-torch.bmm(s.v(k), s.u(i)[..., None])).sum((1, 2))
        )
    ),
    ids(5),
    ids(6),
    lambda: torch.randint(0, 6, (6, 3)),
)
network(
    "embedding_bag",
    "fastText: EmbeddingBag and a linear classifier",
    {"u.weight": (None, "d"), "o.weight": (None, "d")},
    lambda: net(lambda s, i: s.o(s.u(i)), u=nn.EmbeddingBag(9, 4, mode="mean"), o=nn.Linear(4, 2)),
    lambda: torch.randint(0, 9, (3, 5)),
)
network(
    "embedding_bag_offsets",
    "EmbeddingBag of ragged bags, maximum",
    {"u.weight": (None, "d"), "o.weight": (None, "d")},
    lambda: net(
        lambda s, i: s.o(s.u(i, torch.tensor([0, 2, 5]))), u=nn.EmbeddingBag(9, 4, mode="max"), o=nn.Linear(4, 2)
    ),
    lambda: torch.randint(0, 9, (8,)),
)
network(
    "embedding_one_hot",
    "embedding as a product with one-hot rows",
    {"u": (None, "d"), "o.weight": (None, "d")},
    lambda: net(lambda s, i: s.o(torch.tanh(F.one_hot(i, 5).to(s.u.dtype) @ s.u)), u=(5, 4), o=nn.Linear(4, 2)),
    ids(5),
)
network(
    "neural_collaborative_filtering",
    "He et al. 2017: product path and perceptron path",
    E4
    | {
        "p.weight": (None, "a"),
        "q.weight": (None, "b"),
        "f.weight": ("h", ["a", "b"]),
        "f.bias": ("h",),
        "o.weight": (None, ["d", "h"]),
    },
    lambda: net(
        lambda s, i, j: s.o(torch.cat([s.u(i) * s.v(j), F.relu(s.f(torch.cat([s.p(i), s.q(j)], -1)))], -1)),
        u=nn.Embedding(5, 4),
        v=nn.Embedding(6, 4),
        p=nn.Embedding(5, 3),
        q=nn.Embedding(6, 2),
        f=nn.Linear(5, 4),
        o=nn.Linear(8, 1),
    ),
    ids(5),
    ids(6),
)
network(
    "factorization_machine",
    "Rendle 2010: half the square of the sum minus the sum of squares",
    {"v": (None, "k")},
    lambda: net(lambda s, x: x @ s.w + 0.5 * ((x @ s.v) ** 2 - x**2 @ s.v**2).sum(-1), v=(3, 4), w=3),
    (6, 3),
)
network(
    "trans_e",
    "Bordes et al. 2013: translations, L1 distance",
    E4 | {"r.weight": (None, "d")},
    lambda: net(
        lambda s, i, r, j: torch.norm(s.u(i) + s.r(r) - s.v(j), p=1, dim=-1),
        u=nn.Embedding(5, 4),
        v=nn.Embedding(6, 4),
        r=nn.Embedding(2, 4),
    ),
    ids(5),
    ids(2),
    ids(6),
)
network(
    "dist_mult",
    "Yang et al. 2015",
    E4 | {"r.weight": (None, "d")},
    lambda: net(
        lambda s, i, r, j: torch.einsum("bd,bd,bd->b", s.u(i), s.r(r), s.v(j)),
        u=nn.Embedding(5, 4),
        v=nn.Embedding(6, 4),
        r=nn.Embedding(2, 4),
    ),
    ids(5),
    ids(2),
    ids(6),
)
network(
    "compl_ex",
    "Trouillon et al. 2016: real and imaginary halves by chunk",
    {f"{k}.weight": (None, ["d", "d"]) for k in "uvr"},
    lambda: net(
        lambda s, i, r, j: (lambda a, b, c, d, e, f: (a * c * e + b * c * f + a * d * f - b * d * e).sum(-1))(
            *s.u(i).chunk(2, -1), *s.r(r).chunk(2, -1), *s.v(j).chunk(2, -1)
        ),
        u=nn.Embedding(5, 8),
        v=nn.Embedding(6, 8),
        r=nn.Embedding(2, 8),
    ),
    ids(5),
    ids(2),
    ids(6),
)
network(
    "compl_ex_view_as_complex",
    "ComplEx with complex numbers",
    {f"{k}.weight": (None, ("d", 2)) for k in "uvr"},
    lambda: net(
        lambda s, i, r, j: (lambda a, b, c: (a * b * c.conj()).sum(-1).real)(
            *(torch.view_as_complex(t.view(6, 4, 2)) for t in (s.u(i), s.r(r), s.v(j)))
        ),
        u=nn.Embedding(5, 8),
        v=nn.Embedding(6, 8),
        r=nn.Embedding(2, 8),
    ),
    ids(5),
    ids(2),
    ids(6),
)
network(
    "rescal",
    "Nickel et al. 2011: a matrix for each relation",
    {"u.weight": (None, "d"), "r": (None, "d", "d")},
    lambda: net(
        lambda s, i, r, j: (s.u(i)[:, None] @ s.r[r] @ s.u(j)[..., None]).flatten(), u=nn.Embedding(5, 4), r=(2, 4, 4)
    ),
    ids(5),
    ids(2),
    ids(5),
)
network(
    "rotat_e",
    "Sun et al. 2019: rotations by phases",
    {"u.weight": (None, ["d", "d"]), "v.weight": (None, ["d", "d"]), "r.weight": (None, "d")},
    lambda: net(
        lambda s, i, r, j: (
            lambda a, b, c, d, p: (
                torch.stack([a * p.cos() - b * p.sin() - c, a * p.sin() + b * p.cos() - d]).norm(dim=0).sum(-1)
            )
        )(*s.u(i).chunk(2, -1), *s.v(j).chunk(2, -1), s.r(r)),
        u=nn.Embedding(5, 6),
        v=nn.Embedding(6, 6),
        r=nn.Embedding(2, 3),
    ),
    ids(5),
    ids(2),
    ids(6),
)
