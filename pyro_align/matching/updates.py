"""One move of coordinate ascent: relabel one atom, with everything nested in it, and hold the others.

With the other atoms held, the objective is linear in an atom's permutation wherever the atom stands once: its gain
matrix comes from one matrix product per feature and a linear assignment maximises it. Two things go beyond that.

*Nested atoms* (the dimensions inside attention heads) move together with the atom around them: what outer index i
gains from outer index j is the best that the inner atom can do between i and j, so inner assignments for all pairs
(i, j) give the gain matrix of the outer one, from the leaves of the nesting to its root.

*Two axes of one site* (recurrent weights) make the objective quadratic. It is linearised at the current relabelling;
the move is kept only if the exact objective rises, and otherwise repeated with a growing reward c for standing still.
Since the squared norm of a permutation is constant, the reward adds nothing but a constant to the objective, and for c
large enough it makes it convex, so that the linearisation is a lower bound and no move can lose.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyro_align.matching.assignment import assign, picked
from pyro_align.matching.blocks import Block
from pyro_align.matching.clock import Clock
from pyro_align.matching.labels import Labels, aligned, relabelled
from pyro_align.matching.problem import Problem, inner

_REWARDS = (0.0, 0.5, 2.0, 8.0)  # multiples of the mean gain that a row could still make


@dataclass(frozen=True)
class Part:
    """One occurrence of the moved atoms in a block.

    Attributes:
        block: The block.
        batch: Dimensions of the atoms around the moved one.
        chain: Dimensions of the moved atom and of those nested in it, outermost first.
        linear: Whether the block is linear in the move.
    """

    block: Block
    batch: tuple[int, ...]
    chain: tuple[int, ...]
    linear: bool

    @property
    def node(self) -> str:
        """The innermost atom that moves."""
        return self.block.dims[self.chain[-1]].name


@dataclass
class Gains:
    """Gain matrices by innermost atom, ``(batch, new, old)``: even part, and odd part times the unit's sign."""

    even: dict[str, Tensor] = field(default_factory=dict)
    odd: dict[str, Tensor] = field(default_factory=dict)

    def add(self, node: str, gain: Tensor, odd: bool) -> None:
        """Adds one part's gain, in place where there is one already."""
        into = self.odd if odd else self.even
        into[node] = into[node].add_(gain) if node in into else gain

    def __add__(self, other: Gains) -> Gains:
        def total(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {k: a[k] + b[k] if k in a and k in b else a.get(k, b.get(k)) for k in {**a, **b}}

        return Gains(total(self.even, other.even), total(self.odd, other.odd))


class Update:
    """Moves one atom, jointly with those nested in it or (``joint=False``) carrying them along.

    Args:
        problem: What is matched.
        name: The atom.
        joint: Whether nested atoms are matched anew for each pair of outer indices.
    """

    def __init__(self, problem: Problem, name: str, *, joint: bool = True):
        self.problem, self.name, self.joint = problem, name, joint
        self.atom = problem.symmetry.atoms[name]
        self.parts = [part for block in problem.touching[name] for part in _parts(block, name, joint)]
        self.tree = _tree(self.parts) if joint else {name: ()}
        members = set(self.tree)
        signed_stem = any(n in problem.symmetry.signed for n, inside in self.tree.items() if inside)
        self.exact = all(p.linear for p in self.parts) and not signed_stem
        around = set().union(*(p.block.names for p in self.parts)) if self.parts else set()
        self.depends = frozenset(around - members if self.exact else around)
        self._seen: dict[str, int] | None = None

    def usable(self, ready: Collection[str]) -> list[Part]:
        """The linear parts whose other atoms are all in ``ready``."""
        members = set(self.tree)
        return [p for p in self.parts if p.linear and p.block.names - members <= set(ready)]

    def evidence(self, ready: Collection[str]) -> int:
        """Number of values per unit that speak for a partner once the atoms in ``ready`` are settled."""
        return sum(math.prod(d.size for d in p.block.dims) for p in self.usable(ready)) // max(1, self.atom.size)

    def anchor(self, labels: Labels, clock: Clock, ready: Collection[str]) -> None:
        """Sets the atom by what the settled atoms say, whatever the rest of the objective."""
        gains = self._gains(labels, clock, self.usable(ready))
        with clock("assignment"):
            indices, signs = self._solve(gains, labels)
        labels.replace(indices, signs)

    def run(self, labels: Labels, clock: Clock) -> float:
        """One move.

        Returns:
            How much the objective rises; 0 where nothing moved.
        """
        versions = {n: labels.versions[n] for n in self.depends}
        if versions == self._seen:
            return 0.0
        rise = self._move(labels, clock)
        self._seen = {n: labels.versions[n] for n in self.depends} if self.exact or not rise else None
        return rise

    # -- the move --------------------------------------------------------------------------------------------------

    def _move(self, labels: Labels, clock: Clock) -> float:
        linear = self._gains(labels, clock, [p for p in self.parts if p.linear])
        curved_parts = [p for p in self.parts if not p.linear]
        curved = self._gains(labels, clock, curved_parts)
        gains = linear + curved if curved_parts else linear
        blocks = list(dict.fromkeys(p.block for p in curved_parts))
        base = self._exact(blocks, labels) if blocks else 0.0
        rewards = _REWARDS if curved_parts and len(self.tree) == 1 else (0.0,)
        unit = _mean_slack(gains, labels, self.name) if len(rewards) > 1 else 0.0
        for reward in rewards:
            with clock("assignment"):
                indices, signs = self._solve(gains, labels, reward * unit)
            trial = labels.copy()
            trial.replace(indices, signs)
            if not trial.differs(labels):
                return 0.0
            rise, size = self._rise(linear, labels, trial)
            if blocks:
                rise += self._exact(blocks, trial) - base
                size += abs(base)
            if rise > self._noise * size:
                labels.replace(indices, signs)
                return rise
        return 0.0

    @property
    def _noise(self) -> float:
        """Relative rises below this are rounding."""
        return 8 * torch.finfo(self.problem.work_dtype).eps

    def _gains(self, labels: Labels, clock: Clock, parts: list[Part]) -> Gains:
        gains = Gains()
        with clock("gain"):
            for part in parts:
                for fixed, moving, odd in self.problem.views(part.block):
                    signed = odd and part.block.dims[part.chain[-1]].odd
                    gains.add(part.node, pair_gain(part, fixed, moving, labels, odd), signed)
        return gains

    def _exact(self, blocks: list[Block], labels: Labels) -> float:
        return math.fsum(inner(f, relabelled(b, m, labels, odd=o)) for b in blocks for f, m, o in self.problem.views(b))

    def _rise(self, gains: Gains, old: Labels, new: Labels) -> tuple[float, float]:
        """How much the linear parts rise, and the sum of magnitudes that went into it, by which rounding is judged."""
        rise = size = 0.0
        for node in self.tree:
            for table in (gains.even, gains.odd):
                if node in table:
                    before, after = (self._entries(table[node], node, x, table is gains.odd) for x in (old, new))
                    change = after - before
                    rise += float(change.sum())
                    size += float((after.abs() + before.abs())[change != 0].sum())
        return rise, size

    def _entries(self, gain: Tensor, node: str, labels: Labels, odd: bool) -> Tensor:
        entries = picked(gain, self._flat(node, labels))
        return entries * labels.signs[node].reshape(entries.shape) if odd and node in labels.signs else entries

    def _flat(self, node: str, labels: Labels) -> Tensor:
        """Index of the chain down to ``node``, flattened: ``(batch, chain size)``."""
        path = [n for n in (*self.problem.symmetry.atoms[node].within, node) if n in self.tree]
        flat = labels.indices[path[0]].reshape(-1, self.atom.size)
        for name in path[1:]:
            n = self.problem.symmetry.atoms[name].size
            inside = labels.indices[name].reshape(*flat.shape, n)
            flat = (flat.unsqueeze(-1) * n + inside).flatten(1)
        return flat

    # -- assignments, from the leaves of the nesting to its root -------------------------------------------------------

    def _solve(self, gains: Gains, labels: Labels, reward: float = 0.0):
        batch = math.prod(self.problem.symmetry.outer_shape(self.name))
        chosen: dict[str, tuple[Tensor, Tensor | None]] = {}
        self._best(self.name, gains, labels, batch, 1, reward, chosen)
        indices: dict[str, Tensor] = {}
        signs: dict[str, Tensor] = {}
        paths = {self.name: torch.zeros(batch, 1, dtype=torch.int64, device=labels.device)}
        for name, inside in self.tree.items():
            table, sign = chosen[name]
            old = paths[name]  # (batch, new outer position) -> old outer position
            rows = torch.arange(old.shape[1], device=old.device)
            lead = torch.arange(batch, device=old.device).unsqueeze(-1)
            index = table[lead, rows, old]
            shape = (*self.problem.symmetry.outer_shape(name), index.shape[-1])
            indices[name] = index.reshape(shape)
            if sign is not None:
                signs[name] = sign[lead, rows, old].reshape(shape)
            for child in inside:
                paths[child] = (old.unsqueeze(-1) * index.shape[-1] + index).flatten(1)
        if not self.joint:
            self._carry(indices, signs, labels)
        return indices, signs

    def _best(self, name, gains: Gains, labels: Labels, batch: int, outer: int, reward: float, chosen) -> Tensor:
        """The best value between every new and every old outer position, ``(batch, outer, outer)``."""
        n = self.problem.symmetry.atoms[name].size
        even = gains.even.get(name)
        for child in self.tree[name]:
            value = self._best(child, gains, labels, batch, outer * n, reward, chosen)
            even = value if even is None else even + value.to(even.dtype)
        odd = gains.odd.get(name)
        if even is None and odd is None:
            even = torch.zeros(batch, outer * n, outer * n, dtype=self.problem.work_dtype, device=labels.device)
        gain = odd.abs() if even is None else even if odd is None else even + odd.abs()
        if reward:
            now = labels.indices[name].reshape(batch, n, 1)
            gain = gain.scatter_add(-1, now, torch.full_like(now, 1, dtype=gain.dtype) * reward)
        gain = gain.reshape(batch, outer, n, outer, n).transpose(2, 3)
        index = assign(gain)
        sign = None
        if odd is not None:
            parts = odd.reshape(batch, outer, n, outer, n).transpose(2, 3)
            sign = parts.gather(-1, index.unsqueeze(-1)).squeeze(-1).sign()
            sign = torch.where(sign == 0, 1, sign).to(torch.int8)
        chosen[name] = index, sign
        return picked(gain, index).sum(-1)

    def _carry(self, indices: dict[str, Tensor], signs: dict[str, Tensor], labels: Labels) -> None:
        """What is nested in the moved atom keeps the relabelling it had for each old index."""
        trial = labels.copy()
        trial.replace(indices, signs)
        for name, atom in self.problem.symmetry.atoms.items():
            if self.name not in atom.within:
                continue
            for tables, old in ((indices, labels.indices), (signs, labels.signs)):
                if name in old:
                    tables[name] = trial.by_new(name, labels.by_old(name, {self.name}, old[name]), {self.name})


def pair_gain(part: Part, fixed: Tensor, moving: Tensor, labels: Labels, odd: bool) -> Tensor:
    """What each new position of the chain gains from each old one: ``(batch, chain size, chain size)``.

    Args:
        part: Where the moved atoms stand.
        fixed: The block's view of a fixed feature.
        moving: The block's view of the moving one.
        labels: The relabelling of everything else.
        odd: Whether the feature changes sign with signed atoms.
    """
    moving = relabelled(part.block, moving, labels, free=part.chain, odd=odd)
    dims = part.block.dims
    if odd:  # an outer atom that moves keeps its sign by new position; only the innermost one chooses
        for i in part.chain[:-1]:
            if dims[i].odd and dims[i].name in labels.signs:
                fixed = fixed * aligned(part.block, i, labels.signs[dims[i].name]).to(fixed.dtype)
    front = (*part.batch, *part.chain)
    order = (*front, *(i for i in range(len(dims)) if i not in front))
    batch = math.prod(dims[i].size for i in part.batch)
    size = math.prod(dims[i].size for i in part.chain)
    rest = math.prod(dims[i].size for i in order[len(front) :])
    left = fixed.permute(order).reshape(batch, size, rest)
    right = moving.permute(order).reshape(batch, size, rest)
    if batch == 1:
        return (left[0] @ right[0].T).unsqueeze(0)
    return left @ right.transpose(1, 2)


def _parts(block: Block, name: str, joint: bool):
    places = block.positions(name)
    for place in places:
        chain, linear = [place], len(places) == 1
        around = (*block.dims[place].around, name)
        inside = set(block.inside(place))
        while joint and inside:
            nested = [i for i in sorted(inside) if block.dims[i].around == around]
            if not nested:
                break
            chain.append(nested[0])
            around = (*around, block.dims[nested[0]].name)
            inside.discard(nested[0])
        # what is left inside cannot be matched along: it is carried, so the block is only approximated
        yield Part(block, block.dims[place].outer, tuple(chain), linear and (not joint or not inside))


def _tree(parts: list[Part]) -> dict[str, tuple[str, ...]]:
    """Atom -> the atoms directly inside it that move along; outer ones first."""
    tree: dict[str, dict[str, None]] = {}
    for part in parts:
        names = [part.block.dims[i].name for i in part.chain]
        for name, inside in zip(names, (*names[1:], None), strict=True):
            tree.setdefault(name, {})
            if inside is not None:
                tree[name][inside] = None
    ordered: dict[str, tuple[str, ...]] = {}
    waiting = [parts[0].block.dims[parts[0].chain[0]].name] if parts else []
    while waiting:
        name = waiting.pop(0)
        ordered[name] = tuple(tree[name])
        waiting += ordered[name]
    return ordered


def _mean_slack(gains: Gains, labels: Labels, name: str) -> float:
    """How much more the best partner of a row gains than its present one, on average."""
    even, odd = gains.even.get(name), gains.odd.get(name)
    if even is None and odd is None:
        return 0.0
    gain = odd.abs() if even is None else even if odd is None else even + odd.abs()
    now = picked(gain, labels.indices[name].reshape(gain.shape[:-1]))
    return float((gain.max(-1).values.double() - now).mean())
