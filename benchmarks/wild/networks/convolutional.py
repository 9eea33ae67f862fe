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
