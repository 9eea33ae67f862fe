"""One step of a fit as one graph: the gradient of the negative ELBO without Pyro, and on a GPU without Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import GraphModule

from pyro_align.discovery.recording import Recording
from studies.elbo import negative_elbo

Parameters = Mapping[str, Mapping[str, Tensor]]


class Step:
    """Loss and gradients of a batch, traced once for each batch size.

    The trace holds the forward and backward pass as plain tensor operations; random numbers are drawn when it runs.

    Args:
        model: A model ``(x, y, size)`` with Normal priors.
        size: Number of data that a batch stands for.
        options: How weights are drawn and multiplied, see :func:`studies.elbo.negative_elbo`.
    """

    def __init__(self, model: Callable, size: int, **options: Any):
        self.model, self.size, self.options = model, size, options
        self._graphs: dict[int, Callable] = {}

    def __call__(self, parameters: Parameters, x: Tensor, y: Tensor, temperature: Tensor) -> Tensor:
        """The loss in nats per datum; the parameters' ``grad`` is set to the gradient of ``size`` times that.

        Args:
            parameters: ``"locs"`` by site, and for a posterior ``"roots"``, the scales before softplus.
            x: Inputs.
            y: Classes.
            temperature: Weight of the KL, one number.
        """
        leaves = [leaf for part in parameters.values() for leaf in part.values()]
        values = [leaf.detach() for leaf in leaves]
        if len(x) not in self._graphs:
            state = torch.get_rng_state()
            self._graphs[len(x)] = self._trace(parameters, values, x, y, temperature)
            torch.set_rng_state(state)  # how often a fit is interrupted and traced again must not change it
        with torch.no_grad():
            loss, *gradients = self._graphs[len(x)](*values, x, y, temperature)
        for leaf, gradient in zip(leaves, gradients, strict=True):
            leaf.grad = gradient
        return loss

    def _trace(self, parameters: Parameters, values: list[Tensor], x: Tensor, y: Tensor, temperature: Tensor):
        names = [(part, site) for part, sites in parameters.items() for site in sites]

        def loss_and_gradients(values: list[Tensor], x: Tensor, y: Tensor, temperature: Tensor) -> list[Tensor]:
            leaves = [value.detach().requires_grad_() for value in values]
            made: dict[str, dict[str, Tensor]] = {"locs": {}, "roots": {}}
            for (part, site), leaf in zip(names, leaves, strict=True):
                made[part][site] = leaf
            scales = {site: F.softplus(root) for site, root in made["roots"].items()}
            args = (x, y, self.size)
            with torch.enable_grad():
                loss = negative_elbo(self.model, args, made["locs"], scales, temperature=temperature, **self.options)
                gradients = torch.autograd.grad(loss, leaves)
            return [loss.detach() / self.size, *gradients]

        graph = Recording({}).run(loss_and_gradients, values, x, y, temperature)
        graph.graph.eliminate_dead_code()
        return GraphModule(graph, graph.graph)


class Captured:
    """A step and the optimizer's update as one CUDA graph, launched at once.

    Args:
        step: The step.
        parameters: What it fits.
        optimizer: The optimizer of the parameters, ``capturable``.
        x: A batch of inputs; all batches must have its shape.
        y: Its classes.
        temperature: Weight of the KL, one number on the device; written to, it changes the next step.
    """

    def __init__(self, step: Step, parameters: Parameters, optimizer, x: Tensor, y: Tensor, temperature: Tensor):
        self.x, self.y = x.clone(), y.clone()
        self.stream, self.graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        leaves = [p for group in optimizer.param_groups for p in group["params"]]
        before = [(p.detach().clone(), {k: v.clone() for k, v in optimizer.state[p].items()}) for p in leaves]

        def update() -> Tensor:
            loss = step(parameters, self.x, self.y, temperature)
            optimizer.step()
            return loss

        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            for _ in range(3):  # libraries choose their kernels, the optimizer makes its state
                update()
        torch.cuda.synchronize()
        with torch.cuda.graph(self.graph, stream=self.stream):
            self.loss = update()
        with torch.no_grad():
            for p, (value, state) in zip(leaves, before, strict=True):
                p.copy_(value)
                for name, held in optimizer.state[p].items():
                    held.copy_(state.get(name, torch.zeros_like(held)))
        torch.cuda.synchronize()

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Takes a step; the loss is overwritten by the next one."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            self.x.copy_(x)
            self.y.copy_(y)
            self.graph.replay()
        for given in (x, y):
            given.record_stream(self.stream)
        return self.loss
