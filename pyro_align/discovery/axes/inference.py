"""Type inference over axes: the domain in which each operation says how its axes are related."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from pyro_align.discovery.axes import causes, terms, unify
from pyro_align.discovery.axes.causes import Cause
from pyro_align.discovery.axes.reshape import reshape
from pyro_align.discovery.axes.terms import ONE, Term, Var
from pyro_align.discovery.constants import constant_axes
from pyro_align.discovery.gauge import without_factors
from pyro_align.discovery.registry import Registry, rule
from pyro_align.discovery.supports import restrict
from pyro_align.discovery.tracing import TracedGraph
from pyro_align.discovery.walk import Call, Constants, Domain, walk

MAX_CONSTANT = 1 << 26  # entries of a constant that are looked at; larger ones are fixed


@dataclass(eq=False)
class AxisTensor:
    """A tensor in the graph, as a rule sees it.

    Attributes:
        axes: One term per axis.
        shape: Its shape.
        dtype: Its dtype.
        constant: Returns the value of a tensor that depends on neither sites nor data, and None for any other.
        places: The axis of which the entries are indices, where they are (what ``argmax`` returns).
    """

    axes: list[Term]
    shape: tuple[int, ...]
    dtype: torch.dtype
    constant: Callable[[], Tensor | None] = field(default=lambda: None)
    places: Term | None = None

    @property
    def ndim(self) -> int:
        return len(self.shape)


class AxisCall(Call):
    """One operation of the graph: what a rule of axes may ask and say."""

    def __init__(self, inference: Inference, node: Node):
        super().__init__(node)
        self._inference = inference
        self.places: dict[int, Term] = {}  # outputs whose entries are indices of an axis
        self._followed: set[int] = set()

    def follow(self, tensor: AxisTensor) -> None:
        """Says that the rule follows the entries of a tensor of indices; where none does, their axis is fixed."""
        self._followed.add(id(tensor))

    def follows(self, tensor: Any) -> bool:
        return id(tensor) in self._followed

    merge: Callable[[Term, Term], Term] = staticmethod(unify.merge)
    fix: Callable[..., None] = staticmethod(terms.fix)
    split: Callable[[Term, Sequence[int]], list[Term] | None] = staticmethod(unify.split)
    reshape: Callable[[Sequence[Term], Sequence[int]], list[Term]] = staticmethod(reshape)
    concat: Callable[[Sequence[Term]], Term] = staticmethod(terms.concat)
    product: Callable[[Sequence[Term]], Term] = staticmethod(terms.product)

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

    def contract(self, left: AxisTensor, left_labels: str, right: AxisTensor, right_labels: str, out: str) -> list[Any]:
        """A two-operand einsum: axes with one label are merged, the full product is witnessed."""
        found: dict[str, Term] = {}
        for x, labels in ((left, left_labels), (right, right_labels)):
            for label, term, n in zip(labels, x.axes, x.shape, strict=True):
                known = found.get(label)
                if known is None or (known is ONE and n != 1):
                    found[label] = term
                elif n != 1:
                    found[label] = self.merge(known, term)
        self.witness(list(found.values()))
        return [found[label] for label in out]

    def witness(self, axes: Sequence[Term]) -> None:
        """Records a tensor that the operation makes on the way; nested atoms must find their outer atom in it."""
        self._inference.tensors.append(list(axes))


class Inference(Domain):
    """The axes of every tensor of a traced graph."""

    traced: TracedGraph  # the one that was read, without Cholesky factors that are a matter of gauge

    rules: Registry = rule

    def __init__(self, traced: TracedGraph, copies: Mapping[Node, Node] | None = None):
        self.traced, own = without_factors(traced)
        self._copies = own if copies is None else {node: own.get(copy, copy) for node, copy in copies.items()}
        self.constants: Constants = Constants(self.traced)
        self.sites: dict[str, list[Term]] = {
            name: [ONE if n == 1 else Var(n) for n in value.shape] for name, value in traced.values.items()
        }
        for name, support in traced.supports.items():
            with causes.blaming(Cause("support", detail=str(support))):
                restrict(self.sites[name], support)
        # axes of every tensor in the graph that depends on a site, and of those met on the way
        self.tensors: list[list[Term]] = list(self.sites.values())
        self.opaque: bool = False  # whether an operation without a rule fixed an axis
        self.kin: tuple[tuple[str, ...], ...] = ()  # families of sites with equal roles, whose order is not looked at
        self.named: tuple[dict, dict] | None = None  # what the assembly made of it
        self._tensor_of: dict[Node, Any] = {}
        self._constant_axes: dict[Node, list[Term]] = {}
        with causes.blaming(Cause("operation")):
            walk(self.traced, self, self.constants)

    @property
    def read(self) -> Mapping[Node, Any]:
        """What each node of the graph that was read stands for, as :meth:`tensor_of` says."""
        return self._tensor_of

    def tensor_of(self, node: Node) -> AxisTensor:
        """What a node that depends on sites or data stands for: an :class:`AxisTensor`, or a list of them."""
        return self._tensor_of.get(self._copies.get(node, node))

    # -- the domain ------------------------------------------------------------------------------------------------

    def call(self, node: Node) -> AxisCall:
        causes.reading(Cause("operation", node))
        return AxisCall(self, node)

    def site(self, name: str, value: Tensor) -> AxisTensor:
        return AxisTensor(self.sites[name], tuple(value.shape), value.dtype)

    def data(self, value: Tensor) -> AxisTensor:
        what = f"of data of shape {tuple(value.shape)}"
        axes = [
            ONE if n == 1 else Var(n, fixed=True, cause=Cause("data", detail=f"axis {i} {what}"))
            for i, n in enumerate(value.shape)
        ]
        return AxisTensor(axes, tuple(value.shape), value.dtype)

    def constant(self, constants: Constants, node: Node, like: Tensor) -> AxisTensor:
        return _ConstantTensor(self, node, like)

    def record(self, node: Node, value: Any) -> None:
        self._tensor_of[node] = value

    def results(self, call: AxisCall, found: list[Any]) -> list[Any] | None:
        if len(found) < len(call.shapes):
            return None
        used = (self._tensor_of.get(node) for node in call.node.all_input_nodes)
        self._fix_places(tensor for tensor in used if not call.follows(tensor))
        out: list[AxisTensor | None] = []
        for value, shape, axes in zip(call.outputs, call.shapes, found, strict=False):
            if shape is None:
                out.append(None)
            elif axes is None or [terms.size_of(t) for t in axes] != list(shape):
                return None
            else:
                out.append(AxisTensor(axes, shape, value.dtype, places=call.places.get(len(out))))
        self.tensors += [tensor.axes for tensor in out if tensor is not None]
        return out

    def without_rule(self, call: AxisCall, sources: Sequence[Any]) -> list[Any]:
        causes.reading(Cause("no rule", call.node))
        call.places = {}
        self._fix_places(sources)
        for axis in (axis for tensor in sources if isinstance(tensor, AxisTensor) for axis in tensor.axes):
            self.opaque |= not terms.is_fixed(axis)
            terms.fix(axis)
        return self.results(call, [None if s is None else call.fixed(s) for s in call.shapes])

    def finish(self, outputs: Sequence[Any], states: Mapping[str, Any]) -> None:
        causes.reading(Cause("output"))
        self._fix_places(outputs)
        for axis in (axis for out in outputs if isinstance(out, AxisTensor) for axis in out.axes):
            terms.fix(axis)
        for name, out in states.items():
            for axis, own in zip(out.axes, self.sites[name], strict=True):
                unify.merge(axis, own)

    def _fix_places(self, tensors: Iterable[Any]) -> None:
        """Numbers that are read as numbers tell the axis apart whose indices they are."""
        for tensor in tensors:
            if isinstance(tensor, AxisTensor) and tensor.places is not None:
                terms.fix(tensor.places)

    def axes_of_constant(self, node: Node, shape: tuple[int, ...]) -> list[Term]:
        """What a constant tells apart; variables that are free are new at each call."""
        if all(n == 1 for n in shape):
            return [ONE] * len(shape)
        if node not in self._constant_axes:
            with causes.blaming(Cause("constant", node, f"a constant of shape {tuple(shape)}")):
                if torch.Size(shape).numel() > MAX_CONSTANT:
                    found = [ONE if n == 1 else Var(n, fixed=True) for n in shape]
                else:
                    found = constant_axes(self.constants.value(node))
            if not all(v.fixed for t in found for v in terms.variables(t)):
                return found
            self._constant_axes[node] = found
        return list(self._constant_axes[node])


class _ConstantTensor(AxisTensor):
    """One use of a constant. Its values are looked at when its axes are first asked for.

    Two uses of one constant are two tensors: what one use learns of a free axis must not bind the other.
    """

    def __init__(self, inference: Inference, node: Node, like: Tensor):
        self._inference, self._node, self._axes, self.places = inference, node, None, None
        self.shape, self.dtype = tuple(like.shape), like.dtype

    def constant(self) -> Tensor | None:  # type: ignore[override]
        return self._inference.constants.value(self._node)

    @property
    def axes(self) -> list[Term]:  # type: ignore[override]
        if self._axes is None:
            self._axes = self._inference.axes_of_constant(self._node, self.shape)
        return self._axes
