"""ResNet-20 without batch statistics on CIFAR-10 data: barriers against width, Bayesian beside point estimates.

python -m studies.resnet --data-dir DATA --out OUT

On a GPU, for widths up to that of Git Re-Basin: ``--device cuda --data cifar10_jpeg --train 50000 --width 1 2 4 8
--epochs 100 --test 10000``. ``cifar10_jpeg`` is CIFAR-10 after lossy compression: JPEG CIFAR-10.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence

import pandas as pd

from studies import figures, runner
from studies.lab import Grid, Lab, Setting, pair_of_fits, rows
from studies.objectives import OBJECTIVES, by_objective, path_after
from studies.training import Recipe
from studies.width_depth import KINDS

KEY = (
    *("data", "pool", "norm", "width", "guide", "temperature", "gain", "train", "epochs", "augment"),
    *("seed_a", "seed_b", "alignment"),
)
CHANNELS = (16, 32, 64)
LABELS = {"none": "before alignment", **{name: f"aligned by {name}" for name in OBJECTIVES}, "w2": "aligned"}
NAMES = {"cifar10_exact": "CIFAR-10, exact subset", "cifar10_jpeg": "JPEG CIFAR-10"}

# Ainsworth et al. 2023, ResNet-20 with LayerNorm on all of CIFAR-10: width multiplier -> test loss barrier in nats
GIT_RE_BASIN = {1: 1.37, 2: 0.68, 4: 0.31, 8: 0.25}


def read(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line options."""
    made = runner.parser(__doc__.splitlines()[0], seeds=(0, 1))
    made.add_argument("--data", nargs="+", default=["cifar10_exact"], help="cifar10_exact, cifar10_jpeg")
    made.add_argument("--width", type=float, nargs="+", default=[0.25, 0.5, 1], help="multiples of 16, 32, 64 channels")
    made.add_argument("--norm", nargs="+", default=["group"], help="group, plain (without gains and shifts), frn")
    made.add_argument("--guides", nargs="+", default=list(KINDS), help="normal, delta")
    made.add_argument("--alignments", nargs="+", choices=OBJECTIVES, default=["w2"], help="beside none")
    made.add_argument("--temperature", type=float, default=0.001, help="weight of the KL")
    made.add_argument("--train", type=int, default=4000, help="training data to fit to")
    made.add_argument("--pool", type=int, default=1, help="average images over squares of so many pixels a side")
    made.add_argument("--epochs", type=int, default=10, help="passes over the data in each fit")
    made.add_argument("--batch", type=int, default=128, help="data a step")
    made.add_argument("--rate", type=float, default=0.005, help="Adam's step for locations")
    made.add_argument("--gain", type=float, default=1.0, help="factor on He-normal initial locations")
    made.add_argument("--augment", action="store_true", help="mirror and move training images at random")
    made.add_argument("--half", action="store_true", help="fit in bfloat16")
    made.add_argument("--taus", type=int, default=5, help="points on the path")
    made.add_argument("--draws", type=int, default=8, help="posterior draws at each")
    made.add_argument("--test", type=int, default=1000, help="test data to evaluate on")
    made.add_argument("--evaluate", type=int, default=500, help="training data to evaluate on")
    options = runner.read(made, argv)
    if options.quick:
        options.width, options.train, options.epochs, options.pool = [0.125], 64, 1, 4
        options.taus, options.draws, options.test, options.evaluate = 3, 2, 20, 10
    return options


def lab_of(options: argparse.Namespace) -> Lab:
    """Where the options say that fits are made and measured."""
    grid = Grid(options.taus, options.draws, train=options.evaluate, test=options.test)
    return Lab(options, grid, options.train, options.pool)


def setting_of(options: argparse.Namespace, data: str, norm: str, width: float, guide: str) -> Setting:
    """A network and how it is fitted."""
    how = {"temperature": options.temperature, "gain": options.gain, "augment": options.augment, "half": options.half}
    recipe = Recipe(options.epochs, options.batch, options.rate, scale_rate=0.02, decay=0.5, guide=guide, **how)
    channels = tuple(max(1, round(width * c)) for c in CHANNELS)
    return Setting(data, channels, recipe=recipe, network=f"resnet20-{norm}")


def main(argv: Sequence[str] | None = None) -> pd.DataFrame:
    """Runs the study with command line options."""
    options = read(argv)
    lab = lab_of(options)

    def compute(data, norm, width, guide, seed_a, seed_b, alignment, **_):
        setting = setting_of(options, data, norm, width, guide)
        a, b, common = pair_of_fits(lab, setting, seed_a, seed_b)
        path, distance = path_after(lab, setting, a, b, alignment)
        return rows(lab.barrier(setting, path), distance=distance, **common)

    fixed = (options.temperature, options.gain, options.train, options.epochs, options.augment)
    cells = [
        dict(zip(KEY, (data, options.pool, norm, float(width), guide, *fixed, *pair, alignment), strict=True))
        for pair in runner.pairs(options.seeds)
        for data, norm, width, guide in itertools.product(options.data, options.norm, options.width, options.guides)
        for alignment in ("none", *options.alignments)
    ]
    frame = runner.run(runner.Table(options.out / "resnet.csv", KEY), cells, compute)
    runner.write_table(summary(frame), options.out / "resnet_table.md")
    runner.write_table(by_objective(named(frame)), options.out / "resnet_objectives_table.md")
    draw(frame, options.out / "resnet.png")
    return frame


def named(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with a name for each network and fit."""
    return frame.assign(
        network=[
            f"{KINDS[r.guide]}, width {r.width:g}, {r.norm}, {32 // r.pool} px, gain {r.gain:g}, {r.train} x {r.epochs}"
            for r in frame.itertuples()
        ]
    )


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per setting: predictive-NLL barriers on test data before and after alignment. The rest is in the CSV."""
    made = []
    by = ["data", "pool", "train", "epochs", "gain", "width", "guide"]
    for (data, pool, _, epochs, gain, width, guide), part in frame.groupby(by, sort=False):
        same = part[part["evaluation"] == "test"]
        nll, errors = (same[same["loss"] == loss] for loss in ("predictive_nll", "error_rate"))
        right = 1 - errors.loc[errors["alignment"] == "none", ["start", "end"]].to_numpy()
        before, after = (nll.loc[nll["alignment"] == name, "barrier"] for name in ("none", "w2"))
        made.append(
            {
                "images": f"{NAMES.get(data, data)}, {32 // pool} px, {epochs} passes",
                "fit": KINDS[guide] if gain == 1 else f"{KINDS[guide]}, gain {gain:g}",
                "width": f"{width:g}",
                "accuracy": f"{right.min():.2f}-{right.max():.2f}",
                "before alignment": figures.spread(before),
                "aligned": figures.spread(after),
            }
        )
    return pd.DataFrame(made)


def draw(frame: pd.DataFrame, path) -> None:
    """Predictive-NLL barrier on test data against width, with Git Re-Basin's published figures for orientation."""
    kept = (frame["evaluation"] == "test") & (frame["loss"] == "predictive_nll") & (frame["pool"] < 4)
    frame = frame[kept].copy()  # images of 8 pixels and less compare objectives only, in a table
    frame["line"] = frame["guide"] + "/" + frame["alignment"]
    shown = [alignment for alignment in ("none", "w2", "activations") if alignment in set(frame["alignment"])]
    order = [f"{guide}/{alignment}" for guide in KINDS for alignment in shown]
    labels = {f"{g}/{a}": f"{kind}, {figures.LABELS[a]}" for g, kind in KINDS.items() for a in shown}
    labels["published/w2"] = "Git Re-Basin, as published:\nfull data, LayerNorm, trained to the end"
    published = pd.DataFrame({"width": list(GIT_RE_BASIN), "barrier": list(GIT_RE_BASIN.values())})
    panels = list(frame.groupby(["data", "norm", "gain", "epochs"], sort=False))
    figure, axes = figures.pyplot().subplots(
        1, len(panels), figsize=(3.6 * len(panels), 3.4), squeeze=False, sharey=True
    )
    for ax, ((data, norm, gain, epochs), part) in zip(axes.flat, panels, strict=True):
        part = pd.concat([part, published.assign(line="published/w2")], ignore_index=True)
        part["width"] = part["width"].astype(float)
        figures.lines(ax, part, x="width", by="line", order=[*order, "published/w2"], labels=labels)
        ax.set_title(f"{NAMES.get(data, data)}\n{norm}, gain {gain:g}, {epochs} passes", fontsize=9)
        ax.set_xlabel("width multiplier")
    axes.flat[0].set_ylabel(figures.LABELS["predictive_nll"])
    known = dict(pair[::-1] for ax in axes.flat for pair in zip(*ax.get_legend_handles_labels(), strict=True))
    axes.flat[-1].legend(
        known.values(), known.keys(), frameon=False, fontsize=7, bbox_to_anchor=(1.0, 1.0), loc="upper left"
    )
    figures.save(figure, path)


if __name__ == "__main__":
    main()
