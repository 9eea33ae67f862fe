"""Symmetries that rest on the present value of something learnable.

A BatchNorm's running mean is zero for every unit before training, and tells the units apart afterwards; so does a bias
that starts at zero. What is constant only for now is recorded, so that it can be looked at again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from pyro_align.axes import leaves
from pyro_align.discovery.axes.assemble import infer
from pyro_align.discovery.axes.inference import Inference
from pyro_align.discovery.axes.terms import resolve, variables
from pyro_align.discovery.constants import is_scaled_identity, runs
from pyro_align.discovery.tracing import TracedGraph, attribute
from pyro_align.errors import SymmetryError
from pyro_align.model.learnables import learnables
from pyro_align.symmetry.findings import Resting
from pyro_align.symmetry.group import Symmetry


def find_resting(symmetry: Symmetry, traced: TracedGraph, named: Mapping[int, str]) -> tuple[Resting, ...]:
    """What a symmetry takes for constant although training may change it; ``named`` has each tensor's name by identity.

    The graph is read once more with the learnable tensors as sites: those whose axes are then tied to an axis that is
    free must stay as they are along it.
    """
    patterns, values, nodes = {}, {}, {}
    for node, value in _learnable_nodes(traced, named):
        pattern = {axis: kept for axis in range(value.dim()) if (kept := _pattern(value, axis)) is not None}
        if pattern:
            name = named.get(id(value), f"a parameter of shape {tuple(value.shape)}")
            patterns[name], values[name] = pattern, value
            nodes[name] = (*nodes.get(name, ()), node)
    if not patterns or not symmetry.atoms:
        return ()
    generic = infer(replace(traced, values={**traced.values, **values}, nodes={**traced.nodes, **nodes}))
    return _tied(symmetry, generic, patterns)


def _learnable_nodes(traced: TracedGraph, named: Mapping[int, str]):
    taken = {node for nodes in traced.nodes.values() for node in nodes}
    for node in traced.module.graph.nodes:
        if node.op == "get_attr" and node not in taken:
            value = attribute(traced.module, node.target)
            if isinstance(value, Tensor) and (id(value) in named or isinstance(value, nn.Parameter)):
                yield node, value.detach() if id(value) not in named else value


def _tied(
    symmetry: Symmetry, generic: Inference, patterns: Mapping[str, Mapping[int, tuple[int, ...]]]
) -> tuple[Resting, ...]:
    carried = {
        (site, axis): [a.name for a in leaves(term) if a.name in symmetry.atoms]
        for site, terms in symmetry.sites.items()
        for axis, term in enumerate(terms)
    }
    carried = {place: atoms for place, atoms in carried.items() if atoms}
    atoms_of: dict[object, list[str]] = {}
    unclear: list[str] = []
    for (site, axis), atoms in carried.items():
        found = list(variables(resolve(generic.sites[site][axis])))
        for var in found:
            atoms_of.setdefault(var, []).extend(atoms)
        if all(v.fixed for v in found):
            unclear += atoms
    resting = []
    for name, pattern in patterns.items():
        for axis, kept in pattern.items():
            found = list(variables(resolve(generic.sites[name][axis])))
            tied = list(dict.fromkeys(atom for var in found for atom in atoms_of.get(var, ())))
            if tied:
                resting.append(Resting(name, axis, kept, tuple(tied)))
    known = {atom for r in resting for atom in r.atoms}
    if any(atom not in known for atom in unclear):  # which tensor fixed it is not told: any may have
        lost = tuple(dict.fromkeys(atom for atom in unclear if atom not in known))
        resting += [Resting(n, a, k, lost) for n, pattern in patterns.items() for a, k in pattern.items()]
    return tuple(resting)


def _pattern(value: Tensor, axis: int) -> tuple[int, ...] | None:
    """Lengths of the runs of equal slices along an axis; empty for a multiple of the identity plus a constant."""
    if value.shape[axis] == 1 or not value.numel():
        return None
    lengths = runs(value.detach(), axis)
    if len(lengths) < value.shape[axis]:
        return tuple(lengths)
    return () if value.dim() == 2 and is_scaled_identity(value.detach()) else None


def check_resting(symmetry: Symmetry, *guides: object) -> None:
    """Refuses a symmetry that rests on values that have changed."""
    if not symmetry.rests:
        return
    for model in map(_model_of, guides):
        if callable(model):
            at_hand = learnables(model)
            for resting in symmetry.rests:
                if resting.tensor in at_hand and not _holds(at_hand[resting.tensor], resting):
                    raise SymmetryError(
                        f"the symmetry was found when '{resting.tensor}' was {resting.described} along axis "
                        f"{resting.axis}; now it distinguishes the units of {_listed(resting.atoms)}, so that "
                        "relabeling them changes the model. Call find_symmetry again on the model as it is now, or "
                        "with parameters=True to relabel such tensors too"
                    )


def _model_of(guide: object) -> object:
    try:
        return getattr(guide, "model", None)
    except TypeError:  # copying or unpickling an autoguide takes its model away, and the property then fails
        return None


def _holds(value: Tensor, resting: Resting) -> bool:
    if resting.axis >= value.dim() or not value.numel():
        return True
    if not resting.runs:
        return value.dim() == 2 and value.shape[0] == value.shape[1] and is_scaled_identity(value.detach())
    cuts = set(itertools.accumulate(resting.runs))
    return set(itertools.accumulate(runs(value.detach(), resting.axis))) <= cuts


def _listed(atoms: tuple[str, ...]) -> str:
    return ", ".join(f"'{a}'" for a in atoms)


def names_of(model: Callable[..., Any], params: Mapping[str, Tensor]) -> dict[int, str]:
    """Identity -> name of every learnable tensor of a model, ``params`` (not yet in the store) included."""
    return {id(t): name for source in (params, learnables(model)) for name, t in source.items()}
