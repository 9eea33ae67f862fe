"""The negative ELBO of a mean-field Gaussian with the KL in closed form, and three ways to draw its weights.

Pyro's ``Trace_ELBO`` scores each weight under prior and guide, draw by draw; for Normal against Normal the KL is known,
which removes its noise and most of the cost of a step. :mod:`studies.step` compiles the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import pyro
import torch
import torch.nn.functional as F
from pyro import poutine
from torch import Tensor
from torch.overrides import TorchFunctionMode

NOISES = ("weights", "flipout", "local")


def negative_elbo(
    model: Callable,
    args: Sequence[Any],
    locs: Mapping[str, Tensor],
    scales: Mapping[str, Tensor],
    *,
    temperature: float | Tensor = 1.0,
    noise: str = "weights",
    half: bool = False,
) -> Tensor:
    """T KL(q || prior) - E_q[log p(y | z)] by one draw, in nats, summed over the data that a batch stands for.

    Args:
        model: A model with Normal priors.
        args: Its arguments.
        locs: Locations by site.
        scales: Standard deviations by site; empty for a point, whose log prior takes the place of the KL.
        temperature: Weight T of the KL; 1 is Bayes.
        noise: How weights are drawn: ``"weights"``, once for the batch; ``"flipout"`` or ``"local"``, again for each
            datum, see :class:`LayerNoise`.
        half: Whether the model multiplies in bfloat16, see ``torch.autocast``; the KL stays as it is.
    """
    values = {k: torch.addcmul(v, scales[k], torch.randn_like(v)) if scales else v for k, v in locs.items()}
    normals = {id(value): (locs[k], scales[k]) for k, value in values.items()} if scales else {}
    layers = LayerNoise(normals, noise) if scales and noise != "weights" else nullcontext()
    kind = next(iter(values.values())).device.type
    products = torch.autocast(kind, torch.bfloat16, enabled=half, cache_enabled=False)
    with ChannelsLast(), layers, products, pyro.validation_enabled(False):
        trace = poutine.trace(poutine.condition(model, data=values)).get_trace(*args)
    loss = values[next(iter(values))].new_zeros(())
    for name, site in trace.nodes.items():
        if site["type"] != "sample":
            continue
        if name in locs:
            loss = loss + temperature * _divergence(site, scales.get(name), locs[name])
        elif site["is_observed"]:
            loss = loss - (site["fn"].log_prob(site["value"]) * site["scale"]).sum()
    return loss


def _divergence(site: dict[str, Any], scale: Tensor | None, loc: Tensor) -> Tensor:
    """KL of one site from its Normal prior; minus the log prior where the guide is a point."""
    prior = site["fn"]
    while type(prior).__name__ in ("Independent", "ExpandedDistribution"):
        prior = prior.base_dist
    if type(prior).__name__ != "Normal":
        raise TypeError(f"site '{site['name']}': the closed form needs a Normal prior, got {type(prior).__name__}")
    if scale is None:
        return -prior.log_prob(loc).sum()
    # the prior's scale is one number expanded: taken once, nothing is divided element by element
    spread = _single(prior.scale)
    squares = scale.square() + (loc - _single(prior.loc)).square()
    constant = (spread.log() - 0.5).sum() * (loc.numel() / spread.numel())
    return (squares * (0.5 * spread.square().reciprocal())).sum() - scale.log().sum() + constant


def _single(tensor: Tensor) -> Tensor:
    """An expanded scalar as the scalar; any other tensor as it is."""
    return tensor[(0,) * tensor.dim()] if tensor.dim() and not any(tensor.stride()) else tensor


class ChannelsLast(TorchFunctionMode):
    """Lays out the images that convolutions get with channels last, which is faster; what follows keeps the layout."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.conv2d, F.conv2d) and args[0].dim() == 4:
            args = (args[0].contiguous(memory_format=torch.channels_last), *args[1:])
        return func(*args, **(kwargs or {}))


class LayerNoise(TorchFunctionMode):
    """Draws the weights of linear and convolutional layers again for each datum.

    Gradients then vary less than with one draw for the whole batch. Layers are recognized by the identity of their
    weight; a weight that a model transforms before use, and all other sites, keep the draw they have.

    - ``"local"``: where weights are independent Normals, a layer's output is Normal given its input, with mean
      ``f(x; m)`` and variance ``f(x^2; s^2)``, and is drawn in place of them (Kingma, Salimans & Welling 2015, eq. 6).
      Exact for dense layers; a convolution draws its outputs at different places independently, though they share
      weights.
    - ``"flipout"``: the signs of a draw's deviations are flipped at random for each datum, by input and output channel
      (Wen et al. 2018, eq. 4). Exact in expectation, convolutions included.

    Args:
        normals: Location and standard deviation, by the ``id`` of the value that the model sees.
        kind: ``"local"`` or ``"flipout"``.
    """

    LAYERS = (F.linear, torch.conv1d, torch.conv2d, F.conv1d, F.conv2d)

    def __init__(self, normals: Mapping[int, tuple[Tensor, Tensor]], kind: str):
        super().__init__()
        if kind not in NOISES[1:]:
            raise ValueError(f"noise must be one of {NOISES}, got {kind!r}")
        self.normals, self.draw = normals, self._local if kind == "local" else self._flipout

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func not in self.LAYERS or id(args[1]) not in self.normals:
            return func(*args, **kwargs)
        x, weight, *rest = args
        bias = rest.pop(0) if rest else kwargs.pop("bias", None)
        return self.draw(lambda h, w, b: func(h, w, b, *rest, **kwargs), x, weight, bias)

    def _local(self, layer: Callable, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        (loc, scale), shift = self.normals[id(weight)], self.normals.get(id(bias))
        mean = layer(x, loc, bias if shift is None else shift[0])
        variance = layer(x.square(), scale.square(), None if shift is None else shift[1].square())
        return torch.addcmul(mean, variance.clamp_min(_TINY).sqrt(), torch.randn_like(mean))

    def _flipout(self, layer: Callable, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        loc, _ = self.normals[id(weight)]
        mean = layer(x, loc, bias)
        batch, places = x.shape[: x.dim() - weight.dim() + 1], (1,) * (weight.dim() - 2)
        inputs, outputs = (_signs(x, (*batch, channels, *places)) for channels in weight.shape[1::-1])
        return mean + layer(x * inputs, weight - loc, None) * outputs


def _signs(like: Tensor, shape: Sequence[int]) -> Tensor:
    return torch.rand(shape, device=like.device, dtype=like.dtype).sub(0.5).sign()


_TINY = math.ldexp(1.0, -80)  # keeps the square root's gradient finite where an input is all zero
