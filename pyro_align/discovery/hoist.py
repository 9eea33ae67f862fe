"""Takes one index of a stacked axis before the axis is made, where the graph allows it.

``qkv.view(b, t, 3, h, d).permute(2, 0, 3, 1, 4)[0]`` is ``qkv[..., :e].view(b, t, h, d).permute(0, 2, 1, 3)``. The
two are equal, but only the second shows that queries, keys and values are three pieces of one axis, each with
structure of its own: as a product, ``3 x (h x d)``, the three would be tied. So every selection is pushed up through
the views above it, to the view that made the axis or the concatenation that stacked it.

The same holds for a run of indices: ``qkv.view(b, t, h + 2, d)[:, :, :-2]``, the queries of multi-query attention, is
``qkv[..., : h * d].view(b, t, h, d)``.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from pyro_align.discovery.graphs import call, shape_of
from pyro_align.discovery.ops import is_a

aten: Any = torch.ops.aten


def hoist_selections(module: GraphModule) -> None:
    """Rewrites the graph in place; nodes keep their ``val``, and those that are no longer used remain."""
    graph = module.graph
    changed = False
    for node in list(graph.nodes):
        found = _selection(node)
        run = None if found else _run(module, node)
        if found is None and run is None:
            continue
        with graph.inserting_before(node):
            hoist = _Hoist(graph, node)
            if run is not None:
                replacement = hoist.narrow(*run)
            else:
                source, dim, index = found
                replacement = hoist.select(source, dim, index)
                if replacement is not None and node.target is aten.slice.Tensor:
                    replacement = hoist.call(aten.unsqueeze.default, replacement, dim)
        if replacement is not None:
            node.replace_all_uses_with(replacement)
            changed = True
    if changed:
        graph.lint()


def _selection(node: Node) -> tuple[Node, int, int] | None:
    """``(source, dim, index)`` of a node that takes one index of an axis."""
    if node.op != "call_function":
        return None
    if node.target is aten.select.int:
        source, dim, index = node.args
    elif node.target is operator.getitem and getattr(node.args[0], "target", None) is aten.unbind.int:
        source, dim, index = node.args[0].args[0], (*node.args[0].args, 0)[1], node.args[1]
    elif node.target is aten.slice.Tensor:
        return _single_slice(node)
    else:
        return None
    shape = shape_of(source)
    if shape is None:
        return None
    dim %= len(shape)
    return source, dim, index % shape[dim]


def _single_slice(node: Node) -> tuple[Node, int, int] | None:
    """The same for a slice of length one."""
    source, dim, kept = sliced(node)
    return (source, dim, kept[0]) if len(kept) == 1 and shape_of(source)[dim] > 1 else None


def _run(module: GraphModule, node: Node) -> tuple[Node, int, int, int] | None:
    """``(source, dim, start, stop)`` of a node that takes neighboring indices of an axis, but not all."""
    if node.op != "call_function" or (source := _first(node)) is None:
        return None
    if node.target is operator.getitem and is_a(getattr(source, "target", None), "split"):
        return _piece_of_split(source, node.args[1])
    if shape_of(source) is None:
        return None
    if node.target is aten.slice.Tensor:
        source, dim, kept = sliced(node)
        start, stop, step = kept.start, kept.stop, kept.step
    elif node.target is aten.index.Tensor:
        places = [(i, ix) for i, ix in enumerate(node.args[1]) if ix is not None]
        value = _constant(module, places[0][1]) if len(places) == 1 else None
        if value is None or value.dim() != 1 or value.dtype != torch.int64 or not value.numel():
            return None
        dim = places[0][0]
        start, stop, step = int(value[0]) % shape_of(source)[dim], 0, 1
        stop = start + value.numel()
        if not torch.equal(value % shape_of(source)[dim], torch.arange(start, stop, device=value.device)):
            return None
    else:
        return None
    return (source, dim, start, stop) if step == 1 and 0 < stop - start < shape_of(source)[dim] else None


def _first(node: Node) -> Node | None:
    return node.args[0] if node.args and isinstance(node.args[0], Node) else None


def _piece_of_split(split: Node, index: int) -> tuple[Node, int, int, int] | None:
    source, dim = split.args[0], (*split.args, 0)[2]
    lengths = [v.shape[dim] for v in split.meta["val"]]
    start, stop = sum(lengths[:index]), sum(lengths[: index + 1])
    return (source, dim % len(shape_of(source)), start, stop) if 0 < stop - start < sum(lengths) else None


def _constant(module: GraphModule, node: Node) -> Tensor | None:
    """The value of an index that stands in the graph as it is."""
    while node.op == "call_function" and is_a(node.target, "same"):
        node = node.args[0]
    value = operator.attrgetter(node.target)(module) if node.op == "get_attr" else None
    return value if type(value) is Tensor else None


def sliced(node: Node) -> tuple[Node, int, range]:
    source, dim, start, end, step = (*node.args, *(None, 0, None, None, 1)[len(node.args) :])
    dim %= len(shape_of(source))
    return source, dim, range(*slice(start, end, step).indices(shape_of(source)[dim]))


def _axis_above(view: Node, dim: int) -> tuple[int, int, bool] | None:
    """Where an axis of a view comes from: the source's axis, its entries an index, and whether it begins there."""
    inside, shape = shape_of(view.args[0]), shape_of(view)
    if 0 in shape or shape[dim] == 1:
        return None
    before = math.prod(shape[:dim])
    axis = next((e for e in range(len(inside)) if math.prod(inside[: e + 1]) > before), None)
    if axis is None or before % math.prod(inside[:axis]):
        return None
    end = math.prod(inside[: axis + 1])
    if end % (before * shape[dim]):
        return None
    return axis, end // (before * shape[dim]), before == math.prod(inside[:axis])


def _order(node: Node) -> list[int]:
    """Which axis of its source each axis of a permutation or transposition is."""
    if node.target is aten.permute.default:
        return [d % len(node.args[1]) for d in node.args[1]]
    dims = list(range(len(shape_of(node))))
    a, b = node.args[1], node.args[2]
    dims[a], dims[b] = dims[b], dims[a]
    return dims


class _Hoist:
    """Builds the selected value from the nodes above; ``None`` says that nothing is gained."""

    def __init__(self, graph, node: Node):
        self.graph, self.node = graph, node

    def call(self, target, *args, **kwargs) -> Node:
        return call(self.graph, self.node, target, *args, **kwargs)

    def select(self, source: Node, dim: int, index: int) -> Node | None:
        """One index of an axis, taken where the axis was made."""
        if source.op != "call_function" or shape_of(source) is None:
            return None
        if is_a(source.target, "same"):
            return self.select(source.args[0], dim, index)
        if is_a(source.target, "reshape"):
            return self._view(source, dim, index)
        through = {
            aten.permute.default: self._permuted,
            aten.transpose.int: self._permuted,
            aten.unsqueeze.default: self._unsqueeze,
            aten.squeeze.dims: self._squeeze,
            aten.squeeze.dim: self._squeeze,
            aten.slice.Tensor: self._sliced,
            aten.cat.default: self._cat,
        }.get(source.target)
        if through is None and torch.Tag.pointwise in getattr(source.target, "tags", ()):
            through = self._pointwise
        return through and through(source, dim, index)

    def _permuted(self, source: Node, dim: int, index: int) -> Node | None:
        dims = _order(source)
        inner = self.select(source.args[0], dims[dim], index)
        rest = [d - (d > dims[dim]) for i, d in enumerate(dims) if i != dim]
        return inner and self.call(aten.permute.default, inner, rest)

    def _unsqueeze(self, source: Node, dim: int, index: int) -> Node | None:
        at = source.args[1] % len(shape_of(source))
        if at == dim:
            return None
        inner = self.select(source.args[0], dim - (at < dim), index)
        return inner and self.call(aten.unsqueeze.default, inner, at - (dim < at))

    def _squeeze(self, source: Node, dim: int, index: int) -> Node | None:
        inner_shape = shape_of(source.args[0])
        dims = source.args[1] if isinstance(source.args[1], list | tuple) else [source.args[1]]
        gone = {d % len(inner_shape) for d in dims if inner_shape[d] == 1}
        kept = [i for i in range(len(inner_shape)) if i not in gone]
        inner = self.select(source.args[0], kept[dim], index)
        return inner and self.call(aten.reshape.default, inner, [n for i, n in enumerate(shape_of(source)) if i != dim])

    def _view(self, source: Node, dim: int, index: int) -> Node | None:
        shape = shape_of(source)
        found = _axis_above(source, dim)
        if found is None:
            return None
        axis, each, starts = found
        if starts and each == 1:
            inner = self.select(source.args[0], axis, index)
        elif each == 1:
            return None
        else:
            inner = self._cut(source, dim, index, index + 1)
        rest = [n for i, n in enumerate(shape) if i != dim]
        return inner and self.call(aten.reshape.default, inner, rest)

    def _cut(self, source: Node, dim: int, start: int, stop: int) -> Node:
        """The piece of a view's source that becomes the indices ``start`` to ``stop`` of one of the view's axes."""
        axis, each, starts = _axis_above(source, dim)
        inner, shape = source.args[0], shape_of(source)
        if not starts:
            around = [*shape[:dim], shape[dim] * each, *shape_of(inner)[axis + 1 :]]
            inner, axis = self.call(aten.reshape.default, inner, around), dim
        return self.call(aten.slice.Tensor, inner, axis, start * each, stop * each)

    def narrow(self, source: Node, dim: int, start: int, stop: int) -> Node | None:
        """Neighboring indices of an axis, taken where a view made the axis."""
        if source.op != "call_function" or shape_of(source) is None:
            return None
        target, args = source.target, source.args
        if is_a(target, "same"):
            return self.narrow(args[0], dim, start, stop)
        if target in (aten.permute.default, aten.transpose.int):
            dims = _order(source)
            inner = self.narrow(args[0], dims[dim], start, stop)
            return inner and self.call(aten.permute.default, inner, dims)
        if is_a(target, "reshape") and (found := _axis_above(source, dim)) is not None:
            axis, each, starts = found
            if each > 1:
                inner = self._cut(source, dim, start, stop)
            else:
                inner = self.narrow(args[0], axis, start, stop) if starts else None
            shape = [stop - start if i == dim else n for i, n in enumerate(shape_of(source))]
            return inner and self.call(aten.reshape.default, inner, shape)
        return None

    def _sliced(self, source: Node, dim: int, index: int) -> Node | None:
        inner, axis, kept = sliced(source)
        if axis == dim:
            return self.select(inner, dim, kept[index])
        found = self.select(inner, dim, index)
        return found and self.call(aten.slice.Tensor, found, axis - (dim < axis), kept.start, kept.stop, kept.step)

    def _cat(self, source: Node, dim: int, index: int) -> Node | None:
        tensors = source.args[0]
        joined = (source.args[1] if len(source.args) > 1 else 0) % len(shape_of(source))
        if joined != dim or any(len(shape_of(t)) != len(shape_of(source)) for t in tensors):
            return None
        for tensor in tensors:
            n = shape_of(tensor)[dim]
            if index < n:
                return self.select(tensor, dim, index) or self.call(aten.select.int, tensor, dim, index)
            index -= n
        return None

    def _pointwise(self, source: Node, dim: int, index: int) -> Node | None:
        shape = shape_of(source)
        gained = False
        parts: dict[Node, Node] = {}
        for tensor in source.all_input_nodes:
            own = shape_of(tensor)
            if own is None:
                return None
            at = dim - (len(shape) - len(own))
            if at < 0:
                parts[tensor] = tensor
            elif own[at] == 1:
                parts[tensor] = self.call(aten.select.int, tensor, at, 0)
            else:
                inner = self.select(tensor, at, index)
                gained = gained or inner is not None
                parts[tensor] = inner or self.call(aten.select.int, tensor, at, index)
        if not gained:
            return None
        args, kwargs = torch.fx.node.map_arg((source.args, source.kwargs), parts.__getitem__)
        return self.call(source.target, *args, **kwargs)
