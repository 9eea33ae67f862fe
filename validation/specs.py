"""Permutation specifications that others published, held against what is found in the same networks.

python validation/specs.py               # all; torchvision has the networks of those that rebasin and PLeaS derive
python validation/specs.py --quick       # without those
python validation/specs.py --make PLEAS  # derives them again: needs rebasin, and a checkout of PLeaS

*Equal*: the same atoms on the same axes. *Smaller*: each relabeling is right, some are missing. *Wrong*: a relabeling
changes what the network computes. The networks are written again here, at small widths and with the tensors named as
here; a specification says which axes share a permutation, whatever the names.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from unittest.mock import MagicMock

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_align import Symmetry, SymmetrySpec, certify, find_symmetry
from pyro_align.errors import SymmetryError

Spec = dict[str, tuple[str | None, ...]]  # tensor -> the permutation of each axis
RECORDED = Path(__file__).with_suffix(".json")


def conv(name: str, out: str | None, into: str | None, bias: bool = False) -> Spec:
    return {f"{name}.weight": (out, into, None, None), **({f"{name}.bias": (out,)} if bias else {})}


def dense(name: str, out: str | None, into: str | None) -> Spec:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def norm(name: str, channels: str | None) -> Spec:
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


# -- perceptrons and VGG -----------------------------------------------------------------------------------------------


def perceptron(*widths: int) -> nn.Sequential:
    layers = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def perceptron_spec(hidden: int) -> Spec:
    """``P_i`` on the rows of layer i and the columns of the next."""
    names = [None, *(f"P_{i}" for i in range(hidden)), None]
    return {k: v for i in range(hidden + 1) for k, v in dense(str(2 * i), names[i + 1], names[i]).items()}


class ChannelNorm(nn.Module):
    """Normalizes the channels of each pixel, as Flax's LayerNorm does."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.movedim(1, -1), self.weight.shape, self.weight, self.bias).movedim(-1, 1)


def whole_image_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(1, channels)


class Vgg(nn.Module):
    """VGG-16 on images of 32 x 32: thirteen convolutions, each normalized, five poolings, then dense layers."""

    STAGES = ((4, 4), (5, 5), (6, 6, 6), (7, 7, 7), (8, 8, 8))

    def __init__(self, normalize: Callable[[int], nn.Module], *dense: int):
        super().__init__()
        layers, before = [], 3
        for stage in self.STAGES:
            for width in stage:
                layers += [nn.Conv2d(before, width, 3, padding=1), normalize(width), nn.ReLU()]
                before = width
            layers.append(nn.MaxPool2d(2))
        self.features, self.classifier = nn.Sequential(*layers), perceptron(before, *dense, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


def vgg_spec(model: Vgg, outputs: tuple[str | None, ...]) -> Spec:
    """``P_Conv_i`` on each convolution and its norm; then what the dense layers' rows carry."""
    spec, into = {}, None
    for i, layer in enumerate(model.features):
        if isinstance(layer, nn.Conv2d):
            spec |= conv(f"features.{i}", f"P_Conv_{i}", into, bias=True) | norm(f"features.{i + 1}", f"P_Conv_{i}")
            into = f"P_Conv_{i}"
    for i, out in enumerate(outputs):
        spec |= dense(f"classifier.{2 * i}", out, into)
        into = out
    return spec


# -- residual networks -------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """A residual block of two convolutions, or three with a bottleneck; norms behind them, or before.

    Args:
        before: Channels of its input.
        width: Channels of its output.
        stride: Stride, of the shortcut too.
        normalize: Channels -> normalization.
        inner: Channels inside.
        bottleneck: Whether there are three convolutions.
        early: Whether norms and activations come before convolutions.
    """

    def __init__(self, before, width, stride, normalize, *, inner, bottleneck=False, early=False):
        super().__init__()
        self.early, sizes = early, [before, inner, inner, width] if bottleneck else [before, inner, width]
        pairs = list(pairwise(sizes))
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride if i == 0 else 1, padding=1, bias=False) for i, (a, b) in enumerate(pairs)
        )
        self.norms = nn.ModuleList(normalize(a if early else b) for a, b in pairs)
        self.shortcut = nn.Sequential()
        if before != width or stride != 1:
            side = nn.Conv2d(before, width, 3, stride, padding=1, bias=False)
            self.shortcut = nn.Sequential(side, normalize(width))

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for i, (layer, scale) in enumerate(zip(self.convs, self.norms, strict=True)):
            if self.early:
                out = layer(F.relu(scale(out)))
            else:
                out = scale(layer(out if i == 0 else F.relu(out)))
        out = out + self.shortcut(x)
        return out if self.early else F.relu(out)


class ResNet(nn.Module):
    def __init__(self, stem: int, widths: tuple[int, ...], blocks: tuple[int, ...], normalize, **kind):
        super().__init__()
        self.early = kind.get("early", False)
        self.stem, made, before = nn.Conv2d(3, stem, 3, padding=1, bias=False), [], stem
        for group, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            for i in range(count):
                stride = 2 if group and i == 0 else 1
                made.append(Block(before, width, stride, normalize, inner=width + 1, **kind))
                before = width
        self.norm = normalize(before if self.early else stem)
        self.blocks, self.head = nn.Sequential(*made), nn.Linear(before, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(self.norm(self.blocks(x))) if self.early else self.blocks(F.relu(self.norm(x)))
        return self.head(x.mean((2, 3)))


def resnet_spec(model: ResNet) -> Spec:
    """``P_bg*`` on the stream, a new one behind each shortcut; ``P_*_inner`` inside each block."""
    spec, stream, groups = conv("stem", "P_bg0", None), "P_bg0", 0
    if not model.early:
        spec |= norm("norm", stream)
    for i, block in enumerate(model.blocks):
        name, before = f"blocks.{i}", stream
        if len(block.shortcut):
            groups += 1
            stream = f"P_bg{groups}"
            spec |= conv(f"{name}.shortcut.0", stream, before) | norm(f"{name}.shortcut.1", stream)
        axes = [before, *(f"P_{i}_inner{j}" for j in range(len(block.convs) - 1)), stream]
        for j in range(len(block.convs)):
            spec |= conv(f"{name}.convs.{j}", axes[j + 1], axes[j])
            spec |= norm(f"{name}.norms.{j}", axes[j] if model.early else axes[j + 1])
    return spec | (norm("norm", stream) if model.early else {}) | dense("head", None, stream)


def with_statistics(spec: Spec, model: nn.Module) -> Spec:
    """Running statistics move with the weight of their layer; those who leave them out measure them again."""
    return spec | {
        name: spec[weight]
        for name in model.state_dict()
        if name.endswith(("running_mean", "running_var")) and (weight := f"{name.rpartition('.')[0]}.weight") in spec
    }


# -- a vision transformer whose shortcuts are matrices -----------------------------------------------------------------


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int, inner: int):
        super().__init__()
        self.heads, self.temperature = heads, nn.Parameter(torch.zeros(()))
        self.norm, self.out = nn.LayerNorm(dim), nn.Linear(heads * inner, dim)
        self.q, self.k, self.v = (nn.Linear(dim, heads * inner, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        z = self.norm(x)
        q, k, v = (part(z).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        scores = q @ k.transpose(-1, -2) * self.temperature.exp()
        weights = torch.softmax(scores + torch.diag(torch.full((x.shape[1],), -1e9)), -1)  # not to oneself
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self, dim: int, heads: int, inner: int, hidden: int):
        super().__init__()
        self.attention, self.norm = Attention(dim, heads, inner), nn.LayerNorm(dim)
        self.up, self.down = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.side1, self.side2 = nn.Parameter(torch.eye(dim)), nn.Parameter(torch.eye(dim))

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention(x) + x @ self.side1.T
        return self.down(F.gelu(self.up(self.norm(x)))) + x @ self.side2.T


class Vit(nn.Module):
    """On patches; every shortcut is a matrix among the weights, as in C2M3."""

    def __init__(self, heads: int, dim: int = 6, depth: int = 2):
        super().__init__()
        self.embed, self.token = nn.Linear(5, dim), nn.Parameter(torch.randn(1, 1, dim))
        self.position, self.norm, self.head = nn.Parameter(torch.randn(1, 5, dim)), nn.LayerNorm(dim), nn.Linear(dim, 3)
        self.layers = nn.Sequential(*(Layer(dim, heads, 4, 7) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), 1, -1), self.embed(x)], 1) + self.position
        return self.head(self.norm(self.layers(x).mean(1)))


def vit_spec(depth: int = 2, turned: bool = False) -> Spec:
    """The stream is permuted between layers and as it was inside them; ``turned`` swaps the axes of the shortcuts."""
    spec, into = (
        dense("embed", "P_in", None) | {"token": (None, None, "P_in"), "position": (None, None, "P_in")},
        "P_in",
    )
    for i in range(depth):
        at, out = f"layers.{i}", "P_last" if i == depth - 1 else f"P{i}_out"
        first, second = (into, None), (None, out)
        spec |= norm(f"{at}.attention.norm", into) | {f"{at}.attention.v.weight": (None, into)}
        spec |= {f"{at}.attention.{part}.weight": (f"P{i}_QK", into) for part in "qk"}
        spec |= dense(f"{at}.up", f"P{i}_mlp", None) | dense(f"{at}.down", out, f"P{i}_mlp")
        spec |= {f"{at}.side1": first[::-1] if turned else first, f"{at}.side2": second[::-1] if turned else second}
        into = out
    return spec | norm("norm", into) | dense("head", None, into)


# -- what the packages derive themselves -------------------------------------------------------------------------------


def torchvision_networks() -> dict[str, tuple[nn.Module, Tensor]]:
    """Those whose specifications are recorded."""
    from torchvision import models

    image = torch.randn(2, 3, 64, 64)
    return {
        "perceptron": (perceptron(5, 6, 7, 3), torch.randn(2, 5)),
        "ResNet-18": (models.resnet18(), image),
        "MobileNet-V3-small": (models.mobilenet_v3_small(), image),
        "vision transformer": (models.VisionTransformer(32, 16, 2, 4, 64, 128), torch.randn(2, 3, 32, 32)),
        "VGG-11-BN": (models.vgg11_bn(), torch.randn(2, 3, 224, 224)),
    }


def by_rebasin(model: nn.Module, x: Tensor) -> Iterator[list[tuple[str, int]]]:
    from rebasin.permutation_initializer import PermutationInitializer

    graph = PermutationInitializer(copy.deepcopy(model), model, x).model_graph
    graph.enforce_identity()
    names, places = {id(p): n for n, p in model.named_parameters()}, {}
    for permutation, infos in graph.permutation_to_info:
        places.setdefault(id(permutation), []).extend((names[id(i.parameter_b)], i.axis) for i in infos)
    yield from places.values()


def by_pleas(model: nn.Module, x: Tensor) -> Iterator[list[tuple[str, int]]]:
    from pleas.core.compiler import get_permutation_spec

    for group in get_permutation_spec(model, (tuple(x.shape),)).values():
        yield [(axis.key, axis.axis) for axis in group.state]


def make(checkout: Path) -> None:
    """Runs both packages and writes which axes they let share a permutation; what they refuse is left out."""
    sys.path.insert(0, str(checkout))
    for name in ("torchmetrics", "gurobipy", "wandb"):  # not needed for its specifications
        sys.modules[name] = MagicMock()
    recorded = {}
    for name, (model, x) in torchvision_networks().items():
        for package, derive in (("rebasin", by_rebasin), ("PLeaS", by_pleas)):
            if package == "PLeaS" and name == "vision transformer":
                continue  # it says that it does not cover attention
            try:
                groups = [sorted(set(group)) for group in derive(model.eval(), x)]
            except (AssertionError, NotImplementedError) as error:
                print(f"{package} refuses {name}: {error!r}"[:200])
                continue
            recorded[f"{package}, {name}"] = [[f"{tensor} {axis}" for tensor, axis in group] for group in groups]
    RECORDED.write_text(json.dumps(recorded) + "\n")


def recorded_spec(groups: list[list[str]], model: nn.Module) -> Spec:
    """Tensor -> permutations, from groups of ``"tensor axis"``."""
    spec = {name: [None] * value.dim() for name, value in model.state_dict().items()}
    for i, group in enumerate(groups):
        for place in group:
            tensor, axis = place.rsplit(" ", 1)
            spec[tensor][int(axis)] = f"P{i}"
    return with_statistics({k: tuple(v) for k, v in spec.items() if any(v)}, model)


# -- verdicts ----------------------------------------------------------------------------------------------------------


def published(quick: bool) -> Iterator[tuple[str, str, nn.Module, Tensor, Spec]]:
    """Source, network, the network itself, an input, and the specification."""
    image = torch.randn(2, 3, 32, 32)
    mlp, mlp_input = perceptron(6, 8, 9, 10, 3), torch.randn(2, 6)
    for source in ("git-re-basin", "git-re-basin-pytorch", "C2M3"):
        yield source, "perceptron", mlp, mlp_input, perceptron_spec(3)
    small, groups = (4, 6, 8), (3, 3, 3)
    model = Vgg(ChannelNorm, 9, 11)
    yield "git-re-basin", "VGG-16, LayerNorm", model, image, vgg_spec(model, ("P_Dense_0", "P_Dense_1", None))
    model = ResNet(4, small, groups, ChannelNorm)
    yield "git-re-basin", "ResNet-20, LayerNorm", model, image, resnet_spec(model)
    model = ResNet(4, (5, 6, 7, 8), (3, 4, 6, 3), nn.BatchNorm2d, bottleneck=True)
    yield "git-re-basin", "ResNet-50, BatchNorm", model, image, with_statistics(resnet_spec(model), model)
    for depth, blocks in ((22, 3), (52, 8)):
        model = ResNet(3, small, (blocks,) * 3, nn.BatchNorm2d, early=True)
        spec = with_statistics(resnet_spec(model), model)
        yield "git-re-basin-pytorch", f"WideResNet-{depth}, BatchNorm", model, image, spec
    model = Vgg(nn.BatchNorm2d)
    spec = with_statistics(vgg_spec(model, ("P_Dense_0",)), model)
    yield "git-re-basin-pytorch", "VGG-16, BatchNorm", model, image, spec
    model = Vgg(whole_image_norm, 9, 11)
    yield "C2M3", "VGG-16, LayerNorm", model, image, vgg_spec(model, ("P_Dense_0", "P_Dense_1", None))
    model = ResNet(4, small, groups, whole_image_norm)
    yield "C2M3", "ResNet-20, LayerNorm", model, image, resnet_spec(model)
    for heads in (1, 4):
        for turned in (False, True):
            what = f"ViT, heads: {heads}" + ", shortcuts turned" * turned
            yield "C2M3", what, Vit(heads), torch.randn(2, 4, 5), vit_spec(turned=turned)
    if not quick:
        recorded, networks = json.loads(RECORDED.read_text()), torchvision_networks()
        for name, found in recorded.items():
            package, network = name.split(", ", 1)
            model, x = networks[network]
            yield package, network, model, x, recorded_spec(found, model)


def axes(symmetry: Symmetry) -> set[frozenset[tuple[str, int]]]:
    return {frozenset(places) for places in symmetry.carriers.values()}


def verdict(model: nn.Module, x: Tensor, spec: Mapping[str, tuple[str | None, ...]]) -> dict[str, object]:
    """How a specification compares with what is found, at random weights."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.2)
    model.eval()
    found = find_symmetry(model, x)
    row = {"theirs": len({p for v in spec.values() for p in v if p}), "ours": len(found.atoms)}
    try:
        theirs = certify(model, SymmetrySpec(spec), x)
    except SymmetryError as error:
        return {**row, "verdict": "wrong", "certificate": str(error)}
    equal, less = axes(theirs) == axes(found), theirs.log_order < found.log_order
    said = "equal" if equal else "smaller" if less else "other"
    return {**row, "verdict": said, "certificate": f"log |G| {theirs.log_order:.1f} of {found.log_order:.1f}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only the networks written here")
    parser.add_argument("--make", type=Path, help="a checkout of PLeaS; rebasin must be installed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if options.make:
        make(options.make)
        return
    rows, start = [], time.process_time()
    for source, network, model, x, spec in published(options.quick):
        rows.append({"source": source, "network": network, **verdict(model, x, spec)})
        print({k: v if k != "certificate" else str(v)[:300] for k, v in rows[-1].items()}, flush=True)
    print(pd.DataFrame(rows).drop(columns="certificate").to_string(index=False))
    print(f"{time.process_time() - start:.0f} s of CPU")


if __name__ == "__main__":
    main()
