"""One assignment per draw, for all draws at once.

The draw is treated as one more axis of every site: a fixed atom in which all free atoms are nested, hence relabeled
anew for each of its indices. What :mod:`pyro_align.matching` does for nested atoms, one batched product per gain
matrix, then does it for draws.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pyro_align.axes import Atom, map_atoms
from pyro_align.matching import elements, match
from pyro_align.symmetry.element import Permutation
from pyro_align.symmetry.group import Symmetry
from pyro_align.symmetry.terms import carrying

DRAW = "(draw)"
SMALL_GROUP = 120  # groups up to this order are searched exhaustively where one assignment is not the answer

Features = Mapping[str, Sequence[Tensor]]


def restricted(symmetry: Symmetry) -> Symmetry:
    """The symmetry without the sites that no relabeling changes."""
    kept = carrying(symmetry.sites)
    return replace(symmetry, sites={k: v for k, v in symmetry.sites.items() if k in kept})


def per_unit(symmetry: Symmetry, units: int) -> Symmetry:
    """The symmetry of a stack ``(units, *site_shape)`` whose members are relabeled one by one.

    Example:
        >>> symmetry = Symmetry.from_axes({"w": ("unit",)}, shapes={"w": (3,)})
        >>> per_unit(symmetry, 5).outer_shape("unit")
        (5,)
    """
    outer = Atom(DRAW, units, fixed=True)

    def nest(atom: Atom) -> Atom:
        return replace(atom, within=(DRAW, *atom.within)) if atom.name in symmetry.atoms else atom

    return Symmetry({s: (outer, *(map_atoms(t, nest) for t in terms)) for s, terms in symmetry.sites.items()})


def is_linear(symmetry: Symmetry) -> bool:
    """Whether one assignment finds the best relabeling: a single atom that stands at most once in every block."""
    if len(symmetry.atoms) != 1:
        return False
    return all_linear(symmetry)


@dataclass(frozen=True)
class UnitMatcher:
    """Finds, for every member of a stack, the relabeling that makes it most like a reference.

    Attributes:
        symmetry: The group of one member, with known sizes and without idle sites.
        odd: Which features change sign with signed units: one bool per feature.
        restarts: Searches from random relabelings beside the one from the anchored start.
        seed: Seed of the order of sweeps and of the restarts.
    """

    symmetry: Symmetry
    odd: tuple[bool, ...]
    restarts: int = 0
    seed: int = 0
    _stacks: dict[int, Symmetry] = field(default_factory=dict, repr=False, compare=False)

    def stack(self, units: int) -> Symmetry:
        """The symmetry of a stack."""
        if units not in self._stacks:
            self._stacks[units] = per_unit(self.symmetry, units)
        return self._stacks[units]

    def __call__(self, fixed: Features, moving: Features, init: Permutation | None = None) -> Permutation:
        """The best relabeling found for each member, never worse than ``init`` or the identity.

        Args:
            fixed: Site -> features of the reference, ``site_shape`` each.
            moving: Site -> as many features of the members, ``(units, *site_shape)`` each.
            init: A relabeling of the stack to improve on.
        """
        units = next(iter(moving.values()))[0].shape[0]
        stack = self.stack(units)
        spread = {
            s: tuple(f.to(m.dtype).expand(m.shape) for f, m in zip(fixed[s], moving[s], strict=True)) for s in moving
        }
        odd = self.odd if stack.signed else None
        best: Permutation | None = None
        score: Tensor | None = None
        for candidate in self._candidates(stack, spread, moving, odd, init):
            value = unit_objective(candidate, spread, moving, self.odd)
            if best is None or score is None:
                best, score = candidate, value
                continue
            better = value > score + 1e-9 * score.abs()
            best, score = choose(best, candidate, better), torch.where(better, value, score)
        return best

    def _candidates(self, stack: Symmetry, fixed, moving, odd, init) -> Iterator[Permutation]:
        yield stack.identity() if init is None else init
        if is_linear(self.symmetry):
            yield match(stack, fixed, moving, odd=odd, seed=self.seed).permutation
            return
        if self.symmetry.log_order <= math.log(SMALL_GROUP) + 1e-9:
            yield from (everywhere(stack, element) for element in elements(self.symmetry))
            return
        fresh = init is None or init.is_identity
        # the anchored start first; later passes only improve on what it found
        yield match(stack, fixed, moving, odd=odd, seed=self.seed, init=None if fresh else init).permutation
        if not all_linear(self.symmetry):  # a move is accepted for the stack as a whole: what it lost is found here
            yield match(stack, fixed, moving, odd=odd, seed=self.seed, max_sweeps=0).permutation
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.restarts if fresh else 0):
            start = stack.random(generator)
            yield match(stack, fixed, moving, odd=odd, seed=self.seed, init=start).permutation


def all_linear(symmetry: Symmetry) -> bool:
    """Whether no block carries an atom twice, so that every move of one atom is solved by one assignment."""
    return all(
        len(block.positions(name)) <= 1
        for site in symmetry.sites
        for block in symmetry.blocks(site)
        for name in block.names
    )


def unit_objective(p: Permutation, fixed: Features, moving: Features, odd: Sequence[bool]) -> Tensor:
    """Sum over sites and features of ``<fixed, p moving>`` for every member, ``(units,)`` in float64."""
    total = next(iter(moving.values()))[0].new_zeros((), dtype=torch.float64)
    for site in moving:
        for f, m, o in zip(fixed[site], moving[site], odd, strict=True):
            total = total + (f * p.apply_site(site, m, signs=o)).flatten(1).double().sum(-1)
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
    """The least number of swaps that make each permutation: its size less its number of cycles (Xiao et al. 2023).

    Args:
        index: int64 ``(*batch, n)``.

    Returns:
        int64 ``(*batch,)``.

    Example:
        >>> transpositions(torch.tensor([[0, 1, 2], [1, 0, 2], [1, 2, 0]]))
        tensor([0, 1, 2])
    """
    index = index.long()
    n = index.shape[-1]
    least = torch.arange(n, device=index.device).expand(index.shape)
    jump = index
    for _ in range(max(1, n - 1).bit_length()):  # each round doubles how far along the cycle the minimum has looked
        least = torch.minimum(least, least.gather(-1, jump))
        jump = jump.gather(-1, jump)
    return n - (least == torch.arange(n, device=index.device)).sum(-1)
