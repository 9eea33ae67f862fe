"""Fitting posteriors by SVI, and keeping them: a fit that a folder holds already is loaded."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pyro
import torch
from pyro.infer import SVI
from pyro.infer.autoguide import AutoDelta, AutoNormal
from torch import Tensor

import pyro_align
from pyro_align.demo.network import he_initialization
from pyro_align.guides import Posterior
from studies.elbo import ClosedFormELBO


@dataclass(frozen=True)
class Recipe:
    """How a posterior is fitted.

    Attributes:
        epochs: Passes over the data.
        batch_size: Data per step.
        learning_rate: Step of Adam for locations, at the end decayed exponentially to a hundredth.
        scale_rate: The same for the scales' parameters.
        temperature: Weight of the KL in the ELBO; 1 is Bayes. For points, the weight of the log prior.
        init_scale: Initial standard deviation of every weight.
        local: Whether to use local reparameterisation.
        guide: ``"normal"`` for a mean-field posterior, ``"delta"`` for a point estimate.
        gain: Factor on the He-normal initial locations. What a fit keeps of its random start differs between seeds,
            and no relabeling undoes it; below 1 there is less of it.
        decay: Share of the steps, the last ones, over which the step sizes decay.
        warmup: Share of the steps, the first ones, over which the KL's weight grows linearly to the temperature. At
            temperature 1 the scales of deep networks otherwise reach the prior before the locations have learned.
    """

    epochs: int = 300
    batch_size: int = 256
    learning_rate: float = 0.02
    scale_rate: float = 0.02
    temperature: float = 0.01
    init_scale: float = 0.01
    local: bool = False
    guide: str = "normal"
    gain: float = 1.0
    decay: float = 1.0
    warmup: float = 0.0

    @property
    def name(self) -> dict[str, object]:
        """What names a fit; later fields only where they are not at their defaults, so that old fits are found."""
        added = {"gain", "decay", "warmup"}
        return {k: v for k, v in asdict(self).items() if k not in added or v != getattr(Recipe, k)}


def make_guide(model: Callable, recipe: Recipe):
    """An untrained guide with He-normal locations times the recipe's gain."""

    def start(site: dict) -> Tensor:
        return recipe.gain * he_initialization(site)

    if recipe.guide == "delta":
        return AutoDelta(model, init_loc_fn=start)
    return AutoNormal(model, init_loc_fn=start, init_scale=recipe.init_scale)


def fit(
    model: Callable,
    x: Tensor,
    y: Tensor,
    *,
    seed: int,
    recipe: Recipe,
    start: Posterior | None = None,
    label: str = "fit",
) -> Posterior:
    """Fits a guide and returns what it holds.

    Args:
        model: A model ``(x, y, size)``.
        x: Inputs ``(data, ...)``.
        y: Classes ``(data,)``.
        seed: Seed of initialization, batches and gradient noise.
        recipe: Optimizer settings.
        start: A posterior to start from instead.
        label: What to call the fit in the progress lines on standard error.
    """
    steps, step = recipe.epochs * -(-len(x) // recipe.batch_size), 0
    constant = round((1 - recipe.decay) * steps)
    rates = {"locs": recipe.learning_rate, "scales": recipe.scale_rate}

    def options(name: str) -> dict:
        rate = next((r for key, r in rates.items() if f"{key}." in name), recipe.learning_rate)
        return {"lr": rate, "fused": True}

    optimizer = pyro.optim.ExponentialLR(
        {"optimizer": torch.optim.Adam, "optim_args": options, "gamma": 0.01 ** (1 / max(1, steps - constant))}
    )
    elbo = ClosedFormELBO(temperature=recipe.temperature, local=recipe.local)
    started, reported = time.monotonic(), time.monotonic()
    with pyro.get_param_store().scope(), pyro.validation_enabled(False):
        pyro.set_rng_seed(seed)
        guide = make_guide(model, recipe) if start is None else start.to_guide()
        svi = SVI(model, guide, optimizer, **elbo.for_svi())
        for epoch in range(recipe.epochs):
            total = 0.0
            for batch in torch.randperm(len(x), device=x.device).split(recipe.batch_size):
                elbo.temperature = recipe.temperature * min(1.0, (step + 1) / max(1.0, recipe.warmup * steps))
                total += svi.step(x[batch], y[batch], len(x)) * len(batch) / len(x)
                step += 1
                if step > constant:
                    optimizer.step()
            if time.monotonic() - reported > 15 or epoch == recipe.epochs - 1:
                reported = time.monotonic()
                seconds = reported - started
                loss = total / len(x)
                print(
                    f"{label}: epoch {epoch + 1}, {loss:.4f} nats/datum, {seconds:.0f} s", file=sys.stderr, flush=True
                )
        return pyro_align.guides.read_guide(guide)


@dataclass(frozen=True)
class Fit:
    """A fitted posterior and the seconds that the fit took."""

    posterior: Posterior
    seconds: float


class Fits:
    """A folder of fits; each is made once.

    Args:
        folder: Where the fits lie.
        device: Where they are fitted and loaded.
    """

    def __init__(self, folder: Path, device: str = "cpu"):
        self.folder = Path(folder)
        self.device = device

    def __call__(
        self, model: Callable, x: Tensor, y: Tensor, *, seed: int, recipe: Recipe, what: dict[str, object]
    ) -> Fit:
        """The fit of a model to data, made now unless it lies in the folder.

        Args:
            model: The model.
            x: Inputs.
            y: Classes.
            seed: Seed of the fit.
            recipe: Optimizer settings.
            what: Everything else that names the fit (data set, architecture, prior): JSON values.
        """
        name = json.dumps({**what, **recipe.name, "seed": seed, "size": len(x)}, sort_keys=True)
        path = self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.pt"
        if not path.exists():
            started = time.monotonic()
            label = " ".join(str(v) for v in what.values()) + f" T={recipe.temperature:g} seed {seed}"
            posterior = fit(model, x, y, seed=seed, recipe=recipe, label=label)
            self._save(path, name, posterior, time.monotonic() - started)
        return self._load(path, model, x, y, recipe)

    def _save(self, path: Path, name: str, posterior: Posterior, seconds: float) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        held = {"name": name, "seconds": seconds, "tensors": tensors_of(posterior)}
        torch.save(held, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)  # a fit cut short leaves no broken file

    def _load(self, path: Path, model: Callable, x: Tensor, y: Tensor, recipe: Recipe) -> Fit:
        held = torch.load(path, map_location=self.device, weights_only=True)
        with pyro.get_param_store().scope():
            guide = make_guide(model, recipe)
            guide(x[:2], y[:2], 2)
            blank = pyro_align.guides.read_guide(guide)
        return Fit(with_tensors(blank, held["tensors"]), held["seconds"])


def tensors_of(posterior: Posterior) -> dict[str, dict[str, Tensor]]:
    """Locations, and scales where there are any, by site."""
    if hasattr(posterior, "scales"):
        marginals = {site: posterior.marginal(site) for site in posterior.sites}
        return {"locs": {k: m for k, (m, _) in marginals.items()}, "scales": {k: s for k, (_, s) in marginals.items()}}
    return {"locs": {k: p.value for k, p in posterior.points.items()}}


def with_tensors(posterior: Posterior, tensors: dict[str, dict[str, Tensor]]) -> Posterior:
    """The posterior with other locations and scales."""
    if "scales" in tensors:
        scales = {k: posterior.scales[k].with_value(v) for k, v in tensors["scales"].items()}
        return replace(posterior, locs=dict(tensors["locs"]), scales=scales)
    return replace(posterior, points={k: posterior.points[k].with_value(v) for k, v in tensors["locs"].items()})
