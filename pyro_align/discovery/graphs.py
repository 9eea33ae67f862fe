"""Traced graphs: shapes of nodes, new nodes, copies that may be rewritten, and runs that stop where they are told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.fx import Graph, GraphModule, Node
from torch.utils import _pytree as pytree

if TYPE_CHECKING:
    from pyro_align.discovery.tracing import TracedGraph


class ReadModule(GraphModule):
    """A graph that is read and interpreted, so that no Python code is made of it whenever it is rewritten."""

    def recompile(self) -> Any:
        """Does nothing."""


def shape_of(node: Any) -> tuple[int, ...] | None:
    """The shape of a node's tensor; None for what is no tensor."""
    value = node.meta.get("val") if isinstance(node, Node) else None
    return tuple(value.shape) if isinstance(value, Tensor) else None


def call(graph: Graph, like: Node, target: Any, *args: Any, **kwargs: Any) -> Node:
    """A new call, at the graph's insertion point, with its ``val``; it is attributed to the line of another node."""
    new = graph.call_function(target, args, kwargs)
    new.stack_trace = like.stack_trace
    values, options = torch.fx.node.map_arg((args, kwargs), lambda n: n.meta["val"])
    fake = next(v.fake_mode for v in pytree.tree_leaves(values) if isinstance(v, Tensor))
    with fake, torch.no_grad():
        new.meta["val"] = target(*values, **options)
    return new


def constant(module: GraphModule, name: str, value: Tensor) -> Node:
    """A new constant, at the graph's insertion point."""
    module.register_buffer(name, value)
    node = module.graph.get_attr(name)
    like = next(v for n in module.graph.nodes if isinstance(v := n.meta.get("val"), Tensor))
    node.meta["val"] = like.fake_mode.from_tensor(value)
    return node


def copied(traced: TracedGraph) -> tuple[TracedGraph, dict[Node, Node]]:
    """A copy of a traced graph, and original node -> node."""
    graph, copies = Graph(), {}
    out = graph.graph_copy(traced.module.graph, copies)
    original = next(node for node in traced.module.graph.nodes if node.op == "output")
    graph.output(out).meta.update(original.meta)
    module = ReadModule(traced.module, graph)
    nodes = {name: tuple(copies[n] for n in found) for name, found in traced.nodes.items()}
    return replace(traced, module=module, nodes=nodes, data={copies[n]: v for n, v in traced.data.items()}), copies


def finish(module: GraphModule) -> None:
    """Removes what does not reach the output, unused random numbers (an initial value already there, say) included."""
    module.graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))


class Running(fx.Interpreter):
    """A run of a graph that stops where it is told to, and may be told other values to go on with.

    Tensors are dropped after their last use.
    """

    def __init__(self, traced: TracedGraph, values: Mapping[str, Tensor]):
        super().__init__(traced.module, garbage_collect_values=True)
        given = {name: values[name].detach().to(v.dtype) if name in values else v for name, v in traced.values.items()}
        self.env: dict[Node, Any] = {**traced.placed(given, Tensor.detach), **traced.data}
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
