"""The claim at its plainest: a perceptron with three hidden layers of 512 units on MNIST and Fashion-MNIST.

python -m studies.mnist --data-dir DATA --out OUT
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pandas as pd

from studies import figures, runner
from studies.lab import Grid, Lab, Setting, before_and_after
from studies.training import Recipe
from studies.width_depth import KINDS, RECIPES

KEY = ("data", "hidden", "guide", "temperature", "gain", "decay", "epochs", "seed_a", "seed_b")


def main(argv: Sequence[str] | None = None) -> pd.DataFrame:
    """Runs the study with command line options."""
    made = runner.parser(__doc__.splitlines()[0], seeds=(0, 1))
    made.add_argument("--data", nargs="+", default=["mnist", "fashion_mnist"], help="data sets")
    made.add_argument("--temperature", type=float, nargs="+", default=[0.01], help="weights of the KL")
    made.add_argument("--epochs", type=int, default=6, help="passes over the data in each fit")
    made.add_argument("--gain", type=float, nargs="+", default=[0.1], help="factors on He-normal initial locations")
    made.add_argument("--decay", type=float, default=0.5, help="last share of the steps, over which step sizes decay")
    made.add_argument("--guides", nargs="+", default=["normal"], help="normal, delta")
    options = runner.read(made, argv)
    hidden, epochs, grid, limit = [512] * 3, options.epochs, Grid(11, 8, train=2000), None
    if options.quick:
        hidden, epochs, grid, limit = [16] * 3, 2, Grid(3, 2, train=100, test=100), 300
    lab = Lab(options, grid, limit)

    def compute(data, hidden, guide, temperature, gain, decay, epochs, seed_a, seed_b):
        how = {**RECIPES["many"][guide], "gain": gain, "decay": decay}
        recipe = Recipe(epochs, temperature=temperature, guide=guide, **how)
        widths = tuple(int(units) for units in hidden.split("-"))
        return before_and_after(lab, Setting(data, widths, recipe=recipe), seed_a, seed_b)

    shape = "-".join(map(str, hidden))
    cells = [
        dict(zip(KEY, (data, shape, guide, temperature, gain, options.decay, epochs, *pair), strict=True))
        for guide, temperature, gain in itertools.product(options.guides, options.temperature, options.gain)
        for pair in runner.pairs(options.seeds)
        for data in options.data
    ]
    frame = runner.run(runner.Table(options.out / "mnist.csv", KEY), cells, compute)
    runner.write_table(summary(frame), options.out / "mnist_table.md")
    draw(frame, options.out / "mnist.png")
    return frame


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per setting: predictive-NLL barriers on test data before and after alignment. The rest is in the CSV."""
    made = []
    frame = frame[(frame["evaluation"] == "test") & (frame["loss"] == "predictive_nll")]
    for (data, guide, gain, temperature), part in frame.groupby(["data", "guide", "gain", "temperature"], sort=False):
        before, after = (part[part["alignment"] == name] for name in ("none", "w2"))
        ends = pd.concat([after["start"], after["end"]])
        made.append(
            {
                "data": data if guide == "normal" else f"{data} ({KINDS[guide]})",
                "T": f"{temperature:g}",
                "gain": f"{gain:g}",
                "before alignment": figures.spread(before["barrier"], 4),
                "aligned": f"{figures.spread(after['barrier'], 4)} ± {after['se'].max():.4f}",
                "NLL of the fits": f"{ends.min():.3f}-{ends.max():.3f}",
            }
        )
    return pd.DataFrame(made)


def draw(frame: pd.DataFrame, path) -> None:
    """Predictive-NLL barrier on test data by temperature, before and after."""
    frame = frame[(frame["evaluation"] == "test") & (frame["loss"] == "predictive_nll")].copy()
    names = list(dict.fromkeys(frame["data"]))
    figure, axes = figures.pyplot().subplots(1, len(names), figsize=(4 * len(names), 3), squeeze=False, sharey=True)
    settings = sorted(frame[["guide", "gain"]].drop_duplicates().itertuples(index=False), reverse=True)
    frame["line"] = frame["guide"] + frame["gain"].map("/{:g}/".format) + frame["alignment"]
    order = {
        f"{guide}/{gain:g}/{a}": f"{KINDS[guide]}, gain {gain:g}, {figures.LABELS[a]}"
        for guide, gain in settings
        for a in ("none", "w2")
    }
    for ax, name in zip(axes.flat, names, strict=True):
        part = frame[frame["data"] == name]
        figures.lines(ax, part, x="temperature", by="line", order=list(order), labels=order)
        ax.set_title(name, fontsize=10)
    axes.flat[0].set_ylabel(figures.LABELS["predictive_nll"])
    axes.flat[-1].legend(frameon=False, fontsize=7, bbox_to_anchor=(1.0, 1.0), loc="upper left")
    figures.save(figure, path)


if __name__ == "__main__":
    main()
