"""The gains of a stack of draws, for annealing; nested atoms, and those that hold others, keep their labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_align.draws.stack import Features
from pyro_align.matching.soft import Pair, Parts, anneal, hard, uniform
from pyro_align.symmetry.blocks import Dim
from pyro_align.symmetry.element import Permutation
from pyro_align.symmetry.group import Symmetry

# On two-layer tanh networks as in tests/test_draws_search.py, 500 draws with noise of half the weights' standard
# deviation: 0.2% of the draws end farther from the reference than planted after 16 rounds from 1.5 or 2.5 standard
# deviations, as many after 32 rounds, 0.6% from 1.0; an anchored pass without annealing leaves a third.
WARMEST, _ROUNDS = 1.5, 16


def softening(symmetry: Symmetry) -> tuple[str, ...]:
    """The atoms that can be matched softly: nothing is nested in them, nor they in anything that is free."""
    free = symmetry.atoms
    holding = {outer for atom in free.values() for outer in atom.within}
    return tuple(n for n, atom in free.items() if n not in holding and not set(atom.within) & set(free))


@dataclass(frozen=True)
class Piece:
    """One block of a site: features of the reference ``dims``, and of the draws ``(units, *dims)``."""

    dims: tuple[Dim, ...]
    odd: bool
    fixed: Tensor
    moving: Tensor


@dataclass(frozen=True)
class StackGains:
    """The gains of a stack of draws, each with a reference of its own or a common one."""

    symmetry: Symmetry
    pieces: tuple[Piece, ...]
    units: int

    @classmethod
    def of(cls, symmetry: Symmetry, fixed: Features, moving: Features, odd: Sequence[bool]) -> StackGains:
        """Cuts the sites into blocks whose every dimension is one atom.

        Args:
            symmetry: The group of one draw.
            fixed: Site -> features of the reference, ``site_shape`` each.
            moving: Site -> as many features of the draws, ``(units, *site_shape)`` each.
            odd: Which features change sign with signed units.
        """
        pieces = [
            Piece(block.dims, o, block.view(f.to(m.dtype)), torch.vmap(block.view)(m))
            for site in symmetry.sites
            for block in symmetry.blocks(site)
            if block.names
            for f, m, o in zip(fixed[site], moving[site], odd, strict=True)
        ]
        return cls(symmetry, tuple(pieces), len(next(iter(moving.values()))[0]))

    def uniform(self) -> dict[str, Pair]:
        """Every partner, and either sign, equally likely."""
        atoms, signed, like = self.symmetry.atoms, self.symmetry.signed, self.pieces[0].moving
        return {n: uniform(self.units, atoms[n].size, n in signed, like) for n in softening(self.symmetry)}

    def hard(self, p: Permutation) -> dict[str, Pair]:
        """The matrices of a relabeling of the stack."""
        like = self.pieces[0].moving
        return {n: hard(p.indices[n], p.signs.get(n), like) for n in softening(self.symmetry)}

    def gain(self, name: str, soft: Mapping[str, Pair]) -> Parts:
        """What each pair (new, old) of an atom's units adds to the objective, by even axes and by odd ones.

        Where an atom stands on two axes of one site, the sum of either with the other held: the objective's derivative.
        """
        totals: list[Tensor | None] = [None, None]
        for piece in self.pieces:
            for held in (i for i, d in enumerate(piece.dims) if d.name == name):
                value = piece.moving
                for i, dim in enumerate(piece.dims):
                    if i != held and dim.name in soft:
                        matrix = soft[dim.name][dim.odd and piece.odd]
                        moved = value.movedim(i + 1, 1)
                        value = (
                            (matrix @ moved.reshape(self.units, dim.size, -1)).reshape(moved.shape).movedim(1, i + 1)
                        )
                rows = piece.fixed.movedim(held, 0).reshape(piece.dims[held].size, -1)
                columns = value.movedim(held + 1, 1).reshape(self.units, piece.dims[held].size, -1)
                kind = piece.dims[held].odd and piece.odd
                part = rows @ columns.transpose(1, 2)
                totals[kind] = part if totals[kind] is None else totals[kind] + part
        return totals[0], totals[1]


def annealed(gains: StackGains, stack: Symmetry, warmest: float, generator: torch.Generator) -> Permutation:
    """A relabeling of each draw; atoms that cannot be soft keep their labels.

    Args:
        gains: Those of the draws.
        stack: The symmetry of the stack.
        warmest: The first temperature, in standard deviations of a draw's gains.
        generator: Draws the order of the atoms.
    """
    soft = gains.uniform()
    first = torch.tensor([warmest], dtype=gains.pieces[0].moving.dtype, device="cpu")
    return stack.permutation(*anneal(gains.gain, soft, first, _ROUNDS, generator))
