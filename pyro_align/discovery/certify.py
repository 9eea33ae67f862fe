"""The certificate: random relabelings must leave the traced function alone, in float64."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx
from torch.distributions.constraints import Constraint
from torch.fx import Node
from torch.utils import _pytree as pytree

from pyro_align.discovery.supports import check_support
from pyro_align.discovery.tracing import TracedGraph
from pyro_align.discovery.walk import Constants, double
from pyro_align.errors import SymmetryError, TraceError
from pyro_align.model.guards import gradless, untouched
from pyro_align.symmetry.element import Permutation
from pyro_align.symmetry.findings import Certificate
from pyro_align.symmetry.group import Symmetry

RELATIVE = 1e-10  # of the log joint's magnitude; a forgotten site changes it by tenths of a nat
RELATIVE_SINGLE = 1e-5  # for a model that runs in float32 alone


class DoubleInterpreter(fx.Interpreter):
    """Runs a graph in float64, whatever dtype it was traced in."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if any(type(value) is torch.dtype for value in (*args, *kwargs.values())):
            args, kwargs = pytree.tree_map_only(torch.dtype, double, (args, kwargs))
        return super().call_function(target, args, kwargs)


class _Attached(DoubleInterpreter):
    """The same, with gradients through what the trace detached, and through copies."""

    def call_function(self, target, args, kwargs):
        if target is torch.ops.aten.detach.default:
            return args[0]
        if target is torch.ops.aten.copy.default:
            return args[1].to(args[0].dtype).expand(args[0].shape).clone()
        return super().call_function(target, args, kwargs)


class GraphFunction:
    """The traced function at other site values, in float64: a scalar for a model, all outputs for a module.

    The updated values of sites (running statistics) are relabeled back before they are compared.
    """

    supports: Mapping[str, Constraint]
    traced: TracedGraph

    rounding = RELATIVE

    def __init__(self, traced: TracedGraph):
        self.traced, self.supports = traced, traced.supports

    @cached_property
    def _given(self) -> dict[Node, Any]:
        data = {node: double(value.detach()) for node, value in self.traced.data.items()}
        return {**data, **Constants(self.traced).used()}

    def run(self, values: Mapping[str, Tensor], interpreter: type[DoubleInterpreter] = DoubleInterpreter) -> Any:
        """Everything that the graph returns; ``interpreter`` may look on."""
        given = {**self.traced.placed(values, lambda v: double(v.detach())), **self._given}
        with torch.no_grad():
            return interpreter(self.traced.module, garbage_collect_values=True).run(initial_env=given)

    def differentiable(self, values: Mapping[str, Tensor]) -> Tensor:
        """What must not change, flattened, as a function that autograd can follow; updated values are left out."""
        given = {**self.traced.placed(values, double), **self._given}
        out = _Attached(self.traced.module, garbage_collect_values=True).run(initial_env=given)
        results = [t for t in pytree.tree_leaves(out) if isinstance(t, Tensor)]
        results = results[: len(results) - len(self.traced.states)]
        return _flat([t for t in results if t.is_floating_point() or t.is_complex()])

    def __call__(self, values: Mapping[str, Tensor], back: Permutation | None = None) -> Tensor:
        results = [t for t in pytree.tree_leaves(self.run(values)) if isinstance(t, Tensor)]
        if back is not None:
            for i, name in enumerate(self.traced.states, len(results) - len(self.traced.states)):
                if name in back.symmetry.sites:
                    results[i] = back.apply_site(name, results[i])
        return _flat(results)


class ModelFunction:
    """The same by running the model itself, where it has no graph; in float64 where the model can be run so."""

    total: Callable[..., Any]  # site values -> what must not change: a tensor, or a list of them
    cast: Callable[[Any], Any]
    model: object  # what is run; it is left as it was
    supports: Mapping[str, Constraint]
    rounding: float

    def __init__(
        self, total: Callable[..., Any], supports: Mapping[str, Constraint], model: object, values: Mapping[str, Tensor]
    ):
        self.total, self.supports, self.model, self.cast = total, supports, model, double
        try:
            self(values)
            self.rounding = RELATIVE
        except (RuntimeError, TypeError, ValueError):
            self.cast, self.rounding = _single, RELATIVE_SINGLE

    def __call__(self, values: Mapping[str, Tensor], back: Permutation | None = None) -> Tensor:
        kept = torch.get_default_dtype()
        with untouched(self.model, seed=1), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.set_default_dtype(torch.float64 if self.cast is double else kept)
            try:
                out = gradless(self.total, {k: self.cast(v) for k, v in values.items()}, self.cast)
            finally:
                torch.set_default_dtype(kept)
        return _flat([t for t in pytree.tree_leaves(out) if isinstance(t, Tensor)])


def _single(value):
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.float64 else value


def _flat(results: list[Tensor]) -> Tensor:
    parts = [torch.view_as_real(t) if t.is_complex() else t for t in results]
    flat = [t.reshape(-1).double() for t in parts]
    return flat[0] if len(flat) == 1 else torch.cat(flat)


def certify_function(
    symmetry: Symmetry,
    function: GraphFunction | ModelFunction,
    values: Mapping[str, Tensor],
    *,
    trials: int,
    seed: int,
) -> Certificate:
    """Checks a symmetry against a model's function of its sites."""
    generator = torch.Generator().manual_seed(seed)
    before = function(values)
    if not bool(torch.isfinite(before).all()):
        raise TraceError("the log joint is not finite at the draw on which the symmetry was to be certified")
    magnitude = float(before.abs().max())
    tolerance = function.rounding * (1.0 + magnitude)
    error = 0.0
    for _ in range(trials):
        permutation = symmetry.random(generator)
        change = _change(function, permutation, values, before)
        error = max(error, change)
        if not change <= tolerance:
            raise SymmetryError(_blame(symmetry, function, permutation, values, before, tolerance, change))
        error = max(error, _scaled(symmetry, function, values, generator, tolerance))
    total = float(before.sum()) if before.numel() == 1 else math.nan
    return Certificate(trials, total, error, tolerance, seed)


def _change(function: GraphFunction, permutation: Permutation, values, before: Tensor) -> float:
    moved = {**values, **permutation.apply({k: v for k, v in values.items() if k in permutation.symmetry.sites})}
    check_support(values, moved, function.supports)
    return float((function(moved, permutation.inverse()) - before).abs().max())


def _scaled(symmetry: Symmetry, function, values: Mapping[str, Tensor], generator, tolerance: float) -> float:
    """The change by random scalings of units, where the symmetry has them."""
    if not symmetry.scalings or not isinstance(function, GraphFunction):
        return 0.0
    moved = dict(values)
    for scaling in symmetry.scalings:
        noise = torch.randn(symmetry.atoms[scaling.atom].size, generator=generator, dtype=torch.float64, device="cpu")
        moved = scaling.apply(symmetry.sites, moved, 0.5 * noise)
    with torch.no_grad():
        change = float((function.differentiable(moved) - function.differentiable(values)).abs().max())
    if not change <= tolerance:
        raise SymmetryError(f"the scalings of units change the model by {change:.3g} (rounding allows {tolerance:.1e})")
    return change


def _blame(symmetry: Symmetry, function, permutation, values, before, tolerance, change) -> str:
    guilty = []
    for name in symmetry.atoms:
        if not _change(function, permutation.only(name), values, before) <= tolerance:
            guilty.append(name)
    places = "; ".join(f"'{n}' on " + ", ".join(f"{s}[{a}]" for s, a in symmetry.carriers[n]) for n in guilty)
    what = f"atom {places}" if guilty else "its atoms, taken together"
    return (
        f"relabeling {what} changes the log joint by {change:.3g} nats (rounding allows {tolerance:.1e}). "
        "Either the axes named are not interchangeable, or a site that carries the same units is missing."
    )
