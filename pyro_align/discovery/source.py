"""What is searched for symmetries: a Pyro model's density with its data, or a module's output."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.distributions.constraints import Constraint
from torch.utils import _pytree as pytree

from pyro_align.discovery.resting import find_resting, names_of
from pyro_align.discovery.tracing import TracedGraph, trace_density, trace_module
from pyro_align.errors import DiagnosticWarning, TraceError
from pyro_align.model.density import Density
from pyro_align.model.guards import gradless, uncompiled, untouched
from pyro_align.model.learnables import module_tensors
from pyro_align.model.reached import reached_modules
from pyro_align.model.supports import is_cone
from pyro_align.symmetry.findings import Resting
from pyro_align.symmetry.group import Symmetry
from pyro_align.symmetry.stacks import Stacks, stack_tensors, stacked, unstacked


class Source:
    """What is traced: a Pyro model's density or a module's output."""

    def __init__(self, model, args, kwargs, *, scope: str, parameters: bool, seed: int):
        self.stacks: Stacks = {}  # sites of the graph that stand for several of the model
        if scope not in ("joint", "likelihood"):
            raise ValueError(f"scope must be 'joint' or 'likelihood', got {scope!r}")
        self.model, self.args, self.kwargs, self.scope, self.parameters = model, args, kwargs, scope, parameters
        _check_model(model)
        self.is_module = isinstance(model, nn.Module) and not _has_sample_sites(model, args, kwargs)
        self.density = None if self.is_module else Density(model, args, kwargs, parameters=parameters, seed=seed)

    def trace(self) -> TracedGraph:
        if self.is_module:
            return trace_module(self.model, self.args, self.kwargs)
        return trace_density(self.density, scope=self.scope, parameters=self.parameters)

    def check_observes(self) -> None:
        """Warns about a model that observes nothing: its classes, say, are then as free as its hidden units."""
        if self.is_module or self.density.observes:
            return
        drawn = [*self.density.latents, *self.density.enumerated]
        left_out = list(omitted(self.model, self.args, self.kwargs))
        advice = f"was {' or '.join(f'{n}=' for n in left_out)} left out? " if left_out else ""
        text = (
            f"the model observes nothing with these arguments: it draws all of {drawn}; {advice}Pass the observed "
            "values too, as to SVI.step: what is found without them is the symmetry of the prior"
        )
        if self.scope == "likelihood":
            raise TraceError(f"{text}, and there is no likelihood")
        warnings.warn(text, DiagnosticWarning, stacklevel=3)

    def resting(self, symmetry: Symmetry, traced: TracedGraph) -> tuple[Resting, ...]:
        """Learnable tensors that the symmetry takes for constant."""
        if self.is_module:
            return ()
        return find_resting(symmetry, traced, names_of(self.model, self.density.params))

    def generic_values(self, traced: TracedGraph | None, seed: int, scale: float) -> dict[str, Tensor]:
        """A draw at which no two units look alike and sums stay moderate, in float64; for the model without a graph."""
        if self.is_module:
            return _jittered(module_tensors(self.model) if traced is None else traced.values, seed, scale)
        values = self.density.initial_values(seed=seed, scale=scale, dtype=torch.float64, fan_in=True)
        if traced is None:
            return values
        values = stack_tensors(values, self.stacks)
        given = {name for name, nodes in traced.nodes.items() if nodes[0].op == "placeholder"}
        return {k: values[k] if k in values and k in given else v.double() for k, v in traced.values.items()}

    def random_values(self, traced: TracedGraph, seed: int) -> dict[str, Tensor]:
        """Another draw, for the completeness count: real values around zero, positive ones positive."""
        if not self.is_module:
            return self.generic_values(traced, seed, 1.0)
        generator, out = torch.Generator().manual_seed(seed), {}
        for name, value in traced.values.items():
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float64, device="cpu").to(value.device)
            positive = value.numel() > 0 and bool((value >= 0).all()) and bool((value > 0).any())
            out[name] = noise.mul(0.3).exp() if positive else noise / max(1, value.shape[1:].numel()) ** 0.5
        return out

    # -- without a graph -------------------------------------------------------------------------------------------

    def described(self) -> tuple[dict[str, tuple[int, ...]], dict[str, Constraint]]:
        """Shapes and supports of the sites, as the model itself says."""
        if self.is_module:
            return {name: tuple(v.shape) for name, v in module_tensors(self.model).items()}, {}
        latents = self.density.latents.items()
        return {name: site.shape for name, site in latents}, {name: site.support for name, site in latents}

    def total(self, values: Mapping[str, Tensor], cast: Callable[[Any], Any]) -> Any:
        """What must not change, at other site values; ``cast`` sets the dtype of all else."""
        args, kwargs = pytree.tree_map(cast, (tuple(self.args), dict(self.kwargs)))
        if self.is_module:
            others = {k: cast(v) for k, v in (*self.model.named_parameters(), *self.model.named_buffers())}
            return torch.func.functional_call(self.model, {**others, **values}, args, kwargs)
        density = self.density.on(args, kwargs, cast)
        return density.log_joint(values) if self.scope == "joint" else density.log_likelihood(values)

    def real_sites(self, traced: TracedGraph) -> list[str]:
        """Sites whose support is all real numbers, so that their values may change sign."""
        known = {} if self.is_module else stacked(self.density.latents, self.stacks, lambda sites: sites[0])
        return [name for name in traced.values if name not in known or known[name].is_real]

    def scalable_sites(self, traced: TracedGraph) -> list[str]:
        """Sites whose values may be multiplied by any positive number: real ones and positive ones."""
        cones = {**dict.fromkeys(traced.values, True), **{k: is_cone(v) for k, v in traced.supports.items()}}
        return [name for name, value in traced.values.items() if cones[name] and value.is_floating_point()]

    def check_reproduces(self, values: dict[str, Tensor], reference: float) -> None:
        """The model itself, run again at new values, must agree with its graph."""
        if self.is_module:
            return
        values = unstacked(values, self.stacks)
        native = {k: values[k].to(site.dtype) for k, site in self.density.latents.items() if k in values}
        total = self.density.log_joint if self.scope == "joint" else self.density.log_likelihood
        with untouched(self.model, seed=1):
            again = float(gradless(total, native).detach())
        low = any(site.dtype != torch.float64 for site in self.density.latents.values())
        if not abs(again - reference) <= (1e-2 if low else 1e-6) * (1.0 + abs(reference)):
            raise TraceError(
                f"the model is not the same function when run again: its log joint is {again:.6g} nats where its trace "
                f"gives {reference:.6g}. A model whose structure or noise changes between runs has no symmetry "
                "to find; fix its randomness, or write the symmetry by hand as a SymmetrySpec."
            )


def _jittered(values: Mapping[str, Tensor], seed: int, scale: float) -> dict[str, Tensor]:
    """Values with noise, in float64, so that no two units look alike."""
    generator = torch.Generator().manual_seed(seed)
    noise = {k: torch.randn(v.shape, generator=generator, dtype=torch.float64, device="cpu") for k, v in values.items()}
    return {k: v.detach().double() + scale * 0.1 * noise[k].to(v.device) for k, v in values.items()}


def omitted(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
    """Parameters of the model that were not given and are None by default: data, as a rule."""
    try:
        signature = inspect.signature(model.forward if isinstance(model, nn.Module) else model)
        given = signature.bind(*args, **kwargs).arguments
    except (TypeError, ValueError):
        return []
    return [name for name, p in signature.parameters.items() if p.default is None and given.get(name) is None]


def _has_sample_sites(model, args, kwargs) -> bool:
    """Whether running a module meets a Pyro primitive."""
    with untouched(model, seed=0), uncompiled(), pyro.poutine.trace() as tracer:
        try:
            gradless(model, *args, **kwargs)
        except Exception:
            return isinstance(model, pyro.nn.PyroModule)  # the density reports the error with its advice
    return any(n["type"] == "sample" for n in tracer.trace.nodes.values() if "fn" in n and n["type"] == "sample")


def _check_model(model: Any) -> None:
    """Refuses what is not a model, or hides what it does."""
    if any(c.__name__ in ("AutoGuide", "EasyGuide") for c in type(model).__mro__):
        raise TraceError(
            f"expected the model, got a guide ({type(model).__name__}): a symmetry is one of the model's log joint. "
            "Pass the model that the guide was made for, with its data"
        )
    for module in reached_modules(model):
        if isinstance(module, torch.jit.ScriptModule):
            raise TraceError(
                f"{type(module).__name__} was made by torch.jit, which hides its operations; pass the nn.Module that "
                "it was scripted or traced from"
            )
