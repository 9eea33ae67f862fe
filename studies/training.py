"""Fitting posteriors by gradient steps on the ELBO, and keeping them: a fit that a folder holds already is loaded."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
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
        decay: Fraction of the steps, the last ones, over which the step sizes decay.
        warmup: Fraction of the steps, the first ones, over which the KL's weight grows linearly to the temperature. At
            temperature 1 the scales of deep networks otherwise reach the prior before the locations have learned.
        noise: How weights are drawn: ``"weights"``, ``"flipout"`` or ``"local"``, see
            :func:`studies.elbo.negative_elbo`.
        augment: Whether training images, of three channels, are mirrored and moved at random.
        half: Whether the network multiplies in bfloat16.
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
    half: bool = False

    @property
    def name(self) -> dict[str, object]:
        """What names a fit; later fields only where they are not at their defaults, so that old fits are found."""
        added = {"gain", "decay", "warmup", "noise", "augment", "half"}
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
        step: The step of another fit of the same model and recipe, traced already.
    """

    def __init__(
        self,
        model: Callable,
        x: Tensor,
        y: Tensor,
        *,
        seed: int,
        recipe: Recipe,
        start: Posterior | None = None,
        step: Step | None = None,
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
        self.step = step or Step(model, len(x), noise=recipe.noise, half=recipe.half)
        self.captured: Captured | None = None
        self.temperature = torch.tensor(recipe.temperature, dtype=x.dtype, device=x.device)
        self.loss = torch.zeros((), dtype=x.dtype, device=x.device)
        self.epoch = self.steps = 0

    def _rate(self, rate: float) -> float | Tensor:
        return torch.tensor(rate, device=self.x.device) if self.x.is_cuda else rate

    @property
    def total(self) -> int:
        """Steps of the whole fit."""
        return self.recipe.epochs * -(-len(self.x) // self.recipe.batch_size)

    def __iter__(self) -> Iterator[int]:
        """One pass over the data; gives the number of steps so far after each. ``loss`` sums over the pass.

        On a GPU steps run on a stream of the fit's own, so that several fits that take turns run at the same time.
        """
        recipe = self.recipe
        constant = round((1 - recipe.decay) * self.total)
        gamma = 0.01 ** (1 / max(1, self.total - constant))
        order = torch.randperm(len(self.x)).to(self.x.device)
        if self.x.is_cuda:  # a captured step has one shape: the last batch begins the data again
            order = torch.cat([order, order[: -len(order) % recipe.batch_size]])
        with self._stream():
            self.loss.zero_()
        for batch in order.split(recipe.batch_size):
            warm = min(1.0, (self.steps + 1) / max(1.0, recipe.warmup * self.total))
            x = self.x[batch]
            self._update(augmented(x) if recipe.augment else x, self.y[batch], recipe.temperature * warm)
            self.steps += 1
            if self.steps > constant:
                with self._stream():
                    for group in self.optimizer.param_groups:
                        group["lr"] *= gamma
            yield self.steps
        self.epoch += 1

    def _stream(self) -> AbstractContextManager:
        return nullcontext() if self.captured is None else torch.cuda.stream(self.captured.stream)

    def _update(self, x: Tensor, y: Tensor, temperature: float) -> None:
        if x.is_cuda and self.captured is None:
            self.captured = Captured(self.step, self.parameters, self.optimizer, x, y, self.temperature)
        with self._stream():
            self.temperature.fill_(temperature)
        if self.captured is not None:
            loss = self.captured(x, y)
        else:
            loss = self.step(self.parameters, x, y, self.temperature)
            self.optimizer.step()
        with self._stream():
            self.loss += loss

    def mean_loss(self, count: int) -> float:
        """The mean loss of the last pass, of ``count`` steps, in nats per datum."""
        self._wait()
        return float(self.loss) / count

    def _wait(self) -> None:
        if self.captured is not None:
            self.captured.stream.synchronize()

    def posterior(self) -> Posterior:
        """What the parameters say now."""
        self._wait()
        with torch.no_grad():
            tensors = {"locs": {k: v.clone() for k, v in self.parameters["locs"].items()}}
            if "roots" in self.parameters:
                tensors["scales"] = {k: F.softplus(v) for k, v in self.parameters["roots"].items()}
        return with_tensors(self.blank, tensors)

    def state(self) -> dict[str, object]:
        """All that is needed to go on later, random state included."""
        self._wait()
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
        count = len(list(training))
        seconds = before + time.process_time() - started
        if checkpoint is not None:
            _write(checkpoint, {**training.state(), "seconds": seconds})
        if time.monotonic() - reported > 15 or training.epoch == recipe.epochs:
            reported = time.monotonic()
            done = f"epoch {training.epoch}, {training.mean_loss(count):.4f} nats/datum, {seconds:.0f} s"
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
        name, path = self._name(seed, recipe, what, len(x))
        if not path.exists():
            label = " ".join(str(v) for v in what.values()) + f" T={recipe.temperature:g} seed {seed}"
            now = path.with_suffix(".now")
            posterior = fit(model, x, y, seed=seed, recipe=recipe, label=label, checkpoint=now)
            seconds = torch.load(now, weights_only=True)["seconds"]
            _write(path, {"name": name, "seconds": seconds, "tensors": tensors_of(posterior)})
            now.unlink()
        return self._load(path, model, x, y, recipe)

    def together(
        self,
        model: Callable,
        x: Tensor,
        y: Tensor,
        *,
        jobs: Sequence[tuple[int, Recipe]],
        what: dict[str, object],
        seconds: float,
    ) -> int:
        """Fits several seeds and recipes side by side, a step of each in turn, for as many passes as time allows.

        On a GPU they run at the same time. They share one stream of random numbers, so a fit depends on its company.

        Args:
            model: The model.
            x: Inputs.
            y: Classes.
            jobs: Seed and recipe of each fit; recipes have the greatest number of passes, no warmup, and no decay in
                the first pass, which is timed.
            what: Everything else that names the fits.
            seconds: How long all of it may take.

        Returns:
            The number of passes, which is that of the recipes by which the fits are kept.
        """
        started, steps = time.monotonic(), {}
        fits = []
        for seed, recipe in jobs:
            fits.append(Training(model, x, y, seed=seed, recipe=recipe, step=steps.get(recipe)))
            steps[recipe] = fits[-1].step
        passes, done = max(recipe.epochs for _, recipe in jobs), 0
        while done < passes:
            for count, _ in enumerate(itertools.zip_longest(*fits), 1):
                if done == 0 and count == 1:
                    began = time.monotonic()  # the first step of each fit is traced and captured
            losses = " ".join(f"{f.mean_loss(count):.4f}" for f in fits)
            done, spent = done + 1, time.monotonic() - started
            print(f"pass {done}: {losses}, {spent:.0f} s", file=sys.stderr, flush=True)
            if done == 1:
                passes = max(1, min(passes, int((seconds - spent) / (time.monotonic() - began)) + 1))
                for f in fits:
                    f.recipe = replace(f.recipe, epochs=passes)
        for f, (seed, _) in zip(fits, jobs, strict=True):
            name, path = self._name(seed, f.recipe, what, len(x))
            _write(path, {"name": name, "seconds": spent / len(fits), "tensors": tensors_of(f.posterior())})
        return passes

    def _name(self, seed: int, recipe: Recipe, what: dict[str, object], size: int) -> tuple[str, Path]:
        name = json.dumps({**what, **recipe.name, "seed": seed, "size": size}, sort_keys=True)
        return name, self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.pt"

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
        return posterior.with_moments({k: (loc, tensors["scales"][k]) for k, loc in tensors["locs"].items()})
    return posterior.changed(lambda site, _: tensors["locs"][site])
