"""Gain matrices, kept up to date while the other atoms move.

Four things save most of the matrix products. What a part contributed stays valid while its other atoms stand still;
where few of their units moved, the difference is a product over those units alone; parts of few values per unit are
stacked into one product; and a part whose contribution cannot overturn the present assignment is never multiplied out
(:meth:`Evidence.certifies`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_align.matching.assignment import picked
from pyro_align.matching.labels import Labels
from pyro_align.matching.parts import SMALL, Part
from pyro_align.matching.problem import Problem


@dataclass
class Gains:
    """Gain matrices by innermost atom, ``(batch, new, old)``: even part, and odd part times the unit's sign."""

    even: dict[str, Tensor] = field(default_factory=dict)
    odd: dict[str, Tensor] = field(default_factory=dict)

    def add(self, node: str, odd: bool, left: Tensor, right: Tensor) -> None:
        """Adds ``left @ right^T``, in place where there is something already."""
        into = self.odd if odd else self.even
        if left.shape[0] == 1:  # a plain product is faster than a batch of one
            if node in into:
                into[node][0].addmm_(left[0], right[0].T)
            else:
                into[node] = (left[0] @ right[0].T).unsqueeze(0)
        elif node in into:
            into[node].baddbmm_(left, right.transpose(1, 2))
        else:
            into[node] = left @ right.transpose(1, 2)

    def __add__(self, other: Gains) -> Gains:
        def total(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {k: a[k] + b[k] if k in a and k in b else a.get(k, b.get(k)) for k in {**a, **b}}

        return Gains(total(self.even, other.even), total(self.odd, other.odd))

    def copy(self) -> Gains:
        """Another that may be added to."""
        return Gains(*({k: v.clone() for k, v in table.items()} for table in (self.even, self.odd)))

    def total(self, node: str) -> Tensor | None:
        """The gain when every unit takes its better sign, or None where nothing speaks."""
        even, odd = self.even.get(node), self.odd.get(node)
        if odd is None:
            return even
        return odd.abs() if even is None else even + odd.abs()


class Evidence:
    """The gains of some parts.

    Args:
        problem: What is matched.
        parts: The parts.
        keep: Whether contributions stay valid as long as the parts' other atoms do not move.
    """

    keep: bool
    parts: tuple[Part, ...]
    problem: Problem
    gains: Gains

    def __init__(self, problem: Problem, parts: Iterable[Part], *, keep: bool):
        self.problem, self.parts, self.keep = problem, tuple(parts), keep
        self.gains = Gains()
        self._seen: dict[Part, Labels] = {}  # part -> the relabeling it was added under

    def bring(self, labels: Labels, parts: Iterable[Part] | None = None) -> Gains:
        """The gains of the parts added so far and of ``parts`` (all, where None), up to date.

        Parts that never change and are cheap come along with the first.
        """
        now = labels.copy()
        wanted = {*self.parts} if parts is None else {*parts}
        if not self.keep:
            self._forget()
        elif self._outdated(now):
            wanted |= self._seen.keys()
            self._forget()
        fresh = [p for p in self.parts if p not in self._seen and (p in wanted or p.still)]
        moved = [(p, b) for p, b in self._seen.items() if not self._unmoved(p, b, now)]
        for part, before in moved:
            for key, left, right in self._factors(part, now, before):
                self.gains.add(*key, left, right)
        self._add_fresh(fresh, now)
        self._seen |= dict.fromkeys((*fresh, *(p for p, _ in moved)), now)
        return self.gains

    def _add_fresh(self, parts: Iterable[Part], now: Labels) -> None:
        """Adds parts for the first time, those of few values per unit in one product."""
        small: dict[tuple[str, bool], list[tuple[Tensor, Tensor]]] = {}
        for part in parts:
            for key, left, right in self._factors(part, now, None):
                if part.shape[2] <= SMALL:
                    small.setdefault(key, []).append((left, right))
                else:
                    self.gains.add(*key, left, right)
        for key, pairs in small.items():
            self.gains.add(*key, *(torch.cat(side, -1) for side in zip(*pairs, strict=True)))

    def _factors(
        self, part: Part, now: Labels, before: Labels | None
    ) -> Iterator[tuple[tuple[Any, ...], Tensor, Tensor]]:
        """Atom and parity, and the two factors of the gain, or of how it has changed since ``before``."""
        for fixed, moving, odd in self.problem.views(part.block):
            for run in part.block.runs(fixed, moving):
                yield (part.node, part.signed(odd)), *part.matrices(*run, now, odd, old=before)

    def _forget(self) -> None:
        self.gains, self._seen = Gains(), {}

    def constant(self, labels: Labels) -> Gains:
        """The gains of the parts that stay whatever the other atoms do; those of all others are forgotten."""
        fixed = [p for p in self.parts if not p.moving]
        if len(self._seen) > len(fixed):
            self._forget()
        return self.bring(labels, fixed)

    def pending(self) -> list[Part]:
        """The parts not yet added."""
        return [p for p in self.parts if p not in self._seen]

    def current(self, labels: Labels) -> bool:
        """Whether the gains hold all parts, under this very relabeling."""
        return len(self._seen) == len(self.parts) and all(
            self._unmoved(part, before, labels) for part, before in self._seen.items()
        )

    def _outdated(self, now: Labels) -> bool:
        """Whether so much has moved everywhere that new gains cost less than the changes to the old ones."""
        return bool(self._seen) and all(
            not self._unmoved(p, before, now) and p.moved(before, now) is None for p, before in self._seen.items()
        )

    def _unmoved(self, part: Part, before: Labels, now: Labels) -> bool:
        return all(before.versions[n] == now.versions[n] for n in part.moving)

    # -- what need not be multiplied out ---------------------------------------------------------------------------

    def similarity(self, index: Tensor) -> float:
        """Mean cosine between the units that an assignment pairs, over the parts added so far.

        Args:
            index: ``(n,)``, new -> old.
        """
        node = self.parts[0].node
        left, right = (torch.stack(s).sum(0).sqrt() for s in zip(*(self._norm(p) for p in self._seen), strict=True))
        gain = picked(self.gains.even[node][0], index)
        scale = (left * right[index]).double()
        return float((gain / scale.clamp_min(1e-300)).mean())

    def certifies(self, labels: Labels, index: Tensor) -> bool:
        """Whether the parts not added cannot change that ``index`` is best in every row of the full gain matrix.

        What row i gains at its present partner is computed; what it could gain elsewhere is at most the product of the
        two units' norms (Cauchy-Schwarz). So no matrix product is needed, only passes over the values. Where that does
        not settle it, parts are added one by one, the largest first, as long as most products are still spared.

        Args:
            labels: The present relabeling.
            index: The atom's present relabeling, ``(n,)``.
        """
        node = self.parts[0].node
        parts = sorted(self.pending(), key=lambda p: p.shape[2])
        here = [self.problem.sums.products(part.block, labels)[part.chain[0]] for part in parts]
        spare = sum(p.shape[2] for p in parts) // 2
        while True:
            gain = self.gains.even[node][0]
            if self._settled(gain, index, parts, here):
                return True
            spare -= parts[-1].shape[2]
            if spare < 0:
                return False
            here.pop()
            self.bring(labels, [parts.pop()])

    def _settled(self, gain: Tensor, index: Tensor, parts: list[Part], here: list[Tensor]) -> bool:
        left, right = (torch.stack(s, 1).sqrt() for s in zip(*(self._norm(p) for p in parts), strict=True))
        bound = torch.addmm(gain, left, right.T)
        index = index.unsqueeze(1)
        bound.scatter_(1, index, -math.inf)
        at = gain.gather(1, index).squeeze(1) + torch.stack(here).sum(0)
        return bool((at > bound.amax(1)).all())

    def _norm(self, part: Part) -> tuple[Tensor, Tensor]:
        """Squared norms of the units of either side."""
        left, right = self.problem.sums.norms(part.block)
        return left[part.chain[0]], right[part.chain[0]]
