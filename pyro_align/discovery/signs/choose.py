"""From the ways in which units may change sign to one sign a unit, as axis terms say it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch

from pyro_align.axes import leaves
from pyro_align.discovery.signs.analysis import Place, SignAnalysis, marked
from pyro_align.discovery.signs.parity import Equations, on_host
from pyro_align.symmetry.group import Symmetry

EXHAUSTIVE = 10  # dimensions of a space of solutions up to which all are compared


def signed(analysis: SignAnalysis) -> Symmetry:
    """The symmetry with its odd atoms.

    An atom carries one sign a unit. Where a unit may change sign in several ways (two layers with a gain and no
    nonlinearity between them), the one that turns most entries is taken; of equal ones, that of the earlier sites. A
    sign of an outer atom that the atoms nested in it make already is left out.
    """
    symmetry = analysis.symmetry
    odd: dict[str, list[Place]] = {}
    for name in sorted(symmetry.atoms, key=lambda n: -len(symmetry.atoms[n].within)):  # inner atoms first
        odd[name] = _largest(analysis, name, _News(analysis, name, odd))
    turned = {place for places in odd.values() for place in places}
    sites = {
        site: tuple(
            marked(term, [Place(site, axis, k) in turned for k, _ in enumerate(leaves(term))])
            for axis, term in enumerate(terms)
        )
        for site, terms in symmetry.sites.items()
    }
    return Symmetry(sites, scope=symmetry.scope, opaque=symmetry.opaque, certificate=symmetry.certificate)


def _largest(analysis: SignAnalysis, atom: str, news: _News) -> list[Place]:
    """The places of the solution that turns most entries; none where there is no new one."""
    places, basis = analysis.places[atom], analysis.solutions(atom)
    weights = [analysis.entries(place, atom) for place in places]

    def chosen(flips: int) -> list[Place]:
        return [place for i, place in enumerate(places) if flips >> i & 1]

    def rank(flips: int):
        bits = [flips >> i & 1 for i in range(len(places))]
        return sum(w for w, bit in zip(weights, bits, strict=True) if bit), bits

    options = _span(basis) if len(basis) <= EXHAUSTIVE else [*_climb(basis, rank), *basis]
    lightest: dict[int, int] = {}  # of those that differ by what nested atoms make, the one that turns fewest entries
    for flips in sorted(options, key=rank, reverse=True):
        lightest[news.left(chosen(flips)) if news else flips] = flips
    lightest.pop(0, None)
    return chosen(max(lightest.values(), key=rank, default=0))


def _span(basis: list[int]) -> list[int]:
    found = [0]
    for vector in basis:
        found += [vector ^ other for other in found]
    return found


def _climb(basis: list[int], rank) -> list[int]:
    """Solutions better and better by one or two basis vectors at a time."""
    steps = [*basis, *(a ^ b for a, b in itertools.combinations(basis, 2))]
    found = [max(basis, key=rank)]
    while rank(best := max((found[-1] ^ step for step in steps), key=rank)) > rank(found[-1]):
        found.append(best)
    return found


class _News:
    """What a way for a unit to change sign turns beyond what the signs of atoms nested in it turn; true if any do."""

    def __init__(self, analysis: SignAnalysis, atom: str, odd: dict[str, list[Place]]):
        self.analysis, self.atom, self.unit = analysis, atom, analysis.units[atom][0]
        symmetry = analysis.symmetry
        self.sites = {p.site for p in analysis.places[atom]}
        inner = {name: places for name, places in odd.items() if places and atom in symmetry.atoms[name].within}
        self.sites = sorted(self.sites | {p.site for places in inner.values() for p in places})
        self.known = Equations()
        around = dict(zip((*symmetry.atoms[atom].within, atom), self.unit, strict=True))
        for name, places in inner.items():
            unit = (*(around.get(outer, slice(None)) for outer in symmetry.atoms[name].within), slice(None))
            self.known.require(self._pattern(places, name, unit))

    def __bool__(self) -> bool:
        return bool(self.known.rows)

    def left(self, places: Sequence[Place]) -> int:
        """Zero where nested atoms turn the same; equal for two ways between which they make the difference."""
        return self.known.reduce(self._pattern(places, self.atom, self.unit))

    @on_host
    def _pattern(self, places: Sequence[Place], atom: str, unit: tuple) -> int:
        """The entries that are turned, as the bits of one number: all sites one after the other."""
        flat = []
        for site in self.sites:
            turned = torch.zeros(self.analysis.symmetry.shapes[site], dtype=torch.bool)
            for place in (p for p in places if p.site == site):
                turned = turned ^ self.analysis.turned(place, atom, unit)
            flat.append(turned.flatten())
        return int.from_bytes(np.packbits(torch.cat(flat).numpy()).tobytes(), "big")
