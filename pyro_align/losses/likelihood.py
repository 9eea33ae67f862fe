"""Losses of the likelihood: the expected NLL, and the NLL of the posterior predictive.

The predictive NLL is nonlinear in the average over draws. Leaving each draw out in turn gives the jackknife's
pseudo-values ``S L - (S - 1) L_(-s)``: their mean removes the bias of order 1/S, their standard deviation gives the
standard error (Quenouille 1956; Tukey 1958).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_align.losses.protocol import Batch, Contribution, Estimate, Label, Loss, Totals, to_numpy


class ExpectedNLL(Loss):
    """-E_q log p(y | z), averaged over data."""

    name: str = "expected_nll"
    label: Label = Label("expected NLL")

    def contribution(self, batch: Batch) -> Contribution:
        return {"draws": to_numpy(-batch.log_likelihood.sum(1))}


class PredictiveNLL(Loss):
    """-log E_q p(y | z) of each datum, averaged over data (the marginalized loss of Rossi et al. 2023, eq. 5)."""

    name: str = "predictive_nll"
    label: Label = Label("predictive NLL")

    def contribution(self, batch: Batch) -> Contribution:
        log_likelihood = batch.log_likelihood
        draws, effective = predictive_pseudo_values(log_likelihood), effective_draws(log_likelihood)
        few = predictive_pseudo_values(log_likelihood[:, effective < len(log_likelihood) ** 0.5])
        return {
            "draws": to_numpy(draws),
            "drift": float(draws.mean() - _by_halves(log_likelihood)),
            "effective": float(effective.min()),
            "fragile": to_numpy(few - few.mean()),
        }

    def merge(self, one: Contribution, other: Contribution) -> Contribution:
        summed = {key: one[key] + other[key] for key in ("draws", "drift", "fragile")}
        return summed | {"effective": min(one["effective"], other["effective"])}

    def finish(self, total: Contribution, totals: Totals) -> Estimate:
        draws, drift, fragile = (total[key] / totals.seen for key in ("draws", "drift", "fragile"))
        return Estimate(draws, drift, total["effective"], fragile)


def predictive_pseudo_values(log_likelihood: Tensor) -> Tensor:
    """Jackknife pseudo-values of -sum_i log mean_s exp(log_likelihood[s, i]), ``(draws,)``, nats.

    Leaving out draw s needs the sum of all others; sums from the left and from the right give it without cancellation.

    Args:
        log_likelihood: ``(draws, data)``.
    """
    count = log_likelihood.shape[0]
    left = torch.logcumsumexp(log_likelihood, 0)
    right = torch.logcumsumexp(log_likelihood.flip(0), 0).flip(0)
    nothing = torch.full_like(left[:1], -torch.inf)
    others = torch.logaddexp(torch.cat([nothing, left[:-1]]), torch.cat([right[1:], nothing]))
    whole = -(left[-1] - math.log(count)).sum()
    without = -(others - math.log(count - 1)).sum(1)
    return count * whole - (count - 1) * without


def _by_halves(log_likelihood: Tensor) -> Tensor:
    """The jackknife's estimate from either half of the draws, averaged; NaN from fewer than 4 draws.

    What is linear in the draws is the same in the halves' mean and in the whole; what differs is the bias that is left,
    which falls at least with the square of the number of draws, and the weight of a tail that few draws reach.
    """
    halves = [log_likelihood[i::2] for i in range(2)]
    if min(len(half) for half in halves) < 2:
        return log_likelihood.new_full((), torch.nan)
    weights = [len(half) / len(log_likelihood) for half in halves]
    means = [w * predictive_pseudo_values(half).mean() for w, half in zip(weights, halves, strict=True)]
    return torch.stack(means).sum()


def effective_draws(log_likelihood: Tensor) -> Tensor:
    """Kish's effective number of draws behind each datum's mean likelihood, ``(data,)``."""
    weights = torch.softmax(log_likelihood, 0)
    return 1 / weights.square().sum(0)
