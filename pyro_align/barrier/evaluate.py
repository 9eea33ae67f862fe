"""`evaluate_barrier`: the losses along a path, every tau with the same noise."""

from __future__ import annotations

import numbers
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

import numpy as np

from pyro_align.barrier.checkpoint import Checkpoint
from pyro_align.barrier.data import read_data
from pyro_align.barrier.problem import Piece, Problem, evaluate_tau
from pyro_align.barrier.result import Barrier
from pyro_align.barrier.run import check_executor, evaluate_taus
from pyro_align.errors import BarrierError
from pyro_align.losses.curve import Curve
from pyro_align.losses.sums import read_losses


def evaluate_barrier(
    model: Callable,
    path: Any,
    *args: Any,
    evaluation: Mapping[str, Any] | None = None,
    taus: int | Sequence[float] = 25,
    num_samples: int = 32,
    seed: int = 0,
    losses: Iterable | Mapping[str, Any] | None = None,
    temperature: float = 1.0,
    chunk: int | None = None,
    max_memory: int = 2**30,
    nonfinite: str = "raise",
    tolerance: float | None = None,
    executor: Executor | None = None,
    shards: int = 1,
    checkpoint: str | os.PathLike | None = None,
    progress: bool = False,
    **kwargs: Any,
) -> Barrier:
    """Losses along a path between two posteriors, and how far they rise above the straight line between its ends.

    One set of noise is pushed through the posterior at every tau (common random numbers), so that differences along the
    path are known far better than levels. All losses share each forward pass. All figures are per datum, in nats, lower
    is better:

    ===================  ============================================================================================
    ``expected_nll``     -E_q log p(y | z)
    ``predictive_nll``   -log E_q p(y | z), per datum, then averaged (the marginalized loss of Rossi et al. 2023, eq. 5)
    ``kl``               KL(q || prior) / number of data; closed form for Normal against Normal, Monte Carlo otherwise
    ``elbo``             the negative ELBO at temperature T: E_q[-log p(y | z)] + T * KL(q || prior), per datum
    ``error_rate``       fraction of data whose averaged class probabilities favor a wrong class
    ===================  ============================================================================================

    ``poutine.scale``, masks and subsampling plates count in ``elbo`` as they do in Pyro's ``Trace_ELBO``; likelihood
    losses are unscaled. The standard errors are those of the Monte Carlo average over draws, the data taken as given.

    Args:
        model: The Pyro model, or any callable with Pyro primitives.
        path: A :class:`~pyro_align.paths.geodesic.Path`, or anything with ``posterior(tau)``.
        *args: The model's arguments, data included.
        evaluation: Instead of ``args``: name -> data, evaluated in one go, such as
            ``{"train": (x, y), "test": (xt, yt)}``. Data are a tuple of the model's arguments, a mapping of its keyword
            arguments, or a re-iterable of those (a ``DataLoader`` that does not shuffle, a ``Dataset``), whose batches
            make up the data set.
        taus: Number of equally spaced taus, or increasing values from 0 to 1, at least 3.
        num_samples: Draws from the posterior at each tau, at least 2.
        seed: Seed of the draws; the same seed gives the same figures.
        losses: Names, callables and Pyro ELBO objects, or a mapping of names to these. Default: the first four above,
            and ``error_rate`` where the observed site is categorical. A callable ``(prediction, observed) -> loss per
            datum`` gets the posterior mean of the observed distribution's mean (class probabilities for classes). A
            Pyro ELBO object is evaluated on ``path(tau)``, once per draw, with the same seeds at every tau; the
            temperature does not touch it.
        temperature: Weight T of the KL in the negative ELBO; 1 for Bayes, less for a cold posterior.
        chunk: Draws that go through the model at once; None chooses it by ``max_memory``.
        max_memory: Bytes that the model's intermediate tensors may take.
        nonfinite: ``"raise"`` stops at a loss that is NaN or infinite, naming tau, draw and site; ``"keep"`` carries it
            into the curve.
        tolerance: Adds taus around the maximum of every curve until its neighbors are no farther off than this.
        executor: Where the taus are evaluated, such as a ``ProcessPoolExecutor``; the figures do not depend on it.
            Threads take turns, as Pyro has one stack of effects a process: they are right, and no faster.
        shards: Tasks that each tau is cut into on the executor, where it has more workers than there are taus. A task
            runs the model on every ``shards``-th batch of each data set. The figures do not depend on it either.
        checkpoint: A folder in which every finished tau is kept. An evaluation that was stopped goes on from there,
            and gives the figures it would have given; the folder of another evaluation is refused.
        progress: Whether to show a progress bar over taus.
        **kwargs: The model's keyword arguments, for every data set.

    Returns:
        The curves with their errors; ``barrier.summary()``, ``barrier.plot()``, ``barrier.to_arviz()``.

    Raises:
        BarrierError: Options, data, model and path do not fit together, or a loss is not finite.

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
        >>> barrier.losses
        ('expected_nll', 'predictive_nll', 'elbo', 'kl')
    """
    problem = Problem(
        model=model,
        path=_check_path(path),
        data=tuple(read_data(args, kwargs, evaluation)),
        losses=read_losses(losses),
        num_samples=check_draws(num_samples),
        seed=check_seed(seed),
        temperature=check_temperature(temperature),
        chunk=check_chunk(chunk),
        max_memory=check_memory(max_memory),
        nonfinite=check_nonfinite(nonfinite),
    )
    grid, tolerance = read_taus(taus), _check_tolerance(tolerance)
    check_executor(executor, shards)
    problem = fit_losses(problem, asked=losses is not None)
    store = None if checkpoint is None else Checkpoint.open(checkpoint, problem, len(grid))
    how = {"executor": executor, "shards": shards, "checkpoint": store, "progress": progress}
    pieces = evaluate_taus(problem, grid, tolerance=tolerance, **how)
    return assemble(problem, pieces)


def evaluate_loss(
    model: Callable,
    path: Any,
    tau: float,
    *args: Any,
    loss: Any = "predictive_nll",
    num_samples: int = 32,
    seed: int = 0,
    temperature: float = 1.0,
    **kwargs: Any,
) -> float:
    """One loss at one point of a path, in nats per datum; arguments as in :func:`evaluate_barrier`.

    The figures of one seed share their noise, so that paths can be compared.

    Raises:
        BarrierError: Options, data, model and path do not fit together, or the loss is not finite.
    """
    problem = Problem(
        model=model,
        path=_check_path(path),
        data=tuple(read_data(args, kwargs, None)),
        losses=read_losses([loss]),
        num_samples=check_draws(num_samples),
        seed=check_seed(seed),
        temperature=check_temperature(temperature),
        chunk=None,
        max_memory=2**30,
    )
    problem = fit_losses(problem, asked=True)
    return float(np.mean(next(iter(evaluate_tau(problem, float(tau)).pseudo.values()))))


def assemble(problem: Problem, pieces: Sequence[Piece]) -> Barrier:
    """The barrier made of its pieces, one per tau, in increasing order of tau."""
    taus = np.array([piece.tau for piece in pieces])
    keys = [
        (data.name, loss) for data in problem.data for loss in problem.losses if (data.name, loss) in pieces[0].pseudo
    ]
    names = [data.name for data in problem.data]
    return Barrier(
        curves={
            key: Curve(
                *key,
                taus,
                np.stack([piece.pseudo[key] for piece in pieces]),
                np.array([piece.drift.get(key, 0.0) for piece in pieces]),
            )
            for key in keys
        },
        taus=taus,
        log_prior=np.stack([piece.log_prior for piece in pieces]),
        log_q=np.stack([piece.log_q for piece in pieces]),
        likelihood={name: np.stack([piece.likelihood[name] for piece in pieces]) for name in names},
        effective_draws={name: np.array([piece.effective[name] for piece in pieces]) for name in names},
        num_data={name: pieces[0].num_data[name] for name in names},
        temperature=problem.temperature,
        seed=problem.seed,
        vectorized=all(piece.vectorized for piece in pieces),
        problem=problem,
    )


def fit_losses(problem: Problem, *, asked: bool) -> Problem:
    """Adds ``error_rate`` to the default losses where it makes sense, refuses it where asked for in vain."""
    categorical = all(layout.categorical is not None for layout in problem.layouts.values())
    losses = dict(problem.losses)
    if not asked and categorical:
        losses["error_rate"] = "error_rate"
    if "error_rate" in losses.values() and not categorical:
        sites = {name: layout.observed for name, layout in problem.layouts.items()}
        raise BarrierError(
            f"error_rate needs one observed site, with classes (Categorical, OneHotCategorical or Bernoulli); observed "
            f"are {sites}. Give a callable (prediction, observed) -> loss per datum instead"
        )
    return replace(problem, losses=losses)


# -- options -----------------------------------------------------------------------------------------------------------


def read_taus(taus: int | Sequence[float]) -> np.ndarray:
    """Increasing taus from 0 to 1.

    Raises:
        BarrierError: Fewer than 3, outside [0, 1], repeated, or without the ends.
    """
    if isinstance(taus, numbers.Integral) and not isinstance(taus, bool):
        if taus < 3:
            raise BarrierError(f"taus: expected at least 3 (both ends and one between), got {taus}")
        return np.linspace(0.0, 1.0, int(taus))
    try:
        grid = np.sort(np.asarray([float(t) for t in taus]))
    except (TypeError, ValueError):
        raise BarrierError(f"taus: expected a number of taus or values in [0, 1], got {taus!r}") from None
    if not np.isfinite(grid).all() or (grid < 0).any() or (grid > 1).any():
        raise BarrierError(f"taus: expected values in [0, 1], got {grid[(grid < 0) | (grid > 1) | ~np.isfinite(grid)]}")
    if len(grid) < 3 or grid[0] != 0 or grid[-1] != 1:
        raise BarrierError(f"taus: expected at least 3 values with both ends, 0 and 1, among them; got {grid}")
    if (np.diff(grid) == 0).any():
        raise BarrierError(f"taus: a value is repeated in {grid}")
    return grid


def _check_path(path: Any) -> Any:
    if not callable(getattr(path, "posterior", None)):
        raise BarrierError(
            f"expected a path, such as displacement(guide_a, guide_b), got {type(path).__name__}; "
            "the order is evaluate_barrier(model, path, *data)"
        )
    return path


def check_draws(num_samples: Any) -> int:
    if not _is_int(num_samples) or num_samples < 2:
        raise BarrierError(f"num_samples: expected an int of at least 2 (errors need two draws), got {num_samples!r}")
    return int(num_samples)


def check_seed(seed: Any) -> int:
    if not _is_int(seed):
        raise BarrierError(f"seed: expected an int, got {seed!r}")
    return int(seed)


def check_temperature(temperature: Any) -> float:
    if not isinstance(temperature, numbers.Real) or not 0 <= float(temperature) < np.inf:
        raise BarrierError(f"temperature: expected a finite number >= 0, the weight of the KL; got {temperature!r}")
    return float(temperature)


def check_chunk(chunk: Any) -> int | None:
    if chunk is not None and (not _is_int(chunk) or chunk < 1):
        raise BarrierError(f"chunk: expected a number of draws >= 1 or None, got {chunk!r}")
    return chunk


def check_memory(max_memory: Any) -> int:
    if not isinstance(max_memory, numbers.Real) or max_memory <= 0:
        raise BarrierError(f"max_memory: expected a number of bytes > 0, got {max_memory!r}")
    return int(max_memory)


def _check_tolerance(tolerance: Any) -> float | None:
    if tolerance is not None and (not isinstance(tolerance, numbers.Real) or not 0 < tolerance < 1):
        raise BarrierError(f"tolerance: expected a distance in tau between 0 and 1, got {tolerance!r}")
    return tolerance


def check_nonfinite(nonfinite: Any) -> str:
    if nonfinite not in ("raise", "keep"):
        raise BarrierError(f"nonfinite: expected 'raise' or 'keep', got {nonfinite!r}")
    return nonfinite


def _is_int(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)
