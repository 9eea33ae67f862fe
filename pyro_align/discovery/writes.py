"""Operations that write to a tensor, as operations that return a new one: where nothing else sees what was written.

``torch.func.functionalize`` does this for every graph, and runs the whole of it again. The gates of a recurrent layer,
which are written to as they are, need a new node each.
"""

from __future__ import annotations

import operator
from collections.abc import Container
from typing import Any

import torch
from torch.fx import GraphModule, Node

from pyro_align.discovery.graphs import call

_VIEWS = ("_unsafe_view", "unsafe_split", "unsafe_split_with_sizes", "unsafe_chunk")  # of which no schema says so
Memory = tuple[Any, dict[Node, int]]  # whose memory a tensor looks at, and which piece of it by each cut on the way


def is_mutable(node: Node) -> bool:
    """Whether a node is a call that writes to one of its operands."""
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and schema.is_mutable


def without_writes(module: GraphModule, decomposed: Container[Any]) -> bool:
    """Rewrites the graph in place, as far as it can; whether nothing is left that writes.

    Operations in ``decomposed`` are left as they are: they would be several in a graph without writes.
    """
    place = {node: i for i, node in enumerate(module.graph.nodes)}
    memories: dict[Node, Memory] = {}
    for node in list(module.graph.nodes):
        if not is_mutable(node):
            continue
        written, function = node.args[0], _function_of(node.target)
        several = function in decomposed and not _is_view(function)
        if function is None or several or not isinstance(written, Node):
            return False
        now = place[node]
        others = (v for v, at in place.items() if (at < now or v.op == "get_attr") and v is not written)
        for other in others:
            used = any(place[user] > now for user in other.users)
            if used and _meet(_memory(other, memories), _memory(written, memories)):
                return False
        with module.graph.inserting_before(node):
            new = call(module.graph, node, function, *node.args, **node.kwargs)
        if (new.meta["val"].dtype, new.meta["val"].shape) != (node.meta["val"].dtype, node.meta["val"].shape):
            module.graph.erase_node(new)  # what is written takes the type of what was there
            return False
        place[new] = now
        node.replace_all_uses_with(new)
        written.replace_all_uses_with(new, delete_user_cb=lambda user, now=now: place[user] > now)
        module.graph.erase_node(node)
    return True


def _function_of(target: Any) -> Any:
    """The operation that returns what this one writes to its first operand; None where there is none."""
    first, *rest = target._schema.arguments
    name = target._opname.removesuffix("_")
    packet = getattr(torch.ops.aten, name, None) if target.namespace == "aten" and name != target._opname else None
    alone = first.alias_info is not None and first.alias_info.is_write and not any(a.alias_info for a in rest)
    overload = "int" if name == "transpose" else target._overloadname
    function = getattr(packet, overload, None) if alone else None
    same = function is not None and [a.name for a in function._schema.arguments] == [
        first.name,
        *(a.name for a in rest),
    ]
    return function if same else None


def _memory(node: Node, known: dict[Node, Memory]) -> Memory:
    if node not in known:
        source = node.args[0] if node.op == "call_function" and node.args else None
        if not isinstance(source, Node):
            known[node] = (node.target if node.op == "get_attr" else node), {}
        elif node.target is operator.getitem:
            root, cuts = _memory(source, known)
            known[node] = (node, {}) if root is source else (root, {**cuts, source: node.args[1]})
        else:
            known[node] = _memory(source, known) if _is_view(node.target) else (node, {})
    return known[node]


def _is_view(target: Any) -> bool:
    returns = getattr(target, "_schema", None) and target._schema.returns
    return getattr(target, "_opname", "") in _VIEWS or any(r.alias_info is not None for r in returns or ())


def _meet(a: Memory, b: Memory) -> bool:
    """Whether two tensors may share entries: pieces of one cut do not."""
    return a[0] == b[0] and all(b[1].get(cut, index) == index for cut, index in a[1].items())
