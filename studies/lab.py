"""One network on one data set: its model, its fits, and the barrier between two of them."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache

import pyro_align
from pyro_align.demo.network import bayesian_mlp
from pyro_align.diagnostics import effective_width
from pyro_align.guides import MeanFieldNormal, Posterior
from studies.data import DataSet, load
from studies.networks import ard_mlp, bayesian_lenet, bayesian_resnet, bayesian_transformer
from studies.runner import Row
from studies.training import Fit, Fits, Recipe


@dataclass(frozen=True)
class Setting:
    """A network, its prior, and how it is fitted.

    Attributes:
        data: Name of the data set.
        hidden: Widths of the hidden layers; of a ResNet, of its three stages; of a transformer, its width, heads,
            blocks, and hidden units.
        activation: ``"relu"`` or ``"tanh"``.
        prior: ``"fan-in"``, ``"ard"``, or the standard deviation of every prior, as text.
        recipe: Optimizer settings, temperature and guide.
        network: ``"mlp"``; ``"lenet"``, or a ResNet-20 with the normalization ``"resnet20-group"``,
            ``"resnet20-plain"`` or ``"resnet20-frn"`` (ReLU, fan-in priors); ``"transformer"``.
    """

    data: str
    hidden: tuple[int, ...]
    activation: str = "relu"
    prior: str = "fan-in"
    recipe: Recipe = field(default_factory=Recipe)
    network: str = "mlp"

    @property
    def name(self) -> dict[str, object]:
        """What names a fit beside its recipe, seed and data."""
        made = {"data": self.data, "hidden": list(self.hidden), "activation": self.activation, "prior": self.prior}
        return made if self.network == "mlp" else {**made, "network": self.network}


@dataclass(frozen=True)
class Grid:
    """Where and how finely a path is evaluated.

    Attributes:
        taus: Points on the path.
        draws: Posterior draws at each.
        train: Number of training data evaluated; 0 for none.
        test: Number of test data evaluated; None for all.
    """

    taus: int = 11
    draws: int = 16
    train: int = 1437
    test: int | None = None


def make_model(setting: Setting, inputs: int, classes: int) -> Callable:
    """The Pyro model of a setting, for images that are ``inputs`` numbers, flat."""
    if setting.network == "lenet":
        return bayesian_lenet(setting.hidden, classes=classes, side=math.isqrt(inputs))
    kind, _, norm = setting.network.partition("-")
    if kind == "resnet20":
        return bayesian_resnet(setting.hidden, norm=norm, classes=classes, side=math.isqrt(inputs // 3))
    if setting.network == "transformer":
        width, heads, layers, hidden = setting.hidden
        shape = {"heads": heads, "layers": layers, "hidden": hidden, "side": math.isqrt(inputs)}
        return bayesian_transformer(width, **shape, classes=classes)
    sizes = [inputs, *setting.hidden, classes]
    if setting.prior == "ard":
        return ard_mlp(sizes, activation=setting.activation)
    prior = setting.prior if setting.prior == "fan-in" else float(setting.prior)
    return bayesian_mlp(sizes, prior_scale=prior, activation=setting.activation)


@lru_cache(maxsize=2)
def loaded(name: str, folder: str | None, limit: int | None, pool: int, device: str) -> DataSet:
    """Flat images, averaged over squares of ``pool`` pixels a side; decoded once, whoever asks."""
    return load(name, folder, limit=limit).pooled(pool).flat().to(device)


class Lab:
    """Loads, fits and measures, each thing once.

    Args:
        options: Options of a study, see :func:`studies.runner.parser`.
        grid: Where paths are evaluated.
        limit: Greatest number of training data to fit to; None for all.
        pool: Side of the squares of pixels over which images are averaged; 1 leaves them as they are.
    """

    def __init__(self, options: argparse.Namespace, grid: Grid, limit: int | None = None, pool: int = 1):
        self.options = options
        self.grid = grid
        self.limit = limit
        self.pool = pool
        self.fits = Fits(options.fits, options.device)
        self.data = cache(self._data)
        self.symmetry = cache(self._symmetry)

    def _data(self, name: str) -> DataSet:
        return loaded(name, self.options.data_dir, self.limit, self.pool, self.options.device)

    def model(self, setting: Setting) -> Callable:
        """The Pyro model of a setting."""
        data = self.data(setting.data)
        return make_model(setting, data.x.shape[1], data.classes)

    def fit(self, setting: Setting, seed: int) -> Fit:
        """The posterior of a setting and seed."""
        data = self.data(setting.data)
        what = setting.name if self.pool == 1 else {**setting.name, "pool": self.pool}
        return self.fits(self.model(setting), data.x, data.y, seed=seed, recipe=setting.recipe, what=what)

    def fit_together(self, settings: Sequence[Setting], seeds: Sequence[int], seconds: float) -> int:
        """Fits a network by several recipes from several seeds side by side; settings may differ in the recipe only.

        Returns:
            The number of passes for which there was time, see :meth:`studies.training.Fits.together`.
        """
        data, first = self.data(settings[0].data), settings[0]
        what = first.name if self.pool == 1 else {**first.name, "pool": self.pool}
        jobs = [(seed, setting.recipe) for setting in settings for seed in seeds]
        return self.fits.together(self.model(first), data.x, data.y, jobs=jobs, what=what, seconds=seconds)

    def _symmetry(self, setting: Setting) -> pyro_align.Symmetry:
        data = self.data(setting.data)
        return pyro_align.find_symmetry(self.model(setting), data.x[:32], data.y[:32])

    def evaluation(self, setting: Setting) -> dict[str, tuple]:
        """The data a path is evaluated on; the third argument is the number of data that the fit saw."""
        data, grid = self.data(setting.data), self.grid
        parts = {
            "train": (data.x[: grid.train], data.y[: grid.train], len(data.x)),
            "test": (data.x_test[: grid.test], data.y_test[: grid.test], len(data.x)),
        }
        return {name: part for name, part in parts.items() if len(part[0])}

    def barrier(self, setting: Setting, path, *, seed: int = 0) -> pyro_align.barrier.Barrier:
        """The losses along a path."""
        draws = 2 if setting.recipe.guide == "delta" else self.grid.draws  # a point mass has no spread
        return pyro_align.evaluate_barrier(
            self.model(setting),
            path,
            evaluation=self.evaluation(setting),
            taus=self.grid.taus,
            num_samples=draws,
            temperature=setting.recipe.temperature,
            seed=seed,
        )

    def active(self, setting: Setting, posterior: Posterior) -> list[int]:
        """Units of each hidden layer that are active (KL above 5 nats); none for a point estimate."""
        if not isinstance(posterior, MeanFieldNormal):
            return []
        data = self.data(setting.data)
        width = effective_width(self.model(setting), posterior, self.symmetry(setting), data.x[:2], data.y[:2])
        return list(width.active.values())


def rows(barrier: pyro_align.barrier.Barrier, losses: Sequence[str] | None = None, **columns: object) -> list[Row]:
    """One row per data set and loss: barrier, its standard error and tau, and the loss at both endpoints."""
    made = []
    for (evaluation, loss), curve in barrier.curves.items():
        if losses is not None and loss not in losses:
            continue
        peak = curve.barrier
        ends = {"start": float(curve.value[0]), "end": float(curve.value[-1])}
        made.append(
            {
                **columns,
                "evaluation": evaluation,
                "loss": loss,
                "barrier": peak.height,
                "se": peak.se,
                "tau": peak.tau,
                **ends,
            }
        )
    return made


def pair_of_fits(lab: Lab, setting: Setting, seed_a: int, seed_b: int) -> tuple[Posterior, Posterior, Row]:
    """The posteriors of two seeds, and what there is to say of them: seconds of the slower fit, active units."""
    fits = [lab.fit(setting, seed) for seed in (seed_a, seed_b)]
    a, b = (fit.posterior for fit in fits)
    active = "/".join(map(str, lab.active(setting, a)))
    return a, b, {"fit_seconds": max(fit.seconds for fit in fits), "active": active}


def before_and_after(lab: Lab, setting: Setting, seed_a: int, seed_b: int, **options: object) -> list[Row]:
    """Barriers between two fits before alignment and after alignment, with distances and effective widths."""
    a, b, common = pair_of_fits(lab, setting, seed_a, seed_b)
    alignment = pyro_align.align(a, b, lab.symmetry(setting), **options)
    made = []
    for name, end, distance in (
        ("none", b, alignment.distance_before),
        (alignment.divergence, alignment.posterior, alignment.distance),
    ):
        barrier = lab.barrier(setting, pyro_align.displacement(a, end))
        made += rows(barrier, alignment=name, distance=distance, **common)
    return made
