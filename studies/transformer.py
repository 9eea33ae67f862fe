"""A transformer on digits: barriers before alignment, up to permutations, up to rotations, and by learned matching.

python -m studies.transformer --out OUT
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pandas as pd

import pyro_align
from studies import figures, runner
from studies.lab import Grid, Lab, Setting, pair_of_fits, rows
from studies.objectives import path_after
from studies.training import Recipe
from studies.width_depth import KINDS

KEY = ("data", "network", "guide", "temperature", "epochs", "seed_a", "seed_b", "alignment")
SHAPE = (32, 2, 2, 64)  # width, heads, blocks, hidden units

# Scales of mean-field posteriors do not follow a rotation, and points have no ELBO to learn a matching by.
ALIGNMENTS = {
    "normal": {"none": "none", "permutations": "w2", "learned permutations": "w2, then straight-through"},
    "delta": {"none": "none", "permutations": "w2", "rotations": "rotations"},
}


def main(argv: Sequence[str] | None = None) -> pd.DataFrame:
    """Runs the study with command line options."""
    made = runner.parser(__doc__.splitlines()[0], seeds=(0, 1))
    made.add_argument("--shape", type=int, nargs=4, default=SHAPE, help="width, heads, blocks, hidden units")
    made.add_argument("--guides", nargs="+", default=list(KINDS), help="normal, delta")
    made.add_argument("--temperature", type=float, nargs="+", default=[0.1], help="weights of the KL or log prior")
    made.add_argument("--epochs", type=int, default=60, help="passes over the data in each fit")
    options = runner.read(made, argv)
    grid, limit = Grid(7, 8), None
    if options.quick:
        options.shape, options.epochs, options.temperature, grid, limit = (8, 2, 1, 8), 1, [1.0], Grid(3, 2, 60), 150
    lab = Lab(options, grid, limit)

    def compute(data, network, guide, temperature, epochs, seed_a, seed_b, alignment):
        recipe = Recipe(epochs, 128, 0.003, scale_rate=0.01, decay=0.6, temperature=temperature, guide=guide)
        setting = Setting(data, tuple(map(int, network.split("-"))), recipe=recipe, network="transformer")
        a, b, common = pair_of_fits(lab, setting, seed_a, seed_b)
        if alignment == "rotations":
            images = lab.data(data)
            sample = images.x[:32], images.y[:32]
            symmetry = pyro_align.find_symmetry(lab.model(setting), *sample, rotations=True)
            found = pyro_align.align(a, b, symmetry)
            path, distance = pyro_align.displacement(a, found.posterior), found.distance
        else:
            path, distance = path_after(lab, setting, a, b, ALIGNMENTS[guide][alignment])
        return rows(lab.barrier(setting, path), distance=distance, **common)

    cells = [
        dict(zip(KEY, ("digits", "-".join(map(str, options.shape)), guide, t, options.epochs, *pair, how), strict=True))
        for pair in runner.pairs(options.seeds)
        for t, guide in itertools.product(options.temperature, options.guides)
        for how in ALIGNMENTS[guide]
    ]
    frame = runner.run(runner.Table(options.out / "transformer.csv", KEY), cells, compute)
    runner.write_table(summary(frame), options.out / "transformer_table.md")
    draw(frame, options.out / "transformer.png")
    return frame


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per kind of fit and alignment: predictive-NLL barriers, distance, and what the fits have learned."""
    nll, errors = (frame[frame["loss"] == loss] for loss in ("predictive_nll", "error_rate"))
    made = []
    by = ["temperature", "guide", "alignment"]
    for (temperature, guide, alignment), part in nll.groupby(by, sort=False):
        same = errors[(errors["guide"] == guide) & (errors["temperature"] == temperature)]
        right = 1 - same.loc[same["evaluation"] == "test", ["start", "end"]].to_numpy()
        test, train = (part[part["evaluation"] == evaluation] for evaluation in ("test", "train"))
        made.append(
            {
                "fit": f"{KINDS[guide]}, T {temperature:g}",
                "alignment": figures.LABELS["none"] if alignment == "none" else alignment,
                "test barrier": f"{figures.spread(test['barrier'], 3)} ± {test['se'].max():.3f}",
                "training barrier": figures.spread(train["barrier"], 3),
                "W2 distance": figures.spread(test["distance"], 1),
                "accuracy": f"{right.min():.3f}-{right.max():.3f}",
            }
        )
    return pd.DataFrame(made)


def draw(frame: pd.DataFrame, path) -> None:
    """Predictive-NLL barrier on test data of each fit and alignment; dots are pairs."""
    frame = frame[(frame["evaluation"] == "test") & (frame["loss"] == "predictive_nll")].copy()
    frame["setting"] = [f"{KINDS[r.guide]}, T = {r.temperature:g}" for r in frame.itertuples()]
    order = list(dict.fromkeys(itertools.chain(*ALIGNMENTS.values())))
    figure, ax = figures.pyplot().subplots(figsize=(5.5, 1 + 0.42 * frame["setting"].nunique()))
    labels = {name: figures.LABELS["none"] if name == "none" else name for name in order}
    figures.rows(ax, frame, y="setting", by="alignment", order=order, labels=labels)
    ax.set_xlabel(figures.LABELS["predictive_nll"])
    ax.legend(frameon=False, fontsize=7, bbox_to_anchor=(1.0, 1.0), loc="upper left")
    figures.save(figure, path)


if __name__ == "__main__":
    main()
