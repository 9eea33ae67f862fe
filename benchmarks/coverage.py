"""Coverage of the simultaneous bands by the number of draws, on a linear model whose losses have closed forms.

    python benchmarks/coverage.py --repeats 400

Two paths between posteriors of a linear regression of 12 data. On the first, the ends differ in their scales, and most
of the error is that of the ends. On the second, both ends have the same large scale: what is common to the whole path
cancels, and the excess that is left hangs on the few draws that come near to data far from the mean.

Columns: share of bands that hold the whole true curve; share of runs that `summary()` would warn of; greatest standard
deviation, over data and taus, of one datum's log likelihood between draws.
"""

import argparse
import math

import numpy as np
import torch

from pyro_align.barrier import Curve
from pyro_align.losses.cautions import SETTLED
from pyro_align.losses.likelihood import ExpectedNLL, PredictiveNLL
from pyro_align.losses.protocol import Batch, Totals

NOISE, TAUS = 0.7, np.linspace(0, 1, 7)
LOSSES, PARTS = {loss.name: loss for loss in (ExpectedNLL(), PredictiveNLL())}, ("draws", "drift", "effective")
CASES = {"ends of scale 0.3 and 0.1": (0.3, 0.1), "both ends of scale 0.2": (0.2, 0.2)}


def log_normal(residual, variance):
    return -0.5 * (math.log(2 * math.pi) + np.log(variance) + residual**2 / variance)


def moments(scales, dims, generator):
    ends = 1.0 + 0.4 * torch.randn(2, dims, generator=generator).double()
    return [((1 - t) * ends[0] + t * ends[1], (1 - t) * scales[0] + t * scales[1]) for t in TAUS]


def truth(loss, x, y, path):
    values = []
    for mean, scale in path:
        residual, spread = (y - x @ mean).numpy(), (scale**2 * x.square().sum(1)).numpy()
        if loss == "predictive_nll":
            values.append(-log_normal(residual, NOISE**2 + spread).mean())
        else:
            values.append((-log_normal(residual, NOISE**2) + spread / (2 * NOISE**2)).mean())
    values = np.array(values)
    return values - (1 - TAUS) * values[0] - TAUS * values[-1]


def curve(loss, x, y, path, draws, generator):
    """One evaluation, with the library's own sums and jackknife."""
    noise, estimates, spread = torch.randn(draws, x.shape[1], generator=generator).double(), [], 0.0
    totals = Totals(len(y), len(y), None, None)
    for mean, scale in path:
        residual = y - (mean + scale * noise) @ x.T
        log_likelihood = -0.5 * (residual / NOISE).square() - math.log(NOISE) - 0.5 * math.log(2 * math.pi)
        spread = max(spread, float(log_likelihood.std(0).max()))
        estimates.append(LOSSES[loss].finish(LOSSES[loss].contribution(Batch(log_likelihood, None)), totals))
    draws, drift, effective = (np.stack([getattr(one, part) for one in estimates]) for part in PARTS)
    return Curve("data", loss, TAUS, draws, drift, effective), spread


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=400)
    parser.add_argument("--draws", type=int, nargs="+", default=[16, 32, 64, 256])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for case, scales in CASES.items():
        generator = torch.Generator().manual_seed(options.seed)
        x = torch.randn(12, 3, generator=generator).double()
        y = x.sum(1) + NOISE * torch.randn(12, generator=generator).double()
        path = moments(scales, 3, generator)
        for loss in ("expected_nll", "predictive_nll"):
            true = truth(loss, x, y, path)
            for draws in options.draws:
                held, warned, spreads = [], [], []
                for run in range(options.repeats):
                    one, spread = curve(loss, x, y, path, draws, generator)
                    band = one.band(resamples=1000, seed=run)
                    held.append(((band.lower <= true + 1e-12) & (true <= band.upper + 1e-12)).all())
                    warned.append(one.settling > SETTLED)
                    spreads.append(spread)
                print(
                    f"{case}, {loss}, {draws} draws: coverage {np.mean(held):.3f}, "
                    f"warned {np.mean(warned):.2f}, spread {np.mean(spreads):.1f} nats",
                    flush=True,
                )


if __name__ == "__main__":
    main()
