"""Nodes of a traced graph: their shapes, and new ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.utils import _pytree as pytree


def shape_of(node: Any) -> tuple[int, ...] | None:
    """The shape of a node's tensor; None for what is no tensor."""
    value = node.meta.get("val") if isinstance(node, Node) else None
    return tuple(value.shape) if isinstance(value, Tensor) else None


def call(graph: Graph, like: Node, target: Any, *args: Any, **kwargs: Any) -> Node:
    """A new call, at the graph's insertion point, with its ``val``; it is attributed to the line of another node."""
    new = graph.call_function(target, args, kwargs)
    new.stack_trace = like.stack_trace
    values, options = torch.fx.node.map_arg((args, kwargs), lambda n: n.meta["val"])
    fake = next(v.fake_mode for v in pytree.tree_leaves(values) if isinstance(v, Tensor))
    with fake, torch.no_grad():
        new.meta["val"] = target(*values, **options)
    return new
