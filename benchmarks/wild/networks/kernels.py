"""Convolutions with kernels of an unusual make, and what else works on images."""

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.wild.catalog import conv, layer, net, network
from benchmarks.wild.networks.convolutional import IMAGE, pooled
from pyro_align.axes import Atom

CLASS, PLACE = Atom("class", fixed=True), Atom("place", 16, fixed=True)

network(
    "circular_padding",
    "convolutions on a torus",
    conv("0", "a", None) | conv("2", "b", "a") | {"5.weight": (None, "b")},
    lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"),
        nn.ReLU(),
        nn.Conv2d(4, 3, 3, padding=1, padding_mode="reflect"),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(3, 2),
    ),
    IMAGE,
)
network(
    "coord_conv",
    "Liu et al. 2018: coordinates as further channels",
    conv("a", "a", None) | {"b.weight": ("b", ["a", None], None, None), "b.bias": ("b",), "out.weight": (None, "b")},
    lambda: net(
        lambda s, x: s.out(
            pooled(F.relu(s.b(torch.cat([F.relu(s.a(x)), torch.linspace(-1, 1, 6).expand(2, 1, 6, 6)], 1))))
        ),
        a=nn.Conv2d(2, 4, 1),
        b=nn.Conv2d(5, 3, 3),
        out=nn.Linear(3, 2),
    ),
    IMAGE,
)
network(
    "feature_pyramid",
    "Lin et al. 2017: upsampling and lateral sums",
    conv("a", "a", None)
    | conv("b", "b", "a")
    | conv("la", "p", "a")
    | conv("lb", "p", "b")
    | {"out.weight": (None, "p", None, None)},
    lambda: net(
        lambda s, x: (
            lambda a: (lambda b: s.out(s.la(a) + F.interpolate(s.lb(b), scale_factor=2, mode="bilinear")))(
                F.relu(s.b(F.avg_pool2d(a, 2)))
            )
        )(F.relu(s.a(x))),
        a=nn.Conv2d(2, 3, 1),
        b=nn.Conv2d(3, 4, 1),
        la=nn.Conv2d(3, 5, 1),
        lb=nn.Conv2d(4, 5, 1),
        out=nn.Conv2d(5, 1, 1),
    ),
    IMAGE,
)
network(
    "aspp",
    "DeepLab: dilated branches and image pooling",
    conv("a", "a", None)
    | conv("d1", "x", "a")
    | conv("d2", "y", "a")
    | conv("g", "z", "a")
    | {"out.weight": (None, ["x", "y", "z"], None, None)},
    lambda: net(
        lambda s, x: (
            lambda h: s.out(
                F.relu(torch.cat([s.d1(h), s.d2(h), F.interpolate(s.g(F.adaptive_avg_pool2d(h, 1)), (6, 6))], 1))
            )
        )(F.relu(s.a(x))),
        a=nn.Conv2d(2, 3, 1),
        d1=nn.Conv2d(3, 4, 3, padding=1),
        d2=nn.Conv2d(3, 3, 3, padding=2, dilation=2),
        g=nn.Conv2d(3, 2, 1),
        out=nn.Conv2d(9, 1, 1),
    ),
    IMAGE,
)
network(
    "dynamic_convolution",
    "CondConv (Yang et al. 2019): kernels mixed by a router, applied by groups",
    {"w": ("e", "c", None, None, None), "r.weight": ("e", None), "r.bias": ("e",), "out.weight": (None, "c")},
    lambda: net(
        lambda s, x: s.out(
            pooled(
                F.relu(
                    F.conv2d(
                        x.reshape(1, 4, 6, 6),
                        torch.einsum("be,eoikl->boikl", s.r(pooled(x)).sigmoid(), s.w).flatten(0, 1),
                        groups=2,
                    ).view(2, 3, 4, 4)
                )
            )
        ),
        w=(3, 3, 2, 3, 3),
        r=nn.Linear(2, 3),
        out=nn.Linear(3, 2),
    ),
    IMAGE,
)
network(
    "locally_connected",
    "unfold, a weight for each place, no sharing",
    {"w": (PLACE, "c", None), "out.weight": (None, ("c", PLACE))},
    lambda: net(
        lambda s, x: s.out(torch.tanh(torch.einsum("bkp,pck->bcp", F.unfold(x, 3), s.w)).flatten(1)),
        w=(16, 3, 18),
        out=nn.Linear(48, 2),
    ),
    IMAGE,
    within={"c": "place"},
)
network(
    "convolution_as_unfold",
    "im2col spelled out: unfold, matmul, fold",
    {"w": ("c", None), "v": (None, "c")},
    lambda: net(lambda s, x: F.fold(s.v @ F.relu(s.w @ F.unfold(x, 3)), (6, 6), 3), w=(4, 18), v=(9, 4)),
    IMAGE,
)
network(
    "ghost_module",
    "Han et al. 2020: cheap features beside the primary ones",
    conv("p", "c", None) | {"g.weight": ("c", None, None, None), "g.bias": ("c",), "out.weight": (None, ["c", "c"])},
    lambda: net(
        lambda s, x: (lambda h: s.out(pooled(F.relu(torch.cat([h, s.g(h)], 1)))))(F.relu(s.p(x))),
        p=nn.Conv2d(2, 4, 1),
        g=nn.Conv2d(4, 4, 3, padding=1, groups=4),
        out=nn.Linear(8, 2),
    ),
    IMAGE,
)
network(
    "non_local",
    "Wang et al. 2018: attention over pixels by 1x1 convolutions",
    conv("a", "c", None)
    | conv("t", "k", "c")
    | conv("p", "k", "c")
    | conv("g", "v", "c")
    | conv("z", "c", "v")
    | {"out.weight": (None, "c")},
    lambda: net(
        lambda s, x: (
            lambda h: s.out(
                pooled(
                    h
                    + s.z(
                        (lambda t, p, g: (g @ (t.mT @ p).softmax(-1).mT).view(2, 2, 6, 6))(
                            *(f(h).flatten(2) for f in (s.t, s.p, s.g))
                        )
                    )
                )
            )
        )(s.a(x)),
        a=nn.Conv2d(2, 4, 1),
        t=nn.Conv2d(4, 3, 1),
        p=nn.Conv2d(4, 3, 1),
        g=nn.Conv2d(4, 2, 1),
        z=nn.Conv2d(2, 4, 1),
        out=nn.Linear(4, 2),
    ),
    IMAGE,
)
network(
    "mixer_by_einsum",
    "MLP-Mixer block (Tolstikhin et al. 2021), both perceptrons by einsum",
    {
        "e.weight": ("d", None),
        "e.bias": ("d",),
        "t1": ("t", None),
        "t2": (None, "t"),
        "c1": ("c", "d"),
        "c2": ("d", "c"),
    }
    | {"out.weight": (None, "d")},
    lambda: net(
        lambda s, x: (
            lambda h: (
                lambda h: s.out(
                    (h + torch.einsum("dc,bnc->bnd", s.c2, F.gelu(torch.einsum("cd,bnd->bnc", s.c1, h)))).mean(1)
                )
            )(h + torch.einsum("nt,btd->bnd", s.t2, F.gelu(torch.einsum("tn,bnd->btd", s.t1, h))))
        )(s.e(x)),
        e=nn.Linear(3, 4),
        t1=(6, 5),
        t2=(5, 6),
        c1=(7, 4),
        c2=(4, 7),
        out=nn.Linear(4, 2),
    ),
    (2, 5, 3),
)
network(
    "style_modulation",
    "StyleGAN2 (Karras et al. 2020): weights modulated and demodulated",
    layer("style", "c", None) | conv("a", "c", None) | {"w": ("d", "c", None, None), "out.weight": (None, "d")},
    lambda: net(
        lambda s, x, z: s.out(
            pooled(
                F.leaky_relu(
                    (
                        lambda w: F.conv2d(
                            F.relu(s.a(x)).reshape(1, 8, 6, 6),
                            (w * torch.rsqrt(w.square().sum((2, 3, 4), keepdim=True) + 1e-8)).reshape(6, 4, 3, 3),
                            groups=2,
                        ).view(2, 3, 4, 4)
                    )(s.w[None] * (1 + s.style(z))[:, None, :, None, None])
                )
            )
        ),
        style=nn.Linear(2, 4),
        a=nn.Conv2d(2, 4, 1),
        w=(3, 4, 3, 3),
        out=nn.Linear(3, 2),
    ),
    IMAGE,
    (2, 2),
)
network(
    "gram_matrix_features",
    "style features: the trace and the norm of Gram matrices (Gatys et al. 2016)",
    conv("a", "c", None),
    lambda: net(
        lambda s, x: (
            lambda f: torch.stack([torch.linalg.matrix_norm(f @ f.mT), (f @ f.mT).diagonal(dim1=1, dim2=2).sum(-1)])
        )(torch.tanh(s.a(x)).flatten(2)),
        a=nn.Conv2d(2, 4, 1),
    ),
    IMAGE,
)
network(
    "capsules",
    "Sabour et al. 2017: two rounds of routing between capsules",
    {"p.weight": (("c", "d"), None, None, None), "p.bias": (("c", "d"),), "w": (CLASS, "c", "o", "d")},
    lambda: net(_route, p=nn.Conv2d(2, 6, 6), w=(2, 3, 4, 2)),
    IMAGE,
    within={"d": "c", "o": "class"},
    sizes={"c": 3, "d": 2},
)


def _route(s, x):
    """Primary capsules c of d, two classes of four; agreement decides the weights."""
    u = s.p(x).view(2, 3, 2)
    u = u * (u.norm(dim=-1, keepdim=True) / (1 + u.square().sum(-1, keepdim=True)))
    votes = torch.einsum("kced,bcd->bkce", s.w, u)
    logits = torch.zeros(2, 2, 3)
    for _ in range(2):
        out = (logits.softmax(1)[..., None] * votes).sum(2)
        out = out * (out.norm(dim=-1, keepdim=True) / (1 + out.square().sum(-1, keepdim=True)))
        logits = logits + (votes * out[:, :, None]).sum(-1)
    return out.norm(dim=-1)
