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
