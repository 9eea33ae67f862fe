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
from pyro_align.discovery.ops import is_a, is_pointwise

aten: Any = torch.ops.aten


def hoist_selections(module: GraphModule) -> None:
    """Rewrites the graph in place; nodes keep their ``val``, and those that are no longer used remain."""
    graph = module.graph
    changed = False
    for node in list(graph.nodes):
        if node.target is aten.slice.Tensor and shape_of(node) == shape_of(node.args[0]):  # all of an axis is taken
            node.replace_all_uses_with(node.args[0])
        if (piece := _piece(module, node)) is None:
            continue
        with graph.inserting_before(node):
            hoist = _Hoist(graph, node)
            taken = hoist.take(*piece)
            if taken is not None and shape_of(taken) != shape_of(node):  # of a selection, without the axis
                taken = hoist.call(aten.reshape.default, taken, list(shape_of(node)))
        if taken is not None:
            node.replace_all_uses_with(taken)
            changed = True
    if changed:
        graph.lint()


def _piece(module: GraphModule, node: Node) -> tuple[Node, int, int, int] | None:
    """``(source, dim, start, stop)`` of a node that takes one or neighboring indices of an axis, but not all."""
    source = node.args[0] if node.op == "call_function" and node.args else None
    if not isinstance(source, Node):
        return None
    if node.target is operator.getitem:
        piece = _part_of_many(source, node.args[1])
    elif shape_of(source) is None:
        return None
    elif node.target is aten.select.int:
        piece = source, node.args[1], node.args[2] % shape_of(source)[node.args[1]], 1
    elif node.target is aten.slice.Tensor:
        source, dim, kept = sliced(node)
        piece = (source, dim, kept.start, len(kept)) if kept.step == 1 or len(kept) == 1 else None
    else:
        piece = _indexed(module, source, node) if node.target is aten.index.Tensor else None
    if piece is None:
        return None
    source, dim, start, count = piece
    dim %= len(shape_of(source))
    return (source, dim, start, start + count) if 0 < count < shape_of(source)[dim] else None


def _part_of_many(source: Node, index: int) -> tuple[Node, int, int, int] | None:
    """``(source, dim, start, count)`` of an output of an unbinding or a split."""
    if getattr(source, "target", None) is aten.unbind.int:
        return source.args[0], (*source.args, 0)[1], index, 1
    if not is_a(getattr(source, "target", None), "split"):
        return None
    dim = (*source.args, 0)[2]
    lengths = [v.shape[dim] for v in source.meta["val"]]
    return source.args[0], dim, sum(lengths[:index]), lengths[index]


def _indexed(module: GraphModule, source: Node, node: Node) -> tuple[Node, int, int, int] | None:
    """The same where an index of neighbors stands in the graph."""
    places = [(i, ix) for i, ix in enumerate(node.args[1]) if ix is not None]
    value = _constant(module, places[0][1]) if len(places) == 1 else None
    if value is None or value.dim() != 1 or value.dtype != torch.int64 or not value.numel():
        return None
    size = shape_of(source)[places[0][0]]
    start = int(value[0]) % size
    along = torch.arange(start, start + value.numel(), device=value.device)
    return (source, places[0][0], start, value.numel()) if torch.equal(value % size, along) else None


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
    """Builds the indices taken from the nodes above, their axis kept; ``None`` says that nothing is gained."""

    def __init__(self, graph, node: Node):
        self.graph, self.node = graph, node

    def call(self, target, *args, **kwargs) -> Node:
        return call(self.graph, self.node, target, *args, **kwargs)

    def take(self, source: Node, dim: int, start: int, stop: int) -> Node | None:
        """Neighboring indices of an axis, taken where the axis was made; through more operations where it is one."""
        if source.op != "call_function" or shape_of(source) is None:
            return None
        if is_a(source.target, "same"):
            return self.take(source.args[0], dim, start, stop)
        if is_a(source.target, "reshape"):
            return self._view(source, dim, start, stop)
        if source.target in (aten.permute.default, aten.transpose.int):
            dims = _order(source)
            inner = self.take(source.args[0], dims[dim], start, stop)
            return inner and self.call(aten.permute.default, inner, dims)
        if stop - start > 1:
            return None
        through = {
            aten.unsqueeze.default: self._unsqueeze,
            aten.squeeze.dims: self._squeeze,
            aten.squeeze.dim: self._squeeze,
            aten.slice.Tensor: self._sliced,
            aten.cat.default: self._cat,
        }.get(source.target)
        if through is None and is_pointwise(source.target):
            through = self._pointwise
        return through and through(source, dim, start)

    def taken(self, source: Node, dim: int, index: int) -> Node:
        """One index of an axis, wherever it is taken."""
        return self.take(source, dim, index, index + 1) or self.call(aten.slice.Tensor, source, dim, index, index + 1)

    def _view(self, source: Node, dim: int, start: int, stop: int) -> Node | None:
        if (found := _axis_above(source, dim)) is None:
            return None
        axis, each, starts = found
        inner, shape = source.args[0], list(shape_of(source))
        if each == 1:
            piece = self.take(inner, axis, start, stop) if starts else None
        else:
            if not starts:
                around = [*shape[:dim], shape[dim] * each, *shape_of(inner)[axis + 1 :]]
                inner, axis = self.call(aten.reshape.default, inner, around), dim
            piece = self.call(aten.slice.Tensor, inner, axis, start * each, stop * each)
        shape[dim] = stop - start
        return piece and self.call(aten.reshape.default, piece, shape)

    def _unsqueeze(self, source: Node, dim: int, index: int) -> Node | None:
        at = source.args[1] % len(shape_of(source))
        inner = None if at == dim else self.take(source.args[0], dim - (at < dim), index, index + 1)
        return inner and self.call(aten.unsqueeze.default, inner, at)

    def _squeeze(self, source: Node, dim: int, index: int) -> Node | None:
        inner_shape = shape_of(source.args[0])
        dims = source.args[1] if isinstance(source.args[1], list | tuple) else [source.args[1]]
        gone = {d % len(inner_shape) for d in dims if inner_shape[d] == 1}
        kept = [i for i in range(len(inner_shape)) if i not in gone]
        inner = self.take(source.args[0], kept[dim], index, index + 1)
        shape = [1 if i == dim else n for i, n in enumerate(shape_of(source))]
        return inner and self.call(aten.reshape.default, inner, shape)

    def _sliced(self, source: Node, dim: int, index: int) -> Node | None:
        inner, axis, kept = sliced(source)
        if axis == dim:
            return self.take(inner, dim, kept[index], kept[index] + 1)
        found = self.take(inner, dim, index, index + 1)
        return found and self.call(aten.slice.Tensor, found, axis, kept.start, kept.stop, kept.step)

    def _cat(self, source: Node, dim: int, index: int) -> Node | None:
        tensors = source.args[0]
        joined = (source.args[1] if len(source.args) > 1 else 0) % len(shape_of(source))
        if joined != dim or any(len(shape_of(t)) != len(shape_of(source)) for t in tensors):
            return None
        for tensor in tensors:
            n = shape_of(tensor)[dim]
            if index < n:
                return tensor if n == 1 else self.taken(tensor, dim, index)
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
            if at < 0 or own[at] == 1:
                parts[tensor] = tensor
                continue
            inner = self.take(tensor, at, index, index + 1)
            gained = gained or inner is not None
            parts[tensor] = inner or self.call(aten.slice.Tensor, tensor, at, index, index + 1)
        if not gained:
            return None
        args, kwargs = torch.fx.node.map_arg((source.args, source.kwargs), parts.__getitem__)
        return self.call(source.target, *args, **kwargs)
