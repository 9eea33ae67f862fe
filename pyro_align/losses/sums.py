"""Losses on one data set at one point of a path: contributions of batches, added up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from pyro_align.losses.protocol import Batch, Contribution, Estimate, GuideLoss, Loss, Totals, to_numpy
from pyro_align.model.batch import Draws


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
