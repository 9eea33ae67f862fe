"""How sure each match is: what a unit's second-best partner would cost."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_align.matching.assignment import swap_costs
from pyro_align.matching.curvature import is_plain, swap_curvature
from pyro_align.matching.labels import Labels
from pyro_align.matching.problem import Problem
from pyro_align.matching.updates import Update
from pyro_align.symmetry.element import Permutation


def margins(problem: Problem, permutation: Permutation) -> dict[str, Tensor]:
    """For each unit, how much the objective falls if it swaps partners with the unit that makes that cheapest.

    All other atoms held, swapping the partners of new positions i and k changes the objective by
    ``g[i, p(k)] + g[k, p(i)] - g[i, p(i)] - g[k, p(k)]`` with g the atom's gain matrix; the margin of i is the least
    fall over k. A margin near 0 means that the unit is exchangeable: it sits at the prior, or has a twin, and its match
    means nothing. A negative one means that a swap would gain: the relabeling is not a local optimum. Where an atom is
    on two axes of a site the second-order term of the swap is added, so that the fall is exact there too; only where
    such an atom is nested, signed, or on three axes is it the linearized one.

    Args:
        problem: What was matched.
        permutation: The relabeling to judge.

    Returns:
        Atom -> ``(*outer sizes, size)`` in units of the objective; infinite for atoms of one unit.
    """
    out = {}
    labels = Labels(permutation, problem.device)
    with torch.no_grad():
        for name, atom in problem.symmetry.atoms.items():
            gain = Update(problem, name, joint=False).gain(labels)
            now = labels.indices[name].reshape(-1, atom.size)
            cost = swap_costs(gain, now)
            twice = [b for b in problem.touching[name] if is_plain(b, name)]
            if twice and len(cost) == 1:
                n = atom.size
                every = torch.arange(n * n, device=problem.device)
                bent = swap_curvature(problem, twice, name, labels, (every // n, every % n))
                cost = cost - bent.reshape(1, n, n).to(cost)
            out[name] = cost.amin(2).reshape(labels.indices[name].shape).cpu()
    return out
