"""Width and depth of perceptrons: barriers of Bayesian and of deterministic networks, before and after alignment.

python -m studies.width_depth --out OUT
python -m studies.width_depth --data mnist fashion_mnist --data-dir DATA --recipes many --epochs 6 --out OUT
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from studies import figures, runner
from studies.lab import Grid, Lab, Setting, before_and_after
from studies.training import Recipe

KEY = ("data", "guide", "activation", "recipe", "width", "depth", "seed_a", "seed_b")
KINDS = {"normal": "Bayesian", "delta": "point estimate"}

# Adam's steps: a point estimate has no noise to average over and trains worse with the larger ones
RATES = {"normal": 0.02, "delta": 0.003}

# how a fit differs from the plain one, by kind
RECIPES = {
    "plain": {"normal": {}, "delta": {}},
    "small start": {"normal": {"gain": 0.1}, "delta": {"gain": 0.1}},
    "gentle": {"normal": {"gain": 0.1, "decay": 0.1, "learning_rate": 0.005}, "delta": {"gain": 0.1, "decay": 0.1}},
    # for data by the ten thousand: steps of .02, which suit the digits' few, are too long for 235 a pass and 784 inputs
    "many": {
        "normal": {"gain": 0.1, "decay": 0.5, "learning_rate": 0.003, "scale_rate": 0.01},
        "delta": {"gain": 0.1, "decay": 0.5, "learning_rate": 0.001, "scale_rate": 0.01},
    },
}


def main(argv: Sequence[str] | None = None) -> pd.DataFrame:
    """Runs the study with command line options."""
    made = runner.parser(__doc__.splitlines()[0], seeds=(0, 1, 2))
    made.add_argument("--data", nargs="+", default=["digits"], help="data sets")
    made.add_argument("--widths", type=int, nargs="+", default=[32, 128, 512], help="units of each hidden layer")
    made.add_argument("--depths", type=int, nargs="+", default=[1, 2, 3], help="numbers of hidden layers")
    made.add_argument("--activations", nargs="+", default=["relu"], help="relu, tanh")
    made.add_argument("--guides", nargs="+", default=list(KINDS), help="normal, delta")
    made.add_argument("--temperature", type=float, default=0.01, help="weight of the KL")
    made.add_argument("--recipes", nargs="+", choices=RECIPES, default=["plain"], help="how networks are fitted")
    made.add_argument("--epochs", type=int, default=300, help="passes over the data in each fit")
    made.add_argument("--draws", type=int, default=16, help="posterior draws at each point of a path")
    options = runner.read(made, argv)
    grid, limit = Grid(draws=options.draws), None
    if options.quick:
        options.widths, options.depths, options.epochs = [8], [1, 2], 3
        grid, limit = Grid(3, 2, train=100, test=100), 200
    lab = Lab(options, grid, limit)

    def compute(data, guide, activation, recipe, width, depth, seed_a, seed_b):
        plain = Recipe(options.epochs, learning_rate=RATES[guide], temperature=options.temperature, guide=guide)
        setting = Setting(data, (width,) * depth, activation, recipe=replace(plain, **RECIPES[recipe][guide]))
        return before_and_after(lab, setting, seed_a, seed_b)

    # pairs outermost: a run that is stopped early has all architectures of fewer pairs
    cells = [
        dict(zip(KEY, (data, guide, activation, recipe, width, depth, *pair), strict=True))
        for pair in runner.pairs(options.seeds)
        for activation, guide, recipe in itertools.product(options.activations, options.guides, options.recipes)
        for data, depth, width in itertools.product(options.data, options.depths, options.widths)
    ]
    frame = runner.run(runner.Table(options.out / "width_depth.csv", KEY), cells, compute)
    runner.write_table(summary(frame), options.out / "width_depth_table.md")
    draw(frame, options.out)
    return frame


def summary(frame: pd.DataFrame, evaluation: str = "test") -> pd.DataFrame:
    """One row per architecture: predictive-NLL barriers before and after, Bayesian beside deterministic."""
    frame = frame[(frame["evaluation"] == evaluation) & (frame["loss"] == "predictive_nll")]
    made = []
    by = ["data", "activation", "recipe", "depth", "width"]
    for (data, activation, recipe, depth, width), part in frame.groupby(by, sort=True):
        row = {"data and fit": f"{data}, {activation}, {recipe}", "network": f"{depth} x {width}"}
        for guide, kind in KINDS.items():
            for alignment, label in (("none", "before"), ("w2", "aligned")):
                cell = part[(part["guide"] == guide) & (part["alignment"] == alignment)]
                row[f"{kind}, {label}"] = figures.spread(cell["barrier"]) if len(cell) else "not run"
        made.append(row)
    return pd.DataFrame(made)


def draw(frame: pd.DataFrame, folder) -> None:
    """One figure per data set, activation and recipe: barrier against width, a panel for each number of layers."""
    frame = frame[(frame["evaluation"] == "test") & (frame["loss"] == "predictive_nll")].copy()
    frame["line"] = frame["guide"] + "/" + frame["alignment"]
    order = [f"{guide}/{alignment}" for guide in KINDS for alignment in ("none", "w2")]
    labels = {f"{g}/{a}": f"{kind}, {figures.LABELS[a]}" for g, kind in KINDS.items() for a in ("none", "w2")}
    for (data, activation, recipe), part in frame.groupby(["data", "activation", "recipe"]):
        depths = sorted(part["depth"].unique())
        figure, axes = figures.pyplot().subplots(
            1, len(depths), figsize=(3.4 * len(depths), 3.2), squeeze=False, sharey=True
        )
        for ax, depth in zip(axes.flat, depths, strict=True):
            figures.lines(ax, part[part["depth"] == depth], x="width", by="line", order=order, labels=labels)
            ax.set_title(f"{data}, {depth} x {activation}, {recipe}", fontsize=9)
        axes.flat[0].set_ylabel(figures.LABELS["predictive_nll"])
        axes.flat[-1].legend(frameon=False, fontsize=7, bbox_to_anchor=(1.0, 1.0), loc="upper left")
        figures.save(figure, folder / f"width_depth_{data}_{activation}_{recipe.replace(' ', '_')}.png")


if __name__ == "__main__":
    main()
