"""Small problems: many relabelings at once, annealed from different temperatures and kicked, as one batch.

Below some ten thousand values a search spends its time on bookkeeping, not on arithmetic. A population shares the
bookkeeping: each gain matrix is one batched product, and only the assignments are made one by one. Members begin where
every partner is equally likely and are annealed (see :mod:`pyro_align.matching.soft`). Wave by wave the best are then
kicked (iterated local search: Lourenco, Martin & Stuetzle 2003) or crossed: a child is annealed from the mean of its
two parents' matrices, at a low temperature, so that what they have in common mostly stays. Children climb, and the
best of all stay. A restart begins with a population of its own, whose members are then crossed with the best of each
earlier search. What this is worth is measured by ``benchmarks/optimum.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from pyro_align.matching.assignment import assigned, best_sign, picked
from pyro_align.matching.gains import Gains, Term
from pyro_align.matching.matcher import Run
from pyro_align.matching.problem import Problem
from pyro_align.matching.soft import (
    Pair,
    Parts,
    anneal,
    hard,
    shuffled,
    total_gain,
    uniform,
)
from pyro_align.matching.starts import kicked

SMALL = 12_000  # values of all sites up to which a population is searched
_WAVES = 12  # of children after annealing
_ALONE = 4  # waves after which a restart's members are crossed with the best of earlier searches
_PATIENCE = 5  # waves without a rise that end a first search
_ANNEALS = 3  # populations that the first search anneals; a restart anneals two
_KEPT, _CHILDREN = 8, 12  # members that stay, and children of a wave
_MILD, _CROSSING = (0.1, 0.4), 4  # temperatures from which crossed members are annealed, and rounds
_HARD = 0.4  # share of the units shuffled in members that must all climb back to an optimum for it to stand
_CROSSED = 0.5  # share of waves in which members are crossed, not kicked
_WARMEST = 1.2  # temperature, in standard deviations of a member's gains
_ROUNDING = 8 * torch.finfo(torch.float32).eps  # relative changes below are rounding
_ROUNDS = 10  # of annealing
_REWARDS = (0.0, 2.0)  # for standing still, in multiples of the mean gain that a row could still make


@dataclass
class Members:
    """Relabelings: atom -> indices and, where it is signed, signs, ``(members, n)`` each."""

    indices: dict[str, Tensor] = field(default_factory=dict)
    signs: dict[str, Tensor] = field(default_factory=dict)

    def take(self, rows: Tensor | slice) -> Members:
        """Some of them."""
        return Members(*({k: v[rows] for k, v in table.items()} for table in (self.indices, self.signs)))

    def put(self, rows: Tensor, other: Members) -> None:
        """Replaces some of them."""
        for mine, theirs in ((self.indices, other.indices), (self.signs, other.signs)):
            for name, table in mine.items():
                mine[name] = table.index_copy(0, rows, theirs[name])

    def join(self, other: Members) -> Members:
        """Both together."""
        pairs = ((self.indices, other.indices), (self.signs, other.signs))
        return Members(*({k: torch.cat([v, theirs[k]]) for k, v in mine.items()} for mine, theirs in pairs))


def fits(problem: Problem) -> bool:
    """Whether a problem is small, has no nested atoms, and no block that carries more than two."""
    plain = all(len(b.free) <= 2 and not any(b.dims[i].around for i in b.free) for b in problem.blocks)
    return plain and sum(map(math.prod, problem.symmetry.shapes.values())) <= SMALL


Pool = tuple[Members, Tensor]  # and their values, best first


def search(run: Run) -> bool:
    """Replaces the relabeling by the best of a population, in time crossed with ``run.pool``, which that best joins.

    Returns:
        Whether it came to its end before the time limit.
    """
    population = Population(run.problem)
    if not population.sizes:
        return True
    tables = (run.labels.indices, run.labels.signs)
    members = Members(*({k: v.unsqueeze(0) for k, v in t.items()} for t in tables))
    earlier, own, idle = run.pool, (members, population.values(members)), 0
    anneals = 2 if run.random_order else _ANNEALS
    for wave in range(-anneals, _WAVES):
        if run.clock.expired:
            break
        with run.clock("gain"):
            best = own[1][0]
            if wave < 0:
                children = population.annealed(run.generator, random=run.random_order or wave > -anneals)
            else:
                mates = earlier[0] if earlier and wave >= _ALONE else own[0]
                children = population.children(own[0], mates, run.generator)
            population.climb(children)
            found = population.values(children)
            members, values = own = fittest([own, (children, found)])
            first = members.take(slice(1)), values[:1]
            run.pool = fittest([earlier, first]) if earlier else first
        rises = values[0] - best > _ROUNDING * best.abs()
        if rises:
            run.labels.replace(*({n: v[0] for n, v in t.items()} for t in (members.indices, members.signs)))
        idle = 0 if rises or wave < 0 else idle + 1
        if wave == -anneals and population.stands(run.pool, found, run.generator):  # every start would end here
            run.settled = bool(earlier)
            break
        if not earlier and idle == _PATIENCE:
            break
    return not run.clock.expired


def fittest(pools: Sequence[Pool]) -> Pool:
    """The best of some pools, best first, without those of equal value."""
    members = reduce(Members.join, (m for m, _ in pools))
    values, rows = torch.cat([v for _, v in pools]).sort(descending=True)
    apart = torch.ones_like(values, dtype=torch.bool)
    apart[1:] = values[:-1] - values[1:] > _ROUNDING * values[1:].abs()
    kept = apart.nonzero().flatten()[:_KEPT]
    return members.take(rows[kept]), values[kept]


def _draw(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator, device="cpu", dtype=torch.float64))


class Population:
    """The gains of a problem, for many relabelings at once; in float32 and up to a factor, as sweeps follow."""

    problem: Problem
    signed: frozenset[str]

    def __init__(self, problem: Problem):
        self.problem, self.signed = problem, problem.symmetry.signed
        spoken = {name for block in problem.blocks if problem.views(block) for name in block.names}
        self.sizes: dict[str, int] = {
            name: atom.size for name, atom in problem.symmetry.atoms.items() if name in spoken
        }
        blocks = [(b.dims, v) for b in problem.blocks if b.free for v in problem.views(b)]
        tops = (max((float(v[side].abs().max()) for _, v in blocks), default=1) or 1 for side in (0, 1))
        self.scales: tuple[float, ...] = tuple(tops)
        self.gains = Gains.of(
            self.sizes,
            (
                (dims, (fixed / self.scales[0]).float(), (moving / self.scales[1]).float().unsqueeze(0), odd)
                for dims, (fixed, moving, odd) in blocks
            ),
        )

    def values(self, members: Members) -> Tensor:
        """What the blocks with free atoms add to the objective, ``(members,)``."""
        total = torch.zeros((), dtype=torch.float64, device=self.problem.device)
        for name, index in members.indices.items():
            parts = self.gains.parts(name, lambda term: _relabeled(term, members), once=True)
            total = total + _along(parts, index, members.signs.get(name))
        return total

    # -- climbing ----------------------------------------------------------------------------------------------------

    def climb(self, members: Members, sweeps: int = 50) -> None:
        """Coordinate ascent of every member, each until none of its atoms moves."""
        rows = torch.arange(len(next(iter(members.indices.values()))), device=self.problem.device)
        while len(rows) and sweeps:
            part = members.take(rows)
            moved = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
            for name in self.sizes:
                moved |= self._move(name, part)
            members.put(rows, part)
            rows, sweeps = rows[moved], sweeps - 1

    def _move(self, name: str, members: Members) -> Tensor:
        """Moves one atom of every member where that raises its value; says where, ``(members,)`` bool."""
        parts = self.gains.parts(name, lambda term: _relabeled(term, members))
        count, index, sign = len(members.indices[name]), members.indices[name], members.signs.get(name)
        gain = total_gain(parts).expand(count, -1, -1)
        curved = any(term.others[0][0] == name for term in self.gains.terms[name])
        before = self.values(members) if curved else _along(parts, index, sign)
        moved = torch.zeros(count, dtype=torch.bool, device=gain.device)
        unit = stay = None
        for reward in _REWARDS if curved else (0.0,):
            if reward:  # as in updates.py: for a large enough reward the linearized gain is a lower bound
                stay = one_hot(index, gain.shape[-1]).to(gain.dtype) if stay is None else stay
                unit = (gain.amax(2) - picked(gain, index)).mean(1).view(-1, 1, 1) if unit is None else unit
                new = assigned(gain + reward * unit * stay)
            else:
                new = assigned(gain)
            trial = Members({**members.indices, name: new}, dict(members.signs))
            if sign is not None:
                trial.signs[name] = best_sign(parts[1], new)
            after = self.values(trial) if curved else _along(parts, new, trial.signs.get(name))
            better = ~moved & (after - before > _ROUNDING * (after.abs() + before.abs()))
            for mine, theirs in ((members.indices, trial.indices), (members.signs, trial.signs)):
                if name in mine:
                    mine[name] = torch.where(better.unsqueeze(1), theirs[name], mine[name])
            moved |= better
            if bool(moved.all()):
                break
        return moved

    # -- new members -------------------------------------------------------------------------------------------------

    def annealed(self, generator: torch.Generator, *, random: bool) -> Members:
        """Members annealed from matrices in which all partners, and both signs, are equally likely.

        Three, with atoms as they come; at random, four, from random temperatures and with atoms in random order.
        """
        names, warmest = list(self.sizes), torch.tensor([0.7, 1.0, 1.4], dtype=torch.float64, device="cpu")
        if random:
            warmest = 0.5 + 1.5 * torch.rand(4, generator=generator, device="cpu", dtype=torch.float64)
            names = shuffled(names, generator)
        warmest = (_WARMEST * warmest).to(self.problem.device, torch.float32)
        return self._anneal(
            {n: uniform(len(warmest), self.sizes[n], n in self.signed, warmest) for n in names}, warmest, _ROUNDS
        )

    def stands(self, pool: Pool, found: Tensor, generator: torch.Generator) -> bool:
        """Whether all values found are the best that is known, and kicked members all climb back there.

        Annealing alone can lead all members to one local optimum.
        """
        best = pool[1][0]
        if best - found.min() > _ROUNDING * best.abs():
            return False
        members = pool[0].take(torch.zeros(_CHILDREN, dtype=torch.int64, device=best.device))
        members = Members({k: kicked(v, _HARD, generator) for k, v in members.indices.items()}, members.signs)
        self.climb(members)
        return bool(best - self.values(members).min() <= _ROUNDING * best.abs())

    def _anneal(self, soft: dict[str, Pair], warmest: Tensor, rounds: int) -> Members:
        indices, signs = anneal(self.gains.expected, soft, warmest, rounds)
        for name in self.signed & set(soft) - set(signs):  # nothing speaks for either sign
            signs[name] = best_sign(None, indices[name])
        return Members(indices, signs)

    def children(self, members: Members, mates: Members, generator: torch.Generator) -> Members:
        """Random members, kicked; or, as often, children of a member and a mate, annealed from little heat."""
        one, two = (
            torch.randint(len(next(iter(m.indices.values()))), (_CHILDREN,), generator=generator, device="cpu")
            for m in (members, mates)
        )
        parent, other = members.take(one.to(self.problem.device)), mates.take(two.to(self.problem.device))
        if _draw(generator) > _CROSSED:
            share = 0.1 + 0.3 * _draw(generator)
            return Members({k: kicked(v, share, generator) for k, v in parent.indices.items()}, parent.signs)
        soft = {}
        heat = torch.rand(_CHILDREN, generator=generator, device="cpu", dtype=torch.float64)
        heat = torch.lerp(*map(heat.new_tensor, _MILD), heat).to(self.problem.device, torch.float32)
        for n in shuffled(list(self.sizes), generator):
            matrices = (hard(p.indices[n], p.signs.get(n), heat) for p in (parent, other))
            soft[n] = tuple((a + b) / 2 for a, b in zip(*matrices, strict=True))
        return self._anneal(soft, heat, _CROSSING)


def _relabeled(term: Term, members: Members) -> Tensor:
    ((other, flips),) = term.others  # as fits() says
    index = members.indices[other]
    rows = term.moving[0].index_select(0, index.flatten()).view(*index.shape, -1)
    return rows * members.signs[other].unsqueeze(-1).to(rows.dtype) if flips else rows


def _along(parts: Parts, index: Tensor, sign: Tensor | None) -> Tensor:
    """The sum of gains along a relabeling, ``(members,)`` in float64."""
    total = torch.zeros(len(index), dtype=torch.float64, device=index.device)
    for part, flip in zip(parts, (None, sign), strict=True):
        if part is not None:
            value = picked(part, index)
            total = total + (value if flip is None else value * flip).sum(1)
    return total
