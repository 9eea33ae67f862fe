"""Activations of any traced model: what its units say about data.

The graph already knows which tensors carry which units, so nothing about the architecture is written by hand: the
tensors that enter a sum of products, that depend on data and on sites, and that carry a free atom, are the activations.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor
from torch.fx import Node

from pyro_align.axes import Axis, leaves
from pyro_align.discovery.axes.assemble import infer, name_atoms, write_axes
from pyro_align.discovery.axes.inference import AxisTensor, Inference
from pyro_align.discovery.graphs import Running
from pyro_align.discovery.ops import is_a
from pyro_align.discovery.tracing import TracedGraph
from pyro_align.symmetry.group import Symmetry


@dataclass(frozen=True, eq=False)
class ActivationProbe:
    """Where a model's activations are, and a function that returns them.

    Attributes:
        axes: Name of a tensor in the graph -> its axis terms, over the atoms of the model's symmetry.
    """

    axes: Mapping[str, tuple[Axis, ...]]
    _traced: TracedGraph = field(repr=False)
    _nodes: Mapping[str, Node] = field(repr=False)

    @classmethod
    def of(cls, traced: TracedGraph, symmetry: Symmetry) -> ActivationProbe:
        """Finds the activations of a traced model.

        Args:
            traced: The graph.
            symmetry: The model's symmetry, as discovery finds it: the atoms' names are its.
        """
        inference = infer(traced)
        atoms, _ = name_atoms(inference)
        axes, nodes = {}, {}
        for node in _activation_nodes(traced, inference):
            written = write_axes(inference.tensor_of(node).axes, atoms)
            free = [a for t in written for a in leaves(t) if a.name in symmetry.atoms]
            if free and any(not list(_named(t)) for t in written):
                axes[f"@{node.name}"], nodes[f"@{node.name}"] = written, node
        return cls(axes, traced, nodes)

    def __call__(self, draws: Iterable[Mapping[str, Tensor]]) -> dict[str, tuple[Tensor, Tensor]]:
        """Mean and mean square of each activation over posterior draws, float64, in the shape of the tensor.

        The network runs in its own dtype; only the means are taken in float64.

        Args:
            draws: Site values, one mapping per draw; sites left out keep the values of the trace.
        """
        first: dict[str, Tensor] = {}
        second: dict[str, Tensor] = {}
        count = 0
        for values in draws:
            count += 1
            running = Running(self._traced, values)
            for name, node in self._nodes.items():
                value = running.until(node).double()
                first[name] = first[name] + value if name in first else value
                second[name] = second[name] + value**2 if name in second else value**2
        return {name: (first[name] / count, second[name] / count) for name in first}


def _named(term: Axis):
    return (a for a in leaves(term) if a.name)


def _activation_nodes(traced: TracedGraph, inference: Inference) -> list[Node]:
    """Sources of the operands of sums of products that depend on data and on sites."""
    on_data = dependents(traced, traced.data)
    on_sites = dependents(traced, (node for nodes in traced.nodes.values() for node in nodes))
    found: dict[Node, None] = {}
    for node in traced.module.graph.nodes:
        if not _sums_products(node):
            continue
        for source in node.all_input_nodes:
            source = viewed(source)
            if source in on_data and source in on_sites and isinstance(inference.tensor_of(source), AxisTensor):
                found[source] = None
    return [node for node in traced.module.graph.nodes if node in found]


def _sums_products(node: Node) -> bool:
    """Whether a node is a contraction, or a product whose entries are then summed, as ``h @ w`` is for a vector."""
    if node.op != "call_function" or is_a(node.target, "contraction"):
        return node.op == "call_function"
    if not is_a(node.target, "multiply") or len(node.all_input_nodes) < 2:
        return False
    followers = list(node.users)
    while followers:
        user = followers.pop()
        if user.op == "call_function" and is_a(user.target, "sum"):
            return True
        followers += user.users if is_view(user) else ()
    return False


def is_view(node: Node) -> bool:
    """Whether a node holds the entries of another, laid out in another way."""
    return node.op == "call_function" and is_a(node.target, "view", "reshape", "same", "cast")


def viewed(node: Node) -> Node:
    """The node whose entries a node holds, through any number of views."""
    while is_view(node):
        node = node.all_input_nodes[0]
    return node


def dependents(traced: TracedGraph, roots: Iterable[Node]) -> set[Node]:
    """The nodes given, and all that are computed from them."""
    reached = set(roots)
    for node in traced.module.graph.nodes:
        if any(source in reached for source in node.all_input_nodes):
            reached.add(node)
    return reached
