"""Perceptrons in many spellings, and layers that are used inside them."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from benchmarks.wild.catalog import layer, modules, net, network, norm
from pyro_align.axes import Atom

W1, W2 = {"w1": ("h", None)}, {"w2": (None, "h")}
DEGREES = [Atom("a", 3), Atom("b", 3)]
UNITS = W1 | {"b1": ("h",)} | W2


class Sine(nn.Module):
    """sin(30 x)."""

    def forward(self, x):
        return torch.sin(30 * x)


network(
    "mlp_loop_over_units",
    "tutorials that write a network neuron by neuron",
    {"w": ("h", None), "v": ("h",)},
    lambda: net(lambda s, x: sum(s.v[i] * torch.tanh(x @ s.w[i]) for i in range(4)), w=(4, 3), v=4),
    (6, 3),
)
network(
    "mlp_neurons_stacked",
    "micrograd-like: a list of neurons, stacked",
    {"w": ("h", None), "b": ("h",), "v": (None, "h")},
    lambda: net(
        lambda s, x: torch.stack([torch.relu((w * x).sum(-1) + b) for w, b in zip(s.w, s.b, strict=True)], -1) @ s.v.T,
        w=(4, 3),
        b=4,
        v=(2, 4),
    ),
    (6, 3),
)
network(
    "mlp_einsum",
    "einsum spelling, letters in order",
    UNITS,
    lambda: net(
        lambda s, x: torch.einsum("oh,bh->bo", s.w2, torch.relu(torch.einsum("hi,bi->bh", s.w1, x) + s.b1)),
        w1=(4, 3),
        b1=4,
        w2=(2, 4),
    ),
    (6, 3),
)
network(
    "mlp_einsum_one_call",
    "einsum spelling, linear network in one call, letters out of order",
    {"a": (None, "z"), "b": ("z", "c"), "d": ("c", None)},
    lambda: net(lambda s, x: torch.einsum("qy,yz,zc,ce->qe", x, s.a, s.b, s.d), a=(3, 4), b=(4, 5), d=(5, 2)),
    (6, 3),
)
network(
    "mlp_tensordot",
    "tensordot, hidden units on two axes",
    {"w1": (None, "h", "k"), "w2": ("h", "k", None)},
    lambda: net(
        lambda s, x: torch.tensordot(torch.tanh(torch.tensordot(x, s.w1, 1)), s.w2, 2), w1=(3, 4, 5), w2=(4, 5, 2)
    ),
    (6, 3),
    within={"k": "h"},
)
network(
    "mlp_ensemble_bmm",
    "batched ensembles: members side by side with bmm, averaged",
    {"w1": ("m", None, "h"), "b1": ("m", None, "h"), "w2": ("m", "h", None)},
    lambda: net(
        lambda s, x: torch.bmm(torch.relu(torch.baddbmm(s.b1, x.expand(3, -1, -1), s.w1)), s.w2).mean(0),
        w1=(3, 3, 4),
        b1=(3, 1, 4),
        w2=(3, 4, 2),
    ),
    (6, 3),
    within={"h": "m"},
)
network(
    "mlp_ensemble_vmap",
    "torch.func tutorial: an ensemble by vmap over stacked parameters",
    {"w1": ("m", "h", None), "w2": ("m", None, "h")},
    lambda: net(
        lambda s, x: torch.vmap(lambda w1, w2: torch.tanh(x @ w1.T) @ w2.T)(s.w1, s.w2).logsumexp(0),
        w1=(3, 4, 3),
        w2=(3, 2, 4),
    ),
    (6, 3),
    within={"h": "m"},
)
network(
    "mlp_ensemble_of_modules",
    "deep ensemble in a ModuleList, averaged",
    {
        f"nets.{k}.{i}.{p}": t
        for k in range(3)
        for i, p, t in [(0, "weight", (f"h{k}", None)), (0, "bias", (f"h{k}",)), (2, "weight", (None, f"h{k}"))]
    },
    lambda: net(
        lambda s, x: torch.stack([f(x) for f in s.nets]).mean(0),
        nets=nn.ModuleList(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)) for _ in range(3)),
    ),
    (6, 3),
    moves=[(3, modules("nets.{}."))],
)
network(
    "heads_in_a_module_list",
    "several layers side by side, concatenated",
    {f"parts.{k}.weight": (f"h{k}", None) for k in range(3)}
    | {f"parts.{k}.bias": (f"h{k}",) for k in range(3)}
    | {"out.weight": (None, ["h0", "h1", "h2"])},
    lambda: net(
        lambda s, x: s.out(torch.cat([torch.relu(p(x)) for p in s.parts], -1)),
        parts=nn.ModuleList([nn.Linear(3, 4), nn.Linear(3, 5), nn.Linear(3, 2)]),
        out=nn.Linear(11, 2),
    ),
    (6, 3),
)
network(
    "maxout",
    "Goodfellow et al. 2013",
    {"lin.weight": (("h", "piece"), None), "lin.bias": (("h", "piece"),), "out.weight": (None, "h")},
    lambda: net(lambda s, x: s.out(s.lin(x).unflatten(-1, (4, 3)).amax(-1)), lin=nn.Linear(3, 12), out=nn.Linear(4, 2)),
    (6, 3),
    within={"piece": "h"},
)
network(
    "maxout_pieces_first",
    "Goodfellow et al. 2013, pieces as the slow factor",
    {"lin.weight": (("piece", "h"), None), "lin.bias": (("piece", "h"),), "out.weight": (None, "h")},
    lambda: net(lambda s, x: s.out(s.lin(x).view(6, 3, 4).max(1).values), lin=nn.Linear(3, 12), out=nn.Linear(4, 2)),
    (6, 3),
    within={"piece": "h"},
)
network(
    "glu",
    "torch.nn.GLU",
    {"lin.weight": (["h", "h"], None), "lin.bias": (["h", "h"],), "out.weight": (None, "h")},
    lambda: net(lambda s, x: s.out(F.glu(s.lin(x))), lin=nn.Linear(3, 8), out=nn.Linear(4, 2)),
    (6, 3),
)
network(
    "swiglu_packed",
    "xformers SwiGLU: one matrix for gate and value, unbound",
    {"w12": (None, "h", None), "w3": (None, "h")},
    lambda: net(
        lambda s, x: (lambda g, v: (F.silu(g) * v) @ s.w3.T)(*torch.unbind(torch.einsum("bi,khi->kbh", x, s.w12))),
        w12=(2, 5, 3),
        w3=(2, 5),
    ),
    (6, 3),
)
network(
    "geglu_interleaved",
    "gate and value in turn, taken by strides",
    {"lin.weight": (("h", None), None), "lin.bias": (("h", None),), "out.weight": (None, "h")},
    lambda: net(
        lambda s, x: (lambda h: s.out(F.gelu(h[..., ::2]) * h[..., 1::2]))(s.lin(x)),
        lin=nn.Linear(3, 8),
        out=nn.Linear(4, 2),
    ),
    (6, 3),
)
network(
    "weight_norm",
    "torch.nn.utils.parametrizations.weight_norm",
    {
        "0.parametrizations.weight.original0": ("h", None),
        "0.parametrizations.weight.original1": ("h", None),
        "0.bias": ("h",),
        "2.weight": (None, "h"),
    },
    lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 2)),
    (6, 3),
)
network(
    "spectral_norm",
    "Miyato et al. 2018, torch.nn.utils.parametrizations",
    {
        "0.parametrizations.weight.original": ("h", None),
        "0.parametrizations.weight.0._u": ("h",),
        "0.bias": ("h",),
        "2.weight": (None, "h"),
    },
    lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(3, 4)), nn.ReLU(), nn.Linear(4, 2)),
    (6, 3),
)
network(
    "highway",
    "Srivastava et al. 2015",
    layer("inp", "h", None) | layer("t", "h", "h") | layer("c", "h", "h") | {"out.weight": (None, "h")},
    lambda: net(
        lambda s, x: (lambda h, g: s.out(torch.lerp(h, torch.relu(s.c(h)), g)))(
            torch.tanh(s.inp(x)), torch.sigmoid(s.t(torch.tanh(s.inp(x))))
        ),
        inp=nn.Linear(3, 4),
        t=nn.Linear(4, 4),
        c=nn.Linear(4, 4),
        out=nn.Linear(4, 2),
    ),
    (6, 3),
)
network(
    "dense_skips",
    "every layer reads all before it",
    {
        "a.weight": ("h", None),
        "a.bias": ("h",),
        "b.weight": ("k", [None, "h"]),
        "b.bias": ("k",),
        "c.weight": (None, [None, "h", "k"]),
    },
    lambda: net(
        lambda s, x: (lambda x1: (lambda x2: s.c(torch.hstack([x1, x2])))(torch.relu(s.b(x1))))(
            torch.hstack([x, torch.relu(s.a(x))])
        ),
        a=nn.Linear(3, 4),
        b=nn.Linear(7, 5),
        c=nn.Linear(12, 2),
    ),
    (6, 3),
)
network(
    "residual_prenorm",
    "pre-activation residual perceptron (Gorishniy et al. 2021)",
    layer("inp", "d", None)
    | norm("n1", "d", True)
    | layer("f", "h", "d")
    | layer("g", "d", "h")
    | norm("n2", "d", True)
    | {"out.weight": (None, "d")},
    lambda: net(
        lambda s, x: (lambda h: s.out(torch.relu(s.n2(h + s.g(torch.relu(s.f(s.n1(h))))))))(s.inp(x)),
        inp=nn.Linear(3, 4),
        n1=nn.BatchNorm1d(4),
        f=nn.Linear(4, 5),
        g=nn.Linear(5, 4),
        n2=nn.BatchNorm1d(4),
        out=nn.Linear(4, 2),
    ),
    (6, 3),
)
network(
    "prelu_per_unit",
    "He et al. 2015, a slope for each unit",
    {"0.weight": ("h", None), "0.bias": ("h",), "1.weight": ("h",), "2.weight": (None, "h")},
    lambda: nn.Sequential(nn.Linear(3, 4), nn.PReLU(4), nn.Linear(4, 2)),
    (6, 3),
)
network(
    "siren",
    "Sitzmann et al. 2020",
    layer("0", "h", None) | layer("2", "k", "h") | {"4.weight": (None, "k")},
    lambda: nn.Sequential(nn.Linear(2, 4), Sine(), nn.Linear(4, 5), Sine(), nn.Linear(5, 1)),
    (6, 2),
)
network(
    "film",
    "Perez et al. 2018: scale and shift by a second input",
    layer("f", "h", None) | {"g.weight": (["h", "h"], None), "g.bias": (["h", "h"],), "out.weight": (None, "h")},
    lambda: net(
        lambda s, x, c: (lambda ab: s.out(torch.relu(torch.addcmul(ab[1], 1 + ab[0], s.f(x)))))(
            s.g(c).tensor_split(2, -1)
        ),
        f=nn.Linear(3, 4),
        g=nn.Linear(2, 8),
        out=nn.Linear(4, 2),
    ),
    (6, 3),
    (6, 2),
)
