"""Rotations: which atoms may be rotated as a whole, not only reordered.

An atom whose units meet only linear maps, contractions, sums of squares and spherical priors is a space without
preferred axes: the orthogonal group O(n) acts on it. Where means are subtracted, or numbers added, the rotations are
those that leave the vector of ones as it is, O(n - 1).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from pyro_align.axes import Atom, map_atoms
from pyro_align.discovery.axes.assemble import name_atoms
from pyro_align.discovery.axes.inference import Inference
from pyro_align.discovery.rotations import rules  # noqa: F401
from pyro_align.discovery.rotations.domain import RotationDomain
from pyro_align.discovery.walk import walk
from pyro_align.symmetry.group import Symmetry


def add_rotations(symmetry: Symmetry, inference: Inference, *, real: Collection[str]) -> Symmetry:
    """The symmetry with the atoms that may be rotated marked as such, wherever ``real`` sites carry them."""
    atoms, _ = name_atoms(inference)
    around = {name for atom in symmetry.atoms.values() for name in atom.within}
    candidates = {var: atom.name for var, atom in atoms.items() if atom.name in symmetry.atoms.keys() - around}
    if not candidates:
        return symmetry
    domain = RotationDomain(inference, candidates, frozenset(real))
    walk(inference.traced, domain, inference.constants)
    kinds = {name: domain.kind(var) for var, name in candidates.items() if var not in domain.broken}

    def marked(atom: Atom) -> Atom:
        kind = kinds.get(atom.name, atom.kind)
        return replace(atom, kind=kind) if kind == "rotation" or atom.size > 2 else atom  # two units only change places

    sites = {site: tuple(map_atoms(term, marked) for term in terms) for site, terms in symmetry.sites.items()}
    return replace(symmetry, sites=sites)
