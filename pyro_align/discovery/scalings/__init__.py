"""Scalings: which units may be made larger before a homogeneous function and smaller behind it.

Once the relabelings are known, one unit of every atom grows by an unknown power at every axis that carries it. The
graph says how degrees pass from inputs to outputs, and which must agree: the sign analysis, over the rationals.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from fractions import Fraction

import torch
from torch import Tensor

from pyro_align.axes import coordinates
from pyro_align.discovery.axes.inference import Inference
from pyro_align.discovery.registry import Registry, scale_rule
from pyro_align.discovery.scalings import rules  # noqa: F401
from pyro_align.discovery.scalings.degrees import Degrees, RationalEquations
from pyro_align.discovery.signs.domain import SignDomain
from pyro_align.discovery.signs.parity import EVEN, on_host
from pyro_align.discovery.walk import walk
from pyro_align.symmetry.group import Symmetry
from pyro_align.symmetry.scalings import Scaling


class ScaleDomain(SignDomain):
    """Degrees of tensors, from those of the sites; outputs must not grow."""

    rules: Registry = scale_rule


@on_host
def add_scalings(symmetry: Symmetry, inference: Inference, *, scalable: Collection[str]) -> Symmetry:
    """The symmetry with the positive scalings of its units, nested ones left out; ``scalable`` sites may be scaled."""
    plain = [name for name, atom in symmetry.atoms.items() if not atom.within and atom.size > 1]
    turns = [
        (name, site, axis)
        for name in plain
        for site, axis in symmetry.carriers[name]
        if site in scalable and bool((coordinates(symmetry.sites[site][axis])[name] >= 0).any())
    ]
    degrees = Degrees()
    ids = {site: _ids(degrees, symmetry, site, turns) for site in symmetry.sites}
    walk(inference.traced, ScaleDomain(degrees, ids.__getitem__), inference.constants)
    found = []
    for name in plain:
        bits = [k for k, turn in enumerate(turns) if turn[0] == name]
        alone = RationalEquations()
        for row in degrees.equations.rows.values():  # the units of all other atoms stay
            alone.require(tuple((i, row[k]) for i, k in enumerate(bits) if k in row))
        for vector in alone.solutions(len(bits)):
            lead = next(v for v in vector if v)
            powers = [(turns[k][1], turns[k][2], float(v / abs(lead))) for k, v in zip(bits, vector, strict=True) if v]
            found.append(Scaling(name, tuple(powers)))
    return replace(symmetry, scalings=tuple(found))


def _ids(degrees: Degrees, symmetry: Symmetry, site: str, turns: list[tuple[str, str, int]]) -> Tensor:
    """The degrees of a site's entries: the first unit of each atom grows by an unknown of its own at every axis."""
    shape = symmetry.shapes[site]
    ids = torch.full((), EVEN, dtype=torch.int32).expand(shape)
    for bit, (name, where, axis) in enumerate(turns):
        if where == site:
            first = coordinates(symmetry.sites[site][axis])[name] == 0
            along = torch.where(first, degrees.number(((bit, Fraction(1)),)), EVEN).to(torch.int32)
            ids = degrees.multiply(ids, along.reshape([-1 if i == axis else 1 for i in range(len(shape))]))
    return ids
