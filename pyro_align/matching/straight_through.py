"""Straight-through estimation: gradients of a loss move a shadow of the fixed side (Ainsworth et al. 2023).

The shadow starts at the fixed features. Each step matches the moving side to the shadow by coordinate ascent, evaluates
the loss of the relabeled values, and passes its gradient to the shadow as though the relabeling were the identity
map. The relabeling with the lowest loss is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyro_align.matching.coordinate import make_updates, sweep_until_converged
from pyro_align.matching.descent import Descent, Loss, hard_values
from pyro_align.matching.labels import Labels
from pyro_align.matching.matcher import Run, register
from pyro_align.matching.problem import Problem


@register("straight_through")
@dataclass(frozen=True)
class StraightThrough(Descent):
    """Minimizes a loss of relabeled values by straight-through gradients.

    Attributes:
        loss: Gets site -> relabeled moving features, differentiable, and returns a scalar. Without one the loss is
            the negative objective, and the result is polished by coordinate ascent.
        max_steps: Gradient steps.
        learning_rate: Adam's step size, relative to each feature's root mean square.
        max_sweeps: Sweeps of coordinate ascent in each step.
    """

    max_steps: int = 50
    learning_rate: float = 0.05
    max_sweeps: int = 2

    def descend(self, run: Run, loss: Loss) -> Iterator[tuple[Labels, float] | None]:
        problem = run.problem
        sites = {s: problem.features(s) for s in problem.symmetry.sites}
        shadow = {s: [f.clone().requires_grad_() for f, _, _ in features] for s, features in sites.items()}
        moving = {s: [m for _, m, _ in features] for s, features in sites.items()}
        odd = {s: [o for _, _, o in features] for s, features in sites.items()} if problem.symmetry.signed else None
        groups = [
            {"params": [t], "lr": self.learning_rate * max(float(t.detach().square().mean().sqrt()), 1e-12)}
            for tensors in shadow.values()
            for t in tensors
            if t.numel()
        ]
        optimizer = torch.optim.Adam(groups) if groups else None
        labels = run.labels.copy()
        for step in range(self.max_steps):
            if step:
                self._match(run, labels, Problem(problem.symmetry, shadow, moving, odd))
            hard = hard_values(problem, labels)
            value = loss({s: tuple(_straight(h, t) for h, t in zip(hard[s], shadow[s], strict=True)) for s in hard})
            yield labels, float(value.detach())
            if optimizer is None or not value.requires_grad:
                break
            optimizer.zero_grad()
            value.backward()
            optimizer.step()

    def _match(self, run: Run, labels, problem: Problem) -> None:
        inner = replace(
            run, problem=problem, labels=labels, max_sweeps=self.max_sweeps, progress=None, value=0.0, history=[]
        )
        with torch.no_grad():
            sweep_until_converged(inner, make_updates(problem))


def _straight(hard: Tensor, shadow: Tensor) -> Tensor:
    """The relabeled value, with the shadow's gradient."""
    return hard + (shadow - shadow.detach())
