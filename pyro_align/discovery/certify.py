"""The certificate: random relabelings must leave the traced function alone, in float64."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from pyro_align.discovery.running import placed
from pyro_align.discovery.supports import check_support
from pyro_align.discovery.tracing import TracedGraph
from pyro_align.errors import SymmetryError, TraceError
from pyro_align.symmetry.element import Permutation
from pyro_align.symmetry.group import Certificate, Symmetry

RELATIVE = 1e-10  # of the log joint's magnitude; a forgotten site changes it by tenths of a nat


class DoubleInterpreter(fx.Interpreter):
    """Runs a graph in float64, whatever dtype it was traced in."""

    def fetch_attr(self, target):
        value = super().fetch_attr(target)
        return _double(value)

    def call_function(self, target, args, kwargs):
        args = tuple(map(_double_dtype, args))
        kwargs = {k: _double_dtype(v) for k, v in kwargs.items()}
        return super().call_function(target, args, kwargs)


def _double(value):
    return value.detach().double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _double_dtype(value):
    return torch.float64 if isinstance(value, torch.dtype) and value in _LOW else value


_LOW = (torch.float32, torch.float16, torch.bfloat16)


class GraphFunction:
    """The traced function at other site values, in float64: a scalar for a model, all outputs for a module.

    The updated values of sites (running statistics) are relabeled back before they are compared.
    """

    def __init__(self, traced: TracedGraph):
        self.traced = traced
        self._data = {node: _double(value) for node, value in traced.data.items()}

    def run(self, values: Mapping[str, Tensor], interpreter: type[DoubleInterpreter] = DoubleInterpreter):
        """Everything that the graph returns; ``interpreter`` may look on."""
        given = {**placed(self.traced, values, _double), **self._data}
        with torch.no_grad():
            return interpreter(self.traced.module, garbage_collect_values=True).run(initial_env=given)

    def __call__(self, values: Mapping[str, Tensor], back: Permutation | None = None) -> Tensor:
        out = self.run(values)
        results = [t for t in pytree.tree_leaves(out) if isinstance(t, Tensor)]
        if back is not None:
            for i, name in enumerate(self.traced.states, len(results) - len(self.traced.states)):
                if name in back.symmetry.sites:
                    results[i] = back.apply_site(name, results[i])
        flat = [t.reshape(-1).double() for t in results]
        return flat[0] if len(flat) == 1 else torch.cat(flat)


def certify_graph(
    symmetry: Symmetry, traced: TracedGraph, values: Mapping[str, Tensor], *, trials: int, seed: int
) -> Certificate:
    """Checks a symmetry against a traced function.

    Raises:
        SymmetryError: A relabeling changes the function; the message names the atom at fault.
        TraceError: The function is not finite at any of the draws tried.
    """
    function = GraphFunction(traced)
    generator = torch.Generator().manual_seed(seed)
    before = function(values)
    if not bool(torch.isfinite(before).all()):
        raise TraceError("the log joint is not finite at the draw on which the symmetry was to be certified")
    magnitude = float(before.abs().max())
    tolerance = RELATIVE * (1.0 + magnitude)
    error = 0.0
    for _ in range(trials):
        permutation = symmetry.random(generator)
        change = _change(function, permutation, values, before)
        error = max(error, change)
        if not change <= tolerance:
            raise SymmetryError(_blame(symmetry, function, permutation, values, before, tolerance, change))
    total = float(before.sum()) if before.numel() == 1 else math.nan
    return Certificate(trials, total, error, tolerance, seed)


def _change(function: GraphFunction, permutation: Permutation, values, before: Tensor) -> float:
    moved = {**values, **permutation.apply({k: v for k, v in values.items() if k in permutation.symmetry.sites})}
    check_support(values, moved, function.traced.supports)
    return float((function(moved, permutation.inverse()) - before).abs().max())


def _blame(symmetry: Symmetry, function, permutation, values, before, tolerance, change) -> str:
    guilty = []
    for name in symmetry.atoms:
        if not _change(function, permutation.only(name), values, before) <= tolerance:
            guilty.append(name)
    places = "; ".join(f"'{n}' on " + ", ".join(f"{s}[{a}]" for s, a in symmetry.carriers[n]) for n in guilty)
    what = f"atom {places}" if guilty else "its atoms, taken together"
    return (
        f"relabeling {what} changes the log joint by {change:.3g} nats (float64 rounding allows {tolerance:.1e}). "
        "Either the axes named are not interchangeable, or a site that carries the same units is missing."
    )
