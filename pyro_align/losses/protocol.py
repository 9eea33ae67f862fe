"""What a loss is: what it takes from a batch of draws, how batches add up, and how the result is written.

A loss of a posterior is estimated from draws. Each batch of data gives a *contribution*, contributions merge in the
order of the batches wherever they were computed, and at the end they become pseudo-values, one a draw, whose mean is
the estimate and whose standard deviation over the root of the number of draws is its standard error.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from pyro_align.model.batch import Draws
    from pyro_align.model.observations import Layout

NATS = "nats per datum"

#: Name -> array or number: what a batch adds to a loss.
Contribution = Mapping[str, Any]

_L = TypeVar("_L", bound="Loss")


@dataclass(frozen=True)
class Label:
    """How a loss is written in tables, plots and ArviZ objects.

    Attributes:
        title: Its name in prose.
        unit: Its unit.
        better: Which way is better.
        per_draw: Whether a pseudo-value belongs to one draw; bootstrap replicates do not.
    """

    title: str
    unit: str = NATS
    better: Literal["lower", "higher"] = "lower"
    per_draw: bool = True


@dataclass(frozen=True)
class Batch:
    """What the model says about each draw on one batch of data.

    Attributes:
        log_likelihood: Per draw and datum, ``(draws, data)`` nats, unscaled, in float64.
        weights: Of the bootstrap over draws, ``(draws, draws)``.
        prediction: Mean of the observed site's distribution, or class probabilities, ``(draws, *datum, ...)``; None
            unless the loss has :attr:`Loss.predicts`.
        observed: The observed values, ``(*datum, ...)``, or None likewise.
    """

    log_likelihood: Tensor
    weights: Tensor
    prediction: Tensor | None = None
    observed: Tensor | None = None

    @classmethod
    def of(cls, draws: Draws, weights: Tensor) -> Batch:
        return cls(draws.log_likelihood.flatten(1).double(), weights, draws.prediction, draws.target)


@dataclass(frozen=True)
class Totals:
    """What all losses of one data set share.

    Attributes:
        seen: Number of data that the model was run on.
        num_data: Number of data that it stands for; more than ``seen`` under subsampling.
        likelihood: Sum over the data seen of the log likelihood, ``(draws,)`` nats; scales and masks applied.
        kl: KL(q || prior) of each draw, ``(draws,)`` nats.
        temperature: Weight of the KL in the negative ELBO.
    """

    seen: int
    num_data: int
    likelihood: np.ndarray
    kl: np.ndarray
    temperature: float = 1.0


@dataclass(frozen=True, eq=False)
class Estimate:
    """A loss at one point of a path.

    Attributes:
        draws: Pseudo-values per datum, ``(draws,)``: their mean is the estimate.
        drift: How far the estimate moves from half the draws to all; 0 for an average over draws.
        effective: The least effective number of draws behind any observation; NaN where all count alike.
        fragile: The part of the pseudo-values, less its mean, that comes from observations behind which the effective
            number of S draws is below sqrt(S), ``(draws,)``; None where all count alike.
    """

    draws: np.ndarray
    drift: float = 0.0
    effective: float = np.nan
    fragile: np.ndarray | None = None


class Loss(ABC):
    """A loss of a posterior, from its draws. One subclass is one loss, or one family of losses.

    Attributes:
        name: What it is called in ``losses=``, and the key of its curves.
        label: How it is written.
        predicts: Whether :meth:`contribution` needs predictions, which cost a little.
        needs_density: Whether it rests on the posterior's density, which sets of draws do not have.

    Example:
        >>> class WorstNLL(Loss):
        ...     name, label = "worst_nll", Label("expected NLL of the worst datum", "nats")
        ...
        ...     def contribution(self, batch):
        ...         return {"worst": -batch.log_likelihood.min(1).values.numpy()}
        ...
        ...     def merge(self, one, other):
        ...         return {"worst": np.maximum(one["worst"], other["worst"])}
        ...
        ...     def finish(self, total, totals):
        ...         return Estimate(total["worst"])
        >>> import torch
        >>> batches = [Batch(torch.tensor([[-1.0, -2.0], [-3.0, -1.0]]).double(), torch.eye(2)) for _ in range(2)]
        >>> loss = WorstNLL()
        >>> loss.finish(loss.merge(*map(loss.contribution, batches)), None).draws
        array([2., 3.])
    """

    name: str
    label: Label
    predicts: ClassVar[bool] = False
    needs_density: ClassVar[bool] = False

    def unsuited(self, layout: Layout) -> str | None:
        """Why a model with this layout of data has no such loss; None if it has."""
        return None

    def contribution(self, batch: Batch) -> Contribution:
        """What one batch of data adds; nothing for a loss that rests on :class:`Totals` alone."""
        return {}

    def merge(self, one: Contribution, other: Contribution) -> Contribution:
        """The contribution of both batches, ``one`` before ``other``; sums, unless a loss says otherwise."""
        return {key: one[key] + other[key] for key in one}

    def finish(self, total: Contribution, totals: Totals) -> Estimate:
        """The estimate, per datum; by default the contributions' ``draws`` over the number of data.

        Args:
            total: The merged contributions of all batches.
            totals: What all losses of the data set share.
        """
        return Estimate(total["draws"] / totals.seen)

    def without_classes(self, layout: Layout) -> str | None:
        """Why a model has no loss of class probabilities; None if it has."""
        if layout.categorical is not None:
            return None
        return (
            f"{self.name} needs one observed site, with classes (Categorical, OneHotCategorical or Bernoulli); "
            f"observed are {list(layout.observed)}. Give a callable (prediction, observed) -> loss per datum instead"
        )

    def named(self: _L, name: str) -> _L:
        """The same loss under another name, which is then its title too."""
        if name == self.name:
            return self
        out = copy.copy(self)
        vars(out).update(name=name, label=replace(self.label, title=name))
        return out


class GuideLoss(Loss):
    """A loss that is evaluated on the guide ``path(tau)`` itself, rather than on draws."""

    needs_density = True

    @abstractmethod
    def values(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        seeds: list[int],
    ) -> np.ndarray:
        """The loss of all data, once with each seed, ``(seeds,)``."""

    def finish(self, total: Contribution, totals: Totals) -> Estimate:
        return Estimate(total["draws"])  # already per datum, of those that the model stands for


def to_numpy(value: Tensor) -> np.ndarray:
    """A tensor's values in float64, on the host."""
    return value.detach().double().cpu().numpy()


# -- batches added up --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sums:
    """What some batches of a data set give: plain arrays, so that it travels between processes.

    Attributes:
        losses: Name of the loss -> contribution.
        likelihood: Sum over data of the log likelihood with scales and masks, ``(draws,)`` nats.
        seen: Number of data.
    """

    losses: Mapping[str, Contribution]
    likelihood: np.ndarray
    seen: int


def sums_of(losses: Mapping[str, Loss], draws: Draws, weights: Tensor) -> Sums:
    """The sums of one batch.

    Args:
        losses: Name -> loss.
        weights: Of the bootstrap over draws, ``(draws, draws)``.
    """
    batch = Batch.of(draws, weights)
    each = {name: loss.contribution(batch) for name, loss in losses.items() if not isinstance(loss, GuideLoss)}
    return Sums(each, to_numpy(draws.likelihood), batch.log_likelihood.shape[1])


def merge(losses: Mapping[str, Loss], one: Sums, other: Sums) -> Sums:
    """The sums of two sets of batches, ``one`` before ``other``."""
    each = {name: losses[name].merge(value, other.losses[name]) for name, value in one.losses.items()}
    return Sums(each, one.likelihood + other.likelihood, one.seen + other.seen)


def finish(
    losses: Mapping[str, Loss], sums: Sums, num_data: int, kl: np.ndarray, temperature: float
) -> dict[str, Estimate]:
    """The estimate of every loss.

    Args:
        losses: Name -> loss.
        kl: KL of each draw, ``(draws,)`` nats.
    """
    totals = Totals(sums.seen, num_data, sums.likelihood, kl, temperature)
    return {name: losses[name].finish(value, totals) for name, value in sums.losses.items()}
