"""Losses of a task, such as the error rate: functions of the averaged prediction and what was observed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from pyro_align.errors import BarrierError
from pyro_align.losses.protocol import Batch, Contribution, Label, Loss, to_numpy

if TYPE_CHECKING:
    from pyro_align.model.observations import Layout

Judge = Callable[[Tensor, Tensor], Tensor]


class TaskLoss(Loss):
    """A function ``(prediction, observed) -> loss per datum``, of the posterior mean of the prediction.

    Args:
        name: Name of the loss.
        judge: (mean prediction ``(*datum, ...)``, observed ``(*datum, ...)``) -> loss per datum ``(*datum)``. The
            prediction is the mean of the observed site's distribution; class probabilities where it has classes.
        title: Its name in prose; ``name`` by default.
        unit: Its unit.
        better: Which way is better.

    Example:
        >>> from pyro_align.losses import Totals
        >>> def brier(probabilities, observed):
        ...     return (probabilities - torch.nn.functional.one_hot(observed, probabilities.shape[-1])).square().sum(-1)
        >>> loss = TaskLoss("brier", brier, title="Brier score", unit="squared probability")
        >>> batch = Batch(torch.zeros(2, 1), bootstrap_weights(2, 0), torch.full((2, 1, 2), 0.5), torch.tensor([1]))
        >>> float(loss.finish(loss.contribution(batch), Totals(1, 1, None, None)).draws.mean().round(6))
        0.5
    """

    name: str
    judge: Judge

    predicts = True

    def __init__(
        self,
        name: str,
        judge: Judge,
        *,
        title: str | None = None,
        unit: str = "per datum",
        better: Literal["lower", "higher"] = "lower",
    ):
        self.name, self.judge = name, judge
        self.label: Label = Label(title or name, unit, better, per_draw=False)

    def contribution(self, batch: Batch) -> Contribution:
        assert batch.prediction is not None
        assert batch.observed is not None
        draws = task_pseudo_values(self.name, self.judge, batch.prediction, batch.observed, batch.weights)
        return {"draws": to_numpy(draws)}


class ErrorRate(TaskLoss):
    """Fraction of data whose averaged class probabilities favor a wrong class."""

    def __init__(self):
        super().__init__("error_rate", wrong_class, title="error rate", unit="fraction of data")

    def unsuited(self, layout: Layout) -> str | None:
        return self.without_classes(layout)


def wrong_class(probabilities: Tensor, observed: Tensor) -> Tensor:
    """1 where the most probable class is not the observed one, ``(*datum)``."""
    return (probabilities.argmax(-1) != observed).double()


def bootstrap_weights(count: int, seed: int) -> Tensor:
    """Weights of the Bayesian bootstrap (Rubin 1981), ``(count, count)``: each row re-weights the draws."""
    generator = torch.Generator().manual_seed(seed)
    raw = -torch.rand(count, count, generator=generator, dtype=torch.float64, device="cpu").log()
    return raw / raw.sum(1, keepdim=True)


def task_pseudo_values(name: str, judge: Judge, prediction: Tensor, observed: Tensor, weights: Tensor) -> Tensor:
    """A task's loss of the averaged prediction, summed over data, with the spread of its bootstrap, ``(draws,)``.

    Task losses are steps in the prediction, for which the jackknife fails; re-weighting all draws at once does not. The
    replicates stand in for the draws: their mean is the loss of the plain average, and their standard deviation over
    sqrt(draws) is the bootstrap's standard error. The same weights at every tau keep differences paired.

    Args:
        judge: (mean prediction ``(*datum, ...)``, observed) -> loss per datum.
        prediction: ``(draws, *datum, ...)``.
        observed: ``(*datum, ...)``.
        weights: Of the bootstrap, ``(draws, draws)``.
    """
    count = prediction.shape[0]

    def total(mean: Tensor) -> Tensor:
        out = judge(mean, observed)
        if not isinstance(out, Tensor) or out.dim() == 0 or out.shape[0] != mean.shape[0]:
            got = f"a tensor of shape {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
            raise BarrierError(
                f"loss '{name}': expected one loss per datum, a tensor ({mean.shape[0]}, ...), got {got}; "
                "the average over data is taken for you"
            )
        return out.double().sum()

    whole = total(prediction.mean(0))
    mixed = torch.tensordot(weights.to(prediction), prediction, 1)
    replicates = torch.stack([total(mean) for mean in mixed])
    scale = (count * (count + 1) / (count - 1)) ** 0.5  # a replicate's variance is that of a mean over count + 1
    return whole + scale * (replicates - replicates.mean())
