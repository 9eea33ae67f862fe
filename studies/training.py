"""Fitting posteriors by gradient steps on the ELBO, and keeping them: a fit that a folder holds already is loaded."""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pyro
import torch
import torch.nn.functional as F
from pyro.infer.autoguide import AutoDelta, AutoNormal
from torch import Tensor

import pyro_align
from pyro_align.demo.network import he_initialization
from pyro_align.guides import Posterior
from studies.step import Captured, Step


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
        guide: ``"normal"`` for a mean-field posterior, ``"delta"`` for a point estimate.
        gain: Factor on the He-normal initial locations. What a fit keeps of its random start differs between seeds,
            and no relabeling undoes it; below 1 there is less of it.
        decay: Share of the steps, the last ones, over which the step sizes decay.
        warmup: Share of the steps, the first ones, over which the KL's weight grows linearly to the temperature. At
            temperature 1 the scales of deep networks otherwise reach the prior before the locations have learned.
        noise: How weights are drawn: ``"weights"``, ``"flipout"`` or ``"local"``, see
            :func:`studies.elbo.negative_elbo`.
        augment: Whether training images, of three channels, are mirrored and moved at random.
    """

    epochs: int = 300
    batch_size: int = 256
    learning_rate: float = 0.02
    scale_rate: float = 0.02
    temperature: float = 0.01
    init_scale: float = 0.01
    guide: str = "normal"
    gain: float = 1.0
    decay: float = 1.0
    warmup: float = 0.0
    noise: str = "weights"
    augment: bool = False

    @property
    def name(self) -> dict[str, object]:
        """What names a fit; later fields only where they are not at their defaults, so that old fits are found."""
        added = {"gain", "decay", "warmup", "noise", "augment"}
        return {k: v for k, v in asdict(self).items() if k not in added or v != getattr(Recipe, k)}


def make_guide(model: Callable, recipe: Recipe):
    """An untrained guide with He-normal locations times the recipe's gain."""

    def start(site: dict) -> Tensor:
        return recipe.gain * he_initialization(site)

    if recipe.guide == "delta":
        return AutoDelta(model, init_loc_fn=start)
    return AutoNormal(model, init_loc_fn=start, init_scale=recipe.init_scale)


class Training:
    """A fit in the making: its parameters, their optimizer, and how far it is.

    Args:
        model: A model ``(x, y, size)``.
        x: Inputs ``(data, ...)``.
        y: Classes ``(data,)``.
        seed: Seed of initialization, batches and gradient noise.
        recipe: Optimizer settings.
        start: A posterior to start from instead.
    """

    def __init__(
        self, model: Callable, x: Tensor, y: Tensor, *, seed: int, recipe: Recipe, start: Posterior | None = None
    ):
        self.x, self.y, self.recipe = x, y, recipe
        pyro.set_rng_seed(seed)
        self.blank = blank(model, x, y, recipe) if start is None else start
        tensors = tensors_of(self.blank)
        self.parameters = {"locs": {k: v.detach().clone() for k, v in tensors["locs"].items()}}
        if "scales" in tensors:
            self.parameters["roots"] = {k: v + (-(-v).expm1()).log() for k, v in tensors["scales"].items()}
        rates = {"locs": recipe.learning_rate, "roots": recipe.scale_rate}
        groups = [
            {"params": list(sites.values()), "lr": self._rate(rates[part])} for part, sites in self.parameters.items()
        ]
        self.optimizer = torch.optim.Adam(groups, fused=True, capturable=x.is_cuda)
        self.step = Step(model, len(x), recipe.noise)
        self.captured: Captured | None = None
        self.temperature = torch.tensor(recipe.temperature, dtype=x.dtype, device=x.device)
        self.epoch = self.steps = 0

    def _rate(self, rate: float) -> float | Tensor:
        return torch.tensor(rate, device=self.x.device) if self.x.is_cuda else rate

    @property
    def total(self) -> int:
        """Steps of the whole fit."""
        return self.recipe.epochs * -(-len(self.x) // self.recipe.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        """The steps of one pass over the data, as they are taken; each gives its loss in nats per datum."""
        recipe = self.recipe
        constant = round((1 - recipe.decay) * self.total)
        gamma = 0.01 ** (1 / max(1, self.total - constant))
        order = torch.randperm(len(self.x)).to(self.x.device)
        if self.x.is_cuda:  # a captured step has one shape: the last batch begins anew
            order = torch.cat([order, order[: -len(order) % recipe.batch_size]])
        for batch in order.split(recipe.batch_size):
            warm = min(1.0, (self.steps + 1) / max(1.0, recipe.warmup * self.total))
            self.temperature.fill_(recipe.temperature * warm)
            x = self.x[batch]
            yield self._update(augmented(x) if recipe.augment else x, self.y[batch])
            self.steps += 1
            if self.steps > constant:
                for group in self.optimizer.param_groups:
                    group["lr"] *= gamma
        self.epoch += 1

    def _update(self, x: Tensor, y: Tensor) -> Tensor:
        if x.is_cuda:
            if self.captured is None:
                self.captured = Captured(self.step, self.parameters, self.optimizer, x, y, self.temperature)
            return self.captured(x, y)
        loss = self.step(self.parameters, x, y, self.temperature)
        self.optimizer.step()
        return loss

    def posterior(self) -> Posterior:
        """What the parameters say now."""
        with torch.no_grad():
            tensors = {"locs": {k: v.clone() for k, v in self.parameters["locs"].items()}}
            if "roots" in self.parameters:
                tensors["scales"] = {k: F.softplus(v) for k, v in self.parameters["roots"].items()}
        return with_tensors(self.blank, tensors)

    def state(self) -> dict[str, object]:
        """All that is needed to go on later, random state included."""
        return {
            "parameters": self.parameters,
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "steps": self.steps,
            "random": torch.get_rng_state(),
        }

    def resume(self, state: dict[str, object]) -> None:
        """Goes back to a state."""
        with torch.no_grad():
            for part, sites in state["parameters"].items():
                for site, value in sites.items():
                    self.parameters[part][site].copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.steps = state["epoch"], state["steps"]
        torch.set_rng_state(state["random"])


def fit(
    model: Callable,
    x: Tensor,
    y: Tensor,
    *,
    seed: int,
    recipe: Recipe,
    start: Posterior | None = None,
    label: str = "fit",
    checkpoint: Path | None = None,
) -> Posterior:
    """Fits a posterior.

    Args:
        model: A model ``(x, y, size)``.
        x: Inputs ``(data, ...)``.
        y: Classes ``(data,)``.
        seed: Seed of initialization, batches and gradient noise.
        recipe: Optimizer settings.
        start: A posterior to start from instead.
        label: What to call the fit in the progress lines on standard error.
        checkpoint: A file that is written after every pass and, where it is there already, gone on from: the result
            is the same, interrupted or not.
    """
    training = Training(model, x, y, seed=seed, recipe=recipe, start=start)
    before = 0.0
    if checkpoint is not None and checkpoint.exists():
        held = torch.load(checkpoint, map_location=x.device, weights_only=True)
        training.resume({**held, "random": held["random"].cpu()})
        before = held["seconds"]
    started, reported = time.process_time(), time.monotonic()
    while training.epoch < recipe.epochs:
        loss = float(sum(loss.clone() for loss in training)) / -(-len(x) // recipe.batch_size)
        seconds = before + time.process_time() - started
        if checkpoint is not None:
            _write(checkpoint, {**training.state(), "seconds": seconds})
        if time.monotonic() - reported > 15 or training.epoch == recipe.epochs:
            reported = time.monotonic()
            done = f"epoch {training.epoch}, {loss:.4f} nats/datum, {seconds:.0f} s"
            print(f"{label}: {done}", file=sys.stderr, flush=True)
    return training.posterior()


def augmented(x: Tensor, channels: int = 3, shift: int = 4) -> Tensor:
    """Flat square images, half of them mirrored, each moved by up to ``shift`` pixels (He et al. 2016, sec. 4.2)."""
    count, side = len(x), math.isqrt(x.shape[1] // channels)
    shift = shift * side // 32
    images = F.pad(x.view(count, channels, side, side), (shift,) * 4)
    down, right, mirrored = torch.rand(3, count, 1).to(x)
    place = torch.arange(side, device=x.device)
    rows = place + (down * (2 * shift + 1)).long()
    columns = torch.where(mirrored < 0.5, place, side - 1 - place) + (right * (2 * shift + 1)).long()
    each = torch.arange(count, device=x.device)[:, None, None]
    return images[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).reshape(count, -1)


def blank(model: Callable, x: Tensor, y: Tensor, recipe: Recipe) -> Posterior:
    """An untrained posterior."""
    with pyro.get_param_store().scope():
        guide = make_guide(model, recipe)
        guide(x[:2], y[:2], 2)
        return pyro_align.guides.read_guide(guide)


@dataclass(frozen=True)
class Fit:
    """A fitted posterior and the CPU seconds that the fit took."""

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
            label = " ".join(str(v) for v in what.values()) + f" T={recipe.temperature:g} seed {seed}"
            now = path.with_suffix(".now")
            posterior = fit(model, x, y, seed=seed, recipe=recipe, label=label, checkpoint=now)
            seconds = torch.load(now, weights_only=True)["seconds"]
            _write(path, {"name": name, "seconds": seconds, "tensors": tensors_of(posterior)})
            now.unlink()
        return self._load(path, model, x, y, recipe)

    def _load(self, path: Path, model: Callable, x: Tensor, y: Tensor, recipe: Recipe) -> Fit:
        held = torch.load(path, map_location=self.device, weights_only=True)
        return Fit(with_tensors(blank(model, x, y, recipe), held["tensors"]), held["seconds"])


def _write(path: Path, held: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(held, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)  # a fit cut short leaves no broken file


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
