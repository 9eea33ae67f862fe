"""The taus of one evaluation: one after another or on an executor, resumed from a checkpoint, refined at the top."""

from __future__ import annotations

import concurrent.futures
import pickle
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from tqdm.auto import tqdm

from pyro_align.barrier.checkpoint import Checkpoint
from pyro_align.barrier.curve import Curve
from pyro_align.barrier.problem import Piece, Problem, evaluate_tau
from pyro_align.errors import BarrierError


def evaluate_taus(
    problem: Problem,
    taus: Sequence[float],
    *,
    tolerance: float | None = None,
    executor: concurrent.futures.Executor | None = None,
    checkpoint: Checkpoint | None = None,
    progress: bool = False,
) -> list[Piece]:
    """One piece per tau, in increasing order; with a tolerance, taus are added around every maximum.

    Args:
        problem: What is evaluated.
        taus: Where, at first.
        tolerance: Distance in tau within which the location of every barrier is to be known.
        executor: Where pieces run; here, one after another, by default.
        checkpoint: Where finished pieces are kept.
        progress: Whether to show a progress bar.
    """
    done = {} if checkpoint is None else checkpoint.read()
    grid = [float(tau) for tau in taus]
    waiting = list(grid)
    with tqdm(total=len(waiting), desc="barrier", unit="tau", disable=not progress) as bar:
        while waiting:
            todo = [tau for tau in waiting if tau not in done]
            bar.update(len(waiting) - len(todo))
            for piece in _pieces(problem, todo, executor):
                if checkpoint is not None:
                    checkpoint.write(piece)
                done[piece.tau] = piece
                bar.update()
            waiting = [] if tolerance is None else refined_taus([done[tau] for tau in sorted(grid)], tolerance)
            grid += waiting
            bar.total += len(waiting)
    return [done[tau] for tau in sorted(grid)]


def refined_taus(pieces: Sequence[Piece], tolerance: float) -> list[float]:
    """Midpoints next to every curve's maximum whose neighbours are farther off than the tolerance."""
    taus = np.array([piece.tau for piece in pieces])
    new: set[float] = set()
    for key in pieces[0].pseudo:
        excess = Curve(*key, taus, np.stack([piece.pseudo[key] for piece in pieces])).excess
        best = int(np.argmax(np.where(np.isnan(excess), -np.inf, excess)))
        if excess[best] <= 0:
            continue  # no barrier to locate
        for other in (best - 1, best + 1):
            if 0 <= other < len(taus) and abs(taus[other] - taus[best]) > tolerance:
                new.add(float((taus[other] + taus[best]) / 2))
    return sorted(new)


def _pieces(problem: Problem, taus: Sequence[float], executor: concurrent.futures.Executor | None) -> Iterator[Piece]:
    if executor is None:
        for tau in taus:
            yield evaluate_tau(problem, tau)
        return
    work = partial(_elsewhere, problem, torch.get_default_dtype())
    futures = [executor.submit(work, tau) for tau in taus]
    try:
        for future in concurrent.futures.as_completed(futures):
            try:
                yield future.result()
            except (pickle.PicklingError, AttributeError, TypeError) as error:
                if "pickle" not in str(error).lower() and not isinstance(error, pickle.PicklingError):
                    raise
                raise BarrierError(
                    f"the model, path or data cannot be sent to the executor's processes ({error}); define the model "
                    "at the top level of a module, or leave executor out"
                ) from error
    finally:
        for future in futures:
            future.cancel()


def _elsewhere(problem: Problem, dtype: torch.dtype, tau: float) -> Piece:
    """One piece in another process, under the default dtype of the calling one."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return evaluate_tau(problem, tau)
    finally:
        torch.set_default_dtype(before)


def check_executor(executor: object) -> None:
    """Refuses what cannot run models side by side.

    Raises:
        BarrierError: A thread pool, or no executor at all.
    """
    if isinstance(executor, concurrent.futures.ThreadPoolExecutor):
        raise BarrierError(
            "executor: Pyro keeps one stack of effects per process, so threads would disturb each other; use a "
            "concurrent.futures.ProcessPoolExecutor"
        )
    if not callable(getattr(executor, "submit", None)):
        raise BarrierError(f"executor: expected a concurrent.futures.Executor, got {type(executor).__name__}")
