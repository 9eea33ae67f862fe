"""Coverage of the simultaneous bands by the number of draws, on a linear model whose losses have closed forms.

    python benchmarks/coverage.py --repeats 400

Paths between posteriors of a linear regression of 12 data. On the first, the endpoints differ in their scales, and most
of the error is that of the ends. On the second, both ends have the same large scale: what is common to the whole path
cancels, and the excess that is left hangs on the few draws that come near to data far from the mean. The third leads
between posteriors far from the data, whose log likelihoods vary by many nats between draws: there the band covers too
little.

Columns: share of bands that hold the whole true curve; share of runs that `summary()` would warn of; greatest standard
deviation, over data and taus, of one datum's log likelihood between draws.
"""

import argparse
import math

import numpy as np
import torch

from pyro_align.barrier import Curve
from pyro_align.barrier.cautions import SETTLED, curve_cautions
from pyro_align.losses.likelihood import ExpectedNLL, PredictiveNLL
from pyro_align.losses.protocol import Batch, Totals

NOISE, TAUS = 0.7, np.linspace(0, 1, 7)
LOSSES = {loss.name: loss for loss in (ExpectedNLL(), PredictiveNLL())}
CASES = {"ends of scale 0.3 and 0.1": (0.3, 0.1), "both endpoints of scale 0.2": (0.2, 0.2), "ends far off": None}
FAR = ([1.6, -1.2, 0.3], [0.2, 0.3, 0.9]), (0.15, [0.1, 0.25, 0.2])  # locations and scales of such ends


def log_normal(residual, variance):
    return -0.5 * (math.log(2 * math.pi) + np.log(variance) + residual**2 / variance)


def moments(scales, dims, generator):
    ends = 1.0 + 0.4 * torch.randn(2, dims, generator=generator).double()
    return [((1 - t) * ends[0] + t * ends[1], (1 - t) * scales[0] + t * scales[1]) for t in TAUS]


def problem(scales, generator):
    """Inputs, outputs, and the moments along the path."""
    if scales is None:
        rng = np.random.default_rng(3)
        x = rng.normal(size=(12, 3))
        y = torch.tensor(x @ [1.0, -0.5, 0.3] + NOISE * rng.normal(size=12))
        ends, scales = torch.tensor(FAR[0]).double(), [torch.as_tensor(scale).double() for scale in FAR[1]]
        blend = [((1 - t) * ends[0] + t * ends[1], (1 - t) * scales[0] + t * scales[1]) for t in TAUS]
        return torch.tensor(x), y, blend
    x = torch.randn(12, 3, generator=generator).double()
    y = x.sum(1) + NOISE * torch.randn(12, generator=generator).double()
    return x, y, moments(scales, 3, generator)


def truth(loss, x, y, path):
    values = []
    for mean, scale in path:
        residual, spread = (y - x @ mean).numpy(), (scale**2 * x.square()).sum(1).numpy()
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
    return Curve.of("data", loss, TAUS, estimates), spread


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=400)
    parser.add_argument("--draws", type=int, nargs="+", default=[16, 32, 64, 256])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    options = parser.parse_args()
    for case, scales in ((name, CASES[name]) for name in options.cases):
        generator = torch.Generator().manual_seed(options.seed)
        x, y, path = problem(scales, generator)
        for loss in ("expected_nll", "predictive_nll"):
            true = truth(loss, x, y, path)
            for draws in options.draws:
                held, warned, told, spreads = [], [], [], []
                for run in range(options.repeats):
                    one, spread = curve(loss, x, y, path, draws, generator)
                    band = one.band(resamples=1000, seed=run)
                    held.append(((band.lower <= true + 1e-12) & (true <= band.upper + 1e-12)).all())
                    told.append(any(curve_cautions({("data", loss): one})))
                    warned.append(one.settling > SETTLED)
                    spreads.append(spread)
                print(
                    f"{case}, {loss}, {draws} draws: coverage {np.mean(held):.3f}, "
                    f"warned {np.mean(told):.2f} ({np.mean(warned):.2f} unsettled), spread {np.mean(spreads):.1f} nats",
                    flush=True,
                )


if __name__ == "__main__":
    main()
