"""One loss along a path: estimates and errors from pseudo-values.

Every loss arrives as an array of *pseudo-values* ``(taus, draws)``: their mean over draws is the estimate, their
standard deviation over the root of the number of draws its standard error. For a loss that is an average over draws
(expected NLL, KL, negative ELBO) they are the draws' own losses; for the predictive NLL they are jackknife
pseudo-values, whose mean is the bias-corrected estimate; for a task's loss they are scaled bootstrap replicates. As the
same noise is pushed through every tau, differences between taus are taken draw by draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np

from pyro_align.losses.band import Band, simultaneous_band
from pyro_align.losses.protocol import Estimate, Label
from pyro_align.losses.registry import label_of

_KNOWN = cast(Label, None)  # the label of the known loss of that name
FLAT = 1e-14  # a standard error below this fraction of the level is rounding


@dataclass(frozen=True)
class Peak:
    """The highest excess of a curve.

    Attributes:
        height: The excess, in the loss's unit.
        se: Standard error of the excess at that tau.
        tau: Where it is.
    """

    height: float
    se: float
    tau: float


@dataclass(frozen=True, eq=False)
class Curve:
    """One loss of one data set along a path.

    Attributes:
        evaluation: Name of the data set.
        loss: Name of the loss.
        taus: Increasing, from 0 to 1, ``(taus,)``.
        draws: Pseudo-values ``(taus, draws)``; column s belongs to the same noise at every tau.
        drift: How far a predictive loss's estimate moves from half the draws to all, ``(taus,)``; None is no move.
        effective: The least effective number of draws behind any observation, ``(taus,)``; None where all count alike.
        fragile: The part of the pseudo-values, less its mean, of observations behind which few of the draws count,
            ``(taus, draws)``; see :attr:`settling`.
        label: How the loss is written: its title, unit, and which way is better; that of the known loss by default.

    Example:
        >>> draws = np.array([[1.0, 1.2], [1.9, 2.3], [1.1, 1.3]])
        >>> curve = Curve("train", "expected_nll", np.array([0.0, 0.5, 1.0]), draws)
        >>> round(curve.barrier.height, 3), round(curve.barrier.se, 3), curve.barrier.tau
        (0.95, 0.1, 0.5)
        >>> curve.label.title, curve.label.unit
        ('expected NLL', 'nats per datum')
    """

    evaluation: str
    loss: str
    taus: np.ndarray
    draws: np.ndarray
    drift: np.ndarray | None = None
    effective: np.ndarray | None = None
    fragile: np.ndarray | None = None
    label: Label = _KNOWN

    def __post_init__(self) -> None:
        if self.label is None:
            object.__setattr__(self, "label", label_of(self.loss))

    @classmethod
    def of(
        cls, evaluation: str, loss: str, taus: np.ndarray, estimates: Sequence[Estimate], label: Label = _KNOWN
    ) -> Curve:
        """The curve through a loss's estimates, one per tau."""
        draws = np.stack([one.draws for one in estimates])
        drift, effective = np.array([(one.drift, one.effective) for one in estimates]).T
        fragile = [one.fragile for one in estimates if one.fragile is not None]
        return cls(evaluation, loss, taus, draws, drift, effective, np.stack(fragile) if fragile else None, label)

    @property
    def num_samples(self) -> int:
        return self.draws.shape[1]

    @property
    def sign(self) -> int:
        """1 where lower is better, -1 where higher is."""
        return 1 if self.label.better == "lower" else -1

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
        """How much worse than the chord the loss is, draw by draw, ``(taus, draws)``; zero at both endpoints."""
        return self._over_chord(self.sign * self.draws)

    def _over_chord(self, draws: np.ndarray) -> np.ndarray:
        tau = self.taus[:, None]
        with np.errstate(invalid="ignore"):
            excess = draws - (1 - tau) * draws[:1] - tau * draws[-1:]
        excess[[0, -1]] = 0.0
        return excess

    @cached_property
    def excess(self) -> np.ndarray:
        """How much worse than the chord the loss is, ``(taus,)``: loss minus chord, where lower is better."""
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

    @cached_property
    def _moving(self) -> np.ndarray:
        """Where draws differ in their excess by more than rounding, ``(taus,)``."""
        return np.isfinite(self.excess_se) & (self.excess_se > FLAT * np.maximum(1.0, np.abs(self.value)))

    @property
    def settling(self) -> float:
        """How unsettled the excess is, in standard errors, the greatest over taus: above 0.4, bands are too narrow.

        The greater of two: how far the excess moves from half the draws to all, and the part of its standard error that
        comes from fragile observations, those behind whose likelihood the effective number of S draws is below sqrt(S).
        Such a likelihood hangs on a few draws, which tell nothing of those that have not been drawn.
        """
        if not self._moving.any():
            return 0.0
        unsettled = np.abs(self.excess_drift)
        if self.fragile is not None:
            unsettled = np.maximum(unsettled, _standard_error(self._over_chord(self.fragile)))
        return float((unsettled[self._moving] / self.excess_se[self._moving]).max())

    @cached_property
    def barrier(self) -> Peak:
        """max over tau of L(tau) - [(1 - tau) L(0) + tau L(1)] (Rossi et al. 2023).

        Never negative, as the endpoints count; where it is zero at an end, the band's interval says how high it may be.
        """
        best = _argmax(self.excess)
        return Peak(float(self.excess[best]), float(self.excess_se[best]), float(self.taus[best]))

    @cached_property
    def barrier_over_mean(self) -> Peak:
        """max over tau of L(tau) - [L(0) + L(1)] / 2, the other baseline in use, blind to a slope of the chord."""
        rise = self.sign * (self.draws - (self.draws[:1] + self.draws[-1:]) / 2)
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
        """Greatest fraction of the variance of the excess that comes from one draw, over taus.

        Near 1, the errors are not to be trusted. A predictive NLL that rests on one draw's likelihood does this; more
        draws help.
        """
        centered = (self.excess_draws - self.excess_draws.mean(1, keepdims=True)) ** 2
        total = centered.sum(1)
        moving = np.isfinite(total) & (total > 1e-24 * np.maximum(1.0, self.value**2))
        return float((centered[moving].max(1) / total[moving]).max()) if moving.any() else 0.0

    def band(self, level: float = 0.95, *, resamples: int = 4000, seed: int = 0) -> Band:
        """The simultaneous band of the excess, by the bootstrap over draws; its errors include :attr:`excess_drift`.

        Args:
            level: Simultaneous coverage.
            resamples: Number of bootstrap samples.
            seed: Their seed.
        """
        if not 0 < level < 1:
            raise ValueError(f"expected a level between 0 and 1, got {level}")
        se = np.hypot(self.excess_se, self.excess_drift)
        flat = np.isfinite(self.excess_se) & ~self._moving
        return simultaneous_band(self.excess_draws, np.where(flat, 0.0, se), level, resamples, seed)

    def text(self, level: float = 0.95) -> str:
        """The barrier with its confidence interval, as printed: ``0.0160 [0.0141, 0.0180]``."""
        height, (low, high) = self.barrier.height, self.band(level).interval
        if not np.isfinite([height, low, high]).all():
            return f"{height:.3g} [{low:.3g}, {high:.3g}]"
        if high == low:
            why = f"all {self.num_samples} draws agree" if not self._moving.any() else "nowhere above the chord"
            return f"{height:.4g} ({why})"
        digits = int(np.clip(1 - np.floor(np.log10(high - low)), 0, 12))
        return f"{height:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _standard_error(draws: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return draws.std(1, ddof=1) / np.sqrt(draws.shape[1])


def _argmax(values: np.ndarray) -> int:
    return int(np.argmax(np.where(np.isnan(values), -np.inf, values)))
