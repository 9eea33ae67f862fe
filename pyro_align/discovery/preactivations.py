"""Pre-activations of any traced model: the affine maps whose output is one hidden unit each, and what sets them.

A unit's pre-activation is the output of a sum of products of data with a weight site, plus a bias site where there is
one. Scaling a row of the weights and moving the bias then scales and moves that unit's pre-activation and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.fx import Node

from pyro_align.axes import Atom, Axis, leaves
from pyro_align.discovery.activations import dependents, is_view, viewed
from pyro_align.discovery.axes.assemble import infer, name_atoms, write_axes
from pyro_align.discovery.axes.inference import AxisTensor
from pyro_align.discovery.graphs import Running
from pyro_align.discovery.ops import contraction_of
from pyro_align.discovery.tracing import TracedGraph
from pyro_align.symmetry.group import Symmetry

Moments = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class AffineLayer:
    """Units whose pre-activations one weight site and perhaps one bias site set, for each unit alone.

    Attributes:
        atom: The units.
        axis: Which axis of the pre-activations is the units'.
        weight: Name of the weight site, and which of its axes is the units'.
        bias: Name of the bias site and its axis, or None.
    """

    atom: str
    axis: int
    weight: tuple[str, int]
    bias: tuple[str, int] | None


@dataclass(frozen=True, eq=False)
class PreactivationProbe:
    """Where a model's pre-activations are, in the order of the graph, and a function that measures them.

    Attributes:
        layers: Which sites set which units.
    """

    layers: tuple[AffineLayer, ...]
    _traced: TracedGraph = field(repr=False)
    _nodes: tuple[Node, ...] = field(repr=False)

    @classmethod
    def of(cls, traced: TracedGraph, symmetry: Symmetry) -> PreactivationProbe:
        """Finds the pre-activations of a traced model.

        Args:
            traced: The graph.
            symmetry: The model's symmetry, as discovery finds it: the atoms' names are its.
        """
        inference, finder = infer(traced), _Finder(traced, symmetry)
        atoms, _ = name_atoms(inference)
        found = {}
        for node in traced.module.graph.nodes:
            reached = finder.affine(node)
            if reached is None:
                continue
            output, weight, bias = reached
            if not isinstance(tensor := inference.tensor_of(output), AxisTensor):
                continue
            layer = finder.layer(write_axes(tensor.axes, atoms), weight, bias)
            if layer is not None:
                found[output] = layer
        nodes = tuple(node for node in traced.module.graph.nodes if node in found)
        return cls(tuple(found[node] for node in nodes), traced, nodes)

    def moments(
        self, draws: Iterable[Mapping[str, Tensor]], adjust: Callable[[int, Tensor, Tensor], Moments] | None = None
    ) -> list[Moments]:
        """Mean and standard deviation of each unit's pre-activation over data and posterior draws.

        The network runs once for each draw, in its own dtype, all draws layer by layer together.

        Args:
            draws: Site values, one mapping per draw.
            adjust: Called with a layer's place in :attr:`layers`, the means and the standard deviations; gives a factor
                and a shift for each unit's pre-activation, under which all that follows is computed.

        Returns:
            Layer by layer two float64 tensors ``(units,)``, as measured, before they are adjusted.
        """
        runs, found = [Running(self._traced, values) for values in draws], []
        for place, (node, layer) in enumerate(zip(self._nodes, self.layers, strict=True)):
            values = [run.until(node) for run in runs]
            units = [value.movedim(layer.axis, 0).flatten(1).double() for value in values]
            mean = torch.stack([u.mean(1) for u in units]).mean(0)
            square = torch.stack([(u - mean.unsqueeze(1)).square().mean(1) for u in units]).mean(0)
            found.append((mean, square.sqrt()))
            if adjust is None:
                continue
            shape = [-1 if i == layer.axis else 1 for i in range(values[0].dim())]
            factor, shift = (part.reshape(shape).to(values[0]) for part in adjust(place, *found[-1]))
            for run, value in zip(runs, values, strict=True):
                run.put(node, factor * value + shift)
        return found


class _Finder:
    """Looks for affine maps in one graph."""

    def __init__(self, traced: TracedGraph, symmetry: Symmetry):
        self.symmetry = symmetry
        self.sites = {node: name for name, nodes in traced.nodes.items() for node in nodes}
        self.on_data = dependents(traced, traced.data)

    def affine(self, node: Node) -> tuple[Node, str, str | None] | None:
        """The output of an affine map of data that begins at a node, and its weight and bias sites."""
        spec = contraction_of(node.target) if node.op == "call_function" else None
        if spec is None or node not in self.on_data:
            return None
        given = [node.args[i] for i in spec.factors]
        weights = [w for x in given if x not in self.on_data and (w := self._site(x)) is not None]
        if len(weights) != 1:
            return None
        added = spec.added_to(node.args)
        if added is not None:
            bias = self._site(added)
            return None if bias is None else (node, weights[0], bias)
        output, bias = self._added(node)
        return output, weights[0], bias

    def _added(self, node: Node) -> tuple[Node, str | None]:
        """Where the map ends: after the bias that is added to its output, if a site alone is."""
        last = node
        while len(node.users) == 1:
            (user,) = node.users
            kind = getattr(user.target, "_opname", "")
            if kind == "add" and len(user.args) == 2 and not user.kwargs:
                other = user.args[1] if user.args[0] is node else user.args[0]
                bias = self._site(other) if isinstance(other, Node) and other not in self.on_data else None
                return (user, bias) if bias is not None else (last, None)
            if not is_view(user):
                break
            node = user
        return last, None

    def layer(self, axes: tuple[Axis, ...], weight: str, bias: str | None) -> AffineLayer | None:
        """The layer, if its units can be told on every site, and no other use of the data sees these sites."""
        units = [(i, t.name) for i, t in enumerate(axes) if isinstance(t, Atom) and t.name in self.symmetry.atoms]
        if len(units) != 1:
            return None
        ((axis, atom),) = units
        found = [self._carrier(site, atom) for site in (weight, bias) if site is not None]
        if any(place is None for place in found):
            return None
        return AffineLayer(atom, axis, found[0], found[1] if bias is not None else None)

    def _carrier(self, site: str, atom: str) -> tuple[str, int] | None:
        terms = self.symmetry.sites.get(site, ())
        carrying = [i for i, term in enumerate(terms) if any(a.name == atom for a in leaves(term))]
        alone = len(carrying) == 1 and isinstance(terms[carrying[0]], Atom)
        return (site, carrying[0]) if alone and self._uses(site) == 1 else None

    def _uses(self, site: str) -> int:
        """How many operations bring a site together with data."""
        waiting, count = [node for node, name in self.sites.items() if name == site], 0
        while waiting:
            for user in waiting.pop().users:
                if user in self.on_data:
                    count += 1
                elif is_view(user):
                    waiting.append(user)
        return count

    def _site(self, node: Node) -> str | None:
        return self.sites.get(viewed(node))
