"""A simultaneous confidence band of a curve that is a mean over draws, by the bootstrap."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Band:
    """A simultaneous confidence band of the excess over all taus.

    Attributes:
        lower, upper: Bounds ``(taus,)``.
        level: Probability with which the whole true curve lies inside.
        p_value: Two-sided: twice the probability, were the excess nowhere positive, of one as many standard errors high
            as that seen. It is below ``1 - level`` where :attr:`positive` holds, and not elsewhere.
    """

    lower: np.ndarray
    upper: np.ndarray
    level: float
    p_value: float

    @property
    def positive(self) -> bool:
        """Whether the barrier differs from zero: the band lies above zero somewhere."""
        return bool((self.lower > 0).any())

    @property
    def interval(self) -> tuple[float, float]:
        """A confidence interval of the barrier's height, of at least the band's level."""
        return max(0.0, float(self.lower.max())), max(0.0, float(self.upper.max()))


def simultaneous_band(draws: np.ndarray, se: np.ndarray, level: float, resamples: int, seed: int) -> Band:
    """The band of the mean over draws of some curves.

    The greatest deviation over all taus, in standard errors, is taken from two sources, and the wider one counts:

    - the bootstrap-t (Efron 1982; Hall 1988), which follows the skewness that likelihoods bring. Draws are re-weighted
      by multinomial counts, the same at every tau, and each mean's deviation is divided by its own standard error;
    - Student's t of the same correlations, as few draws tell too little of skewness.

    Args:
        draws: ``(taus, draws)``.
        se: Standard error of each mean, with whatever else is uncertain in it, ``(taus,)``; at taus where it is 0 the
            curve is known, and where it is infinite or NaN nothing is.
    """
    mean, moving = draws.mean(1), np.isfinite(se) & (se > 0)
    if not moving.any():
        return Band(mean.copy(), mean.copy(), level, 0.0 if (mean > 1e-12).any() else 1.0)
    rng = np.random.default_rng(seed)
    standard = (draws[moving] - mean[moving, None]) / draws[moving].std(1, keepdims=True)
    bootstrap, student = _bootstrap_t(standard, resamples, rng), _student_t(standard, resamples, rng)
    highest, lowest, symmetric = bootstrap.max(1), bootstrap.min(1), student.max(1)
    tail = (1 - level) / 2
    least = np.quantile(symmetric, 1 - tail)
    high, low = max(np.quantile(highest, 1 - tail), least), min(np.quantile(lowest, tail), -least)
    width = np.where(moving, se, np.where(np.isfinite(se), 0.0, np.inf))
    seen = (mean[moving] / se[moving]).max()
    beyond = max((highest >= seen).sum(), (symmetric >= seen).sum())
    return Band(mean - high * width, mean - low * width, level, float(min(1.0, 2 * (1 + beyond) / (1 + resamples))))


def _bootstrap_t(standard: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Studentized means of resampled draws, ``(resamples, taus)``."""
    count = standard.shape[1]
    weights = rng.multinomial(count, np.full(count, 1 / count), resamples) / count
    mean = weights @ standard.T
    variance = weights @ (standard**2).T - mean**2
    # of few draws, a sample may hold one draw alone and have no variance
    return mean / np.sqrt(np.maximum(variance, 0.01) / (count - 1))


def _student_t(standard: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Student's t with the correlations of the draws, ``(resamples, taus)``."""
    count = standard.shape[1]
    normal = rng.standard_normal((resamples, count)) @ standard.T / np.sqrt(count)
    return normal / np.sqrt(rng.chisquare(count - 1, (resamples, 1)) / (count - 1))
