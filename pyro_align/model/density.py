"""A model's log joint as a function of its latent values.

Discrete latents with a finite support are summed out exactly, by the same contraction that Pyro's HMC uses; all other
latent sites are arguments. Values are *constrained*: what the model's ``pyro.sample`` statements return.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.poutine as poutine
import torch
from pyro.infer.mcmc.util import TraceEinsumEvaluator
from torch import Tensor
from torch.distributions import constraints

from pyro_align.errors import PyroAlignError, TraceError
from pyro_align.model.effects.enumerate import is_enumerable
from pyro_align.model.effects.substitute import full_shape
from pyro_align.model.forward import Records, check_observed, is_subsample, not_run, run, without_validation
from pyro_align.model.guards import gradless, uncompiled, untouched
from pyro_align.model.supports import AnyValueMessenger, is_real, transform_onto


@dataclass(frozen=True)
class LatentSite:
    """What a model says about one of its latent sites."""

    name: str
    shape: tuple[int, ...]  # of the constrained value
    support: constraints.Constraint
    dtype: torch.dtype
    device: torch.device
    is_param: bool = False  # a learnable ``pyro.param`` that takes part as a site with a point posterior
    # a value in the support, of the run that found the site
    example: Tensor | None = field(default=None, repr=False, compare=False)

    @property
    def is_real(self) -> bool:
        """Whether the site may take any real values."""
        return is_real(self.support)


class Density:
    """A model with its data, as a density over its latent sites."""

    args: tuple[Any, ...]  # positional arguments of the model
    kwargs: dict[str, Any]  # keyword arguments of the model
    seed: int  # seed of the one run that finds the sites (and of a subsampling plate's fixed subsample)

    def __init__(
        self,
        model: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        parameters: bool = False,  # whether learnable ``pyro.param`` values take part as sites
        seed: int = 0,
    ):
        if not callable(model):
            raise TypeError(f"expected a Pyro model (a callable), got {type(model).__name__}")
        self.model: Callable[..., Any] = model  # a Pyro model: any callable with Pyro primitives
        self.args, self.kwargs, self.seed = tuple(args), dict(kwargs or {}), seed
        stored = set(pyro.get_param_store().keys())
        prototype, declared = self._prototype()
        # A parameter not yet in the store would be initialized again, perhaps at random, at every run.
        self.params: dict[Any, Any] = {
            name: node["value"].detach()
            for name, node in prototype.nodes.items()
            if node["type"] == "param" and name not in stored
        }
        self._subsamples: dict[str, Tensor] = {}
        self.latents: dict[str, LatentSite] = {}  # site name -> :class:`LatentSite`, in the model's order
        self.observed: list[str] = []  # names of the observed sites
        self.enumerated: list[str] = []  # names of the discrete latent sites that are summed out
        samples = {name: node for name, node in prototype.nodes.items() if node["type"] == "sample"}
        self._deterministic = {name for name, node in samples.items() if node["infer"].get("_deterministic")}
        dims = [0]
        for name, node in prototype.nodes.items():
            if node["type"] == "param" and parameters:
                self.latents[name] = _latent(name, node["value"], declared.get(name, constraints.real), is_param=True)
            if node["type"] != "sample":
                continue
            if is_subsample(node):
                self._subsamples[name] = node["value"]
                continue
            dims += [-f.dim for f in node["cond_indep_stack"] if f.vectorized]
            if node["is_observed"]:
                self.observed.append(name)
            elif is_enumerable(node):
                self.enumerated.append(name)
            else:
                self.latents[name] = _latent(name, node["value"], node["fn"].support, shape=full_shape(node))
        self.max_plate_nesting: int = max(dims)
        if not any(not site.is_param for site in self.latents.values()) and not self.latents:
            raise TraceError("the model has no continuous latent site, so there is nothing to relabel")

    def _prototype(self) -> tuple[Any, dict[str, constraints.Constraint]]:
        """One run of the model, and the constraints of its parameters, which only the store knows for all of them."""
        try:
            with (
                untouched(self.model, seed=self.seed),
                warnings.catch_warnings(),
                AnyValueMessenger(),
                uncompiled(),
            ):
                warnings.simplefilter("ignore")
                trace = gradless(poutine.trace(self.model).get_trace, *self.args, **self.kwargs)
                check_observed(Records(trace))
                return trace, dict(pyro.get_param_store()._constraints)
        except PyroAlignError:
            raise
        except Exception as error:
            advice = "" if self.args or self.kwargs else ". Pass the arguments that you pass to the model itself"
            raise TraceError(f"{not_run(self.args, self.kwargs, error)}{advice}") from error

    @property
    def observes(self) -> bool:
        """Whether some site is observed that is not merely ``pyro.deterministic``."""
        return bool(set(self.observed) - self._deterministic)

    def resampled(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Density:
        """The same sites with other data of the same kind; subsampling plates draw again at each run."""
        other = self.on(args, kwargs)
        other._subsamples = {}
        return other

    def on(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], cast: Callable[[Any], Any] = lambda value: value
    ) -> Density:
        """The same sites with other arguments, parameters that are not in the store cast."""
        other = copy.copy(self)
        other.args, other.kwargs = tuple(args), dict(kwargs)
        other.params = {name: cast(value) for name, value in self.params.items()}
        return other

    def run(self, values: Mapping[str, Tensor]) -> Any:
        """Runs the model at ``values``; as :meth:`trace`, without log probabilities."""
        nesting = self.max_plate_nesting if self.enumerated else None
        values = {**self.params, **values}
        return run(self.model, self.args, self.kwargs, values, subsamples=self._subsamples, max_plate_nesting=nesting)

    def trace(self, values: Mapping[str, Tensor]) -> Any:
        """Runs the model at ``values`` and computes each site's log probability (validation off).

        The discrete latents that are summed out hold their whole support along dims left of the plates.
        """
        trace = self.run(values)
        for node in trace.nodes.values():
            if node["type"] == "sample" and not is_subsample(node):
                node["fn"] = without_validation(node["fn"])
        with pyro.validation_enabled(False):
            trace.compute_log_prob()
        return trace

    def log_joint(self, values: Mapping[str, Tensor]) -> Tensor:
        """Log p(data, values) in nats: a scalar, in the space of the constrained values (no Jacobian)."""
        return self._total(self.trace(values))

    def log_likelihood(self, values: Mapping[str, Tensor]) -> Tensor:
        """Log p(data | values) in nats, discrete latents summed out: a scalar."""
        trace = self.trace(values)
        for name in self.latents:
            if name in trace.nodes and trace.nodes[name]["type"] == "sample":
                trace.remove_node(name)
        return self._total(trace)

    def _total(self, trace: Any) -> Tensor:
        if not self.enumerated:
            total = trace.log_prob_sum()
            return total if isinstance(total, Tensor) else torch.tensor(float(total), device="cpu")
        with pyro.validation_enabled(False):
            evaluator = TraceEinsumEvaluator(trace, True, self.max_plate_nesting)
            return evaluator.log_prob(trace)

    def initial_values(
        self, *, seed: int = 0, scale: float = 1.0, dtype: torch.dtype | None = None, fan_in: bool = False
    ) -> dict[str, Tensor]:
        """Generic values in every site's support: Gaussian noise of the given scale, mapped onto the support.

        A site onto whose support torch has no map (an integer latent, say) keeps the value of a draw from its prior.
        With ``fan_in``, real sites are divided by the root of the size of their trailing axes, so that sums over them
        stay of order one.
        """
        generator = torch.Generator().manual_seed(seed)
        values = {}
        for name, site in self.latents.items():
            transform = transform_onto(site.support) if site.dtype.is_floating_point else None
            if transform is None:  # any value in the support will do
                values[name] = site.example.to(dtype or site.dtype) if site.dtype.is_floating_point else site.example
                continue
            shape = transform.inverse_shape(torch.Size(site.shape))
            noise = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu").mul_(scale)
            if fan_in and site.is_real:
                noise /= max(1, torch.Size(shape[1:]).numel()) ** 0.5
            values[name] = transform(noise.to(site.device)).to(dtype or site.dtype)
        return values


def _latent(
    name: str, value: Tensor, support: constraints.Constraint, *, shape: tuple[int, ...] = (), is_param: bool = False
) -> LatentSite:
    return LatentSite(name, shape or tuple(value.shape), support, value.dtype, value.device, is_param, value.detach())
