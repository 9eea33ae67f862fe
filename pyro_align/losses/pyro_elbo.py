"""Pyro's own ELBO objects as losses, evaluated on the guide at each point of a path."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from pyro_align.losses.protocol import NATS, GuideLoss, Label
from pyro_align.model.guards import untouched


class PyroLoss(GuideLoss):
    """A Pyro ELBO object, such as ``TraceEnum_ELBO()`` or ``RenyiELBO()``, once per draw with the draw's own seed.

    Args:
        elbo: The object; it has ``loss(model, guide, *args, **kwargs)``.
        name: Name of the loss; the object's type by default.
    """

    elbo: Any
    name: str

    def __init__(self, elbo: Any, name: str | None = None):
        self.elbo, self.name = elbo, name or type(elbo).__name__
        self.label: Label = Label(self.name, NATS)

    def values(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        seeds: list[int],
    ) -> np.ndarray:
        out = []
        for seed in seeds:
            with untouched(model, seed=seed), torch.no_grad():
                out.append(float(self.elbo.loss(model, guide, *args, **kwargs)))
        return np.array(out)
