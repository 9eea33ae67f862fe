"""Signs that no unit carries: of single indices on axes that keep their order, and of whole sites.

The loadings and the scores of a single factor change sign together, and so does each of several factors whose order a
prior fixes. Every index of every fixed axis gets an unknown, and the graph says which may change sign together, as for
units. What the signs of units do not make already becomes an atom of size one: it has no order, but a sign. A site that
is a single number has no axis to carry it: it is read as a stack of one.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from pyro_align.axes import Atom, Axis, Fixed, Odd, Product, Sum, map_atoms
from pyro_align.discovery.axes.assemble import unique_name
from pyro_align.discovery.axes.inference import Inference
from pyro_align.discovery.signs.domain import SignDomain
from pyro_align.discovery.signs.parity import EVEN, EXHAUSTIVE, Equations, Parities, bits_of, on_host
from pyro_align.discovery.walk import walk
from pyro_align.symmetry.action import Tables, act
from pyro_align.symmetry.blocks import site_blocks
from pyro_align.symmetry.group import Symmetry
from pyro_align.symmetry.stacks import stack_name

ENTRIES = 100_000  # of all sites together; larger models are not looked at
UNKNOWNS = 512  # indices of fixed axes; beyond, a site changes sign as a whole or not at all

Turns = Mapping[str, Sequence[Tensor]]  # site -> for each axis, which of its indices change sign


@on_host
def add_loose_signs(symmetry: Symmetry, inference: Inference, *, real: Collection[str]) -> Symmetry:
    """The symmetry with an atom of size one for every sign that no unit carries; ``real`` sites may change sign."""
    sites = [site for site in symmetry.sites if site in real]
    if not sites or sum(torch.Size(shape).numel() for shape in symmetry.shapes.values()) > ENTRIES:
        return symmetry
    numbers = [site for site, terms in symmetry.sites.items() if not terms]
    lined = replace(symmetry, sites={**symmetry.sites, **dict.fromkeys(numbers, (Fixed(1),))})  # each as a vector
    unknowns = list(_unknowns(lined, sites))
    parities = Parities()
    ids = {s: _ids(parities, s, n, unknowns).reshape(symmetry.shapes[s]) for s, n in lined.shapes.items()}
    walk(inference.traced, SignDomain(parities, ids.__getitem__), inference.constants)
    vectors = parities.equations.solutions(len(unknowns))
    if len(vectors) <= EXHAUSTIVE:
        counts = range(1, len(vectors) + 1)
        vectors = [reduce(operator.xor, chosen) for k in counts for chosen in itertools.combinations(vectors, k)]
    solutions = [_turns(vector, unknowns, lined.shapes) for vector in vectors]
    chosen = _independent(lined, solutions, sites)
    return _with_atoms(symmetry, lined, chosen) if chosen else symmetry


def _anonymous(term: Axis) -> bool:
    return isinstance(term, Atom) and term.fixed and not term.name


def _unknowns(symmetry: Symmetry, sites: Sequence[str]) -> Iterator[tuple[str, int, int | None]]:
    """``(site, axis, index)``; the index is None where all of the site changes sign together."""
    axes = {site: [i for i, t in enumerate(symmetry.sites[site]) if _anonymous(t)] for site in sites}
    count = sum(symmetry.shapes[site][i] for site in sites for i in axes[site])
    for site in sites:
        if count <= UNKNOWNS and axes[site]:
            yield from ((site, i, k) for i in axes[site] for k in range(symmetry.shapes[site][i]))
        else:
            yield site, (axes[site] or [0])[0], None


def _ids(parities: Parities, site: str, shape: tuple[int, ...], unknowns: Sequence[tuple[Any, ...]]) -> Tensor:
    ids = torch.full((), EVEN, dtype=torch.int32).expand(shape)
    for axis, n in enumerate(shape):
        along = torch.full((n,), EVEN, dtype=torch.int32)
        for bit, (name, i, k) in enumerate(unknowns):
            if (name, i) == (site, axis):
                along[slice(None) if k is None else k] = parities.number(1 << bit)
        ids = parities.multiply(ids, along.reshape([-1 if i == axis else 1 for i in range(len(shape))]))
    return ids


def _turns(vector: int, unknowns: Sequence[tuple[Any, ...]], shapes: Mapping[str, tuple[int, ...]]) -> Turns:
    out: dict[str, list[Tensor]] = {}
    for bit, (site, axis, k) in enumerate(unknowns):
        if vector >> bit & 1:
            along = out.setdefault(site, [torch.zeros(n, dtype=torch.bool) for n in shapes[site]])
            along[axis][slice(None) if k is None else k] = True
    return out


def _pattern(turns: Turns, shapes: Mapping[str, tuple[int, ...]], sites: Sequence[str]) -> int:
    """The entries that change sign, as the bits of one number: all sites one after the other."""
    flat = []
    for site in sites:
        turned = torch.zeros(shapes[site], dtype=torch.bool)
        for axis, along in enumerate(turns.get(site, ())):
            turned = turned ^ along.reshape([-1 if i == axis else 1 for i in range(len(shapes[site]))])
        flat.append(turned)
    return bits_of(flat)


def _independent(symmetry: Symmetry, solutions: Sequence[Turns], sites: Sequence[str]) -> list[Turns]:
    """Solutions that turn as few entries as possible, none of them made by the others and the signs of units."""
    patterns = [_pattern(turns, symmetry.shapes, list(symmetry.sites)) for turns in solutions]
    known = Equations()
    for pattern in _of_units(symmetry) if any(patterns) else ():
        known.require(pattern)
    chosen = []
    for turns, pattern in sorted(zip(solutions, patterns, strict=True), key=lambda pair: pair[1].bit_count()):
        if known.reduce(pattern):
            known.require(pattern)
            chosen.append(_shortest(turns, symmetry))
    return sorted(chosen, key=lambda turns: [sites.index(site) for site in turns])


def _of_units(symmetry: Symmetry) -> Iterator[int]:
    """The entries that each unit of an atom with signs, or one that is rotated, changes the sign of."""
    nowhere = {site: torch.zeros(shape, dtype=torch.bool) for site, shape in symmetry.shapes.items()}
    for name, atom in symmetry.atoms.items():
        if not (atom.odd or atom.rotates) or atom.centered:
            continue
        terms = {s: [map_atoms(t, _signed) for t in symmetry.sites[s]] for s, _ in symmetry.carriers[name]}
        blocks = {site: site_blocks(site, axes) for site, axes in terms.items()}
        signs = torch.ones(*symmetry.outer_shape(name), atom.size, dtype=torch.int8)
        units = signs.shape[:-1] if atom.kind == "plane rotation" else signs.shape  # half a turn moves both dimensions
        for unit in itertools.product(*map(range, units)):
            tables = Tables(signs={name: signs.index_put([torch.tensor(i) for i in unit], -signs.new_ones(()))})
            turned = {
                s: act(b, torch.ones(symmetry.shapes[s], dtype=torch.int8), tables) < 0 for s, b in blocks.items()
            }
            yield bits_of(list({**nowhere, **turned}.values()))


def _signed(atom: Atom) -> Atom:
    return replace(atom, kind="signed") if atom.rotates else atom


def _shortest(turns: Turns, symmetry: Symmetry) -> Turns:
    """The same change of signs with as few indices named as possible: all indices of two axes cancel."""
    out = {}
    for site, axes in turns.items():
        axes = list(axes)
        fixed = [i for i, term in enumerate(symmetry.sites[site]) if _anonymous(term)]
        for a, b in itertools.combinations(fixed, 2):
            other = [~t if i in (a, b) else t for i, t in enumerate(axes)]
            if sum(int(t.sum()) for t in other) < sum(int(t.sum()) for t in axes):
                axes = other
        if any(bool(t.any()) for t in axes):
            out[site] = axes
    return out


def _with_atoms(symmetry: Symmetry, lined: Symmetry, chosen: Sequence[Turns]) -> Symmetry:
    names: list[str] = []
    for turns in chosen:
        site, axes = next(iter(turns.items()))
        axis = next(i for i, t in enumerate(axes) if bool(t.any()))
        index = "" if bool(axes[axis].all()) else f"[{axis}]/{int(axes[axis].nonzero()[0])}"
        names.append(unique_name(f"sign of {site}{index}", [*names, *symmetry.atoms]))
    sites, stacks = {}, dict(symmetry.stacks)
    for site, terms in symmetry.sites.items():
        here = [(name, turns[site]) for name, turns in zip(names, chosen, strict=True) if site in turns]
        written = tuple(
            marked(term, [(name, axes[i]) for name, axes in here if bool(axes[i].any())])
            for i, term in enumerate(lined.sites[site] if here else terms)
        )
        if here and not terms:
            member, site = site, stack_name([site], symmetry.sites)
            stacks[site] = (member,)
        sites[site] = written
    return replace(symmetry, sites=sites, stacks=stacks)


def marked(term: Axis, signs: Sequence[tuple[str, Tensor]]) -> Axis:
    """An axis with the atoms that change the sign of each of its indices; runs of equal ones together."""
    if not signs:
        return term
    if not _anonymous(term):  # all indices of an axis that carries atoms
        if isinstance(term, Sum):
            whole = [(name, torch.ones(1, dtype=torch.bool).expand(along.shape)) for name, along in signs]
            return Sum(*(marked(part, whole) for part in term.terms))
        return Product(*(Odd(name, 1) for name, _ in signs), *(term.factors if isinstance(term, Product) else (term,)))
    told = [tuple(name for name, along in signs if bool(along[k])) for k in range(term.size)]
    parts: list[Axis] = []
    for names, run in itertools.groupby(told):
        factors: list[Axis] = [Odd(name, 1) for name in names]
        if (length := len(list(run))) > 1 or not factors:
            factors.append(Fixed(length))
        parts.append(factors[0] if len(factors) == 1 else Product(*factors))
    return parts[0] if len(parts) == 1 else Sum(*parts)
