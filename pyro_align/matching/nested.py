"""Assignments of an atom together with the atoms nested in it.

What outer index i gains from outer index j is the best that the inner atoms can do between i and j. So inner
assignments for pairs (i, j) give the gain matrix of the outer atom, from the leaves of the nesting to its root: one
wreath product is matched exactly by linear assignments alone. With a single level of nesting most pairs are never
solved: the sum of row maxima bounds what a pair can gain, and only pairs that an optimistic outer assignment picks are
looked into.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from pyro_align.matching.assignment import assign, best_sign, picked
from pyro_align.matching.evidence import Gains
from pyro_align.symmetry.element import is_permutation
from pyro_align.symmetry.group import Symmetry

Tree = Mapping[str, tuple[str, ...]]
Chosen = dict[str, tuple[Tensor, Tensor | None]]  # atom -> index and sign for each pair of outer positions


def solve_tree(
    symmetry: Symmetry,
    tree: Tree,
    gains: Gains,
    *,
    device: torch.device,
    dtype: torch.dtype,
    stay: Tensor | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The relabelings of an atom and of those nested in it that maximize their gains.

    Args:
        symmetry: The group.
        tree: Atom -> the atoms directly inside it, the moved one first.
        gains: Gain matrices by atom.
        device: Where the gains lie.
        dtype: Their dtype.
        stay: Added to the gain of the moved atom, ``(batch, n, n)``; only without nested atoms.

    Returns:
        Atom -> indices, and signed atom -> signs, ``(*outer sizes, size)``.
    """
    root = next(iter(tree))
    batch = math.prod(symmetry.outer_shape(root))
    if tree[root] and batch == 1 and not any(tree[child] for child in tree[root]):
        chosen = _lazily(symmetry, root, tree[root], gains, device, dtype)
    else:
        chosen = {}
        _best(symmetry, root, tree, gains, batch, 1, chosen, device, dtype, stay)
    return _read(symmetry, tree, chosen, batch, device)


def _best(symmetry, name, tree, gains: Gains, batch: int, outer: int, chosen: Chosen, device, dtype, stay) -> Tensor:
    """The best value between every new and every old outer position, ``(batch, outer, outer)``."""
    n = symmetry.atoms[name].size
    gain = _total(gains, name, (batch, outer * n), device, dtype)
    for child in tree[name]:
        gain = gain + _best(symmetry, child, tree, gains, batch, outer * n, chosen, device, dtype, None).to(dtype)
    if stay is not None:
        gain = gain + stay
    gain = _pairs(gain, outer, n)
    index = assign(gain)
    chosen[name] = index, _signs(gains, name, index)
    return picked(gain, index).sum(-1)


def _lazily(symmetry, root: str, inside: tuple[str, ...], gains: Gains, device, dtype) -> Chosen:
    """As :func:`_best` for one level of nesting, inner assignments solved only for pairs that may matter."""
    n = symmetry.atoms[root].size
    value = _total(gains, root, (1, n), device, dtype)[0].clone()
    tables, best = {}, {}
    exact = torch.ones(n, n, dtype=torch.bool, device=device)
    for child in inside:
        size = symmetry.atoms[child].size
        tables[child] = _pairs(_total(gains, child, (1, n * size), device, dtype), n, size)[0]
        top = tables[child].max(-1)
        best[child] = top.indices
        value += torch.minimum(top.values.sum(-1), tables[child].amax(-2).sum(-1))
        exact &= is_permutation(top.indices)
    rows = torch.arange(n, device=device)
    while True:
        index = assign(value)
        ask = ~exact[rows, index]
        if not bool(ask.any()):
            break
        i, j = rows[ask], index[ask]
        value[i, j] = _total(gains, root, (1, n), device, dtype)[0][i, j]
        for child in inside:
            gain = tables[child][i, j]
            best[child][i, j] = assign(gain)
            value[i, j] += picked(gain, best[child][i, j]).sum(-1).to(dtype)
        exact[i, j] = True
    chosen: Chosen = {root: (index.reshape(1, 1, 1, n), _signs(gains, root, index.reshape(1, 1, 1, n)))}
    for child in inside:
        table = best[child].unsqueeze(0)
        chosen[child] = table, _signs(gains, child, table)
    return chosen


def _read(symmetry: Symmetry, tree: Tree, chosen: Chosen, batch: int, device):
    """From the choices for every pair to those along the assignment, root first."""
    indices: dict[str, Tensor] = {}
    signs: dict[str, Tensor] = {}
    paths = {next(iter(tree)): torch.zeros(batch, 1, dtype=torch.int64, device=device)}
    for name, inside in tree.items():
        table, sign = chosen[name]
        old = paths[name]  # (batch, new outer position) -> old outer position
        rows = torch.arange(old.shape[1], device=device)
        lead = torch.arange(batch, device=device).unsqueeze(-1)
        index = table[lead, rows, old]
        shape = (*symmetry.outer_shape(name), index.shape[-1])
        indices[name] = index.reshape(shape)
        if sign is not None:
            signs[name] = sign[lead, rows, old].reshape(shape)
        for child in inside:
            paths[child] = (old.unsqueeze(-1) * index.shape[-1] + index).flatten(1)
    return indices, signs


def _total(gains: Gains, name: str, shape: tuple[int, int], device, dtype) -> Tensor:
    gain = gains.total(name)
    return torch.zeros(*shape, shape[1], dtype=dtype, device=device) if gain is None else gain


def _pairs(gain: Tensor, outer: int, n: int) -> Tensor:
    """``(batch, outer * n, outer * n)`` as one matrix for each pair: ``(batch, outer, outer, n, n)``."""
    return gain.reshape(-1, outer, n, outer, n).transpose(2, 3)


def _signs(gains: Gains, name: str, index: Tensor) -> Tensor | None:
    """The better sign of each unit, ``(batch, outer, outer, n)``, or None where nothing speaks for one."""
    odd = gains.odd.get(name)
    if odd is None:
        return None
    return best_sign(_pairs(odd, index.shape[1], index.shape[-1]), index)
