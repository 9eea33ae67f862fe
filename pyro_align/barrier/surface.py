"""`evaluate_plane`: losses on a grid of the plane through three posteriors, every point with the same noise."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyro_align.barrier.data import read_data
from pyro_align.barrier.evaluate import (
    check_chunk,
    check_draws,
    check_memory,
    check_nonfinite,
    check_seed,
    check_temperature,
    fit_losses,
)
from pyro_align.barrier.problem import Problem
from pyro_align.barrier.run import check_executor, evaluate_taus
from pyro_align.errors import BarrierError
from pyro_align.losses.sums import read_losses
from pyro_align.paths.planes import Plane


@dataclass(frozen=True, eq=False)
class Surface:
    """Losses on a grid of a plane, per datum; lower is better.

    Attributes:
        values: (evaluation, loss) -> the loss ``(y, x)``, in nats per datum (error rates: fraction of data).
        se: (evaluation, loss) -> its Monte Carlo standard error ``(y, x)``; noise is common, so that differences
            between neighbors are known better.
        x: Coordinates of the columns ``(x,)``, Wasserstein-2 lengths.
        y: Coordinates of the rows ``(y,)``.
        corners: Where the three posteriors lie, ``(3, 2)``.
        clipped: Share of standard deviations held at their floor, ``(y, x)``; 0 inside the triangle.

    Example:
        >>> x = y = np.linspace(0.0, 1.0, 3)
        >>> loss = {("data", "elbo"): np.zeros((3, 3))}
        >>> surface = Surface(loss, loss, x, y, np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 1.0]]), np.zeros((3, 3)))
        >>> surface["elbo"].shape
        (3, 3)
    """

    values: Mapping[tuple[str, str], np.ndarray]
    se: Mapping[tuple[str, str], np.ndarray]
    x: np.ndarray
    y: np.ndarray
    corners: np.ndarray
    clipped: np.ndarray

    @property
    def evaluations(self) -> tuple[str, ...]:
        """Names of the data sets."""
        return tuple(dict.fromkeys(evaluation for evaluation, _ in self.values))

    @property
    def losses(self) -> tuple[str, ...]:
        """Names of the losses."""
        return tuple(dict.fromkeys(loss for _, loss in self.values))

    def __getitem__(self, key: str | tuple[str, str]) -> np.ndarray:
        """``surface["train", "elbo"]``, or ``surface["elbo"]`` on the first data set."""
        key = (self.evaluations[0], key) if isinstance(key, str) else key
        if key not in self.values:
            raise KeyError(f"no loss {key}; there are data sets {self.evaluations} and losses {self.losses}")
        return self.values[key]

    def __repr__(self) -> str:
        return f"Surface({len(self.x)} x {len(self.y)} points, losses {', '.join(self.losses)})"


@dataclass(frozen=True, eq=False)
class _Points:
    """Points of a plane numbered from 1, in the place of a path's taus; 0 is the plane's origin."""

    plane: Plane
    points: tuple[tuple[float, float], ...]

    def posterior(self, number: float):
        return self.plane.posterior(*((0.0, 0.0), *self.points)[int(number)])

    def __call__(self, number: float):
        return self.posterior(number).to_guide()


def evaluate_plane(
    model: Callable,
    plane: Plane,
    *args: Any,
    evaluation: Mapping[str, Any] | None = None,
    grid: int | tuple[int, int] = 21,
    margin: float = 0.25,
    num_samples: int = 8,
    seed: int = 0,
    losses: Iterable | Mapping[str, Any] | None = None,
    temperature: float = 1.0,
    chunk: int | None = None,
    max_memory: int = 2**30,
    nonfinite: str = "keep",
    executor: Executor | None = None,
    progress: bool = False,
    **kwargs: Any,
) -> Surface:
    """Losses on a grid of the plane through three posteriors; options as in :func:`~pyro_align.evaluate_barrier`.

    One set of noise is pushed through every point, so that the surface is smooth where the loss is.

    Args:
        model: The Pyro model.
        plane: From :func:`~pyro_align.paths.plane`.
        *args: The model's arguments.
        evaluation: Instead of ``args``: name -> data.
        grid: Points along x and y, or a pair of numbers.
        margin: How far the grid goes beyond the triangle's bounding box, as a share of its greater side.
        num_samples: Draws at each point.
        seed: Seed of the draws.
        losses: Names, callables, or a mapping of names to these.
        temperature: Weight of the KL in the negative ELBO.
        chunk: Draws at once.
        max_memory: Bytes for the model's intermediate tensors.
        nonfinite: ``"keep"`` leaves NaN and infinite losses, which the margin may hold, in the surface; ``"raise"``
            stops at the first.
        executor: Where the points are evaluated.
        progress: Whether to show a progress bar.
        **kwargs: The model's keyword arguments.

    Raises:
        BarrierError: Options, data, model and plane do not fit together.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> from pyro.infer.autoguide import AutoNormal, init_to_sample
        >>> from pyro_align import evaluate_plane
        >>> from pyro_align.paths import plane
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mean.sum(), 1.0), obs=y)
        >>> y = torch.randn(20)
        >>> def fit():
        ...     with pyro.get_param_store().scope():
        ...         guide = AutoNormal(model, init_loc_fn=init_to_sample)
        ...         _ = guide(y)
        ...     return guide
        >>> evaluate_plane(model, plane(fit(), fit(), fit()), y, grid=(4, 3))["elbo"].shape
        (3, 4)
    """
    if not isinstance(plane, Plane):
        raise BarrierError(
            f"expected a plane(guide_a, guide_b, guide_c), got {type(plane).__name__}; the order is "
            "evaluate_plane(model, plane, *data)"
        )
    x, y = _grid(plane, grid, margin)
    points = tuple((float(a), float(b)) for b in y for a in x)
    problem = Problem(
        model=model,
        path=_Points(plane, points),
        data=tuple(read_data(args, kwargs, evaluation)),
        losses=read_losses(losses),
        num_samples=check_draws(num_samples),
        seed=check_seed(seed),
        temperature=check_temperature(temperature),
        chunk=check_chunk(chunk),
        max_memory=check_memory(max_memory),
        nonfinite=check_nonfinite(nonfinite),
    )
    check_executor(executor)
    problem = fit_losses(problem, asked=losses is not None)
    pieces = evaluate_taus(problem, range(1, len(points) + 1), executor=executor, progress=progress)
    shape = (len(y), len(x))
    draws = {key: np.stack([piece.pseudo[key] for piece in pieces]) for key in pieces[0].pseudo}
    with np.errstate(invalid="ignore"):
        return Surface(
            values={key: value.mean(1).reshape(shape) for key, value in draws.items()},
            se={k: (v.std(1, ddof=1) / np.sqrt(v.shape[1])).reshape(shape) for k, v in draws.items()},
            x=x,
            y=y,
            corners=plane.coordinates,
            clipped=np.array([plane.clipped(*point) for point in points]).reshape(shape),
        )


def _grid(plane: Plane, grid: int | tuple[int, int], margin: float) -> tuple[np.ndarray, np.ndarray]:
    sizes = (grid, grid) if isinstance(grid, int) else tuple(grid)
    if len(sizes) != 2 or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 2 for n in sizes):
        raise BarrierError(f"grid: expected a number of points >= 2 or a pair of them, got {grid!r}")
    if not 0 <= margin < np.inf:
        raise BarrierError(f"margin: expected a share >= 0 of the triangle's side, got {margin!r}")
    low, high = plane.coordinates.min(0), plane.coordinates.max(0)
    beyond = margin * (high - low).max()
    return tuple(np.linspace(low[i] - beyond, high[i] + beyond, sizes[i]) for i in range(2))
