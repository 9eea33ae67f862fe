"""The result of an evaluation: curves and what belongs to them. Data only; views on them are in `views`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_align.losses.curve import Curve

if TYPE_CHECKING:
    import pandas as pd

    from pyro_align.barrier.problem import Problem
    from pyro_align.symmetry.group import Symmetry


@dataclass(frozen=True, eq=False)
class Barrier:
    """Losses along a path, with errors.

    Attributes:
        curves: (evaluation, loss) -> :class:`Curve`.
        taus: Where the path was evaluated, ``(taus,)``.
        log_prior: Log prior density of each draw, ``(taus, draws)`` nats.
        log_q: Log posterior density of each draw, ``(taus, draws)`` nats.
        likelihood: Evaluation -> the data's term of the log joint, ``(taus, draws)`` nats, for all data.
        num_data: Evaluation -> number of data.
        temperature: Weight of the KL in the negative ELBO.
        seed: Seed of the draws.
        vectorized: Whether the draws went through the model together.
        notes: What should be told of the path: losses that are absent, and why; what is approximate.
        problem: What was evaluated; lets :meth:`at` evaluate any tau again. None for a barrier read from a file.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> from pyro.infer.autoguide import AutoNormal, init_to_sample
        >>> from pyro_align import displacement, evaluate_barrier
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> y = torch.randn(20)
        >>> def fit():
        ...     with pyro.get_param_store().scope():
        ...         guide = AutoNormal(model, init_loc_fn=init_to_sample)
        ...         _ = guide(y)
        ...     return guide
        >>> barrier = evaluate_barrier(model, displacement(fit(), fit()), y, taus=5, num_samples=16)
        >>> list(barrier.summary().columns[:3])
        ['barrier', 'se', 'tau']
    """

    curves: Mapping[tuple[str, str], Curve]
    taus: np.ndarray
    log_prior: np.ndarray
    log_q: np.ndarray
    likelihood: Mapping[str, np.ndarray]
    num_data: Mapping[str, int]
    temperature: float
    seed: int
    vectorized: bool
    notes: tuple[str, ...] = ()
    problem: Problem | None = field(default=None, repr=False)

    @property
    def evaluations(self) -> tuple[str, ...]:
        """Names of the data sets."""
        return tuple(dict.fromkeys(evaluation for evaluation, _ in self.curves))

    @property
    def losses(self) -> tuple[str, ...]:
        """Names of the losses."""
        return tuple(dict.fromkeys(loss for _, loss in self.curves))

    @property
    def num_samples(self) -> int:
        """Draws at each tau."""
        return self.log_q.shape[1]

    @property
    def effective_draws(self) -> dict[str, np.ndarray]:
        """Data set -> the least effective number of draws behind any observation, ``(taus,)``."""
        told = {}
        for (evaluation, _), curve in self.curves.items():
            if curve.effective is not None and curve.fragile is not None:
                told[evaluation] = curve.effective
        return told

    def __getitem__(self, key: str | tuple[str, str]) -> Curve:
        """``barrier["train", "negative_elbo"]``, or ``barrier["negative_elbo"]`` on the first data set."""
        if isinstance(key, str):
            key = (self.evaluations[0], key)
        if key not in self.curves:
            raise KeyError(f"no curve {key}; there are data sets {self.evaluations} and losses {self.losses}")
        return self.curves[key]

    def __repr__(self) -> str:
        lines = [f"Barrier({len(self.taus)} taus, {self.num_samples} draws; height [95% interval] at tau)"]
        for (evaluation, loss), curve in self.curves.items():
            lines.append(f"  {evaluation} {loss}: {curve.text()} at tau {curve.barrier.tau:.3g}")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    def summary(self, *, level: float = 0.95, symmetry: Symmetry | None = None) -> pd.DataFrame:
        """One row per data set and loss; see :func:`pyro_align.barrier.views.summary`."""
        from pyro_align.barrier import views

        return views.summary(self, level=level, symmetry=symmetry)

    def plot(
        self,
        ax: Any = None,
        *,
        losses: str | Sequence[str] | None = None,
        evaluation: str | None = None,
        level: float = 0.95,
    ) -> Any:
        """Draws the curves with bands, endpoints and chords; see :func:`pyro_align.plots.plot_barrier`."""
        from pyro_align import plots

        return plots.plot_barrier(self, ax=ax, losses=losses, evaluation=evaluation, level=level)

    def to_arviz(self) -> Any:
        """The curves and their draws as one ArviZ object; see :func:`pyro_align.reporting.arviz.to_arviz`."""
        from pyro_align.reporting import arviz

        return arviz.to_arviz(self)

    def at(
        self,
        tau: float,
        *,
        evaluation: str | None = None,
        posterior: bool = True,
        predictive: bool = False,
        thin: int = 1,
    ) -> Any:
        """One point of the path as a plain ArviZ object; see :func:`pyro_align.barrier.views.at`."""
        from pyro_align.barrier import views

        return views.at(self, tau, evaluation=evaluation, posterior=posterior, predictive=predictive, thin=thin)

    def write_points(
        self,
        folder: str | os.PathLike[str],
        taus: Iterable[float] | None = None,
        *,
        evaluation: str | None = None,
        posterior: bool = False,
        predictive: bool = False,
        thin: int = 1,
    ) -> dict[float, Path]:
        """Writes :meth:`at` of many taus to Zarr; see :func:`pyro_align.barrier.views.write_points`."""
        from pyro_align.barrier import views

        options = {"evaluation": evaluation, "posterior": posterior, "predictive": predictive, "thin": thin}
        return views.write_points(self, folder, taus, **options)

    def loo(
        self, taus: Iterable[float] = (0.0, 0.5, 1.0), *, evaluation: str | None = None, correct: bool = False
    ) -> pd.DataFrame:
        """Leave-one-out cross-validation along the path; see :func:`pyro_align.barrier.views.loo`."""
        from pyro_align.barrier import views

        return views.loo(self, taus, evaluation=evaluation, correct=correct)

    def compare(
        self,
        taus: Iterable[float] = (0.0, 0.5, 1.0),
        *,
        mixture: bool = True,
        evaluation: str | None = None,
        correct: bool = False,
    ) -> pd.DataFrame:
        """Ranks points of the path by leave-one-out; see :func:`pyro_align.barrier.views.compare`."""
        from pyro_align.barrier import views

        return views.compare(self, taus, mixture=mixture, evaluation=evaluation, correct=correct)
