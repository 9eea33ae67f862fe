"""Another way of reading a traced graph: a copy that may be rewritten, and what became of each node."""

from __future__ import annotations

from dataclasses import replace

from torch.fx import Graph, GraphModule, Node

from pyro_align.discovery.tracing import ReadModule, TracedGraph


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
    """Drops what no longer reaches the output."""
    module.graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
    module.graph.lint()
