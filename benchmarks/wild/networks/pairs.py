"""Embeddings that meet: recommendation, knowledge graphs, metric learning, autoencoders and flows."""

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.wild.catalog import layer, net, network

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
TOWER = layer("a", "h", None) | layer("b", "d", "h")
network(
    "siamese_l1",
    "Koch et al. 2015: one encoder, weighted L1 distance",
    TOWER | {"o.weight": (None, "d")},
    lambda: net(
        lambda s, x, y: (lambda f: s.o((f(x) - f(y)).abs()))(lambda x: torch.sigmoid(s.b(F.relu(s.a(x))))),
        a=nn.Linear(3, 4),
        b=nn.Linear(4, 5),
        o=nn.Linear(5, 1),
    ),
    (6, 3),
    (6, 3),
)
network(
    "contrastive_logits",
    "SimCLR: normalized embeddings, all pairs",
    TOWER,
    lambda: net(
        lambda s, x, y: (lambda f: (f(x) @ f(y).T / 0.5).log_softmax(-1).diagonal())(
            lambda x: F.normalize(s.b(F.relu(s.a(x))), dim=-1)
        ),
        a=nn.Linear(3, 4),
        b=nn.Linear(4, 5),
    ),
    (6, 3),
    (6, 3),
)
network(
    "triplet_pairwise_distance",
    "triplet loss with pairwise_distance",
    TOWER,
    lambda: net(
        lambda s, x, y, z: (lambda f: F.relu(F.pairwise_distance(f(x), f(y)) - F.pairwise_distance(f(x), f(z)) + 1))(
            lambda x: s.b(F.relu(s.a(x)))
        ),
        a=nn.Linear(3, 4),
        b=nn.Linear(4, 5),
    ),
    (6, 3),
    (6, 3),
    (6, 3),
)
network(
    "barlow_twins",
    "Zbontar et al. 2021: cross-correlation matrix towards the identity",
    TOWER,
    lambda: net(
        lambda s, x, y: (lambda f: (f(x).T @ f(y) / 6 - torch.eye(5)).pow(2).sum())(
            lambda x: (lambda z: (z - z.mean(0)) / z.std(0))(s.b(F.relu(s.a(x))))
        ),
        a=nn.Linear(3, 4),
        b=nn.Linear(4, 5),
    ),
    (6, 3),
    (6, 3),
)
network(
    "pdist_kernel",
    "stochastic neighbor kernel of embeddings by pdist",
    TOWER,
    lambda: net(lambda s, x: 1 / (1 + torch.pdist(s.b(F.relu(s.a(x)))) ** 2), a=nn.Linear(3, 4), b=nn.Linear(4, 5)),
    (6, 3),
)
network(
    "tied_autoencoder",
    "decoder with the encoder's weight transposed",
    {"w": ("h", None), "b": ("h",)},
    lambda: net(lambda s, x: torch.sigmoid(x @ s.w.T + s.b) @ s.w + s.c, w=(4, 3), b=4, c=3),
    (6, 3),
)
network(
    "restricted_boltzmann_free_energy",
    "RBM, free energy",
    {"w": (None, "h"), "b": ("h",)},
    lambda: net(lambda s, x: -(x @ s.a) - F.softplus(x @ s.w + s.b).sum(-1), w=(3, 4), a=3, b=4),
    (6, 3),
)
network(
    "variational_autoencoder_module",
    "encoder with two heads, fixed noise, decoder",
    layer("e", "h", None)
    | layer("m", "z", "h")
    | layer("l", "z", "h")
    | layer("d1", "k", "z")
    | {"d2.weight": (None, "k")},
    lambda: net(
        lambda s, x: (
            lambda h: (lambda m, v: [s.d2(F.relu(s.d1(m + 0.3 * v.exp()))), -0.5 * (1 + v - m**2 - v.exp()).sum(-1)])(
                s.m(h), s.l(h)
            )
        )(F.relu(s.e(x))),
        e=nn.Linear(3, 4),
        m=nn.Linear(4, 3),
        l=nn.Linear(4, 3),
        d1=nn.Linear(3, 5),
        d2=nn.Linear(5, 3),
    ),
    (6, 3),
)
network(
    "real_nvp",
    "Dinh et al. 2017: two couplings with chunk, swapped in between",
    {
        f"{k}.{i}.{p}": t
        for k in "ab"
        for i, p, t in ((0, "weight", (k, None)), (0, "bias", (k,)), (2, "weight", (None, k)))
    },
    lambda: net(
        _couplings,
        a=nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 4)),
        b=nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 4)),
    ),
    (6, 4),
)


def _couplings(s, x):
    """The transformed point and the log determinant."""
    log_det = 0.0
    for f in (s.a, s.b):
        kept, changed = x.chunk(2, -1)
        scale, shift = f(kept).chunk(2, -1)
        x, log_det = (
            torch.cat([changed * torch.tanh(scale).exp() + shift, kept], -1),
            log_det + torch.tanh(scale).sum(-1),
        )
    return x, log_det


network(
    "coupling_with_mask",
    "RealNVP with a checkerboard mask",
    layer("a", "h", None) | {"s.weight": (None, "h"), "t.weight": (None, "h")},
    lambda: net(
        lambda s, x: (
            lambda m: (lambda h: m * x + (1 - m) * (x * torch.tanh(s.s(h)).exp() + s.t(h)))(F.relu(s.a(m * x)))
        )(torch.arange(4) % 2),
        a=nn.Linear(4, 5),
        s=nn.Linear(5, 4),
        t=nn.Linear(5, 4),
    ),
    (6, 4),
)
network(
    "planar_flow_on_lifted_space",
    "Rezende and Mohamed 2015, after a lift",
    {"l.weight": ("d", None), "l.bias": ("d",), "u": ("d",), "w": ("d",), "o.weight": (None, "d")},
    lambda: net(
        lambda s, x: (lambda z: s.o(z + s.u * torch.tanh(torch.mv(z, s.w) + s.b)[:, None]))(s.l(x)),
        l=nn.Linear(3, 4),
        u=4,
        w=4,
        b=1,
        o=nn.Linear(4, 2),
    ),
    (6, 3),
)
network(
    "kalman_gain_of_features",
    "a linear-Gaussian update of learned features: inverse of an innovation matrix",
    {"a.weight": ("h", None), "a.bias": ("h",), "c.weight": (None, "h")},
    lambda: net(
        lambda s, x: (lambda h, k: s.c.weight @ torch.linalg.inv(torch.eye(4) + h.T @ h) @ s.c.weight.T)(
            torch.tanh(s.a(x)), 0
        ),
        a=nn.Linear(3, 4),
        c=nn.Linear(4, 2, bias=False),
    ),
    (6, 3),
)
network(
    "vector_field_jacobian",
    "a score network's divergence by autograd in forward",
    layer("a", "h", None) | {"o.weight": (None, "h")},
    lambda: net(_divergence, a=nn.Linear(3, 4), o=nn.Linear(4, 1)),
    (6, 3),
)


def _divergence(s, x):
    return torch.func.vmap(torch.func.grad(lambda x: s.o(torch.tanh(s.a(x))).sum()))(x)


network(
    "hamiltonian",
    "Hamiltonian network (Greydanus et al. 2019): gradients of a learned energy",
    layer("a", "h", None) | {"o.weight": (None, "h")},
    lambda: net(
        lambda s, x: _divergence(s, x) @ torch.tensor([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]),
        a=nn.Linear(3, 4),
        o=nn.Linear(4, 1),
    ),
    (6, 3),
)
