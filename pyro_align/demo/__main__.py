"""``python -m pyro_align.demo``: two posteriors of one Bayesian network, before and after alignment."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyro_align.alignment.pair import align
from pyro_align.barrier import evaluate_barrier
from pyro_align.demo.network import bayesian_mlp
from pyro_align.demo.training import Recipe, fit
from pyro_align.diagnostics import effective_width
from pyro_align.discovery import find_symmetry
from pyro_align.paths.geodesic import displacement
from pyro_align.reporting.tables import text_table

if TYPE_CHECKING:
    from pyro_align.barrier.result import Barrier

LOSSES = ("expected_nll", "predictive_nll", "negative_elbo", "error_rate")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the demo with command line options."""
    options = parse(argv)
    torch.set_num_threads(options.threads)
    out = Path(options.out)
    data = load_digits(options.device)
    model = bayesian_mlp([64, *options.hidden, 10], prior_scale=options.prior_scale)
    recipe = Recipe(epochs=options.epochs, temperature=options.temperature)
    print(_setting(options, data), flush=True)

    started = time.monotonic()
    guides = [
        fit(model, data.x, data.y, seed=options.seed + seed, recipe=recipe, label=f"fit, seed {options.seed + seed}")
        for seed in options.seeds
    ]
    symmetry = find_symmetry(model, data.x[:64], data.y[:64])
    print(f"\n{symmetry}\n")

    alignment = align(*guides, symmetry, seed=options.seed)
    print(_widths(guides, symmetry, model, data), "\n")
    print(f"W2 distance: {alignment.distance_before:.4f} before, {alignment.distance:.4f} after alignment\n")

    barriers = {}
    for name, second in {"before": guides[1], "after": alignment.guide}.items():
        print(f"evaluating the path, {name} alignment", file=sys.stderr)
        barriers[name] = evaluate_barrier(
            model,
            displacement(guides[0], second),
            evaluation={
                "train": (data.x, data.y),
                "test": (data.x_test, data.y_test, len(data.x)),  # stands for the data the posterior was fitted to
            },
            taus=options.num_taus,
            num_samples=options.num_samples,
            temperature=options.temperature,
            seed=options.seed,
            progress=True,
        )
    print(barrier_table(barriers), "\n")
    print(_accuracies(barriers))
    write(barriers, out)
    print(f"\nwrote {out / 'barrier.nc'} (arviz.from_netcdf opens it) and {out / 'barrier.png'}")
    print(f"took {time.monotonic() - started:.0f} s", file=sys.stderr)


# -- options -----------------------------------------------------------------------------------------------------------


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads and checks the command line; a bad option ends the program with one sentence."""
    parser = argparse.ArgumentParser(
        prog="python -m pyro_align.demo",
        description="Fits two Bayesian networks to digits, aligns them and measures the barrier between them.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--hidden", type=int, nargs="+", default=[128, 128], metavar="UNITS", help="hidden layers")
    parser.add_argument("--seeds", type=int, nargs=2, default=[0, 1], help="seeds of the two fits")
    parser.add_argument(
        "--prior-scale", type=_prior_scale, default="fan-in", help="sd of every prior, or fan-in: sqrt(2 / fan_in)"
    )
    parser.add_argument("--temperature", type=float, default=0.01, help="weight of the KL in the ELBO; 1 is Bayes")
    parser.add_argument("--epochs", type=int, default=500, help="passes over the data in each fit")
    parser.add_argument("--num-samples", type=int, default=32, help="posterior draws at each tau")
    parser.add_argument("--num-taus", type=int, default=25, help="points on the path")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--seed", type=int, default=0, help="added to both seeds, and the seed of everything else")
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="CPU threads; part of what fixes the last digits, and slow where others want the cores too",
    )
    parser.add_argument("--out", default="demo-out", help="folder for the netCDF file and the figure")
    options = parser.parse_args(argv)
    for name, least in {"epochs": 1, "num_samples": 2, "num_taus": 3, "threads": 1}.items():
        if getattr(options, name) < least:
            parser.error(f"--{name.replace('_', '-')}: expected at least {least}, got {getattr(options, name)}")
    if any(units < 1 for units in options.hidden):
        parser.error(f"--hidden: expected positive layer widths, got {options.hidden}")
    if options.seeds[0] == options.seeds[1]:
        parser.error(f"--seeds: expected two different seeds, got {options.seeds}: the same fit twice has no barrier")
    if min(options.seeds) + options.seed < 0:
        parser.error("--seeds: a seed may not be negative")
    if not (math.isfinite(options.temperature) and options.temperature > 0):
        parser.error(f"--temperature: expected a positive number, got {options.temperature}")
    _check_device(parser, options.device)
    _check_out(parser, Path(options.out))
    return options


def _prior_scale(text: str) -> float | str:
    if text == "fan-in":
        return text
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"expected fan-in or a positive number, got {text!r}")
    return value


def _check_device(parser: argparse.ArgumentParser, name: str) -> None:
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        parser.error(f"--device: {name!r} cannot be used here: {str(error).splitlines()[0]}")


def _check_out(parser: argparse.ArgumentParser, out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        parser.error(f"--out: cannot write to {str(out)!r}: {error.strerror}")


# -- data --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Data:
    """Digits: pixels in [0, 1], ``(data, 64)``, and classes ``(data,)``."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor


def load_digits(device: str = "cpu") -> Data:
    """The 1797 8x8 digits that scikit-learn bundles, 1437 to train on and 360 held out (a fixed split)."""
    from sklearn.datasets import load_digits as bundled

    pixels, classes = bundled(return_X_y=True)
    x = torch.tensor(pixels / 16.0, dtype=torch.float32, device=device)
    y = torch.tensor(classes, device=device)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).to(device)
    train, test = order[:1437], order[1437:]
    return Data(x[train], y[train], x[test], y[test])


# -- what is printed ---------------------------------------------------------------------------------------------------


def _setting(options: argparse.Namespace, data: Data) -> str:
    prior = "N(0, 2 / fan_in)" if options.prior_scale == "fan-in" else f"N(0, {options.prior_scale:g}^2)"
    layers = "-".join(map(str, [64, *options.hidden, 10]))
    lines = [
        f"Bayesian MLP {layers}, ReLU, on {len(data.x)} digits ({len(data.x_test)} held out)",
        f"prior: {prior} on every weight and bias; KL temperature: {options.temperature:g}",
    ]
    if options.temperature != 1:
        lines.append(
            "A temperature below 1 is a cold posterior: the KL counts less than Bayes' rule asks. It is the default\n"
            "because at temperature 1 a mean-field posterior of this network leaves most hidden units at the prior;\n"
            "see it with --temperature 1."
        )
    return "\n".join(lines)


def _widths(guides, symmetry, model, data: Data) -> str:
    widths = [effective_width(model, guide, symmetry, data.x[:64], data.y[:64]) for guide in guides]
    rows = [
        [atom, str(kl.numel()), *(str(width.active[atom]) for width in widths)] for atom, kl in widths[0].kl.items()
    ]
    head = ["effective width", "units", "first posterior", "second posterior"]
    note = f"(units whose KL from the prior exceeds {widths[0].threshold:g} nats)"
    return text_table(head, rows, right=(1, 2, 3)) + "\n" + note


def barrier_table(barriers: Mapping[str, Barrier]) -> str:
    """Rows before and after, one column per loss: the barrier, its 95% interval, and the tau where it is."""
    first = next(iter(barriers.values()))
    losses = [loss for loss in LOSSES if loss in first.losses]
    rows = []
    for evaluation in first.evaluations:
        for name, barrier in barriers.items():
            curves = [barrier[evaluation, loss] for loss in losses]
            rows.append([evaluation, name, *(f"{c.text()} @ {c.barrier.tau:.2f}" for c in curves)])
    head = ["barrier", "alignment", *(first[first.evaluations[0], loss].label.title for loss in losses)]
    return text_table(head, rows) + "\n(nats per datum, error rate as a fraction; [95% interval] @ tau)"


def _accuracies(barriers) -> str:
    curve = barriers["before"]["test", "error_rate"]
    return "test accuracy: " + ", ".join(
        f"{100 * (1 - float(curve.value[i])):.1f}% ({name} posterior)" for name, i in {"first": 0, "second": -1}.items()
    )


# -- what is written ---------------------------------------------------------------------------------------------------


def write(barriers: Mapping[str, Barrier], out: Path) -> None:
    """One netCDF file and one figure."""
    import matplotlib

    matplotlib.use("Agg")
    from pyro_align.plots import plot_before_after
    from pyro_align.reporting.arviz import to_arviz

    to_arviz(barriers).to_netcdf(str(out / "barrier.nc"))
    axes = plot_before_after(barriers, losses=LOSSES)
    axes.flat[0].figure.savefig(out / "barrier.png", dpi=150, bbox_inches="tight")


if __name__ == "__main__":
    main()
