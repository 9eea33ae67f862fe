"""A rule of rotations tested alone: the operation must follow every rotation that its rule lets through."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from pyro_align.axes import Atom, map_atoms
from pyro_align.discovery.axes.assemble import name_atoms, write_axes
from pyro_align.discovery.axes.checking import read_alone
from pyro_align.discovery.axes.terms import Var, resolve, variables
from pyro_align.discovery.checking import Action, Alone, Values
from pyro_align.discovery.registry import rotation_rule
from pyro_align.discovery.rotations.domain import SQUARE, VECTOR, RotationDomain, RotationTensor
from pyro_align.discovery.walk import walk
from pyro_align.symmetry.element import Permutation
from pyro_align.symmetry.group import Symmetry


@dataclass(frozen=True)
class RotationCheck:
    """What a rule of rotations says of one call, found to be true.

    Attributes:
        operation: The operator's name.
        rotated: Which axes of the inputs may be rotated, such as ``("input0[1]", "input1[0]")``.
        squares: Which axes of the outputs hold squares that await their sum.
        opaque: Whether there is no rule: then nothing may be rotated.
        error: Largest difference found, relative to the output's size; float64 rounding.
    """

    operation: str
    rotated: tuple[str, ...]
    squares: tuple[str, ...]
    opaque: bool
    error: float


def check_rotation_rule(
    operation: Any,
    *args: Any,
    constants: Collection[int] = (),
    outputs: Collection[int] | None = None,
    trials: int = 3,
    seed: int = 0,
    **kwargs: Any,
) -> RotationCheck:
    """Tests the rule of rotations of an operator: rotates its inputs, runs it, and compares.

    What the rules of axes leave interchangeable is rotated at random wherever the rule of rotations lets it through.
    Outputs must follow where the rule calls them vectors, and keep their sums where it calls them squares.

    Arguments are those of :func:`~pyro_align.discovery.check_rule`; random rotations are tried.

    Returns:
        The check, with the axes that may be rotated.

    Raises:
        SymmetryError: The rule claims too much; the message names the output.
        TypeError: Not an operator, or one of several overloads without saying which.

    Example:
        >>> import torch
        >>> check_rotation_rule(torch.ops.aten.mm.default, torch.randn(4, 3), torch.randn(3, 2)).rotated
        ('input0[0]', 'input0[1]', 'input1[0]', 'input1[1]')
        >>> check_rotation_rule(torch.ops.aten.tanh.default, torch.randn(4)).rotated
        ()
        >>> check_rotation_rule(torch.ops.aten.square.default, torch.randn(4)).squares
        ('output0[0]',)
    """
    alone = Alone(operation, args, kwargs, constants, outputs)
    claim = _Claim(alone)
    generator = torch.Generator().manual_seed(seed)
    count = trials if claim.rotated else 0
    elements = [claim.symmetry.random(generator).only(*claim.rotated) for _ in range(count)]

    def blame(move: Action, follow: Action, name: str, change: float) -> str:
        return (
            f"the rule of rotations of {alone.operation} claims too much for {alone.shapes}: a rotation of "
            f"{', '.join(claim.places(alone.values))} changes {name} by {change:.2g} of its size otherwise than it says"
        )

    actions = ((partial(claim.move, element), partial(claim.follow, element)) for element in elements)
    error = alone.verify(actions, blame, claim.summed)
    opaque = rotation_rule.find(alone.operation) is None
    return RotationCheck(str(alone.operation), claim.places(alone.values), claim.squares, opaque, error)


class _Claim:
    """What a rule says of one call: which atoms may be rotated, and how the outputs then follow."""

    def __init__(self, alone: Alone):
        inference, sites, tensors = read_alone(alone)
        outputs = {name: axes for name, axes in sites.items() if name not in inference.sites}
        atoms, _ = name_atoms(SimpleNamespace(sites=sites, tensors=tensors, named=None))
        carried = {v for axes in inference.sites.values() for t in axes for v in variables(resolve(t))}
        around = {name for atom in atoms.values() for name in atom.within}
        candidates = [v for v, a in atoms.items() if v in carried and not a.fixed and a.name not in around]
        domain = RotationDomain(inference, candidates, keep=True)
        walk(alone.traced, domain)
        left = {v: atoms[v].name for v in candidates if v not in domain.broken}
        self.rotated = tuple(left.values())
        kinds = {name: domain.kind(v) for v, name in left.items()}
        self._claims = alone.by_name(domain.outputs)
        self._sums = {name: self._axes_to_sum(name, outputs[name], left) for name in outputs}
        self.squares = tuple(f"{name}[{axis}]" for name, axes in self._sums.items() for axis in axes or ())
        kept = {
            name: [t for i, t in enumerate(axes) if i not in (self._sums.get(name) or ())]
            for name, axes in sites.items()
        }

        def marked(atom: Atom) -> Atom:
            return replace(atom, kind=kinds.get(atom.name, atom.kind))

        written = {name: write_axes([resolve(t) for t in axes], atoms) for name, axes in kept.items()}
        self.symmetry = Symmetry({name: tuple(map_atoms(t, marked) for t in terms) for name, terms in written.items()})

    def _axes_to_sum(self, name: str, axes: list[Any], left: dict[Var, str]) -> list[int] | None:
        """The output's axes that hold squares alone; None where one holds vectors as well and cannot be summed."""
        claim = self._claims[name]
        states = claim.states if isinstance(claim, RotationTensor) else {}
        found = []
        for axis, term in enumerate(axes):
            here = {states.get(v) for v in variables(term) if v in left}
            if SQUARE in here and VECTOR in here:
                return None
            if SQUARE in here:
                found.append(axis)
        return found

    def places(self, inputs: Values) -> tuple[str, ...]:
        """The axes of inputs that are rotated."""
        carriers = {place for name in self.rotated for place in self.symmetry.carriers[name]}
        return tuple(f"{site}[{axis}]" for site, axis in sorted(carriers) if site in inputs)

    def summed(self, outputs: Values) -> Values:
        """The outputs that the rule speaks of, squares summed up."""
        return {
            name: value.sum(axes) if axes and value.is_floating_point() else value
            for name, value in outputs.items()
            if (axes := self._sums.get(name)) is not None
        }

    def move(self, element: Permutation, inputs: Values) -> Values:
        """The inputs rotated."""
        return {name: element.apply_site(name, value) for name, value in inputs.items()}

    def follow(self, element: Permutation, outputs: Values) -> Values:
        """The outputs as the rule says that they become."""
        return {name: self._followed(element, name, value) for name, value in outputs.items()}

    def _followed(self, element: Permutation, name: str, value: Tensor) -> Tensor:
        claim = self._claims[name]
        if isinstance(claim, RotationTensor) and claim.zero:
            return torch.zeros_like(value)
        return element.apply_site(name, value) if value.is_floating_point() else value
