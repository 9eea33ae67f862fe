"""Convolutional networks that change the number of pixels, and those on sequences and volumes."""

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.wild.catalog import conv, net, network, norm
from benchmarks.wild.networks.convolutional import IMAGE, pooled

network(
    "u_net_transposed",
    "Ronneberger et al. 2015, transposed convolution and skip",
    conv("a", "a", None)
    | conv("b", "b", "a")
    | {"up.weight": ("b", "u", None, None), "up.bias": ("u",)}
    | {"c.weight": ("c", ["u", "a"], None, None), "c.bias": ("c",), "out.weight": (None, "c", None, None)},
    lambda: net(
        lambda s, x: (lambda e: s.out(F.relu(s.c(torch.cat([s.up(F.relu(s.b(F.max_pool2d(e, 2)))), e], 1)))))(
            F.relu(s.a(x))
        ),
        a=nn.Conv2d(2, 3, 3, padding=1),
        b=nn.Conv2d(3, 4, 3, padding=1),
        up=nn.ConvTranspose2d(4, 3, 2, 2),
        c=nn.Conv2d(6, 4, 3, padding=1),
        out=nn.Conv2d(4, 1, 1),
    ),
    IMAGE,
)
network(
    "pixel_shuffle",
    "Shi et al. 2016: sub-pixel convolution",
    {"a.weight": (("c", 4), None, None, None), "a.bias": (("c", 4),), "out.weight": (None, "c", None, None)},
    lambda: net(
        lambda s, x: s.out(torch.tanh(F.pixel_shuffle(s.a(x), 2))), a=nn.Conv2d(2, 12, 3), out=nn.Conv2d(3, 1, 3)
    ),
    IMAGE,
)
network(
    "pixel_unshuffle",
    "space to depth",
    conv("a", "c", None) | {"b.weight": ("d", ("c", 4), None, None), "b.bias": ("d",), "out.weight": (None, "d")},
    lambda: net(
        lambda s, x: s.out(pooled(F.relu(s.b(nn.PixelUnshuffle(2)(F.relu(s.a(x))))))),
        a=nn.Conv2d(2, 3, 1),
        b=nn.Conv2d(12, 4, 1),
        out=nn.Linear(4, 2),
    ),
    IMAGE,
)
network(
    "temporal_convolution",
    "Bai et al. 2018: dilated causal convolutions, the padding cut off again",
    conv("a", "a", None, 1) | conv("b", "b", "a", 1) | conv("r", "b", None, 1) | {"out.weight": (None, "b")},
    lambda: net(
        lambda s, x: s.out((F.relu(s.b(F.relu(s.a(x)[..., :-2]))[..., :-4]) + s.r(x))[..., -1]),
        a=nn.Conv1d(2, 3, 3, padding=2),
        b=nn.Conv1d(3, 4, 3, padding=4, dilation=2),
        r=nn.Conv1d(2, 4, 1),
        out=nn.Linear(4, 2),
    ),
    (2, 2, 8),
)
network(
    "wavenet_layer",
    "van den Oord et al. 2016: gated, residual and skip",
    conv("inp", "r", None, 1)
    | {"fg.weight": (["g", "g"], "r", None), "fg.bias": (["g", "g"],)}
    | conv("res", "r", "g", 1)
    | conv("skip", "k", "g", 1)
    | conv("res2", "r2", "r", 1)
    | {"out.weight": (None, ["k", "r2"], None)},
    lambda: net(
        lambda s, x: (
            lambda h: (lambda z: s.out(F.relu(torch.cat([s.skip(z), s.res2(h + s.res(z))], 1))))(
                (lambda f, g: torch.tanh(f) * torch.sigmoid(g))(*s.fg(F.pad(h, (1, 0))).chunk(2, 1))
            )
        )(s.inp(x)),
        inp=nn.Conv1d(2, 4, 1),
        fg=nn.Conv1d(4, 6, 2),
        res=nn.Conv1d(3, 4, 1),
        skip=nn.Conv1d(3, 3, 1),
        res2=nn.Conv1d(4, 2, 1),
        out=nn.Conv1d(5, 1, 1),
    ),
    (2, 2, 6),
)
network(
    "convolution_3d",
    "C3D (Tran et al. 2015)",
    conv("0", "a", None, 3) | conv("2", "b", "a", 3) | {"5.weight": (None, ("b", 8))},
    lambda: nn.Sequential(
        nn.Conv3d(1, 3, 3), nn.ReLU(), nn.Conv3d(3, 4, 1), nn.AdaptiveMaxPool3d(2), nn.Flatten(), nn.Linear(32, 2)
    ),
    (2, 1, 4, 4, 4),
)
network(
    "text_cnn",
    "Kim 2014: widths of filters side by side, max over time",
    {"emb.weight": (None, "e")}
    | {k: t for w in (2, 3) for k, t in conv(f"c.{w - 2}", f"c{w}", "e", 1).items()}
    | {"out.weight": (None, ["c2", "c3"])},
    lambda: net(
        lambda s, x: s.out(
            torch.cat([F.max_pool1d(F.relu(c(s.emb(x).mT)), int(8 - i - 1)).squeeze(-1) for i, c in enumerate(s.c)], 1)
        ),
        emb=nn.Embedding(9, 4),
        c=nn.ModuleList([nn.Conv1d(4, 3, 2), nn.Conv1d(4, 5, 3)]),
        out=nn.Linear(8, 2),
    ),
    lambda: torch.randint(0, 9, (2, 8)),
)
network(
    "conv_lstm",
    "Shi et al. 2015: a convolutional LSTM cell, two steps",
    {"c.weight": (["h"] * 4, [None, "h"], None, None), "c.bias": (["h"] * 4,), "out.weight": (None, "h")},
    lambda: net(_conv_lstm, c=nn.Conv2d(5, 12, 3, padding=1), out=nn.Linear(3, 2)),
    (2, 2, 2, 4, 4),
)


def _conv_lstm(s, x):
    h = c = torch.zeros(2, 3, 4, 4)
    for t in range(2):
        i, f, o, g = torch.split(s.c(torch.cat([x[:, t], h], 1)), 3, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
    return s.out(pooled(h))


network(
    "group_norm",
    "Wu and He 2018: groups, and channels within each",
    {"a.weight": (("g", "c"), None, None, None), "a.bias": (("g", "c"),)}
    | norm("n", ("g", "c"))
    | conv("b", "d", ("g", "c"))
    | {"out.weight": (None, "d")},
    lambda: net(
        lambda s, x: s.out(pooled(F.relu(s.b(F.relu(s.n(s.a(x))))))),
        a=nn.Conv2d(2, 6, 3),
        n=nn.GroupNorm(2, 6),
        b=nn.Conv2d(6, 4, 1),
        out=nn.Linear(4, 2),
    ),
    IMAGE,
    within={"c": "g"},
    sizes={"g": 2, "c": 3},
)
network(
    "instance_norm_and_layer_norm_2d",
    "instance normalization; LayerNorm over channels by two permutes (ConvNeXt)",
    conv("a", "a", None) | norm("n", "a") | conv("b", "b", "a") | norm("l", "b") | {"out.weight": (None, "b")},
    lambda: net(
        lambda s, x: s.out(pooled(s.l(s.b(F.leaky_relu(s.n(s.a(x)))).permute(0, 2, 3, 1)).permute(0, 3, 1, 2))),
        a=nn.Conv2d(2, 3, 3),
        n=nn.InstanceNorm2d(3, affine=True),
        b=nn.Conv2d(3, 4, 1),
        l=nn.LayerNorm(4),
        out=nn.Linear(4, 2),
    ),
    IMAGE,
)
network(
    "local_response_norm",
    "AlexNet: normalization across neighboring channels keeps their order",
    {"b.weight": ("d", None, None, None), "b.bias": ("d",), "out.weight": (None, "d")},
    lambda: net(
        lambda s, x: s.out(pooled(F.relu(s.b(F.local_response_norm(F.relu(s.a(x)), 3))))),
        a=nn.Conv2d(2, 4, 3),
        b=nn.Conv2d(4, 3, 1),
        out=nn.Linear(3, 2),
    ),
    IMAGE,
)
network(
    "seg_net",
    "Badrinarayanan et al. 2017: unpooling at the places of the maxima",
    conv("a", "c", None) | {"out.weight": (None, "c", None, None)},
    lambda: net(
        lambda s, x: (lambda v, i: s.out(F.max_unpool2d(torch.tanh(v), i, 2)))(
            *F.max_pool2d(s.a(x), 2, return_indices=True)
        ),
        a=nn.Conv2d(2, 4, 3, padding=1),
        out=nn.Conv2d(4, 1, 3, padding=1),
    ),
    IMAGE,
)
