"""Networks that the demo lacks: a perceptron with automatic relevance determination, and a LeNet-like CNN."""

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
    relevance determination (MacKay 1994; Neal 1996) around the fan-in prior. A hidden unit's u is relabelled with its
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
                h = F.max_pool2d(torch.relu(F.conv2d(h, weight, bias)), 2)
                continue
            h = F.linear(h.flatten(1), weight, bias)
            h = h if name == "dense2" else torch.relu(h)
        _observe(h, y, size)
        return h

    return model


def _observe(logits: Tensor, y: Tensor | None, size: int | None) -> None:
    with pyro.plate("data", size or len(logits), subsample=logits):
        pyro.sample("y", dist.Categorical(logits=logits), obs=y)
