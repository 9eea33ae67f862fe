"""Metric learning, autoencoders, flows and fields."""

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.wild.catalog import layer, net, network

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
