"""An ELBO for mean-field Gaussians with the KL in closed form, and local reparameterisation on request.

Pyro's ``Trace_ELBO`` scores each weight under prior and guide, draw by draw; for Normal against Normal the KL is known,
which removes its noise and most of the cost of a step. The rest is plain Pyro:
``SVI(model, guide, optimizer, **elbo.for_svi())``.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.overrides import TorchFunctionMode

UNCONSTRAINED = "_unconstrained"  # AutoNormal draws site "w" as "w_unconstrained"


class ClosedFormELBO:
    """E_q[log p(y | z)] - T KL(q || prior), one draw a step, for ``AutoNormal`` and ``AutoDelta`` over Normal priors.

    Args:
        temperature: Weight T of the KL; 1 is Bayes. For a point estimate, the weight of the log prior.
        local: Whether to draw pre-activations instead of weights (Kingma, Salimans & Welling 2015), see
            :class:`LocalReparameterisation`.
    """

    def __init__(self, *, temperature: float = 1.0, local: bool = False):
        self.temperature = temperature
        self.local = local

    def differentiable_loss(self, model, guide, *args: Any, **kwargs: Any) -> Tensor:
        """The negative ELBO in nats, summed over the data that the batch stands for."""
        with _GuideDraws(mean=self.local):
            guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        with LocalReparameterisation(guide_trace) if self.local else nullcontext():
            model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
        loss = 0.0
        for name, site in model_trace.nodes.items():
            if site["type"] != "sample":
                continue
            if site["is_observed"]:
                loss = loss - (site["fn"].log_prob(site["value"]) * site["scale"]).sum()
            elif name in guide_trace.nodes:
                loss = loss + self.temperature * _divergence(site, guide_trace.nodes.get(name + UNCONSTRAINED))
        return loss

    def for_svi(self) -> dict[str, Any]:
        """The keyword arguments of ``pyro.infer.SVI`` that make it use this ELBO."""
        return {"loss": self.loss, "loss_and_grads": self.loss_and_grads}

    def loss(self, model, guide, *args: Any, **kwargs: Any) -> float:
        """The negative ELBO in nats."""
        with torch.no_grad():
            return float(self.differentiable_loss(model, guide, *args, **kwargs))

    def loss_and_grads(self, model, guide, *args: Any, **kwargs: Any) -> float:
        """The negative ELBO in nats; its gradients are added to the parameters'."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        return float(loss.detach())


def _divergence(site: dict[str, Any], drawn: dict[str, Any] | None) -> Tensor:
    """KL of one site from its Normal prior; minus the log prior where the guide is a point."""
    prior = _base(site["fn"])
    if type(prior).__name__ != "Normal":
        raise TypeError(f"site '{site['name']}': the closed form needs a Normal prior, got {type(prior).__name__}")
    if drawn is None:
        return -prior.log_prob(site["value"]).sum()
    loc, scale = _location_scale(drawn)
    # the prior's scale is one number expanded: taken once, nothing is divided element by element
    spread = _single(prior.scale)
    squares = scale.square() + (loc - _single(prior.loc)).square()
    constant = (spread.log() - 0.5).sum() * (loc.numel() / spread.numel())
    return (squares * (0.5 * spread.square().reciprocal())).sum() - scale.log().sum() + constant


def _single(tensor: Tensor) -> Tensor:
    """An expanded scalar as the scalar; any other tensor as it is."""
    return tensor[(0,) * tensor.dim()] if tensor.dim() and not any(tensor.stride()) else tensor


def _base(fn):
    while type(fn).__name__ in ("Independent", "ExpandedDistribution"):
        fn = fn.base_dist
    return fn


def _location_scale(drawn: dict[str, Any]) -> tuple[Tensor, Tensor]:
    normal = _base(drawn["fn"])
    return normal.loc, normal.scale


class _GuideDraws(Messenger):
    """Draws the guide's Normals by one addition and one multiplication, or puts them at their means."""

    def __init__(self, mean: bool):
        super().__init__()
        self.mean = mean

    def _pyro_sample(self, msg):
        if msg["name"].endswith(UNCONSTRAINED):
            loc, scale = _location_scale(msg)
            msg["value"] = loc if self.mean else torch.addcmul(loc, scale, torch.randn_like(loc))
            msg["done"] = True


class LocalReparameterisation(TorchFunctionMode):
    """Draws the outputs of linear and convolutional layers in place of their weights.

    Where weights are independent Normals, a layer's output is Normal given its input, with mean ``f(x; m)`` and
    variance ``f(x^2; s^2)``; drawing it anew for each datum lowers the variance of the gradient (Kingma, Salimans &
    Welling 2015, eq. 6). Layers are recognized by the identity of their weight: a model that transforms a weight before
    use gets the mean of it. Exact for dense layers; a convolution draws its outputs at different places independently,
    though they share weights.

    Args:
        guide_trace: Trace of an ``AutoNormal`` whose sites stand at their means.
    """

    LAYERS = (F.linear, torch.conv1d, torch.conv2d, F.conv1d, F.conv2d)

    def __init__(self, guide_trace: Trace):
        super().__init__()
        self.normals = {
            id(site["value"]): (site["value"], *_location_scale(guide_trace.nodes[name + UNCONSTRAINED]))
            for name, site in guide_trace.nodes.items()
            if name + UNCONSTRAINED in guide_trace.nodes
        }

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func not in self.LAYERS or id(args[1]) not in self.normals:
            return func(*args, **kwargs)
        x, weight, *rest = args
        bias = rest.pop(0) if rest else kwargs.pop("bias", None)
        (_, loc, scale), shift = self.normals[id(weight)], self.normals.get(id(bias))
        mean = func(x, loc, bias if shift is None else shift[1], *rest, **kwargs)
        variance = func(x.square(), scale.square(), None if shift is None else shift[2].square(), *rest, **kwargs)
        return torch.addcmul(mean, variance.clamp_min(_TINY).sqrt(), torch.randn_like(mean))


_TINY = math.ldexp(1.0, -80)  # keeps the square root's gradient finite where an input is all zero
