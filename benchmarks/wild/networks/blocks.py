"""Blocks and whole perceptrons: steps of equations, factorized weights, solved heads, winners."""

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.wild.catalog import layer, net, network

network(
    "dueling",
    "Wang et al. 2016: value and advantages over a shared trunk",
    layer("f", "h", None)
    | layer("v", "a", "h")
    | layer("w", "b", "h")
    | {"vo.weight": (None, "a"), "wo.weight": (None, "b")},
    lambda: net(
        lambda s, x: (
            lambda h: (lambda a, v: v + a - a.mean(-1, keepdim=True))(
                s.wo(torch.relu(s.w(h))), s.vo(torch.relu(s.v(h)))
            )
        )(torch.relu(s.f(x))),
        f=nn.Linear(3, 4),
        v=nn.Linear(4, 5),
        w=nn.Linear(4, 3),
        vo=nn.Linear(5, 1),
        wo=nn.Linear(3, 2),
    ),
    (6, 3),
)
network(
    "noisy_linear",
    "Fortunato et al. 2018: factored noise given from outside",
    {"mu": ("h", None), "sigma": ("h", None), "out.weight": (None, "h")},
    lambda: net(
        lambda s, x, e: s.out(torch.relu(F.linear(x, s.mu + s.sigma * e))),
        mu=(4, 3),
        sigma=(4, 3),
        out=nn.Linear(4, 2),
    ),
    (6, 3),
    (3,),
)
network(
    "dropout_in_evaluation",
    "dropout, alpha dropout, GELU by tanh",
    layer("0", "h", None) | layer("3", "k", "h") | {"6.weight": (None, "k")},
    lambda: nn.Sequential(
        nn.Linear(3, 4),
        nn.GELU("tanh"),
        nn.Dropout(0.5),
        nn.Linear(4, 5),
        nn.SELU(),
        nn.AlphaDropout(0.2),
        nn.Linear(5, 2),
    ),
    (6, 3),
)
network(
    "euler_steps",
    "augmented neural ODE, a few Euler steps (Dupont et al. 2019)",
    layer("inp", "d", None)
    | {"f.weight": ("h", ["d", None]), "f.bias": ("h",)}
    | layer("g", "d", "h")
    | {"out.weight": (None, "d")},
    lambda: net(
        lambda s, x: (lambda step: s.out(step(step(step(s.inp(x), 0.0), 0.1), 0.2)))(
            lambda z, t: z + 0.1 * s.g(torch.tanh(s.f(torch.cat([z, torch.full_like(z[:, :1], t)], -1))))
        ),
        inp=nn.Linear(3, 4),
        f=nn.Linear(5, 6),
        g=nn.Linear(6, 4),
        out=nn.Linear(4, 2),
    ),
    (6, 3),
)
network(
    "runge_kutta_step",
    "neural ODE, one step of the classical Runge-Kutta method",
    layer("f", "h", None) | {"g.weight": (None, "h")},
    lambda: net(
        lambda s, z: (
            lambda v: (
                lambda a: (lambda b: (lambda c: z + (a + 2 * b + 2 * c + v(z + c)) / 6)(v(z + b / 2)))(v(z + a / 2))
            )(v(z))
        )(lambda z: s.g(torch.tanh(s.f(z)))),
        f=nn.Linear(3, 4),
        g=nn.Linear(4, 3),
    ),
    (6, 3),
)
network(
    "deep_equilibrium_unrolled",
    "deep equilibrium model, unrolled (Bai et al. 2019)",
    {"w": ("h", "h"), "u": ("h", None), "out.weight": (None, "h")},
    lambda: net(
        lambda s, x: (lambda z: s.out(z))(
            (lambda f: f(f(f(torch.zeros(6, 4)))))(lambda z: torch.tanh(z @ s.w.T + x @ s.u.T))
        ),
        w=(4, 4),
        u=(4, 3),
        out=nn.Linear(4, 2),
    ),
    (6, 3),
)
network(
    "cross_network",
    "DCN v2: x0 * (W x + b) + x on lifted features (Wang et al. 2021)",
    layer("inp", "d", None) | layer("a", "d", "d") | layer("b", "d", "d") | {"out.weight": (None, "d")},
    lambda: net(
        lambda s, x: (lambda x0: (lambda x1: s.out(x0 * s.b(x1) + x1))(x0 * s.a(x0) + x0))(s.inp(x)),
        inp=nn.Linear(3, 4),
        a=nn.Linear(4, 4),
        b=nn.Linear(4, 4),
        out=nn.Linear(4, 2),
    ),
    (6, 3),
)
network(
    "tensor_train",
    "a weight as a tensor train; the bonds are relabeled (Novikov et al. 2015)",
    {"a": (None, "r", None), "b": ("r", None, "q", None), "c": ("q", None, None)},
    lambda: net(
        lambda s, x: torch.einsum("xyz,irx,rjsy,skz->ijk", x, s.a, s.b, s.c), a=(2, 3, 2), b=(3, 2, 4, 2), c=(4, 2, 3)
    ),
    (2, 2, 3),
)
network(
    "tucker_factorized_layer",
    "a weight in Tucker form, with multi_dot",
    {"u": (None, "r"), "g": ("r", "q"), "v": ("q", None)},
    lambda: net(lambda s, x: torch.linalg.multi_dot([x, s.u, s.g, s.v]), u=(3, 4), g=(4, 5), v=(5, 2)),
    (6, 3),
)
network(
    "polynomial_network",
    "Pi-Net, second order (Chrysos et al. 2020)",
    {"u": (None, "r"), "v": (None, "r"), "c.weight": (None, "r")},
    lambda: net(lambda s, x: s.c((x @ s.u) * (x @ s.v) + x @ s.u), u=(3, 4), v=(3, 4), c=nn.Linear(4, 2)),
    (6, 3),
)
network(
    "squeeze_excite_dense",
    "a gate for each unit from all units",
    layer("f", "h", None) | layer("down", "r", "h") | layer("up", "h", "r") | {"out.weight": (None, "h")},
    lambda: net(
        lambda s, x: (lambda h: s.out(h * F.hardsigmoid(s.up(F.relu6(s.down(h))))))(F.softplus(s.f(x))),
        f=nn.Linear(3, 6),
        down=nn.Linear(6, 4),
        up=nn.Linear(4, 6),
        out=nn.Linear(6, 2),
    ),
    (6, 3),
)
network(
    "whitening_by_eigenvalues",
    "spectral features: the eigenvalues of a Gram matrix of hidden units",
    layer("f", "h", None),
    lambda: net(lambda s, x: torch.linalg.eigvalsh(s.f(x).T @ s.f(x)), f=nn.Linear(3, 4)),
    (6, 3),
)
network(
    "log_determinant",
    "determinantal score of hidden units",
    layer("f", "h", None),
    lambda: net(lambda s, x: torch.logdet(torch.eye(4) + torch.tanh(s.f(x)).T @ torch.tanh(s.f(x))), f=nn.Linear(3, 4)),
    (6, 3),
)
network(
    "ridge_head",
    "closed-form ridge regression on learned features (R2D2, Bertinetto et al. 2019)",
    layer("f", "h", None),
    lambda: net(
        lambda s, x, y: (lambda h: h @ torch.linalg.solve(h.T @ h + 0.1 * torch.eye(4), h.T @ y))(torch.tanh(s.f(x))),
        f=nn.Linear(3, 4),
    ),
    (6, 3),
    (6, 2),
)
network(
    "ridge_head_cholesky",
    "Bayesian last layer: the posterior mean by a Cholesky solve",
    layer("f", "h", None),
    lambda: net(
        lambda s, x, y: (
            lambda h: h @ torch.cholesky_solve(h.T @ y, torch.linalg.cholesky(h.T @ h + 0.1 * torch.eye(4)))
        )(torch.tanh(s.f(x))),
        f=nn.Linear(3, 4),
    ),
    (6, 3),
    (6, 2),
)
network(
    "sorted_units",
    "order statistics of the hidden units (DeepSets with sorting)",
    layer("f", "h", None) | {"out.weight": (None, None)},
    lambda: net(lambda s, x: s.out(s.f(x).sort(-1).values), f=nn.Linear(3, 4), out=nn.Linear(4, 2)),
    (6, 3),
)
network(
    "k_winners",
    "k-winners-take-all: units above the k-th value (Makhzani and Frey 2013)",
    layer("f", "h", None) | {"out.weight": (None, "h")},
    lambda: net(
        lambda s, x: (lambda h: s.out(torch.where(h >= h.topk(2, -1).values[:, -1:], h, 0.0)))(s.f(x)),
        f=nn.Linear(3, 5),
        out=nn.Linear(5, 2),
    ),
    (6, 3),
)
network(
    "k_winners_scattered",
    "k-winners-take-all by the places of topk and scatter, as sparse autoencoders do",
    layer("f", "h", None) | {"out.weight": (None, "h")},
    lambda: net(
        lambda s, x: (lambda h, t: s.out(torch.zeros_like(h).scatter(-1, t.indices, t.values)))(
            s.f(x), s.f(x).topk(2, -1)
        ),
        f=nn.Linear(3, 5),
        out=nn.Linear(5, 2),
    ),
    (6, 3),
)
