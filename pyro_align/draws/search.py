"""The search for the relabeling that brings each draw nearest to a reference, for all draws of a stack at once.

Where the group has one atom, on one axis of each site, an assignment settles a draw. Small groups are searched
exhaustively. Everywhere else the answer is the best of several local searches: coordinate ascent from an anchored
start, and from relabelings found by annealing. Draws whose units each have a partner that is nobody else's first choice
are left at the first; the others are searched a second time, and how many that improved tells how far the searches are
to be trusted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pyro_align.draws.soft import WARMEST, StackGains, softening
from pyro_align.draws.stack import Features, choose, everywhere, per_unit, unit_objective
from pyro_align.matching import elements, match
from pyro_align.matching.assignment import picked, swap_costs
from pyro_align.matching.soft import total_gain
from pyro_align.matching.starts import kick
from pyro_align.symmetry.element import Permutation
from pyro_align.symmetry.group import Symmetry

SMALL_GROUP = 120  # groups up to this order are searched exhaustively where one assignment is not the answer
_KICK = 0.3  # fraction of the units that a kick moves, and of the signs that it flips


def is_linear(symmetry: Symmetry) -> bool:
    """Whether one assignment finds the best relabeling: a single atom that stands at most once in every block."""
    return len(symmetry.atoms) <= 1 and all_linear(symmetry)


def all_linear(symmetry: Symmetry) -> bool:
    """Whether no block carries an atom twice, so that every move of one atom is solved by one assignment."""
    return all(
        len(block.positions(name)) <= 1
        for site in symmetry.sites
        for block in symmetry.blocks(site)
        for name in block.names
    )


def is_exhaustive(symmetry: Symmetry) -> bool:
    """Whether the best relabeling of a draw is found for certain."""
    return is_linear(symmetry) or symmetry.log_order <= math.log(SMALL_GROUP) + 1e-9


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        permutation: A relabeling of each member of the stack.
        improved: Which members a second search improved, ``(units,)`` bool.
    """

    permutation: Permutation
    improved: Tensor


@dataclass(frozen=True)
class UnitMatcher:
    """Finds, for every member of a stack, the relabeling that makes it most like a reference.

    Attributes:
        symmetry: The group of one member, with known sizes and without idle sites.
        odd: Which features change sign with signed units: one bool per feature.
        restarts: Searches of doubtful members beside the first two.
        seed: Seed of the order of sweeps and of the searches.
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

    def __call__(self, fixed: Features, moving: Features, init: Permutation | None = None) -> Found:
        """The best relabeling found for each member, never worse than ``init`` or the identity.

        Args:
            fixed: Site -> features of the reference, ``site_shape`` each.
            moving: Site -> as many features of the members, ``(units, *site_shape)`` each.
            init: A relabeling of the stack to improve on.
        """
        units = len(next(iter(moving.values()))[0])
        trial = Trial(self, self.stack(units), fixed, moving)
        trial.offer(trial.stack.identity() if init is None else init)
        none = torch.zeros(units, dtype=torch.bool, device="cpu")
        if is_linear(self.symmetry):
            trial.climb(None)
            return Found(trial.best, none)
        if is_exhaustive(self.symmetry):
            for element in elements(self.symmetry):
                trial.offer(everywhere(trial.stack, element))
            return Found(trial.best, none)
        fresh = init is None or init.is_identity
        trial.climb(None if fresh else init)
        if not all_linear(self.symmetry):  # a move is accepted for the stack as a whole: what it lost is found here
            trial.climb(None, max_sweeps=0)
        improved = self._search_on(trial, fixed, moving) if fresh else none
        return Found(trial.best, improved)

    def _search_on(self, trial: Trial, fixed: Features, moving: Features) -> Tensor:
        """Searches doubtful members again, and says which of them the second search improved.

        An optimum may be local although no unit wants another's partner, so those least like the reference are searched
        as well: a few at first, and twice as many each time as long as that improves any.
        """
        improved = torch.zeros(len(trial.score), dtype=torch.bool, device="cpu")
        generator = torch.Generator().manual_seed(self.seed)
        doubtful = trial.doubtful()
        if bool(doubtful.any()):
            rows = doubtful.nonzero().flatten()
            improved[rows] = self._again(trial, rows, fixed, moving, generator, 2 + self.restarts)
        parts = (f.flatten(1) for features in moving.values() for f in features)
        norms = torch.stack([torch.linalg.vector_norm(f, dim=1, dtype=torch.float64) for f in parts]).norm(dim=0)
        likeness = trial.score / norms.clamp_min(1e-300)
        others = (~doubtful).nonzero().flatten()
        order = others[likeness[others].argsort(stable=True)]
        at, count = 0, max(8, len(order) // 200)
        while at < len(order):
            rows = order[at : at + count]
            before = trial.score[rows]
            self._again(trial, rows, fixed, moving, generator, 1 + self.restarts)
            if not bool((trial.score[rows] > before).any()):
                break
            at, count = at + count, 2 * count
        return improved

    def _again(
        self, trial: Trial, rows: Tensor, fixed: Features, moving: Features, generator: torch.Generator, searches: int
    ) -> Tensor:
        """Searches some members again; says which of them the second of these searches improved."""
        part = Trial(self, self.stack(len(rows)), fixed, {k: tuple(f[rows] for f in v) for k, v in moving.items()})
        tables = (trial.best.indices, trial.best.signs)
        part.offer(part.stack.permutation(*({k: v[rows] for k, v in t.items()} for t in tables)))
        found = [part.climb(part.start(k, generator)) for k in range(searches)]
        trial.best, trial.score = _put(trial.best, part.best, rows), trial.score.index_copy(0, rows, part.score)
        return found[1] if searches > 1 else torch.zeros_like(found[0])


@dataclass
class Trial:
    """The searches of one stack, and the best of them for each member."""

    matcher: UnitMatcher
    stack: Symmetry
    fixed: Features
    moving: Features
    best: Permutation | None = None
    score: Tensor | None = None

    @cached_property
    def gains(self) -> StackGains:
        """The gains of the members as they came."""
        return StackGains.of(self.matcher.symmetry, self.fixed, self.moving, self.matcher.odd)

    def offer(self, candidate: Permutation) -> Tensor:
        """Takes a relabeling over where it is better; says where it was, ``(units,)`` bool."""
        value = unit_objective(candidate, self.fixed, self.moving, self.matcher.odd)
        if self.best is None or self.score is None:
            self.best, self.score = candidate, value
            return torch.ones_like(value, dtype=torch.bool)
        better = value > self.score + 1e-9 * self.score.abs()
        self.best, self.score = choose(self.best, candidate, better), torch.where(better, value, self.score)
        return better

    def climb(self, init: Permutation | None, **options: Any) -> Tensor:
        """Coordinate ascent from a relabeling, or from an anchored start; says where it is better than all before."""
        odd = self.matcher.odd if self.stack.signed else None
        spread = {
            s: tuple(f.to(m.dtype).expand(m.shape) for f, m in zip(self.fixed[s], v, strict=True))
            for s, v in self.moving.items()
        }
        found = match(self.stack, spread, self.moving, odd=odd, seed=self.matcher.seed, init=init, **options)
        if found.status == "interrupted":  # of a stack, half a search is no answer
            raise KeyboardInterrupt
        return self.offer(found.permutation)

    def start(self, k: int, generator: torch.Generator) -> Permutation:
        """Where the k-th search begins: annealed relabelings and kicks of the best so far by turns."""
        names = softening(self.matcher.symmetry)
        if not names or k % 4 == 3:
            return kicked(self.best, _KICK, generator)
        warmest = WARMEST if k == 0 else WARMEST * (0.5 + float(torch.rand((), generator=generator)))
        if len(names) == len(self.matcher.symmetry.atoms):
            return self.gains.annealed(self.stack, warmest, generator)
        matcher, best = self.matcher, self.best
        moved = {
            site: tuple(best.apply_site(site, f, signs=o) for f, o in zip(parts, matcher.odd, strict=True))
            for site, parts in self.moving.items()
        }
        gains = StackGains.of(matcher.symmetry, self.fixed, moved, matcher.odd)
        return gains.annealed(self.stack, warmest, generator) @ best

    def doubtful(self) -> Tensor:
        """Members in which a unit would rather have another's partner, the others held, ``(units,)`` bool.

        Where atoms are nested, all are.
        """
        symmetry = self.matcher.symmetry
        doubt = torch.full_like(self.score, len(softening(symmetry)) < len(symmetry.atoms), dtype=torch.bool)
        if bool(doubt.all()):
            return doubt
        hard = self.gains.hard(self.best)
        for name in hard:
            wanted = total_gain(self.gains.gains.expected(name, hard)).argmax(2)
            doubt |= (wanted != self.best.indices[name]).any(1)
        return doubt


def least_loss(matcher: UnitMatcher, fixed: Features, moving: Features, p: Permutation) -> Tensor:
    """How much each member's objective falls, at least, if two units of an atom change places or one its sign.

    The other atoms are held. Where an atom appears on two axes of a site each exchange is tried; nested atoms are left
    out. Infinite where there is nothing to exchange.

    Args:
        matcher: The search.
        fixed: Site -> features of the reference, ``site_shape`` each.
        moving: Site -> as many features of the members, ``(units, *site_shape)`` each.
        p: The relabeling of the stack.
    """
    gains = StackGains.of(matcher.symmetry, fixed, moving, matcher.odd)
    hard = gains.hard(p)
    loss = torch.full((gains.units,), torch.inf, dtype=torch.float64, device="cpu")
    for name in hard:
        parts = gains.gains.expected(name, hard)
        gain, index, odd = total_gain(parts).double(), p.indices[name], parts[1]
        if gain.shape[-1] > 1:
            loss = torch.minimum(loss, swap_costs(gain, index).flatten(1).amin(1))
        if odd is not None:
            loss = torch.minimum(loss, 2 * picked(odd, index).abs().amin(1))
    return loss


def kicked(p: Permutation, fraction: float, generator: torch.Generator) -> Permutation:
    """Each member's relabeling after some of every atom's units are shuffled, and some signs flipped."""
    p = kick(p, fraction, generator)
    signs = {}
    for name in p.symmetry.signed:
        now = p.signs.get(name, torch.ones_like(p.indices[name]))
        flip = torch.rand(now.shape, generator=generator, device="cpu") < fraction
        signs[name] = torch.where(flip, -now, now)
    return p.symmetry.permutation(p.indices, signs)


def _put(p: Permutation, part: Permutation, rows: Tensor) -> Permutation:
    """The relabeling of a stack with that of some of its members replaced."""
    indices = {k: v.index_copy(0, rows, part.indices[k]) for k, v in p.indices.items()}
    signs = {}
    for name in {*p.signs, *part.signs}:
        ones = torch.ones_like(p.indices[name], dtype=torch.int8)
        fresh = part.signs.get(name, ones[rows])
        signs[name] = p.signs.get(name, ones).index_copy(0, rows, fresh)
    return p.symmetry.permutation(indices, signs)
