"""One walk over a traced graph: the parities of every tensor, from those of the inputs."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from pyro_align.discovery.infer import Inference
from pyro_align.discovery.signs.call import SignCall, SignTensor, Unsupported, ids_of_constant
from pyro_align.discovery.signs.parity import Parities
from pyro_align.discovery.signs.registry import find_sign_rule


def walk(inference: Inference, parities: Parities, ids_of_site: Callable[[str], Tensor]) -> list:
    """What the graph returns: a :class:`SignTensor` for every tensor; what it requires is added to the parities.

    Args:
        inference: What the axes of the graph are; it knows the graph's constants.
        parities: Where equations go.
        ids_of_site: Site name -> numbers of the parities of its entries.
    """
    graph = inference.traced.module.graph
    done = _last_uses(graph)
    env: dict[Node, object] = {}
    for node in graph.nodes:
        if node.op == "output":
            return [env[n] for n in pytree.tree_leaves(node.args) if isinstance(n, Node)]
        env[node] = _visit(inference, parities, ids_of_site, node, env)
        for source in done.get(node, ()):
            del env[source]
    raise AssertionError("a graph without an output")


def _visit(inference: Inference, parities: Parities, ids_of_site, node: Node, env: Mapping[Node, object]):
    site = inference.site_of(node)
    if site is not None:
        return SignTensor(ids_of_site(site), inference.traced.values[site].dtype)
    meta = node.meta.get("val")
    if inference.is_constant(node):
        return _Constant(inference, node, meta) if isinstance(meta, Tensor) else meta
    if node.op == "placeholder":
        value = inference.traced.data[node]
        return replace(SignCall(parities, node).even(value.shape), dtype=value.dtype)
    if node.target is operator.getitem:
        return env[node.args[0]][node.args[1]]
    return _apply(parities, node, env)


def _apply(parities: Parities, node: Node, env: Mapping[Node, object]):
    call = SignCall(parities, node)
    rule = find_sign_rule(node.target)
    found = None
    if rule is not None:
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), env.__getitem__)
        try:
            found = rule(call, *args, **kwargs)
        except Unsupported:
            found = None
    if found is None:
        call.hold(*pytree.tree_leaves([env[source] for source in node.all_input_nodes]))
        found = [None if s is None else call.even(s) for s in call.shapes]
        found = found if call.several else found[0]
    results = list(found) if call.several else [found]
    for k, (value, like, shape) in enumerate(zip(results, call.outputs, call.shapes, strict=True)):
        if shape is not None:
            assert tuple(value.shape) == shape, f"the rule of signs of {node.target} returned the wrong shape"
            results[k] = replace(value, dtype=like.dtype)
    return results if call.several else results[0]


class _Constant(SignTensor):
    """A constant, whose values are looked at only when something that is not constant meets it."""

    def __init__(self, inference: Inference, node: Node, like: Tensor):
        object.__setattr__(self, "_inference", inference)
        object.__setattr__(self, "_node", node)
        object.__setattr__(self, "_like", like)
        object.__setattr__(self, "dtype", like.dtype)

    def constant(self) -> Tensor:  # type: ignore[override]
        return self._inference.fold(self._node)

    @property
    def ids(self) -> Tensor:  # type: ignore[override]
        return ids_of_constant(self.constant())

    @property
    def shape(self) -> torch.Size:
        return self._like.shape

    @property
    def ndim(self) -> int:
        return self._like.dim()


def _last_uses(graph) -> dict[Node, list[Node]]:
    """Node -> the nodes whose values are not needed after it."""
    last: dict[Node, Node] = {}
    for node in graph.nodes:
        for source in node.all_input_nodes:
            last[source] = node
    out: dict[Node, list[Node]] = {}
    for source, node in last.items():
        if node.op != "output":
            out.setdefault(node, []).append(source)
    return out
