"""Figures of barriers, alignments and symmetries. Every function takes axes, returns axes, and never shows or saves.

Colors are those of Okabe & Ito (2008), told apart with every common color blindness; lines also differ in style.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_align.reporting.symmetry_figure import plot_symmetry as plot_symmetry
from pyro_align.reporting.symmetry_figure import pyplot as _pyplot

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from pyro_align.barrier.result import Barrier
    from pyro_align.barrier.surface import Surface
    from pyro_align.losses.curve import Curve
    from pyro_align.losses.protocol import Label
    from pyro_align.restarts import Stability

COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
STYLES = ("-", (0, (6, 1.5)), (0, (3, 1, 1, 1)), (0, (1, 1)), "-", "-", "-")


def _current(ax: Axes | None) -> Axes:
    return _pyplot().gca() if ax is None else ax


def plot_curve(
    curve: Curve, *, ax: Axes | None = None, label: str | None = None, index: int = 0, level: float = 0.95
) -> Axes:
    """One loss along the path: the curve, the chord between its ends (dashed) and the simultaneous band.

    The band is that of the excess over the chord, drawn around the curve: the errors of the levels are larger, but
    common to the whole path.

    Args:
        curve: The curve.
        ax: Where to draw; the current axes by default.
        label: Name in the legend.
        index: Which color, marker and line style.
        level: Level of the band.
    """
    ax = _current(ax)
    band, marker = curve.band(level), MARKERS[index % len(MARKERS)]
    low, high = curve.chord + curve.sign * band.lower, curve.chord + curve.sign * band.upper
    color = _line(ax, curve.taus, curve.value, low, high, label, index)
    ax.plot(curve.taus, curve.chord, color=color, lw=1.0, ls=(0, (2, 2)), alpha=0.9)
    ax.plot(curve.taus[[0, -1]], curve.value[[0, -1]], marker, color=color, ms=5, clip_on=False)
    _dress(ax, curve.label)
    return ax


def plot_excess(
    curve: Curve, *, ax: Axes | None = None, label: str | None = None, index: int = 0, level: float = 0.95
) -> Axes:
    """One loss's excess over its chord, with the simultaneous band; arguments as in :func:`plot_curve`."""
    ax, band = _current(ax), curve.band(level)
    ax.axhline(0.0, color="0.4", lw=0.8)
    _line(ax, curve.taus, curve.excess, band.lower, band.upper, label, index)
    _dress(ax, curve.label)
    ax.set_title(f"{curve.label.title}: excess over the chord", fontsize=10)
    return ax


def _line(ax: Axes, x: Any, y: Any, low: Any, high: Any, label: str | None, index: int) -> str:
    """A line and its band; returns their color."""
    color = COLOURS[index % len(COLOURS)]
    ax.fill_between(x, low, high, color=color, alpha=0.25, lw=0)
    ax.plot(x, y, color=color, lw=1.8, ls=STYLES[index % len(STYLES)], label=label)
    return color


def plot_barrier(
    barrier: Barrier,
    *,
    ax: Any = None,
    losses: str | Sequence[str] | None = None,
    evaluation: str | None = None,
    level: float = 0.95,
) -> Any:
    """A barrier's curves: one panel per loss and data set, or all in the axes given.

    Args:
        barrier: The barrier.
        ax: Axes, in which one loss is drawn as it is, several as excesses over their chords; by default a new figure
            with a row of panels for every data set.
        losses: Which losses; all by default.
        evaluation: Which data set; by default all, or the first one where ``ax`` is given.
        level: Level of the bands.

    Returns:
        The ``Axes`` given, or an array ``(data sets, losses)`` of new ones.
    """
    if ax is None:
        return plot_before_after({"": barrier}, losses=losses, evaluations=evaluation, level=level)
    names = _names(losses, barrier.losses, "loss")
    data = _names(evaluation, barrier.evaluations, "data set")[0]
    if len(names) == 1:
        plot_curve(barrier[data, names[0]], ax=ax, level=level)
        if len(barrier.evaluations) > 1:
            ax.set_title(f"{ax.get_title()}, {data}", fontsize=10)
        return ax
    labels = [barrier[data, name].label for name in names]
    for i, (name, label) in enumerate(zip(names, labels, strict=True)):
        plot_excess(barrier[data, name], ax=ax, label=label.title, index=i, level=level)
    ax.set_ylabel(_units(labels))
    ax.set_title(f"excess over the chord, {data}", fontsize=10)
    _legend_above(ax, columns=2)
    return ax


def plot_before_after(
    barriers: Mapping[str, Barrier],
    *,
    losses: str | Sequence[str] | None = None,
    evaluations: str | Sequence[str] | None = None,
    axes: Any = None,
    level: float = 0.95,
) -> np.ndarray:
    """Several barriers over each other, such as ``{"before": b0, "after": b1}``.

    Args:
        barriers: Label -> barrier; all of the same losses and data sets.
        losses: Columns; all losses by default.
        evaluations: Rows; all data sets by default.
        axes: Array ``(rows, columns)`` of axes; by default a new figure.
        level: Level of the bands.

    Returns:
        Array ``(rows, columns)`` of axes.
    """
    if not barriers:
        raise ValueError("plot_before_after got no barrier; give {'before': barrier, 'after': other}")
    first = next(iter(barriers.values()))
    names = _names(losses, first.losses, "loss")
    sets = _names(evaluations, first.evaluations, "data set")
    if axes is None:
        size = 2.7 * len(names) + 0.3, 2.75 * len(sets)
        _, axes = _pyplot().subplots(len(sets), len(names), figsize=size, squeeze=False, layout="constrained")
    elif np.size(axes) != len(sets) * len(names):
        raise ValueError(f"{len(sets)} data sets and {len(names)} losses need as many axes, got {np.size(axes)}")
    axes = np.reshape(np.asarray(axes, object), (len(sets), len(names)))
    for row, data in enumerate(sets):
        for column, name in enumerate(names):
            panel = axes[row, column]
            for i, (label, barrier) in enumerate(barriers.items()):
                curve = barrier[data, name]
                text = (f"{label}: " if label else "barrier ") + curve.text(level)
                plot_curve(curve, ax=panel, label=text, index=i, level=level)
            if column == 0 and len(sets) > 1:
                panel.set_ylabel(f"{data}\n{panel.get_ylabel()}")
            if row < len(sets) - 1:
                panel.set_xlabel("")
            _legend_above(panel)
    return axes


def plot_plane(
    surface: Surface,
    *,
    loss: str | None = None,
    evaluation: str | None = None,
    ax: Axes | None = None,
    names: Sequence[str] = ("A", "B", "C"),
    levels: int = 12,
) -> Axes:
    """A loss over the plane through three posteriors, as filled contours.

    Contours are set at quantiles of the loss, close where it is low and wide where it is high: beside the triangle it
    often is a hundred times as high as within. Hatched is where standard deviations are held at their floor.

    Args:
        surface: From :func:`~pyro_align.evaluate_plane`.
        loss: Which loss; the first by default.
        evaluation: Which data set; the first by default.
        ax: Where to draw; the current axes by default.
        names: Names of the three posteriors, in the order in which they were given.
        levels: Number of contours.
    """
    ax = _current(ax)
    loss = _names(loss, surface.losses, "loss")[0]
    data = _names(evaluation, surface.evaluations, "data set")[0]
    values = np.where(np.isfinite(surface[data, loss]), surface[data, loss], np.nan)
    heights = np.unique(np.nanquantile(values, np.linspace(0, 1, levels + 1)))
    if len(heights) < 2:  # flat, or nothing finite
        heights = np.array([0.0, 1.0]) if not len(heights) or np.isnan(heights[0]) else heights[0] + np.array([0, 1])
    from matplotlib.colors import BoundaryNorm

    norm = BoundaryNorm(heights, 256, extend="neither") if len(heights) <= 256 else None
    filled = ax.contourf(surface.x, surface.y, values, levels=heights, cmap="cividis_r", norm=norm)
    ax.contour(surface.x, surface.y, values, levels=heights[1:-1], colors="white", linewidths=0.4, alpha=0.7)
    if (surface.clipped > 0).any() and (surface.clipped < 1).any():
        ax.contourf(surface.x, surface.y, surface.clipped > 0, levels=[0.5, 1.5], colors="none", hatches=["...."])
    outline = np.vstack([surface.corners, surface.corners[:1]])
    ax.plot(*outline.T, color="black", lw=1.2, ls=(0, (3, 2)))
    center = surface.corners.mean(0)
    for i, (corner, name) in enumerate(zip(surface.corners, names, strict=True)):
        ax.plot(*corner, MARKERS[i], color=COLOURS[i], ms=9, mec="white", mew=1.2, label=name)
        outward = (corner - center) / np.linalg.norm(corner - center)
        ax.annotate(
            name,
            corner,
            xytext=15 * outward,
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=9,
            bbox={"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none", "alpha": 0.85},
        )
    bar = ax.figure.colorbar(filled, ax=ax, ticks=heights[:: max(1, len(heights) // 6)], format="%.3g")
    bar.set_label(surface.labels[loss].unit, fontsize=9)
    ax.set_aspect("equal")
    ax.set_title(surface.labels[loss].title + (f", {data}" if len(surface.evaluations) > 1 else ""), fontsize=10)
    ax.set_xlabel("W2 distance along the edge " + f"{names[0]} to {names[1]}")
    ax.set_ylabel("W2 distance across")
    return ax


def plot_loo(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Leave-one-out along the path: the expected log predictive density at each tau, from ``barrier.loo(taus)``.

    Bars are the error of the difference to the best tau, from paired data; that of a level is much larger, and common
    to the whole path. Open markers are estimates with too high a Pareto shape for some data, with their share.

    Args:
        table: From :meth:`~pyro_align.barrier.Barrier.loo`.
        ax: Where to draw; the current axes by default.
    """
    ax = _current(ax)
    taus, elpd = table.index.to_numpy(float), table["elpd"].to_numpy(float)
    trusted = table["bad_k"].to_numpy(float) == 0
    ax.errorbar(taus, elpd, yerr=table["dse"].to_numpy(float), color=COLOURS[1], lw=1.6, elinewidth=1.2, capsize=3)
    ax.plot(taus[trusted], elpd[trusted], "o", color=COLOURS[1], ms=6, clip_on=False)
    ax.plot(taus[~trusted], elpd[~trusted], "o", mec=COLOURS[1], mfc="white", mew=1.4, ms=6, clip_on=False)
    for tau, height, share in zip(taus[~trusted], elpd[~trusted], table["bad_k"][~trusted], strict=True):
        ax.annotate(
            f"{share:.0%} bad k",
            (tau, height),
            xytext=(0, -14),
            textcoords="offset points",
            fontsize=7,
            ha="left" if tau == 0 else "right" if tau == 1 else "center",
        )
    _dress(ax)
    ax.margins(y=0.18)
    ax.set_title("leave-one-out along the path", fontsize=10)
    ax.set_ylabel("elpd, nats (higher is better)")
    return ax


def _units(labels: Sequence[Label]) -> str:
    """The unit of most losses, and those of the others."""
    units = [label.unit for label in labels]
    common = max(dict.fromkeys(units), key=units.count)
    others = [f"{label.title}: {label.unit}" for label in labels if label.unit != common]
    return common + (f" ({'; '.join(others)})" if others else "")


def _legend_above(ax: Axes, columns: int = 1) -> None:
    """Puts the legend over the curves: the headroom grows until nothing lies beneath it."""
    low, high = ax.get_ylim()
    ax.set_ylim(low, high + 0.32 * (high - low))
    ax.legend(frameon=False, fontsize=8, loc="upper center", handlelength=2.2, borderaxespad=0.2, ncols=columns)


def _dress(ax: Axes, label: Label | None = None) -> None:
    if label is not None:
        ax.set_title(label.title, fontsize=10)
        ax.set_ylabel(label.unit)
    ax.set_xlabel("τ along the path")
    ax.set_xlim(0, 1)
    ax.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", lw=0.4, alpha=0.5)


def _names(asked: str | Sequence[str] | None, known: Sequence[str], what: str) -> list[str]:
    names = list(known) if asked is None else [asked] if isinstance(asked, str) else list(asked)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"no {what} {unknown}; there are {list(known)}")
    return names


def plot_stability(stability: Stability, *, ax: Axes | None = None) -> Axes:
    """A dendrogram of restarts by their W2 distances after alignment (average linkage): fits that are one join low.

    Args:
        stability: What :func:`~pyro_align.restarts.stability` found.
        ax: Where to draw; the current axes by default.
    """
    from scipy.cluster.hierarchy import dendrogram, linkage
    from scipy.spatial.distance import squareform

    axes = _current(ax)
    tree = linkage(squareform(stability.distances, checks=False), "average")
    dendrogram(tree, ax=axes, labels=list(stability.names), color_threshold=0, above_threshold_color=COLOURS[1])
    axes.set_ylabel("W2 distance after alignment")
    return axes
