"""Objectives, matchers and paths where the plain method fails: deep networks, most of whose units are at the prior.

python -m studies.objectives --out OUT
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pandas as pd
import torch
from torch import Tensor

import pyro_align
from pyro_align.guides import Posterior
from pyro_align.matching import Coordinate, Matcher, Sinkhorn, StraightThrough
from studies import figures, runner
from studies.lab import Grid, Lab, Setting, rows
from studies.training import Recipe, tensors_of, with_tensors

KEY = ("data", "hidden", "prior", "temperature", "recipe", "epochs", "objective", "seed_a", "seed_b")

# at temperature 1 the plain one lets the scales of three wide layers reach the prior before the locations have learned
RECIPES = {
    "plain": Recipe(),
    "annealed": Recipe(learning_rate=0.01, gain=0.2, decay=0.5, warmup=0.5, noise="local"),
}

REPAIRED = "repaired"
# Paths that are trained, the others are straight: kind, and weight of the KL over that of the fits. At the fits' own
# weight the ELBO may be bettered by leaving the data alone, which is no way across for the likelihood.
BENT = {
    "bezier": ("bezier", 1.0),
    "chain": ("chain", 1.0),
    "bezier, half the KL": ("bezier", 0.5),
    "bezier, a tenth of the KL": ("bezier", 0.1),
}


def sample(lab: Lab, setting: Setting) -> tuple:
    """A model and some of its training data."""
    data = lab.data(setting.data)
    return lab.model(setting), data.x[:500], data.y[:500]


def by_activation(lab: Lab, setting: Setting) -> pyro_align.objectives.Activations:
    """Likeness of units by what they do."""
    return pyro_align.objectives.Activations(*sample(lab, setting), num_samples=8)


def by_loss(lab: Lab, setting: Setting) -> dict:
    """Eight restarts, of which the one with the lowest loss half-way is kept."""
    return {"restarts": 8, "select": pyro_align.objectives.PathLoss(*sample(lab, setting), num_samples=8)}


def whole_layer(loc: Tensor, scale: Tensor) -> Tensor:
    """The norm of a site's moments."""
    return (loc.square() + scale.square()).sum().sqrt()


def each_filter(loc: Tensor, scale: Tensor) -> Tensor:
    """The norms of the moments of each unit's incoming weights; vectors as :func:`whole_layer`."""
    if loc.dim() < 2:
        return whole_layer(loc, scale)
    return (loc.square() + scale.square()).sum(tuple(range(1, loc.dim())), keepdim=True).sqrt()


# before a normalization the scale of weights is arbitrary, and W2 minds it: in units of their norm, it does not
GAUGES = {"w2, layers of one norm": whole_layer, "w2, filters of one norm": each_filter}


def gauged(posterior: Posterior, norm: Callable[[Tensor, Tensor], Tensor]) -> Posterior:
    """The posterior with every site in units of its norm, which relabeling carries along."""
    tensors = tensors_of(posterior)
    scales = tensors.get("scales", {k: torch.zeros_like(v) for k, v in tensors["locs"].items()})
    unit = {k: norm(v, scales[k]).clamp_min(1e-30) for k, v in tensors["locs"].items()}
    return with_tensors(
        posterior, {part: {k: v / unit[k] for k, v in sites.items()} for part, sites in tensors.items()}
    )


def halfway(lab: Lab, setting: Setting, a: Posterior, b: Posterior, matcher: type[Matcher]) -> dict:
    """Descent on the negative ELBO half-way, from the relabeling that is nearest in W2."""
    data, temperature = lab.data(setting.data), setting.recipe.temperature
    everything = (data.x, data.y, len(data.x))
    draws = {"num_samples": 16} if len(data.x) <= 2000 else {"num_samples": 8, "batch_size": 128}
    loss = pyro_align.objectives.MidpointLoss(lab.model(setting), a, *everything, **draws, temperature=temperature)
    nearest = pyro_align.align(a, b, lab.symmetry(setting))
    return {"matcher": matcher(loss=loss), "init": nearest.permutation}


# name -> options of `align`, which brings posterior `b` to `a`
OBJECTIVES: dict[str, Callable[[Lab, Setting, Posterior, Posterior], dict]] = {
    "w2": lambda lab, setting, a, b: {},
    "w2, not annealed": lambda lab, setting, a, b: {"matcher": Coordinate(anneal=0)},
    "w2, frank_wolfe": lambda lab, setting, a, b: {"matcher": "frank_wolfe"},
    "w2, then sinkhorn": lambda *which: halfway(*which, Sinkhorn),
    "w2, then straight-through": lambda *which: halfway(*which, StraightThrough),
    "means": lambda lab, setting, a, b: {"divergence": "means"},
    "kl": lambda lab, setting, a, b: {"divergence": "kl"},
    "jeffreys": lambda lab, setting, a, b: {"divergence": "jeffreys"},
    "snr": lambda lab, setting, a, b: {"divergence": "snr"},
    "activations": lambda lab, setting, a, b: {"divergence": by_activation(lab, setting)},
    **{name: lambda lab, setting, a, b: {} for name in GAUGES},
    "w2, 8 restarts by midpoint loss": lambda lab, setting, a, b: by_loss(lab, setting),
    "snr, 8 restarts by midpoint loss": lambda lab, setting, a, b: {"divergence": "snr", **by_loss(lab, setting)},
    "activations, 8 restarts by midpoint loss": lambda lab, setting, a, b: {
        "divergence": by_activation(lab, setting),
        **by_loss(lab, setting),
    },
    **{f"w2, {kind}": lambda lab, setting, a, b: {} for kind in (REPAIRED, *BENT)},
    "activations, repaired": lambda lab, setting, a, b: {"divergence": by_activation(lab, setting)},
}


def path_after(lab: Lab, setting: Setting, a: Posterior, b: Posterior, objective: str, steps: int = 2000):
    """The path to a posterior that an objective has aligned (``"none"`` leaves it alone), and the W2 distance to it."""
    end, symmetry = b, lab.symmetry(setting)
    if objective in GAUGES:
        found = pyro_align.align(*(gauged(q, GAUGES[objective]) for q in (a, b)), symmetry)
        end = b.permute(found.permutation)
    elif objective != "none":
        end = pyro_align.align(a, b, symmetry, **OBJECTIVES[objective](lab, setting, a, b)).posterior
    return path_between(lab, setting, a, end, objective, steps), a.distance(end)


def path_between(lab: Lab, setting: Setting, a: Posterior, b: Posterior, objective: str, steps: int):
    """The path that an objective's name asks for: straight, repaired, or trained on the ELBO of the training data."""
    way, data, model = objective.split(", ", 1)[-1], lab.data(setting.data), lab.model(setting)
    if way in BENT:
        kind, share = BENT[way]
        everything, temperature = (data.x, data.y, len(data.x)), share * setting.recipe.temperature
        return pyro_align.learn_path(
            model,
            a,
            b,
            *everything,
            kind=kind,
            max_steps=steps,
            batch_size=min(256, len(data.x)),
            temperature=temperature,
        )
    path = pyro_align.displacement(a, b)
    return pyro_align.repair(model, path, data.x[:500], data.y[:500]) if way == REPAIRED else path


def main(argv: Sequence[str] | None = None) -> pd.DataFrame:
    """Runs the study with command line options."""
    made = runner.parser(__doc__.splitlines()[0], seeds=(0, 1))
    made.add_argument("--data", default="digits", help="data set")
    made.add_argument("--hidden", nargs="+", default=["512-512", "512-512-512"], help="hidden layers, joined by dashes")
    made.add_argument("--temperature", type=float, default=1.0, help="weight of the KL")
    made.add_argument("--prior", default="fan-in", help="fan-in or a standard deviation")
    made.add_argument("--epochs", type=int, default=300, help="passes over the data in each fit")
    made.add_argument("--recipe", choices=RECIPES, default="plain", help="how posteriors are fitted")
    made.add_argument("--objectives", nargs="+", help="those to compare; all if left out")
    made.add_argument("--path-steps", type=int, default=2000, help="steps in training a bent path")
    options = runner.read(made, argv)
    grid, limit = Grid(), None
    if options.quick:
        options.hidden, options.epochs, options.path_steps = ["8-8"], 3, 3
        grid, limit = Grid(3, 2, train=100), 200
    lab = Lab(options, grid, limit)

    def compute(data, hidden, prior, temperature, recipe, epochs, objective, seed_a, seed_b):
        fitted = replace(RECIPES[recipe], epochs=epochs, temperature=temperature)
        setting = Setting(data, tuple(map(int, hidden.split("-"))), prior=prior, recipe=fitted)
        a, b = (lab.fit(setting, seed).posterior for seed in (seed_a, seed_b))
        active = "/".join(map(str, lab.active(setting, a)))
        path, distance = path_after(lab, setting, a, b, objective, options.path_steps)
        common = {"distance": distance, "active": active, "retained": retained(lab, setting, path)}
        return rows(lab.barrier(setting, path), **common)

    cells = [
        dict(zip(KEY, (*setting, objective, *pair), strict=True))
        for pair in runner.pairs(options.seeds)
        for hidden in options.hidden
        for setting in [(options.data, hidden, options.prior, options.temperature, options.recipe, options.epochs)]
        for objective in ("none", *OBJECTIVES)
        if options.objectives is None or objective in options.objectives
    ]
    frame = runner.run(runner.Table(options.out / "objectives.csv", KEY), cells, compute)
    runner.write_table(summary(frame), options.out / "objectives_table.md")
    draw(frame, options.out / "objectives.png")
    return frame


def retained(lab: Lab, setting: Setting, path) -> float:
    """Spread of the logits over data at the midpoint over that at the endpoints: below 1 where activations collapse.

    The spread is the standard deviation over data of the posterior mean of the logits (Jordan et al. 2023 call its loss
    variance collapse).
    """
    data, model = lab.data(setting.data), lab.model(setting)
    x = data.x[:500]

    def spread(tau: float) -> float:
        posterior = path.posterior(tau)
        values = posterior.push(posterior.noise(8, generator=0))
        with torch.no_grad():
            logits = [
                pyro_align.model.density.Density(model, (x, data.y[:500])).trace({k: v[s] for k, v in values.items()})
                for s in range(8)
            ]
        mean = torch.stack([trace.nodes["y"]["fn"].logits for trace in logits]).mean(0)
        return float((mean - mean.mean(-1, keepdim=True)).std(0).mean())

    return spread(0.5) / (0.5 * (spread(0.0) + spread(1.0)))


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per network and objective: barriers, and how much of the logits' standard deviation is left."""
    made = []
    by = ["hidden", "temperature", "recipe", "objective"]
    for (hidden, temperature, recipe, objective), part in ordered(frame).groupby(by, sort=False):

        def barrier(evaluation, loss, part=part):
            chosen = part[(part["evaluation"] == evaluation) & (part["loss"] == loss)]
            return figures.spread(chosen["barrier"], 3)

        made.append(
            {
                "network": f"{hidden}, T = {temperature:g}, {recipe}",
                "objective": objective,
                "predictive NLL, train": barrier("train", "predictive_nll"),
                "predictive NLL, test": barrier("test", "predictive_nll"),
                "negative ELBO": barrier("train", "negative_elbo"),
                "logit spread kept": figures.spread(part.drop_duplicates(["seed_a", "seed_b"])["retained"], 2),
            }
        )
    return pd.DataFrame(made)


def by_objective(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per objective, one column per network that three or more have aligned: predictive-NLL test barriers.

    Args:
        frame: Results of a study, with columns ``network`` and ``alignment``.
    """
    frame = frame[(frame["evaluation"] == "test") & (frame["loss"] == "predictive_nll")]
    several = frame.groupby("network", sort=False)["alignment"].nunique() > 3

    def cell(network: str, alignment: str) -> str:
        part = frame[(frame["network"] == network) & (frame["alignment"] == alignment)]
        return f"{figures.spread(part['barrier'], 3)} ± {part['se'].max():.3f}" if len(part) else ""

    made = []
    for name in ("none", *OBJECTIVES):
        cells = {network: cell(network, name) for network in several.index[several]}
        made.append({"objective": figures.LABELS["none"] if name == "none" else name, **cells})
    return pd.DataFrame([row for row in made if any(list(row.values())[1:])])


def ordered(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows by setting, and within it by objective, whatever ran first."""
    rank = {name: i for i, name in enumerate(("none", *OBJECTIVES))}
    by = ["hidden", "temperature", "recipe"]
    return (
        frame.assign(rank=frame["objective"].map(rank)).sort_values([*by, "rank"], kind="stable").drop(columns="rank")
    )


def levels(part: pd.DataFrame) -> str:
    """Lowest and highest predictive NLL at the endpoints, training data: a barrier says little without it."""
    chosen = part[(part["evaluation"] == "train") & (part["loss"] == "predictive_nll")]
    return f"{chosen[['start', 'end']].min().min():.2f}-{chosen[['start', 'end']].max().max():.2f}"


def draw(frame: pd.DataFrame, path) -> None:
    """Predictive-NLL barrier on training data by objective; dots are seed pairs."""
    frame = ordered(frame[(frame["evaluation"] == "train") & (frame["loss"] == "predictive_nll")])
    frame = frame.assign(panel=frame["hidden"] + frame["temperature"].map(", T = {:g}, ".format) + frame["recipe"])
    shapes = list(dict.fromkeys(frame["panel"]))
    names = [name for name in ("none", *OBJECTIVES) if name in set(frame["objective"])]
    figure, axes = figures.pyplot().subplots(
        1, len(shapes), figsize=(3.6 * len(shapes), 0.9 + 0.2 * len(names)), squeeze=False, sharey=True, sharex=True
    )
    for ax, shape in zip(axes.flat, shapes, strict=True):
        part = frame[frame["panel"] == shape]
        for i, name in enumerate(names):
            values = figures.floor(part.loc[part["objective"] == name, "barrier"])
            color, marker = (figures.COLOURS[0], "o") if name == "none" else (figures.COLOURS[1], "s")
            ax.plot(values, [i] * len(values), marker, color=color)
        ax.set_xscale("log")
        ax.grid(True, axis="x", alpha=0.3)
        ax.set_yticks(range(len(names)), [name if name != "none" else "not aligned" for name in names], fontsize=8)
        ax.set_xlabel(figures.LABELS["predictive_nll"], fontsize=9)
        ax.set_title(shape, fontsize=10)
    axes.flat[0].invert_yaxis()
    figures.save(figure, path)


if __name__ == "__main__":
    main()
