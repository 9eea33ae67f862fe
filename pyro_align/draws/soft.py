"""Relabelings of a stack of draws found by annealing: every atom is matched softly while the others are soft as well.

In turn each atom gets the doubly stochastic matrix ``X = Sinkhorn(gain / T)``, one for each draw, where its gain is the
expectation over the other atoms' present matrices, while the temperature T falls (graduated assignment: Gold &
Rangarajan 1996; softassign as a mean field: Yuille & Kosowsky 1994). All atoms begin uniform, so that none is settled
before the others have spoken. Temperatures are in standard deviations of a draw's own gains. Signed units are soft in
their sign too: among the pairs (partner, sign), ``X`` sums over both signs, and ``X tanh(odd / T)`` is the expected
signed partner. Nested atoms, and those that hold others, keep their labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import one_hot, softplus

from pyro_align.draws.stack import Features
from pyro_align.symmetry.blocks import Dim
from pyro_align.symmetry.element import Permutation
from pyro_align.symmetry.group import Symmetry

# On two-layer tanh networks as in tests/test_draws_search.py, 500 draws with noise of half the weights' standard
# deviation: 0.2% of the draws end farther from the reference than planted after 16 rounds from 1.5 or 2.5 standard
# deviations, as many after 32 rounds, 0.6% from 1.0; an anchored pass without annealing leaves a third.
WARMEST, _COLDEST, _ROUNDS = 1.5, 0.1, 16
_NORMALIZATIONS = 10

Soft = Mapping[str, tuple[Tensor, Tensor]]  # atom -> matrices (units, new, old) for even and for odd axes


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

    def uniform(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Every partner, and either sign, equally likely."""
        like, out = self.pieces[0].moving, {}
        for name in softening(self.symmetry):
            n = self.symmetry.atoms[name].size
            even = like.new_full((self.units, n, n), 1 / n)
            out[name] = (even, torch.zeros_like(even) if name in self.symmetry.signed else even)
        return out

    def hard(self, p: Permutation) -> dict[str, tuple[Tensor, Tensor]]:
        """The matrices of a relabeling of the stack."""
        like, out = self.pieces[0].moving, {}
        for name in softening(self.symmetry):
            even = one_hot(p.indices[name], self.symmetry.atoms[name].size).to(like.dtype)
            sign = p.signs.get(name)
            out[name] = (even, even if sign is None else even * sign.unsqueeze(-1))
        return out

    def gain(self, name: str, soft: Soft) -> tuple[Tensor | None, Tensor | None]:
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
    names, indices, signs = list(soft), {}, {}
    for step in range(_ROUNDS):
        temperature = warmest * (_COLDEST / warmest) ** (step / (_ROUNDS - 2))
        for k in torch.randperm(len(names), generator=generator, device="cpu").tolist():
            name = names[k]
            even, odd = gains.gain(name, soft)
            if step < _ROUNDS - 1:
                soft[name] = _soften(even, odd, temperature)
                continue
            total = total_gain(even, odd)
            found = [linear_sum_assignment(g, maximize=True)[1] for g in total.double().numpy()]
            index = torch.stack([torch.from_numpy(f) for f in found])
            matrix = one_hot(index, index.shape[-1]).to(total.dtype)
            indices[name], soft[name] = index, (matrix, matrix)
            if odd is not None:
                sign = torch.where(odd.gather(2, index.unsqueeze(-1)).squeeze(-1) < 0, -1, 1)
                signs[name], soft[name] = sign, (matrix, matrix * sign.unsqueeze(-1))
    return stack.permutation(indices, signs)


def total_gain(even: Tensor | None, odd: Tensor | None) -> Tensor:
    """The gain of each pair under its better sign."""
    if odd is None or even is None:
        return odd.abs() if even is None else even
    return even + odd.abs()


def _soften(even: Tensor | None, odd: Tensor | None, temperature: float) -> tuple[Tensor, Tensor]:
    total = total_gain(even, odd)
    centered = total - total.mean(1, keepdim=True) - total.mean(2, keepdim=True) + total.mean((1, 2), keepdim=True)
    scale = temperature * centered.square().mean((1, 2), keepdim=True).sqrt()
    scale = scale.clamp_min(1e-12 * total.abs().amax((1, 2), keepdim=True) + torch.finfo(total.dtype).tiny)
    logits = total / scale
    lean = None if odd is None else odd / scale
    if lean is not None:
        logits = logits + softplus(-2 * lean.abs())  # both signs of each pair
    for _ in range(_NORMALIZATIONS):
        logits = logits - logits.logsumexp(1, keepdim=True)
        logits = logits - logits.logsumexp(2, keepdim=True)
    matrix = logits.exp()
    return matrix, matrix if lean is None else matrix * lean.tanh()
