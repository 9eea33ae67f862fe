"""A rule of axes tested alone: the operation must commute with every relabeling that its rule claims."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from pyro_align.discovery.axes.assemble import name_atoms, write_axes
from pyro_align.discovery.axes.inference import AxisTensor, Inference
from pyro_align.discovery.axes.terms import Term, instantiate, resolve
from pyro_align.discovery.checking import TOLERANCE, Action, Alone
from pyro_align.errors import SymmetryError
from pyro_align.symmetry.element import Permutation
from pyro_align.symmetry.group import Symmetry


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
    alone = Alone(operation, args, kwargs, constants, outputs)
    found, opaque = claims(alone)
    generator = torch.Generator().manual_seed(seed)
    elements = [symmetry.random(generator) for symmetry in found for _ in range(trials)]
    error = 0.0
    for element in elements:
        action = _action(element)
        error = max(error, alone.verify([(action, action)], lambda *_, element=element: _blame(alone, element, _[-1])))
    return RuleCheck(str(alone.operation), found[0], opaque, error)


def claims(alone: Alone) -> tuple[list[Symmetry], bool]:
    """The largest groups that the rule allows, over inputs and outputs, and whether it is opaque.

    Where either of two atoms could be nested in the other, a group has to choose. In a model the choice may be made
    by other operations, so that both must hold: the second group chooses the other way round.
    """
    inference, sites, tensors = read_alone(alone)
    groups = []
    for turn in (lambda items: list(items), lambda items: list(reversed(items))):
        ordered = {name: turn(axes) for name, axes in turn(sites.items())}
        atoms, _ = name_atoms(SimpleNamespace(sites=ordered, tensors=tensors, named=None))
        written = {name: write_axes([resolve(t) for t in axes], atoms) for name, axes in sites.items()}
        try:
            groups.append(Symmetry(written))
        except SymmetryError:  # turned round, the axes of one tensor may depend on each other in a circle
            if not groups:
                raise
    return groups, inference.opaque


def _action(permutation: Permutation) -> Action:
    return lambda values: {name: permutation.apply_site(name, value) for name, value in values.items()}


def _blame(alone: Alone, permutation: Permutation, change: float) -> str:
    """The atoms that alone change the output, with the tensors that carry them."""
    symmetry, before, guilty = permutation.symmetry, alone.run(alone.values), []
    for name in symmetry.atoms:
        action = _action(permutation.only(name))
        if not max(alone.changes(action(before), alone.run(action(alone.values))).values()) <= TOLERANCE:
            guilty.append(name)
    places = "; ".join(f"'{n}' on " + ", ".join(f"{s}[{a}]" for s, a in symmetry.carriers[n]) for n in guilty)
    return (
        f"the rule of {alone.operation} claims too much for {alone.shapes}: relabeling "
        f"{f'atom {places}' if guilty else 'its atoms, taken together,'} changes the output by {change:.2g} of its "
        f"size. Its claim:\n{symmetry}"
    )


def read_alone(alone: Alone) -> tuple[Unfinished, dict[str, list[Term]], list[Sequence[Term]]]:
    """The axes of a call, those of its inputs and outputs by name, and of all tensors.

    A uniform axis of an output claims that any relabeling leaves it alone: an atom that only the output has.
    """
    inference = Unfinished(alone.traced)
    found = {name: axes for name, axes in alone.by_name(inference.outputs).items() if axes is not None}
    outputs = {name: [resolve(instantiate(resolve(t))) for t in axes] for name, axes in found.items()}
    return inference, {**inference.sites, **outputs}, [*inference.tensors, *outputs.values()]


class Unfinished(Inference):
    """Inference that does not fix its outputs: they are what the rule speaks of."""

    def finish(self, outputs: Sequence[Any], states: Mapping[str, Any]) -> None:
        self._fix_places(outputs)
        self.outputs: list[list[Term] | None] = [out.axes if isinstance(out, AxisTensor) else None for out in outputs]
