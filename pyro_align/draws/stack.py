"""Draws as one stack: the symmetry that relabels every member by itself, and what is done to all members at once.

The draw is treated as one more axis of every site: a fixed atom in which all free atoms are nested, hence relabeled
anew for each of its indices. What :mod:`pyro_align.matching` does for nested atoms, one batched product per gain
matrix, then does it for draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pyro_align.axes import Atom, map_atoms
from pyro_align.symmetry.element import Permutation
from pyro_align.symmetry.group import Symmetry
from pyro_align.symmetry.terms import carrying

DRAW = "(draw)"

Features = Mapping[str, Sequence[Tensor]]


def restricted(symmetry: Symmetry) -> Symmetry:
    """The symmetry without the sites that no relabeling changes."""
    kept = carrying(symmetry.sites)
    return replace(symmetry, sites={k: v for k, v in symmetry.sites.items() if k in kept})


def per_unit(symmetry: Symmetry, units: int) -> Symmetry:
    """The symmetry of a stack ``(units, *site_shape)`` whose members are relabeled one by one."""
    outer = Atom(DRAW, units, fixed=True)

    def nest(atom: Atom) -> Atom:
        return replace(atom, within=(DRAW, *atom.within)) if atom.name in symmetry.atoms else atom

    return Symmetry({s: (outer, *(map_atoms(t, nest) for t in terms)) for s, terms in symmetry.sites.items()})


def unit_objective(p: Permutation, fixed: Features, moving: Features, odd: Sequence[bool]) -> Tensor:
    """Sum over sites and features of ``<fixed, p moving>`` for every member, ``(units,)`` in float64."""
    total = next(iter(moving.values()))[0].new_zeros((), dtype=torch.float64)
    for site in moving:
        for f, m, o in zip(fixed[site], moving[site], odd, strict=True):
            total = total + p.apply_site(site, m, signs=o).flatten(1).double() @ f.flatten().double()
    return total


def everywhere(stack: Symmetry, element: Permutation) -> Permutation:
    """One relabeling for all members."""
    units = stack.outer_shape(next(iter(stack.atoms)))[0]
    return stack.permutation(
        {k: v.expand(units, *v.shape) for k, v in element.indices.items()},
        {k: v.expand(units, *v.shape) for k, v in element.signs.items()},
    )


def choose(p: Permutation, q: Permutation, where: Tensor) -> Permutation:
    """For each member of the stack q where the mask ``(units,)`` holds, else p."""
    if not bool(where.any()):
        return p
    if bool(where.all()):
        return q

    def pick(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(where.reshape(-1, *(1,) * (a.dim() - 1)), b, a)

    indices = {k: pick(v, q.indices[k]) for k, v in p.indices.items()}
    signs = {
        k: pick(
            p.signs.get(k, torch.ones_like(indices[k], dtype=torch.int8)),
            q.signs.get(k, torch.ones_like(indices[k], dtype=torch.int8)),
        )
        for k in {*p.signs, *q.signs}
    }
    return p.symmetry.permutation(indices, signs)


def transpositions(index: Tensor) -> Tensor:
    """The least number of swaps that make each permutation ``(*batch, n)``: its size less its number of cycles.

    It is the count of Xiao et al. (2023), ``(*batch,)``.
    """
    index = index.long()
    n = index.shape[-1]
    least = torch.arange(n, device=index.device).expand(index.shape)
    jump = index
    for _ in range(max(1, n - 1).bit_length()):  # each round doubles how far along the cycle the minimum has looked
        least = torch.minimum(least, least.gather(-1, jump))
        jump = jump.gather(-1, jump)
    return n - (least == torch.arange(n, device=index.device)).sum(-1)


# -- what was found ----------------------------------------------------------------------------------------------------


@dataclass
class Labels:
    """The relabeling of every unit, kept in small integers.

    Attributes:
        indices: Atom -> ``(units, *outer sizes, size)``, new -> old, in the smallest integer type that holds the size.
        signs: Signed atom -> int8 ``(units, *outer sizes, size)``.
        rotations: Rotated atom -> float64 ``(units, *outer sizes, size, size)``.
    """

    indices: dict[str, Tensor]
    signs: dict[str, Tensor]
    rotations: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def identity(cls, symmetry: Symmetry, units: int) -> Labels:
        """Labels as they are."""
        indices, signs, rotations = {}, {}, {}
        for name, atom in symmetry.atoms.items():
            shape = (units, *symmetry.outer_shape(name), atom.size)
            if atom.rotates:
                rotations[name] = torch.eye(atom.size, dtype=torch.float64, device="cpu").repeat(*shape[:-1], 1, 1)
                continue
            small = torch.int8 if atom.size <= 127 else torch.int16 if atom.size <= 32767 else torch.int32
            indices[name] = torch.arange(atom.size, dtype=small, device="cpu").expand(shape).clone()
            if name in symmetry.signed:
                signs[name] = torch.ones(shape, dtype=torch.int8, device="cpu")
        return cls(indices, signs, rotations)

    def permutation(self, stack: Symmetry, units: slice) -> Permutation:
        """The relabeling of some units as one element of their stack's group."""
        return stack.permutation(
            {k: v[units].long() for k, v in self.indices.items() if k in stack.atoms},
            {k: v[units] for k, v in self.signs.items() if k in stack.signed},
            {k: v[units] for k, v in self.rotations.items() if k in stack.rotated},
        )

    def put(self, units: slice, p: Permutation, mask: Tensor) -> int:
        """Takes over a relabeling where ``mask`` holds.

        Returns:
            Number of units whose relabeling changed.
        """
        changed = torch.zeros(len(mask), dtype=torch.bool, device="cpu")
        for name, index in p.indices.items():
            tables = [(self.indices[name], index)]
            if name in self.signs:
                tables.append((self.signs[name], p.signs.get(name, torch.ones_like(index))))
            for table, new in tables:
                here = mask.reshape(-1, *(1,) * (new.dim() - 1))
                fresh = torch.where(here, new.to(table.dtype), table[units])
                changed |= (fresh != table[units]).flatten(1).any(1)
                table[units] = fresh
        return int(changed.sum())
