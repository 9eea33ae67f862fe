"""The claim at its plainest: a perceptron with three hidden layers of 512 units on MNIST and Fashion-MNIST.

python -m studies.mnist --data-dir DATA --out OUT
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from pyro_align.plots import TITLES
from studies import figures, runner
from studies.lab import Grid, Lab, Setting, before_and_after
from studies.training import Recipe

KEY = ("data", "hidden", "temperature", "epochs", "seed_a", "seed_b")

SHOWN = ("predictive_nll", "expected_nll", "elbo", "error_rate")


def main(argv: Sequence[str] | None = None) -> pd.DataFrame:
    """Runs the study with command line options."""
    made = runner.parser(__doc__.splitlines()[0], seeds=(0, 1))
    made.add_argument("--data", nargs="+", default=["mnist", "fashion_mnist"], help="data sets")
    made.add_argument("--temperature", type=float, nargs="+", default=[0.1], help="weights of the KL")
    made.add_argument("--epochs", type=int, default=10, help="passes over the data in each fit")
    options = runner.read(made, argv)
    hidden, epochs, grid, limit = [512] * 3, options.epochs, Grid(11, 8, train=5000), None
    if options.quick:
        hidden, epochs, grid, limit = [16] * 3, 2, Grid(3, 2, train=100, test=100), 300
    lab = Lab(options, grid, limit)

    def compute(data, hidden, temperature, epochs, seed_a, seed_b):
        # steps of .02 suit the digits' few steps; at 235 steps an epoch, 784 inputs want smaller ones
        recipe = Recipe(epochs=epochs, learning_rate=0.003, scale_rate=0.01, temperature=temperature)
        widths = tuple(int(units) for units in hidden.split("-"))
        return before_and_after(lab, Setting(data, widths, recipe=recipe), seed_a, seed_b)

    shape = "-".join(map(str, hidden))
    cells = [
        dict(zip(KEY, (data, shape, temperature, epochs, *pair), strict=True))
        for temperature in options.temperature
        for pair in runner.pairs(options.seeds)
        for data in options.data
    ]
    frame = runner.run(runner.Table(options.out / "mnist.csv", KEY), cells, compute)
    runner.write_table(summary(frame), options.out / "mnist_table.md")
    draw(frame, options.out / "mnist.png")
    return frame


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per data set, temperature and loss on test data: barrier before and after, and the ends' levels."""
    made = []
    frame = frame[(frame["evaluation"] == "test") & frame["loss"].isin(SHOWN)]
    for (data, temperature, epochs, loss), part in frame.groupby(["data", "temperature", "epochs", "loss"], sort=False):
        before, after = (part[part["alignment"] == name] for name in ("none", "w2"))
        ends = pd.concat([after["start"], after["end"]])
        made.append(
            {
                "data": data,
                "T": f"{temperature:g}",
                "epochs": epochs,
                "alive": "; ".join(part["alive"].unique()),
                "loss": TITLES.get(loss, loss),
                "seed pairs": len(after),
                "barrier as they stand": figures.spread(before["barrier"], 4),
                "barrier aligned": figures.spread(after["barrier"], 4),
                "largest s.e.": f"{after['se'].max():.4f}",
                "loss of the fits": f"{ends.min():.4f}-{ends.max():.4f}",
            }
        )
    return pd.DataFrame(made)


def draw(frame: pd.DataFrame, path) -> None:
    """Predictive-NLL barrier on test data by temperature, before and after."""
    frame = frame[(frame["evaluation"] == "test") & (frame["loss"] == "predictive_nll")]
    names = list(dict.fromkeys(frame["data"]))
    figure, axes = figures.pyplot().subplots(1, len(names), figsize=(4 * len(names), 3), squeeze=False, sharey=True)
    for ax, name in zip(axes.flat, names, strict=True):
        figures.lines(ax, frame[frame["data"] == name], x="temperature", by="alignment", order=["none", "w2"])
        ax.set_title(name, fontsize=10)
    axes.flat[0].set_ylabel(figures.LABELS["predictive_nll"])
    axes.flat[0].legend(frameon=False, fontsize=8)
    figures.save(figure, path)


if __name__ == "__main__":
    main()
