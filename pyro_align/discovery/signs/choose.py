"""From the ways in which units may change sign to one sign a unit, as axis terms say it.

A *way* is a solution of the equations: the set of places at which a unit is turned, one bit for each.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from pyro_align.axes import leaves
from pyro_align.discovery.axes.inference import Inference
from pyro_align.discovery.signs.analysis import Place, SignAnalysis, marked
from pyro_align.discovery.signs.parity import EXHAUSTIVE, Equations, bits_of, on_host
from pyro_align.symmetry.group import Symmetry


def add_signs(symmetry: Symmetry, inference: Inference, *, real: Sequence[str]) -> Symmetry:
    """The symmetry with its odd atoms; the values of ``real`` sites may change sign.

    An atom carries one sign a unit. Where a unit may change sign in several ways (two layers with a gain and no
    nonlinearity between them), the one that turns most entries is taken; of equal ones, that of the earlier sites. A
    sign of an outer atom that the atoms nested in it make already is left out.
    """
    analysis = SignAnalysis(inference, symmetry, real)
    odd: dict[str, list[Place]] = {}
    for name in sorted(symmetry.atoms, key=lambda n: -len(symmetry.atoms[n].within)):  # inner atoms first
        odd[name] = _places_turned(analysis, name, odd)
    turned = {place for places in odd.values() for place in places}
    sites = {
        site: tuple(
            marked(term, [Place(site, axis, k) in turned for k, _ in enumerate(leaves(term))])
            for axis, term in enumerate(terms)
        )
        for site, terms in symmetry.sites.items()
    }
    return replace(symmetry, sites=sites)


def _places_turned(analysis: SignAnalysis, atom: str, odd: Mapping[str, Sequence[Place]]) -> list[Place]:
    """The places of the way that turns most entries; none where nested atoms make every way there is."""
    ways = _Ways(analysis, atom)
    inner = _InnerSigns(analysis, atom, odd)
    smallest: dict[
        int, int
    ] = {}  # of the ways that differ by what nested atoms make, the one that turns fewest entries
    for way in sorted(ways.candidates(), key=ways.rank, reverse=True):
        smallest[inner.remainder(ways.places(way)) if inner else way] = way
    smallest.pop(0, None)
    return ways.places(max(smallest.values(), key=ways.rank, default=0))


class _Ways:
    """The ways in which a unit of one atom may change sign."""

    def __init__(self, analysis: SignAnalysis, atom: str):
        self._places, self._basis = analysis.places[atom], analysis.solutions(atom)
        self._entries = [analysis.entries.get((place, atom), 0) for place in self._places]

    def places(self, way: int) -> list[Place]:
        """Where a way turns the unit."""
        return [place for i, place in enumerate(self._places) if way >> i & 1]

    def rank(self, way: int) -> tuple[float, list[int]]:
        """How many entries a way turns; of equal ones, those of earlier sites rank first."""
        bits = [way >> i & 1 for i in range(len(self._places))]
        return sum(n for n, bit in zip(self._entries, bits, strict=True) if bit), bits

    def candidates(self) -> list[int]:
        """All ways, or where there are very many those of a basis and better and better ones."""
        if len(self._basis) > EXHAUSTIVE:
            return [*self._basis, *self._climb()]
        found = [0]
        for vector in self._basis:
            found += [vector ^ other for other in found]
        return found

    def _climb(self) -> list[int]:
        """Each way the best of those that one or two vectors of the basis lead to."""
        steps = [*self._basis, *(a ^ b for a, b in itertools.combinations(self._basis, 2))]
        found = [max(self._basis, key=self.rank)]
        while self.rank(best := max((found[-1] ^ step for step in steps), key=self.rank)) > self.rank(found[-1]):
            found.append(best)
        return found


class _InnerSigns:
    """What the signs of the atoms nested in an atom turn, within one of its units; true if they turn anything.

    What is turned is a set of entries of sites, one bit for each entry; such sets form a vector space over GF(2).
    """

    def __init__(self, analysis: SignAnalysis, atom: str, odd: Mapping[str, Sequence[Place]]):
        self._analysis, self._atom, self._unit = analysis, atom, analysis.units[atom][0]
        atoms = analysis.symmetry.atoms
        inner = {name: places for name, places in odd.items() if places and atom in atoms[name].within}
        carriers = itertools.chain(analysis.places[atom], *inner.values())
        self._sites = sorted({place.site for place in carriers})
        self._span = Equations()
        around = dict(zip((*atoms[atom].within, atom), self._unit, strict=True))
        for name, places in inner.items():
            units = (*(around.get(outer, slice(None)) for outer in atoms[name].within), slice(None))
            self._span.require(self._entries(places, name, units))

    def __bool__(self) -> bool:
        return bool(self._span.rows)

    def remainder(self, places: Sequence[Place]) -> int:
        """Zero where nested atoms turn the same; equal for two ways between which they make the difference."""
        return self._span.reduce(self._entries(places, self._atom, self._unit))

    @on_host
    def _entries(self, places: Sequence[Place], atom: str, unit: tuple[Any, ...]) -> int:
        """The entries that are turned, as the bits of one number: all sites one after the other."""
        flat = []
        for site in self._sites:
            turned = torch.zeros(self._analysis.symmetry.shapes[site], dtype=torch.bool)
            for place in (p for p in places if p.site == site):
                turned = turned ^ self._analysis.turned(place, atom, unit)
            flat.append(turned)
        return bits_of(flat)
