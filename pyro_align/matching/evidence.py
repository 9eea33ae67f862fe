"""Gain matrices, kept up to date while the other atoms move.

Four things save most of the matrix products. What a part contributed stays valid while its other atoms stand still;
where few of their units moved, the difference is a product over those units alone; parts of few values per unit are
stacked into one product; and a part whose contribution cannot overturn the present assignment is never multiplied out
(:meth:`Evidence.certifies`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from pyro_align.matching.assignment import picked
from pyro_align.matching.blocks import Block
from pyro_align.matching.labels import Labels, aligned, relabelled
from pyro_align.matching.problem import Problem

_SMALL = 16  # parts with at most this many values per unit are stacked
_FEW = 0.6  # share of moved units below which only their columns are gathered
_RUN = 64  # runs of at least this many numbers are copied as fast as whole tensors


@dataclass(frozen=True)
class Part:
    """One occurrence of the moved atoms in a block.

    Attributes:
        block: The block.
        batch: Dimensions of the atoms around the moved one.
        chain: Dimensions of the moved atom and of those nested in it, outermost first.
        linear: Whether the block is linear in the move.
        carries: Whether further nested dimensions are carried along, not matched.
    """

    block: Block
    batch: tuple[int, ...]
    chain: tuple[int, ...]
    linear: bool
    carries: bool = False

    @property
    def node(self) -> str:
        """The innermost atom that moves."""
        return self.block.dims[self.chain[-1]].name

    @cached_property
    def others(self) -> tuple[int, ...]:
        """The dimensions summed over."""
        return tuple(i for i in range(len(self.block.dims)) if i not in (*self.batch, *self.chain))

    @cached_property
    def moving(self) -> tuple[str, ...]:
        """The free atoms summed over: while they stand still, so does the contribution."""
        return tuple(self.block.dims[i].name for i in self.others if self.block.dims[i].name)

    @cached_property
    def still(self) -> bool:
        """Whether the contribution never changes and is cheap, so that it is added to begin with."""
        return not self.moving and not self.batch and self.shape[2] <= _SMALL

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """Sizes of batch, chain and the rest, each flattened."""
        dims = self.block.dims
        return tuple(math.prod(dims[i].size for i in part) for part in (self.batch, self.chain, self.others))

    def signed(self, odd: bool) -> bool:
        """Whether the gain of a feature counts for or against the sign of the innermost atom."""
        return odd and self.block.dims[self.chain[-1]].odd

    def matrices(
        self, fixed: Tensor, moving: Tensor, labels: Labels, odd: bool, *, old: Labels | None = None
    ) -> tuple[Tensor, Tensor]:
        """The two factors of the gain, ``(batch, chain, rest)``: gain = left @ right^T.

        Args:
            fixed: The block's view of a fixed feature.
            moving: The block's view of the moving one.
            labels: The relabelling of everything else.
            odd: Whether the feature changes sign with signed atoms.
            old: With it, the factors of how the gain has changed since that relabelling.
        """
        # gathers run over the tensor as it lies in memory: over a transposed view they are many times slower
        rows = None if old is None else self._moved(old, labels)
        right = relabelled(self.block, moving, labels, free=self.chain, odd=odd, rows=rows)
        if old is not None:
            right = right - relabelled(self.block, moving, old, free=self.chain, odd=odd, rows=rows)
        if rows is not None:
            fixed = fixed.index_select(*rows)
        if odd:  # an outer atom that moves keeps its sign by new position; only the innermost one chooses
            for i in self.chain[:-1]:
                dim = self.block.dims[i]
                if dim.odd and dim.name in labels.signs:
                    fixed = fixed * aligned(self.block, i, labels.signs[dim.name]).to(fixed.dtype)
        return self.flat(fixed), self.flat(right)

    def flat(self, value: Tensor) -> Tensor:
        """A block's value as ``(batch, chain, rest)``."""
        batch, size, _ = self.shape
        rest = value.numel() // max(1, batch * size)
        if value.dim() == 1:
            return value.reshape(batch, size, rest)
        if self._chain_last:
            return value.permute(*self.batch, *self.others, *self.chain).reshape(batch, rest, size).transpose(1, 2)
        return value.permute(*self.batch, *self.chain, *self.others).reshape(batch, size, rest)

    @cached_property
    def _chain_last(self) -> bool:
        """Whether it is cheaper to lay the values out as ``(batch, rest, chain)``, as for a convolution's inputs."""
        after = math.prod(self.block.dims[i].size for i in self.others if i > self.chain[-1])
        return bool(self.others) and self.others[0] < self.chain[0] and after < _RUN

    def _moved(self, old: Labels, new: Labels) -> tuple[int, Tensor] | None:
        """The dimension along which alone something moved, and the positions that did, where they are few."""
        dims = self.block.dims
        moved = [i for i in self.others if dims[i].name and old.versions[dims[i].name] != new.versions[dims[i].name]]
        if len(moved) != 1 or dims[moved[0]].outer or self.block.inside(moved[0]):
            return None
        name = dims[moved[0]].name
        change = old.indices[name] != new.indices[name]
        if name in new.signs:
            change |= old.signs[name] != new.signs[name]
        rows = change.nonzero().flatten()
        return (moved[0], rows) if rows.numel() <= _FEW * change.numel() else None


def find_parts(block: Block, name: str, joint: bool) -> list[Part]:
    """The occurrences of an atom in a block; with ``joint``, together with a chain of atoms nested in it."""
    places = block.positions(name)
    parts = []
    for place in places:
        chain = [place]
        around = (*block.dims[place].around, name)
        inside = set(block.inside(place))
        while joint:
            nested = [i for i in sorted(inside) if block.dims[i].around == around]
            if not nested:
                break
            chain.append(nested[0])
            around = (*around, block.dims[nested[0]].name)
            inside.discard(nested[0])
        # what is left inside is not matched along but carried, so the block is only approximated
        linear = len(places) == 1 and (not joint or not inside)
        parts.append(Part(block, block.dims[place].outer, tuple(chain), linear, bool(inside)))
    return parts


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

    def __init__(self, problem: Problem, parts: Iterable[Part], *, keep: bool):
        self.problem, self.parts, self.keep = problem, tuple(parts), keep
        self.gains = Gains()
        self._seen: dict[int, Labels] = {}  # part -> the relabelling it was added under

    def bring(self, labels: Labels, parts: Iterable[Part] | None = None) -> Gains:
        """The gains of the parts added so far and of ``parts`` (all, where None), up to date.

        Parts that never change and are cheap come along with the first.
        """
        if not self.keep:
            self.gains, self._seen = Gains(), {}
        wanted = {id(p) for p in (self.parts if parts is None else parts)}
        now = labels.copy()
        small: dict[tuple[str, bool], list[tuple[Tensor, Tensor]]] = {}
        for part in self.parts:
            before = self._seen.get(id(part))
            if before is None:
                if not (id(part) in wanted or part.still):
                    continue
            elif self._unmoved(part, before, now):
                continue
            for fixed, moving, odd in self.problem.views(part.block):
                key = part.node, part.signed(odd)
                for run in part.block.runs(fixed, moving):
                    left, right = part.matrices(*run, now, odd, old=before)
                    if before is None and part.shape[2] <= _SMALL:
                        small.setdefault(key, []).append((left, right))
                    else:
                        self.gains.add(*key, left, right)
            self._seen[id(part)] = now
        for key, pairs in small.items():
            left, right = (torch.cat(side, -1) for side in zip(*pairs, strict=True))
            self.gains.add(*key, left, right)
        return self.gains

    def pending(self, parts: Iterable[Part] | None = None) -> list[Part]:
        """The parts not yet added."""
        return [p for p in (self.parts if parts is None else parts) if id(p) not in self._seen]

    def _unmoved(self, part: Part, before: Labels, now: Labels) -> bool:
        return all(before.versions[n] == now.versions[n] for n in part.moving)

    # -- what need not be multiplied out ---------------------------------------------------------------------------

    def similarity(self, index: Tensor) -> float:
        """Mean cosine between the units that an assignment pairs, over the parts added so far.

        Args:
            index: ``(1, n)``, new -> old.
        """
        node = self.parts[0].node
        left, right = (torch.stack(s).sum(0).sqrt() for s in zip(*(self._norm(p) for p in self._added()), strict=True))
        gain = picked(self.gains.even[node], index)[0]
        scale = (left * right[index[0]]).double()
        return float((gain / scale.clamp_min(1e-300)).mean())

    def certifies(self, labels: Labels, index: Tensor) -> bool:
        """Whether the parts not added cannot change that ``index`` is best in every row of the full gain matrix.

        What row i gains at its present partner is computed; what it could gain elsewhere is at most the product of the
        two units' norms (Cauchy-Schwarz). So no matrix product is needed, only passes over the values. Where that does
        not settle it, parts are added one by one, the largest first, as long as most products are still spared.

        Args:
            labels: The present relabelling.
            index: The atom's present relabelling, ``(1, n)``.
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
        bound.scatter_(1, index.T, -math.inf)
        at = gain.gather(1, index.T).squeeze(1) + torch.stack(here).sum(0)
        return bool((at > bound.amax(1)).all())

    def _added(self) -> list[Part]:
        return [p for p in self.parts if id(p) in self._seen]

    def _norm(self, part: Part) -> tuple[Tensor, Tensor]:
        """Squared norms of the units of either side."""
        left, right = self.problem.sums.norms(part.block)
        return left[part.chain[0]], right[part.chain[0]]
