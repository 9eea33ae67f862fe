"""Many posteriors made one, on digits: barycenters and mixtures, before and after alignment, polished or not.

python -m studies.merging --out OUT
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor

import pyro_align
from pyro_align.guides import Posterior, barycenter
from pyro_align.model.density import Density
from pyro_align.reporting.arviz import leave_one_out, point_to_arviz
from studies import figures, runner
from studies.lab import Grid, Lab, Setting
from studies.training import Recipe, fit

KEY = ("data", "hidden", "temperature", "what", "seeds")
ORDER = ("members", "mixture", "barycenter, before alignment", "barycenter, aligned")


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
        options.hidden, options.epochs, options.polish, options.draws, limit = [8, 8], 3, [2], 25, 200
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
        """Scores on test data and by leave-one-out: one row per member, one row for anything else."""
        kind, _, epochs = what.partition(" + ")
        if kind == "members":
            return [self._score([q], seed) for q, seed in zip(self.members(), self.seeds, strict=True)]
        if kind == "mixture":
            return [self._score(self.members())]
        merged = self._once(kind, lambda: self._barycenter(kind))
        if epochs:
            merged = self._polish(merged, int(epochs.split()[0]))
        return [self._score([merged])]

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

    def _score(self, parts: Sequence[Posterior], seed: int = -1) -> runner.Row:
        """Scores of the equal mixture of some posteriors."""
        data = self.lab.data(self.setting.data)
        test = [self._run(q, data.x_test, data.y_test)[0] for q in parts]
        found = scores(torch.cat(test).exp().mean(0), data.y_test)
        loo = leave_one_out(self._point(parts, data.x, data.y))
        loos = {"loo": -loo["elpd"] / len(data.x), "loo_se": loo["se"] / len(data.x), "bad_k": loo["bad_k"]}
        return {"evaluation": "test", "member": seed, **found, **loos}

    def _run(self, posterior: Posterior, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log class probabilities ``(draws, data, classes)``, and the draws' log joint and log density ``(draws,)``."""
        density = Density(self.lab.model(self.setting), (x, y))
        with torch.no_grad():
            values, log_q = posterior.push_with_log_prob(posterior.noise(self.draws, generator=0))
            traces = [density.trace({k: v[s] for k, v in values.items()}) for s in range(self.draws)]
            logits = torch.stack([trace.nodes["y"]["fn"].logits for trace in traces])
            return logits.log_softmax(-1), torch.stack([trace.log_prob_sum() for trace in traces]), log_q

    def _point(self, parts: Sequence[Posterior], x: Tensor, y: Tensor):
        """The mixture as an ArviZ object. Members hardly overlap: a draw has its own one's density."""
        runs = [self._run(q, x, y) for q in parts]
        log_probs, lp, log_q = (torch.cat(one) for one in zip(*runs, strict=True))
        log_likelihood = log_probs.gather(-1, y.expand(len(log_probs), -1)[..., None])[..., 0]
        return point_to_arviz(
            tau=math.nan,
            evaluation="train",
            name="y",
            plates=("data",),
            log_likelihood=log_likelihood.double().cpu().numpy(),
            observed={"y": y.cpu().numpy()},
            lp=lp.double().cpu().numpy(),
            log_q=(log_q - math.log(len(parts))).double().cpu().numpy(),
        )

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
                "LOO on training data (nats)": figures.spread(part["loo"]),
                "share of bad k": figures.spread(part["bad_k"], 2),
            }
        )
    return pd.DataFrame(made)


def draw(frame: pd.DataFrame, path) -> None:
    """Negative log predictive of every predictor; dots are single members."""
    names = list(dict.fromkeys(frame["what"]))
    figure, ax = figures.pyplot().subplots(figsize=(5, 0.35 * len(names) + 1))
    for i, name in enumerate(names):
        values = frame.loc[frame["what"] == name, "nll"]
        unaligned = "before alignment" in name
        color, marker = (figures.COLOURS[0], "o") if unaligned else (figures.COLOURS[1], "s")
        ax.plot(values, [i] * len(values), marker, color=color)
    ax.set_yticks(range(len(names)), names, fontsize=8)
    ax.invert_yaxis()
    ax.set_xscale("log")
    ax.set_xlabel("negative log predictive on test data (nats per datum)")
    ax.grid(True, axis="x", alpha=0.3)
    figures.save(figure, path)


if __name__ == "__main__":
    main()
