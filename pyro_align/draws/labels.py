"""The relabelings of many units, kept in small integers."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyro_align.symmetry.element import Permutation
from pyro_align.symmetry.group import Symmetry


@dataclass
class Labels:
    """The relabeling of every unit.

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
