"""Pairs of dimensions that may be rotated by an angle each, SO(2)^k: those of a rotary embedding.

A rotary embedding rotates pairs of an axis by angles that depend on the position, and rotations of one plane commute.
Its constants tell the entries apart, so the axis keeps its order; which of its pairs may be rotated is asked of the
function itself. A step of an angle in the plane of i and j changes it at the rate ``g_i v_j - g_j v_i``, g its gradient
at v. The parts of sites that rotate together are the solutions of one linear system over random points. The two
dimensions of a pair are next to each other, or half of a head apart, or at any other one distance.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyro_align.axes import Atom, Axis, Product, Sum, axis_size, leaves
from pyro_align.discovery.axes.assemble import unique_name
from pyro_align.symmetry.group import Symmetry

LARGEST = 1024  # dimensions of an axis whose pairs are looked at
SPARE = 4  # points beyond the number of parts
_ZERO, _ONE, _SAME = 1e-9, 1e-6, 1e-9  # of the largest singular value; of a solution's entries; of a function's value


@dataclass(frozen=True)
class _Part:
    """A part of an axis that keeps its order, alone or inside of heads: ``heads x fixed``, from ``start`` on."""

    site: str
    axis: int
    number: int  # which of the terms of the axis, from the left
    start: int  # its first index
    heads: tuple[Atom, ...]  # the free atoms in which it lies
    size: int  # length of what keeps its order

    @property
    def key(self) -> tuple[Any, ...]:
        """Parts that are alike may rotate together."""
        return self.size, *(atom.name for atom in self.heads)

    def rates(self, gradient: Tensor, value: Tensor) -> Tensor:
        """How fast the function changes with a rotation in each plane, ``(heads, size, size)``."""
        count = torch.Size([a.size for a in self.heads]).numel()
        g, v = (
            t.narrow(self.axis, self.start, count * self.size).movedim(self.axis, 0).reshape(count, self.size, -1)
            for t in (gradient, value)
        )
        return g @ v.mT - v @ g.mT


def add_planes(
    symmetry: Symmetry,
    # site -> value to a tensor, which must not change; it can be differentiated
    function: Callable[[dict[str, Tensor]], Tensor],
    point: Callable[[int], dict[str, Tensor]],  # seed -> random values of all sites, in float64
    *,
    real: Collection[str],  # sites whose values may be rotated
) -> Symmetry:
    """The symmetry with the planes that may be rotated along axes of fixed order."""
    alike: dict[tuple[Any, ...], list[_Part]] = {}
    for part in (p for site in symmetry.sites if site in real for p in _parts(symmetry, site)):
        alike.setdefault(part.key, []).append(part)
    groups = [parts for parts in alike.values() if len(parts) > 1]
    if not groups:
        return symmetry
    found: dict[_Part, list[Tensor]] = {part: [] for parts in groups for part in parts}
    for k in range(max(map(len, groups)) + SPARE):
        values = point(k)
        try:
            gradients = _gradients(function, values, {part.site for parts in groups for part in parts}, k)
        except (RuntimeError, NotImplementedError):  # no derivatives: nothing is known
            return symmetry
        for part in (part for parts in groups for part in parts):
            found[part].append(part.rates(gradients[part.site], values[part.site]).cpu())
        groups = [parts for parts in groups if any(_open(parts, found, stride) for stride in _strides(parts))]
        if not groups:
            return symmetry
    for parts in groups:
        for stride in _strides(parts):
            for together in _together([(part, torch.stack(found[part])) for part in parts], stride):
                trial, plane = _marked(symmetry, together, stride)
                symmetry = trial if plane and _holds(trial, plane, function, point(0)) else symmetry
    return symmetry


def _parts(symmetry: Symmetry, site: str) -> Iterator[_Part]:
    for axis, term in enumerate(symmetry.sites[site]):
        if all(r.kind in ("data", "output", "support") for r in symmetry.reasons.get((site, axis), ())):
            continue  # nothing inside the model keeps its order
        start = 0
        for number, part in enumerate(_terms(term)):
            *heads, last = _factors(part)
            plain = isinstance(last, Atom) and not last.name and last.size % 2 == 0 and last.size <= LARGEST
            if plain and all(isinstance(h, Atom) and not h.fixed and not h.rotates for h in heads):
                yield _Part(site, axis, number, start, tuple(heads), last.size)
            start += axis_size(part)


def _terms(term: Axis) -> tuple[Axis, ...]:
    return term.terms if isinstance(term, Sum) else (term,)


def _factors(term: Axis) -> tuple[Axis, ...]:
    return term.factors if isinstance(term, Product) else (term,)


def _gradients(function, values: dict[str, Tensor], sites: Collection[str], seed: int) -> dict[str, Tensor]:
    """Of the outputs, weighted at random."""
    at = {site: values[site].detach().clone().requires_grad_() for site in sites}
    out = function({**values, **at})
    out = torch.view_as_real(out) if out.is_complex() else out
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out.shape, generator=generator, dtype=torch.float64, device="cpu").to(out.device)
    found = torch.autograd.grad((out * weight).sum(), list(at.values()), allow_unused=True)
    return {s: torch.zeros_like(v) if g is None else g for (s, v), g in zip(at.items(), found, strict=True)}


def _strides(parts: Sequence[_Part]) -> list[int]:
    """How far apart the two dimensions of a pair may be."""
    size = parts[0].size
    return [stride for stride in range(1, size // 2 + 1) if size % (2 * stride) == 0]


def _rows(rates: Sequence[Tensor], stride: int) -> Tensor:
    """One equation a point, head and plane, one unknown a part: ``(equations, parts)``."""
    first = torch.tensor([i for i in range(rates[0].shape[-1]) if i // stride % 2 == 0])
    return torch.stack([r[:, :, first, first + stride].flatten() for r in rates], 1)


def _open(parts: Sequence[_Part], found: dict[_Part, list[Tensor]], stride: int) -> bool:
    """Whether the points so far leave a solution: most groups have none after the first."""
    rows = _rows([torch.stack(found[part]) for part in parts], stride)
    if len(rows) < len(parts) or not bool(rows.isfinite().all()):
        return True
    singular = torch.linalg.svdvals(rows)
    return bool(singular[-1] <= _ZERO * singular[0])


def _together(rates: Sequence[tuple[_Part, Tensor]], stride: int) -> Iterator[list[_Part]]:
    """Sets of parts in which every plane may be rotated, in all of a set by the same angle."""
    rows = _rows([r for _, r in rates], stride)
    if not bool(rows.isfinite().all()):
        return
    _, singular, right = torch.linalg.svd(rows, full_matrices=False)
    basis = right[singular <= _ZERO * singular[0]]
    for column in range(len(rates)):  # to reduced row echelon form, in which each set is a row
        if not len(basis) or float(basis[:, column].abs().max()) < _ONE:
            continue
        pivot = int(basis[:, column].abs().argmax())
        row = basis[pivot] / basis[pivot, column]
        basis = torch.cat([basis[:pivot], basis[pivot + 1 :]])
        basis = basis - basis[:, column : column + 1] * row
        chosen = [k for k, c in enumerate(row.tolist()) if abs(c) > _ONE]
        if len(chosen) > 1 and float((row[chosen] - 1).abs().max()) < _ONE:
            yield [rates[k][0] for k in chosen]


def _marked(symmetry: Symmetry, parts: Sequence[_Part], stride: int) -> tuple[Symmetry, str]:
    """The symmetry with an atom for the planes of these parts, and its name; empty where one has another already."""
    lead = parts[0]
    names = [unique_name(f"{lead.site}/{what}", symmetry._all_atoms) for what in ("plane", "block", "pair")]
    block = Atom(names[1], lead.size // (2 * stride), fixed=True)
    pair = Atom(names[2], stride, fixed=True)
    around = [atom for atom in (block, pair) if atom.size > 1]
    within = tuple(atom.name for atom in (*lead.heads, *around))
    plane = Atom(names[0], 2, within=within, kind="plane rotation")
    inside = [atom for atom in (block, plane, pair) if atom.size > 1]
    chosen = {(part.site, part.axis, part.number) for part in parts}
    elsewhere = {
        leaf.name
        for site, terms in symmetry.sites.items()
        for axis, term in enumerate(terms)
        for number, part in enumerate(_terms(term))
        for leaf in leaves(part)
        if leaf.odd and (site, axis, number) not in chosen
    }
    sites = {site: list(terms) for site, terms in symmetry.sites.items()}
    for part in parts:
        terms = list(_terms(sites[part.site][part.axis]))
        *heads, last = _factors(terms[part.number])
        if not (isinstance(last, Atom) and last.fixed and not last.name):
            return symmetry, ""
        heads = [h if h.name in elsewhere else h.unsigned() for h in heads]  # half a turn is the head's sign
        factors = [*heads, *inside]
        terms[part.number] = Product(*factors) if len(factors) > 1 else factors[0]
        sites[part.site][part.axis] = Sum(*terms) if len(terms) > 1 else terms[0]
    return replace(symmetry, sites={site: tuple(terms) for site, terms in sites.items()}), plane.name


def _holds(symmetry: Symmetry, plane: str, function, values: dict[str, Tensor]) -> bool:
    """Whether rotations by angles of any size leave the function as it is."""
    with torch.no_grad():
        before, after = function(values), function(symmetry.random(0).only(plane).apply(values))
    return float((after - before).abs().max()) <= _SAME * (1 + float(before.abs().max()))
