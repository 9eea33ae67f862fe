"""Type inference over axes: runs a graph once and lets each operation say how its axes are related."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from pyro_align.discovery import terms
from pyro_align.discovery.constants import constant_axes
from pyro_align.discovery.rules import find_rule
from pyro_align.discovery.supports import restrict
from pyro_align.discovery.terms import ONE, Term, Uniform, Var, resolve
from pyro_align.discovery.tracing import TracedGraph, attribute

MAX_CONSTANT = 1 << 26  # entries of a constant that are looked at; larger ones are fixed


@dataclass(eq=False)
class AxisTensor:
    """A tensor in the graph, as a rule sees it.

    Attributes:
        axes: One term per axis.
        shape: Its shape.
        dtype: Its dtype.
        constant: Returns the value of a tensor that depends on neither sites nor data, and None for any other.
    """

    axes: list[Term]
    shape: tuple[int, ...]
    dtype: torch.dtype
    constant: Callable[[], Tensor | None] = field(default=lambda: None)

    @property
    def ndim(self) -> int:
        return len(self.shape)


class Unsupported(Exception):
    """Raised by a rule that does not cover a call: the operation is then opaque."""


class Call:
    """One operation of the graph: what a rule may ask and say.

    Attributes:
        shapes: Shape of each output, None for outputs that are not tensors.
    """

    def __init__(self, inference: Inference, node: Node, shapes: list[tuple[int, ...] | None]):
        self._inference, self.node, self.shapes = inference, node, shapes

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the only (or first) output."""
        return self.shapes[0]

    merge = staticmethod(terms.merge)
    fix = staticmethod(terms.fix)
    split = staticmethod(terms.split)
    reshape = staticmethod(terms.reshape)
    concat = staticmethod(terms.concat)
    product = staticmethod(terms.product)

    def fresh(self, size: int, *, fixed: bool = False) -> Term:
        """A new axis."""
        return ONE if size == 1 else Var(size, fixed=fixed)

    def fresh_single(self) -> Term:
        """A single index that stands at a place of its own inside a concatenation."""
        return Var(1, fixed=True)

    def tensor(self, axes: Sequence[Term], shape: Sequence[int] | None = None) -> AxisTensor:
        """A tensor that a rule makes up from parts, with these axes."""
        sizes = tuple(terms.size_of(t) for t in axes) if shape is None else tuple(shape)
        return AxisTensor(list(axes), sizes, torch.float64)

    def fixed(self, shape: Sequence[int]) -> list[Term]:
        """New axes that keep their order."""
        return [self.fresh(n, fixed=True) for n in shape]

    def pinned(self, axis: Term) -> Term:
        """Fixes an axis whose order matters and returns it; what was uniform along it no longer need be."""
        terms.fix(axis)
        return Var(terms.size_of(axis), fixed=True) if terms.has_uniform(axis) else axis

    def broadcast(self, *tensors: AxisTensor) -> list[Term]:
        """Merges axes that an elementwise operation lines up, right-aligned; returns the result's axes."""
        ndim = max((t.ndim for t in tensors), default=0)
        out: list[Term] = [ONE] * ndim
        for tensor in tensors:
            for i in range(1, tensor.ndim + 1):
                if tensor.shape[-i] == 1:
                    continue
                known = out[-i]
                out[-i] = tensor.axes[-i] if terms.size_of(known) == 1 else self.merge(known, tensor.axes[-i])
        return out

    def witness(self, axes: Sequence[Term]) -> None:
        """Records a tensor that the operation makes on the way; nested atoms must find their outer atom in it."""
        self._inference.tensors.append(list(axes))

    def unsupported(self, why: str = "") -> Unsupported:
        """``raise call.unsupported()`` makes the operation opaque."""
        return Unsupported(why)


@dataclass
class OpaqueNode:
    """An operation whose axes were fixed, with the variables this fixed."""

    operation: str
    where: str
    variables: list[Var]


class Inference:
    """Reads a traced graph.

    Attributes:
        sites: Site -> one term per axis.
        tensors: Axes of every tensor in the graph that depends on a site, and of those met on the way.
        opaque: Operations without a rule.
    """

    def __init__(self, traced: TracedGraph):
        self.traced = traced
        self.sites: dict[str, list[Term]] = {}
        self.tensors: list[list[Term]] = []
        self.opaque: list[OpaqueNode] = []
        self._env: dict[Node, object] = {}
        self._site_of = {node: name for name, nodes in traced.nodes.items() for node in nodes}
        self._folded: dict[Node, object] = {}
        self._constant: set[Node] = set()
        self._constant_axes: dict[Node, list[Term]] = {}
        self._run()

    def _run(self) -> None:
        for name, value in self.traced.values.items():
            self.sites[name] = [ONE if n == 1 else Var(n) for n in value.shape]
            if name in self.traced.supports:
                restrict(self.sites[name], self.traced.supports[name])
            self.tensors.append(self.sites[name])
        for node in self.traced.module.graph.nodes:
            if node.op == "output":
                self._finish(node)
            else:
                self._env[node] = self._visit(node)

    def _visit(self, node: Node):
        if node in self._site_of:
            name = self._site_of[node]
            value = self.traced.values[name]
            return AxisTensor(self.sites[name], tuple(value.shape), value.dtype)
        if node.op == "placeholder":
            value = self.traced.data[node]
            return AxisTensor(
                [ONE if n == 1 else Var(n, fixed=True) for n in value.shape], tuple(value.shape), value.dtype
            )
        if node.op == "get_attr":
            self._constant.add(node)
            return self._lazy_constant(node)
        if node.target is operator.getitem:
            source, index = node.args
            if source in self._constant:
                self._constant.add(node)
                return self._lazy_constant(node)
            return self._env[source][index]
        if all(n in self._constant for n in node.all_input_nodes):
            self._constant.add(node)
            return self._lazy_constant(node)
        return self._apply(node)

    # -- constants -------------------------------------------------------------------------------------------------

    def _lazy_constant(self, node: Node):
        """A constant's axes are looked at only when something that is not constant meets it."""
        meta = node.meta.get("val")
        if not isinstance(meta, Tensor):
            return meta
        return _ConstantTensor(self, node, meta)

    def fold(self, node: Node):
        """The value of a constant node."""
        if node not in self._folded:
            if node.op == "get_attr":
                value = attribute(self.traced.module, node.target)
                self._folded[node] = value.detach() if isinstance(value, Tensor) else value
            else:
                args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), self.fold)
                with torch.no_grad():
                    self._folded[node] = node.target(*args, **kwargs)
        return self._folded[node]

    def axes_of_constant(self, node: Node, shape: tuple[int, ...]) -> list[Term]:
        """What a constant tells apart; variables that are free are new at each call."""
        if all(n == 1 for n in shape):
            return [ONE] * len(shape)
        if node not in self._constant_axes:
            if torch.Size(shape).numel() > MAX_CONSTANT:
                found = [ONE if n == 1 else Var(n, fixed=True) for n in shape]
            else:
                found = constant_axes(self.fold(node))
            if not all(v.fixed for t in found for v in terms.variables(t)):
                return found
            self._constant_axes[node] = found
        return list(self._constant_axes[node])

    def is_constant(self, node: Node) -> bool:
        """Whether a node depends on neither sites nor data."""
        return node in self._constant

    def site_of(self, node: Node) -> str | None:
        """The site for whose value a node stands, if any."""
        return self._site_of.get(node)

    def tensor_of(self, node: Node):
        """What a node of the graph stands for: an :class:`AxisTensor`, a list of them, or a plain value."""
        return self._env.get(node)

    # -- operations ------------------------------------------------------------------------------------------------

    def _apply(self, node: Node):
        meta = node.meta.get("val")
        outputs = list(meta) if isinstance(meta, tuple | list) else [meta]
        shapes = [tuple(v.shape) if isinstance(v, Tensor) else None for v in outputs]
        used = {source: self._use(source) for source in node.all_input_nodes}
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), used.__getitem__)
        call = Call(self, node, shapes)
        rule = find_rule(node.target)
        axes = None
        if rule is not None:
            try:
                axes = rule(call, *args, **kwargs)
            except Unsupported:
                axes = None
        if axes is None or not _fits(axes, shapes, isinstance(meta, tuple | list)):
            axes = self._fix_everything(node, call)
        results = axes if isinstance(meta, tuple | list) else [axes]
        wrapped = []
        for value, found in zip(outputs, results, strict=False):
            if not isinstance(value, Tensor):
                wrapped.append(None)
                continue
            self.tensors.append(found)
            wrapped.append(AxisTensor(found, tuple(value.shape), value.dtype))
        return wrapped if isinstance(meta, tuple | list) else wrapped[0]

    def _use(self, source: Node):
        found = self._env[source]
        return _ConstantTensor(self, source, found) if isinstance(found, _ConstantTensor) else found

    def _fix_everything(self, node: Node, call: Call) -> list:
        touched: list[Var] = []
        for source in node.all_input_nodes:
            found = self._env[source]
            for tensor in found if isinstance(found, list) else [found]:
                if isinstance(tensor, AxisTensor) and source not in self._constant:
                    for axis in tensor.axes:
                        touched += [v for v in terms.variables(resolve(axis)) if not v.fixed and v.size > 1]
                        terms.fix(axis)
        if touched:
            where = (node.stack_trace or "").strip().split("\n")
            self.opaque.append(OpaqueNode(str(node.target), _location(where), touched))
        fixed = [None if s is None else call.fixed(s) for s in call.shapes]
        return fixed if isinstance(node.meta.get("val"), tuple | list) else fixed[0]

    def _finish(self, node: Node) -> None:
        outputs = [n for n in pytree.tree_leaves(node.args) if isinstance(n, Node)]
        states = self.traced.states
        for source in outputs[: len(outputs) - len(states)]:
            tensor = self._env[source]
            if isinstance(tensor, AxisTensor):
                for axis in tensor.axes:
                    terms.fix(axis)
        for source, name in zip(outputs[len(outputs) - len(states) :], states, strict=True):
            for axis, own in zip(self._env[source].axes, self.sites[name], strict=True):
                terms.merge(axis, own)


class _ConstantTensor(AxisTensor):
    """One use of a constant. Its values are looked at when its axes are first asked for.

    Two uses of one constant are two tensors: what one use learns of a free axis must not bind the other.
    """

    def __init__(self, inference: Inference, node: Node, like: Tensor | AxisTensor):
        self._inference, self._node, self._axes = inference, node, None
        self.shape, self.dtype = tuple(like.shape), like.dtype

    def constant(self) -> Tensor | None:  # type: ignore[override]
        return self._inference.fold(self._node)

    @property
    def axes(self) -> list[Term]:  # type: ignore[override]
        if self._axes is None:
            self._axes = self._inference.axes_of_constant(self._node, self.shape)
        return self._axes


def _fits(axes, shapes, several: bool) -> bool:
    """Whether a rule returned one term of the right size for every axis of every output."""
    for found, shape in zip(axes if several else [axes], shapes, strict=False):
        if shape is not None and [terms.size_of(t) for t in found] != list(shape):
            return False
    return not several or len(axes) >= len(shapes)


def _location(trace: list[str]) -> str:
    """The innermost line of a stack trace that is not torch's or Pyro's own."""
    lines = [line.strip() for line in trace if line.strip().startswith("File ")]
    own = [line for line in lines if "site-packages" not in line]
    return (own or lines or ["unknown place"])[-1]


__all__ = ["AxisTensor", "Call", "Inference", "Uniform", "Unsupported"]
