"""Mixtures of experts, codebooks and other choices."""

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.wild.catalog import layer, modules, net, network, together

X = (6, 3)
STACKED = {"g.weight": ("e", None), "g.bias": ("e",), "w1": ("e", "h", None), "w2": ("e", None, "h")}


def gate_rows(values, order):
    """The gate's rows follow the experts."""
    return {**values, "g.weight": values["g.weight"][list(order)], "g.bias": values["g.bias"][list(order)]}


def experts(k=3):
    return nn.ModuleList(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)) for _ in range(k))


MODULES = {
    f"e.{k}.{p}": t
    for k in range(3)
    for p, t in (("0.weight", (f"h{k}", None)), ("0.bias", (f"h{k}",)), ("2.weight", (None, f"h{k}")))
}
SWAP = [(3, together(modules("e.{}."), gate_rows))]


def stacked(name, source, forward):
    network(
        name, source, STACKED, lambda: net(forward, g=nn.Linear(3, 3), w1=(3, 4, 3), w2=(3, 2, 4)), X, within={"h": "e"}
    )


def outputs(s, x):
    """Every expert's output, ``(batch, experts, out)``."""
    return torch.einsum("eoh,beh->beo", s.w2, torch.relu(torch.einsum("ehi,bi->beh", s.w1, x)))


stacked(
    "experts_dense",
    "Jacobs et al. 1991, experts stacked",
    lambda s, x: (s.g(x).softmax(-1)[..., None] * outputs(s, x)).sum(1),
)
stacked(
    "experts_topk_mask",
    "Shazeer et al. 2017: gates below the second largest are cut off",
    lambda s, x: (
        lambda g: (
            torch.where(g >= g.topk(2).values[:, -1:], g, -torch.inf).softmax(-1)[..., None] * outputs(s, x)
        ).sum(1)
    )(s.g(x)),
)
stacked(
    "experts_topk_gathered",
    "Mixtral: outputs gathered at the places of topk",
    lambda s, x: (
        lambda t: (
            t.values.softmax(-1)[..., None] * outputs(s, x).gather(1, t.indices[..., None].expand(-1, -1, 2))
        ).sum(1)
    )(s.g(x).topk(2)),
)
stacked(
    "experts_topk_weights_indexed",
    "expert weights indexed by the places of topk",
    lambda s, x: (
        lambda t: torch.einsum(
            "bk,bkoh,bkh->bo",
            t.values.softmax(-1),
            s.w2[t.indices],
            torch.relu(torch.einsum("bkhi,bi->bkh", s.w1[t.indices], x)),
        )
    )(s.g(x).topk(2)),
)
stacked(
    "experts_topk_scattered",
    "gates scattered back to a dense matrix (fairscale)",
    lambda s, x: (
        lambda g, t: (
            torch.full_like(g, -torch.inf).scatter(1, t.indices, t.values).softmax(-1)[..., None] * outputs(s, x)
        ).sum(1)
    )(s.g(x), s.g(x).topk(2)),
)
stacked(
    "experts_switch",
    "Switch transformer (Fedus et al. 2021): argmax and one-hot",
    lambda s, x: (lambda p: ((p * F.one_hot(p.argmax(-1), 3))[..., None] * outputs(s, x)).sum(1))(s.g(x).softmax(-1)),
)
stacked(
    "experts_product",
    "product of experts in logarithms",
    lambda s, x: (s.g(x).sigmoid()[..., None] * outputs(s, x).log_softmax(-1)).sum(1),
)
stacked(
    "experts_soft_slots",
    "Soft MoE (Puigcerver et al. 2023), a slot for each expert",
    lambda s, x: (
        lambda a: (
            a.softmax(1)
            @ torch.einsum("eoh,eh->eo", s.w2, torch.relu(torch.einsum("ehi,ei->eh", s.w1, a.softmax(0).T @ x)))
        )
    )(s.g(x)),
)
network(
    "experts_module_list",
    "experts in a ModuleList, summed in a loop",
    MODULES,
    lambda: net(
        lambda s, x: sum(s.g(x).softmax(-1)[:, k : k + 1] * e(x) for k, e in enumerate(s.e)),
        g=nn.Linear(3, 3),
        e=experts(),
    ),
    X,
    moves=SWAP,
)
network(
    "experts_module_list_stacked",
    "experts in a ModuleList, stacked",
    MODULES,
    lambda: net(
        lambda s, x: torch.einsum("be,ebo->bo", s.g(x).softmax(-1), torch.stack([e(x) for e in s.e])),
        g=nn.Linear(3, 3),
        e=experts(),
    ),
    X,
    moves=SWAP,
)
network(
    "experts_dispatched",
    "each expert sees the tokens whose gate is largest (masks by comparison)",
    MODULES,
    lambda: net(
        lambda s, x: (lambda p: sum((p.argmax(-1) == k)[:, None] * p[:, k : k + 1] * e(x) for k, e in enumerate(s.e)))(
            s.g(x).softmax(-1)
        ),
        g=nn.Linear(3, 3),
        e=experts(),
    ),
    X,
    moves=SWAP,
)
network(
    "experts_of_several_tasks",
    "MMoE (Ma et al. 2018): experts shared by two tasks with a gate each",
    {
        "w": ("e", "h", None),
        "g1.weight": ("e", None),
        "g1.bias": ("e",),
        "g2.weight": ("e", None),
        "g2.bias": ("e",),
        "o1.weight": (None, "h"),
        "o2.weight": (None, "h"),
    },
    lambda: net(
        lambda s, x: [
            o(torch.einsum("be,beh->bh", g(x).softmax(-1), F.relu(torch.einsum("ehi,bi->beh", s.w, x))))
            for g, o in ((s.g1, s.o1), (s.g2, s.o2))
        ],
        w=(3, 4, 3),
        g1=nn.Linear(3, 3),
        g2=nn.Linear(3, 3),
        o1=nn.Linear(4, 1),
        o2=nn.Linear(4, 1),
    ),
    X,
)
network(
    "codebook_argmin",
    "VQ-VAE (van den Oord et al. 2017): the nearest code by argmin",
    layer("a", "d", None) | {"codes": ("k", "d"), "o.weight": (None, "d")},
    lambda: net(
        lambda s, x: (lambda z: s.o(s.codes[((z[:, None] - s.codes) ** 2).sum(-1).argmin(-1)]))(s.a(x)),
        a=nn.Linear(3, 4),
        codes=(5, 4),
        o=nn.Linear(4, 2),
    ),
    X,
)
network(
    "codebook_expanded_distances",
    "VQ-VAE, distances as squares minus twice the product, codes by embedding",
    layer("a", "d", None) | {"codes": ("k", "d"), "o.weight": (None, "d")},
    lambda: net(
        lambda s, x: (
            lambda z: s.o(
                F.embedding(
                    (z.pow(2).sum(1, keepdim=True) - 2 * z @ s.codes.T + s.codes.pow(2).sum(1)).min(1).indices, s.codes
                )
            )
        )(s.a(x)),
        a=nn.Linear(3, 4),
        codes=(5, 4),
        o=nn.Linear(4, 2),
    ),
    X,
)
network(
    "codebook_one_hot",
    "VQ-VAE, the code by a scattered one-hot and a product",
    layer("a", "d", None) | {"codes": ("k", "d"), "o.weight": (None, "d")},
    lambda: net(
        lambda s, x: (
            lambda z: s.o(torch.zeros(6, 5).scatter(1, torch.cdist(z, s.codes).argmin(1, keepdim=True), 1.0) @ s.codes)
        )(s.a(x)),
        a=nn.Linear(3, 4),
        codes=(5, 4),
        o=nn.Linear(4, 2),
    ),
    X,
)
network(
    "prototypes",
    "prototype layer (Chen et al. 2019): similarity to prototypes, linear to classes",
    {"p": ("k", None), "o.weight": (None, "k")},
    lambda: net(
        lambda s, x: s.o(torch.log1p(1 / ((x[:, None] - s.p).square().sum(-1) + 1e-2))),
        p=(4, 3),
        o=nn.Linear(4, 2, bias=False),
    ),
    X,
)
network(
    "soft_decision_tree",
    "a tree of depth one: gate and two leaves that swap with the sign of the gate's weights",
    {},
    lambda: net(
        lambda s, x: (lambda p: p * s.l[0] + (1 - p) * s.l[1])(torch.sigmoid(s.g(x))), g=nn.Linear(3, 1), l=(2, 2)
    ),
    X,
)
network(
    "neural_forest",
    "soft trees side by side, averaged (Kontschieder et al. 2015)",
    {"w": ("tree", None), "b": ("tree",), "leaf": ("tree", None, None)},
    lambda: net(
        lambda s, x: (lambda p: (torch.stack([p, 1 - p], -1)[..., None] * s.leaf).sum(2).mean(1))(
            torch.sigmoid(x @ s.w.T + s.b)
        ),
        w=(4, 3),
        b=4,
        leaf=(4, 2, 2),
    ),
    X,
)
network(
    "hopfield",
    "modern Hopfield layer (Ramsauer et al. 2021): stored patterns, two updates",
    {"p": ("k", None)},
    lambda: net(lambda s, x: (lambda f: f(f(x)))(lambda z: torch.softmax(2.0 * z @ s.p.T, -1) @ s.p), p=(4, 3)),
    X,
)
network(
    "product_keys",
    "product-key memory without the cut (Lample et al. 2019)",
    {"a": ("i", None), "b": ("j", None), "v": (("i", "j"), None)},
    lambda: net(
        lambda s, x: ((x @ s.a.T)[:, :, None] + (x @ s.b.T)[:, None]).flatten(1).softmax(-1) @ s.v,
        a=(3, 3),
        b=(4, 3),
        v=(12, 2),
    ),
    X,
)
