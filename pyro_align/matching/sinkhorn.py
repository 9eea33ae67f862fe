"""Sinkhorn re-basin: gradient descent on doubly stochastic matrices (Pena et al. 2023).

Every relabeling is relaxed to ``Sinkhorn(scores / temperature)``, which is differentiable, and a loss of the softly
relabeled values is minimized over the scores. So this matcher minimizes any loss, for instance the model's at the
midpoint of the path. At the end, and every few steps, the scores are rounded to a relabeling by linear assignments,
and the rounded relabeling with the lowest loss is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_align.matching.assignment import assign
from pyro_align.matching.descent import Descent, Loss, hard_values
from pyro_align.matching.labels import Labels, aligned
from pyro_align.matching.matcher import Run, register
from pyro_align.matching.problem import Problem
from pyro_align.symmetry.blocks import Block


@register("sinkhorn")
@dataclass(frozen=True)
class Sinkhorn(Descent):
    """Minimizes a loss over relaxed relabelings by gradient.

    Attributes:
        loss: Gets site -> relabeled moving features, differentiable, and returns a scalar. Without one the loss is
            the negative objective, and the result is polished by coordinate ascent.
        max_steps: Gradient steps.
        learning_rate: Adam's step size on the scores.
        temperature: Sinkhorn temperature of the scores; lower is closer to a permutation.
        iterations: Row and column normalizations in each projection.
        confidence: Scores of the start's own pairs above the others at the beginning.
        round_every: Steps between roundings.
    """

    temperature: float = 0.3
    iterations: int = 20
    confidence: float = 1.0
    round_every: int = 10

    def descend(self, run: Run, loss: Loss) -> Iterator[tuple[Labels, float] | None]:
        scores, flips = self._scores(run)
        optimizer = torch.optim.Adam([*scores.values(), *flips.values()], lr=self.learning_rate)
        for step in range(1, self.max_steps + 1):
            soft = {k: project(v / self.temperature, self.iterations) for k, v in scores.items()}
            value = loss(soft_values(run.problem, soft, {k: v.tanh() for k, v in flips.items()}))
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            if step % self.round_every and step < self.max_steps:
                yield None
                continue
            trial = run.labels.copy()
            trial.replace(
                {k: assign(v.detach()) for k, v in scores.items()},
                {k: torch.where(v.detach() < 0, -1, 1).to(torch.int8) for k, v in flips.items()},
            )
            yield trial, float(loss(hard_values(run.problem, trial)).detach())

    def _scores(self, run: Run) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Trainable scores ``(*outer sizes, n, n)`` and signs before tanh, that favor the present relabeling."""
        scores, flips = {}, {}
        dtype = run.problem.work_dtype
        for name, index in run.labels.indices.items():
            n = index.shape[-1]
            noise = 0.01 * torch.randn(*index.shape, n, generator=run.generator, dtype=dtype, device="cpu")
            here = torch.nn.functional.one_hot(index, n).to(dtype)
            scores[name] = (noise.to(here.device) + self.confidence * here).requires_grad_()
        for name, sign in run.labels.signs.items():
            flips[name] = (0.5 * sign.to(dtype)).requires_grad_()
        return scores, flips


def project(scores: Tensor, iterations: int) -> Tensor:
    """Doubly stochastic matrices from scores ``(*batch, n, n)`` by Sinkhorn's normalizations in log space.

    Example:
        >>> project(torch.zeros(2, 2), 5)
        tensor([[0.5000, 0.5000],
                [0.5000, 0.5000]])
    """
    for _ in range(iterations):
        scores = scores - scores.logsumexp(-1, keepdim=True)
        scores = scores - scores.logsumexp(-2, keepdim=True)
    return scores.exp()


def soft_values(
    problem: Problem, soft: Mapping[str, Tensor], flips: Mapping[str, Tensor]
) -> dict[str, tuple[Tensor, ...]]:
    """The moving features after a relaxed relabeling, differentiable.

    Args:
        problem: What is matched.
        soft: Atom -> doubly stochastic matrices ``(*outer sizes, n, n)``: new by old.
        flips: Signed atom -> relaxed signs in (-1, 1), ``(*outer sizes, n)``, by new position.
    """
    out: dict[str, list[Tensor]] = {s: [torch.zeros_like(m) for _, m, _ in problem.features(s)] for s in problem.counts}
    for block in problem.all_blocks:
        for k, (_, moving, odd) in enumerate(problem.views(block)):
            block.view(out[block.site][k]).copy_(_soft_block(block, moving, soft, flips if odd else {}))
    return {site: tuple(values) for site, values in out.items()}


def _soft_block(block: Block, value: Tensor, soft: Mapping[str, Tensor], flips: Mapping[str, Tensor]) -> Tensor:
    for i in sorted(range(len(block.dims)), key=lambda i: len(block.dims[i].outer)):
        dim = block.dims[i]
        if not dim.name:
            continue
        front = (*dim.outer, i)
        order = (*front, *(j for j in range(len(block.dims)) if j not in front))
        moved = value.permute(order)
        rows = moved.reshape(*moved.shape[: len(front)], -1)
        moved = (soft[dim.name] @ rows).reshape(moved.shape)
        value = moved.permute([order.index(j) for j in range(len(order))])
        if dim.odd and dim.name in flips:
            value = value * aligned(block, i, flips[dim.name])
    return value
