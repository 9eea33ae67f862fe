"""Views on a barrier: its table, and single points of the path in ArviZ."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pyro_align.barrier.cautions import cautions
from pyro_align.barrier.point import evaluate_mixture, evaluate_point
from pyro_align.barrier.problem import Problem
from pyro_align.errors import BarrierError, DiagnosticWarning
from pyro_align.losses.curve import Curve
from pyro_align.reporting import arviz as report
from pyro_align.symmetry.group import Symmetry

if TYPE_CHECKING:
    from pyro_align.barrier.result import Barrier


def summary(barrier: Barrier, *, level: float = 0.95, symmetry: Symmetry | None = None) -> pd.DataFrame:
    """One row per data set and loss, in the loss's unit.

    Columns: ``barrier``, ``se`` and ``tau`` of the highest excess over the chord; ``low`` and ``high``, the barrier's
    confidence interval from the simultaneous band; ``p_value`` of there being no barrier, two-sided as the interval is:
    ``low`` is above 0 where it is below ``1 - level``; ``over_mean``, the barrier over the mean of the endpoints;
    ``area`` under the excess and ``area_se``; ``start`` and ``end``, the loss at the endpoints; ``peak``, the loss at
    ``tau``; ``level_se``, the standard error of that loss itself; ``title`` and ``unit`` of the loss.

    Args:
        barrier: The barrier.
        level: Level of the confidence interval.
        symmetry: The model's symmetry, with which pruned units can be told from inputs that carry nothing.

    Warns:
        DiagnosticWarning: The ELBO shows no barrier although the likelihood does; or one draw carries most of the
            variance of a curve, whose errors are then too small; or a predictive loss still moves with the number of
            draws, or rests on few of them, so that its band covers too little; or an end has collapsed to the prior:
            less than a quarter of a site's values, or with a symmetry less than half of an atom's units, have left it.
    """
    for text in cautions(barrier, symmetry):
        warnings.warn(text, DiagnosticWarning, stacklevel=3)
    rows = {key: _summary_row(curve, level) for key, curve in barrier.curves.items()}
    frame = pd.DataFrame.from_dict(rows, orient="index")
    frame.index = pd.MultiIndex.from_tuples(frame.index, names=["evaluation", "loss"])
    return frame


def _summary_row(curve: Curve, level: float) -> dict[str, float | str]:
    peak, band = curve.barrier, curve.band(level)
    (low, high), (area, area_se) = band.interval, curve.area
    best = int(np.flatnonzero(curve.taus == peak.tau)[0])
    return {
        "barrier": peak.height,
        "se": peak.se,
        "tau": peak.tau,
        "low": low,
        "high": high,
        "p_value": band.p_value,
        "over_mean": curve.barrier_over_mean.height,
        "over_mean_se": curve.barrier_over_mean.se,
        "area": area,
        "area_se": area_se,
        "start": float(curve.value[0]),
        "end": float(curve.value[-1]),
        "peak": float(curve.value[best]),
        "level_se": float(curve.se[best]),
        "title": curve.label.title,
        "unit": curve.label.unit,
    }


def at(
    barrier: Barrier,
    tau: float,
    *,
    evaluation: str | None = None,
    posterior: bool = True,
    predictive: bool = False,
    thin: int = 1,
) -> Any:
    """One point of the path as a plain ArviZ object, for ``arviz.loo``, ``arviz.summary`` and the like.

    The draws are those of the curves (same noise); ``tau`` need not be one of ``barrier.taus``. It is evaluated again,
    so that nothing per datum needs to be kept for all taus.

    Args:
        barrier: The barrier.
        tau: Where on the path, in [0, 1].
        evaluation: Which data set; the first by default.
        posterior: Whether to include the draws of the latent sites.
        predictive: Whether to include draws of the data, one per posterior draw.
        thin: Keep every ``thin``-th draw in the group ``posterior``, where the latent sites are large.

    Returns:
        Groups ``posterior``, ``log_likelihood`` (per datum, dims named by the model's plates), ``observed_data``,
        ``sample_stats`` with ``lp`` (log joint), ``log_prior`` and ``log_q`` per draw, ``constant_data`` with ``tau``
        and the ``chord`` of every loss, and ``posterior_predictive`` where asked.

    Raises:
        BarrierError: ``tau`` lies outside [0, 1], there is no such data set, or no model and path to evaluate.
    """
    if isinstance(thin, bool) or not isinstance(thin, int) or thin < 1:
        raise BarrierError(f"thin: expected an int of at least 1, to keep every thin-th draw; got {thin!r}")
    name = _evaluation(barrier, evaluation)
    point = evaluate_point(_evaluated(barrier), tau, name, posterior, predictive)
    return report.point_to_arviz(**point, chord=_chord(barrier, tau, name), thin=thin)


def write_points(
    barrier: Barrier,
    folder: str | os.PathLike[str],
    taus: Iterable[float] | None = None,
    *,
    evaluation: str | None = None,
    posterior: bool = False,
    predictive: bool = False,
    thin: int = 1,
) -> dict[float, Path]:
    """Writes :func:`at` of many taus to Zarr, one folder each, one after another: one tau is in memory at a time.

    A tau's folder is there whole or not at all, and a tau whose folder is there is not evaluated again: stopped, the
    same call goes on. One barrier needs one folder.

    Args:
        barrier: The barrier.
        folder: Where; made if it is not there.
        taus: Which; those of the curves by default.
        evaluation, posterior, predictive, thin: As in :func:`at`; latent sites are left out by default.

    Returns:
        tau -> its folder, for :func:`pyro_align.reporting.arviz.read_zarr`.

    Raises:
        BarrierError: As :func:`at`.
        OSError: The folder cannot be written, which is found before a tau is evaluated.
    """
    options = {"evaluation": evaluation, "posterior": posterior, "predictive": predictive, "thin": thin}
    taus = [float(tau) for tau in (barrier.taus if taus is None else taus)]
    names = {tau: f"tau_{tau:.12g}" for tau in taus}
    report.write_each(folder, {names[tau]: partial(barrier.at, tau, **options) for tau in taus})
    return {tau: Path(folder) / name for tau, name in names.items()}


def loo(
    barrier: Barrier, taus: Iterable[float], *, evaluation: str | None = None, correct: bool = False
) -> pd.DataFrame:
    """Leave-one-out cross-validation along the path, one row per tau.

    See :func:`pyro_align.reporting.arviz.leave_one_out`. ``diff`` is the loss of ``elpd`` to the best tau, and ``dse``
    its error from paired data.

    Args:
        barrier: The barrier.
        taus: Where, in [0, 1]; each is evaluated again.
        evaluation: Which data set, the one the posterior was fitted to; the first by default.
        correct: Whether the draws are weighed as the exact posterior would, with ArviZ 1.x or ``arviz-stats``.
    """
    points = {float(tau): at(barrier, tau, evaluation=evaluation, posterior=False) for tau in taus}
    return report.leave_one_out_table(points, correct=correct).rename_axis("tau")


def compare(
    barrier: Barrier,
    taus: Iterable[float],
    *,
    mixture: bool = True,
    evaluation: str | None = None,
    correct: bool = False,
) -> pd.DataFrame:
    """Ranks points of the path, and the equal mixture of its ends, by leave-one-out; best first.

    The mixture is the ensemble of the two posteriors: what one would use without a path. Where a point between ranks
    with it, one network does as well as two. Columns as in :func:`pyro_align.reporting.arviz.compare_points`; ``dse``
    is the error of the difference to the best.

    Args:
        barrier: The barrier.
        taus: Where, in [0, 1].
        mixture: Whether to add the mixture of the ends.
        evaluation: Which data set, the one the posterior was fitted to; the first by default.
        correct: As in :func:`loo`.

    Raises:
        BarrierError: A tau lies outside [0, 1], or the model and path are not there.
    """
    points = {f"tau={tau:g}": at(barrier, tau, evaluation=evaluation, posterior=False) for tau in taus}
    if mixture:
        mixed = evaluate_mixture(_evaluated(barrier), _evaluation(barrier, evaluation))
        points["mixture of ends"] = report.point_to_arviz(**mixed)
    return report.compare_points(points, correct=correct)


def _evaluation(barrier: Barrier, name: str | None) -> str:
    return barrier.evaluations[0] if name is None else name


def _evaluated(barrier: Barrier) -> Problem:
    if barrier.problem is None:
        raise BarrierError("this barrier does not hold its model and path, so it cannot be evaluated at a tau")
    return barrier.problem


def _chord(barrier: Barrier, tau: float, evaluation: str) -> dict[str, float]:
    curves = {loss: curve for (data, loss), curve in barrier.curves.items() if data == evaluation}
    return {loss: float((1 - tau) * c.value[0] + tau * c.value[-1]) for loss, c in curves.items()}
