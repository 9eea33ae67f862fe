"""The options of an evaluation, checked; what they say together is a problem."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pyro_align.barrier.data import read_data
from pyro_align.barrier.problem import Problem
from pyro_align.errors import BarrierError
from pyro_align.losses.registry import read_losses

MOST_TAUS = 10_000  # each is a pass over all data


def read_problem(
    model: Callable[..., Any],
    path: Any,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    evaluation: Mapping[str, Any] | None = None,
    losses: Any = None,
    num_samples: int = 32,
    seed: int = 0,
    temperature: float = 1.0,
    num_data: int | None = None,
    chunk: int | None = None,
    max_memory: int = 2**30,
    nonfinite: str = "raise",
) -> Problem:
    """What is to be evaluated."""
    real = isinstance(temperature, numbers.Real) and 0 <= float(temperature) < np.inf
    memory = isinstance(max_memory, numbers.Real) and max_memory > 0
    fitted = "data that the posterior was fitted to"
    if not callable(getattr(path, "posterior", None)):
        raise BarrierError(
            f"expected a path, such as displacement(guide_a, guide_b), got {type(path).__name__}; "
            "the order is evaluate_barrier(model, path, *data)"
        )
    problem = Problem(
        model=model,
        path=path,
        data=tuple(read_data(args, kwargs, evaluation)),
        losses=read_losses(losses),
        num_samples=_at_least("num_samples", num_samples, 2, "errors need two draws"),
        seed=int(_checked("seed", seed, _is_int(seed), "an int")),
        temperature=float(_checked("temperature", temperature, real, "a finite number >= 0, the weight of the KL")),
        chunk=None if chunk is None else _at_least("chunk", chunk, 1, "draws at a time"),
        max_memory=int(_checked("max_memory", max_memory, memory, "a number of bytes > 0")),
        nonfinite=_checked("nonfinite", nonfinite, nonfinite in ("raise", "keep"), "'raise' or 'keep'"),
        num_data=None if num_data is None else _at_least("num_data", num_data, 1, fitted),
    )
    return _fitted_to_path(replace(problem, losses=read_losses(losses, problem.layouts)), asked=losses is not None)


def _fitted_to_path(problem: Problem, *, asked: bool) -> Problem:
    """Without the losses that the path's posteriors do not have, and with no more draws than there are.

    Draws counted several times over would make errors too small.
    """
    ends = [problem.path.posterior(tau) for tau in (0.0, 1.0)]
    notes, kept = tuple(getattr(problem.path, "notes", ())), dict(problem.losses)
    if not all(getattr(q, "has_density", True) for q in ends):
        kept = {name: loss for name, loss in kept.items() if not loss.needs_density}
    if asked and len(kept) < len(problem.losses):
        raise BarrierError(
            f"{', '.join(k for k in problem.losses if k not in kept)}: the posterior is known by draws alone, which "
            "have no density, so there is no KL and no ELBO; ask for expected_nll, predictive_nll or a task loss"
        )
    known = [count for count in (getattr(q, "max_samples", None) for q in ends) if count is not None]
    count = max(2, min([problem.num_samples, *known]))
    if count < problem.num_samples:
        notes += (f"num_samples is {count} instead of {problem.num_samples}: there are no more draws of the posterior",)
    return replace(problem, losses=kept, num_samples=count, notes=notes)


def read_taus(taus: int | Sequence[float]) -> np.ndarray:
    """Increasing taus from 0 to 1."""
    count = taus if _is_int(taus) else len(taus) if hasattr(taus, "__len__") else None
    if count is not None and count > MOST_TAUS:
        raise BarrierError(
            f"taus: every tau is a pass over all data, so at most {MOST_TAUS:,} are taken; got {count:,}. A few dozen "
            "show a curve, and tolerance= adds taus where its maximum is"
        )
    if _is_int(taus):
        if taus < 3:
            raise BarrierError(f"taus: expected at least 3 (both endpoints and one between), got {taus}")
        return np.linspace(0.0, 1.0, int(taus))
    try:
        grid = np.sort(np.asarray([float(t) for t in taus]))
    except (TypeError, ValueError):
        raise BarrierError(f"taus: expected a number of taus or values in [0, 1], got {taus!r}") from None
    outside = ~((grid >= 0) & (grid <= 1))
    if outside.any():
        raise BarrierError(f"taus: expected values in [0, 1], got {grid[outside]}")
    if len(grid) < 3 or grid[0] != 0 or grid[-1] != 1:
        raise BarrierError(f"taus: expected at least 3 values with both endpoints, 0 and 1, among them; got {grid}")
    if (np.diff(grid) == 0).any():
        raise BarrierError(f"taus: a value is repeated in {grid}")
    return grid


def check_tolerance(tolerance: Any) -> float | None:
    fine = tolerance is None or (isinstance(tolerance, numbers.Real) and 0 < tolerance < 1)
    return _checked("tolerance", tolerance, fine, "a distance in tau between 0 and 1")


def _at_least(name: str, value: Any, least: int, why: str) -> int:
    return int(_checked(name, value, _is_int(value) and value >= least, f"an int of at least {least} ({why})"))


def _checked(name: str, value: Any, fine: bool, expected: str) -> Any:
    if not fine:
        raise BarrierError(f"{name}: expected {expected}; got {value!r}")
    return value


def _is_int(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)
