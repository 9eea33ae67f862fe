"""From a function of tensors to the graph of the ATen operations that it runs.

PyTorch's ``make_fx`` records the same with a compiler's bookkeeping, which a graph that is only read does not need.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import Graph, Node
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.fx.node import map_aggregate
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from pyro_align.discovery.graphs import ReadModule

aten: Any = torch.ops.aten
_NUMBERS: dict[type, type] = {torch.SymInt: int, torch.SymFloat: float, torch.SymBool: bool}  # that entries decide
_NOTED = (Tensor, *_NUMBERS)


class Recording(TorchDispatchMode):
    """Runs a function on tensors without entries, and notes every operation as a node of a graph.

    Args:
        decompositions: Operations that are noted as the others that they can be made of.
        where: Asked, for every node, from which line of the model it comes.
        fake: The mode of inputs that have no entries already.

    Attributes:
        graph: The graph so far; a node's ``val`` is what the operation returned.
        root: Tensors that were not among the inputs, as attributes.
    """

    graph: Graph
    root: nn.Module

    def __init__(
        self,
        decompositions: Mapping[Any, Callable[..., Any]],
        *,
        where: Callable[[], str] | None = None,
        fake: FakeTensorMode | None = None,
    ):
        super().__init__()
        self.graph, self.root = Graph(), nn.Module()
        self._decompositions, self._where = decompositions, where
        self._fake = fake or FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv(), static_shapes=True)
        self._nodes: dict[Any, Node] = {}  # by the identity of a tensor, which holds while it lives, or by a symbol
        self._alive: list[Tensor] = []

    def run(self, function: Callable[..., Any], *inputs: Any) -> ReadModule:
        """The graph of a function; placeholders are the tensors of its inputs, in the order of their leaves."""
        args = pytree.tree_map(self._placeholder, inputs)
        with self._fake, self:
            out = function(*args)
        with self._fake:
            self.graph.output(pytree.tree_map(self._noted, out))
        return ReadModule(self.root, self.graph)

    def node_of(self, tensor: Tensor) -> Node | None:
        """The node whose value a tensor is; None where it is no part of the graph."""
        return self._nodes.get(id(tensor))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:
            return func(*args, **kwargs)
        if not all(issubclass(kind, FakeTensor) for kind in types):
            return NotImplemented  # a tensor of the caller's own kind says what its operations are
        decomposition = self._decompositions.get(func) or (func.decompose if _is_composite(func) else None)
        if decomposition is not None:
            with self:
                out = decomposition(*args, **kwargs)
            if out is not NotImplemented:
                return out
        if torch.Tag.data_dependent_output in func.tags and not self._meets_graph(args, kwargs):
            with _disable_current_modes():
                return func(*args, **kwargs)
        if func is aten.lift_fresh.default:
            func = aten.lift_fresh_copy.default  # what is then written to the tensor does not reach the constant
        noted = map_aggregate((args, kwargs), self._noted)
        if torch.Tag.inplace_view in func.tags:
            self._keep_shapes(pytree.tree_leaves((args, kwargs)))
        out = func(*args, **kwargs)
        if func._schema.is_mutable or any(isinstance(x, _NOTED) for x in pytree.tree_leaves(out)):
            self._record(func, *noted, out)
        return out

    def _meets_graph(self, *given: Any) -> bool:
        return any(isinstance(x, Tensor) and id(x) in self._nodes for x in pytree.tree_leaves(given))

    def _placeholder(self, value: Any) -> Any:
        if not isinstance(value, FakeTensor):
            value = self._fake.from_tensor(value.detach(), static_shapes=True)
        self._track(self.graph.placeholder(f"input_{len(self._alive)}"), value)
        return value

    def _noted(self, value: Any) -> Any:
        """What stands in the graph for a value."""
        if isinstance(value, Tensor):
            node = self._nodes.get(id(value))
            return self._constant(value) if node is None else node
        if type(value) in _NUMBERS:
            node = self._nodes.get(value.node)
            return _NUMBERS[type(value)](value) if node is None else node
        return value

    def _constant(self, tensor: Tensor) -> Node:
        """A tensor that was not among the inputs."""
        name = f"constant_{len(self._alive)}"
        setattr(self.root, name, tensor)
        node = self.graph.get_attr(name)
        self._track(node, tensor)
        if not isinstance(tensor, FakeTensor):
            node.meta["val"] = self._fake.from_tensor(tensor.detach(), static_shapes=True)
        return node

    def _keep_shapes(self, given: Sequence[Any]) -> None:
        """What an operation lays out in another way in place is, for the nodes before, what it was."""
        for tensor in given:
            if isinstance(tensor, Tensor):
                self._nodes[id(tensor)].meta["val"] = tensor.detach()

    def _record(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        name = self.graph._target_to_str(func._opname)
        node = self.graph.create_node("call_function", func, args, kwargs, name=name)
        if self._where is not None:
            node.stack_trace = self._where()
        self._track(node, out)

    def _track(self, node: Node, out: Any) -> None:
        node.meta["val"] = out
        if isinstance(out, Tensor):
            self._nodes[id(out)] = node
            self._alive.append(out)
        elif type(out) in _NUMBERS:
            self._nodes[out.node] = node
        elif isinstance(out, tuple | list):
            for i, part in enumerate(out):
                if isinstance(part, (*_NOTED, tuple, list)):
                    self._track(self.graph.call_function(operator.getitem, (node, i)), part)


@functools.cache
def _is_composite(func: Any) -> bool:
    """Whether an operation is defined as a composition of others."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")
