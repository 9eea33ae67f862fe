"""What gradient matchers share: a differentiable loss of the relabeled values, and the best relabeling on the way."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_align.matching.coordinate import anchored_pass, make_updates, sweep_until_converged
from pyro_align.matching.labels import Labels
from pyro_align.matching.matcher import Matcher, Run
from pyro_align.matching.problem import Problem

Values = Mapping[str, tuple[Tensor, ...]]
Loss = Callable[[Values], Tensor]


@dataclass(frozen=True)
class Descent(Matcher):
    """Minimizes a loss of relabeled values by gradient steps.

    Attributes:
        loss: Gets site -> relabeled moving features, differentiable, and returns a scalar. Without one the loss is
            the negative objective, and the result is polished by coordinate ascent.
        max_steps: Gradient steps.
        learning_rate: Adam's step size.
    """

    loss: Loss | None = None
    max_steps: int = 100
    learning_rate: float = 0.1

    @property
    def own_loss(self) -> bool:
        return self.loss is not None

    @abstractmethod
    def descend(self, run: Run, loss: Loss) -> Iterator[tuple[Labels, float] | None]:
        """Takes one gradient step after another; yields after each, at times a relabeling and its loss."""

    def search(self, run: Run) -> str:
        updates = make_updates(run.problem)
        if run.anchored and not anchored_pass(run, updates):
            return "time_limit"
        with torch.enable_grad():
            status = self._keep_best(run, self.loss or negative_objective(run.problem))
        if self.loss is None:
            return sweep_until_converged(run, updates)
        run.record()
        return status

    def _keep_best(self, run: Run, loss: Loss) -> str:
        if not run.labels.indices:
            return "converged"
        best = float(loss(hard_values(run.problem, run.labels)).detach())
        for found in self.descend(run, loss):
            if found is not None and found[1] < best:
                best = found[1]
                run.labels.replace(found[0].indices, found[0].signs)
                run.show()
            if run.clock.expired:
                return "time_limit"
        return "converged"


def negative_objective(problem: Problem) -> Loss:
    """The matchers' own objective as a loss, divided by the fixed side's squared norm."""
    scale = sum(float(f.square().sum()) for s in problem.symmetry.sites for f, _, _ in problem.features(s)) or 1.0

    def loss(values: Values) -> Tensor:
        total = sum((f * m).sum() for s in values for (f, _, _), m in zip(problem.features(s), values[s], strict=True))
        return -total / scale

    return loss


def hard_values(problem: Problem, labels: Labels) -> dict[str, tuple[Tensor, ...]]:
    """The moving features after a relabeling."""
    permutation = labels.permutation()
    return {
        site: tuple(permutation.apply_site(site, m, signs=odd) for _, m, odd in problem.features(site))
        for site in problem.symmetry.sites
    }
