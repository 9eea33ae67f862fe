"""The gains of a stack of draws, for annealing; nested atoms, and those that hold others, keep their labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_align.draws.stack import Features
from pyro_align.matching.gains import Gains
from pyro_align.matching.soft import Pair, anneal, hard, uniform
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
class StackGains:
    """The gains of a stack of draws with a common reference."""

    gains: Gains
    signed: frozenset[str]
    sizes: Mapping[str, int]
    like: Tensor
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
        views = (
            (block.dims, block.view(f.to(m.dtype)), torch.vmap(block.view)(m), o)
            for site in symmetry.sites
            for block in symmetry.blocks(site)
            if block.names
            for f, m, o in zip(fixed[site], moving[site], odd, strict=True)
        )
        sizes = {name: symmetry.atoms[name].size for name in softening(symmetry)}
        first = next(iter(moving.values()))[0]
        return cls(Gains.of(sizes, views), symmetry.signed, sizes, first.new_empty(()), len(first))

    def hard(self, p: Permutation) -> dict[str, Pair]:
        """The matrices of a relabeling of the stack."""
        return {name: hard(p.indices[name], p.signs.get(name), self.like) for name in self.sizes}

    def annealed(self, stack: Symmetry, warmest: float, generator: torch.Generator) -> Permutation:
        """A relabeling of each draw; atoms that cannot be soft keep their labels.

        Args:
            stack: The symmetry of the stack.
            warmest: The first temperature, in standard deviations of a draw's gains.
            generator: Draws the order of the atoms.
        """
        soft = {name: uniform(self.units, n, name in self.signed, self.like) for name, n in self.sizes.items()}
        return stack.permutation(
            *anneal(self.gains.expected, soft, self.like.new_tensor([warmest]), _ROUNDS, generator)
        )
