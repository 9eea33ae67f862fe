"""One loss along a path: estimates and errors from per-draw figures.

Every loss arrives as an array of *pseudo-values* ``(taus, draws)``: their mean over draws is the estimate, their spread
over the root of the number of draws its standard error. For a loss that is an average over draws (expected NLL, KL,
negative ELBO) they are the draws' own losses; for the predictive NLL they are jackknife pseudo-values (Tukey 1958;
Efron 1982), whose mean is the bias-corrected estimate; for a task's loss they are scaled bootstrap replicates. As the
same noise is pushed through every tau, differences between taus are taken draw by draw.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Peak:
    """The highest excess of a curve.

    Attributes:
        height: The excess, nats per datum (or the loss's own unit).
        se: Standard error of the excess at that tau.
        tau: Where it sits.
    """

    height: float
    se: float
    tau: float


@dataclass(frozen=True, eq=False)
class Band:
    """A simultaneous confidence band of the excess over all taus.

    Attributes:
        lower, upper: Bounds ``(taus,)``.
        level: Probability with which the whole true curve lies inside.
        p_value: Probability, were the excess nowhere positive, of one as many standard errors high as that seen.
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


@dataclass(frozen=True, eq=False)
class Curve:
    """One loss of one data set along a path, in nats per datum unless the loss says otherwise; lower is better.

    Attributes:
        evaluation: Name of the data set.
        loss: Name of the loss.
        taus: Increasing, from 0 to 1, ``(taus,)``.
        draws: Pseudo-values ``(taus, draws)``; column s belongs to the same noise at every tau.
        drift: How far a predictive loss's estimate moves from half the draws to all, ``(taus,)``; None is no move.

    Example:
        >>> draws = np.array([[1.0, 1.2], [1.9, 2.3], [1.1, 1.3]])
        >>> curve = Curve("train", "expected_nll", np.array([0.0, 0.5, 1.0]), draws)
        >>> round(curve.barrier.height, 3), round(curve.barrier.se, 3), curve.barrier.tau
        (0.95, 0.1, 0.5)
    """

    evaluation: str
    loss: str
    taus: np.ndarray
    draws: np.ndarray
    drift: np.ndarray | None = None

    @property
    def num_draws(self) -> int:
        return self.draws.shape[1]

    @cached_property
    def value(self) -> np.ndarray:
        """The loss at each tau, ``(taus,)``."""
        return self.draws.mean(1)

    @cached_property
    def se(self) -> np.ndarray:
        """Monte Carlo standard error of the loss at each tau; of levels, so larger than that of differences."""
        return _standard_error(self.draws)

    @cached_property
    def chord(self) -> np.ndarray:
        """(1 - tau) L(0) + tau L(1), ``(taus,)``."""
        return (1 - self.taus) * self.value[0] + self.taus * self.value[-1]

    @cached_property
    def excess_draws(self) -> np.ndarray:
        """Loss minus chord, draw by draw, ``(taus, draws)``; zero at both ends."""
        tau = self.taus[:, None]
        with np.errstate(invalid="ignore"):
            excess = self.draws - (1 - tau) * self.draws[:1] - tau * self.draws[-1:]
        excess[[0, -1]] = 0.0
        return excess

    @cached_property
    def excess(self) -> np.ndarray:
        """Loss minus chord, ``(taus,)``."""
        return self.excess_draws.mean(1)

    @cached_property
    def excess_se(self) -> np.ndarray:
        """Standard error of the excess, from paired differences, ``(taus,)``."""
        return _standard_error(self.excess_draws)

    @cached_property
    def excess_drift(self) -> np.ndarray:
        """How far the excess moves from half the draws to all, ``(taus,)``: what is left of its bias, or more.

        Zero for losses that are averages over draws, and where there are too few draws to tell.
        """
        if self.drift is None:
            return np.zeros(len(self.taus))
        moved = self.drift - (1 - self.taus) * self.drift[0] - self.taus * self.drift[-1]
        moved[[0, -1]] = 0.0
        return np.where(np.isfinite(moved), moved, 0.0)

    @property
    def settling(self) -> float:
        """The greatest :attr:`excess_drift` in standard errors: above about 0.3, the draws are too few for the band."""
        moving = np.isfinite(self.excess_se) & (self.excess_se > 1e-14 * np.maximum(1.0, np.abs(self.value)))
        return float((np.abs(self.excess_drift)[moving] / self.excess_se[moving]).max()) if moving.any() else 0.0

    @cached_property
    def barrier(self) -> Peak:
        """max over tau of L(tau) - [(1 - tau) L(0) + tau L(1)] (Rossi et al. 2023).

        Never negative, as the ends count; where it is zero at an end, the band's interval says how high it may be.
        """
        best = _argmax(self.excess)
        return Peak(float(self.excess[best]), float(self.excess_se[best]), float(self.taus[best]))

    @cached_property
    def barrier_over_mean(self) -> Peak:
        """max over tau of L(tau) - [L(0) + L(1)] / 2: the other baseline in use, blind to a slope of the chord."""
        rise = self.draws - (self.draws[:1] + self.draws[-1:]) / 2
        best = _argmax(rise.mean(1))
        return Peak(float(rise[best].mean()), float(_standard_error(rise)[best]), float(self.taus[best]))

    @cached_property
    def area(self) -> tuple[float, float]:
        """Signed area between curve and chord (trapezoid rule) and its standard error."""
        steps = np.diff(self.taus)[:, None]
        area = ((self.excess_draws[1:] + self.excess_draws[:-1]) / 2 * steps).sum(0)
        return float(area.mean()), float(_standard_error(area[None])[0])

    @property
    def dominance(self) -> float:
        """Greatest share of one draw in the variance of the excess, over taus.

        Near 1, the errors are not to be trusted. A predictive NLL that rests on one draw's likelihood does this; more
        draws help.
        """
        centered = (self.excess_draws - self.excess_draws.mean(1, keepdims=True)) ** 2
        total = centered.sum(1)
        moving = np.isfinite(total) & (total > 1e-24 * np.maximum(1.0, self.value**2))
        return float((centered[moving].max(1) / total[moving]).max()) if moving.any() else 0.0

    def band(self, level: float = 0.95, *, resamples: int = 4000, seed: int = 0) -> Band:
        """The simultaneous band of the excess, by the bootstrap over draws.

        Draws are re-weighted by multinomial counts, the same at every tau; each time, the mean's deviation is divided
        by its own standard error (the bootstrap-t of Efron 1982; Hall 1988), and the quantiles of the greatest and of
        the least over tau scale the errors. The two quantiles follow the skewness that likelihoods bring. Few draws
        tell too little of it: neither side is narrower than were the draws Gaussian (the greatest of correlated
        Student's t, simulated). The errors include :attr:`excess_drift`.

        Args:
            level: Simultaneous coverage.
            resamples: Number of bootstrap samples.
            seed: Their seed.
        """
        if not 0 < level < 1:
            raise ValueError(f"expected a level between 0 and 1, got {level}")
        se = np.hypot(self.excess_se, self.excess_drift)
        moving = np.isfinite(se) & (self.excess_se > 1e-14 * np.maximum(1.0, np.abs(self.value)))
        if not moving.any():
            p_value = 0.0 if (self.excess > 1e-12).any() else 1.0
            return Band(self.excess.copy(), self.excess.copy(), level, p_value)
        deviations, gaussian = self._deviations(moving, resamples, np.random.default_rng(seed))
        highest, lowest, symmetric = deviations.max(1), deviations.min(1), gaussian.max(1)
        floor = np.quantile(symmetric, (1 + level) / 2)
        high, low = np.quantile(highest, (1 + level) / 2), np.quantile(lowest, (1 - level) / 2)
        high, low = max(high, floor), min(low, -floor)
        spread = np.where(moving, se, np.where(np.isfinite(se), 0.0, np.inf))
        seen = (self.excess[moving] / se[moving]).max()
        p_value = (1 + max((highest >= seen).sum(), (symmetric >= seen).sum())) / (1 + resamples)
        return Band(self.excess - high * spread, self.excess - low * spread, level, float(p_value))

    def _deviations(
        self, moving: np.ndarray, resamples: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Studentised deviations of bootstrap means, and of as many Gaussian draws, ``(resamples, moving taus)``."""
        draws = self.excess_draws[moving]
        count = draws.shape[1]
        centered = (draws - draws.mean(1, keepdims=True)) / draws.std(1, keepdims=True)
        weights = rng.multinomial(count, np.full(count, 1 / count), resamples) / count
        mean = weights @ centered.T
        variance = weights @ (centered**2).T - mean**2
        # of few draws, a sample may hold one draw alone and have no variance
        resampled = mean / np.sqrt(np.maximum(variance, 0.01) / (count - 1))
        normal = rng.standard_normal((resamples, count)) @ centered.T / np.sqrt(count)
        return resampled, normal / np.sqrt(rng.chisquare(count - 1, (resamples, 1)) / (count - 1))


def _standard_error(draws: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return draws.std(1, ddof=1) / np.sqrt(draws.shape[1])


def _argmax(values: np.ndarray) -> int:
    return int(np.argmax(np.where(np.isnan(values), -np.inf, values)))
