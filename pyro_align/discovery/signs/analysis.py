"""Which axes of which sites change sign with a unit."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyro_align.axes import Axis, leaves, map_atoms
from pyro_align.discovery.axes.inference import Inference
from pyro_align.discovery.signs.domain import SignDomain
from pyro_align.discovery.signs.parity import EVEN, Equations, Parities, on_host
from pyro_align.discovery.walk import walk
from pyro_align.symmetry.action import Tables, act
from pyro_align.symmetry.blocks import site_blocks
from pyro_align.symmetry.group import Symmetry


@dataclass(frozen=True)
class Place:
    """One occurrence of an atom: a leaf of an axis of a site.

    Attributes:
        site: Site name.
        axis: Which axis.
        leaf: Which leaf of the axis's term, from the left.
    """

    site: str
    axis: int
    leaf: int


class SignAnalysis:
    """The flips of one unit of every atom, one for each of its places, and what the graph requires of them.

    Relabelings are symmetries already, so what holds for one unit of an atom holds for all of them. A unit of a nested
    atom is one for each index of the outer atoms; outer atoms that keep their order may treat it differently.

    Attributes:
        symmetry: The relabelings.
        places: Free atom -> its places at sites that may change sign.
        units: Free atom -> the units that are turned, each an index ``(*outer, 0)``.
        entries: How many entries of a site one unit of an atom turns at a place.
    """

    def __init__(self, inference: Inference, symmetry: Symmetry, real: Sequence[str]):
        self.symmetry = symmetry
        self.places: dict[str, list[Place]] = {name: [] for name in symmetry.atoms}
        for site in (s for s in symmetry.sites if s in set(real)):
            for axis, term in enumerate(symmetry.sites[site]):
                for k, leaf in enumerate(leaves(term)):
                    if leaf.name in self.places:
                        self.places[leaf.name].append(Place(site, axis, k))
        self.units: dict[str, list[tuple[int, ...]]] = {name: list(self._units_of(name)) for name in symmetry.atoms}
        turns = (
            (name, unit, place) for name in self.places for unit in self.units[name] for place in self.places[name]
        )
        self._flips = {turn: bit for bit, turn in enumerate(turns)}
        self._parities = Parities()
        self.entries: dict[tuple[Place, str], int] = {}
        self._require(inference)

    @property
    def equations(self) -> Equations:
        """What the graph requires of all flips."""
        return self._parities.equations

    def solutions(self, atom: str) -> list[int]:
        """A basis of the ways in which a unit of an atom may change sign: one bit for each of its ``places``."""
        alone = Equations()
        for unit in self.units[atom]:
            bits = [self._flips[atom, unit, place] for place in self.places[atom]]
            for row in self.equations.rows.values():  # the flips of all other units are none
                alone.require(sum(1 << i for i, bit in enumerate(bits) if row >> bit & 1))
        return alone.solutions(len(self.places[atom]))

    @on_host
    def turned(self, place: Place, atom: str, unit: tuple[Any, ...]) -> Tensor:
        """Which entries of a site a unit (or, by slices, several) turns at one place."""
        terms = [
            marked(term, [place == Place(place.site, axis, k) for k, _ in enumerate(leaves(term))])
            for axis, term in enumerate(self.symmetry.sites[place.site])
        ]
        signs = torch.ones(*self.symmetry.outer_shape(atom), self.symmetry.atoms[atom].size, dtype=torch.int8)
        signs[unit] = -1
        ones = torch.ones(self.symmetry.shapes[place.site], dtype=torch.int8)
        return act(site_blocks(place.site, terms), ones, Tables(signs={atom: signs})) < 0

    def _units_of(self, atom: str) -> Iterator[tuple[int, ...]]:
        """One unit for each choice of the outer atoms that keep their order."""
        outer = [self.symmetry._all_atoms[o] for o in self.symmetry.atoms[atom].within]
        yield from ((*o, 0) for o in itertools.product(*(range(a.size if a.fixed else 1) for a in outer)))

    @on_host
    def _require(self, inference: Inference) -> None:
        walk(inference.traced, SignDomain(self._parities, self._ids_of_site), inference.constants)

    def _ids_of_site(self, site: str) -> Tensor:
        ids = torch.full((), EVEN, dtype=torch.int32).expand(self.symmetry.shapes[site])
        for (atom, unit, place), bit in self._flips.items():
            if place.site == site:
                turned = self.turned(place, atom, unit)
                self.entries.setdefault((place, atom), int(turned.sum()))
                flip = torch.where(turned, self._parities.number(1 << bit), EVEN)
                ids = self._parities.multiply(ids, flip.to(torch.int32))
        return ids


def marked(term: Axis, odd: Sequence[bool]) -> Axis:
    """The term with its leaves made odd or not, from left to right."""
    flags = iter(odd)
    return map_atoms(term, lambda atom: replace(atom, kind="signed" if next(flags) else "permutation"))
