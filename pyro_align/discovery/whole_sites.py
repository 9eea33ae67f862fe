"""Whole sites that may change places: a family of sites of equal role is read as one site with one more axis.

``experts.0.weight, experts.1.weight`` become the indices of a stack, taken one by one. What is done with each is then
a loop over one site, which is rolled and inferred like any other, and the new axis is free where the order of the
family does not matter: the experts themselves, say, together with the rows of their gate.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch

from pyro_align.discovery.axes.assemble import assemble, infer
from pyro_align.discovery.axes.inference import Inference
from pyro_align.discovery.axes.terms import resolve, variables
from pyro_align.discovery.graphs import call, copied, finish
from pyro_align.discovery.tracing import TracedGraph
from pyro_align.symmetry.stacks import Stacks, stack_name, stack_tensors, stacked

aten: Any = torch.ops.aten


def infer_stacked(traced: TracedGraph, plain: Inference) -> tuple[TracedGraph, Inference, Stacks]:
    """The graph over stacked sites with its axes, where that leaves more of them free; else what was given."""
    chosen = _named(plain.kin, traced)
    while chosen:
        graph = stack_sites(traced, chosen)
        inference = infer(graph)
        kept = {name: members for name, members in chosen.items() if _moves(inference, name)}
        if kept == chosen:
            more = assemble(inference, scope="joint").log_order > assemble(plain, scope="joint").log_order + 1e-9
            return (graph, inference, chosen) if more else (traced, plain, {})
        chosen = kept
    return traced, plain, {}


def _named(families: Iterable[tuple[str, ...]], traced: TracedGraph) -> dict[str, tuple[str, ...]]:
    """Families that can be stacked: disjoint, of equal shape, dtype and support, and not updated on the way."""
    found: dict[str, tuple[str, ...]] = {}
    taken = set(traced.states)
    for members in sorted(families, key=len, reverse=True):
        kinds = {(traced.values[m].shape, traced.values[m].dtype, str(traced.supports.get(m))) for m in members}
        if len(kinds) == 1 and taken.isdisjoint(members):
            found[stack_name(members, {*found, *traced.values})] = members
            taken.update(members)
    order = list(traced.values)
    return dict(sorted(found.items(), key=lambda item: order.index(item[1][0])))


def _moves(inference: Inference, name: str) -> bool:
    return any(not v.fixed and v.size > 1 for v in variables(resolve(inference.sites[name][0])))


def stack_sites(traced: TracedGraph, stacks: Stacks) -> TracedGraph:
    """The same function of stacked sites, of which it takes the members by their index."""
    graph, _ = copied(traced)
    body, nodes = graph.module.graph, dict(graph.nodes)
    for i, (name, members) in enumerate(stacks.items()):
        with body.inserting_before(next(iter(body.nodes))):
            stack = body.placeholder(f"stack_{i}")
        stack.meta["val"] = torch.stack([nodes[m][0].meta["val"] for m in members])
        for k, member in enumerate(members):
            for node in nodes.pop(member):
                with body.inserting_after(node):
                    node.replace_all_uses_with(call(body, stack, aten.select.int, stack, 0, k))
                body.erase_node(node)
        nodes[name] = (stack,)
    finish(graph.module)
    values = stack_tensors(traced.values, stacks)
    supports = stacked(traced.supports, stacks, lambda s: s[0])
    return replace(graph, values=values, nodes={name: nodes[name] for name in values}, supports=supports)
