"""One move of coordinate ascent: relabel one atom, with everything nested in it, and hold the others.

With the other atoms held, the objective is linear in an atom's permutation wherever the atom appears once: its gain
matrix comes from one matrix product per feature and a linear assignment maximizes it. Two things go beyond that.

*Nested atoms* (the dimensions inside attention heads) move together with the atom around them; see
:mod:`pyro_align.matching.nested`.

*Two axes of one site* (recurrent weights) make the objective quadratic. It is linearised at the current relabeling;
the move is kept only if the exact objective rises, and otherwise repeated with a growing reward c for standing still.
Since the squared norm of a permutation is constant, the reward adds nothing but a constant to the objective, and for c
large enough it makes it convex, so that the linearisation is a lower bound and no move can lose.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Set
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyro_align.matching.assignment import argmax_assignment, assign, picked, share_wanted, swap_costs
from pyro_align.matching.curvature import second_order, swap_curvature
from pyro_align.matching.evidence import Evidence, Gains
from pyro_align.matching.labels import Labels
from pyro_align.matching.matcher import Clock
from pyro_align.matching.moves import Move
from pyro_align.matching.nested import solve_tree
from pyro_align.matching.parts import Part
from pyro_align.matching.problem import Problem
from pyro_align.symmetry.blocks import Block

if TYPE_CHECKING:
    from pyro_align.axes import Atom

_REWARDS = (0.0, 0.5, 2.0, 8.0)  # multiples of the mean gain that a row could still make
_SWAPS = 16  # pairs tried where no assignment raises a quadratic objective
_WIDE = 128  # atoms below are matched outright: their products cost less than the sums that would spare them
_ALIKE = 0.5  # mean cosine of paired units above which it pays to ask whether further evidence can matter


class Update:
    """Moves one atom, jointly with those nested in it or (``joint=False``) carrying them along.

    Args:
        problem: What is matched.
        name: The atom.
        joint: Whether nested atoms are matched independently for each pair of outer indices.

    Attributes:
        softens: Whether the atom can be matched softly: nothing is nested in it, nor it in anything.
        spoken: Whether an anchored pass had evidence for it.
        wanted: Fraction of the partners that were the best of some unit by that evidence: one where every unit has a
            partner of its own, 1 - 1/e where chance decides, less where units crowd on a few.
    """

    joint: bool
    name: str
    problem: Problem
    move: Move
    spoken: bool

    def __init__(self, problem: Problem, name: str, *, joint: bool = True):
        self.problem, self.name, self.joint = problem, name, joint
        self.atom: Atom = problem.symmetry.atoms[name]
        self.move = move = Move.of(problem, name, joint)
        self.linear: Evidence = Evidence(problem, (p for p in move.parts if p.linear), keep=joint and not move.flips)
        self.curved: Evidence = Evidence(problem, (p for p in move.parts if not p.linear), keep=move.plain)
        holds = any(name in a.within for a in problem.symmetry.atoms.values())
        self.softens: bool = joint and not holds and not self.atom.within and bool(move.parts)
        self.spoken, self.wanted = False, 1.0
        self._alike = False  # whether the anchored pass looked at one part only
        self._seen: dict[str, int] | None = None  # versions of the other atoms when the move was last looked for

    @property
    def _single(self) -> bool:
        """Whether one assignment is the whole move."""
        return self.move.alone and self.joint

    def usable(self, ready: Set[str]) -> list[Part]:
        """The linear parts whose other atoms are all in ``ready``."""
        known = {*ready, *self.move.tree}
        return [part for part in self.linear.parts if part.block.names <= known]

    def evidence(self, ready: Set[str]) -> int:
        """Number of values per unit that speak for a partner once the atoms in ``ready`` are settled."""
        return sum(math.prod(part.shape) for part in self.usable(ready)) // max(1, self.atom.size)

    def anchor(self, labels: Labels, clock: Clock, ready: Set[str]) -> None:
        """Sets the atom by what the settled atoms say, whatever the rest of the objective."""
        parts = self.usable(ready)
        self.spoken, self.wanted = True, 1.0
        wide = self.move.alone and self.move.exact and self.atom.size >= _WIDE
        found = self._anchor_alike(labels, clock, parts) if wide else None
        if found is None:
            with clock("gain"):
                gains = self.linear.bring(labels, parts)
            with clock("assignment"):
                indices, signs = self.decide(gains, labels)
                if self.softens:
                    self.wanted: float = share_wanted(gains.total(self.name)[0])
        else:
            indices, signs = {self.name: found}, {}
        labels.replace(indices, signs)
        if self.move.exact and not self.linear.pending():
            self._seen = {n: labels.versions[n] for n in self.move.depends}

    def _anchor_alike(self, labels: Labels, clock: Clock, parts: list[Part]) -> Tensor | None:
        """The assignment by the largest part alone, where it pairs units so alike that this will do to begin with."""
        with clock("gain"):
            gain = self.linear.bring(labels, [max(parts, key=lambda p: p.shape[2])]).even[self.name]
        with clock("assignment"):
            index = argmax_assignment(gain[0])
        if index is None or self.linear.similarity(index) < _ALIKE:
            return None
        self._alike = True
        return index

    def run(self, labels: Labels, clock: Clock) -> float:
        """One move.

        Returns:
            How much the objective rises; 0 where nothing moved.
        """
        versions = {n: labels.versions[n] for n in self.move.depends}
        if versions == self._seen:
            return 0.0
        rise = self._move(labels, clock)
        self._seen = {n: labels.versions[n] for n in self.move.depends} if self.move.exact or not rise else None
        return rise

    def gain(self, labels: Labels) -> Tensor:
        """The full gain matrix of the atom alone, ``(batch, n, n)``, linearised where it must be."""
        n, batch = self.atom.size, math.prod(self.problem.symmetry.outer_shape(self.name))
        total = (self.linear.bring(labels) + self.curved.bring(labels)).total(self.name)
        if total is None:
            return torch.zeros(batch, n, n, dtype=self.problem.work_dtype, device=labels.device)
        return total.reshape(batch, n, n)

    def value(self, labels: Labels) -> float | None:
        """What the blocks that carry the atom add to the objective, where its gains at hand tell, else None."""
        if not (self._single and self.move.exact and self.linear.current(labels)):
            return None
        return float(self._entries(self.linear.gains.even[self.name], self.name, labels, odd=False).sum())

    # -- the move --------------------------------------------------------------------------------------------------

    def _move(self, labels: Labels, clock: Clock) -> float:
        with clock("gain"):
            if self._alike and self.linear.pending():
                self.linear.bring(labels, ())
                if self.linear.certifies(labels, labels.indices[self.name]):
                    return 0.0
                self._alike = False
            linear = self.linear.bring(labels)
            gains = linear + self.curved.bring(labels) if self.curved.parts else linear
        blocks = self.move.curved
        base = self._exact(blocks, labels) if blocks and not self.move.plain else 0.0
        known = gains if self.move.plain else linear
        rewards = _REWARDS if blocks and len(self.move.tree) == 1 else (0.0,)
        unit = _mean_slack(gains, labels, self.name) if len(rewards) > 1 else 0.0
        for reward in rewards:
            with clock("assignment"):
                indices, signs = self.decide(gains, labels, reward * unit)
            trial = labels.copy()
            trial.replace(indices, signs)
            if not trial.differs(labels):
                break
            rise = self._rise(known, labels, trial, base)
            if rise > 0:
                labels.replace(indices, signs)
                return rise
        return self._swap(gains, known, labels, base) if len(rewards) > 1 else 0.0

    def _swap(self, gains: Gains, known: Gains, labels: Labels, base: float) -> float:
        """Exchanges two units where that raises the objective: a last try, of the pairs that look cheapest."""
        gain = gains.total(self.name)
        if gain is None or self.atom.size < 2:
            return 0.0
        index = labels.indices[self.name].reshape(gain.shape[:-1])
        n = self.atom.size
        once = torch.ones(n, n, dtype=torch.bool, device=gain.device).tril()
        cost = swap_costs(gain, index).masked_fill_(once, torch.inf)
        for flat in self._hopeful(cost, labels):
            row, i, k = flat // n**2, flat // n % n, flat % n
            swapped = index.clone()
            swapped[row, i], swapped[row, k] = index[row, k], index[row, i]
            indices, signs = {self.name: swapped.reshape(labels.indices[self.name].shape)}, {}
            if not self.joint:
                self._carry(indices, signs, labels)
            trial = labels.copy()
            trial.replace(indices, signs)
            rise = self._rise(known, labels, trial, base)
            if rise > 0:
                labels.replace(indices, signs)
                return rise
        return 0.0

    def _hopeful(self, cost: Tensor, labels: Labels) -> list[int]:
        """The swaps that cost least, as flat indices; where their second order is known, those of them that gain."""
        n = self.atom.size
        cheap = cost.flatten().topk(min(_SWAPS, n * (n - 1) // 2), largest=False)
        if not self.move.plain:
            return cheap.indices.tolist()
        pairs = cheap.indices // n, cheap.indices % n
        bent = swap_curvature(self.problem, self.move.curved, self.name, labels, pairs)
        return cheap.indices[bent > cheap.values].tolist()

    def _exact(self, blocks: Iterable[Block], labels: Labels) -> float:
        return math.fsum(self.problem.sums.value(b, labels) for b in blocks)

    def _rise(self, gains: Gains, old: Labels, new: Labels, base: float) -> float:
        """How much the objective rises, 0 where that cannot be told from rounding.

        Args:
            gains: Those of the linear parts; of all parts where second order is all that they lack.
            old: The relabeling before.
            new: The relabeling after.
            base: What the curved blocks give before, where they are evaluated as a whole.
        """
        rise = size = 0.0
        for node in self.move.tree:
            for table in (gains.even, gains.odd):
                if node in table:
                    before, after = (self._entries(table[node], node, x, table is gains.odd) for x in (old, new))
                    change = after - before
                    rise += float(change.sum())
                    size += float((after.abs() + before.abs())[change != 0].sum())
        if self.move.curved and self.move.plain:
            change = second_order(self.problem, self.move.curved, self.name, old, new)
            rise, size = rise + change, size + abs(change)
        elif self.move.curved:
            after = self._exact(self.move.curved, new)
            rise, size = rise + after - base, size + abs(base) + abs(after)
        return rise if rise > self.problem.rounding * size else 0.0

    def _entries(self, gain: Tensor, node: str, labels: Labels, odd: bool) -> Tensor:
        entries = picked(gain, self.flat_index(node, labels))
        return entries * labels.signs[node].reshape(entries.shape) if odd and node in labels.signs else entries

    def flat_index(self, node: str, labels: Labels) -> Tensor:
        """Index of the chain down to ``node``, flattened: ``(batch, chain size)``."""
        path = [n for n in (*self.problem.symmetry.atoms[node].within, node) if n in self.move.tree]
        flat = labels.indices[path[0]].reshape(-1, self.atom.size)
        for name in path[1:]:
            n = self.problem.symmetry.atoms[name].size
            inside = labels.indices[name].reshape(*flat.shape, n)
            flat = (flat.unsqueeze(-1) * n + inside).flatten(1)
        return flat

    def decide(self, gains: Gains, labels: Labels, reward: float = 0.0):
        """The indices and signs that maximize the gains, with a reward for standing still."""
        if self._single:
            return {self.name: self._best(gains.total(self.name), labels, reward)}, {}
        stay = None
        if reward:
            now = labels.indices[self.name].reshape(-1, self.atom.size)
            stay = reward * torch.nn.functional.one_hot(now, self.atom.size)
        indices, signs = solve_tree(
            self.problem.symmetry, self.move.tree, gains, device=labels.device, dtype=self.problem.work_dtype, stay=stay
        )
        if not self.joint:
            self._carry(indices, signs, labels)
        return indices, signs

    def _best(self, gain: Tensor | None, labels: Labels, reward: float) -> Tensor:
        """The best assignment of an atom that moves alone."""
        if gain is None:
            return labels.indices[self.name]
        if reward:
            gain = gain[0].clone()
            now = labels.indices[self.name].unsqueeze(1)
            return assign(gain.scatter_add_(1, now, torch.full_like(now, reward, dtype=gain.dtype)))
        return assign(gain[0])

    def _carry(self, indices: dict[str, Tensor], signs: dict[str, Tensor], labels: Labels) -> None:
        """What is nested in the moved atom keeps the relabeling it had for each old index."""
        trial = labels.copy()
        trial.replace(indices, signs)
        for name, atom in self.problem.symmetry.atoms.items():
            if self.name not in atom.within:
                continue
            for tables, old in ((indices, labels.indices), (signs, labels.signs)):
                if name in old:
                    tables[name] = trial.by_new(name, labels.by_old(name, {self.name}, old[name]), {self.name})


def _mean_slack(gains: Gains, labels: Labels, name: str) -> float:
    """How much more the best partner of a row gains than its present one, on average."""
    gain = gains.total(name)
    if gain is None:
        return 0.0
    now = picked(gain, labels.indices[name].reshape(gain.shape[:-1]))
    return float((gain.amax(-1).double() - now).mean())
