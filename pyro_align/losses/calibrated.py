"""The NLL of calibrated class probabilities: what is left of a barrier once every point has a temperature of its own.

Between two networks the averaged probabilities are often right and too timid, or too sure: one temperature, at which
the probabilities' logarithms are divided, takes that away (Guo et al. 2017) and leaves what no rescaling mends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

from pyro_align.losses.protocol import Batch, Contribution, Estimate, Label, Loss, Totals, to_numpy

if TYPE_CHECKING:
    from pyro_align.model.observations import Layout

_LOG_TEMPERATURES = np.linspace(-3.0, 4.6, 39)  # from 1/20 to 100; the spline between them errs by some 1e-5 nats


class CalibratedNLL(Loss):
    """NLL of the averaged class probabilities ``p ** (1/T)``, normalized, at the T that is best for the data.

    The temperature is chosen again at every tau, on the data that the loss is evaluated on: one number, so that what it
    can fit is small. At the best temperature the loss does not change with it, so that its error adds none to first
    order; errors are the jackknife's, as for ``predictive_nll``.

    Example:
        >>> timid = torch.tensor([[[0.6, 0.4], [0.6, 0.4], [0.6, 0.4], [0.4, 0.6]]])
        >>> batch = Batch(torch.zeros(2, 4), torch.eye(2), timid.expand(2, 4, 2), torch.tensor([0, 0, 0, 0]))
        >>> loss = CalibratedNLL()
        >>> estimate = loss.finish(loss.contribution(batch), Totals(4, 4, None, None))
        >>> float(estimate.draws.mean().round(3))  # odds 3 to 1
        0.562
    """

    name: str = "calibrated_nll"
    label: Label = Label("calibrated NLL", per_draw=False)
    predicts = True

    def unsuited(self, layout: Layout) -> str | None:
        return self.without_classes(layout)

    def contribution(self, batch: Batch) -> Contribution:
        assert batch.prediction is not None
        assert batch.observed is not None
        return {"draws": to_numpy(_pseudo_values(batch.prediction.double(), batch.observed.long()))}

    def finish(self, total: Contribution, totals: Totals) -> Estimate:
        known = total["draws"] / totals.seen
        curves = CubicSpline(_LOG_TEMPERATURES, known[:, :-1], axis=1)
        fine = np.linspace(_LOG_TEMPERATURES[0], _LOG_TEMPERATURES[-1], 6001)
        best = int(curves(fine).mean(0).argmin())
        return Estimate(known[:, -1] if best == len(fine) - 1 else curves(fine[best]))


def _pseudo_values(probabilities: Tensor, observed: Tensor) -> Tensor:
    """Jackknife pseudo-values of the calibrated loss, summed over data, at each temperature ``(draws, temperatures)``.

    The last temperature is infinite: predictions that are worse than chance are best made even.

    Args:
        probabilities: Of the classes, ``(draws, *datum, classes)``.
        observed: Class of each datum, ``(*datum)``.
    """
    count, total = len(probabilities), probabilities.sum(0)

    def losses(mean: Tensor) -> Tensor:
        logs = mean.clamp_min(torch.finfo(mean.dtype).tiny).log()
        own = logs.gather(-1, observed.unsqueeze(-1)).squeeze(-1)
        scales = [*np.exp(-_LOG_TEMPERATURES).tolist(), 0.0]
        return torch.stack([(torch.logsumexp(logs * s, -1) - own * s).sum() for s in scales])

    whole = losses(total / count)
    without = torch.stack([losses((total - p).clamp_min(0.0) / (count - 1)) for p in probabilities])
    return count * whole - (count - 1) * without
