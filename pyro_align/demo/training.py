"""Fitting a guide by plain Pyro SVI."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.optim import ClippedAdam
from torch import Tensor
from tqdm.auto import tqdm

from pyro_align.demo.network import he_initialization
from pyro_align.model.effects import TemperMessenger


@dataclass(frozen=True)
class Recipe:
    """How a guide is fitted.

    Attributes:
        epochs: Passes over the data.
        batch_size: Data per step.
        learning_rate: Initial step of ClippedAdam, decayed exponentially to a hundredth.
        temperature: Weight of the KL divergence in the ELBO; 1 is Bayes.
        init_scale: Initial standard deviation of every weight.
    """

    epochs: int = 500
    batch_size: int = 256
    learning_rate: float = 0.02
    temperature: float = 1.0
    init_scale: float = 0.01


def fit(
    model: Callable[..., Any],
    x: Tensor,
    y: Tensor,
    *,
    seed: int,
    recipe: Recipe,
    label: str = "fit",
    progress: bool = True,
) -> AutoNormal:
    """Fits a mean-field normal guide, with parameters of its own.

    Args:
        model: A model ``(x, y, size)``.
        x: Inputs ``(data, *features)``.
        y: Classes ``(data,)``.
        seed: Seed of initialization, batches and gradient noise.
        recipe: Optimizer settings.
        label: Text of the progress bar.
        progress: Whether to show it.
    """
    steps = recipe.epochs * -(-len(x) // recipe.batch_size)
    with pyro.get_param_store().scope():  # two guides of one model would share their parameters otherwise
        pyro.set_rng_seed(seed)
        guide = AutoNormal(model, init_loc_fn=he_initialization, init_scale=recipe.init_scale)
        guide.to(x.device)
        optimizer = ClippedAdam({"lr": recipe.learning_rate, "lrd": 0.01 ** (1 / steps)})
        temper = TemperMessenger(recipe.temperature)
        svi = SVI(temper(model), temper(guide), optimizer, Trace_ELBO())
        bar = tqdm(range(recipe.epochs), desc=label, unit="epoch", disable=not progress)
        for epoch in bar:
            total = 0.0
            for batch in torch.randperm(len(x), device=x.device).split(recipe.batch_size):
                total += svi.step(x[batch], y[batch], len(x)) * len(batch) / len(x)
            if epoch % 10 == 0 or epoch == recipe.epochs - 1:
                bar.set_postfix_str(f"-ELBO {total / len(x):.4f} nats/datum")
    return guide
