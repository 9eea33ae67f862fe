"""Rolls loops: equal straight-line computations over the indices of an axis become one computation with that axis.

``sum(torch.tanh(x @ w[i]) * v[i] for i in range(n))`` takes indices one by one, which tells them apart. What is done
with each is the same, so it is ``(torch.tanh(x @ w.T) * v).sum(1)``. Values that are joined (stacked, concatenated) or
combined by a commutative operation (``+``, ``*``, ``logaddexp``, ``maximum``) are compared node by node; where they
differ only in the index or the slice that they take of one tensor, ``torch.func.vmap`` makes one computation of them.

The rolled graph is read and not run: the certificate runs the graph as it was traced.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node

from pyro_align.discovery.batching import Batching, key_of
from pyro_align.discovery.graphs import call, copied, finish, shape_of
from pyro_align.discovery.ops import is_a
from pyro_align.discovery.tracing import TracedGraph

aten: Any = torch.ops.aten
COMBINED: dict[Any, tuple[Any, tuple[Any, ...]]] = {  # a chain of an operation of two -> the reduction it is
    aten.add.Tensor: (aten.sum.dim_IntList, ([0],)),
    aten.mul.Tensor: (aten.prod.dim_int, (0,)),
    aten.logaddexp.default: (aten.logsumexp.default, ([0],)),
    aten.maximum.default: (aten.amax.default, ([0],)),
    aten.minimum.default: (aten.amin.default, ([0],)),
}
SIGHT = 4  # how far up two values are compared before they are tried


@dataclass(frozen=True)
class Rolled:
    """What rolling the loops of a graph gives."""

    traced: TracedGraph | None  # the same function with its loops rolled; None where there are none
    copies: dict[Node, Node]  # the copy of each node of the original
    # families of sites that are used alike wherever they are used, so that they might change places as wholes
    kin: tuple[tuple[str, ...], ...]


def rolled(traced: TracedGraph) -> Rolled:
    """Rolls the loops of a graph."""
    copy, copies = copied(traced)
    merged = _one_of_each(copy)
    rolling = _Rolling(copy)
    changed = rolling.run()
    kin = rolling.families()
    if not changed:
        return Rolled(None, {}, kin)
    finish(copy.module)
    return Rolled(copy, {node: merged.get(own, own) for node, own in copies.items()}, kin)


def _one_of_each(traced: TracedGraph) -> dict[Node, Node]:
    """Makes equal calls one node, and pieces of a split or of an unbinding slices and selections."""
    graph, seen, merged = traced.module.graph, {}, {}
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        new = _as_part(graph, node)
        new = new or node
        new = seen.setdefault(key_of(new.target, new.args, new.kwargs), new)
        if new is not node:
            merged[node] = new
            node.replace_all_uses_with(new)
    return merged


def _as_part(graph: Graph, node: Node) -> Node | None:
    if node.target is not operator.getitem:
        return None
    source, index = node.args
    with graph.inserting_before(node):
        if source.target is aten.unbind.int:
            return call(graph, node, aten.select.int, source.args[0], (*source.args, 0)[1], index)
        if is_a(source.target, "split"):
            dim = (*source.args, 0)[2]
            lengths = [v.shape[dim] for v in source.meta["val"]]
            start = sum(lengths[:index])
            return call(graph, node, aten.slice.Tensor, source.args[0], dim, start, start + lengths[index])
    return None


class _Rolling(Batching):
    """Where values come together, and whether they are one computation."""

    def run(self) -> bool:
        changed = False
        for node in list(self.graph.nodes):
            if node in self.sites or any(source in self.moving for source in node.all_input_nodes):
                self.moving.add(node)
            if node.op != "call_function" or not node.users:
                continue
            self.seen.setdefault(key_of(node.target, node.args, node.kwargs), node)
            self.here = node
            found = self.joined(node) or self.combined(node)
            if found is not None:
                node.replace_all_uses_with(found)
                changed = True
        return changed

    def families(self) -> tuple[tuple[str, ...], ...]:
        """Names of the sites that have equal roles wherever they are used."""
        names = {node: name for name, nodes in self.traced.nodes.items() for node in nodes}
        alike = (
            sites
            for sites, met in self.kin.items()
            if all(set(self.users[site]) <= users for site, users in zip(sites, met, strict=True))
        )
        return tuple(tuple(names[site] for site in sites) for sites in alike)

    # -- where values come together --------------------------------------------------------------------------------

    def joined(self, node: Node) -> Node | None:
        """A stack or a concatenation, of which runs of values may be one computation."""
        if node.target is aten.stack.default:
            dim = (*node.args, 0)[1] % len(shape_of(node))
            values = self.together(node.args[0])
            return values and self.moved(values, dim)
        if node.target is not aten.cat.default or node.kwargs:
            return None
        dim = (*node.args, 0)[1] % len(shape_of(node))
        parts, changed = [], False
        for run in _runs(node.args[0], self.signature):
            values = self.together(run) if len(run) > 1 else None
            if values is None:
                parts += run
                continue
            changed = True
            shape = [*shape_of(run[0])]
            shape[dim] *= len(run)
            parts.append(self.call(aten.reshape.default, self.moved(values, dim), shape))
        if not changed:
            return None
        return parts[0] if len(parts) == 1 else self.call(aten.cat.default, parts, dim)

    def combined(self, node: Node) -> Node | None:
        """A chain of one commutative operation."""
        if node.target not in COMBINED or node.kwargs or self.absorbed(node):
            return None
        leaves = self.leaves(node)
        if len(leaves) < 3 and not all(leaf in self.moving for leaf in leaves):
            return None
        groups: dict[Any, list[Node]] = {}
        for leaf in leaves:
            groups.setdefault(self.signature(leaf) if isinstance(leaf, Node) else None, []).append(leaf)
        rest, made = [], []
        for key, members in groups.items():
            values = self.together(members, ordered=False) if key is not None and len(members) > 1 else None
            if values is None:
                rest += members
            else:
                target, args = COMBINED[node.target]
                made.append(self.call(target, values, *args))
        if not made:
            return None
        total = made[0]
        for leaf in [*made[1:], *rest]:
            total = self.call(node.target, total, leaf)
        shape = shape_of(node)
        return total if shape_of(total) == shape else self.call(aten.expand.default, total, list(shape))

    def absorbed(self, node: Node) -> bool:
        return (
            len(node.users) == 1 and next(iter(node.users)).target is node.target and not next(iter(node.users)).kwargs
        )

    def leaves(self, node: Node) -> list[Any]:
        found: list[Any] = []
        for arg in node.args:
            inner = isinstance(arg, Node) and arg.target is node.target and len(arg.users) == 1 and not arg.kwargs
            found += self.leaves(arg) if inner else [arg]
        return found

    def signature(self, node: Node, depth: int = SIGHT) -> Any:
        """What a value looks like from below, without the indices that it takes."""
        if node.op != "call_function" or node in self.constants or depth == 0:
            return (node.op == "call_function", shape_of(node))
        if node.target in (aten.select.int, aten.slice.Tensor) and node not in self.constants:
            return (node.target, shape_of(node), node.args[1:2])
        return (node.target, shape_of(node), *(self.signature(n, depth - 1) for n in node.all_input_nodes))


def _runs(nodes: Sequence[Node], key: Callable[[Node], Any]) -> list[list[Node]]:
    """Neighbors with equal keys."""
    out: list[list[Node]] = []
    for node in nodes:
        if out and key(out[-1][0]) == key(node):
            out[-1].append(node)
        else:
            out.append([node])
    return out
