"""The KL to the prior, and the negative ELBO that it is part of."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from pyro_align.losses.protocol import Contribution, Estimate, Label, Loss, Totals, to_numpy

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
