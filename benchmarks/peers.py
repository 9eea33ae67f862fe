"""What the matchers are compared with: weight matching and Frank-Wolfe as they are usually written."""

from __future__ import annotations

import time

import torch
from problems import Network
from scipy.optimize import linear_sum_assignment, minimize_scalar


def textbook(plain: dict[str, tuple], shapes: dict, fixed: dict, moving: dict, *, seed: int = 0, max_sweeps: int = 100):
    """Weight matching by coordinate descent as it is usually written (Ainsworth et al. 2023, algorithm 1).

    Every sweep visits the permutations in random order; each visit gathers every tensor that carries the permutation,
    sums one product a tensor into a gain matrix, solves one assignment and keeps it, until a sweep changes nothing.

    Args:
        plain: Tensor -> name of the permutation of each axis, or None. No sums, products or nesting.
        shapes: Tensor -> the shape that fits these axes.
        fixed: Tensor -> values.
        moving: Tensor -> values.

    Returns:
        Permutation name -> indices, number of sweeps, and seconds in products and in assignments.
    """
    fixed = {k: v.reshape(shapes[k]) for k, v in fixed.items()}
    moving = {k: v.reshape(shapes[k]) for k, v in moving.items()}
    sizes = {a: shapes[k][i] for k, axes in plain.items() for i, a in enumerate(axes) if a}
    perms = {name: torch.arange(n) for name, n in sizes.items()}
    where = {name: [(k, i) for k, axes in plain.items() for i, a in enumerate(axes) if a == name] for name in sizes}
    generator = torch.Generator().manual_seed(seed)
    names, spent = list(sizes), {"gain": 0.0, "assignment": 0.0}
    sweep = 0
    changed = True
    while changed and sweep < max_sweeps:
        sweep += 1
        changed = False
        for k in torch.randperm(len(names), generator=generator).tolist():
            name = names[k]
            n = sizes[name]
            start = time.process_time()
            gain = torch.zeros(n, n)
            for tensor, axis in where[name]:
                value = moving[tensor]
                for other, atom in enumerate(plain[tensor]):
                    if atom and other != axis:
                        value = value.index_select(other, perms[atom])
                left = fixed[tensor].movedim(axis, 0).reshape(n, -1)
                right = value.movedim(axis, 0).reshape(n, -1)
                gain += left @ right.T
            middle = time.process_time()
            new = torch.from_numpy(linear_sum_assignment(gain.numpy(), maximize=True)[1])
            rows = torch.arange(n)
            if float(gain[rows, new].sum()) > float(gain[rows, perms[name]].sum()) + 1e-12:
                changed |= not torch.equal(new, perms[name])
                perms[name] = new
            spent["gain"] += middle - start
            spent["assignment"] += time.process_time() - middle
    return perms, sweep, spent


def textbook_frank_wolfe(plain: dict[str, tuple], shapes: dict, fixed: dict, moving: dict, *, max_steps: int = 100):
    """Frank-Wolfe on all permutations jointly, as published (Crisostomi et al. 2024): dense and with a line search.

    From the barycenter, each step asks for the gradient by every matrix, solves one assignment per permutation, and
    looks for the best length of the step by evaluating the objective, until the step or the rise is below 1e-4. The
    matrices are rounded by assignments at the end.

    Args:
        plain: Tensor -> name of the permutation of each axis, or None. No sums, products or nesting.
        shapes: Tensor -> the shape that fits these axes.
        fixed: Tensor -> values.
        moving: Tensor -> values.

    Returns:
        Permutation name -> indices, and number of steps.
    """
    fixed = {k: v.reshape(shapes[k]) for k, v in fixed.items()}
    moving = {k: v.reshape(shapes[k]) for k, v in moving.items()}
    sizes = {a: shapes[k][i] for k, axes in plain.items() for i, a in enumerate(axes) if a}

    def soft(tensor: str, point: dict, keep: int | None = None) -> torch.Tensor:
        value = moving[tensor]
        for i, atom in enumerate(plain[tensor]):
            if atom and i != keep:
                value = torch.tensordot(point[atom], value, ([1], [i])).movedim(0, i)
        return value

    def value(point: dict) -> float:
        return sum(float((fixed[k] * soft(k, point)).double().sum()) for k in plain)

    def gradient(point: dict) -> dict:
        total = {name: torch.zeros(n, n) for name, n in sizes.items()}
        for tensor, axes in plain.items():
            for i, atom in enumerate(axes):
                if atom:
                    left = fixed[tensor].movedim(i, 0).reshape(sizes[atom], -1)
                    total[atom] += left @ soft(tensor, point, keep=i).movedim(i, 0).reshape(sizes[atom], -1).T
        return total

    def best(gain: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(linear_sum_assignment(gain.numpy(), maximize=True)[1])

    point = {name: torch.full((n, n), 1 / n) for name, n in sizes.items()}
    now, steps = value(point), 0
    while steps < max_steps:
        vertex = {k: torch.eye(sizes[k])[best(g)] for k, g in gradient(point).items()}

        def along(t: float, start=point, end=vertex) -> dict:
            return {k: torch.lerp(start[k], end[k], t) for k in start}

        found = minimize_scalar(lambda t, along=along: -value(along(float(t))), bounds=(0, 1), method="bounded")
        if found.x < 1e-4 or -found.fun - now < 1e-4 * abs(now):
            break
        point, now, steps = along(float(found.x)), -found.fun, steps + 1
    return {k: best(x) for k, x in point.items()}, steps


def plain_form(network: Network):
    """A network's axes without products, sums and nesting, so that textbook matching can read it.

    Gates become an axis of their own; heads are matched as blocks, and the dimensions inside them keep their order.

    Returns:
        Axes and shapes by tensor, or None where an atom appears on two axes of one tensor.
    """
    axes, shapes = {}, {}
    for site, terms in network.axes.items():
        axes[site], shapes[site] = [], []
        for term, size in zip(terms, network.shapes[site], strict=True):
            if isinstance(term, list) and all(t == term[0] for t in term):
                axes[site] += [None, term[0]]
                shapes[site] += [len(term), size // len(term)]
            elif isinstance(term, list):  # queries, keys and values, each heads x dimensions
                head = term[0][0]
                axes[site] += [None, head.name, None]
                shapes[site] += [len(term), head.size, size // (len(term) * head.size)]
            elif isinstance(term, tuple):
                axes[site] += [term[0].name, None]
                shapes[site] += [term[0].size, size // term[0].size]
            else:
                axes[site].append(term)
                shapes[site].append(size)
        named = [a for a in axes[site] if a]
        if len(set(named)) < len(named):
            return None
    return axes, shapes
