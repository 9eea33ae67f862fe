"""Prior scale and temperature on digits: barriers, accuracy, and how many units stay active.

python -m studies.priors --out OUT
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pandas as pd

from studies import figures, runner
from studies.lab import Grid, Lab, Setting, before_and_after
from studies.training import Recipe

TITLES = {"fan-in": "prior N(0, 2 / fan_in)", "1.0": "prior N(0, 1)", "ard": "relevance priors (ARD)"}
KEY = ("data", "hidden", "prior", "temperature", "seed_a", "seed_b")


def main(argv: Sequence[str] | None = None) -> pd.DataFrame:
    """Runs the study with command line options."""
    made = runner.parser(__doc__.splitlines()[0], seeds=(0, 1, 2))
    made.add_argument("--data", default="digits", help="data set")
    made.add_argument("--hidden", type=int, nargs="+", default=[128, 128], help="hidden layers")
    made.add_argument("--priors", nargs="+", default=["fan-in", "1.0", "ard"], help="fan-in, ard or a number")
    made.add_argument("--temperatures", type=float, nargs="+", default=[1.0, 0.1, 0.01, 0.001], help="KL weights")
    made.add_argument("--epochs", type=int, default=300, help="passes over the data in each fit")
    options = runner.read(made, argv)
    grid, limit = Grid(draws=32), None
    if options.quick:
        options.hidden, options.temperatures, options.epochs = [8, 8], [1.0, 0.01], 1
        grid, limit = Grid(3, 2, train=100), 200
    lab = Lab(options, grid, limit)

    def compute(data, hidden, prior, temperature, seed_a, seed_b):
        widths = tuple(int(units) for units in hidden.split("-"))
        recipe = Recipe(epochs=options.epochs, temperature=temperature)
        return before_and_after(lab, Setting(data, widths, prior=prior, recipe=recipe), seed_a, seed_b)

    shape = "-".join(map(str, options.hidden))
    cells = [
        dict(zip(KEY, (options.data, shape, prior, temperature, *pair), strict=True))
        for pair in runner.pairs(options.seeds)
        for prior, temperature in itertools.product(options.priors, options.temperatures)
    ]
    frame = runner.run(runner.Table(options.out / "priors.csv", KEY), cells, compute)
    runner.write_table(summary(frame), options.out / "priors_table.md")
    draw(frame, options.out / "priors.png")
    return frame


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per prior and temperature: predictive-NLL barriers on test data, active units, accuracy of the fits."""
    frame = frame[frame["evaluation"] == "test"]
    made = []
    for (prior, temperature), part in frame.groupby(["prior", "temperature"], sort=True):
        nll = part[part["loss"] == "predictive_nll"]
        before, after = (figures.spread(nll.loc[nll["alignment"] == name, "barrier"]) for name in ("none", "w2"))
        errors = part[(part["loss"] == "error_rate") & (part["alignment"] == "w2")]
        made.append(
            {
                "prior": TITLES.get(prior, prior),
                "T": f"{temperature:g}",
                "active units": "; ".join(part["active"].unique()),
                "accuracy of the fits": f"{100 * (1 - errors[['start', 'end']].to_numpy().max()):.1f}%",
                "before alignment": before,
                "aligned": after,
            }
        )
    return pd.DataFrame(made)


def draw(frame: pd.DataFrame, path) -> None:
    """Predictive-NLL barrier on test data against temperature, one panel per prior."""
    frame = frame[(frame["evaluation"] == "test") & (frame["loss"] == "predictive_nll")]
    priors = list(dict.fromkeys(frame["prior"]))
    figure, axes = figures.pyplot().subplots(1, len(priors), figsize=(4 * len(priors), 3), squeeze=False, sharey=True)
    for ax, prior in zip(axes.flat, priors, strict=True):
        figures.lines(ax, frame[frame["prior"] == prior], x="temperature", by="alignment", order=["none", "w2"])
        ax.set_title(TITLES.get(prior, f"prior N(0, {prior} squared)"), fontsize=10)
    axes.flat[0].set_ylabel(figures.LABELS["predictive_nll"])
    axes.flat[0].legend(frameon=False, fontsize=8)
    figures.save(figure, path)


if __name__ == "__main__":
    main()
