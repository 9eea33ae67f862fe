"""Figures of tidy tables: medians over seed pairs as lines, pairs as dots, the unaligned baseline always there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from pyro_align.plots import COLOURS, MARKERS

LABELS = {
    "none": "before alignment",
    "w2": "aligned (W2)",
    "activations": "aligned (activations)",
    "predictive_nll": "predictive NLL barrier\n(nats per datum)",
}


def pyplot():
    """Matplotlib without a screen."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def lines(
    ax, frame: pd.DataFrame, *, x: str, by: str, order: Sequence[str], labels: Mapping[str, str] | None = None
) -> None:
    """Barrier against a column: one line of medians per value of ``by``, one dot per row.

    Args:
        ax: Where to draw.
        frame: Rows with ``barrier``.
        x: The column along the horizontal axis; its distinct values stand at equal distances.
        by: The column that tells lines apart.
        order: Its values, in the order of colors.
        labels: Names in the legend.
    """
    ticks = sorted(frame[x].unique())
    place = {value: i for i, value in enumerate(ticks)}
    for i, name in enumerate(order):
        part = frame[frame[by] == name]
        if part.empty:
            continue
        medians = part.groupby(x)["barrier"].median()
        shift = 0.06 * (i - (len(order) - 1) / 2)
        at = [place[v] + shift for v in part[x]]
        color, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        label = (labels or LABELS).get(name, name)
        ax.plot([place[v] + shift for v in medians.index], floor(medians), marker + "-", color=color, label=label)
        ax.plot(at, floor(part["barrier"]), marker, color=color, ms=3, alpha=0.45, mew=0)
    ax.set_xticks(range(len(ticks)), [f"{t:g}" if isinstance(t, float) else str(t) for t in ticks])
    ax.set_yscale("log")
    ax.set_xlabel(x)
    ax.grid(True, axis="y", alpha=0.3)


def rows(ax, frame: pd.DataFrame, *, y: str, by: str, order: Sequence[str], labels: Mapping[str, str]) -> None:
    """Barriers as dots, one line for each value of ``y`` in the order of the frame; arguments as of :func:`lines`."""
    ticks = list(dict.fromkeys(frame[y]))
    for i, name in enumerate(order):
        part = frame[frame[by] == name]
        if not part.empty:
            color, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
            at = [ticks.index(value) for value in part[y]]
            ax.plot(floor(part["barrier"]), at, marker, color=color, label=labels[name])
    ax.set_yticks(range(len(ticks)), ticks)
    ax.invert_yaxis()
    ax.set_xscale("log")
    ax.grid(True, alpha=0.3)


FLOOR = 1e-4


def floor(values) -> np.ndarray:
    """Values for a logarithmic axis: barriers below 1e-4 nats are drawn at 1e-4."""
    return np.maximum(np.asarray(values, float), FLOOR)


def save(figure, path: Path) -> None:
    """Writes a figure and closes it."""
    figure.savefig(path, dpi=110, bbox_inches="tight")
    pyplot().close(figure)


def spread(values: pd.Series, digits: int = 3) -> str:
    """The median, and the range where there is more than one."""
    if len(values) == 1:
        return f"{values.iloc[0]:.{digits}f}"
    return f"{values.median():.{digits}f} ({values.min():.{digits}f}-{values.max():.{digits}f})"
