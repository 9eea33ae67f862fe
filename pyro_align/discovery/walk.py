"""One interpreter of a traced graph. What it computes with is a *domain*: axes, signs, rotations.

The walker visits the nodes in order, tells sites, data and constants apart, finds the rule of every operation in the
domain's registry and hands the domain what the rule returned. A domain says what the value of a site, of data and of a
constant is, what happens where there is no rule, and what the outputs must satisfy.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from pyro_align.discovery.ops import is_a, is_pointwise
from pyro_align.discovery.registry import Registry
from pyro_align.discovery.tracing import TracedGraph, attribute
from pyro_align.model.forward import unexpanded

aten: Any = torch.ops.aten


class Unsupported(Exception):
    """Raised by a rule that does not cover a call: the operation is then treated as one without a rule."""


class Call:
    """One operation of the graph: what a rule of any domain may ask.

    Attributes:
        node: The call in the graph.
        several: Whether it returns a list of outputs.
        outputs: The outputs of the trace, tensors by shape and dtype alone.
        shapes: Shape of each output, None for outputs that are not tensors.
    """

    def __init__(self, node: Node):
        self.node = node
        meta = node.meta.get("val")
        self.several: bool = isinstance(meta, tuple | list)
        self.outputs: list[Any] = list(meta) if self.several else [meta]
        self.shapes: list[tuple[int, ...] | None] = [
            tuple(v.shape) if isinstance(v, Tensor) else None for v in self.outputs
        ]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the only (or first) output."""
        return self.shapes[0]

    @property
    def name(self) -> str:
        """The operation's name without its namespace and overload, such as ``"mm"``."""
        return self.node.target._opname

    def option(self, name: str, default: Any = None) -> Any:
        """An argument of the operation that holds no tensor, by its name in the operator's schema."""
        for place, argument in enumerate(self.node.target._schema.arguments):
            if argument.name == name:
                given = self.node.args[place : place + 1]
                return given[0] if given else self.node.kwargs.get(name, argument.default_value)
        return default

    def dims(self, ndim: int) -> list[int]:
        """The axes that the operation's ``dim`` names of a tensor with ``ndim`` axes; all where it names none."""
        return axes_of(self.option("dim"), ndim)

    def unsupported(self, why: str = "") -> Unsupported:
        """``raise call.unsupported()`` where a rule does not cover a call."""
        return Unsupported(why)


def axes_of(dim: Any, ndim: int) -> list[int]:
    """The axes that a ``dim`` argument names; None and an empty list name all."""
    if dim is None or (isinstance(dim, list | tuple) and not dim):
        return list(range(ndim))
    dims = dim if isinstance(dim, list | tuple) else [dim]
    return [d % ndim for d in dims] if ndim else []


class Constants:
    """The nodes of a graph that depend on neither sites nor data, and their values, computed when asked for.

    They are computed in float64, lest rounding tell apart what is alike. What is the same along an axis is computed
    once and expanded: the log of a prior's scale, say.
    """

    def __init__(self, traced: TracedGraph):
        self._module = traced.module
        self._values: dict[Node, Any] = {}
        self._nodes: set[Node] = set()
        sites = {node for nodes in traced.nodes.values() for node in nodes}
        # what is laid out in memory as it was traced must be
        self._expand: bool = all(n.target is not aten.as_strided.default for n in traced.module.graph.nodes)
        for node in traced.module.graph.nodes:
            free = node.op in ("get_attr", "call_function") and node not in sites
            if free and all(source in self._nodes for source in node.all_input_nodes):
                self._nodes.add(node)

    def __contains__(self, node: Node) -> bool:
        return node in self._nodes

    def value(self, node: Node) -> Any:
        """The value of a constant node."""
        if node not in self._values:
            if node.op == "get_attr":
                value = attribute(self._module, node.target)
                self._values[node] = double(value.detach()) if isinstance(value, Tensor) else value
            else:
                args, kwargs = double(torch.fx.node.map_arg((node.args, node.kwargs), self.value))
                with torch.no_grad():
                    self._values[node] = double(self._computed(node, args, kwargs))
        return self._values[node]

    def _computed(self, node: Node, args: Any, kwargs: Any) -> Any:
        like, given = node.meta.get("val"), (v for v in pytree.tree_leaves((args, kwargs)) if isinstance(v, Tensor))
        if not self._expand or not isinstance(like, Tensor) or any(v.layout != torch.strided for v in (like, *given)):
            return node.target(*args, **kwargs)
        if node.target is aten.full.default:
            return double(node.target([], *args[1:], **kwargs)).expand(like.shape)
        if not is_pointwise(node.target) and not is_a(node.target, "same", "cast"):
            return node.target(*args, **kwargs)
        args, kwargs = pytree.tree_map_only(Tensor, unexpanded, (args, kwargs))
        return node.target(*args, **kwargs).expand(like.shape)

    def used(self) -> dict[Node, Any]:
        """Every constant node, with its value where the rest of the graph uses it."""
        return {n: self.value(n) if any(u not in self._nodes for u in n.users) else None for n in self._nodes}


_DOUBLE = {torch.float32: torch.float64, torch.float16: torch.float64, torch.bfloat16: torch.float64}
_DOUBLE[torch.complex64] = torch.complex128


def double(value: Any) -> Any:
    """Tensors and dtypes of lower precision in float64 (complex128), wherever they are in a nest of arguments."""
    if isinstance(value, Tensor):
        return value.to(_DOUBLE[value.dtype]) if value.dtype in _DOUBLE else value
    if isinstance(value, tuple | list | dict):
        return pytree.tree_map(double, value)
    return _DOUBLE.get(value, value) if isinstance(value, torch.dtype) else value


class Domain:
    """What the walker computes with; a subclass fills in every method that raises.

    Attributes:
        rules: The domain's registry.
    """

    rules: Registry

    def call(self, node: Node) -> Call:
        """What a rule is handed for a node."""
        raise NotImplementedError

    def site(self, name: str, value: Tensor) -> Any:
        """The value of a site."""
        raise NotImplementedError

    def data(self, value: Tensor) -> Any:
        """The value of a tensor of data."""
        raise NotImplementedError

    def constant(self, constants: Constants, node: Node, like: Tensor) -> Any:
        """The value of a constant, at one of its uses."""
        raise NotImplementedError

    def results(self, call: Call, found: list[Any]) -> list[Any] | None:
        """The outputs' values from what a rule returned for each; None where that does not fit the outputs."""
        raise NotImplementedError

    def without_rule(self, call: Call, sources: Sequence[Any]) -> list[Any]:
        """The outputs' values where there is no rule; ``sources`` are the operands that are not constant."""
        raise NotImplementedError

    def record(self, node: Node, value: Any) -> None:
        """Told of every node's value."""

    def finish(self, outputs: Sequence[Any], states: Mapping[str, Any]) -> None:
        """What the graph returns: outputs that must not change, and updated values of sites, by site."""
        raise NotImplementedError


def walk(traced: TracedGraph, domain: Domain, constants: Constants | None = None) -> None:
    """Interprets a graph in a domain.

    Args:
        traced: The graph.
        domain: What to compute with; its ``finish`` is told of the outputs.
        constants: The graph's constants, where they are known already.
    """
    walker = _Walker(traced, domain, Constants(traced) if constants is None else constants)
    done = _last_uses(traced.module.graph)
    for node in traced.module.graph.nodes:
        if node.op == "output":
            returned = [walker.use(n) for n in pytree.tree_leaves(node.args) if isinstance(n, Node)]
            count = len(returned) - len(traced.states)
            domain.finish(returned[:count], dict(zip(traced.states, returned[count:], strict=True)))
            return
        walker.visit(node)
        for source in done.get(node, ()):
            walker.env.pop(source, None)


class _Walker:
    def __init__(self, traced: TracedGraph, domain: Domain, constants: Constants):
        self.traced, self.domain, self.constants = traced, domain, constants
        self.site_of = {node: name for name, nodes in traced.nodes.items() for node in nodes}
        self.env: dict[Node, Any] = {}

    def visit(self, node: Node) -> None:
        if node in self.constants:
            return
        if node in self.site_of:
            name = self.site_of[node]
            value = self.domain.site(name, self.traced.values[name])
        elif node.op == "placeholder":
            value = self.domain.data(self.traced.data[node])
        elif node.target is operator.getitem:
            value = self.env[node.args[0]][node.args[1]]
        else:
            value = self.apply(node)
        self.env[node] = value
        self.domain.record(node, value)

    def use(self, node: Node) -> Any:
        """A node's value as an operand. Two uses of one constant are two values."""
        if node not in self.constants:
            return self.env[node]
        meta = node.meta.get("val")
        return self.domain.constant(self.constants, node, meta) if isinstance(meta, Tensor) else meta

    def apply(self, node: Node) -> Any:
        call = self.domain.call(node)
        used = {source: self.use(source) for source in node.all_input_nodes}
        rule, results = self.domain.rules.find(node.target), None
        if rule is not None:
            args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), used.__getitem__)
            try:
                found = rule(call, *args, **kwargs)
                results = self.domain.results(call, list(found) if call.several else [found])
            except Unsupported:
                results = None
        if results is None:
            sources = [used[source] for source in used if source not in self.constants]
            results = self.domain.without_rule(call, pytree.tree_leaves(sources))
        return results if call.several else results[0]


def _last_uses(graph) -> dict[Node, list[Node]]:
    """Node -> the nodes whose values are not needed after it."""
    last: dict[Node, Node] = {}
    for node in graph.nodes:
        for source in node.all_input_nodes:
            last[source] = node
    out: dict[Node, list[Node]] = {}
    for source, node in last.items():
        out.setdefault(node, []).append(source)
    return out
