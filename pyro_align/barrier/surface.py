"""`evaluate_plane`: losses on a grid of the plane through three posteriors, every point with the same noise."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pyro_align.barrier.options import read_problem
from pyro_align.barrier.run import check_executor, evaluate_taus
from pyro_align.errors import BarrierError
from pyro_align.losses.protocol import Label
from pyro_align.model.keywords import options_apart
from pyro_align.paths.planes import Plane
from pyro_align.reporting.tables import ByLoss, loss_table


@dataclass(frozen=True, eq=False)
class Surface(ByLoss[np.ndarray]):
    """Losses on a grid of a plane, per datum; lower is better.

    Attributes:
        values: (evaluation, loss) -> the loss ``(y, x)``.
        se: (evaluation, loss) -> its Monte Carlo standard error ``(y, x)``; noise is common, so that differences
            between neighbors are known better.
        x: Coordinates of the columns ``(x,)``, Wasserstein-2 lengths.
        y: Coordinates of the rows ``(y,)``.
        corners: Where the three posteriors lie, ``(3, 2)``.
        clipped: Fraction of standard deviations held at their floor, ``(y, x)``; 0 inside the triangle.
        labels: Loss -> how it is written: its title, unit, and which way is better.

    Example:
        >>> x = y = np.linspace(0.0, 1.0, 3)
        >>> loss = {("data", "kl"): np.zeros((3, 3))}
        >>> corners = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 1.0]])
        >>> surface = Surface(loss, loss, x, y, corners, np.zeros((3, 3)), {"kl": Label("KL to the prior")})
        >>> surface["kl"].shape
        (3, 3)
    """

    values: Mapping[tuple[str, str], np.ndarray]
    se: Mapping[tuple[str, str], np.ndarray]
    x: np.ndarray
    y: np.ndarray
    corners: np.ndarray
    clipped: np.ndarray
    labels: Mapping[str, Label]

    @property
    def _by_loss(self) -> Mapping[tuple[str, str], np.ndarray]:
        return self.values

    def summary(self) -> pd.DataFrame:
        """One row per data set and loss: its best value on the grid, the standard error and coordinates of that, the
        value at the grid point nearest to the triangle's center, and the loss's title and unit.
        """
        rows = {}
        center = self.corners.mean(0)
        nearest = int(np.abs(self.y - center[1]).argmin()), int(np.abs(self.x - center[0]).argmin())
        for key, value in self.values.items():
            label = self.labels[key[1]]
            worst = np.inf if label.better == "lower" else -np.inf
            finite = np.where(np.isfinite(value), value, worst)
            i, j = np.unravel_index(finite.argmin() if label.better == "lower" else finite.argmax(), value.shape)
            best = {"best": value[i, j], "se": self.se[key][i, j], "x": self.x[j], "y": self.y[i]}
            rows[key] = {**best, "center": value[nearest], "title": label.title, "unit": label.unit}
        return loss_table(rows)

    def __repr__(self) -> str:
        table = self.summary()[["best", "se", "x", "y", "center"]]
        return f"Surface({len(self.x)} x {len(self.y)} points)\n{table.to_string(float_format='{:.4g}'.format)}"


@dataclass(frozen=True, eq=False)
class _Points:
    """Points of a plane numbered from 1, in the place of a path's taus; 0 is the plane's origin."""

    plane: Plane
    points: tuple[tuple[float, float], ...]

    def posterior(self, number: float):
        return self.plane.posterior(*((0.0, 0.0), *self.points)[int(number)])

    def __call__(self, number: float):
        return self.posterior(number).to_guide()


@options_apart
def evaluate_plane(
    model: Callable[..., Any],
    plane: Plane,
    *args: Any,
    evaluation: Mapping[str, Any] | None = None,
    grid: int | tuple[int, int] = 21,
    margin: float = 0.25,
    num_samples: int = 8,
    seed: int = 0,
    losses: Iterable[Any] | Mapping[str, Any] | None = None,
    temperature: float = 1.0,
    num_data: int | None = None,
    chunk: int | None = None,
    max_memory: int = 2**30,
    nonfinite: str = "keep",
    executor: Executor | None = None,
    progress: bool = False,
    **kwargs: Any,
) -> Surface:
    """Losses on a grid of the plane through three posteriors.

    One set of noise is pushed through every point, so that the surface is smooth where the loss is.

    Args:
        model: The Pyro model.
        plane: From :func:`~pyro_align.paths.plane`.
        *args: The model's arguments.
        grid: Points along x and y, or a pair of numbers.
        margin: How far the grid goes beyond the triangle's bounding box, as a share of its greater side.
        nonfinite: ``"keep"`` leaves NaN and infinite losses, which the margin may hold, in the surface; ``"raise"``
            stops at the first.
        evaluation, num_samples, seed, losses, temperature, num_data, chunk, max_memory, executor, progress, kwargs: As
            in :func:`~pyro_align.evaluate_barrier`.

    Raises:
        BarrierError: Options, data, model and plane do not fit together.

    Example:
        >>> import torch
        >>> from pyro_align.demo.network import bayesian_mlp
        >>> from pyro_align.demo.training import Recipe, fit
        >>> from pyro_align import evaluate_plane
        >>> from pyro_align.paths import plane
        >>> model, x, y = bayesian_mlp([4, 8, 3]), torch.randn(50, 4), torch.arange(50) % 3
        >>> a, b, c = (fit(model, x, y, seed=s, recipe=Recipe(epochs=1), progress=False) for s in range(3))
        >>> evaluate_plane(model, plane(a, b, c), x, y, grid=(4, 3))["kl"].shape
        (3, 4)
    """
    if not isinstance(plane, Plane):
        raise BarrierError(
            f"expected a plane(guide_a, guide_b, guide_c), got {type(plane).__name__}; the order is "
            "evaluate_plane(model, plane, *data)"
        )
    x, y = _grid(plane, grid, margin)
    points = tuple((float(a), float(b)) for b in y for a in x)
    problem = read_problem(
        model,
        _Points(plane, points),
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
    check_executor(executor)
    pieces = evaluate_taus(problem, range(1, len(points) + 1), executor=executor, progress=progress)
    shape = (len(y), len(x))
    draws = {key: np.stack([piece.estimates[key].draws for piece in pieces]) for key in pieces[0].estimates}
    with np.errstate(invalid="ignore"):
        return Surface(
            values={key: value.mean(1).reshape(shape) for key, value in draws.items()},
            se={k: (v.std(1, ddof=1) / np.sqrt(v.shape[1])).reshape(shape) for k, v in draws.items()},
            x=x,
            y=y,
            corners=plane.coordinates,
            clipped=np.array([plane.clipped(*point) for point in points]).reshape(shape),
            labels={name: loss.label for name, loss in problem.losses.items()},
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
