"""What is relabeled as one: a draw, or a whole chain. Units offer features to match by, a slice at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyro_align.draws.search import UnitMatcher
from pyro_align.draws.stack import Features, Labels
from pyro_align.symmetry.group import Symmetry

_NUMBERS = 1 << 21  # held at a time when draws are streamed: a slice of few draws costs as much as one of many


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

    def chunks(self) -> Iterator[tuple[slice, Features]]:
        """Slices of the stack and their features; units that cannot be compared have features of zero."""
        for start, stop in self.slices:
            yield slice(start, stop), only(self.read(start, stop), self.valid[start:stop])

    def one(self, unit: int) -> Features:
        """Features of one unit, ``site_shape`` each."""
        return {k: tuple(f[0] for f in v) for k, v in self.read(unit, unit + 1).items()}


def cut(chains: int, draws: int, numel: int) -> tuple[tuple[int, int], ...]:
    """Slices of a stack of ``chains * draws`` units, none across two chains, each of bounded size."""
    most = max(1, min(draws, _NUMBERS // max(1, numel)))
    size = math.ceil(draws / math.ceil(draws / most))  # as even as can be
    return tuple(
        (c * draws + lo, c * draws + min(lo + size, draws)) for c in range(chains) for lo in range(0, draws, size)
    )


def by_chain(units: Units, chains: int) -> Units:
    """One unit per chain: its features are the means over the chain's trusted draws.

    The objective is linear in a unit's features, so the best common relabeling of a chain's draws is that of their
    mean.
    """
    draws = units.count // chains
    counts = units.trusted.reshape(chains, draws).sum(1)
    means: Features = {}
    for here, features in units.chunks():
        chain = here.start // draws
        for site, parts in only(features, units.trusted[here]).items():
            if site not in means:
                means[site] = tuple(f.new_zeros(chains, *f.shape[1:]) for f in parts)
            for mean, part in zip(means[site], parts, strict=True):
                mean[chain] += part.sum(0) / counts[chain].clamp_min(1)

    def read(start: int, stop: int) -> Features:
        return {k: tuple(f[start:stop] for f in v) for k, v in means.items()}

    return replace(units, valid=counts > 0, trusted=counts > 0, slices=((0, chains),), read=read)


@dataclass(frozen=True)
class Sums:
    """What one pass over all units adds up.

    Attributes:
        mean: Site -> mean of each relabeled feature over the trusted units, ``site_shape`` each.
        square: Site -> mean over trusted units and elements of the first feature's square.
        changed: Number of units whose relabeling changed.
        improved: Number of units that a second search improved.
    """

    mean: Features
    square: dict[str, float]
    changed: int
    improved: int


def assign_all(units: Units, matcher: UnitMatcher, fixed: Features, labels: Labels) -> Sums:
    """Relabels every unit again, in place in ``labels``, and adds up the relabeled features.

    Args:
        fixed: Site -> features of the reference, ``site_shape`` each.
    """
    count = max(1, int(units.trusted.sum()))
    mean: dict[str, tuple[Tensor, ...]] = {}
    square: dict[str, float] = {}
    changed = improved = 0
    for here, features in units.chunks():
        start = labels.permutation(matcher.stack(here.stop - here.start), here)
        found = matcher(fixed, features, start)
        changed += labels.put(here, found.permutation, units.valid[here])
        improved += int((found.improved & units.valid[here]).sum())
        p = found.permutation
        moved = {
            k: tuple(p.apply_site(k, f, signs=o) for f, o in zip(v, units.odd, strict=True))
            for k, v in features.items()
        }
        for site, parts in only(moved, units.trusted[here]).items():
            sums = tuple(f.sum(0, dtype=torch.float64) / count for f in parts)
            mean[site] = tuple(a + b for a, b in zip(mean[site], sums, strict=True)) if site in mean else sums
            total = float(torch.linalg.vector_norm(parts[0], dtype=torch.float64).square())
            square[site] = square.get(site, 0.0) + total / (count * max(1, sums[0].numel()))
    return Sums(mean, square, changed, improved)


def only(features: Features, mask: Tensor) -> Features:
    """The features with zeros for the units outside a mask ``(units,)``."""
    if bool(mask.all()):
        return features
    return {
        k: tuple(torch.where(mask.reshape(-1, *(1,) * (f.dim() - 1)), f, f.new_zeros(())) for f in v)
        for k, v in features.items()
    }
