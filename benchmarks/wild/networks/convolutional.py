"""Convolutional networks."""

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.wild.catalog import conv, layer, modules, net, network, norm
from pyro_align.axes import Atom

CLASS = Atom("class", fixed=True)
IMAGE = (2, 2, 6, 6)


def pooled(x):
    return x.mean((-2, -1))


network(
    "resnet_block_with_projection",
    "He et al. 2016, basic block that halves the image",
    conv("stem", "c", None, bias=False)
    | norm("n0", "c", True)
    | conv("a", "h", "c", bias=False)
    | norm("n1", "h", True)
    | conv("b", "d", "h", bias=False)
    | norm("n2", "d", True)
    | conv("p", "d", "c", bias=False)
    | norm("n3", "d", True)
    | {"out.weight": (None, "d")},
    lambda: net(
        lambda s, x: (lambda h: s.out(pooled(F.relu(s.n2(s.b(F.relu(s.n1(s.a(h))))) + s.n3(s.p(h))))))(
            F.relu(s.n0(s.stem(x)))
        ),
        stem=nn.Conv2d(2, 4, 3, bias=False),
        n0=nn.BatchNorm2d(4),
        a=nn.Conv2d(4, 3, 3, 2, 1, bias=False),
        n1=nn.BatchNorm2d(3),
        b=nn.Conv2d(3, 5, 3, 1, 1, bias=False),
        n2=nn.BatchNorm2d(5),
        p=nn.Conv2d(4, 5, 1, 2, bias=False),
        n3=nn.BatchNorm2d(5),
        out=nn.Linear(5, 2),
    ),
    IMAGE,
)
network(
    "resnet_shortcut_padded",
    "ResNet-20 for CIFAR, option A: subsample and pad the channels with zeros",
    conv("stem", "c", None)
    | conv("a", "h", "c")
    | {"b.weight": ([1, "c", 1], "h", None, None), "b.bias": ([1, "c", 1],)}
    | {"out.weight": (None, [1, "c", 1])},
    lambda: net(
        lambda s, x: (
            lambda h: s.out(pooled(F.relu(s.b(F.relu(s.a(h))) + F.pad(h[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1)))))
        )(s.stem(x)),
        stem=nn.Conv2d(2, 3, 3, padding=1),
        a=nn.Conv2d(3, 4, 3, 2, 1),
        b=nn.Conv2d(4, 5, 3, 1, 1),
        out=nn.Linear(5, 2),
    ),
    IMAGE,
)
network(
    "preactivation_bottleneck",
    "He et al. 2016, identity mappings",
    conv("stem", "c", None)
    | norm("n1", "c", True)
    | conv("a", "h", "c")
    | norm("n2", "h", True)
    | conv("b", "c", "h")
    | {"out.weight": (None, "c")},
    lambda: net(
        lambda s, x: (lambda h: s.out(pooled(h + s.b(F.relu(s.n2(s.a(F.relu(s.n1(h)))))))))(s.stem(x)),
        stem=nn.Conv2d(2, 4, 3, padding=1),
        n1=nn.BatchNorm2d(4),
        a=nn.Conv2d(4, 3, 1),
        n2=nn.BatchNorm2d(3),
        b=nn.Conv2d(3, 4, 3, padding=1),
        out=nn.Linear(4, 2),
    ),
    IMAGE,
)
network(
    "inception",
    "Szegedy et al. 2015: branches side by side",
    conv("a", "a", None)
    | conv("b", "b", None)
    | conv("c", "c", "b")
    | {"d.weight": ("d", ["a", "c", None], None, None), "d.bias": ("d",)}
    | {"out.weight": (None, "d")},
    lambda: net(
        lambda s, x: s.out(pooled(F.relu(s.d(torch.cat([s.a(x), s.c(F.relu(s.b(x))), F.max_pool2d(x, 3, 1, 1)], 1))))),
        a=nn.Conv2d(2, 3, 1),
        b=nn.Conv2d(2, 4, 1),
        c=nn.Conv2d(4, 5, 3, padding=1),
        d=nn.Conv2d(10, 4, 1),
        out=nn.Linear(4, 2),
    ),
    IMAGE,
)
network(
    "inverted_residual_in_evaluation",
    "Sandler et al. 2018: expand, depthwise, project",
    conv("stem", "c", None)
    | conv("e", "h", "c")
    | {"dw.weight": ("h", None, None, None), "dw.bias": ("h",)}
    | conv("p", "c", "h")
    | {"out.weight": (None, "c")},
    lambda: net(
        lambda s, x: (lambda h: s.out(F.adaptive_avg_pool2d(h + s.p(F.relu6(s.dw(F.relu6(s.e(h))))), 1).flatten(1)))(
            s.stem(x)
        ),
        stem=nn.Conv2d(2, 3, 3),
        e=nn.Conv2d(3, 6, 1),
        dw=nn.Conv2d(6, 6, 3, padding=1, groups=6),
        p=nn.Conv2d(6, 3, 1),
        out=nn.Linear(3, 2),
    ),
    IMAGE,
)


def shuffled(x, groups):
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def _channels(order_of):
    """A move of the six channels before a shuffle, their places behind it given by the shuffle of indices."""
    behind = shuffled(torch.arange(6)[None], 2)[0]

    def move(values, order):
        index = torch.tensor(order_of(order))
        after = torch.argsort(behind)[index[behind]]
        moved = {k: values[k][index] for k in ("g.weight", "g.bias")}
        return {**values, **moved, "dw.weight": values["dw.weight"][after], "p.weight": values["p.weight"][:, after]}

    return move


network(
    "channel_shuffle_then_dense",
    "ShuffleNet unit: a shuffle between layers that read all channels, so that all orders are free",
    {"out.weight": (None, "d"), "p.bias": ("d",)} | {"p.weight": ("d", None, None, None)},
    lambda: net(
        lambda s, x: s.out(pooled(F.relu(s.p(s.dw(shuffled(F.relu(s.g(x)), 2)))))),
        g=nn.Conv2d(2, 6, 1),
        dw=nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False),
        p=nn.Conv2d(6, 4, 1),
        out=nn.Linear(4, 2),
    ),
    IMAGE,
    moves=[(6, _channels(lambda order: order))],
)


def _interleaved(values, order, half):
    index = list(range(6))
    for new, old in enumerate(order):
        index[3 * half + new] = 3 * half + old
    behind = shuffled(torch.arange(6)[None], 2)[0]
    index = torch.tensor(index)
    after = torch.argsort(behind)[index[behind]]
    name = "ab"[half]
    moved = {f"{name}.{p}": values[f"{name}.{p}"][list(order)] for p in ("weight", "bias")}
    return {**values, **moved, "p.weight": values["p.weight"][:, after]}


network(
    "two_branches_shuffled",
    "ShuffleNet V2: two branches, concatenated and shuffled",
    {"p.weight": ("d", None, None, None), "p.bias": ("d",), "out.weight": (None, "d")},
    lambda: net(
        lambda s, x: s.out(pooled(F.relu(s.p(shuffled(torch.cat([F.relu(s.a(x)), torch.tanh(s.b(x))], 1), 2))))),
        a=nn.Conv2d(2, 3, 1),
        b=nn.Conv2d(2, 3, 3, padding=1),
        p=nn.Conv2d(6, 4, 1),
        out=nn.Linear(4, 2),
    ),
    IMAGE,
    moves=[(3, lambda v, o, half=half: _interleaved(v, o, half)) for half in (0, 1)],
)
network(
    "grouped_convolution",
    "ResNeXt: a grouped convolution between dense ones",
    {
        "a.weight": (("g", "i"), None, None, None),
        "a.bias": (("g", "i"),),
        "b.weight": (("g", "o"), "i", None, None),
        "b.bias": (("g", "o"),),
        "c.weight": ("d", ("g", "o"), None, None),
        "out.weight": (None, "d"),
    },
    lambda: net(
        lambda s, x: s.out(pooled(s.c(F.relu(s.b(F.relu(s.a(x))))).relu())),
        a=nn.Conv2d(2, 6, 1),
        b=nn.Conv2d(6, 4, 3, groups=2),
        c=nn.Conv2d(4, 3, 1, bias=False),
        out=nn.Linear(3, 2),
    ),
    IMAGE,
    within={"i": "g", "o": "g"},
    sizes={"g": 2, "i": 3, "o": 2},
)
network(
    "resnext_as_separate_paths",
    "Xie et al. 2017, the form with paths of their own, summed",
    {
        f"paths.{k}.0.{p}": t
        for k in range(3)
        for p, t in (("weight", (f"h{k}", None, None, None)), ("bias", (f"h{k}",)))
    }
    | {f"paths.{k}.2.weight": ("d", f"h{k}", None, None) for k in range(3)}
    | {f"paths.{k}.2.bias": ("d",) for k in range(3)}
    | {"out.weight": (None, "d")},
    lambda: net(
        lambda s, x: s.out(pooled(F.relu(sum(p(x) for p in s.paths)))),
        paths=nn.ModuleList(nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), nn.Conv2d(3, 4, 3)) for _ in range(3)),
        out=nn.Linear(4, 2),
    ),
    IMAGE,
    moves=[(3, modules("paths.{}."))],
)
network(
    "cbam",
    "Woo et al. 2018: channel and spatial attention",
    conv("c", "c", None) | layer("down", "r", "c") | layer("up", "c", "r") | {"out.weight": (None, "c")},
    lambda: net(
        lambda s, x: (
            lambda h: (
                lambda g: s.out(
                    pooled(g * torch.sigmoid(s.sp(torch.cat([g.mean(1, keepdim=True), g.amax(1, keepdim=True)], 1))))
                )
            )(h * torch.sigmoid(sum(s.up(F.relu(s.down(p))) for p in (pooled(h), h.amax((2, 3)))))[:, :, None, None])
        )(F.relu(s.c(x))),
        c=nn.Conv2d(2, 4, 3),
        down=nn.Linear(4, 2),
        up=nn.Linear(2, 4),
        sp=nn.Conv2d(2, 1, 3, padding=1),
        out=nn.Linear(4, 2),
    ),
    IMAGE,
)
network(
    "eca",
    "Wang et al. 2020: a convolution along the channels, which keeps their order",
    {"b.weight": ("d", None, None, None), "b.bias": ("d",), "out.weight": (None, "d")},
    lambda: net(
        lambda s, x: (
            lambda h: s.out(pooled(F.relu(s.b(h * torch.sigmoid(s.k(pooled(h)[:, None]))[:, 0, :, None, None]))))
        )(s.c(x)),
        c=nn.Conv2d(2, 4, 3),
        k=nn.Conv1d(1, 1, 3, padding=1),
        b=nn.Conv2d(4, 3, 1),
        out=nn.Linear(3, 2),
    ),
    IMAGE,
)
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
    {"w": (None, "c", None), "out.weight": (None, ("c", 16))},
    lambda: net(
        lambda s, x: s.out(torch.tanh(torch.einsum("bkp,pck->bcp", F.unfold(x, 3), s.w)).flatten(1)),
        w=(16, 3, 18),
        out=nn.Linear(48, 2),
    ),
    IMAGE,
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
