"""Rolls loops: equal straight-line computations over the indices of an axis become one computation with that axis.

``sum(torch.tanh(x @ w[i]) * v[i] for i in range(n))`` takes indices one by one, which tells them apart. What is done with
each is the same, so it is ``(torch.tanh(x @ w.T) * v).sum(1)``. Values that are joined (stacked, concatenated) or
combined by a commutative operation (``+``, ``*``, ``logaddexp``, ``maximum``) are compared node by node; where they
differ only in the index or the slice that they take of one tensor, ``torch.func.vmap`` makes one computation of them.

The rolled graph is read and not run: the certificate runs the graph as it was traced.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from pyro_align.discovery.copying import copied, finish
from pyro_align.discovery.graphs import call, shape_of
from pyro_align.discovery.ops import is_a
from pyro_align.discovery.tracing import TracedGraph
from pyro_align.discovery.walk import Constants

aten = torch.ops.aten
COMBINED: dict[Any, tuple[Any, tuple]] = {  # a chain of an operation of two -> the reduction it is
    aten.add.Tensor: (aten.sum.dim_IntList, ([0],)),
    aten.mul.Tensor: (aten.prod.dim_int, (0,)),
    aten.logaddexp.default: (aten.logsumexp.default, ([0],)),
    aten.maximum.default: (aten.amax.default, ([0],)),
    aten.minimum.default: (aten.amin.default, ([0],)),
}
DEEPEST = 2000  # nodes of one computation that are compared
SIGHT = 4  # how far up two values are compared before they are tried


def rolled(traced: TracedGraph) -> tuple[TracedGraph, dict[Node, Node]] | None:
    """The same function with its loops rolled, and the copy of each node; None where there are none."""
    if not any(_takes_a_part(node) for node in traced.module.graph.nodes):
        return None
    copy, copies = copied(traced)
    merged = _one_of_each(copy)
    rolling = _Rolling(copy)
    if not rolling.run():
        return None
    finish(copy.module)
    return copy, {node: merged.get(own, own) for node, own in copies.items()}


def _takes_a_part(node: Node) -> bool:
    return node.target in (aten.select.int, aten.unbind.int, aten.slice.Tensor) or is_a(node.target, "split")


def _one_of_each(traced: TracedGraph) -> dict[Node, Node]:
    """Makes equal calls one node, and pieces of a split or of an unbinding slices and selections."""
    graph, seen, merged = traced.module.graph, {}, {}
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        new = _as_part(graph, node)
        new = new or node
        new = seen.setdefault(_key(new.target, new.args, new.kwargs), new)
        if new is not node:
            merged[node] = new
            node.replace_all_uses_with(new)
    return merged


def _key(target: Any, args: Any, kwargs: Any) -> Any:
    return target, _frozen(args), _frozen(kwargs)


def _frozen(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(map(_frozen, value))
    if isinstance(value, dict):
        return tuple((k, _frozen(v)) for k, v in value.items())
    return (type(value), str(value)) if isinstance(value, float | int | bool | slice) else value


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


class _Unlike(Exception):
    """The computations are not one."""


@dataclass
class _Body:
    """One computation for several values: a graph whose inputs are values shared by all, or one for each.

    Attributes:
        graph: The computation.
        inputs: What each placeholder stands for: a shared node, or how to make the tensor of all values.
        order: The order of the values in the first tensor that they are parts of; None where it is theirs.
        gain: Whether some input is made of the parts of a tensor that depends on sites.
    """

    graph: Graph = field(default_factory=Graph)
    inputs: list[Node | Callable[[], Node]] = field(default_factory=list)
    known: dict[Any, Any] = field(default_factory=dict)
    order: list[int] | None = None
    gain: bool = False


class _Rolling:
    def __init__(self, traced: TracedGraph):
        self.traced, self.module, self.graph = traced, traced.module, traced.module.graph
        self.constants = Constants(traced)
        self.sites = {node for nodes in traced.nodes.values() for node in nodes}
        self.moving: set[Node] = set()  # what depends on sites
        self.here: Node | None = None
        self.seen: dict[Any, Node] = {}
        self.count = 0

    def run(self) -> bool:
        changed = False
        for node in list(self.graph.nodes):
            if node in self.sites or any(source in self.moving for source in node.all_input_nodes):
                self.moving.add(node)
            if node.op != "call_function" or not node.users:
                continue
            self.seen.setdefault(_key(node.target, node.args, node.kwargs), node)
            self.here = node
            found = self.joined(node) or self.combined(node)
            if found is not None:
                node.replace_all_uses_with(found)
                changed = True
        return changed

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
        return len(node.users) == 1 and next(iter(node.users)).target is node.target and not next(iter(node.users)).kwargs

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

    # -- one computation -------------------------------------------------------------------------------------------

    def together(self, nodes: Sequence[Node], *, ordered: bool = True) -> Node | None:
        """The values stacked along a new leading axis, made by one computation; None where they are not alike."""
        if len(set(nodes)) < len(nodes) or len({shape_of(n) for n in nodes}) != 1:
            return None
        if not all(isinstance(n, Node) and n in self.moving for n in nodes):
            return None
        try:
            body = self.body(tuple(nodes))
            if body.order is not None and not ordered:
                body = self.body(tuple(nodes[i] for i in body.order))
        except _Unlike:
            return None
        return self.emit(body) if body.gain and body.order is None else None

    def body(self, nodes: tuple[Node, ...]) -> _Body:
        body = _Body()
        body.graph.output(self.alike(body, nodes))
        return body

    def alike(self, body: _Body, values: tuple) -> Any:
        """What stands in the computation for these arguments, one for each value."""
        first = values[0]
        if isinstance(first, Node):
            if values not in body.known:
                body.known[values] = self.node_alike(body, values)
            return body.known[values]
        if isinstance(first, list | tuple):
            if any(type(v) is not type(first) or len(v) != len(first) for v in values):
                raise _Unlike
            return type(first)(self.alike(body, parts) for parts in zip(*values, strict=True))
        if any(type(v) is not type(first) or v != first for v in values):
            raise _Unlike
        return first

    def node_alike(self, body: _Body, nodes: tuple) -> Node:
        if not all(isinstance(n, Node) for n in nodes) or len(body.known) > DEEPEST:
            raise _Unlike
        first = nodes[0]
        if all(n is first for n in nodes):
            return self.input(body, first, first)
        if (make := self.parts_of_one(body, nodes)) is not None:
            return self.input(body, make, first)
        if len({shape_of(n) for n in nodes}) > 1:
            raise _Unlike
        if not all(n in self.constants for n in nodes):
            try:
                return self.same_call(body, nodes)
            except _Unlike:
                if any(n in self.moving for n in nodes):
                    raise
        return self.input(body, lambda: self.call(aten.stack.default, list(nodes)), first)

    def same_call(self, body: _Body, nodes: tuple[Node, ...]) -> Node:
        first = nodes[0]
        if any(n.op != "call_function" or n.target is not first.target for n in nodes):
            raise _Unlike
        if any(len(n.args) != len(first.args) or n.kwargs.keys() != first.kwargs.keys() for n in nodes):
            raise _Unlike
        target, args = first.target, []
        for parts in zip(*(n.args for n in nodes), strict=True):
            number = all(isinstance(p, int | float) and not isinstance(p, bool) for p in parts)
            if number and len(set(parts)) > 1:
                if torch.Tag.pointwise not in getattr(target, "tags", ()):
                    raise _Unlike
                target = first.target.overloadpacket
                args.append(self.input(body, lambda parts=parts: self.constant(parts), first))
            else:
                args.append(self.alike(body, parts))
        kwargs = {k: self.alike(body, tuple(n.kwargs[k] for n in nodes)) for k in first.kwargs}
        return body.graph.call_function(target, tuple(args), kwargs)

    def input(self, body: _Body, what: Node | Callable[[], Node], like: Node) -> Node:
        body.inputs.append(what)
        return body.graph.placeholder(f"in_{len(body.inputs)}")

    def parts_of_one(self, body: _Body, nodes: tuple[Node, ...]) -> Callable[[], Node] | None:
        """How to make the tensor of which the values are parts, with a leading axis for which part."""
        parts = [_part(n) for n in nodes]
        if any(p is None for p in parts) or len({(p[0], p[1], p[3]) for p in parts}) != 1:
            return None
        source, dim, _, length = parts[0]
        starts, size = [p[2] for p in parts], max(length, 1)
        order = sorted(range(len(starts)), key=starts.__getitem__)
        placed = [starts[i] for i in order]
        if placed != list(range(placed[0], placed[0] + size * len(starts), size)):
            raise _Unlike
        if order != list(range(len(order))):
            if body.order is None:
                body.order = order
        body.gain |= source in self.moving
        return lambda: self.unfolded(source, dim, placed[0], len(starts), length)

    # -- new nodes -------------------------------------------------------------------------------------------------

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        key = _key(target, args, kwargs)
        if key not in self.seen:
            with self.graph.inserting_before(self.here):
                self.seen[key] = call(self.graph, self.here, target, *args, **kwargs)
            self.note(self.seen[key])
        return self.seen[key]

    def note(self, node: Node) -> None:
        if any(source in self.moving for source in node.all_input_nodes):
            self.moving.add(node)

    def constant(self, numbers: Sequence[float]) -> Node:
        name, self.count = f"_numbers{self.count}", self.count + 1
        self.module.register_buffer(name, torch.tensor(numbers))
        with self.graph.inserting_before(self.here):
            node = self.graph.get_attr(name)
        mode = next(v for n in self.graph.nodes if isinstance(v := n.meta.get("val"), Tensor)).fake_mode
        node.meta["val"] = mode.from_tensor(getattr(self.module, name))
        return node

    def unfolded(self, source: Node, dim: int, start: int, count: int, length: int) -> Node:
        size = max(length, 1)
        if count * size < shape_of(source)[dim]:
            source = self.call(aten.slice.Tensor, source, dim, start, start + count * size)
        if length:
            shape = shape_of(source)
            source = self.call(aten.reshape.default, source, [*shape[:dim], count, length, *shape[dim + 1 :]])
        return self.moved(source, dim, back=True)

    def moved(self, node: Node, dim: int, *, back: bool = False) -> Node:
        """The leading axis put at ``dim``, or the other way round."""
        if dim == 0:
            return node
        rest = [i for i in range(len(shape_of(node))) if i != (dim if back else 0)]
        order = [dim, *rest] if back else [*rest[:dim], 0, *rest[dim:]]
        return self.call(aten.permute.default, node, order)

    def emit(self, body: _Body) -> Node:
        """The computation for all values at once, in the graph."""
        inputs = [what if isinstance(what, Node) else what() for what in body.inputs]
        over = [None if isinstance(what, Node) else 0 for what in body.inputs]
        body.graph.lint()
        function = torch.func.vmap(GraphModule(torch.nn.Module(), body.graph), in_dims=tuple(over))
        with torch.no_grad():
            batched = make_fx(function)(*(n.meta["val"] for n in inputs))
        env: dict[Node, Node] = dict(
            zip((n for n in batched.graph.nodes if n.op == "placeholder"), inputs, strict=True)
        )
        for node in batched.graph.nodes:
            if node.op == "output":
                return env[node.args[0]]
            if node.op != "placeholder":
                env[node] = self.inlined(batched, node, env)
        raise AssertionError("a graph has an output")

    def inlined(self, batched: GraphModule, node: Node, env: dict[Node, Node]) -> Node:
        if node.op == "get_attr":
            name, self.count = f"_rolled{self.count}", self.count + 1
            self.module.register_buffer(name, getattr(batched, node.target))
            with self.graph.inserting_before(self.here):
                new = self.graph.get_attr(name)
        else:
            views = (aten.view.default, aten._unsafe_view.default)
            target = aten.reshape.default if node.target in views else node.target
            args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), env.__getitem__)
            key = _key(target, args, kwargs)
            if key in self.seen:
                return self.seen[key]
            with self.graph.inserting_before(self.here):
                new = self.seen[key] = self.graph.call_function(target, args, kwargs)
            new.stack_trace = self.here.stack_trace
        new.meta["val"] = node.meta["val"]
        self.note(new)
        return new


def _part(node: Node) -> tuple[Node, int, int, int] | None:
    """``(source, dim, start, length)`` of a node that takes an index (length 0) or a slice."""
    if node.target is aten.select.int:
        source, dim, index = node.args
        shape = shape_of(source)
        return source, dim % len(shape), index % shape[dim], 0
    if node.target is aten.slice.Tensor:
        source, dim, start, end, step = (*node.args, *(None, 0, None, None, 1)[len(node.args) :])
        dim %= len(shape_of(source))
        kept = range(*slice(start, end, step).indices(shape_of(source)[dim]))
        return (source, dim, kept.start, len(kept)) if step == 1 and len(kept) else None
    return None


def _runs(nodes: Sequence[Node], key: Callable[[Node], Any]) -> list[list[Node]]:
    """Neighbors with equal keys."""
    out: list[list[Node]] = []
    for node in nodes:
        if out and key(out[-1][0]) == key(node):
            out[-1].append(node)
        else:
            out.append([node])
    return out
