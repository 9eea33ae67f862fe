"""An exhaustive search for relabelings, that knows nothing of discovery: it only evaluates the model.

A *move* swaps two indices of an axis, or two blocks of equal length, or the same two places in several blocks. The
search looks at every choice of one move (or none) for each axis of each site. It is feasible because at a point at
which all entries of a site are equal, a symmetry must leave the Hessian of the log joint alone: each pair of sites
rules out most pairs of moves. What survives is tried on the model itself at generic points.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from pyro_align import Symmetry
from pyro_align.model.density import Density

Values = Mapping[str, Tensor]


def function_of(problem) -> tuple[Callable[[Values], Tensor], dict[str, Tensor], list[dict[str, Tensor]]]:
    """``(function, flat point, generic points)``: the log joint, or for a module a generic function of its output."""
    model, args = problem.build()
    generator = torch.Generator().manual_seed(3)
    if problem.is_module:
        named = dict(model.named_parameters()) | {k: b for k, b in model.named_buffers() if b.is_floating_point()}
        named = {k: v.detach() for k, v in named.items()}

        def function(values):
            out = torch.func.functional_call(model, {k: v.clone() for k, v in values.items()}, args)
            weights = torch.linspace(0.5, 1.5, out.numel()).reshape(out.shape)
            return (weights * out.tanh() + weights.square() * out).sum()

        flat = {k: torch.full_like(v, 0.3 + 0.05 * i) for i, (k, v) in enumerate(named.items())}
        points = [{k: v + 0.3 * torch.rand(v.shape, generator=generator) for k, v in named.items()} for _ in range(8)]
        return function, flat, points
    scope, parameters = problem.options.get("scope", "joint"), problem.options.get("parameters", False)
    density = Density(model, args, parameters=parameters)
    function = density.log_joint if scope == "joint" else density.log_likelihood
    points = [density.initial_values(seed=seed, scale=0.5) for seed in range(10, 18)]  # a unit may be dead at some
    flat = {
        k: v.mean().expand(v.shape).clone() if v.numel() else v
        for k, v in density.initial_values(seed=5, scale=0.3).items()
    }
    for k, v in flat.items():
        if str(density.latents[k].support).find("Simplex") >= 0:
            flat[k] = torch.full_like(v, 1.0 / v.shape[-1])
    return function, flat, points


def moves(n: int) -> Iterator[Tensor]:
    """Index tensors of the moves of an axis of size ``n``, the identity first."""
    identity = torch.arange(n)
    seen = set()
    yield identity
    for blocks in (b for b in range(1, n + 1) if n % b == 0):
        grid = identity.reshape(blocks, n // blocks)
        for i, j in itertools.combinations(range(blocks), 2):  # two blocks
            yield from _once(_swapped(grid, (i, slice(None)), (j, slice(None))), seen)
        for i, j in itertools.combinations(range(n // blocks), 2):  # two places in some of the blocks
            for count in range(1, blocks + 1):
                for chosen in itertools.combinations(range(blocks), count):
                    yield from _once(_swapped(grid, (list(chosen), i), (list(chosen), j)), seen)


def _swapped(grid: Tensor, a, b) -> Tensor:
    out = grid.clone()
    out[a], out[b] = grid[b], grid[a]
    return out.flatten()


def _once(index: Tensor, seen: set) -> Iterator[Tensor]:
    key = tuple(index.tolist())
    if key not in seen:
        seen.add(key)
        yield index


def site_moves(shape: tuple[int, ...], limit: int = 20000) -> list[Tensor]:
    """Flat index tensors of all choices of one move an axis."""
    flat = torch.arange(int(torch.Size(shape).numel())).reshape(shape)
    out = [flat]
    for axis, n in enumerate(shape):
        out = [o.index_select(axis, m) for o in out for m in moves(n)] if n > 1 else out
        assert len(out) <= limit, f"{shape} is too large for the oracle"
    return [o.flatten() for o in out]


def candidates(function, flat: Values, limit: int = 3000) -> Iterator[dict[str, Tensor]]:
    """Choices of one flat index a site that leave gradient and Hessian at the flat point alone."""
    names = list(flat)
    sizes = [flat[k].numel() for k in names]

    def of_vector(vector: Tensor) -> Tensor:
        return function({k: v.reshape(flat[k].shape) for k, v in zip(names, vector.split(sizes), strict=True)})

    point = torch.cat([flat[k].flatten() for k in names])
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        gradient = torch.autograd.functional.jacobian(of_vector, point).split(sizes)
        hessian = torch.autograd.functional.hessian(of_vector, point)
    blocks = [list(row.split(sizes, 1)) for row in hessian.split(sizes, 0)]
    scale = 1e-9 * max(1.0, float(hessian.abs().max()))

    def same(a: Tensor, b: Tensor) -> bool:
        return bool(((a - b).abs() <= scale).all())

    domains = []
    for i, name in enumerate(names):
        options = site_moves(tuple(flat[name].shape))
        domains.append(
            [m for m in options if same(gradient[i][m], gradient[i]) and same(blocks[i][i][m][:, m], blocks[i][i])]
        )
    found = 0

    def extend(chosen: list[Tensor]) -> Iterator[list[Tensor]]:
        nonlocal found
        i = len(chosen)
        if found >= limit:
            return
        if i == len(names):
            found += 1
            yield chosen
            return
        for move in domains[i]:
            if all(same(blocks[j][i][earlier][:, move], blocks[j][i]) for j, earlier in enumerate(chosen)):
                yield from extend([*chosen, move])

    for chosen in extend([]):
        yield dict(zip(names, chosen, strict=True))


def missed(problem, symmetry: Symmetry) -> list[dict[str, Tensor]]:
    """Relabelings that leave the model alone and are not in the group."""
    from sympy.combinatorics import Permutation, PermutationGroup

    function, flat, points = function_of(problem)
    names = list(flat)
    offsets = dict(zip(names, itertools.accumulate([0] + [flat[k].numel() for k in names[:-1]]), strict=True))

    def whole(index: Mapping[str, Tensor]) -> list[int]:
        return [int(i) + offsets[k] for k in names for i in index[k]]

    elements = [whole({k: p.flat_index(k) for k in names}) for p in generators(symmetry)]
    group = PermutationGroup([Permutation(e) for e in elements]) if elements else None
    out = []
    for index in candidates(function, flat):
        moved = whole(index)
        if moved == sorted(moved) or (group is not None and group.contains(Permutation(moved))):
            continue
        if all(_unchanged(function, values, index) for values in points):
            out.append(index)
    return out


def _unchanged(function, values: Values, index: Mapping[str, Tensor]) -> bool:
    before = float(function(values))
    after = float(function({k: v.flatten()[index[k]].reshape(v.shape) for k, v in values.items()}))
    return abs(after - before) <= 1e-9 * (1 + abs(before))


def generators(symmetry: Symmetry) -> Iterator:
    """Neighboring transpositions of every atom, for each index of its outer atoms."""
    for name, atom in symmetry.atoms.items():
        shape = symmetry.outer_shape(name)
        for outer in itertools.product(*map(range, shape)):
            for i in range(atom.size - 1):
                index = torch.arange(atom.size).expand(*shape, atom.size).clone()
                index[(*outer, i)], index[(*outer, i + 1)] = i + 1, i
                yield symmetry.permutation({name: index})


def sign_choices(problem, analysis, limit: int = 12) -> Iterator[tuple[str, set[int], set[int]]]:
    """Every atom with the ways in which one of its units may change sign: by evaluating the model, and as discovered.

    A way is a set of the atom's places, one bit each. All subsets of the places at sites with real support are tried,
    in float64 at generic points. Atoms with more than ``limit`` places, or at parameters that the density does not take
    as arguments, are left out.

    Args:
        problem: The problem.
        analysis: What discovery says, a ``SignAnalysis``: its atoms, their places and their solutions.
    """
    function, _, points = function_of(problem)
    for atom, places in analysis.places.items():
        if not 0 < len(places) <= limit or not {place.site for place in places} <= set(points[0]):
            continue
        unit = analysis.units[atom][0]
        turned = [(place.site, 1.0 - 2.0 * analysis.turned(place, atom, unit)) for place in places]
        true = {flips for flips in range(1 << len(places)) if _mirrored(function, points, turned, flips)}
        claimed = {0}
        for vector in analysis.solutions(atom):
            claimed |= {vector ^ other for other in claimed}
        yield atom, true, claimed


def _mirrored(function, points, turned, flips: int) -> bool:
    for values in points:
        moved = dict(values)
        for i, (site, sign) in enumerate(turned):
            if flips >> i & 1:
                moved[site] = moved[site] * sign
        before, after = float(function(values).detach()), float(function(moved).detach())
        if not abs(after - before) <= 1e-9 * (1 + abs(before)):
            return False
    return True
