"""Traced graphs: shapes of nodes, new nodes, and copies that may be rewritten."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
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
