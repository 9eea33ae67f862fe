"""Networks that the demo lacks: a perceptron with relevance priors, a LeNet, a ResNet without batch
statistics, a transformer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_align.demo.network import ACTIVATIONS


def ard_mlp(sizes: Sequence[int], *, activation: str = "relu", spread: float = 1.0) -> Callable[..., Tensor]:
    """A perceptron in which every unit has a prior scale of its own for the weights that leave it.

    Weight (j, i) of a layer is N(0, (f e^u_i)^2) with f = sqrt(2 / fan_in) and u_i ~ N(0, spread^2): automatic
    relevance determination (MacKay 1994; Neal 1996) around the fan-in prior. A hidden unit's u is relabeled with its
    weights.

    Args:
        sizes: Widths of input, hidden layers and output.
        activation: ``"relu"`` or ``"tanh"``.
        spread: Standard deviation of the log scales.

    Returns:
        A model ``(x, y=None, size=None)`` like :func:`pyro_align.demo.network.bayesian_mlp`.
    """
    act = ACTIVATIONS[activation]
    layers = list(enumerate(itertools.pairwise(sizes)))

    def model(x: Tensor, y: Tensor | None = None, size: int | None = None) -> Tensor:
        h, one = x, x.new_ones(())
        for i, (fan_in, fan_out) in layers:
            sd = one * math.sqrt(2 / fan_in)
            u = pyro.sample(f"layer{i}.relevance", dist.Normal(0 * one, spread * one).expand([fan_in]).to_event(1))
            prior = dist.Normal(0 * one, sd * u.exp()).expand([fan_out, fan_in])
            weight = pyro.sample(f"layer{i}.weight", prior.to_event(2))
            bias = pyro.sample(f"layer{i}.bias", dist.Normal(0 * one, sd).expand([fan_out]).to_event(1))
            h = F.linear(h, weight, bias)
            h = act(h) if i < len(layers) - 1 else h
        _observe(h, y, size)
        return h

    return model


def bayesian_lenet(widths: Sequence[int], *, classes: int = 10, side: int = 28) -> Callable[..., Tensor]:
    """Two 5x5 convolutions, each with ReLU and 2x2 max pooling, and three dense layers (LeCun et al. 1998, in outline).

    Args:
        widths: Channels of the first and second convolution, units of the first and second dense layer.
        classes: Units of the last.
        side: Height and width of the one-channel images.

    Returns:
        A model ``(x, y=None, size=None)`` with ``x`` of shape ``(batch, side * side)``. Priors are N(0, 2 / fan_in).
    """
    first, second, third, fourth = widths
    places = ((side - 4) // 2 - 4) // 2
    shapes = {
        "conv0": (first, 1, 5, 5),
        "conv1": (second, first, 5, 5),
        "dense0": (third, second * places * places),
        "dense1": (fourth, third),
        "dense2": (classes, fourth),
    }

    def model(x: Tensor, y: Tensor | None = None, size: int | None = None) -> Tensor:
        zero, h = x.new_zeros(()), x.reshape(-1, 1, side, side)
        for name, shape in shapes.items():
            sd = zero + math.sqrt(2 / math.prod(shape[1:]))
            weight = pyro.sample(f"{name}.weight", dist.Normal(zero, sd).expand(shape).to_event(len(shape)))
            bias = pyro.sample(f"{name}.bias", dist.Normal(zero, sd).expand(shape[:1]).to_event(1))
            if len(shape) == 4:
                h = torch.relu(F.max_pool2d(F.conv2d(h, weight, bias), 2))  # pooled first: a quarter of the work
                continue
            h = F.linear(h.flatten(1), weight, bias)
            h = h if name == "dense2" else torch.relu(h)
        _observe(h, y, size)
        return h

    return model


def bayesian_resnet(
    widths: Sequence[int] = (16, 32, 64),
    *,
    blocks: int = 3,
    norm: str = "group",
    classes: int = 10,
    channels: int = 3,
    side: int = 32,
    local_sd: float = 0.5,
) -> Callable[..., Tensor]:
    """A residual network of three stages as for CIFAR-10 (He et al. 2016, sec. 4.2), without batch statistics.

    Three blocks a stage make ResNet-20. A block is two 3x3 convolutions, each normalized; where a stage begins, the
    shortcut is a 1x1 convolution, normalized (option B of He et al.). Statistics of a batch would tie the data of a
    batch together, so that there would be no likelihood of one datum.

    Args:
        widths: Channels of each stage; those after the first halve the image.
        blocks: Residual blocks a stage.
        norm: ``"group"``, group normalization with one group (Wu & He 2018), which leaves all channels alike;
            ``"plain"``, the same without gains and shifts, a third of the sites; or ``"frn"``, filter response
            normalization with thresholded units (Singh & Krishnan 2020).
        classes: Units of the last layer.
        channels: Channels of the images.
        side: Their height and width.
        local_sd: Prior standard deviation of the normalization's shifts, thresholds and (around one) gains.

    Returns:
        A model ``(x, y=None, size=None)`` with ``x`` of shape ``(batch, channels * side * side)``, channels slowest.
        Priors of weights are N(0, 2 / fan_in).

    Raises:
        ValueError: Another ``norm``.
    """
    if norm not in ("group", "plain", "frn"):
        raise ValueError(f"norm must be 'group', 'plain' or 'frn', got {norm!r}")

    def normal(name: str, shape: Sequence[int], sd: Tensor) -> Tensor:
        return pyro.sample(name, dist.Normal(0 * sd, sd).expand(shape).to_event(len(shape)))

    def conv(h: Tensor, name: str, width: int, kernel: int, stride: int = 1) -> Tensor:
        shape = (width, h.shape[1], kernel, kernel)
        weight = normal(f"{name}.weight", shape, h.new_tensor(math.sqrt(2 / math.prod(shape[1:]))))
        return F.conv2d(h, weight, stride=stride, padding=kernel // 2)

    def normalized(h: Tensor, name: str) -> Tensor:
        if norm == "plain":
            return F.group_norm(h, 1)
        sd = h.new_tensor(local_sd)
        gain, shift = (normal(f"{name}.{part}", h.shape[1:2], sd)[:, None, None] for part in ("gain", "shift"))
        if norm == "group":
            return F.group_norm(h, 1) * (1 + gain) + shift
        return h * (h.square().mean((2, 3), keepdim=True) + 1e-6).rsqrt() * (1 + gain) + shift

    def activated(h: Tensor, name: str) -> Tensor:
        if norm != "frn":
            return torch.relu(h)
        return torch.maximum(h, normal(f"{name}.threshold", h.shape[1:2], h.new_tensor(local_sd))[:, None, None])

    def unit(h: Tensor, name: str, *shape: int) -> Tensor:
        return normalized(conv(h, name, *shape), name)

    def model(x: Tensor, y: Tensor | None = None, size: int | None = None) -> Tensor:
        h = x.reshape(-1, channels, side, side)
        h = activated(unit(h, "stem", widths[0], 3), "stem")
        for stage, width in enumerate(widths):
            for block in range(blocks):
                name, begins = f"stage{stage}.block{block}", stage > 0 and block == 0
                stride = 2 if begins else 1
                inner = activated(unit(h, f"{name}.conv0", width, 3, stride), f"{name}.conv0")
                skip = unit(h, f"{name}.skip", width, 1, stride) if begins else h
                h = activated(skip + unit(inner, f"{name}.conv1", width, 3), f"{name}.conv1")
        features = h.mean((2, 3))
        sd = x.new_tensor(math.sqrt(2 / widths[-1]))
        weight, bias = normal("dense.weight", (classes, widths[-1]), sd), normal("dense.bias", (classes,), sd)
        logits = F.linear(features, weight, bias).to(x.dtype)  # of autocast, where there is one
        _observe(logits, y, size)
        return logits

    return model


def bayesian_transformer(
    width: int = 32,
    *,
    heads: int = 2,
    layers: int = 2,
    hidden: int = 64,
    classes: int = 10,
    side: int = 8,
    patch: int = 2,
) -> Callable[..., Tensor]:
    """A transformer over square patches of one-channel images (Dosovitskiy et al. 2021, in outline).

    Blocks are normalized before attention and before the perceptron by their root mean square, without gains; there
    are no biases. The residual stream and the dimensions of each head may then be rotated.

    Args:
        width: Size of the residual stream.
        heads: Heads of attention, each of ``width / heads`` dimensions.
        layers: Blocks.
        hidden: Units of each perceptron.
        classes: Units of the last layer.
        side: Height and width of the images.
        patch: Those of a patch.

    Returns:
        A model ``(x, y=None, size=None)`` with ``x`` of shape ``(batch, side * side)``. Priors are N(0, 1 / fan_in).
    """
    along, size = side // patch, width // heads
    shapes = {"embedding": (patch * patch, width), "position": (along**2, width), "head": (width, classes)}
    for i in range(layers):
        shapes |= {f"block{i}.{part}": (width, heads, size) for part in ("query", "key", "value")}
        shapes |= {f"block{i}.out": (heads, size, width)}
        shapes |= {f"block{i}.up": (width, hidden), f"block{i}.down": (hidden, width)}

    def rms(h: Tensor) -> Tensor:
        return h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-6)

    def attention(h: Tensor, w: dict[str, Tensor], block: str) -> Tensor:
        query, key, value = (
            torch.einsum("btd,dhk->bhtk", h, w[f"{block}.{part}"]) for part in ("query", "key", "value")
        )
        weights = torch.softmax(torch.einsum("bhtk,bhsk->bhts", query, key) / math.sqrt(size), -1)
        return torch.einsum("bhtk,hkd->btd", torch.einsum("bhts,bhsk->bhtk", weights, value), w[f"{block}.out"])

    def model(x: Tensor, y: Tensor | None = None, size: int | None = None) -> Tensor:
        zero, w = x.new_zeros(()), {}
        for name, shape in shapes.items():
            fan_in = 4 if name == "position" else math.prod(shape[:-1]) if name.endswith("out") else shape[0]
            prior = dist.Normal(zero, zero + fan_in**-0.5)
            w[name] = pyro.sample(name, prior.expand(shape).to_event(len(shape)))
        patches = x.reshape(-1, along, patch, along, patch).transpose(2, 3).reshape(-1, along**2, patch * patch)
        h = patches @ w["embedding"] + w["position"]
        for i in range(layers):
            h = h + attention(rms(h), w, f"block{i}")
            h = h + F.gelu(rms(h) @ w[f"block{i}.up"]) @ w[f"block{i}.down"]
        logits = rms(h).mean(1) @ w["head"]
        _observe(logits, y, size)
        return logits

    return model


def _observe(logits: Tensor, y: Tensor | None, size: int | None) -> None:
    with pyro.plate("data", size or len(logits), subsample=logits):
        pyro.sample("y", dist.Categorical(logits=logits), obs=y)
