"""`evaluate_barrier`: the losses along a path, every tau with the same noise."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np

from pyro_align.barrier.checkpoint import Checkpoint
from pyro_align.barrier.options import check_tolerance, read_problem, read_taus
from pyro_align.barrier.problem import Piece, Problem, evaluate_tau
from pyro_align.barrier.result import Barrier
from pyro_align.barrier.run import check_executor, curve_of, evaluate_taus
from pyro_align.model.keywords import options_apart


@options_apart
def evaluate_barrier(
    model: Callable[..., Any],
    path: Any,
    *args: Any,
    evaluation: Mapping[str, Any] | None = None,
    taus: int | Sequence[float] = 25,
    num_samples: int = 32,
    seed: int = 0,
    losses: Iterable[Any] | Mapping[str, Any] | None = None,
    temperature: float = 1.0,
    num_data: int | None = None,
    chunk: int | None = None,
    max_memory: int = 2**30,
    nonfinite: str = "raise",
    tolerance: float | None = None,
    executor: Executor | None = None,
    shards: int = 1,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = False,
    **kwargs: Any,
) -> Barrier:
    """Losses along a path between two posteriors, and how far they rise above the straight line between its ends.

    One set of noise is pushed through the posterior at every tau (common random numbers), so that differences along the
    path are known far better than levels. All losses share each forward pass. They are per datum, in nats, and lower is
    better:

    ===================  ============================================================================================
    ``expected_nll``     -E_q log p(y | z)
    ``predictive_nll``   -log E_q p(y | z), per datum, then averaged (the marginalized loss of Rossi et al. 2023, eq. 5)
    ``negative_elbo``    E_q[-log p(y | z)] per datum + T / N * KL(q || prior), at temperature T, with N training data
    ``kl``               KL(q || prior) / N; closed form for Normal against Normal, Monte Carlo otherwise
    ``error_rate``       fraction of data whose averaged class probabilities favor a wrong class
    ===================  ============================================================================================

    ``poutine.scale``, masks and subsampling plates count in ``negative_elbo`` as they do in Pyro's ``Trace_ELBO``;
    likelihood losses are unscaled. The standard errors are those of the Monte Carlo average over draws, the data taken
    as given.

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
        seed: Seed of the draws; the same seed gives the same values.
        losses: Names, :class:`~pyro_align.losses.Loss` objects, callables and Pyro ELBO objects, or a mapping of names
            to these. Default: those above that the model has. A callable ``(prediction, observed) -> loss per
            datum`` gets the posterior mean of the observed distribution's mean (class probabilities for classes). A
            Pyro ELBO object is evaluated on ``path(tau)``, once per draw, with the same seeds at every tau; its KL is
            divided by N too (sites outside the data's plates are scaled for that), and the temperature does not touch
            it.
        temperature: Weight T of the KL in the negative ELBO; 1 for Bayes, less for a cold posterior.
        num_data: Number N of data that the posterior was fitted to, by which its KL is divided on every data set. By
            default that of the data set named ``"train"``, or else of the first.
        chunk: Draws that go through the model at once; None chooses it by ``max_memory``.
        max_memory: Bytes that the model's intermediate tensors may take.
        nonfinite: ``"raise"`` stops at a loss that is NaN or infinite, naming tau, draw and site; ``"keep"`` carries it
            into the curve.
        tolerance: Adds taus around the maximum of every curve until its neighbors are no farther off than this.
        executor: Where the taus are evaluated, such as a ``ProcessPoolExecutor``; the result does not depend on it.
            Threads take turns, as Pyro has one stack of effects a process: they are right, and no faster.
        shards: Tasks that each tau is cut into on the executor, where it has more workers than there are taus. A task
            runs the model on every ``shards``-th batch of each data set. The result does not depend on that either.
        checkpoint: A folder in which every finished tau is kept. An evaluation that was stopped goes on from there,
            and gives what it would have given; the folder of another evaluation is refused.
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
        ('expected_nll', 'predictive_nll', 'negative_elbo', 'kl')
    """
    problem = read_problem(
        model,
        path,
        args,
        kwargs,
        evaluation=evaluation,
        losses=losses,
        num_samples=num_samples,
        seed=seed,
        temperature=temperature,
        num_data=num_data,
        chunk=chunk,
        max_memory=max_memory,
        nonfinite=nonfinite,
    )
    grid, tolerance = read_taus(taus), check_tolerance(tolerance)
    check_executor(executor, shards)
    store = None if checkpoint is None else Checkpoint.open(checkpoint, problem, len(grid))
    how = {"executor": executor, "shards": shards, "checkpoint": store, "progress": progress}
    pieces = evaluate_taus(problem, grid, tolerance=tolerance, **how)
    return assemble(problem, pieces)


@options_apart
def evaluate_loss(
    model: Callable[..., Any],
    path: Any,
    tau: float,
    *args: Any,
    loss: Any = "predictive_nll",
    num_samples: int = 32,
    seed: int = 0,
    temperature: float = 1.0,
    num_data: int | None = None,
    **kwargs: Any,
) -> float:
    """One loss at one point of a path, in nats per datum; arguments as in :func:`evaluate_barrier`.

    The values of one seed share their noise, so that paths can be compared.

    Raises:
        BarrierError: Options, data, model and path do not fit together, or the loss is not finite.
    """
    options = {"num_samples": num_samples, "seed": seed, "temperature": temperature, "num_data": num_data}
    return loss_at(model, path, tau, args, kwargs, loss=loss, **options)


def loss_at(
    model: Callable[..., Any],
    path: Any,
    tau: float,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    loss: Any,
    **options: Any,
) -> float:
    """As :func:`evaluate_loss`, with the model's arguments apart from the options."""
    problem = read_problem(model, path, args, kwargs, losses=[loss], **options)
    (estimate,) = evaluate_tau(problem, float(tau)).estimates.values()
    return float(estimate.draws.mean())


def assemble(problem: Problem, pieces: Sequence[Piece]) -> Barrier:
    """The barrier made of its pieces, one per tau, in increasing order of tau."""
    taus = np.array([piece.tau for piece in pieces])
    names = [data.name for data in problem.data]
    return Barrier(
        curves={key: curve_of(problem, pieces, key, taus) for key in pieces[0].estimates},
        taus=taus,
        log_prior=np.stack([piece.log_prior for piece in pieces]),
        log_q=np.stack([piece.log_q for piece in pieces]),
        likelihood={name: np.stack([piece.likelihood[name] for piece in pieces]) for name in names},
        num_data={name: pieces[0].num_data[name] for name in names},
        temperature=problem.temperature,
        seed=problem.seed,
        vectorized=all(piece.vectorized for piece in pieces),
        notes=problem.notes,
        problem=problem,
    )
