"""Frank-Wolfe: all atoms jointly, on the convex hull of the relabelings (Crisostomi et al. 2024, section 3).

The objective extends to doubly stochastic matrices X. Each step moves all atoms at once towards the relabeling S that
maximizes the linearisation, by an exactly optimal length. Neither needs a product with a dense X: where two atoms share
a site, an atom's gain matrix is linear in the other's X, so that gains at ``X + t (S - X)`` are those at X and at the
relabeling S, mixed by t; and the objective along the segment is the parabola ``t <G(X), D> + t^2/2 <G(S) - G(X), D>``
with ``D = S - X``. One step costs as much as one sweep of coordinate ascent, all starts being equal: the first point is
the barycenter, where every partner is equally likely.

Rounded at the end to the nearest relabeling, and polished by coordinate ascent. Where three or more atoms meet in one
site the gains are not linear and the step's length is only approximate; the polish is exact.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_align.matching.coordinate import anchored_pass, make_updates, sweep_until_converged
from pyro_align.matching.evidence import Evidence, Gains
from pyro_align.matching.labels import Labels
from pyro_align.matching.matcher import Matcher, Run, register
from pyro_align.matching.nested import solve_tree
from pyro_align.matching.updates import Update


@register("frank_wolfe")
@dataclass(frozen=True)
class FrankWolfe(Matcher):
    """Frank-Wolfe on all atoms jointly, rounded and polished.

    Attributes:
        max_steps: Largest number of steps.
        tolerance: Ends when a step can gain no more than this share of the objective's present size.
    """

    max_steps: int = 100
    tolerance: float = 1e-4

    def search(self, run: Run) -> str:
        updates = make_updates(run.problem)
        points = [_Point(u, run.labels if not run.anchored else None) for u in updates if u.joint]
        if self._climb(run, points):
            indices, signs = _joined(point.best(point.x) for point in points)
            run.labels.replace(indices, signs)
            anchored_pass(run, updates, set(indices))  # siblings of nested atoms have no share of the point
        return sweep_until_converged(run, updates)

    def _climb(self, run: Run, points: list[_Point]) -> bool:
        """Returns whether any step was made: without one the start is best left alone."""
        vertex = run.labels.copy()
        made = False
        for step in range(min(self.max_steps, run.max_sweeps)):
            if run.clock.expired:
                break
            with run.clock("assignment"):
                vertex.replace(*_joined(point.best(point.gains) for point in points))
            slope = curve = size = 0.0
            with run.clock("gain"):
                for point in points:
                    a, b, c = point.look(vertex)
                    slope, curve, size = slope + a, curve + b, size + c
            if slope <= self.tolerance * max(abs(size), abs(slope)) and step:
                break
            length = min(1.0, -slope / (2 * curve)) if curve < 0 else 1.0
            for point in points:
                point.move(length)
            made = True
        return made


class _Point:
    """One atom's (or family's) share of the point X: its matrices, and the gains there and at the vertex.

    Args:
        update: The atom's move, whose parts give gains.
        start: A relabeling to start from, or None for the barycenter.
    """

    def __init__(self, update: Update, start: Labels | None):
        self.update, self.problem = update, update.problem
        whole = [p for p in update.move.parts if p.linear]
        self.linear = Evidence(self.problem, whole, keep=update.linear.keep)
        self.curved = Evidence(self.problem, (p for p in update.curved.parts if not p.carries), keep=False)
        self.gains = self._barycentre_gains() if start is None else self._gains(start)
        self.x = Gains(*({k: torch.zeros_like(v) for k, v in t.items()} for t in (self.gains.even, self.gains.odd)))
        for table, name in self._tables():
            n = table[name].shape[-1]
            if start is not None:
                table[name] = self._matrix(start, name, table is self.x.odd)
            elif table is self.x.even:
                table[name] = torch.full_like(table[name], 1.0 / n)
        self.ahead = self.vertex = self.gains

    def best(self, gains: Gains) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The relabeling that maximizes a linear function."""
        return solve_tree(
            self.problem.symmetry,
            self.update.move.tree,
            gains,
            device=self.problem.device,
            dtype=self.problem.work_dtype,
        )

    def look(self, vertex: Labels) -> tuple[float, float, float]:
        """Slope and curvature towards a relabeling, and the linear function's value at the point."""
        self.ahead = self._gains(vertex)
        self.vertex = Gains({}, {})
        slope = curve = size = 0.0
        for table, name in self._tables():
            odd = table is self.x.odd
            at = (self.vertex.odd if odd else self.vertex.even)[name] = self._matrix(vertex, name, odd)
            gain, ahead = ((g.odd if odd else g.even)[name] for g in (self.gains, self.ahead))
            way = at - table[name]
            slope += float((gain * way).sum(dtype=torch.float64))
            curve += 0.5 * float(((ahead - gain) * way).sum(dtype=torch.float64))
            size += float((gain * table[name]).sum(dtype=torch.float64))
        return slope, curve, size

    def move(self, length: float) -> None:
        """Moves the point and its gains a share of the way to the vertex."""
        for mine, there in ((self.x, self.vertex), (self.gains, self.ahead)):
            for a, b in ((mine.even, there.even), (mine.odd, there.odd)):
                for name in a:
                    a[name] = torch.lerp(a[name], b[name].to(a[name].dtype), length)

    def _tables(self) -> list[tuple[dict[str, Tensor], str]]:
        return [(t, name) for t in (self.x.even, self.x.odd) for name in list(t)]

    def _gains(self, labels: Labels) -> Gains:
        return (self.linear.bring(labels) + self.curved.bring(labels)).copy()

    def _matrix(self, labels: Labels, name: str, odd: bool) -> Tensor:
        """A relabeling of the chain down to an atom as permutation matrices ``(batch, n, n)``, signed for odd ones."""
        index = self.update.flat_index(name, labels)
        one = torch.ones((), dtype=self.problem.work_dtype, device=self.problem.device)
        value = one.expand(index.shape)
        if odd and name in labels.signs:
            value = labels.signs[name].reshape(index.shape).to(one.dtype)
        out = torch.zeros(*index.shape, index.shape[-1], dtype=one.dtype, device=one.device)
        return out.scatter_(-1, index.unsqueeze(-1), value.unsqueeze(-1))

    def _barycentre_gains(self) -> Gains:
        """Gains where all other atoms are spread evenly: sums on one side, means on the other, signs cancel."""
        gains = Gains()
        for part in (*self.linear.parts, *self.curved.parts):
            dims = part.block.dims
            free = [i for i in part.others if dims[i].name]
            for fixed, moving, odd in self.problem.views(part.block):
                left, right = fixed, moving
                if free:
                    left, right = fixed.sum(free, keepdim=True), moving.mean(free, keepdim=True)
                if odd and any(dims[i].odd for i in free):
                    right = torch.zeros_like(right)
                gains.add(part.node, part.signed(odd), part.flat(left), part.flat(right))
        return gains


def _joined(found: Iterable[tuple[dict[str, Tensor], dict[str, Tensor]]]) -> list[dict[str, Tensor]]:
    """The indices and the signs of several families."""
    tables: list[dict[str, Tensor]] = [{}, {}]
    for pair in found:
        for table, more in zip(tables, pair, strict=True):
            table |= more
    return tables
