"""Many posteriors made one, on digits: barycenters and mixtures, before and after alignment, polished or not.

python -m studies.merging --out OUT
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor

import pyro_align
from pyro_align.density import Density
from pyro_align.guides import Posterior, barycenter
from studies import figures, runner
from studies.lab import Grid, Lab, Setting
from studies.training import Recipe, fit

KEY = ("data", "hidden", "temperature", "what", "seeds")
ORDER = ("members", "mixture", "barycenter, as they stand", "barycenter, aligned")


def main(argv: Sequence[str] | None = None) -> pd.DataFrame:
    """Runs the study with command line options."""
    made = runner.parser(__doc__.splitlines()[0], seeds=(0, 1, 2, 3, 4))
    made.add_argument("--data", default="digits", help="data set")
    made.add_argument("--hidden", type=int, nargs="+", default=[128, 128], help="hidden layers")
    made.add_argument("--temperature", type=float, default=0.01, help="weight of the KL")
    made.add_argument("--epochs", type=int, default=200, help="passes over the data in each fit")
    made.add_argument("--polish", type=int, nargs="+", default=[8, 32], help="passes of ELBO steps after merging")
    made.add_argument("--draws", type=int, default=64, help="posterior draws behind every figure")
    options = runner.read(made, argv)
    limit = None
    if options.quick:
        options.hidden, options.epochs, options.polish, options.draws, limit = [8, 8], 3, [2], 4, 200
    lab = Lab(options, Grid(), limit)
    recipe = Recipe(epochs=options.epochs, temperature=options.temperature)
    setting = Setting(options.data, tuple(options.hidden), recipe=recipe)
    merged = Merged(lab, setting, options.seeds, options.draws)

    names = [f"{kind}{after}" for kind in ORDER[2:] for after in ("", *(f" + {n} epochs" for n in options.polish))]
    fixed = (options.data, "-".join(map(str, options.hidden)), options.temperature)
    seeds = " ".join(map(str, options.seeds))
    cells = [dict(zip(KEY, (*fixed, what, seeds), strict=True)) for what in (*ORDER[:2], *names)]
    table = runner.Table(options.out / "merging.csv", KEY)
    frame = runner.run(table, cells, lambda what, **_: merged.rows(what))
    runner.write_table(summary(frame), options.out / "merging_table.md")
    draw(frame, options.out / "merging.png")
    return frame


class Merged:
    """Predictions of the members, of their mixture, and of their barycenters.

    Args:
        lab: Fits and data.
        setting: The network.
        seeds: Seeds of the members.
        draws: Posterior draws behind every prediction.
    """

    def __init__(self, lab: Lab, setting: Setting, seeds: Sequence[int], draws: int):
        self.lab, self.setting, self.seeds, self.draws = lab, setting, seeds, draws
        self._cache: dict[str, object] = {}

    def members(self) -> list[Posterior]:
        """The fits."""
        return self._once("members", lambda: [self.lab.fit(self.setting, seed).posterior for seed in self.seeds])

    def rows(self, what: str) -> list[runner.Row]:
        """Scores on test data: one row per member, one row for anything else."""
        kind, _, epochs = what.partition(" + ")
        if kind == "members":
            return [self._score(self._predict(q), seed) for q, seed in zip(self.members(), self.seeds, strict=True)]
        if kind == "mixture":
            return [self._score(torch.stack([self._predict(q) for q in self.members()]).mean(0))]
        merged = self._once(kind, lambda: self._barycenter(kind))
        if epochs:
            merged = self._polish(merged, int(epochs.split()[0]))
        return [self._score(self._predict(merged))]

    def _barycenter(self, kind: str) -> Posterior:
        if kind.endswith("aligned"):
            return pyro_align.align_many(self.members(), self.lab.symmetry(self.setting)).center
        return barycenter(self.members())

    def _polish(self, posterior: Posterior, epochs: int) -> Posterior:
        """Some passes of the members' own ELBO, from a quarter of their first rate."""
        data, recipe = self.lab.data(self.setting.data), self.setting.recipe
        rates = {"learning_rate": recipe.learning_rate / 4, "scale_rate": recipe.scale_rate / 4}
        short = Recipe(**{**vars(recipe), **rates, "epochs": epochs})
        model = self.lab.model(self.setting)
        return fit(model, data.x, data.y, seed=1000, recipe=short, start=posterior, label="polish")

    def _predict(self, posterior: Posterior) -> Tensor:
        """Class probabilities of the test data, averaged over draws, ``(data, classes)``."""
        data = self.lab.data(self.setting.data)
        density = Density(self.lab.model(self.setting), (data.x_test, data.y_test))
        values = posterior.push(posterior.noise(self.draws, generator=0))
        with torch.no_grad():
            logits = (
                density.trace({k: v[s] for k, v in values.items()}).nodes["_RETURN"]["value"] for s in range(self.draws)
            )
            return torch.stack([value.softmax(-1) for value in logits]).mean(0)

    def _score(self, probs: Tensor, seed: int = -1) -> runner.Row:
        y = self.lab.data(self.setting.data).y_test
        return {"evaluation": "test", "member": seed, **scores(probs, y)}

    def _once(self, name: str, make: Callable):
        if name not in self._cache:
            self._cache[name] = make()
        return self._cache[name]


def scores(probs: Tensor, y: Tensor, bins: int = 15) -> Mapping[str, float]:
    """Accuracy, negative log predictive density, and expected calibration error (Guo et al. 2017, eq. 5).

    Args:
        probs: Class probabilities ``(data, classes)``.
        y: Classes ``(data,)``.
        bins: Equally wide bins of confidence.
    """
    confidence, guess = probs.max(-1)
    right = (guess == y).float()
    place = (confidence * bins).long().clamp(max=bins - 1)
    gaps = [(right[place == b] - confidence[place == b]).sum().abs() for b in range(bins)]
    nll = -probs.gather(-1, y[:, None]).clamp_min(1e-30).log().mean()
    return {"accuracy": float(right.mean()), "nll": float(nll), "ece": float(sum(gaps) / len(y))}


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per predictor; the members' median and range in one."""
    made = []
    for what, part in frame.groupby("what", sort=False):
        made.append(
            {
                "predictor": what,
                "accuracy": figures.spread(part["accuracy"]),
                "negative log predictive (nats)": figures.spread(part["nll"]),
                "ECE": figures.spread(part["ece"]),
            }
        )
    return pd.DataFrame(made)


def draw(frame: pd.DataFrame, path) -> None:
    """Negative log predictive of every predictor; dots are single members."""
    names = list(dict.fromkeys(frame["what"]))
    figure, ax = figures.pyplot().subplots(figsize=(5, 0.35 * len(names) + 1))
    for i, name in enumerate(names):
        values = frame.loc[frame["what"] == name, "nll"]
        unaligned = "as they stand" in name
        colour, marker = (figures.COLOURS[0], "o") if unaligned else (figures.COLOURS[1], "s")
        ax.plot(values, [i] * len(values), marker, color=colour)
    ax.set_yticks(range(len(names)), names, fontsize=8)
    ax.invert_yaxis()
    ax.set_xscale("log")
    ax.set_xlabel("negative log predictive on test data (nats per datum)")
    ax.grid(True, axis="x", alpha=0.3)
    figures.save(figure, path)


if __name__ == "__main__":
    main()
