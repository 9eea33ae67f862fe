"""A rule tested alone: the operation must follow every element of the group that its rule claims.

One call of the operator is made a graph of its own, which the walker reads in the domain of the rule. The domain then
says how inputs may be moved, and how the outputs follow; here they are moved and compared.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from operator import getitem
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from pyro_align.discovery.tracing import TracedGraph
from pyro_align.errors import SymmetryError

if TYPE_CHECKING:
    from torch._ops import OpOverload
    from torch.utils._pytree import TreeSpec

TOLERANCE = 1e-9  # relative; sums over relabeled axes are rounded in another order
LOW = (torch.float32, torch.float16, torch.bfloat16)
ROUNDED = 1e-5  # the same for outputs of less than double precision

Values = Mapping[str, Tensor]
Action = Callable[[Values], Values]


class Alone:
    """One call of an operator, as a graph of its own; inputs and outputs are named ``input0``, ``output0``, ..."""

    leaves: list[Any]
    spec: TreeSpec
    used: list[int]

    def __init__(
        self,
        operation: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        constants: Collection[int] = (),
        outputs: Collection[int] | None = None,
    ):
        self.operation: OpOverload[..., Any] = overload(operation)
        self.leaves, self.spec = pytree.tree_flatten((args, dict(kwargs)))
        self.values: dict[str, Tensor] = {}
        self.slots: dict[int, str] = {}  # place among the arguments -> input
        graph, root, nodes, seen = fx.Graph(), nn.Module(), {}, {}
        tensors = [i for i, leaf in enumerate(self.leaves) if isinstance(leaf, Tensor)]
        for k, i in enumerate(tensors):
            given = self.leaves[i]
            value = self.leaves[i] = given.detach().double() if given.is_floating_point() else given
            if id(given) in seen:
                nodes[i], self.slots[i] = seen[id(given)]
                continue
            if k in constants:
                root.register_buffer(f"constant{k}", value)
                nodes[i] = graph.get_attr(f"constant{k}")
            else:
                nodes[i], self.slots[i] = graph.placeholder(f"input{k}"), f"input{k}"
                self.values[f"input{k}"] = value
                seen[id(given)] = nodes[i], f"input{k}"
            nodes[i].meta["val"] = value
        filled, named = pytree.tree_unflatten([nodes.get(i, leaf) for i, leaf in enumerate(self.leaves)], self.spec)
        call = graph.call_function(self.operation, tuple(filled), named)
        call.meta["val"] = self._call(self.leaves)
        self.used, parts = _parts(graph, call, outputs)
        graph.output(parts)
        site_nodes = {name: (nodes[i],) for i, name in self.slots.items()}
        self.traced: TracedGraph = TracedGraph(fx.GraphModule(root, graph), self.values, site_nodes, {})

    def _call(self, leaves: list[Any]):
        args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        with torch.no_grad():
            return self.operation(*args, **kwargs)

    def run(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The outputs at other inputs."""
        leaves = list(self.leaves)
        for i, name in self.slots.items():
            leaves[i] = values[name].clone(memory_format=torch.contiguous_format)
        out = self._call(leaves)
        found = out if isinstance(out, tuple | list) else [out]
        return {f"output{k}": found[k] for k in self.used if isinstance(found[k], Tensor)}

    @property
    def shapes(self) -> str:
        """The inputs with their shapes, for messages."""
        return ", ".join(f"{name} {tuple(value.shape)}" for name, value in self.values.items())

    def by_name(self, outputs: Iterable[Any]) -> dict[str, Any]:
        """What a domain said of the outputs, by name."""
        return {f"output{k}": out for k, out in zip(self.used, outputs, strict=True)}

    def changes(self, before: Values, after: Values) -> dict[str, float]:
        """Output -> how far it is from what was expected, relative to its size."""
        return {name: distance(after[name], before[name]) for name in before}

    def verify(
        self,
        # pairs of functions: inputs -> moved inputs, outputs -> outputs as they must become
        elements: Iterable[tuple[Action, Action]],
        # says in a sentence what is wrong, given the pair, the output and the change
        blame: Callable[[Action, Action, str, float], str],
        compared: Action = dict,  # what of the outputs is compared; all by default
    ) -> float:
        """The largest difference, relative to an output's size, that moving the inputs by each element makes."""
        before, error = compared(self.run(self.values)), 0.0
        for move, follow in elements:
            for name, change in self.changes(follow(before), compared(self.run(move(self.values)))).items():
                if not change <= (ROUNDED if before[name].dtype in LOW else TOLERANCE):
                    raise SymmetryError(blame(move, follow, name, change))
                error = max(error, change)
        return error


def overload(operation: Any) -> torch._ops.OpOverload:
    operation = getattr(operation, "_opoverload", operation)  # of torch.library.custom_op
    if isinstance(operation, torch._ops.OpOverloadPacket):
        names = operation.overloads()
        if len(names) > 1:
            raise TypeError(f"{operation} has overloads {names}; say which, e.g. {operation}.{names[0]}")
        operation = getattr(operation, names[0])
    if not isinstance(operation, torch._ops.OpOverload):
        raise TypeError(f"expected an operator such as torch.ops.aten.mm.default, got {operation!r}")
    return operation


def _parts(graph: fx.Graph, call: fx.Node, used: Collection[int] | None) -> tuple[list[int], list[fx.Node]]:
    """The outputs of a call that are used: their numbers and a node each."""
    value = call.meta["val"]
    if not isinstance(value, tuple | list):
        return [0], [call]
    numbers = list(range(len(value))) if used is None else sorted(used)
    parts = [graph.call_function(getitem, (call, k)) for k in numbers]
    for k, part in zip(numbers, parts, strict=True):
        part.meta["val"] = value[k]
    return numbers, parts


def distance(a: Tensor, b: Tensor) -> float:
    if not a.numel():
        return 0.0
    if not (a.is_floating_point() or a.is_complex()):
        return 0.0 if torch.equal(a, b) else 1.0
    same = (a == b) | (a.isnan() & b.isnan())
    gap = torch.where(same, 0.0, (a - b).abs())
    size = torch.where(a.isfinite(), a.abs(), 0.0).max()
    return float((gap / (1.0 + size)).max())
