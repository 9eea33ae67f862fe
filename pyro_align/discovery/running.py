"""A traced graph, run as far as it is wanted, in the dtype in which it was traced."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import Node

from pyro_align.discovery.tracing import TracedGraph


def placed(traced: TracedGraph, values: Mapping[str, Tensor], cast: Callable[[Tensor], Tensor]) -> dict[Node, Tensor]:
    """Values of the nodes that stand for sites."""
    return {node: cast(values[name]) for name, nodes in traced.nodes.items() for node in nodes}


class Running(fx.Interpreter):
    """A run of a graph that stops where it is told to, and may be told other values to go on with.

    Tensors are dropped after their last use.
    """

    def __init__(self, traced: TracedGraph, values: Mapping[str, Tensor]):
        super().__init__(traced.module, garbage_collect_values=True)
        given = {name: values[name].detach().to(v.dtype) if name in values else v for name, v in traced.values.items()}
        self.env: dict[Node, Any] = {**placed(traced, given, Tensor.detach), **traced.data}
        self._waiting = iter(traced.module.graph.nodes)

    @torch.no_grad()
    def until(self, node: Node) -> Tensor:
        """The value of a node; nodes must be asked for in the order of the graph."""
        for current in self._waiting:
            if current not in self.env:
                self.env[current] = self.run_node(current)
            for used in self.user_to_last_uses.get(current, ()):
                del self.env[used]
            if current is node:
                return self.env[current]
        raise AssertionError(f"{node} comes before the node asked for last")

    def put(self, node: Node, value: Tensor) -> None:
        """What the nodes after are to see of the node asked for last."""
        self.env[node] = value
