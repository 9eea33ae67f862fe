"""A rule tested alone: the operation must commute with every relabeling that its rule claims."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from operator import getitem
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from pyro_align.discovery.assemble import name_atoms, write_axes
from pyro_align.discovery.infer import AxisTensor, Inference
from pyro_align.discovery.terms import _instantiate, resolve
from pyro_align.discovery.tracing import TracedGraph
from pyro_align.errors import SymmetryError
from pyro_align.symmetry.element import Permutation
from pyro_align.symmetry.group import Symmetry

TOLERANCE = 1e-9  # relative; sums over relabeled axes are rounded in another order


@dataclass(frozen=True, eq=False)
class RuleCheck:
    """What a rule says of one call, found to be true.

    Attributes:
        operation: The operator's name.
        symmetry: Its claim: the tensors ``input0``, ``input1``, ... and ``output0``, ... as sites, so that relabeling
            the inputs relabels the outputs. Along an atom that outputs alone carry, they are constant.
        opaque: Whether there is no rule, or the rule does not cover this call: then everything keeps its order.
        error: Largest difference found, relative to the output's size; float64 rounding.
    """

    operation: str
    symmetry: Symmetry
    opaque: bool
    error: float


def check_rule(
    operation: Any,
    *args: Any,
    constants: Collection[int] = (),
    outputs: Collection[int] | None = None,
    trials: int = 3,
    seed: int = 0,
    **kwargs: Any,
) -> RuleCheck:
    """Tests the rule of an operator: relabels its inputs at random, runs it, and compares with the output relabeled.

    The operation runs alone, in float64. Give it inputs without special structure (random ones), and call this for
    several shapes: widths of one, equal neighboring sizes, sizes that divide each other.

    Args:
        operation: The operator: ``torch.ops.mylib.f``, an overload such as ``torch.ops.aten.mm.default``, or what
            ``torch.library.custom_op`` returned.
        args: Its arguments. One tensor given twice is one input.
        constants: Which of the tensors among the arguments, counted from 0, are constants of the model (an index, a
            mask): they stay as they are, and a rule may look at their values. The others are relabeled.
        outputs: Which of several outputs the model uses, counted from 0; all by default.
        trials: Random relabelings to try.
        seed: Seed of the relabelings.
        kwargs: Its keyword arguments.

    Returns:
        The claim, as a :class:`~pyro_align.Symmetry` of the inputs and outputs.

    Raises:
        SymmetryError: The claim is false; the message names the atom at fault and where it stands.
        TypeError: Not an operator, or one of several overloads without saying which.

    Example:
        >>> import torch
        >>> check = check_rule(torch.ops.aten.mm.default, torch.randn(4, 3), torch.randn(3, 2))
        >>> [" x ".join(map(str, axes)) for axes in check.symmetry.sites.values()]
        ['input0 x input1', 'input1 x input1[1]', 'input0 x input1[1]']
    """
    alone = _Alone(_overload(operation), args, kwargs, frozenset(constants), outputs)
    claims, opaque = alone.claims()
    generator = torch.Generator().manual_seed(seed)
    before, error = alone.run(alone.values), 0.0
    for symmetry in claims:
        for _ in range(trials):
            permutation = symmetry.random(generator)
            change = alone.difference(before, permutation)
            if not change <= TOLERANCE:
                raise SymmetryError(alone.blame(before, permutation, change))
            error = max(error, change)
    return RuleCheck(str(alone.operation), claims[0], opaque, error)


def _overload(operation: Any) -> torch._ops.OpOverload:
    operation = getattr(operation, "_opoverload", operation)  # of torch.library.custom_op
    if isinstance(operation, torch._ops.OpOverloadPacket):
        names = operation.overloads()
        if len(names) > 1:
            raise TypeError(f"{operation} has overloads {names}; say which, e.g. {operation}.{names[0]}")
        operation = getattr(operation, names[0])
    if not isinstance(operation, torch._ops.OpOverload):
        raise TypeError(f"expected an operator such as torch.ops.aten.mm.default, got {operation!r}")
    return operation


class _Alone:
    """One call of an operator, as a graph of its own."""

    def __init__(self, operation, args: tuple, kwargs: Mapping[str, Any], constants: frozenset[int], outputs):
        self.operation = operation
        self.leaves, self.spec = pytree.tree_flatten((args, dict(kwargs)))
        self.values: dict[str, Tensor] = {}
        self.slots: dict[int, str] = {}  # place among the arguments -> input
        graph, root, nodes, seen = fx.Graph(), nn.Module(), {}, {}
        tensors = [i for i, leaf in enumerate(self.leaves) if isinstance(leaf, Tensor)]
        for k, i in enumerate(tensors):
            given = self.leaves[i]
            value = self.leaves[i] = given.detach().double() if given.is_floating_point() else given
            if id(given) in seen:
                nodes[i], self.slots[i] = seen[id(given)]
                continue
            if k in constants:
                root.register_buffer(f"constant{k}", value)
                nodes[i] = graph.get_attr(f"constant{k}")
            else:
                nodes[i], self.slots[i] = graph.placeholder(f"input{k}"), f"input{k}"
                self.values[f"input{k}"] = value
                seen[id(given)] = nodes[i], f"input{k}"
            nodes[i].meta["val"] = value
        filled, named = pytree.tree_unflatten([nodes.get(i, leaf) for i, leaf in enumerate(self.leaves)], self.spec)
        call = graph.call_function(operation, tuple(filled), named)
        call.meta["val"] = self._call(self.leaves)
        self.used, parts = _parts(graph, call, outputs)
        graph.output(parts)
        site_nodes = {name: (nodes[i],) for i, name in self.slots.items()}
        self.traced = TracedGraph(fx.GraphModule(root, graph), self.values, site_nodes, {})

    def _call(self, leaves: list):
        args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        with torch.no_grad():
            return self.operation(*args, **kwargs)

    def run(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The outputs at other inputs."""
        leaves = list(self.leaves)
        for i, name in self.slots.items():
            leaves[i] = values[name].clone()
        out = self._call(leaves)
        found = out if isinstance(out, tuple | list) else [out]
        return {f"output{k}": found[k] for k in self.used if isinstance(found[k], Tensor)}

    def claims(self) -> tuple[list[Symmetry], bool]:
        """The largest groups that the rule allows, over inputs and outputs, and whether it is opaque.

        Where either of two atoms could be nested in the other, a group has to choose. In a model the choice may be made
        by other operations, so that both must hold: the second group chooses the other way round.
        """
        inference = _Unfinished(self.traced)
        found = {f"output{k}": axes for k, axes in zip(self.used, inference.outputs, strict=True) if axes is not None}
        # a uniform axis of an output claims that any relabeling leaves it alone: an atom that only the output has
        outputs = {name: [resolve(_instantiate(resolve(t))) for t in axes] for name, axes in found.items()}
        sites = {**inference.sites, **outputs}
        tensors = [*inference.tensors, *outputs.values()]
        groups = []
        for turn in (lambda items: list(items), lambda items: list(reversed(items))):
            ordered = {name: turn(axes) for name, axes in turn(sites.items())}
            atoms, _ = name_atoms(SimpleNamespace(sites=ordered, tensors=tensors))
            written = {name: write_axes([resolve(t) for t in axes], atoms) for name, axes in sites.items()}
            try:
                groups.append(Symmetry(written))
            except SymmetryError:  # turned round, the axes of one tensor may depend on each other in a circle
                if not groups:
                    raise
        return groups, bool(inference.opaque)

    def difference(self, before: Mapping[str, Tensor], permutation: Permutation) -> float:
        """How far the outputs of the relabeled inputs are from the relabeled outputs, relative to their size."""
        after = self.run({name: permutation.apply_site(name, value) for name, value in self.values.items()})
        return max((_distance(after[name], permutation.apply_site(name, t)) for name, t in before.items()), default=0.0)

    def blame(self, before: Mapping[str, Tensor], permutation: Permutation, change: float) -> str:
        symmetry = permutation.symmetry
        guilty = [name for name in symmetry.atoms if not self.difference(before, permutation.only(name)) <= TOLERANCE]
        places = "; ".join(f"'{n}' on " + ", ".join(f"{s}[{a}]" for s, a in symmetry.carriers[n]) for n in guilty)
        shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in self.values.items())
        return (
            f"the rule of {self.operation} claims too much for {shapes}: relabeling "
            f"{f'atom {places}' if guilty else 'its atoms, taken together,'} changes the output by {change:.2g} of its "
            f"size. Its claim:\n{symmetry}"
        )


class _Unfinished(Inference):
    """Inference that does not fix its outputs: they are what the rule speaks of."""

    def _finish(self, node: fx.Node) -> None:
        found = [self._env[source] for source in node.args[0]]
        self.outputs = [t.axes if isinstance(t, AxisTensor) else None for t in found]


def _parts(graph: fx.Graph, call: fx.Node, used: Collection[int] | None) -> tuple[list[int], list[fx.Node]]:
    """The outputs of a call that are used: their numbers and a node each."""
    value = call.meta["val"]
    if not isinstance(value, tuple | list):
        return [0], [call]
    numbers = list(range(len(value))) if used is None else sorted(used)
    parts = [graph.call_function(getitem, (call, k)) for k in numbers]
    for k, part in zip(numbers, parts, strict=True):
        part.meta["val"] = value[k]
    return numbers, parts


def _distance(a: Tensor, b: Tensor) -> float:
    if not a.numel():
        return 0.0
    if not (a.is_floating_point() or a.is_complex()):
        return 0.0 if torch.equal(a, b) else 1.0
    same = (a == b) | (a.isnan() & b.isnan())
    gap = torch.where(same, 0.0, (a - b).abs())
    size = torch.where(a.isfinite(), a.abs(), 0.0).max()
    return float((gap / (1.0 + size)).max())
