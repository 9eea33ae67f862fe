"""Which variables move with the relabeled units: beside the sites of the symmetry, what was derived from them.

A posterior stays consistent only if everything in it that speaks of units is relabeled alike: parameters of the model,
quantities derived from them for each unit, and integers whose *values* are labels of units. The first are named by the
symmetry. For all others the answer comes from the user, from a dim that they share with the symmetry's sites, or from
the model that computes them; what could speak of units and is settled by none of these is named in a warning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyro_align.axes import Atom, Axis, AxisLike, Fixed, Sum, as_axis, axis_size, leaves, map_atoms
from pyro_align.draws.sources import Source
from pyro_align.draws.stack import per_unit
from pyro_align.errors import SymmetryError
from pyro_align.symmetry.element import Permutation
from pyro_align.symmetry.group import Symmetry
from pyro_align.symmetry.terms import fill_sizes

if TYPE_CHECKING:
    from pyro_align.model.draws import DrawDensity

_LOOK = 50  # draws of a chain in which integers are looked for
_CANDIDATES = 256  # most ways in which a deterministic's axes may carry the atoms
_TRIES, _ELEMENTS = 3, 5  # draws, and relabelings of each, at which the model says how a deterministic moves


@dataclass(frozen=True, eq=False)
class Carried:
    """Everything that relabeling moves.

    Attributes:
        symmetry: The group, acting on the symmetry's sites and on what is derived from them.
        labels: Variable whose values are labels -> the axis whose entries they number, an atom or a sum with one.
        first: The same variables -> the number of the first unit: 0, or 1 as in Stan.
        unsettled: Variable -> why it may carry the units; it was left as it was.
    """

    symmetry: Symmetry
    labels: Mapping[str, Axis] = field(default_factory=dict)
    first: Mapping[str, int] = field(default_factory=dict)
    unsettled: Mapping[str, str] = field(default_factory=dict)

    @property
    def moved(self) -> tuple[str, ...]:
        """Names of the variables that relabeling may change."""
        sites = {site for places in self.symmetry.carriers.values() for site, _ in places}
        return tuple(dict.fromkeys([*(s for s in self.symmetry.sites if s in sites), *self.labels]))

    def apply(self, p: Permutation, name: str, value: Tensor) -> Tensor:
        """One variable's draws ``(units, *shape)`` under the relabelings ``p`` of a stack of the symmetry."""
        if name in self.symmetry.sites:
            value = p.apply_site(name, value)
        elif name not in self.labels:
            raise SymmetryError(f"'{name}' is no variable that was relabeled; those are {list(self.moved)}")
        if name not in self.labels:
            return value
        return renumbered(self._numbers(p, name), value, self.first[name])

    def _numbers(self, p: Permutation, name: str) -> Tensor:
        """Which old entry each new one of a label's axis is, ``(units, size)``."""
        term = self.labels[name]
        if isinstance(term, Atom):
            return p.indices[term.name]
        units = len(next(iter(p.indices.values())))
        alone = per_unit(Symmetry({name: (term,)}), units)
        q = alone.permutation({k: v for k, v in p.indices.items() if k in alone.atoms})
        return q.apply_site(name, torch.arange(axis_size(term), device="cpu").expand(units, -1))


def renumbered(index: Tensor, labels: Tensor, first: int) -> Tensor:
    """Labels in the new numbering.

    Args:
        index: ``(units, size)``: new -> old.
        labels: Integers ``(units, *shape)``, of any dtype.
    """
    new = index.long().argsort(-1).gather(-1, labels.long().flatten(1) - first) + first
    return new.reshape(labels.shape).to(labels.dtype)


def numbered_from(labels: Tensor, size: int, name: str = "labels") -> int:
    """Whether labels are numbered from 0 or from 1."""
    if not labels.numel() or not _whole(labels):
        raise SymmetryError(f"{name}: labels must be whole numbers, got {labels.dtype} {tuple(labels.shape)}")
    low, high = int(labels.min()), int(labels.max())
    first = 1 if high == size else 0
    if low < first or high >= size + first:
        raise SymmetryError(
            f"{name}: labels must lie in 0..{size - 1}, or in 1..{size} where numbering starts at 1; got {low}..{high}"
        )
    return first


def find_carried(
    source: Source,
    symmetry: Symmetry,
    density: DrawDensity | None,
    labels: Mapping[str, str | None],
    derived: Mapping[str, Sequence[AxisLike]],
) -> Carried:
    """Settles for every variable of the draws whether it moves, and how."""
    _check_labels(source, symmetry, labels)
    sites = {**symmetry.sites, **_derived(source, symmetry, derived)}
    others = [n for n in source.arrays if n not in sites and (density is None or n not in density.latents)]
    unsettled: dict[str, str] = {}
    if source.members is None:
        for name in others:
            terms = _by_model(source, symmetry, density, name) or _by_dims(source, symmetry, name, unsettled)
            if terms is not None:
                sites[name] = terms
                unsettled.pop(name, None)
            elif name not in unsettled and (reason := _may_carry(source, symmetry, name)):
                unsettled[name] = reason
        for name in source.arrays:
            if name not in labels and name not in symmetry.sites and (reason := _may_label(source, symmetry, name)):
                unsettled.setdefault(name, reason)
    settled = {k: v for k, v in unsettled.items() if k not in labels or "values" not in v}
    axes, first = {}, {}
    for name, atom in labels.items():
        if atom is not None:
            axes[name], first[name] = _numbered(source, name, component_axes(symmetry, atom))
    return Carried(replace(symmetry, sites=sites), axes, first, MappingProxyType(settled))


def _numbered(source: Source, name: str, axes: Mapping[int, Axis]) -> tuple[Axis, int]:
    """The axis whose entries a variable's values number, and from what they are numbered."""
    values = torch.cat([source.read(name, c, part).unique() for c, part in source.site_slices(name)])
    for size, term in sorted(axes.items()):
        with suppress(SymmetryError):
            return term, numbered_from(values, size)
    size = min(axes)
    return axes[size], numbered_from(values, size, f"'{name}'")


def component_axes(symmetry: Symmetry, atom: str) -> dict[int, Axis]:
    """Number of components -> the axis on which an atom's units are components, alone or with others beside them.

    The units may be some of the components only: the state that a chain starts in stays where it is.
    """
    found: dict[int, Axis] = {symmetry.atoms[atom].size: symmetry.atoms[atom]}
    for site, axis in symmetry.carriers[atom]:
        term = map_atoms(symmetry.sites[site][axis], Atom.unsigned)
        if isinstance(term, Sum) and not any(a.within for a in leaves(term)):
            found.setdefault(axis_size(term), term)
    return found


def _check_labels(source: Source, symmetry: Symmetry, labels: Mapping[str, str | None]) -> None:
    for name, atom in labels.items():
        if name not in source.arrays:
            raise SymmetryError(f"labels= names '{name}'; the draws have {sorted(source.arrays)}")
        if atom is None:
            continue
        if atom not in symmetry.atoms:
            raise SymmetryError(
                f"labels= says that the values of '{name}' are units of '{atom}'; the symmetry has "
                f"{list(symmetry.atoms)}"
            )
        if symmetry.outer_shape(atom) or atom in symmetry.rotated:
            raise SymmetryError(f"the values of '{name}' cannot be units of '{atom}', which is nested or rotated")


def _derived(source: Source, symmetry: Symmetry, derived: Mapping[str, Sequence[AxisLike]]) -> dict[str, Any]:
    """The user's terms, with the nesting that the symmetry gives their atoms."""
    out = {}
    for name, given in derived.items():
        if name not in source.arrays:
            raise SymmetryError(f"derived= names '{name}'; the draws have {sorted(source.arrays)}")
        if name in symmetry.sites:
            raise SymmetryError(f"derived= names '{name}', whose axes the symmetry itself names")
        known = partial(_known, symmetry=symmetry, name=name)
        terms = tuple(map_atoms(as_axis(t), known) for t in given)
        shape = source.shapes[name]
        if len(terms) != len(shape):
            raise SymmetryError(f"derived=, '{name}': {len(terms)} axes are named, its draws have shape {shape}")
        out[name] = terms
    if not out:
        return out
    filled = fill_sizes({**symmetry.sites, **out}, source.shapes)
    return {name: filled[name] for name in out}


def _known(atom, symmetry: Symmetry, name: str):
    if not atom.name:
        return atom
    if atom.name not in symmetry._all_atoms:
        raise SymmetryError(
            f"derived=, '{name}': there is no atom '{atom.name}'; the symmetry has {list(symmetry.atoms)}"
        )
    known = symmetry._all_atoms[atom.name]
    return known if known.rotates else replace(known, kind=atom.kind)


# -- a dim that sites share --------------------------------------------------------------------------------------------


def _by_dims(source: Source, symmetry: Symmetry, name: str, unsettled: dict[str, str]) -> tuple[Axis, ...] | None:
    """The axis terms that a variable's dims have in the symmetry's sites; None where none of them moves."""
    meaning = _meaning_of_dims(source, symmetry)
    dims = source.dims.get(name, ())
    if not any(_moves(t, symmetry) for d in dims for t in meaning.get(d, ())):
        return None
    terms = []
    for dim, size in zip(dims, source.shapes[name], strict=True):
        found = meaning.get(dim, {Fixed(size)})
        if len(found) > 1:
            unsettled[name] = f"its dim '{dim}' carries different units in different sites: {_listed(found)}"
            return None
        terms.append(next(iter(found)))
    names = {a.name for t in terms for a in leaves(t)}
    if names & (symmetry.signed | symmetry.rotated):
        shared = sorted(names & (symmetry.signed | symmetry.rotated))
        how = "it rotates with the factors" if names & symmetry.rotated else "its sign changes with the units"
        unsettled[name] = f"it shares the dim of {shared}, and whether {how} is not known"
        return None
    try:
        replace(symmetry, sites={**symmetry.sites, name: tuple(terms)})
    except SymmetryError as error:
        unsettled[name] = str(error).removeprefix(f"site '{name}': ")
        return None
    return tuple(terms)


def _meaning_of_dims(source: Source, symmetry: Symmetry) -> dict[str, set[Axis]]:
    """Dim -> the terms (without signs) that it stands for in the symmetry's sites."""
    found: dict[str, set[Axis]] = {}
    for site, terms in symmetry.sites.items():
        for dim, term in zip(source.dims.get(site, ()), terms, strict=False):
            found.setdefault(dim, set()).add(map_atoms(term, Atom.unsigned))
    return found


def _moves(term: Axis, symmetry: Symmetry) -> bool:
    return any(a.name in symmetry.atoms for a in leaves(term))


def _listed(terms) -> str:
    return ", ".join(sorted(f"'{t}'" for t in terms))


# -- what the model computes -------------------------------------------------------------------------------------------


def _by_model(source: Source, symmetry: Symmetry, density: DrawDensity | None, name: str) -> tuple[Axis, ...] | None:
    """How a ``pyro.deterministic`` of the model moves with the latents, or None where it is none or nothing fits.

    The model is run at a few draws and at random relabelings of them. The terms are those under which the
    deterministic of the relabeled draw is the relabeled deterministic.
    """
    if density is None:
        return None
    draws = np.linspace(0, source.shape[1] - 1, min(_TRIES, source.shape[1])).astype(int)
    seen: list[tuple[Permutation, Tensor, Tensor]] = []
    for k, draw in enumerate(draws):
        chain, here = k % source.shape[0], slice(draw, draw + 1)
        latents = {s: source.read(s, chain, here)[0] for s in density.latents}
        stored, computed = source.read(name, chain, here)[0], density.deterministic(name, latents)
        if computed is None or computed.shape != stored.shape or not _close(computed, stored):
            return None
        generator = torch.Generator().manual_seed(k)
        for _ in range(_ELEMENTS):
            p = symmetry.random(generator)
            moved = {s: p.apply_site(s, v) if s in symmetry.sites else v for s, v in latents.items()}
            seen.append((p, computed, density.deterministic(name, moved)))
    for terms in _candidates(symmetry, source.shapes[name]):
        try:
            wider = replace(symmetry, sites={**symmetry.sites, name: terms})
        except SymmetryError:
            continue
        moved = (
            (wider.permutation(p.indices, p.signs, p.rotations).apply_site(name, old), new) for p, old, new in seen
        )
        if all(_close(old, new) for old, new in moved):
            return terms
    return None


def _candidates(symmetry: Symmetry, shape: tuple[int, ...]):
    """Ways in which the axes of a variable could carry the atoms, those that move least first."""
    moving = {t for terms in symmetry.sites.values() for t in terms if _moves(t, symmetry)}
    plain = {map_atoms(t, Atom.unsigned) for t in moving}
    options = [[Fixed(n), *sorted((t for t in plain | moving if axis_size(t) == n), key=str)] for n in shape]
    every = sorted(product(*options), key=lambda terms: sum(_moves(t, symmetry) for t in terms))
    return every[:_CANDIDATES]


def _close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-6 * (1.0 + float(b.double().abs().max())))


# -- what could speak of units -----------------------------------------------------------------------------------------


def _may_carry(source: Source, symmetry: Symmetry, name: str) -> str | None:
    """Why the axes of a variable that nobody has spoken of may carry units, or None."""
    named = {dim for site in symmetry.sites for dim in source.dims.get(site, ()) if not _automatic(dim)}
    for i, size in enumerate(source.shapes[name]):
        dim = source.dims[name][i] if name in source.dims else None
        for atom, places in symmetry.carriers.items():
            fits = size > 1 and any(axis_size(symmetry.sites[s][axis]) == size for s, axis in places)
            apart = (
                dim is not None
                and not _automatic(dim)
                and all(s in source.dims and source.dims[s][axis] in named for s, axis in places)
            )
            if fits and not apart:
                return f"its axis {i} has as many entries as there are units of '{atom}' ({size})"
    return None


def _automatic(dim: str) -> bool:
    """Whether a dim has a name that nobody gave it: ``mu_dim_0``."""
    return "_dim_" in dim


def _may_label(source: Source, symmetry: Symmetry, name: str) -> str | None:
    """Why the values of a variable may be labels of units, or None."""
    values = torch.stack([source.read(name, c, slice(0, _LOOK)) for c in range(source.shape[0])])
    if not _whole(values) or not values.numel() or bool((values == values[:1, :1]).all()):
        return None
    low, high = int(values.min()), int(values.max())
    for atom, known in symmetry.atoms.items():
        if known.rotates:
            continue
        if known.size > 2 and low >= 0 and (high < known.size or (low >= 1 and high == known.size)):
            return f"its values are whole numbers in {low}..{high}, as labels of '{atom}' are"
        if known.size == 2 and values.dtype != torch.bool and (low, high) in ((0, 1), (1, 2)):
            return f"its values are whole numbers in {low}..{high}, as labels of '{atom}' are"
    return None


def _whole(values: Tensor) -> bool:
    if values.is_complex():
        return False
    if not values.is_floating_point():
        return True
    return bool(values.isfinite().all()) and bool((values == values.round()).all())
