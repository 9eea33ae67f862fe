"""Completeness: the dimension of all linear symmetries of a function, to hold against that of the group found.

A linear symmetry moves a site's value along an axis, ``v -> exp(t L) v``, and leaves the function f as it is. To first
order, ``df(v)[L v] = 0`` at every v: linear equations in the entries of all matrices L, one for every point. At as many
random points as there are entries the solutions are, with probability one, the Lie algebra of the group of all such
symmetries (up to those of identities that cancel, which move nothing). What is in it and not in the group that was
found is named with its sites. Finite groups leave no trace here: relabelings and signs are not counted.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_align.errors import TraceError
from pyro_align.symmetry.action import Tables, act
from pyro_align.symmetry.findings import Completeness, Missing
from pyro_align.symmetry.group import Symmetry

GENERATORS = 1500  # unknown entries of matrices: as many gradients, and a singular value decomposition of that size
SPARE = 20  # points beyond the number of unknowns
_ZERO = 1e-9  # of the largest singular value; those of the models in the tests are above 1e-6 or below 1e-13
_NOISE = 1e-12  # of the largest column: a gradient that is rounding
_TANGENTS = 3  # points at which tangents are compared
_ABSENT = 1e-6  # entries of a unit vector of generators that are rounding

Values = dict[str, Tensor]


@dataclass(frozen=True)
class _Slot:
    """The unknown matrix along one axis of a site, or along several taken as one."""

    site: str
    axes: tuple[int, ...]
    size: int

    def flat(self, value: Tensor) -> Tensor:
        """``(points, size, rest)``."""
        points = len(value)
        if not self.axes:
            return value.reshape(points, 1, -1)
        value = value.movedim([a + 1 for a in self.axes], list(range(1, len(self.axes) + 1)))
        return value.reshape(points, self.size, -1)

    def back(self, flat: Tensor, shape: Sequence[int]) -> Tensor:
        """``(points, *shape)`` from ``(points, size, rest)``."""
        if not self.axes:
            return flat.reshape(len(flat), *shape)
        rest = [n for i, n in enumerate(shape) if i not in self.axes]
        value = flat.reshape(len(flat), *(shape[a] for a in self.axes), *rest)
        return value.movedim(list(range(1, len(self.axes) + 1)), [a + 1 for a in self.axes])


def count_linear(
    function: Callable[[Values], Tensor],  # site -> value to a tensor, which must not change; it can be differentiated
    symmetry: Symmetry,
    point: Callable[[int], Values],  # seed -> random values of all sites, in float64
    *,
    sites: Sequence[str],  # which of them are floating-point numbers that may be moved
    seed: int = 0,  # seed of the points and of the outputs' weights
) -> Completeness:
    """Counts the linear symmetries of a function along the axes of its sites."""
    start = time.perf_counter()
    slots, left_out = _slots(symmetry, sites)
    if not slots:  # simplexes, say: no linear map acts on them
        return Completeness(0, 0, (), left_out, 0, float("inf"), time.perf_counter() - start)
    total = sum(s.size**2 for s in slots)
    rows, values = _equations(function, slots, point, total + SPARE, seed)
    norm = rows.norm(dim=0)
    speaks = norm > _NOISE * norm.max()  # what a softmax drops has a gradient of rounding, to be read as zero
    scale = torch.where(speaks, norm, 1.0)
    _, singular, right = torch.linalg.svd(torch.where(speaks, rows / scale, 0.0), full_matrices=True)
    kept = int((singular > _ZERO * singular[0]).sum())
    gap = float(singular[kept - 1] / singular[kept]) if 0 < kept < total else float("inf")
    null = torch.linalg.qr((right[kept:] / scale).mT)[0]  # (generators, solutions)
    values = {s: v[:_TANGENTS] for s, v in values.items()}
    all_moves = _tangents(null, slots, values, symmetry.shapes)
    known = _known(symmetry, slots, values)
    size = float(torch.cat([v.flatten() for v in values.values()]).norm())  # what a unit generator may move
    dimension = len(_span(all_moves, size).mT)
    lost = _span(_beyond(all_moves, known), size)
    rest = len(lost.mT)
    return Completeness(
        dimension=dimension,
        found=dimension - rest,
        missing=_missing(null @ lost, slots),
        left_out=left_out,
        generators=total,
        gap=gap,
        seconds=time.perf_counter() - start,
    )


def _slots(symmetry: Symmetry, sites: Sequence[str]) -> tuple[list[_Slot], tuple[tuple[str, int], ...]]:
    """The unknown matrices, those along short axes first, as far as they can be afforded."""
    found = []
    for site in sites:
        shape = symmetry.shapes[site]
        merged = [{a} for a in range(len(shape))]
        for block in symmetry.blocks(site):  # a nested atom's matrix depends on the axis of the atom around it
            if len(block.steps) == 0:
                for i, dim in enumerate(block.dims):
                    together = set().union(*(g for g in merged if g & {i, *dim.outer}))
                    merged = [g for g in merged if not g & together] + [together]
        for group in merged or [set()]:
            axes = tuple(sorted(group))
            found.append(_Slot(site, axes, int(torch.Size([shape[a] for a in axes]).numel())))
    kept, total = [], 0
    for slot in sorted(found, key=lambda s: s.size):
        if total + slot.size**2 > GENERATORS:
            break
        kept.append(slot)
        total += slot.size**2
    left = tuple((s.site, a) for s in found if s not in kept for a in s.axes)
    return [s for s in found if s in kept], left


def _equations(function, slots: Sequence[_Slot], point, count: int, seed: int) -> tuple[Tensor, Values]:
    """One equation a point, of unit length, and the points."""
    points = [point(seed + k) for k in range(count)]
    sites = list(dict.fromkeys(s.site for s in slots))
    values = {s: torch.stack([p[s] for p in points]) for s in sites}
    others = {s: torch.stack([p[s] for p in points]) for s in points[0] if s not in values}
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        like = function(points[0]).reshape(-1)
    weight = torch.randn(count, len(like), generator=generator, dtype=torch.float64, device="cpu").to(like.device)
    gradients = _gradients(function, values, others, weight)
    rows = torch.cat(
        [(s.flat(gradients[s.site]) @ s.flat(values[s.site]).mT).flatten(1) for s in slots], 1
    )  # d/dL of f(L v): gradient times value
    if not bool(rows.isfinite().all()):
        raise TraceError("the completeness count met a point at which the gradient is not finite")
    norm = rows.norm(dim=1, keepdim=True)
    return (rows / torch.where(norm > 0, norm, 1.0)).cpu(), {s: v.cpu() for s, v in values.items()}


def _gradients(function, values: Values, others: Values, weight: Tensor) -> Values:
    """Of the weighted outputs, at every point; by one call for all points where the function can be batched."""

    def scalar(at: Values, held: Values, w: Tensor) -> Tensor:
        return (function({**at, **held}).reshape(-1) * w).sum()

    try:
        try:
            return torch.func.vmap(torch.func.grad(scalar), chunk_size=64)(values, others, weight)
        except (RuntimeError, NotImplementedError, ValueError):
            out: dict[str, list[Tensor]] = {s: [] for s in values}
            for k in range(len(weight)):
                at = {s: v[k].clone().requires_grad_() for s, v in values.items()}
                total = scalar(at, {s: v[k] for s, v in others.items()}, weight[k])
                found = torch.autograd.grad(total, list(at.values()), allow_unused=True)
                for s, g in zip(at, found, strict=True):
                    out[s].append(torch.zeros_like(values[s][k]) if g is None else g)
            return {s: torch.stack(g) for s, g in out.items()}
    except (RuntimeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise TraceError(
            f"the completeness count needs derivatives, and the model has none: {type(error).__name__}: {reason}. "
            "Leave count=True out"
        ) from error


def _tangents(generators: Tensor, slots: Sequence[_Slot], values: Values, shapes) -> Tensor:
    """How the points move under each generator, ``(entries of all points, generators)``."""
    matrices = generators.mT.split([s.size**2 for s in slots], 1)
    moves = dict.fromkeys(values, 0.0)
    for slot, m in zip(slots, matrices, strict=True):
        m = m.reshape(-1, 1, slot.size, slot.size)
        flat = m @ slot.flat(values[slot.site])  # (generators, points, size, rest)
        moved = slot.back(flat.flatten(0, 1), shapes[slot.site]).reshape(*flat.shape[:2], flat.shape[2:].numel())
        moves[slot.site] = moves[slot.site] + moved
    return torch.cat([m.flatten(1) for m in moves.values()], 1).mT


def _known(symmetry: Symmetry, slots: Sequence[_Slot], values: Values) -> Tensor:
    """How the points move under the generators of rotations and scalings, where all their axes are covered."""
    covered = {(s.site, a) for s in slots for a in s.axes}
    moves = []
    for name in symmetry.rotated:
        if not set(symmetry.carriers[name]) <= covered:
            continue
        n, outer = symmetry.atoms[name].size, symmetry.outer_shape(name)
        unit = torch.eye(n, dtype=torch.float64, device="cpu").expand(*outer, n, n)
        for *at, i, j in itertools.product(*(range(k) for k in (*outer, n, n))):
            if i >= j:
                continue
            skew = torch.zeros_like(unit)
            skew[(*at, i, j)], skew[(*at, j, i)] = 1.0, -1.0
            if symmetry.atoms[name].centered:
                skew = skew - skew.mean(-1, keepdim=True)
                skew = skew - skew.mean(-2, keepdim=True)
            ahead, behind = (Tables(rotations={name: unit + sign * skew}) for sign in (1, -1))
            parts = []
            for site, value in values.items():  # quadratic terms, where a site carries the atom twice, cancel
                blocks = symmetry.blocks(site)
                both = [act(blocks, value, t, batch_dims=1) for t in (ahead, behind)]
                parts.append((both[0] - both[1]).flatten() / 2)
            moves.append(torch.cat(parts))
    for scaling in symmetry.scalings:
        if {(site, axis) for site, axis, _ in scaling.exponents} <= covered:
            parts = []
            for site, value in values.items():
                powers = scaling.powers(symmetry.sites, site)
                parts.append((value.unsqueeze(-1) * powers).flatten(0, -2))
            moves += torch.cat(parts).unbind(1)
    return (
        torch.stack(moves, 1)
        if moves
        else torch.zeros(sum(v.numel() for v in values.values()), 0, dtype=torch.float64, device="cpu")
    )


def _span(moves: Tensor, size: float) -> Tensor:
    """An orthonormal basis of the coefficients of generators that move anything, ``(generators, dimension)``."""
    if not moves.shape[1]:
        return moves.new_zeros(0, 0)
    _, singular, right = torch.linalg.svd(moves, full_matrices=False)
    return right[: int((singular > _ABSENT * size).sum())].mT


def _beyond(moves: Tensor, known: Tensor) -> Tensor:
    """What is left of moves beyond the known ones."""
    if not known.shape[1]:
        return moves
    basis, singular, _ = torch.linalg.svd(known, full_matrices=False)
    basis = basis[:, singular > _ABSENT * singular[0]]
    return moves - basis @ (basis.mT @ moves)


def _missing(generators: Tensor, slots: Sequence[_Slot]) -> tuple[Missing, ...]:
    """What is missing, by sets of axes that move together."""
    if not generators.shape[1]:
        return ()
    basis = torch.linalg.qr(generators)[0]
    parts = basis.split([s.size**2 for s in slots])
    label = list(range(len(slots)))
    for a in range(len(slots)):
        for b in range(a):
            if float((parts[a] @ parts[b].mT).abs().max()) > _ABSENT:
                label = [label[b] if k == label[a] else k for k in label]
    out = []
    for k in dict.fromkeys(label):
        here = [i for i, own in enumerate(label) if own == k and float(parts[i].abs().max()) > _ABSENT]
        if not here:
            continue
        matrices = [parts[i].mT.reshape(-1, slots[i].size, slots[i].size) for i in here]
        dimension = round(sum(float(parts[i].square().sum()) for i in here))
        places = tuple((slots[i].site, a) for i in here for a in slots[i].axes)
        out.append(Missing(_kind(matrices), dimension, places))
    return tuple(out)


def _kind(matrices: Sequence[Tensor]) -> str:
    if all(float((m + m.mT).abs().max()) <= _ABSENT for m in matrices):
        return "rotations"
    off = (m - torch.diag_embed(m.diagonal(dim1=-2, dim2=-1)) for m in matrices)
    return "scalings" if all(float(m.abs().max()) <= _ABSENT for m in off) else "linear maps"
