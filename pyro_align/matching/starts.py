"""Relabelings to begin from: spectral ones, random ones, and kicks that leave a local optimum."""

from __future__ import annotations

import math

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from pyro_align.errors import MatchError
from pyro_align.matching.problem import Problem
from pyro_align.symmetry.element import Permutation


def named_start(problem: Problem, name: str, generator: torch.Generator) -> Permutation:
    """The start called ``"identity"``, ``"random"`` or ``"spectral"``."""
    if name == "identity":
        return problem.symmetry.identity()
    if name == "random":
        return problem.symmetry.random(generator)
    if name == "spectral":
        return spectral(problem)
    raise MatchError(f"unknown init {name!r}; expected a Permutation, 'identity', 'random', 'spectral' or None")


def spectral(problem: Problem) -> Permutation:
    """Matches each atom by the eigenvectors of its units' Gram matrix (Umeyama 1988).

    The Gram matrix of an atom's units, summed over the sites that carry it, does not depend on how the other atoms are
    labeled, so every atom is matched by itself. Nested atoms and those around them keep their order.
    """
    indices = {}
    outers = {outer for atom in problem.symmetry.atoms.values() for outer in atom.within}
    for name, atom in problem.symmetry.atoms.items():
        if atom.within or name in outers:
            continue
        fixed, moving = (_gram(problem, name, atom.size, side) for side in (0, 1))
        left, right = (torch.linalg.eigh(g)[1].abs() for g in (fixed, moving))
        score = left @ right.T
        indices[name] = torch.from_numpy(linear_sum_assignment(score.cpu().numpy(), maximize=True)[1])
    return problem.symmetry.permutation(indices)


def _gram(problem: Problem, name: str, size: int, side: int) -> Tensor:
    gram = torch.zeros(size, size, dtype=problem.work_dtype, device=problem.device)
    for block in problem.touching[name]:
        for place in block.positions(name):
            for views in problem.views(block):
                rows = views[side].movedim(place, 0).reshape(size, -1)
                gram.addmm_(rows, rows.T)
    return gram


def kick(permutation: Permutation, share: float, generator: torch.Generator) -> Permutation:
    """The relabeling after a share of every atom's units are shuffled among themselves."""
    indices = {name: kicked(index, share, generator) for name, index in permutation.indices.items()}
    return permutation.symmetry.permutation(indices, permutation.signs)


def kicked(index: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """A table ``(*outer sizes, size)`` in each row of which a share, but at least two, are shuffled."""
    n = index.shape[-1]
    count = min(n, max(2, math.ceil(share * n)))
    rows = index.reshape(-1, n)
    where, order = (
        torch.rand(len(rows), m, generator=generator, device="cpu").argsort(1)[:, :count] for m in (n, count)
    )
    where, order = where.to(index.device), order.to(index.device)
    return rows.scatter(1, where, rows.gather(1, where.gather(1, order))).reshape(index.shape)
