"""A rule of signs tested alone: the operation must follow every change of signs that its rule allows."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyro_align.discovery.checking import Action, Alone, Values
from pyro_align.discovery.registry import sign_rule
from pyro_align.discovery.signs.domain import SignDomain, SignTensor
from pyro_align.discovery.signs.parity import EVEN, ZERO, Parities, on_host
from pyro_align.discovery.walk import walk


@dataclass(frozen=True)
class SignCheck:
    """What a rule of signs says of one call, found to be true.

    Attributes:
        operation: The operator's name.
        entries: Number of entries of the inputs, each with a sign of its own to begin with.
        free: How many of these signs may be chosen at will, the others following from them.
        opaque: Whether there is no rule: then no entry may change sign.
        error: Largest difference found, relative to the output's size; float64 rounding.
    """

    operation: str
    entries: int
    free: int
    opaque: bool
    error: float


def check_sign_rule(
    operation: Any,
    *args: Any,
    constants: Collection[int] = (),
    outputs: Collection[int] | None = None,
    trials: int = 8,
    seed: int = 0,
    **kwargs: Any,
) -> SignCheck:
    """Tests the rule of signs of an operator: changes signs of its inputs, runs it, and compares.

    Every entry of every input has a sign of its own. The rule says which of them must agree; any choice that it allows
    must change the signs of the output as it says.

    Arguments are those of :func:`~pyro_align.discovery.check_rule`; random choices of signs are tried.

    Returns:
        The check, with the number of signs that may be chosen.

    Raises:
        SymmetryError: The rule claims too much; the message names the output.
        TypeError: Not an operator, or one of several overloads without saying which.

    Example:
        >>> import torch
        >>> check_sign_rule(torch.ops.aten.tanh.default, torch.randn(2, 3)).free
        6
        >>> check_sign_rule(torch.ops.aten.relu.default, torch.randn(2, 3)).free
        0
        >>> check_sign_rule(torch.ops.aten.mm.default, torch.randn(2, 3), torch.randn(3, 4)).free  # 2 + 3 + 4 - 1
        8
    """
    alone = Alone(operation, args, kwargs, constants, outputs)
    claim = _Claim(alone)
    generator = torch.Generator().manual_seed(seed)
    choices = [claim.choice(generator) for _ in range(trials if claim.basis else 0)]

    def blame(move: Action, follow: Action, name: str, change: float) -> str:
        return (
            f"the rule of signs of {alone.operation} claims too much for {alone.shapes}: a change of signs that "
            f"it allows changes {name} by {change:.2g} of its size otherwise than it says"
        )

    error = alone.verify(((partial(claim.move, flips), partial(claim.follow, flips)) for flips in choices), blame)
    opaque = sign_rule.find(alone.operation) is None
    return SignCheck(str(alone.operation), claim.count, len(claim.basis), opaque, error)


class _Claim:
    """What a rule says of one call whose inputs have an unknown for the sign of every entry."""

    def __init__(self, alone: Alone):
        self.parities, self.count = Parities(), 0
        self.offsets: dict[str, int] = {}
        for name, value in alone.values.items():
            self.offsets[name] = self.count
            self.count += value.numel() if value.is_floating_point() else 0
        self.values = alone.values
        domain = SignDomain(self.parities, self._ids_of_input, keep=True)
        on_host(walk)(alone.traced, domain)
        self.outputs = alone.by_name(domain.outputs)
        self.basis = self.parities.equations.solutions(self.count)

    @on_host
    def _ids_of_input(self, name: str) -> Tensor:
        value = self.values[name]
        if not value.is_floating_point():
            return torch.full((), EVEN, dtype=torch.int32).expand(value.shape)
        numbers = [self.parities.number(1 << (self.offsets[name] + i)) for i in range(value.numel())]
        return torch.tensor(numbers, dtype=torch.int32).reshape(value.shape)

    def choice(self, generator: torch.Generator) -> int:
        """A random solution."""
        flips = 0
        for vector, use in zip(self.basis, torch.rand(len(self.basis), generator=generator).tolist(), strict=True):
            flips ^= vector if use < 0.5 else 0
        return flips

    def move(self, flips: int, inputs: Values) -> Values:
        """The inputs with their signs changed."""
        return {name: _flipped(value, flips, self.offsets[name]) for name, value in inputs.items()}

    def follow(self, flips: int, outputs: Values) -> Values:
        """The outputs as the rule says that they become; NaN where it says zero of what is not."""
        signs = [-1.0 if (flips & total).bit_count() % 2 else 1.0 for total in self.parities.sums]
        out = {}
        for name, value in outputs.items():
            claim = self.outputs[name]
            if not isinstance(claim, SignTensor) or not value.is_floating_point():
                out[name] = value
                continue
            ids = claim.ids.to(value.device)
            sign = torch.tensor(signs, dtype=value.dtype, device=value.device)[ids.long()]
            sign = torch.where((ids == ZERO) & (value != 0), torch.nan, sign)
            out[name] = value * sign
        return out


def _flipped(value: Tensor, flips: int, offset: int) -> Tensor:
    if not value.is_floating_point():
        return value
    signs = [-1.0 if flips >> (offset + i) & 1 else 1.0 for i in range(value.numel())]
    return value * torch.tensor(signs, dtype=value.dtype, device=value.device).reshape(value.shape)
