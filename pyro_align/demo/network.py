"""Bayesian networks as plain Pyro models."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS: dict[str, Callable[..., Any]] = {"relu": torch.relu, "tanh": torch.tanh}


def bayesian_mlp(
    sizes: Sequence[int], *, prior_scale: float | str = "fan-in", activation: str = "relu"
) -> Callable[..., Tensor]:
    """A classifier with Gaussian priors on every weight and bias.

    Args:
        sizes: Widths of input, hidden layers and output.
        prior_scale: Standard deviation of every prior, or ``"fan-in"`` for sqrt(2 / fan_in) (He et al. 2015).
        activation: ``"relu"`` or ``"tanh"``.

    Returns:
        A model ``(x, y=None, size=None)`` with ``x`` of shape ``(batch, sizes[0])`` and classes ``y`` ``(batch,)``;
        ``size`` is the number of data that the batch stands for.
    """
    act = ACTIVATIONS[activation]
    layers = list(enumerate(itertools.pairwise(sizes)))

    def model(x: Tensor, y: Tensor | None = None, size: int | None = None) -> Tensor:
        h = x
        for i, (fan_in, fan_out) in layers:
            sd = x.new_tensor(math.sqrt(2 / fan_in) if prior_scale == "fan-in" else prior_scale)
            weight = pyro.sample(f"layer{i}.weight", dist.Normal(0.0 * sd, sd).expand([fan_out, fan_in]).to_event(2))
            bias = pyro.sample(f"layer{i}.bias", dist.Normal(0.0 * sd, sd).expand([fan_out]).to_event(1))
            h = F.linear(h, weight, bias)
            h = act(h) if i < len(layers) - 1 else h
        with pyro.plate("data", size or len(x), subsample=x):
            pyro.sample("y", dist.Categorical(logits=h), obs=y)
        return h

    return model


def he_initialization(site: dict[str, Any]) -> Tensor:
    """Locations to start a guide from: He-normal weights, zero biases; independent seeds start apart.

    Drawn on the CPU, so that a seed gives the same start on every device.
    """
    shape, like = site["fn"].shape(), site["fn"].mean
    if len(shape) < 2:
        return torch.zeros(shape).to(like)
    return (torch.randn(shape, device="cpu") * math.sqrt(2 / math.prod(shape[1:]))).to(like)
