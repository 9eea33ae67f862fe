"""What is relabeled as one: a draw, or a whole chain. Units offer features to match by, a slice at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_align.draws.batched import UnitMatcher
from pyro_align.symmetry.element import Permutation
from pyro_align.symmetry.group import Symmetry

_ELEMENTS = 1 << 20  # numbers held at a time when draws are streamed

Features = dict[str, tuple[Tensor, ...]]


@dataclass(frozen=True, eq=False)
class Units:
    """A stack of things to be relabeled.

    Attributes:
        symmetry: The group, over the sites that are compared.
        odd: Which features change sign with signed units.
        valid: Which units can be compared, ``(units,)`` bool: the others keep their labels.
        trusted: Which of them also count in a reference, ``(units,)`` bool: divergent draws do not.
        slices: The stack cut into ``(start, stop)``.
        read: Features of units ``start`` to ``stop``, ``(stop - start, *site_shape)`` each.
    """

    symmetry: Symmetry
    odd: tuple[bool, ...]
    valid: Tensor
    trusted: Tensor
    slices: tuple[tuple[int, int], ...]
    read: Callable[[int, int], Features]

    @property
    def count(self) -> int:
        """Number of units."""
        return len(self.valid)

    def chunks(self) -> Iterator[tuple[int, int, Features]]:
        """``(start, stop, features)``; units that cannot be compared have features of zero."""
        for start, stop in self.slices:
            features, mask = self.read(start, stop), self.valid[start:stop]
            if not bool(mask.all()):
                features = {k: tuple(_masked(f, mask) for f in v) for k, v in features.items()}
            yield start, stop, features

    def one(self, unit: int) -> Features:
        """Features of one unit, ``site_shape`` each."""
        return {k: tuple(f[0] for f in v) for k, v in self.read(unit, unit + 1).items()}


def cut(chains: int, draws: int, numel: int) -> tuple[tuple[int, int], ...]:
    """Slices of a stack of ``chains * draws`` units, none across two chains, each of bounded size."""
    size = max(1, min(draws, _ELEMENTS // max(1, numel)))
    per_chain = math.ceil(draws / size)
    size = math.ceil(draws / per_chain)
    return tuple(
        (c * draws + lo, c * draws + min(lo + size, draws)) for c in range(chains) for lo in range(0, draws, size)
    )


def by_chain(units: Units, chains: int) -> Units:
    """One unit per chain: its features are the means over the chain's trusted draws.

    The objective is linear in a unit's features, so the best common relabeling of a chain's draws is that of their
    mean.
    """
    draws = units.count // chains
    trusted = units.trusted.reshape(chains, draws)
    sums: list[Features | None] = [None] * chains
    for start, stop, features in units.chunks():
        chain, mask = start // draws, units.trusted[start:stop]
        part = {k: tuple(_masked(f, mask).sum(0) for f in v) for k, v in features.items()}
        sums[chain] = part if sums[chain] is None else _add(sums[chain], part)
    counts = trusted.sum(1)
    means = {
        k: tuple(
            torch.stack([s[k][j] / max(1, int(n)) for s, n in zip(sums, counts, strict=True)])
            for j in range(len(sums[0][k]))
        )
        for k in sums[0]
    }

    def read(start: int, stop: int) -> Features:
        return {k: tuple(f[start:stop] for f in v) for k, v in means.items()}

    return Units(units.symmetry, units.odd, counts > 0, counts > 0, ((0, chains),), read)


@dataclass
class Labels:
    """The relabeling of every unit.

    Attributes:
        indices: Atom -> ``(units, *outer sizes, size)``, in the smallest integer type that holds the size.
        signs: Signed atom -> int8 ``(units, *outer sizes, size)``.
    """

    indices: dict[str, Tensor]
    signs: dict[str, Tensor]

    @classmethod
    def identity(cls, symmetry: Symmetry, units: int) -> Labels:
        indices, signs = {}, {}
        for name, atom in symmetry.atoms.items():
            shape = (units, *symmetry.outer_shape(name), atom.size)
            indices[name] = torch.arange(atom.size, dtype=compact(atom.size), device="cpu").expand(shape).clone()
            if name in symmetry.signed:
                signs[name] = torch.ones(shape, dtype=torch.int8, device="cpu")
        return cls(indices, signs)

    def permutation(self, stack: Symmetry, units: slice) -> Permutation:
        """The relabeling of some units as one element of their stack's group."""
        return stack.permutation(
            {k: v[units].long() for k, v in self.indices.items() if k in stack.atoms},
            {k: v[units] for k, v in self.signs.items() if k in stack.signed},
        )

    def put(self, units: slice, p: Permutation, mask: Tensor) -> int:
        """Takes over a relabeling where ``mask`` holds.

        Returns:
            Number of units whose relabeling changed.
        """
        changed = torch.zeros(len(mask), dtype=torch.bool, device="cpu")
        new = {k: v.to(self.indices[k].dtype) for k, v in p.indices.items()}
        signs = {k: p.signs.get(k, torch.ones_like(self.signs[k][units])) for k in self.signs if k in p.indices}
        for tables, fresh in ((self.indices, new), (self.signs, signs)):
            for name, value in fresh.items():
                changed |= mask & (tables[name][units] != value).flatten(1).any(1)
                tables[name][units] = torch.where(
                    mask.reshape(-1, *(1,) * (value.dim() - 1)), value, tables[name][units]
                )
        return int(changed.sum())


@dataclass(frozen=True)
class Sums:
    """What one pass over all units adds up.

    Attributes:
        mean: Site -> mean of each relabeled feature over the trusted units, ``site_shape`` each.
        square: Site -> mean over trusted units and elements of the first feature's square.
        objective: Sum over units of the objective.
        changed: Number of units whose relabeling changed.
    """

    mean: Features
    square: Mapping[str, float]
    objective: float
    changed: int


def assign_all(units: Units, matcher: UnitMatcher, fixed: Mapping[str, Sequence[Tensor]], labels: Labels) -> Sums:
    """Relabels every unit anew, in place in ``labels``, and adds up the relabeled features."""
    total: Features | None = None
    square: dict[str, float] = {}
    objective, changed = 0.0, 0
    for start, stop, features in units.chunks():
        here = slice(start, stop)
        stack = matcher.stack(stop - start)
        p = matcher(fixed, features, labels.permutation(stack, here))
        changed += labels.put(here, p, units.valid[here])
        mask = units.trusted[here]
        moved = {
            k: tuple(_masked(p.apply_site(k, f, signs=o), mask) for f, o in zip(v, units.odd, strict=True))
            for k, v in features.items()
        }
        part = {k: tuple(f.double().sum(0) for f in v) for k, v in moved.items()}
        total = part if total is None else _add(total, part)
        for k, v in moved.items():
            square[k] = square.get(k, 0.0) + float(v[0].double().square().sum())
            objective += sum(float((f * m).double().sum()) for f, m in zip(fixed[k], v, strict=True))
    count = max(1, int(units.trusted.sum()))
    mean = {k: tuple(f / count for f in v) for k, v in total.items()}
    square = {k: v / (count * max(1, mean[k][0].numel())) for k, v in square.items()}
    return Sums(mean, square, objective, changed)


def compact(size: int) -> torch.dtype:
    """The smallest integer type that holds indices below ``size``."""
    return torch.int8 if size <= 127 else torch.int16 if size <= 32767 else torch.int32


def _masked(value: Tensor, mask: Tensor) -> Tensor:
    if bool(mask.all()):
        return value
    return torch.where(mask.reshape(-1, *(1,) * (value.dim() - 1)), value, value.new_zeros(()))


def _add(a: Features, b: Features) -> Features:
    return {k: tuple(x + y for x, y in zip(a[k], b[k], strict=True)) for k in a}
