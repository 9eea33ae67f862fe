"""R-hat of a Bayesian network's weights before and after relabeling, on a UCI regression, beside that of its function.

python -m studies.rhat --data-dir FOLDER --out OUT

Seeds are chains of NUTS, one after the other, each kept in a file of its own. With ``--together`` one run of NUTS
samples as many independent copies of the network as there are seeds, in about the time of one chain.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS
from torch import Tensor

from pyro_align import Symmetry, align_draws, find_symmetry
from pyro_align.draws import AlignedDraws
from pyro_align.draws.diagnostics import rhat_and_ess
from studies import figures, runner
from studies.data import ENVIRONMENT

KEY = ("data", "units", "noise", "chains", "relabeling")
RELABELINGS = {
    "none": ("plain", {}),
    "permutations": ("plain", {}),
    "signed permutations": ("signed", {}),
    "signed permutations, barycenter": ("signed", {"method": "barycenter"}),
}
SITES = ("w1", "b1", "w2", "b2")
QUANTITIES = (*SITES, "function", "log joint")
FLOOR = 1e-4  # R-hat - 1 below this is drawn at this


def load_table(name: str, folder: str | None) -> tuple[Tensor, Tensor]:
    """Inputs ``(data, inputs)`` and target ``(data,)`` of ``FOLDER/uci/NAME.txt``, each column to mean 0 and sd 1.

    The target is the last column except for ``energy``, where it is the heating load, the ninth.
    """
    if folder is None:
        raise FileNotFoundError(f"{name} needs --data-dir or {ENVIRONMENT}")
    table = np.loadtxt(Path(folder) / "uci" / f"{name}.txt")
    table = torch.from_numpy((table - table.mean(0)) / table.std(0))
    target = 8 if name == "energy" else table.shape[1] - 1
    return table[:, :target].contiguous(), table[:, target].contiguous()


def output(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """The network's values ``(*batch, data)``, for weights ``(*batch, *site_shape)``."""
    hidden = torch.tanh(x @ weights["w1"].mT + weights["b1"].unsqueeze(-2))
    return (hidden @ weights["w2"].unsqueeze(-1)).squeeze(-1) + weights["b2"].unsqueeze(-1)


def network(x: Tensor, y: Tensor, units: int, noise: float, copies: tuple[int, ...] = ()) -> None:
    """One hidden layer of tanh units, standard normal weights, known noise; target and inputs are standardized.

    Independent copies have a joint posterior that is the product of theirs: each copy's draws are a chain.
    """
    shapes = {"w1": (units, x.shape[1]), "b1": (units,), "w2": (units,), "b2": ()}
    shapes = {k: (*copies, *s) for k, s in shapes.items()}
    weights = {k: pyro.sample(k, dist.Normal(0.0, 1.0).expand(s).to_event(len(s))) for k, s in shapes.items()}
    mean = output(weights, x)
    pyro.sample("y", dist.Normal(mean, noise).to_event(mean.dim()), obs=y.expand(mean.shape))


def symmetries(args: tuple) -> dict[str, Symmetry]:
    """Renumbering units; and changing a unit's sign with it, as tanh is odd. Both are found in the model."""
    return {name: find_symmetry(network, *args, signs=name == "signed") for name in ("plain", "signed")}


def sample(args: tuple, seeds: list[int], options: argparse.Namespace) -> dict[str, Tensor]:
    """One run of NUTS: draws ``(seeds, draws, *site_shape)`` and their divergences ``(seeds, draws)``."""
    pyro.set_rng_seed(seeds[0])
    copies = (len(seeds),) if len(seeds) > 1 else ()
    kernel = NUTS(network, jit_compile=True, ignore_jit_warnings=True, max_tree_depth=options.depth)
    sampler = MCMC(kernel, num_samples=options.draws, warmup_steps=options.warmup, disable_progbar=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns of constants
        sampler.run(*args, copies)
    divergent = torch.zeros(len(seeds), options.draws, dtype=torch.bool)
    divergent[:, list(sampler.diagnostics()["divergences"]["chain 0"])] = True
    draws = {k: v.transpose(0, 1) if copies else v.unsqueeze(0) for k, v in sampler.get_samples().items()}
    return {**draws, "divergent": divergent}


def kept(args: tuple, seeds: list[int], name: dict, options: argparse.Namespace) -> dict[str, Tensor]:
    """As :func:`sample`, from its file where there is one."""
    run = {**name, "warmup": options.warmup, "draws": options.draws, "depth": options.depth}
    run["seed"] = "_".join(map(str, seeds))
    path = Path(options.fits) / ("rhat-" + "-".join(f"{k}{v}" for k, v in run.items()) + ".pt")
    if path.exists():
        return torch.load(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draws = sample(args, seeds, options)
    torch.save(draws, path)
    print(f"sampled {json.dumps(run)}", flush=True)
    return draws


def entries(quantity: str, values) -> list[runner.Row]:
    """R-hat and effective sample size of each entry of ``(chain, draw, *shape)``."""
    values = np.asarray(values).reshape(*values.shape[:2], -1)
    found = rhat_and_ess({i: values[..., i] for i in range(values.shape[-1])})
    return [{"quantity": quantity, "entry": i, "rhat": r, "ess": n, "share": np.nan} for i, (r, n) in found.items()]


def measure(draws: dict[str, Tensor], aligned: AlignedDraws | None, args: tuple, at: Tensor, log_joint) -> list:
    """One row per entry of each site, of the function at the inputs ``at``, and per number of transpositions."""
    weights = draws if aligned is None else aligned.draws
    rows = [row for site in SITES for row in entries(site, weights[site])]
    rows += entries("function", output(weights, at))
    rows += entries("log joint", log_joint)
    if aligned is not None:
        (swaps,) = aligned.transpositions.values()
        counts = np.bincount(swaps.ravel(), minlength=args[2])
        rows += [
            {"quantity": "transpositions", "entry": k, "rhat": np.nan, "ess": np.nan, "share": n / counts.sum()}
            for k, n in enumerate(counts)
        ]
    return rows


def main(argv: Sequence[str] | None = None) -> pd.DataFrame:
    """Runs the study with command line options."""
    made = runner.parser(__doc__.splitlines()[0], seeds=(0, 1, 2, 3))
    made.add_argument("--data", default="yacht", help="yacht, energy, concrete, or another table of that form")
    made.add_argument("--units", type=int, nargs="+", default=[10], help="hidden units")
    made.add_argument("--noise", type=float, nargs="+", default=[0.3], help="known noise, in units of the target's sd")
    made.add_argument("--warmup", type=int, default=300, help="warm-up steps of each chain")
    made.add_argument("--draws", type=int, default=500, help="draws of each chain")
    made.add_argument("--depth", type=int, default=6, help="largest depth of the tree")
    made.add_argument("--together", action="store_true", help="all chains in one run of NUTS")
    options = runner.read(made, argv)
    rows = None
    if options.quick:
        options.units, options.warmup, options.draws, options.depth, rows = [3], 5, 8, 3, 20
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        frame = study(options, rows)
    finally:
        torch.set_default_dtype(default)
    runner.write_table(summary(frame), options.out / "rhat_table.md")
    draw(frame, options.out / "rhat.png")
    return frame


def study(options: argparse.Namespace, rows: int | None) -> pd.DataFrame:
    """All cells; ``rows`` limits the data."""
    x, y = load_table(options.data, options.data_dir)
    x, y = x[:rows], y[:rows]
    at = x[:: max(1, len(x) // 50)]

    def compute(data, units, noise, chains, relabeling):
        args = (x, y, units, noise)
        name = {"data": data, "units": units, "noise": noise}
        seeds = list(map(int, chains.split()))
        runs = [kept(args, s, name, options) for s in ([seeds] if options.together else [[s] for s in seeds])]
        draws = {k: torch.cat([run[k] for run in runs]) for k in runs[0]}
        divergent = draws.pop("divergent")
        which, how = RELABELINGS[relabeling]
        found = align_draws(draws, symmetries(args)[which], model=network, args=args, **how)
        print(f"{relabeling}: {found}; {int(divergent.sum())} divergent", flush=True)
        return measure(draws, None if relabeling == "none" else found, args, at, found.log_joint)

    cells = [
        dict(zip(KEY, (options.data, units, noise, " ".join(map(str, options.seeds)), relabeling), strict=True))
        for units in options.units
        for noise in options.noise
        for relabeling in RELABELINGS
    ]
    return runner.run(runner.Table(options.out / "rhat.csv", KEY), cells, compute)


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Largest R-hat (and smallest effective sample size) of the weights and of what does not depend on labels."""
    made = []
    for relabeling, part in frame.groupby("relabeling", sort=False):
        row = {"relabeling": relabeling}
        for title, quantities in {"weights": ("w1", "b1", "w2"), "b2": ("b2",), "function": ("function",)}.items():
            chosen = part[part["quantity"].isin(quantities)]
            row[title] = f"{chosen['rhat'].max():.3f} ({chosen['ess'].min():.0f})"
        swaps = part[part["quantity"] == "transpositions"]
        row["transpositions per draw"] = f"{(swaps['entry'] * swaps['share']).sum():.2f}" if len(swaps) else "-"
        made.append(row)
    return pd.DataFrame(made)


def draw(frame: pd.DataFrame, path: Path) -> None:
    """Above: R-hat of all weights, sorted, by relabeling, and of the function. Below: transpositions per draw."""
    settings = list(frame.groupby(["data", "units", "noise"], sort=False))
    figure, axes = figures.pyplot().subplots(
        2, len(settings), figsize=(5.0 * len(settings), 5.6), squeeze=False, height_ratios=(3, 2)
    )
    for (above, below), ((data, units, noise), part) in zip(axes.T, settings, strict=True):
        for i, name in enumerate(RELABELINGS):
            one = part[part["relabeling"] == name]
            color = figures.COLOURS[i % len(figures.COLOURS)]
            rhat = np.sort(one.loc[one["quantity"].isin(SITES), "rhat"].dropna())
            label = "weights, as sampled" if name == "none" else f"weights, {name}"
            above.plot(np.linspace(0, 1, len(rhat)), np.maximum(rhat - 1, FLOOR), "-", color=color, label=label)
            swaps = one[one["quantity"] == "transpositions"]
            if name == "signed permutations":
                below.bar(swaps["entry"], swaps["share"], color=color)
        rhat = np.sort(one.loc[one["quantity"] == "function", "rhat"].dropna())
        above.plot(np.linspace(0, 1, len(rhat)), np.maximum(rhat - 1, FLOOR), "k--", label="function values")
        above.set_yscale("log")
        above.set_title(f"{data}, {units} units, noise {noise:g}", fontsize=10)
        above.set_xlabel("share of entries with a smaller one")
        above.set_ylabel("R-hat - 1")
        above.grid(True, axis="y", alpha=0.3)
        below.set_xlabel("transpositions from the reference (signed permutations)")
        below.set_ylabel("share of draws")
    axes[0, 0].legend(fontsize=7)
    figure.tight_layout()
    figures.save(figure, path)


if __name__ == "__main__":
    main()
