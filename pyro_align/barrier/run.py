"""The taus of one evaluation: one after another or on an executor, resumed from a checkpoint, refined at the top."""

from __future__ import annotations

import concurrent.futures
import pickle
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from pyro_align.barrier.checkpoint import Checkpoint
from pyro_align.barrier.problem import Part, Piece, Problem, evaluate_part, evaluate_tau, joined
from pyro_align.errors import BarrierError
from pyro_align.losses.curve import Curve


def evaluate_taus(
    problem: Problem,
    taus: Sequence[float],
    *,
    tolerance: float | None = None,
    executor: concurrent.futures.Executor | None = None,
    shards: int = 1,
    checkpoint: Checkpoint | None = None,
    progress: bool = False,
) -> list[Piece]:
    """One piece per tau, in increasing order; with a tolerance, taus are added around every maximum."""
    done = {} if checkpoint is None else checkpoint.read()
    grid = [float(tau) for tau in taus]
    waiting = list(grid)
    with tqdm(total=len(waiting), desc="barrier", unit="tau", disable=not progress) as bar:
        while waiting:
            todo = [tau for tau in waiting if tau not in done]
            bar.update(len(waiting) - len(todo))
            for piece in _pieces(problem, todo, executor, shards):
                if checkpoint is not None:
                    checkpoint.write(piece)
                done[piece.tau] = piece
                bar.update()
            waiting = [] if tolerance is None else refined_taus(problem, [done[tau] for tau in sorted(grid)], tolerance)
            grid += waiting
            bar.total += len(waiting)
    return [done[tau] for tau in sorted(grid)]


def refined_taus(problem: Problem, pieces: Sequence[Piece], tolerance: float) -> list[float]:
    """Midpoints next to every curve's maximum whose neighbors are farther off than the tolerance."""
    taus = np.array([piece.tau for piece in pieces])
    new: set[float] = set()
    for key in pieces[0].estimates:
        excess = curve_of(problem, pieces, key, taus).excess
        best = int(np.argmax(np.where(np.isnan(excess), -np.inf, excess)))
        if excess[best] <= 0:
            continue  # no barrier to locate
        for other in (best - 1, best + 1):
            if 0 <= other < len(taus) and abs(taus[other] - taus[best]) > tolerance:
                new.add(float((taus[other] + taus[best]) / 2))
    return sorted(new)


def curve_of(problem: Problem, pieces: Sequence[Piece], key: tuple[str, str], taus: np.ndarray) -> Curve:
    """One loss of one data set at every tau."""
    return Curve.of(*key, taus, [piece.estimates[key] for piece in pieces], problem.losses[key[1]].label)


def _pieces(
    problem: Problem, taus: Sequence[float], executor: concurrent.futures.Executor | None, shards: int
) -> Iterator[Piece]:
    """The piece of each tau as it is finished; of a task that fails, after those of all tasks that were begun."""
    if executor is None:
        for tau in taus:
            yield evaluate_tau(problem, tau)
        return
    work = partial(_elsewhere, problem, torch.get_default_dtype())
    tasks: dict[Any, tuple[float, int]] = {}
    failure: BarrierError | None = None
    parts: dict[float, list[Part]] = {tau: [] for tau in taus}
    try:
        for task in product(taus, range(shards)):
            try:
                tasks[executor.submit(work, task[0], (task[1], shards))] = task
            except Exception as error:
                failure = _failure(task, shards, error)
                break
        for future in _as_completed(list(tasks)):
            tau = tasks[future][0]
            try:
                parts[tau].append(future.result())
            except concurrent.futures.CancelledError:
                continue
            except Exception as error:
                failure = failure or _failure(tasks[future], shards, error)
                _cancel(tasks)
                continue
            if len(parts[tau]) == shards:
                yield joined(problem, parts.pop(tau))
    finally:
        _cancel(tasks)
    if failure is not None:
        raise failure


def _cancel(futures: Iterable[Any]) -> None:
    for future in futures:
        future.cancel()


def _as_completed(futures: Sequence[Any]) -> Iterator[Any]:
    """Futures as they are done; those of an executor with futures of its own in their order."""
    if all(isinstance(future, concurrent.futures.Future) for future in futures):
        return concurrent.futures.as_completed(futures)
    return iter(futures)


def _failure(task: tuple[float, int], shards: int, error: Exception) -> BarrierError:
    """One error that says which task failed, and why."""
    which = f"tau={task[0]:g}" + (f", part {task[1] + 1} of {shards}" if shards > 1 else "")
    text = str(error).strip()
    if isinstance(error, BarrierError):
        why = text
    elif isinstance(error, pickle.PicklingError) or "pickle" in text.lower():
        why = (
            f"the model, path or data cannot be sent to the executor's processes ({text}); define the model at the top "
            "level of a module, or leave executor out"
        )
    elif isinstance(error, concurrent.futures.BrokenExecutor):
        why = (
            f"a worker of the executor died ({text}); out of memory is the usual reason: fewer workers, or a max_memory"
        )
    else:
        why = f"{type(error).__name__}: {text}"
    out = BarrierError(
        f"executor: {which} failed: {why}. Taus that were finished are in the checkpoint, if there is one"
    )
    out.__cause__ = error
    return out


def _elsewhere(problem: Problem, dtype: torch.dtype, tau: float, share: tuple[int, int]) -> Part:
    """A part of a piece in another process, under the default dtype of the calling one."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return evaluate_part(problem, tau, share)
    finally:
        torch.set_default_dtype(before)


def check_executor(executor: object, shards: int = 1) -> None:
    """Refuses what is no executor."""
    if not isinstance(shards, int) or isinstance(shards, bool) or shards < 1:
        raise BarrierError(f"shards: expected a number of tasks >= 1, got {shards!r}")
    if executor is None:
        if shards > 1:
            raise BarrierError(f"shards={shards} cuts the data for an executor; give executor= too, or leave it out")
        return
    if not callable(getattr(executor, "submit", None)):
        raise BarrierError(f"executor: expected a concurrent.futures.Executor, got {type(executor).__name__}")
