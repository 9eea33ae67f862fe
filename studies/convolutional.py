"""A LeNet-like network on MNIST and Fashion-MNIST: barriers by width, Bayesian beside point estimates.

python -m studies.convolutional --data-dir DATA --out OUT
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pandas as pd

from studies import figures, runner
from studies.lab import Grid, Lab, Setting, pair_of_fits, rows
from studies.objectives import OBJECTIVES, by_objective, path_after
from studies.training import Recipe
from studies.width_depth import KINDS

KEY = ("data", "guide", "widths", "train", "temperature", "gain", "epochs", "seed_a", "seed_b", "alignment")
LENET = (16, 32, 120, 84)


def main(argv: Sequence[str] | None = None) -> pd.DataFrame:
    """Runs the study with command line options."""
    made = runner.parser(__doc__.splitlines()[0], seeds=(0, 1))
    made.add_argument("--data", nargs="+", default=["mnist", "fashion_mnist"], help="data sets")
    made.add_argument("--factors", type=int, nargs="+", default=[1, 2], help="multiples of every layer's width")
    made.add_argument("--guides", nargs="+", default=list(KINDS), help="normal, delta")
    made.add_argument("--train", type=int, default=60000, help="training data to fit to")
    made.add_argument("--temperature", type=float, default=0.1, help="weight of the KL")
    made.add_argument("--gain", type=float, nargs="+", default=[1.0, 0.3], help="factors on He-normal locations")
    made.add_argument("--epochs", type=int, default=5, help="passes over the data in each fit")
    made.add_argument("--alignments", nargs="+", choices=OBJECTIVES, default=["w2"], help="beside none")
    options = runner.read(made, argv)
    lenet, grid = LENET, Grid(7, 4, train=0, test=2000)
    if options.quick:
        lenet, grid = (2, 3, 8, 6), Grid(3, 2, train=0, test=60)
        options.train, options.epochs, options.factors, options.gain = 300, 1, [1], [1.0]
        options.guides = ["normal"]
    lab = Lab(options, grid, options.train)

    def compute(data, guide, widths, train, temperature, gain, epochs, seed_a, seed_b, alignment):
        steps = {"learning_rate": 0.003, "scale_rate": 0.01, "decay": 0.3}
        recipe = Recipe(epochs, 128, **steps, temperature=temperature, gain=gain, guide=guide)
        layers = tuple(int(width) for width in widths.split("-"))
        setting = Setting(data, layers, recipe=recipe, network="lenet")
        a, b, common = pair_of_fits(lab, setting, seed_a, seed_b)
        path, distance = path_after(lab, setting, a, b, alignment)
        return rows(lab.barrier(setting, path), distance=distance, **common)

    shapes = ["-".join(str(factor * width) for width in lenet) for factor in options.factors]
    fixed = (options.train, options.temperature)
    cells = [
        dict(zip(KEY, (data, guide, shape, *fixed, gain, options.epochs, *pair, alignment), strict=True))
        for pair in runner.pairs(options.seeds)
        for shape, data, gain, guide in itertools.product(shapes, options.data, options.gain, options.guides)
        for alignment in ("none", *options.alignments)
    ]
    frame = runner.run(runner.Table(options.out / "convolutional.csv", KEY), cells, compute)
    runner.write_table(summary(frame), options.out / "convolutional_table.md")
    runner.write_table(by_objective(named(frame)), options.out / "convolutional_objectives_table.md")
    draw(frame, options.out / "convolutional.png")
    return frame


def named(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with a name for each network and fit."""
    return frame.assign(
        network=[
            f"{r.data}, {KINDS[r.guide]}, T {r.temperature:g}, gain {r.gain:g}, {r.train} x {r.epochs}"
            for r in frame.itertuples()
        ]
    )


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per setting: predictive-NLL barriers on test data before and after alignment. The rest is in the CSV."""
    frame = frame[frame["loss"] == "predictive_nll"]
    made = []
    by = ["data", "widths", "train", "epochs", "temperature", "gain", "guide"]
    for (data, widths, train, epochs, temperature, gain, guide), part in frame.groupby(by, sort=False):
        before, after = (part[part["alignment"] == name] for name in ("none", "w2"))
        made.append(
            {
                "data": data,
                "channels and units": widths,
                "fit": f"{KINDS[guide]}, T {temperature:g}, gain {gain:g}",
                "images x passes": f"{train} x {epochs}",
                "before alignment": figures.spread(before["barrier"], 3),
                "aligned": f"{figures.spread(after['barrier'], 3)} ± {after['se'].max():.3f}",
            }
        )
    return pd.DataFrame(made)


def draw(frame: pd.DataFrame, path) -> None:
    """Predictive-NLL barrier on test data in each setting, before and after."""
    frame = frame[frame["loss"] == "predictive_nll"].copy()
    frame["line"] = frame["guide"] + "/" + frame["alignment"]
    frame["setting"] = [
        f"{r.data}, {r.train} images, {r.epochs} passes,\nT {r.temperature:g}, gain {r.gain:g}, channels {r.widths}"
        for r in frame.itertuples()
    ]
    labels = {f"{g}/{a}": f"{kind}, {figures.LABELS[a]}" for g, kind in KINDS.items() for a in ("none", "w2")}
    count = frame["setting"].nunique()
    figure, ax = figures.pyplot().subplots(figsize=(5.5, 1 + 0.42 * count))
    figures.rows(ax, frame, y="setting", by="line", order=list(labels), labels=labels)
    ax.tick_params(axis="y", labelsize=7)
    ax.set_xlabel(figures.LABELS["predictive_nll"])
    ax.legend(frameon=False, fontsize=7, bbox_to_anchor=(1.0, 1.0), loc="upper left")
    figures.save(figure, path)


if __name__ == "__main__":
    main()
