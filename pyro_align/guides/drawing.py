"""A Pyro guide for posteriors that are not of a guide type of Pyro's: it draws by the posterior's own rule."""

from __future__ import annotations

import uuid
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.nn import PyroModule

from pyro_align.guides.posterior import Posterior
from pyro_align.guides.sites import Values

SEEDS = 2**31 - 1


class SampledGuide(PyroModule):
    """A Pyro guide that draws from a posterior known by its draws.

    Its sites are point masses at the draw; the log density of the draw, where there is one, is an auxiliary site's.

    Args:
        posterior: The posterior. Draws that it holds become buffers.

    Attributes:
        draws: Site -> draws, ``(draws, *site_shape)``; empty where the posterior makes its draws.
    """

    def __init__(self, posterior: Posterior):
        super().__init__(name=f"SampledGuide_{uuid.uuid4().hex[:12]}")
        self._posterior, self._held = posterior, list(getattr(posterior, "draws", ()))
        for i, name in enumerate(self._held):
            self.register_buffer(f"draws_{i}", posterior.draws[name].detach().clone())

    @property
    def draws(self) -> Values:
        return {name: self._buffers[f"draws_{i}"] for i, name in enumerate(self._held)}

    @property
    def posterior(self) -> Posterior:
        """A snapshot of the posterior."""
        if not self._held:
            return self._posterior
        return replace(self._posterior, draws={k: v.clone() for k, v in self.draws.items()})

    def forward(self, *args: Any, **kwargs: Any) -> Values:
        """Draws once; returns site -> value."""
        posterior, name = self._posterior, self._pyro_name
        if self._held:
            posterior = replace(posterior, draws=self.draws)
        with poutine.mask(mask=False):
            unit = dist.Uniform(torch.zeros(3), torch.ones(3)).to_event(1)
            noise = pyro.sample(f"_{name}_noise", unit, infer={"is_auxiliary": True}).double().cpu()
        lead = noise.shape[:-1]
        seed, place, side = noise.reshape(-1, 3).unbind(-1)
        values, log_prob = posterior.push_with_log_prob({"_seed": (seed * SEEDS).long(), "_draw": place, "_side": side})
        if posterior.has_density:
            scored = dist.Delta(torch.zeros_like(log_prob).reshape(lead), log_density=log_prob.reshape(lead))
            pyro.sample(f"_{name}_density", scored, infer={"is_auxiliary": True})
        result, frames = {}, {frame for spec in posterior.sites.values() for frame in spec.frames}
        plates = {frame[0]: pyro.plate(frame[0], frame[1], dim=frame[2]) for frame in sorted(frames)}
        for site, spec in posterior.sites.items():
            batch = len(spec.shape) - spec.event_dim
            outer = lead[: len(lead) - batch] if len(lead) > batch else ()
            value = values[site].reshape((*outer, *spec.shape))
            with ExitStack() as stack:
                for frame, *_ in spec.frames:
                    stack.enter_context(plates[frame])
                result[site] = pyro.sample(site, dist.Delta(value, event_dim=spec.event_dim))
        return result
