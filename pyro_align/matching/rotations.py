"""Groups with rotations: coordinate ascent in which the polar factor of a gain matrix takes an assignment's place.

With the others held, the objective is linear in an atom's matrix R, ``<R, G>`` with G its gain matrix. The orthogonal R
that maximizes it is the polar factor of G: ``U V'`` where ``G = U S V'``, with value the sum of the singular values
(orthogonal Procrustes: Schoenemann 1966). For heads with rotated dimensions, the gain of a pair of heads is the value
of its best rotation, and one assignment pairs the heads. Where an atom is on two axes of a site the gain is linearized,
and a step that does not raise the exact objective is taken again with a growing reward for standing still.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace

import torch

from pyro_align.axes import Atom
from pyro_align.errors import MatchError
from pyro_align.matching.assignment import assign, best_sign, picked
from pyro_align.matching.evidence import Gains
from pyro_align.matching.matcher import Clock
from pyro_align.matching.problem import Problem
from pyro_align.matching.result import Match
from pyro_align.symmetry.action import Tables, act_on_block
from pyro_align.symmetry.blocks import Block
from pyro_align.symmetry.element import Permutation, polar
from pyro_align.symmetry.group import Symmetry

_REWARDS = (0.0, 0.5, 2.0, 8.0)  # for standing still, in multiples of the mean singular value or gain
_CONVERGED = 1e-10  # relative rise of a sweep below which nothing moves

REMEDY = (
    "a mean-field posterior cannot follow a rotation, which mixes its coordinates. Fit a guide with full covariance "
    "over these sites (AutoMultivariateNormal), align draws of the guide (wrap_guide), or align its locations as points"
)


def check_rotatable(problem: Problem) -> None:
    """Refuses features along rotated axes that a rotation would not act on linearly.

    Raises:
        MatchError: A feature is even: a scale, say.
    """
    for site in problem.symmetry.sites:
        names = {n for block in problem.symmetry.blocks(site) for n in block.names} & problem.symmetry.rotated
        if names and not all(problem.odd[site]):
            raise MatchError(
                f"site '{site}' is rotated along {sorted(names)}, but has scales among its features: {REMEDY}"
            )


@dataclass
class _Gains(Gains):
    """Gain by atom: ``(*batch, new, old)``, for a nested one ``(*batch, new, old, *ordered, new inside, old inside)``.

    What is ordered are the atoms around the nested one that do not move: the pairs of a rotary embedding.
    """

    values: int = 0  # how many values speak


def match_rotated(
    problem: Problem,
    init: Permutation | None,
    clock: Clock,
    *,
    seed: int = 0,
    max_sweeps: int = 100,
    restarts: int = 0,
    select: Callable[[Permutation], float] | None = None,
    report: Callable[[int, float], None] | None = None,
) -> Match:
    """The best of a search from the anchored start (or ``init``), and of restarts from random and kicked elements."""
    check_rotatable(problem)
    generator = torch.Generator().manual_seed(seed)
    families = _families(problem.symmetry)
    best: Match | None = None
    rises = []
    for k in range(restarts + 1):
        start = init
        if k:
            drawn = problem.symmetry.random(generator)
            one = families[list(families)[int(torch.randint(len(families), (), generator=generator, device="cpu"))]]
            start = drawn if k % 2 else _with(best.permutation, *_parts(drawn, one))
        found = _search(problem, families, start, clock, seed, max_sweeps, report)
        loss = None if select is None else float(select(found.permutation))
        found = replace(found, loss=loss)
        if best is not None:
            rises.append(max(0.0, found.objective - best.objective))
        if best is None or (found.objective > best.objective if loss is None else loss < best.loss):
            best = found
        if found.status == "time_limit" or (found.status == "optimal" and select is None):
            break
    return replace(best, rises=tuple(rises))


def _families(symmetry: Symmetry) -> dict[str, tuple[str, ...]]:
    """Atom that moves by itself -> it and what moves with it: the atoms directly inside, where these hold no others."""
    holds = {o for a in symmetry.atoms.values() for o in a.within}
    free = symmetry.atoms
    families: dict[str, tuple[str, ...]] = {}
    for name, atom in free.items():
        if not any(o in free for o in atom.within):
            families[name] = (
                name,
                *(n for n, a in free.items() if _around(symmetry, a) == (*atom.within, name) and n not in holds),
            )
    for name in free:  # deeper atoms move alone
        if not any(name in family for family in families.values()):
            raise MatchError(f"'{name}' is nested more than once; groups with rotations are matched one level deep")
    return families


def _around(symmetry: Symmetry, atom: Atom) -> tuple[str, ...]:
    """The free atoms in which a rotated one is nested; those of fixed order are alike on both sides."""
    return tuple(o for o in atom.within if o in symmetry.atoms or not atom.rotates)


def _search(
    problem: Problem, families, init: Permutation | None, clock: Clock, seed: int, max_sweeps: int, report
) -> Match:
    p = problem.symmetry.identity() if init is None else init
    value = problem.as_given if init is None else problem.objective(p)
    if init is None:
        anchored = _anchored(problem, families, p)
        if (reached := problem.objective(anchored)) > value:
            p, value = anchored, reached
    history, status = [value], "max_sweeps"
    if report is not None:
        report(0, value)
    for sweep in range(max_sweeps):
        for family in families.values():
            if clock.expired:
                break
            p, value = _move(problem, family, p, value)
        history.append(value)
        if report is not None:
            report(sweep + 1, value)
        if clock.expired:
            status = "time_limit"
            break
        if value - history[-2] <= _CONVERGED * abs(value):
            alone = len(families) == 1 and all(_linear(b, next(iter(families.values()))) for b in _all_blocks(problem))
            status = "optimal" if alone else "converged"
            break
    return Match(p, value, tuple(history), len(history) - 1, status, {}, "coordinate", seed)


def _anchored(problem: Problem, families: dict[str, tuple[str, ...]], p: Permutation) -> Permutation:
    """Every family settled once, by the sites whose other atoms are settled, those first for which most speaks."""
    ready: set[str] = set()
    waiting = dict(families)
    while waiting:
        found = {r: _gains(problem, f, p, ready | set(f)) for r, f in waiting.items()}
        root = max(found, key=lambda r: found[r].values)
        if found[root].values:
            p = _with(p, *_best(problem, waiting[root], found[root], p, 0.0))
        ready |= set(waiting.pop(root))
    return p


def _move(problem: Problem, family: tuple[str, ...], p: Permutation, value: float) -> tuple[Permutation, float]:
    """One family moved, where that raises the exact objective."""
    gains = _gains(problem, family, p, None)
    for reward in _REWARDS if len(family) == 1 else _REWARDS[:1]:
        trial = _with(p, *_best(problem, family, gains, p, reward))
        after = problem.objective(trial)
        if after > value + problem.rounding * abs(value) * 1e-2:
            return trial, after
        if all(_linear(b, family) for b in _all_blocks(problem)):
            break
    return p, value


def _all_blocks(problem: Problem) -> Iterator[Block]:
    for site in problem.symmetry.sites:
        yield from problem.symmetry.blocks(site)


def _linear(block: Block, family: Collection[str]) -> bool:
    return all(len(block.positions(name)) <= 1 for name in family) and len(block.names & set(family)) <= 2


def _gains(problem: Problem, family: tuple[str, ...], p: Permutation, ready: Collection[str] | None) -> _Gains:
    """The gains of a family, the others held; with ``ready``, only from blocks that carry no other atoms."""
    root, gains = family[0], _Gains()
    tables = p.moving
    for site in problem.symmetry.sites:
        for block in problem.symmetry.blocks(site):
            if root not in block.names or (ready is not None and not block.names <= set(ready)):
                continue
            for place in block.positions(root):
                inside = [k for k in block.inside(place) if block.dims[k].name in family]
                if len(inside) <= 1:
                    _add(problem, block, (place, *inside), tables, gains)
    return gains


def _add(problem: Problem, block: Block, chain: tuple[int, ...], tables: Tables, gains: _Gains) -> None:
    dims, name = block.dims, block.dims[chain[-1]].name
    left = [chr(ord("a") + k) for k in range(len(dims))]
    right = [c.upper() if k in chain else c for k, c in enumerate(left)]
    batch = "".join(left[o] for o in dims[chain[0]].outer)
    ordered = "".join(left[o] for o in dims[chain[-1]].outer if o not in chain and left[o] not in batch)
    out = batch + "".join(left[k] + right[k] for k in chain[:-1]) + ordered + left[chain[-1]] + right[chain[-1]]
    held = (*chain, *block.inside(chain[0]))
    for fixed, moving, odd in problem.features(block.site):
        here = block.view(fixed).to(problem.work_dtype)
        there = act_on_block(block, block.view(moving).to(problem.work_dtype), tables, 0, odd, held)
        gain = torch.einsum(f"{''.join(left)},{''.join(right)}->{out}", here, there)
        table = gains.odd if odd and dims[chain[-1]].odd else gains.even
        table[name] = table[name] + gain if name in table else gain
        gains.values += here.numel()


def _best(problem: Problem, family: tuple[str, ...], gains: _Gains, p: Permutation, reward: float):
    """Indices, signs and rotations that maximize the gains; children by the old unit that each new one takes."""
    symmetry, root = problem.symmetry, family[0]
    total = gains.total(root)
    if symmetry.atoms[root].rotates:
        if total is None:
            return {}, {}, {}
        scale = float(torch.linalg.svdvals(total).mean()) if reward else 0.0
        total = total + reward * scale * p.rotations[root].to(total)
        return {}, {}, {root: polar(total, symmetry.atoms[root].kind)}
    n = symmetry.atoms[root].size
    shape = symmetry.outer_shape(root)
    if total is None:
        total = torch.zeros(*shape, n, n, dtype=problem.work_dtype, device=problem.device)
    inner = {c: g for c in family[1:] if (g := gains.total(c)) is not None}
    for c, g in inner.items():
        atom = symmetry.atoms[c]
        best = (polar(g, atom.kind) * g).sum(-1) if atom.rotates else picked(g, assign(g))
        total = total + best.flatten(len(shape) + 2).sum(-1).to(total)
    if reward:
        total = total + reward * float(total.abs().mean()) * torch.nn.functional.one_hot(p.indices[root], n).to(total)
    index = assign(total)
    indices, signs, rotations = {root: index}, {}, {}
    if root in gains.odd and len(family) == 1:
        signs[root] = best_sign(gains.odd[root], index)
    for c, g in inner.items():
        rest = g.shape[len(shape) + 2 :]
        pair = index.reshape(*index.shape, *[1] * (1 + len(rest))).expand(*index.shape, 1, *rest)
        mine = g.gather(len(shape) + 1, pair).squeeze(len(shape) + 1)
        if symmetry.atoms[c].rotates:
            rotations[c] = polar(mine, symmetry.atoms[c].kind)
            continue
        indices[c] = assign(mine)
        if c in gains.odd:
            odd = gains.odd[c].gather(len(shape) + 1, pair)
            signs[c] = best_sign(odd.squeeze(len(shape) + 1), indices[c])
    return indices, signs, rotations


def _parts(p: Permutation, names: Iterable[str]):
    names = set(names)
    return tuple({k: v for k, v in t.items() if k in names} for t in (p.indices, p.signs, p.rotations))


def _with(p: Permutation, indices, signs, rotations) -> Permutation:
    """The element with some atoms replaced."""
    kept = {k: v for k, v in p.signs.items() if k not in indices}
    return p.symmetry.permutation({**p.indices, **indices}, {**kept, **signs}, {**p.rotations, **rotations})
