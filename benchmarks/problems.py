"""Matching problems with the shapes of well-known networks, symmetries written by hand.

Two kinds. *Independent*: both sides drawn from two seeds; weights normal with mean 0 and variance ``gain / fan_in``,
biases and normalization shifts 0, normalization scales 1, position and token embeddings normal with standard deviation
0.02. *Planted*: the moving side is an independent draw, the fixed side the same draw relabeled at random, with normal
noise of ``noise`` times each site's root mean square.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from pyro_align.symmetry.element import Permutation
from pyro_align.symmetry.group import Symmetry


@dataclass(frozen=True)
class Network:
    """Axis terms and shapes of a network's parameters.

    Attributes:
        axes: Parameter -> one axis term per axis.
        shapes: Parameter -> shape.
        within: Nested atom -> outer atom.
        fan_in: Parameter -> fan-in of weights; parameters without an entry are scales, biases or embeddings.
    """

    axes: dict
    shapes: dict
    within: dict
    fan_in: dict

    def symmetry(self) -> Symmetry:
        return Symmetry.from_axes(self.axes, shapes=self.shapes, within=self.within)

    def draw(self, seed: int, gain: float = 2.0) -> dict[str, tuple[torch.Tensor, ...]]:
        generator = torch.Generator().manual_seed(seed)
        values = {}
        for name, shape in self.shapes.items():
            if name in self.fan_in:
                value = torch.randn(shape, generator=generator) * math.sqrt(gain / self.fan_in[name])
            elif name.endswith("embedding"):
                value = torch.randn(shape, generator=generator) * 0.02
            else:
                value = torch.ones(shape) if name.endswith("scale") else torch.zeros(shape)
            values[name] = (value,)
        return values

    @property
    def size(self) -> int:
        return sum(math.prod(s) for s in self.shapes.values())


class _Builder:
    def __init__(self):
        self.axes, self.shapes, self.within, self.fan_in = {}, {}, {}, {}

    def add(self, name, axes, shape, fan_in=None):
        self.axes[name], self.shapes[name] = tuple(axes), tuple(shape)
        if fan_in:
            self.fan_in[name] = fan_in

    def linear(self, name, out, inp, n_out, n_in, bias=True):
        self.add(f"{name}.weight", (out, inp), (n_out, n_in), n_in)
        if bias:
            self.add(f"{name}.bias", (out,), (n_out,))

    def conv(self, name, out, inp, n_out, n_in, kernel=3, bias=False):
        self.add(f"{name}.weight", (out, inp, None, None), (n_out, n_in, kernel, kernel), n_in * kernel**2)
        if bias:
            self.add(f"{name}.bias", (out,), (n_out,))

    def norm(self, name, atom, n):
        self.add(f"{name}.scale", (atom,), (n,))
        self.add(f"{name}.shift", (atom,), (n,))

    def done(self) -> Network:
        return Network(self.axes, self.shapes, self.within, self.fan_in)


def mlp(width: int, hidden: int = 3, inputs: int = 784, classes: int = 10) -> Network:
    b = _Builder()
    sizes = [inputs, *[width] * hidden, classes]
    names = [None, *(f"h{i}" for i in range(1, hidden + 1)), None]
    for i in range(hidden + 1):
        b.linear(f"layers.{i}", names[i + 1], names[i], sizes[i + 1], sizes[i])
    return b.done()


def resnet20(multiplier: int = 1) -> Network:
    """CIFAR ResNet-20 with one-group GroupNorm and 1 x 1 convolutions as shortcuts between stages."""
    b = _Builder()
    n = 16 * multiplier
    b.conv("conv1", "r0", None, n, 3)
    b.norm("norm1", "r0", n)
    stream, before = "r0", n
    for stage in range(3):
        n = 16 * multiplier * 2**stage
        for block in range(3):
            name, inner = f"s{stage}.b{block}", f"s{stage}.b{block}.in"
            b.conv(f"{name}.conv1", inner, stream, n, before)
            b.norm(f"{name}.norm1", inner, n)
            after = f"r{stage}"
            b.conv(f"{name}.conv2", after, inner, n, n)
            b.norm(f"{name}.norm2", after, n)
            if stream != after:
                b.conv(f"{name}.shortcut", after, stream, n, before, kernel=1)
                b.norm(f"{name}.norm_shortcut", after, n)
            stream, before = after, n
    b.linear("classifier", None, stream, 10, n)
    return b.done()


def vgg16() -> Network:
    """CIFAR VGG-16: thirteen convolutions with biases, one linear classifier."""
    b = _Builder()
    widths = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    name, n = None, 3
    for i, width in enumerate(widths):
        b.conv(f"conv{i}", f"c{i}", name, width, n, bias=True)
        name, n = f"c{i}", width
    b.linear("classifier", None, name, 10, n)
    return b.done()


def lstm(hidden: int = 512, inputs: int = 128, layers: int = 2, classes: int = 10) -> Network:
    """Stacked LSTM in the layout of ``torch.nn.LSTM``: four gates share the units of their layer."""
    b = _Builder()
    name, n = None, inputs
    for i in range(layers):
        unit = f"u{i}"
        b.linear(f"input{i}", [unit] * 4, name, 4 * hidden, n)
        b.linear(f"recurrent{i}", [unit] * 4, unit, 4 * hidden, hidden)
        name, n = unit, hidden
    b.linear("classifier", None, name, classes, n)
    return b.done()


def transformer(b: _Builder, layers: int, width: int, heads: int, hidden: int) -> None:
    for i in range(layers):
        h, qk, v = f"l{i}.heads", f"l{i}.qk", f"l{i}.v"
        b.within |= {qk: h, v: h}
        b.norm(f"l{i}.norm1", "stream", width)
        from pyro_align.axes import Atom

        head = Atom(h, heads)
        b.linear(f"l{i}.qkv", [(head, qk), (head, qk), (head, Atom(v, width // heads))], "stream", 3 * width, width)
        b.linear(f"l{i}.out", "stream", (head, v), width, width)
        b.norm(f"l{i}.norm2", "stream", width)
        b.linear(f"l{i}.fc1", f"l{i}.mlp", "stream", hidden, width)
        b.linear(f"l{i}.fc2", "stream", f"l{i}.mlp", width, hidden)
    b.norm("norm", "stream", width)


def vit_b16(layers: int = 12) -> Network:
    """ViT-B/16: heads, and the query-key and value dimensions within each head."""
    b = _Builder()
    b.conv("patch", "stream", None, 768, 3, kernel=16, bias=True)
    b.add("class_embedding", ("stream",), (768,))
    b.add("position_embedding", (None, "stream"), (197, 768))
    transformer(b, layers, 768, 12, 3072)
    b.linear("head", None, "stream", 1000, 768)
    return b.done()


def gpt2(layers: int = 12, vocabulary: int = 0) -> Network:
    """A stack of GPT-2-small blocks with position embeddings; token embeddings where ``vocabulary`` is positive."""
    b = _Builder()
    if vocabulary:
        b.add("token_embedding", (None, "stream"), (vocabulary, 768))
    b.add("position_embedding", (None, "stream"), (1024, 768))
    transformer(b, layers, 768, 12, 3072)
    return b.done()


def rnn(hidden: int, inputs: int = 6, classes: int = 3) -> Network:
    """One recurrent layer of an Elman network."""
    b = _Builder()
    b.linear("input", "h", None, hidden, inputs)
    b.linear("recurrent", "h", "h", hidden, hidden)
    b.linear("classifier", None, "h", classes, hidden)
    return b.done()


NETWORKS: dict[str, Callable[[], Network]] = {
    **{f"mlp-{n}": partial(mlp, n, inputs=12, classes=5) for n in (24, 48, 64)},
    "rnn-48": lambda: rnn(48),
    "mlp-512": lambda: mlp(512),
    "mlp-2048": lambda: mlp(2048),
    "resnet20-x1": lambda: resnet20(1),
    "resnet20-x4": lambda: resnet20(4),
    "vgg16": vgg16,
    "lstm-512": lstm,
    "gpt2-2": lambda: gpt2(2),
    "gpt2-stack": gpt2,
    "vit-b16": vit_b16,
}


def independent(network: Network, seed: int = 0, gain: float = 2.0):
    """Fixed and moving features from two seeds."""
    return network.draw(2 * seed, gain), network.draw(2 * seed + 1, gain)


def crowded(network: Network, seed: int = 0):
    """Fixed and moving features on which many units want the same few partners, as on fitted weights.

    Units differ in how much they weigh, and have a direction in common.
    """
    return tuple(_crowd(network, network.draw(2 * seed + k, 1.0), 2 * seed + k) for k in (0, 1))


def _crowd(network: Network, values: dict, seed: int) -> dict:
    generator = torch.Generator().manual_seed(seed + 3000)
    out = {}
    for name, (value,) in values.items():
        if name in network.fan_in:
            rows, columns = (2 * torch.rand(n, generator=generator).square() for n in value.shape[:2])
            rows, columns = (v.view(-1, 1, *(1,) * (value.dim() - 2)) for v in (rows, columns))
            columns = columns.transpose(0, 1)
            common = 0.3 * rows * columns / math.sqrt(network.fan_in[name])
            value = value * (0.3 + rows) * (0.3 + columns) + common
        out[name] = (value,)
    return out


def mean_field(network: Network, seed: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """A synthetic posterior: site -> locations of `draw`, and scales log-normal around a tenth of their size."""
    generator = torch.Generator().manual_seed(seed + 500)
    values = {}
    for name, (loc,) in network.draw(seed, 1.0).items():
        spread = 0.1 * max(float(loc.square().mean().sqrt()), 1e-2)
        values[name] = loc, (torch.randn(loc.shape, generator=generator) * 0.5).exp_() * spread
    return values


def planted_mean_field(network: Network, noise: float):
    """Fixed and moving posteriors of which the fixed one is the other relabeled, and the relabeling.

    Locations have normal noise of ``noise`` times their root mean square, scales log-normal noise of ``noise``.
    """
    moving, truth = mean_field(network, 1), network.symmetry().random(1000)
    generator = torch.Generator().manual_seed(2000)
    fixed = {}
    for name, pair in moving.items():
        loc, scale = (truth.apply_site(name, value) for value in pair)
        loc = loc + torch.randn(loc.shape, generator=generator) * noise * float(pair[0].square().mean().sqrt())
        fixed[name] = loc, scale * (torch.randn(scale.shape, generator=generator) * noise).exp_()
    return fixed, moving, truth


def recovered(indices, truth: Permutation) -> float:
    """Fraction of units matched as planted, over all atoms of the planted relabeling."""
    hits = sum(int((indices[k].cpu() == v).sum()) for k, v in truth.indices.items() if k in indices)
    return hits / sum(v.numel() for v in truth.indices.values())


def planted(network: Network, seed: int = 0, noise: float = 0.05, gain: float = 2.0):
    """Fixed and moving features, and the relabeling that was planted."""
    symmetry = network.symmetry()
    moving = network.draw(2 * seed + 1, gain)
    truth: Permutation = symmetry.random(seed + 1000)
    generator = torch.Generator().manual_seed(seed + 2000)
    fixed = {}
    for name, (value,) in moving.items():
        moved = truth.apply_site(name, value)
        spread = noise * float(value.square().mean().sqrt())
        fixed[name] = (moved.add_(torch.randn(value.shape, generator=generator), alpha=spread),)
    return fixed, moving, truth
