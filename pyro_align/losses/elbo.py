"""The KL to the prior, the negative ELBO that it is part of, and Pyro's own ELBO objects."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyro_align.losses.protocol import NATS, Contribution, Estimate, GuideLoss, Label, Loss, Totals, to_numpy
from pyro_align.model.guards import untouched

if TYPE_CHECKING:
    from pyro_align.model.batch import Draws


class KL(Loss):
    """KL(q || prior) / number of data."""

    needs_density = True
    name: str = "kl"
    label: Label = Label("KL to the prior")

    def finish(self, total: Contribution, totals: Totals) -> Estimate:
        return Estimate(totals.kl / totals.num_data)


class NegativeELBO(Loss):
    """E_q[-log p(y | z)] + T KL(q || prior), per datum, with scales and masks as in Pyro's ``Trace_ELBO``."""

    needs_density = True
    name: str = "negative_elbo"
    label: Label = Label("negative ELBO")

    def finish(self, total: Contribution, totals: Totals) -> Estimate:
        return Estimate(-totals.likelihood / totals.seen + totals.temperature * totals.kl / totals.num_data)


def kl_per_draw(draws: Draws, log_q: Tensor, sites: Collection[str]) -> np.ndarray:
    """KL(q || prior) of each draw, ``(draws,)`` nats: closed form where known, log q - log p elsewhere."""
    kl = draws.analytic.double() - draws.rest.double()
    if not set(sites) <= set(draws.closed):  # else the difference is zero, except for rounding
        kl = kl + log_q.double() - draws.log_q_closed.double()
    return to_numpy(kl)


class PyroLoss(GuideLoss):
    """A Pyro ELBO object, such as ``TraceEnum_ELBO()`` or ``RenyiELBO()``, once per draw with the draw's own seed.

    Args:
        elbo: The object; it has ``loss(model, guide, *args, **kwargs)``.
        name: Name of the loss; the object's type by default.
    """

    elbo: Any
    name: str

    def __init__(self, elbo: Any, name: str | None = None):
        self.elbo, self.name = elbo, name or type(elbo).__name__
        self.label: Label = Label(self.name, NATS)

    def values(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        seeds: list[int],
    ) -> np.ndarray:
        out = []
        for seed in seeds:
            with untouched(model, seed=seed), torch.no_grad():
                out.append(float(self.elbo.loss(model, guide, *args, **kwargs)))
        return np.array(out)
