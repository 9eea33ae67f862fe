"""From the causes noted in variables to what a person can read: why each axis keeps its order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch.fx import Node

from pyro_align.axes import Atom
from pyro_align.discovery.axes.causes import Cause
from pyro_align.discovery.axes.nesting import told_everywhere
from pyro_align.discovery.axes.terms import Cat, Term, Var, is_fixed, resolve, variables
from pyro_align.symmetry.findings import WHOLE_SITES, OpaqueOperation, Reason

# Operations that take indices one by one. Where they take all of an axis, what is made of them may well be symmetric.
# Indexing by a tensor is not among them: the entries of data, such as labels, do tell the indices apart.
_ONE_BY_ONE = {
    *("select", "select_copy", "select_scatter", "slice", "slice_scatter", "unbind", "split", "split_with_sizes"),
    *("cat", "stack", "as_strided", "view", "reshape", "_unsafe_view", "unfold"),
}


def reasons_of(
    sites: Mapping[str, list[Term]], atoms: Mapping[Var, Atom], tensors: Mapping[Node, Any]
) -> dict[tuple[str, int], tuple[Reason, ...]]:
    """For every axis: what fixed its parts, what gave it a form, and what ties units that might be nested."""
    ties, found = _ties(sites, atoms, tensors), {}
    for site, axes in sites.items():
        for axis, term in enumerate(axes):
            whole = is_fixed(term)
            reasons = [_reason(v.cause, whole) for v in _kept(term) if v.cause is not None]
            free = [v for v in variables(term) if v in atoms and not v.fixed]
            if free and not isinstance(term, Var):
                made = [v.cause.node for v in free if v.cause is not None and v.cause.node is not None]
                reasons += [
                    Reason("form", _name(n) if n else "", location(n) if n else "", True) for n in made or [None]
                ]
            reasons += [ties[v] for v in free if v in ties]
            if reasons:
                found[site, axis] = tuple(dict.fromkeys(reasons))
    return found


def _ties(sites: Mapping[str, list[Term]], atoms: Mapping[Var, Atom], tensors: Mapping[Node, Any]) -> dict[Var, Reason]:
    """Variable that has another beside it at every site and moves alike for all indices of it -> what made it so."""
    found, order = {}, {var: i for i, var in enumerate(atoms)}
    for var, beside in told_everywhere(sites.values(), atoms).items():
        outer = [o for o in beside if not o.fixed and order[o] < order[var] and atoms[o].name not in atoms[var].within]
        if outer:
            first = min(outer, key=order.__getitem__)
            apart = (node for node, tensor in tensors.items() if _has_without(tensor, var, first))
            if (node := next(apart, None)) is not None:
                found[var] = Reason("tied", _name(node), location(node), True, f"'{atoms[first].name}'")
    return found


def _has_without(tensor: Any, var: Var, other: Var) -> bool:
    """Whether a tensor carries a variable and does not tell the index of another beside it."""
    axes = [tuple(map(resolve, t.axes)) for t in (tensor if isinstance(tensor, list) else [tensor]) if t is not None]
    return any(other not in told_everywhere([own], [var, other]).get(var, [other]) for own in axes)


def opaque_of(
    reasons: Mapping[tuple[str, int], Iterable[Reason]], kin: Iterable[tuple[str, ...]] = ()
) -> tuple[OpaqueOperation, ...]:
    """The operations that fixed an axis only for want of a rule, and sites that might change places as wholes."""
    hit: dict[tuple[str, str], dict[str, None]] = {}
    for (site, _), found in reasons.items():
        for reason in found:
            if not reason.must:
                hit.setdefault((reason.operation, reason.where), {})[site] = None
    operations = [OpaqueOperation(*key, tuple(sites)) for key, sites in hit.items()]
    return (*operations, *(OpaqueOperation(WHOLE_SITES, "", sites) for sites in kin))


def _kept(term: Term) -> list[Var]:
    """The variables of an axis that keep their order; single indices count where they stand beside others."""
    term = resolve(term)
    single = isinstance(term, Cat)
    return [v for v in variables(term) if (v.fixed and v.size > 1) or (single and v.size == 1)]


def _reason(cause: Cause, whole: bool) -> Reason:
    """What is said of a cause; ``whole`` where no part of the axis moves."""
    operation = "" if cause.node is None or cause.kind == "constant" else _name(cause.node)
    through = "" if cause.through is None else _name(cause.through)
    must = cause.kind in ("data", "constant", "output", "support")
    if cause.kind == "operation":
        must = not whole or getattr(cause.node.target, "_opname", "") not in _ONE_BY_ONE
    nodes = (cause.node, cause.through) if operation else (cause.through, cause.node)
    where = next((line for node in nodes if node is not None and (line := location(node))), "")
    return Reason(cause.kind, operation, where, must, cause.detail, through)


def _name(node: Node) -> str:
    return str(node.target) if node.op == "call_function" else ""


def location(node: Node) -> str:
    """The line of the model that a node comes from; that of the nearest node before it where it has none."""
    seen, waiting = set(), [node]
    while waiting and len(seen) < 20:
        current = waiting.pop(0)
        lines = [line.strip() for line in (current.stack_trace or "").split("\n") if line.strip()]
        if lines:
            return lines[-1]
        seen.add(current)
        waiting += [n for n in current.all_input_nodes if n not in seen]
    return ""
