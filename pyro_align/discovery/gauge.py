"""Writes what is made of Cholesky factors without them, where that can be done.

A Cholesky factor does not follow a relabeling of its matrix, but what densities make of it does: with ``A = L L'``,
``|L^-1 b|^2`` is ``b' A^-1 b``, the logarithms of L's diagonal add up to half of ``log |A|``, and two triangular solves
are ``A^-1 b``. The factor is a choice of gauge, and in the rewritten graph it is gone. That graph is read and not run:
the inverse is less accurate than the factor.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from pyro_align.discovery.graphs import call, constant, copied, finish, shape_of
from pyro_align.discovery.ops import is_a
from pyro_align.discovery.tracing import TracedGraph
from pyro_align.discovery.walk import Constants

aten: Any = torch.ops.aten
FACTORS = (
    aten.linalg_solve_triangular.default,
    aten.cholesky_solve.default,
    aten.cholesky_inverse.default,
    aten._linalg_solve_ex.default,
)
LARGEST = 1024  # rows of a constant matrix that is inverted
ROUNDING = 1e-11  # of a constant's largest entry: entries nearer to each other are one number, differently rounded


def without_factors(traced: TracedGraph) -> tuple[TracedGraph, dict[Node, Node]]:
    """The same function without Cholesky factors where they are not needed, and original node -> node.

    A graph without such operations is returned as it is.
    """
    if not any(node.target in FACTORS for node in traced.module.graph.nodes):
        return traced, {}
    copy, copies = copied(traced)
    _Rewriting(copy.module, Constants(copy)).run()
    return copy, copies


class _Rewriting:
    """One pass over a graph.

    For a triangular matrix ``T`` its *gram* is ``T T'``; a gram is kept as a node and whether that is its inverse.
    """

    def __init__(self, module: GraphModule, constants: Constants):
        self.module, self.graph, self.constants = module, module.graph, constants
        self.here: Node | None = None  # new nodes go before it
        self.count = 0

    def run(self) -> None:
        rules: dict[Any, Callable[[Node], Node | None]] = {
            aten.sum.dim_IntList: self.sum_,
            aten.mm.default: self.product_of_solves,
            aten.bmm.default: self.product_of_solves,
            aten.linalg_solve_triangular.default: self.two_solves,
            aten.cholesky_solve.default: self.cholesky_solve,
            aten.cholesky_inverse.default: self.cholesky_inverse,
            operator.getitem: self.solve,
        }
        for node in list(self.graph.nodes):
            if node.target in rules:
                self.here = node
                if (found := rules[node.target](node)) is not None:
                    node.replace_all_uses_with(found)
        finish(self.module)

    # -- what is rewritten -----------------------------------------------------------------------------------------

    def sum_(self, node: Node) -> Node | None:
        """``sum((T^-1 b)^2)`` and ``sum(log(diag(T)))``."""
        inner, dims, keepdim = (*node.args, False)[:3]
        return self.quadratic(node, inner, dims, keepdim) or self.log_determinant(inner, dims, keepdim)

    def quadratic(self, node: Node, inner: Node, dims: list[int], keepdim: bool) -> Node | None:
        squared = _squared(inner)
        if squared is None:
            return None
        shape, vector = shape_of(squared), squared.target is aten.squeeze.dims
        solved = squared.args[0] if vector else squared
        if solved.target is not aten.linalg_solve_triangular.default or not _left(solved):
            return None
        if vector and shape_of(solved) != (*shape, 1):
            return None
        matrix, right = solved.args[:2]
        rank = len(shape)
        if rank - (1 if vector else 2) not in [d % rank for d in dims]:
            return None
        precision = self.precision(matrix)
        if precision is None:
            return None
        product = self.call(aten.mul.Tensor, right, self.matmul(precision, right))
        if vector:
            product = self.call(aten.squeeze.dims, product, [-1])
        return self.call(aten.sum.dim_IntList, product, dims, keepdim)

    def product_of_solves(self, node: Node) -> Node | None:
        """``(T^-1 a)' T^-1 b``."""
        left, right = map(_unchanged, node.args[:2])
        turned = _transposed(left)
        first = None if turned is None else _unchanged(turned)
        both = [n for n in (first, right) if n is not None and n.target is aten.linalg_solve_triangular.default]
        if len(both) < 2 or not all(map(_left, both)) or both[0].args[0] is not both[1].args[0]:
            return None
        if both[0].args[0] in self.constants or (precision := self.precision(both[0].args[0])) is None:
            return None
        a, b = (n.args[1] for n in both)
        lead = len(shape_of(a)) - 2
        turned = self.call(aten.permute.default, a, [*range(lead), lead + 1, lead])
        out = self.matmul(turned, self.matmul(precision, b))
        return out if shape_of(out) == shape_of(node) else self.call(aten.reshape.default, out, list(shape_of(node)))

    def log_determinant(self, inner: Node, dims: list[int], keepdim: bool) -> Node | None:
        diagonal = inner.args[0] if inner.target is aten.log.default else None
        if diagonal is None or diagonal.target is not aten.diagonal.default or keepdim:
            return None
        source, offset, first, second = (*diagonal.args, *(None, 0, 0, 1)[len(diagonal.args) :])
        rank = len(shape_of(source))
        last = [d % (rank - 1) for d in dims] == [rank - 2]
        if offset or not last or {first % rank, second % rank} != _last_two(source):
            return None
        if source in self.constants or (gram := self.gram(source)) is None:
            return None
        matrix, inverted = gram
        logarithm = self.call(operator.getitem, self.call(aten._linalg_slogdet.default, matrix), 1)
        return self.call(aten.mul.Tensor, logarithm, -0.5 if inverted else 0.5)

    def two_solves(self, node: Node) -> Node | None:
        """``T'^-1 T^-1 b``."""
        outer, inner = node.args[:2]
        if getattr(inner, "target", None) is not node.target or not (_left(node) and _left(inner)):
            return None
        first, last = inner.args[0], _transposed(outer)
        if last is None or inner.kwargs["upper"] or not node.kwargs["upper"] or first in self.constants:
            return None
        gram = self.gram(first)
        if last is not first and (gram is None or self.gram(last) != gram):  # a matrix has one lower factor
            return None
        precision = self.inverse(gram)
        return precision and self.matmul(precision, inner.args[1])

    def cholesky_solve(self, node: Node) -> Node | None:
        right, factor, upper = (*node.args, False)[:3]
        upper = node.kwargs.get("upper", upper)
        precision = self.inverse(self.cogram(factor) if upper else self.gram(factor))
        return precision and self.matmul(precision, right)

    def cholesky_inverse(self, node: Node) -> Node | None:
        factor, upper = (*node.args, False)[:2]
        return self.inverse(self.cogram(factor) if node.kwargs.get("upper", upper) else self.gram(factor))

    def solve(self, node: Node) -> Node | None:
        """``A^-1 b`` by ``torch.linalg.solve``: an inverse and a product, which have rules."""
        source, index = node.args
        if getattr(source, "target", None) is not aten._linalg_solve_ex.default or index != 0:
            return None
        matrix, right = source.args[:2]
        if not source.kwargs.get("left", True):
            return None
        vector = len(shape_of(right)) == 1 or len(shape_of(right)) == len(shape_of(matrix)) - 1
        if vector:
            right = self.call(aten.unsqueeze.default, right, -1)
        out = self.matmul(self.inverse((matrix, False)), right)
        return self.call(aten.squeeze.dims, out, [-1]) if vector else out

    # -- grams -----------------------------------------------------------------------------------------------------

    def precision(self, triangular: Node) -> Node | None:
        """``(T T')^-1``."""
        gram = self.gram(triangular)
        if triangular not in self.constants:
            return self.inverse(gram)
        if shape_of(triangular)[-1] > LARGEST:
            return None
        if gram is None:
            value, inverted = self.constants.value(triangular).double(), False
            value = value @ value.mT
        else:
            value, inverted = self.constants.value(gram[0]).double(), gram[1]
        inverse = value if inverted else torch.linalg.inv_ex(value).inverse
        if not bool(inverse.isfinite().all()):
            return None
        return self.constant(snapped(inverse).to(triangular.meta["val"].dtype))

    def inverse(self, gram: tuple[Node, bool] | None) -> Node | None:
        if gram is None:
            return None
        matrix, inverted = gram
        return matrix if inverted else self.call(operator.getitem, self.call(aten.linalg_inv_ex.default, matrix), 0)

    def gram(self, node: Node) -> tuple[Node, bool] | None:
        """``T T'``, or None where it is not known to be a matrix without a gauge."""
        return self._gram(node, upper=False)

    def cogram(self, node: Node) -> tuple[Node, bool] | None:
        """``T' T``."""
        return self._gram(node, upper=True)

    def _gram(self, node: Node, *, upper: bool) -> tuple[Node, bool] | None:
        if node.target is operator.getitem and node.args[1] == 0:
            factor = node.args[0]
            if factor.target is aten.linalg_cholesky_ex.default:
                return (factor.args[0], False) if factor.kwargs.get("upper", False) == upper else None
        if node.target is aten.linalg_solve_triangular.default and _left(node) and self._is_identity(node.args[1]):
            inner = self._gram(node.args[0], upper=not upper)
            return inner and (inner[0], not inner[1])
        if (source := _transposed(node)) is not None:
            return self._gram(source, upper=not upper)
        source = node.args[0] if node.args and isinstance(node.args[0], Node) else None
        if source is None or shape_of(source) is None:
            return None
        if node.target is aten.flip.default and {d % len(shape_of(node)) for d in node.args[1]} == _last_two(node):
            return self._viewed(node, self._gram(source, upper=upper))
        lead = is_a(node.target, "same", "reshape") or node.target in (aten.expand.default, aten.unsqueeze.default)
        if lead and shape_of(node)[-2:] == shape_of(source)[-2:]:
            return self._viewed(node, self._gram(source, upper=upper))
        return None

    def _viewed(self, view: Node, inner: tuple[Node, bool] | None) -> tuple[Node, bool] | None:
        """The gram of a view that keeps matrices whole, or turns both of their axes round."""
        if inner is None:
            return None
        matrix, inverted = inner
        if view.target is aten.flip.default and matrix.target is aten.flip.default and matrix.args[1] == view.args[1]:
            return matrix.args[0], inverted  # turned round twice
        return self.call(view.target, matrix, *view.args[1:], **view.kwargs), inverted

    def _is_identity(self, node: Node) -> bool:
        if node not in self.constants:
            return False
        value = self.constants.value(node)
        return value.shape[-1] == value.shape[-2] and bool((value == torch.eye(value.shape[-1]).to(value)).all())

    # -- new nodes -------------------------------------------------------------------------------------------------

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        with self.graph.inserting_before(self.here):
            return call(self.graph, self.here, target, *args, **kwargs)

    def constant(self, value: Tensor) -> Node:
        self.count += 1
        with self.graph.inserting_before(self.here):
            return constant(self.module, f"_precision{self.count}", value)

    def matmul(self, left: Node, right: Node) -> Node:
        """A product of two stacks of matrices, broadcast together."""
        a, b = shape_of(left), shape_of(right)
        if len(a) == len(b) == 2:
            return self.call(aten.mm.default, left, right)
        lead = [*torch.broadcast_shapes(a[:-2], b[:-2])]
        flat = []
        for node, shape in ((left, a), (right, b)):
            wide = self.call(aten.expand.default, node, [*lead, *shape[-2:]])
            flat.append(self.call(aten.reshape.default, wide, [-1, *shape[-2:]]))
        return self.call(aten.reshape.default, self.call(aten.bmm.default, *flat), [*lead, a[-2], b[-1]])


def snapped(value: Tensor) -> Tensor:
    """The tensor with entries that differ by rounding alone made equal."""
    if not value.numel():
        return value
    ordered, places = value.flatten().sort()
    new = ordered.diff(prepend=ordered[:1]) > ROUNDING * value.abs().max()
    group = new.cumsum(0)
    first = ordered[new | (torch.arange(len(ordered), device=value.device) == 0)]
    return torch.empty_like(ordered).scatter(0, places, first[group]).reshape(value.shape)


def _squared(node: Node) -> Node | None:
    """What is squared, entry by entry."""
    if node.target is aten.pow.Tensor_Scalar and node.args[1] == 2:
        return node.args[0]
    if node.target is aten.mul.Tensor and node.args[0] is node.args[1]:
        return node.args[0]
    return node.args[0] if node.target is aten.square.default else None


def _unchanged(node: Node) -> Node:
    """The node of which this one is the same tensor again."""
    while node.op == "call_function" and isinstance(source := node.args[0] if node.args else None, Node):
        same = is_a(node.target, "same", "reshape") or node.target is aten.expand.default
        if not same or shape_of(source) != shape_of(node):
            break
        node = source
    return node


def _left(node: Node) -> bool:
    return node.kwargs.get("left", True) and not node.kwargs.get("unitriangular", False)


def _last_two(node: Node) -> set[int]:
    rank = len(shape_of(node))
    return {rank - 2, rank - 1}


def _transposed(node: Node) -> Node | None:
    """The node whose matrices a node has transposed."""
    shape = shape_of(node)
    if node.op != "call_function" or shape is None or len(shape) < 2:
        return None
    if node.target is aten.transpose.int and {d % len(shape) for d in node.args[1:]} == _last_two(node):
        return node.args[0]
    kept = [*range(len(shape) - 2), len(shape) - 1, len(shape) - 2]
    if node.target is aten.permute.default and [d % len(shape) for d in node.args[1]] == kept:
        return node.args[0]
    return node.args[0] if node.target is aten.t.default else None
