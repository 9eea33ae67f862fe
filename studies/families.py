"""Families and inference on digits: how near do two posteriors of each kind come, and what does relabeling buy?

python -m studies.families --out OUT
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache

import pandas as pd
import torch

import pyro_align
from pyro_align.demo.network import bayesian_mlp
from pyro_align.guides import Draws, Posterior
from studies import figures, runner
from studies.data import load
from studies.inference import FAMILIES, Task
from studies.lab import rows

KEY = ("data", "hidden", "family", "seed_a", "seed_b")
LOSSES = ("expected_nll", "predictive_nll", "error_rate")
ALIGNMENTS = {"none": "before alignment", "w2": "one relabeling", "draws": "each draw relabeled"}


def main(argv: Sequence[str] | None = None) -> pd.DataFrame:
    """Runs the study with command line options."""
    made = runner.parser(__doc__.splitlines()[0], seeds=(0, 1, 2))
    made.add_argument("--data", default="digits", help="data set")
    made.add_argument("--hidden", nargs="+", default=["16"], help="hidden layers, joined by dashes")
    made.add_argument("--families", nargs="+", default=list(FAMILIES), help=", ".join(FAMILIES))
    made.add_argument("--epochs", type=int, default=200, help="passes over the data in each fit")
    made.add_argument("--draws", type=int, default=32, help="posterior draws")
    made.add_argument("--warmup", type=int, default=200, help="steps of NUTS before the draws")
    options = runner.read(made, argv)
    limit, taus = None, 11
    if options.quick:
        options.hidden, options.epochs, options.draws, options.warmup = ["3"], 2, 8, 4
        limit, taus = 30, 3
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # the Hessian's inverse and the geometry of dense covariances want it
    try:
        frame = study(options, limit, taus)
    finally:
        torch.set_default_dtype(default)
    runner.write_table(summary(frame), options.out / "families_table.md")
    draw(frame, options.out / "families.png")
    return frame


def study(options, limit: int | None, taus: int) -> pd.DataFrame:
    """All cells; a fit is made once in a run."""
    data = load(options.data, options.data_dir, limit=limit).flat().to(options.device)
    parts = {"train": (data.x.double(), data.y), "test": (data.x_test.double(), data.y_test)}

    @cache
    def task(hidden: str) -> Task:
        x, y = parts["train"]
        model = bayesian_mlp([x.shape[1], *map(int, hidden.split("-")), data.classes])
        return Task(model, x, y, options.epochs, options.draws, options.warmup)

    @cache
    def fit(hidden: str, family: str, seed: int) -> tuple[Posterior, float]:
        started = time.process_time()
        return FAMILIES[family](task(hidden), seed), time.process_time() - started

    def compute(data, hidden, family, seed_a, seed_b):
        (a, _), (b, seconds) = (fit(hidden, family, seed) for seed in (seed_a, seed_b))
        made = []
        for alignment, path in paths(task(hidden), a, b).items():
            barrier = pyro_align.evaluate_barrier(
                task(hidden).model, path, evaluation=parts, taus=taus, num_samples=options.draws, losses=LOSSES
            )
            made += rows(barrier, alignment=alignment, distance=path.length, fit_seconds=seconds)
        return made

    cells = [
        dict(zip(KEY, (options.data, hidden, family, *pair), strict=True))
        for hidden in options.hidden
        for family in options.families
        for pair in runner.pairs(options.seeds)
    ]
    return runner.run(runner.Table(options.out / "families.csv", KEY), cells, compute)


def paths(task: Task, a: Posterior, b: Posterior) -> dict[str, pyro_align.paths.Path]:
    """Paths as the posteriors stand, after one relabeling of the second, and after one of every draw.

    The last is for sets of draws, in which every draw may have labels of its own.
    """
    symmetry = task.symmetry
    made = {
        "none": pyro_align.displacement(a, b),
        "w2": pyro_align.displacement(a, pyro_align.align(a, b, symmetry).posterior),
    }
    if type(a) is Draws:
        stacked = {k: torch.stack([a.draws[k], b.draws[k]]) for k in a.draws}
        each = pyro_align.align_draws(stacked, symmetry, model=task.model, args=(task.x, task.y)).draws
        ends = ({k: torch.as_tensor(v[chain]) for k, v in each.items()} for chain in range(2))
        made["draws"] = pyro_align.displacement(*ends)
    return made


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per network and family: predictive-NLL barriers on test data, and how good the fits are."""
    frame = frame[frame["evaluation"] == "test"]
    made = []
    for (_, family), part in frame.groupby(["hidden", "family"], sort=False):
        nll = part[part["loss"] == "predictive_nll"]
        levels = nll[["start", "end"]].to_numpy()
        row = {"family": family}
        for alignment, label in ALIGNMENTS.items():
            found = nll[nll["alignment"] == alignment]
            row[label] = figures.spread(found["barrier"]) if len(found) else "-"
        row["test NLL of the fits"] = f"{levels.min():.3f}-{levels.max():.3f}"
        row["CPU s a fit"] = f"{part['fit_seconds'].median():.0f}"
        made.append(row)
    return pd.DataFrame(made)


def draw(frame: pd.DataFrame, path) -> None:
    """Predictive-NLL barrier on test data by family; dots are seed pairs."""
    frame = frame[(frame["evaluation"] == "test") & (frame["loss"] == "predictive_nll")]
    shapes = list(dict.fromkeys(frame["hidden"].astype(str)))
    names = list(dict.fromkeys(frame["family"]))
    figure, axes = figures.pyplot().subplots(
        1, len(shapes), figsize=(4.8 * len(shapes), 0.35 * len(names) + 1.2), squeeze=False, sharey=True
    )
    for ax, shape in zip(axes.flat, shapes, strict=True):
        part = frame[frame["hidden"].astype(str) == shape]
        for i, (alignment, label) in enumerate(ALIGNMENTS.items()):
            chosen = part[part["alignment"] == alignment]
            places = [names.index(name) + 0.22 * (i - 1) for name in chosen["family"]]
            ax.plot(
                figures.floor(chosen["barrier"]),
                places,
                figures.MARKERS[i],
                color=figures.COLOURS[i],
                label=label,
                ms=5,
            )
        ax.set_xscale("log")
        ax.grid(True, axis="x", alpha=0.3)
        ax.set_yticks(range(len(names)), names, fontsize=8)
        ax.set_xlabel(figures.LABELS["predictive_nll"], fontsize=9)
        ax.set_title(f"hidden layers: {shape}", fontsize=10)
    axes.flat[0].invert_yaxis()
    axes.flat[-1].legend(fontsize=7, frameon=False, bbox_to_anchor=(1.0, 1.0), loc="upper left")
    figures.save(figure, path)


if __name__ == "__main__":
    main()
