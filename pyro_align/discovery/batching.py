"""Several values that are computed alike, as one computation with a leading axis.

Values are compared node by node. Where they differ only in the index or the slice that they take of one tensor, in
constants, or in sites of equal shape, ``torch.func.vmap`` makes one computation of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from pyro_align.discovery.graphs import call, constant, shape_of
from pyro_align.discovery.hoist import sliced
from pyro_align.discovery.ops import is_a, is_pointwise
from pyro_align.discovery.recording import Recording
from pyro_align.discovery.tracing import TracedGraph
from pyro_align.discovery.walk import Constants

aten: Any = torch.ops.aten
DEEPEST = 100  # calls one above the other that are compared


def key_of(target: Any, args: Any, kwargs: Any) -> Any:
    return target, frozen(args), frozen(kwargs)


def frozen(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(map(frozen, value))
    if isinstance(value, dict):
        return tuple((k, frozen(v)) for k, v in value.items())
    return (type(value), str(value)) if isinstance(value, float | int | bool | slice) else value


class _Unlike(Exception):
    """The computations are not one."""


@dataclass
class _Body:
    """One computation for several values: a graph whose inputs are values shared by all, or one for each."""

    graph: Graph = field(default_factory=Graph)
    # what each placeholder stands for: a shared node, or how to make the tensor of all values
    inputs: list[Node | Callable[[], Node]] = field(default_factory=list)
    known: dict[Any, Any] = field(default_factory=dict)
    # the order of the values in the first tensor that they are parts of; None where it is theirs
    order: list[int] | None = None
    gain: bool = False  # whether some input is made of the parts of a tensor that depends on sites
    depth: int = 0  # how far below the values the comparison is
    # sites that stand in the same place of the computation, with the calls that use them
    kin: list[tuple[tuple[Node, ...], tuple[Node, ...]]] = field(default_factory=list)


class Batching:
    """New nodes of a graph that compute several of its values at once."""

    graph: Graph
    module: GraphModule
    traced: TracedGraph
    count: int

    def __init__(self, traced: TracedGraph):
        self.traced, self.module, self.graph = traced, traced.module, traced.module.graph
        self.constants: Constants = Constants(traced)
        self.sites: set[Node] = {node for nodes in traced.nodes.values() for node in nodes}
        self.users: dict[Node, tuple[Node, ...]] = {site: tuple(site.users) for site in self.sites}
        self.moving: set[Node] = set()  # what depends on sites
        self.here: Node | None = None
        self.seen: dict[Any, Node] = {}
        self.kin: dict[tuple[Node, ...], list[set[Node]]] = {}  # sites of equal role -> the calls where they have it
        self.count = 0

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
        for sites, users in body.kin if not ordered or not self.returned() else ():
            for met, user in zip(self.kin.setdefault(sites, [set() for _ in sites]), users, strict=True):
                met.add(user)
        return self.emit(body) if body.gain and body.order is None else None

    def returned(self) -> bool:
        """Whether what is being joined is returned as it is, or laid out in another way."""
        waiting = [self.here]
        while waiting:
            for user in waiting.pop().users:
                if user.op == "output":
                    return True
                if is_a(user.target, "same", "reshape", "view"):
                    waiting.append(user)
        return False

    def body(self, nodes: tuple[Node, ...]) -> _Body:
        body = _Body()
        body.graph.output(self.alike(body, nodes))
        return body

    def alike(self, body: _Body, values: tuple[Any, ...]) -> Any:
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

    def node_alike(self, body: _Body, nodes: tuple[Any, ...]) -> Node:
        if not all(isinstance(n, Node) for n in nodes) or body.depth > DEEPEST:
            raise _Unlike
        first = nodes[0]
        if all(n is first for n in nodes):
            return self.input(body, first, first)
        if (make := self.parts_of_one(body, nodes)) is not None:
            return self.input(body, make, first)
        if len({shape_of(n) for n in nodes}) > 1:
            raise _Unlike
        distinct = len(set(nodes)) == len(nodes)
        if distinct and all(n in self.sites for n in nodes):
            return self.input(body, lambda: self.call(aten.stack.default, list(nodes)), first)
        if not all(n in self.constants for n in nodes):
            try:
                body.depth += 1
                return self.same_call(body, nodes)
            except _Unlike:
                if any(n in self.moving for n in nodes):
                    raise
            finally:
                body.depth -= 1
        return self.input(body, lambda: self.call(aten.stack.default, list(nodes)), first)

    def same_call(self, body: _Body, nodes: tuple[Node, ...]) -> Node:
        first = nodes[0]
        if any(n.op != "call_function" or n.target is not first.target for n in nodes):
            raise _Unlike
        if any(len(n.args) != len(first.args) or n.kwargs.keys() != first.kwargs.keys() for n in nodes):
            raise _Unlike
        for used in zip(*(n.all_input_nodes for n in nodes), strict=False):
            if len(set(used)) == len(used) and all(n in self.sites for n in used):
                body.kin.append((used, nodes))
        target, args = first.target, []
        for parts in zip(*(n.args for n in nodes), strict=True):
            number = all(isinstance(p, int | float) and not isinstance(p, bool) for p in parts)
            if number and len(set(parts)) > 1:
                if not is_pointwise(target):
                    raise _Unlike
                target = first.target.overloadpacket
                args.append(self.input(body, lambda parts=parts: self.constant(torch.tensor(parts)), first))
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
        if body.order is None and order != list(range(len(order))):
            body.order = order
        body.gain |= source in self.moving
        return lambda: self.unfolded(source, dim, placed[0], len(starts), length)

    # -- new nodes -------------------------------------------------------------------------------------------------

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        key = key_of(target, args, kwargs)
        if key not in self.seen:
            with self.graph.inserting_before(self.here):
                self.seen[key] = call(self.graph, self.here, target, *args, **kwargs)
            self.note(self.seen[key])
        return self.seen[key]

    def note(self, node: Node) -> None:
        if any(source in self.moving for source in node.all_input_nodes):
            self.moving.add(node)

    def constant(self, value: Tensor) -> Node:
        self.count += 1
        with self.graph.inserting_before(self.here):
            return constant(self.module, f"_rolled{self.count}", value)

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

    def emit(self, body: _Body) -> Node | None:
        """The computation for all values at once, in the graph; None where an operation does not take batches."""
        inputs = [what if isinstance(what, Node) else what() for what in body.inputs]
        over = [None if isinstance(what, Node) else 0 for what in body.inputs]
        body.graph.lint()
        function = torch.func.vmap(GraphModule(torch.nn.Module(), body.graph), in_dims=tuple(over))
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                like = [n.meta["val"] for n in inputs]
                batched = Recording({}, fake=like[0].fake_mode).run(function, *like)
            except (RuntimeError, NotImplementedError):
                return None
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
            new = self.constant(getattr(batched, node.target))
        else:
            views = (aten.view.default, aten._unsafe_view.default)
            target = aten.reshape.default if node.target in views else node.target
            args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), env.__getitem__)
            key = key_of(target, args, kwargs)
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
        source, dim, kept = sliced(node)
        return (source, dim, kept.start, len(kept)) if kept.step == 1 and len(kept) else None
    return None
