"""Many relabelings annealed at once: every atom is matched softly while the others are soft as well.

In turn each atom gets a doubly stochastic matrix for every member, Sinkhorn's of its expected gains, while the
temperature falls (graduated assignment: Gold & Rangarajan 1996; softassign as a mean field: Yuille & Kosowsky 1994).
All begin uniform, so that no atom is settled before the others have spoken. Temperatures are in standard deviations of
a member's gains. Signed units are soft in their sign too: among the pairs (partner, sign), ``X`` sums over both signs,
and ``X tanh(odd / T)`` is the expected signed partner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import one_hot, softplus

from pyro_align.matching.assignment import FAINT, assigned, best_sign

Parts = tuple[Tensor | None, Tensor | None]  # even and odd part of gains, (members, new, old)
Pair = tuple[Tensor, Tensor]  # matrices (members, new, old) for even features and for odd ones
Tables = dict[str, Tensor]  # atom -> (members, units)

_COLDEST = 0.1
_SURE = 0.9  # largest entry of every row above which annealing has made up its mind


def anneal(
    gain: Callable[[str, Mapping[str, Pair]], Parts],
    soft: dict[str, Pair],
    warmest: Tensor,
    rounds: int,
    generator: torch.Generator | None = None,
) -> tuple[Tables, Tables]:
    """Indices and, of atoms with odd gains, signs.

    Args:
        gain: What each pair of an atom's units adds to the objective, given the matrices of the others.
        soft: Atom -> the matrices to begin with; atoms are taken in this order.
        warmest: First temperature of each member, in standard deviations of its gains; or of all, ``(1,)``.
        rounds: Rounds, the last at temperature zero.
        generator: Draws the order of the atoms again in each round, where given.
    """
    names, prices, indices, signs, step = list(soft), {}, {}, {}, 0
    while step < rounds:
        heat = (warmest * (_COLDEST / warmest) ** (step / (rounds - 2))).view(-1, 1, 1)
        for name in names if generator is None else shuffled(names, generator):
            parts = gain(name, soft)
            if step < rounds - 1:
                soft[name], prices[name] = soften(parts, heat, prices.get(name))
                continue
            indices[name] = assigned(total_gain(parts))
            if parts[1] is not None:
                signs[name] = best_sign(parts[1], indices[name])
            soft[name] = hard(indices[name], signs.get(name), soft[name][0])
        sure = all(float(even.amax(2).amin()) > _SURE for even, _ in soft.values())
        step = rounds - 1 if sure and step < rounds - 1 else step + 1
    return indices, signs


def shuffled(names: list[str], generator: torch.Generator) -> Iterable[str]:
    """The names in random order."""
    return [names[k] for k in torch.randperm(len(names), generator=generator, device="cpu").tolist()]


def uniform(members: int, n: int, signed: bool, like: Tensor) -> Pair:
    """Every partner, and either sign, equally likely."""
    even = like.new_full((members, n, n), 1 / n)
    return even, torch.zeros_like(even) if signed else even


def hard(index: Tensor, sign: Tensor | None, like: Tensor) -> Pair:
    """The matrices of a relabeling."""
    even = one_hot(index, index.shape[-1]).to(like.dtype)
    return even, even if sign is None else even * sign.unsqueeze(-1)


def soften(parts: Parts, heat: Tensor, price: Tensor | None) -> tuple[Pair, Tensor]:
    """Doubly stochastic matrices at a temperature, and the prices of their columns.

    Args:
        parts: Gains.
        heat: Temperatures in standard deviations of the gains about their row and column means, ``(members, 1, 1)``.
        price: Prices of the round before, from which few normalizations suffice; None in the first.
    """
    total, odd = total_gain(parts), parts[1]
    row = total.mean(2, keepdim=True)
    centered = total - total.mean(1, keepdim=True) - (row - row.mean(1, keepdim=True))
    scale = heat * torch.linalg.vector_norm(centered, dim=(1, 2), keepdim=True).div_(total.shape[-1])
    scale = scale.clamp_min(1e-12 * float(total.abs().max()) + torch.finfo(total.dtype).tiny)
    lean = None if odd is None else odd / scale
    if lean is not None:
        total = total + scale * softplus(-2 * lean.abs())  # both signs of each pair
    logits = (total if price is None else total - price) / scale
    kernel = logits.sub_(logits.amax(2, keepdim=True)).clamp_min_(FAINT).exp_()
    row, column = kernel.sum(2, keepdim=True).reciprocal_(), torch.ones_like(kernel[:, :1])
    for k in range(4 if price is None else 2):
        row = (kernel @ column.transpose(1, 2)).reciprocal_() if k else row
        column = (row.transpose(1, 2) @ kernel).clamp_min_(1e-30).reciprocal_()
    matrix = kernel.mul_(row).mul_(column)
    paid = scale * column.log()
    return (matrix, matrix if lean is None else matrix * lean.tanh_()), -paid if price is None else price - paid


def total_gain(parts: Parts) -> Tensor:
    """The gain of each pair under its better sign."""
    even, odd = parts
    if odd is None:
        assert even is not None  # every free atom is in some block
        return even
    return odd.abs() if even is None else even + odd.abs()
