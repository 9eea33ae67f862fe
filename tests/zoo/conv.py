"""Convolutions: one atom a set of channels."""

from __future__ import annotations

import torch
from problems import bayesian, problem
from torch import nn
from torch.nn import functional as F

from pyro_align.axes import Atom, Odd

CNN = {"0.weight": ("a", None, None, None), "0.bias": ("a",), "3.weight": ("b", "a", None, None), "3.bias": ("b",)}


def cnn(pool_a: nn.Module, pool_b: nn.Module, features: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1),
        nn.ReLU(),
        pool_a,
        nn.Conv2d(3, 4, 3, padding=1),
        nn.Tanh(),
        pool_b,
        nn.Flatten(),
        nn.Linear(features, 2),
    )


@problem({**CNN, "7.weight": (None, ("b", None))})
def cnn_with_max_pooling_and_flatten():
    return bayesian(cnn(nn.MaxPool2d(2), nn.MaxPool2d(2), 16)), (torch.randn(2, 2, 8, 8),)


@problem({**CNN, "7.weight": (None, ("b", None))}, oracle=False, odd="b")
def cnn_with_average_pooling():
    return bayesian(cnn(nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(3), 36)), (torch.randn(2, 2, 8, 8),)


@problem({**CNN, "7.weight": (None, "b")}, odd="b")
def cnn_with_global_pooling():
    return bayesian(cnn(nn.AdaptiveMaxPool2d(5), nn.AdaptiveAvgPool2d(1), 4)), (torch.randn(2, 2, 8, 8),)


@problem({"0.weight": ("a", None, None), "0.bias": ("a",), "2.weight": (None, "a", None)})
def convolution_in_one_dimension():
    net = nn.Sequential(
        nn.Conv1d(2, 5, 3, padding=1, padding_mode="circular"), nn.Softplus(), nn.Conv1d(5, 2, 3, stride=2)
    )
    return bayesian(net), (torch.randn(2, 2, 8),)


@problem(
    {
        "0.weight": ("a", None, None, None),
        "0.bias": ("a",),
        "2.weight": ("a", None, None, None),
        "2.bias": ("a",),
        "4.weight": (None, "a", None, None),
    }
)
def depthwise_convolution():
    net = nn.Sequential(nn.Conv2d(2, 5, 1), nn.ReLU(), nn.Conv2d(5, 5, 3, groups=5), nn.ReLU(), nn.Conv2d(5, 2, 1))
    return bayesian(net), (torch.randn(2, 2, 5, 5),)


@problem(
    {
        "0.weight": ("a", None, None, None),
        "0.bias": ("a",),
        "2.weight": (("a", "m"), None, None, None),
        "2.bias": (("a", "m"),),
        "4.weight": (None, ("a", "m"), None, None),
    },
    within={"m": "a"},
)
def depthwise_convolution_with_multiplier():
    net = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), nn.Conv2d(3, 6, 3, groups=3), nn.ReLU(), nn.Conv2d(6, 2, 1))
    return bayesian(net), (torch.randn(2, 2, 5, 5),)


@problem(
    {
        "0.weight": ((Atom("g", 2), Atom("i", 3)), None, None, None),
        "0.bias": (("g", "i"),),
        "2.weight": (("g", Atom("o", 4)), "i", None, None),
        "2.bias": (("g", "o"),),
        "4.weight": (None, ("g", "o"), None, None),
    },
    within={"i": "g", "o": "g"},
)
def grouped_convolution():
    net = nn.Sequential(nn.Conv2d(2, 6, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 2, 1))
    return bayesian(net), (torch.randn(2, 2, 5, 5),)


@problem(
    {
        "0.weight": ("a", None, None, None),
        "0.bias": ("a",),
        "2.weight": ("a", "b", None, None),
        "2.bias": ("b",),
        "4.weight": ("b", None, None, None),
    }
)
def transposed_convolution():
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2),
        nn.ReLU(),
        nn.ConvTranspose2d(3, 4, 2, stride=2),
        nn.ReLU(),
        nn.ConvTranspose2d(4, 2, 3),
    )
    return bayesian(net), (torch.randn(2, 2, 5, 5),)


class Block(nn.Module):
    """A pre-activation-free basic block with GroupNorm and a strided projection."""

    def __init__(self, n: int, m: int, stride: int, groups: int):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(n, m, 3, stride, 1, bias=False), nn.GroupNorm(groups, m)
        self.conv2, self.norm2 = nn.Conv2d(m, m, 3, 1, 1, bias=False), nn.GroupNorm(groups, m)
        self.project = nn.Conv2d(n, m, 1, stride, bias=False) if stride != 1 or n != m else None

    def forward(self, x):
        h = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(h + (x if self.project is None else self.project(x)))


class ResNet(nn.Module):
    """Three stages of basic blocks: ``depth = 6 blocks + 2``."""

    def __init__(self, widths=(4, 6, 8), blocks=1, groups=2, classes=3):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False), nn.GroupNorm(groups, widths[0])
        stages, n = [], widths[0]
        for i, m in enumerate(widths):
            for j in range(blocks):
                stages.append(Block(n, m, 2 if i and not j else 1, groups))
                n = m
        self.blocks, self.head = nn.ModuleList(stages), nn.Linear(n, classes)

    def forward(self, x):
        h = F.relu(self.norm(self.stem(x)))
        for block in self.blocks:
            h = block(h)
        return self.head(h.mean((2, 3)))


def resnet_axes(widths, blocks, groups):
    """Stage ``s`` has a stream ``gs x us``; every block a hidden atom pair of its own; units nest in their group."""
    axes, within = {}, {}

    def channels(name, m):
        within[f"u{name}"] = f"g{name}"
        return (Atom(f"g{name}", groups), Atom(f"u{name}", m // groups))

    stream = channels("0", widths[0])
    axes["stem.weight"] = (stream, None, None, None)
    axes["norm.weight"] = axes["norm.bias"] = (stream,)
    index = 0
    for i, m in enumerate(widths):
        for j in range(blocks):
            at, before = f"blocks.{index}", stream
            if i and not j:
                stream = channels(str(i), m)
                axes[f"{at}.project.weight"] = (stream, before, None, None)
            hidden = channels(f"b{index}", m)
            axes[f"{at}.conv1.weight"], axes[f"{at}.conv2.weight"] = (
                (hidden, before, None, None),
                (stream, hidden, None, None),
            )
            axes[f"{at}.norm1.weight"] = axes[f"{at}.norm1.bias"] = (hidden,)
            axes[f"{at}.norm2.weight"] = axes[f"{at}.norm2.bias"] = (stream,)
            index += 1
    axes["head.weight"] = (None, stream)
    return axes, within


def resnet_signs(axes):
    """A whole group may change sign before its normalization, together with the gains behind it."""
    pairs = {"stem": "norm"}
    pairs |= {k[: -len(".weight")]: k[: -len(".weight")].replace("conv", "norm") for k in axes if "conv" in k}
    signs = {}
    for conv, norm in pairs.items():
        (group, unit), *rest = axes[f"{conv}.weight"]
        turned = (Odd(group.name, group.size), unit)
        signs |= {f"{conv}.weight": (turned, *rest), f"{norm}.weight": (turned,)}
    return signs


def _resnet(name, widths, blocks, groups, oracle):
    axes, within = resnet_axes(widths, blocks, groups)

    @problem(axes, within=within, signs=resnet_signs(axes), oracle=oracle, name=name)
    def make():
        return bayesian(ResNet(widths, blocks, groups)), (torch.randn(1, 3, 8, 8),)


_resnet("small_resnet_with_group_norm", (4, 4, 6), 1, 2, False)
_resnet("resnet_20_with_group_norm", (8, 16, 32), 3, 4, False)


class FilterResponseNorm(nn.Module):
    """Singh & Krishnan 2020: a normalization of each channel on its own, with a learned threshold."""

    def __init__(self, n: int):
        super().__init__()
        self.tau, self.beta, self.gamma = (nn.Parameter(torch.zeros(1, n, 1, 1)) for _ in range(3))

    def forward(self, x):
        x = x * torch.rsqrt(x.pow(2).mean((2, 3), keepdim=True) + 1e-6)
        return torch.maximum(self.gamma * x + self.beta, self.tau)


@problem(
    {
        "0.weight": ("a", None, None, None),
        "0.bias": ("a",),
        "1.tau": (None, "a", None, None),
        "1.beta": (None, "a", None, None),
        "1.gamma": (None, "a", None, None),
        "2.weight": ("b", "a", None, None),
        "2.bias": ("b",),
        "3.weight": ("b", None, None),
        "3.bias": ("b", None, None),
        "6.weight": (None, ("b", None)),
    },
    signs={"0.weight": (Odd("a"), None, None, None), "0.bias": (Odd("a"),), "1.gamma": (None, Odd("a"), None, None)},
)
def custom_normalizations():
    class ChannelScale(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.ones(4, 1, 1)), nn.Parameter(torch.zeros(4, 1, 1))

        def forward(self, x):
            x = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + 1e-5).sqrt()
            return x * self.weight + self.bias

    net = nn.Sequential(
        nn.Conv2d(2, 3, 3),
        FilterResponseNorm(3),
        nn.Conv2d(3, 4, 2),
        ChannelScale(),
        nn.ELU(),
        nn.Flatten(),
        nn.Linear(16, 2),
    )
    return bayesian(net), (torch.randn(2, 2, 5, 5),)


@problem(
    {
        "a.weight": (Atom("a", 3), None, None, None),
        "a.bias": ("a",),
        "b.weight": (Atom("b", 4), [Atom("x!", 2), "a"], None, None),
        "b.bias": ("b",),
        "c.weight": (None, [Atom("x!", 2), "a", "b"], None, None),
    }
)
def dense_concatenation():
    class DenseNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(5, 4, 3, padding=1), nn.Conv2d(9, 2, 1)

        def forward(self, x):
            x = torch.cat([x, F.relu(self.a(x))], 1)
            x = torch.cat([x, F.relu(self.b(x))], 1)
            return self.c(x)

    return bayesian(DenseNet()), (torch.randn(2, 2, 4, 4),)


@problem(
    {
        "down.weight": (Atom("a", 3), None, None, None),
        "down.bias": ("a",),
        "middle.weight": (Atom("b", 4), "a", None, None),
        "middle.bias": ("b",),
        "up.weight": ("b", Atom("c", 5), None, None),
        "up.bias": ("c",),
        "out.weight": (None, ["c", "a"], None, None),
    }
)
def u_net_skip():
    class UNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.down, self.middle = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
            self.up, self.out = nn.ConvTranspose2d(4, 5, 2, stride=2), nn.Conv2d(8, 2, 3, padding=1)

        def forward(self, x):
            a = F.relu(self.down(x))
            b = F.relu(self.middle(F.max_pool2d(a, 2)))
            c = F.interpolate(F.relu(self.up(F.interpolate(b, scale_factor=2))), size=a.shape[2:], mode="bilinear")
            return self.out(torch.cat([c, a], 1))

    return bayesian(UNet()), (torch.randn(2, 2, 4, 4),)


@problem(
    {
        "conv.weight": ("a", None, None, None),
        "conv.bias": ("a",),
        "down.weight": ("s", "a"),
        "down.bias": ("s",),
        "up.weight": ("a", "s"),
        "up.bias": ("a",),
        "out.weight": (None, "a", None, None),
    }
)
def squeeze_and_excitation():
    class SqueezeExcitation(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.down, self.up, self.out = (
                nn.Conv2d(2, 5, 3),
                nn.Linear(5, 3),
                nn.Linear(3, 5),
                nn.Conv2d(5, 2, 1),
            )

        def forward(self, x):
            x = F.relu(self.conv(x))
            gate = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3))))))
            return self.out(x * gate[:, :, None, None])

    return bayesian(SqueezeExcitation()), (torch.randn(2, 2, 5, 5),)


@problem(
    {
        "a.weight": ((Atom("g", 2), Atom("h", 3)), None, None, None),
        "a.bias": (("g", "h"),),
        "b.weight": (("h", "g"), None, None, None),
        "b.bias": (("h", "g"),),
        "c.weight": (None, ("h", "g"), None, None),
    },
    within={"h": "g"},
)
def channel_shuffle():
    class Shuffle(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(2, 6, 1), nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 2, 1)

        def forward(self, x):
            x = F.channel_shuffle(F.relu(self.a(x)), 2)
            return self.c(F.relu(self.b(x)))

    return bayesian(Shuffle()), (torch.randn(2, 2, 5, 5),)


@problem(
    {
        "stem.weight": ("a", None, None, None),
        "stem.bias": ("a",),
        "depth.weight": ("a", None, None, None),
        "depth.bias": ("a",),
        "norm.weight": ("a",),
        "norm.bias": ("a",),
        "up.weight": ("h", "a"),
        "up.bias": ("h",),
        "down.weight": ("a", "h"),
        "down.bias": ("a",),
        "gamma": ("a",),
        "head.weight": (None, "a"),
    },
    signs={
        "stem.weight": (Odd("a"), None, None, None),
        "stem.bias": (Odd("a"),),
        "depth.weight": (Odd("a"), None, None, None),
        "norm.weight": (Odd("a"),),
        "norm.bias": (Odd("a"),),
        "up.weight": ("h", Odd("a")),
        "down.weight": (Odd("a"), "h"),
        "down.bias": (Odd("a"),),
        "head.weight": (None, Odd("a")),
    },
)
def convnext_block_with_layer_scale():
    class ConvNeXt(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.depth = nn.Conv2d(3, 4, 2, stride=2), nn.Conv2d(4, 4, 3, padding=1, groups=4)
            self.norm, self.up, self.down = nn.LayerNorm(4), nn.Linear(4, 5), nn.Linear(5, 4)
            self.gamma, self.head = nn.Parameter(torch.full((4,), 0.1)), nn.Linear(4, 2)

        def forward(self, x):
            x = self.stem(x)
            h = self.norm(self.depth(x).permute(0, 2, 3, 1))
            h = self.gamma * self.down(F.gelu(self.up(h)))
            return self.head((x + h.permute(0, 3, 1, 2)).mean((2, 3)))

    return bayesian(ConvNeXt()), (torch.randn(2, 3, 8, 8),)
