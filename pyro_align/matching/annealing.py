"""Mean-field annealing: every atom matched softly while its neighbors are soft as well, from warm to cold.

A hard anchored pass commits the first atoms before the later ones have spoken. Annealing lets them speak: in turn each
atom gets the doubly stochastic matrix ``X = Sinkhorn(gain / T)``, where its gain is the expectation over the
neighbors' present matrices, while the temperature T falls (graduated assignment: Gold & Rangarajan 1996; softassign as
a mean field: Yuille & Kosowsky 1994). The last round is at temperature zero: assignments, one atom after another.

Temperatures are in units of the spread of an atom's gains, so that they mean the same at any scale of the features.
Cold matrices have a few entries per row that count; only these are kept, and a product with them is a weighted gather.

Signed units are soft in their sign too: among the pairs (partner, sign), ``X`` sums over both signs, and
``X tanh(odd / T)`` is the expected signed partner. Atoms that hold others, or are nested in others, keep their
relabeling meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_align.matching.assignment import FAINT, scalings, spread
from pyro_align.matching.evidence import Gains
from pyro_align.matching.matcher import Run
from pyro_align.matching.problem import Problem
from pyro_align.matching.updates import Update

_CROWDED = 0.58  # share of partners wanted below which annealing pays; by chance it is 1 - 1/e = 0.63
_PARTNERS = 64  # about how many partners a unit of a wide atom has at the first temperature
_WARMEST, _COLDEST = 0.7, 0.1  # temperatures, in spreads of the gains
_KEPT = 0.01  # entries below are left out: a unit that has no likely partner says little about others
_SPARSE = 1 / 8  # share of entries up to which gathering them one by one is faster than a product
_ROUNDS = 10  # of normalizations


@dataclass(frozen=True)
class Soft:
    """A doubly stochastic matrix, new by old, for even features and, with expected signs, for odd ones."""

    even: Sparse | Tensor
    odd: Sparse | Tensor

    def apply(self, value: Tensor, dim: int, odd: bool) -> Tensor:
        """The expected value after relabeling along a dimension."""
        matrix = self.odd if odd else self.even
        moved = value.movedim(dim, 0)
        rows = moved.reshape(moved.shape[0], -1)
        out = matrix @ rows
        return out.reshape(moved.shape).movedim(0, dim)


@dataclass(frozen=True)
class Sparse:
    """The entries of a matrix that count, row by row."""

    columns: Tensor
    starts: Tensor
    weights: Tensor

    def __matmul__(self, rows: Tensor) -> Tensor:
        rows = rows.contiguous()  # over a transposed view the gathers are many times slower
        return torch.nn.functional.embedding_bag(
            self.columns, rows, self.starts, mode="sum", per_sample_weights=self.weights
        )


def anneal(run: Run, updates: Sequence[Update], steps: int) -> bool:
    """Replaces the relabeling by one that is annealed from it.

    Args:
        run: The search, after an anchored pass.
        updates: The moves, in the order in which that pass settled their atoms.
        steps: Rounds, the one at temperature zero included.

    Returns:
        Whether it came to its end before the time limit; if not, the relabeling is as before.
    """
    moves = [u for u in updates if u.softens]
    if steps < 1 or not doubtful(updates):
        return True
    warmest = _WARMEST
    if run.random_order:
        warmest *= 0.75 + 0.75 * float(torch.rand((), generator=run.generator, device="cpu", dtype=torch.float64))
    soft = {u.name: _uniform(run.problem, u) for u in moves if not u.spoken}
    scales: dict[str, float] = {}
    trial = run.labels.copy()
    for step in range(steps):
        for update in moves:
            if run.clock.expired:
                return False
            with run.clock("gain"):
                gains = _expected_gains(update, trial, soft)
            name = update.name
            if step == steps - 1:
                with run.clock("assignment"):
                    trial.replace(*update.decide(gains, trial))
                soft.pop(name, None)
                continue
            if (gain := gains.total(name)) is None:
                continue
            scale = scales.setdefault(name, spread(gain[0]))
            if scale > 0:
                soft[name] = soften(gains, name, scale * _temperature(step, steps, update.atom.size, warmest))
    run.labels.replace(trial.indices, trial.signs)
    return True


def doubtful(updates: Sequence[Update]) -> bool:
    """Whether the anchored pass left any doubt: a partner wanted by two units, or an atom for which nothing spoke."""
    return any(not u.spoken or u.wanted != 1 for u in updates if u.softens)


def crowded(updates: Sequence[Update]) -> bool:
    """Whether, in the anchored pass, more units wanted the same partners than chance alone explains.

    Of n partners chosen independently n / e are nobody's choice. On fitted weights it is far more: some units are
    everybody's favorite, and hard assignments made too soon cost most.
    """
    sizes = [(u.wanted * u.atom.size, u.atom.size) for u in updates if u.softens and u.spoken]
    return bool(sizes) and sum(w for w, _ in sizes) < _CROWDED * sum(n for _, n in sizes)


def _temperature(step: int, steps: int, size: int, warmest: float) -> float:
    """The temperature of a round, in spreads.

    With n normal gains of spread 1 about ``n exp(-1 / T^2)`` partners share a unit, so wide atoms begin colder.
    """
    warmest *= min(1.0, 1 / (_WARMEST * math.sqrt(math.log(size / _PARTNERS)))) if size > _PARTNERS else 1.0
    return warmest * (_COLDEST / warmest) ** (step / max(1, steps - 2))


def _expected_gains(update: Update, labels, soft: dict[str, Soft]) -> Gains:
    gains = update.linear.constant(labels).copy()
    for part in (*update.linear.parts, *update.curved.parts):
        if not part.moving:
            continue
        for fixed, moving, odd in update.problem.views(part.block):
            for run in part.block.runs(fixed, moving):
                gains.add(part.node, part.signed(odd), *part.matrices(*run, labels, odd, soft=soft))
    return gains


def soften(gains: Gains, name: str, temperature: float) -> Soft:
    """The doubly stochastic matrix of an atom at a temperature."""
    odd = gains.odd.get(name)
    scores = gains.total(name)[0] / temperature
    lean = None
    if odd is not None:
        lean = odd[0] / temperature
        scores = scores + torch.nn.functional.softplus(-2 * lean.abs())  # both signs of each pair
        lean = lean.tanh_()
    kernel = scores.sub_(scores.amax(1, keepdim=True)).clamp_min_(FAINT).exp_()
    _, column = scalings(kernel, _ROUNDS)
    matrix = kernel.mul_(column)
    matrix /= matrix.sum(1, keepdim=True).clamp_min(1e-30)
    odd = None if lean is None else matrix * lean
    kept = matrix > _KEPT
    counts = kept.sum(1)
    if counts.sum() > _SPARSE * matrix.numel():
        even = matrix.where(kept, 0)
        return Soft(even, even if odd is None else odd.where(kept, 0))
    places = kept.flatten().nonzero().flatten()
    even, odd = (
        None if m is None else Sparse(places % len(matrix), counts.cumsum(0) - counts, m.flatten()[places])
        for m in (matrix, odd)
    )
    return Soft(even, even if odd is None else odd)


def _uniform(problem: Problem, update: Update) -> Soft:
    """Where nothing has spoken for any partner, all are equally likely, and so are both signs."""
    n = update.atom.size
    flat = torch.full((n, n), 1 / n, dtype=problem.work_dtype, device=problem.device)
    return Soft(flat, torch.zeros_like(flat) if update.name in problem.symmetry.signed else flat)
