"""A rule of signs tested alone: the operation must follow every change of signs that its rule allows."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_align.discovery.checking import TOLERANCE, _Alone, _distance, _overload, _Unfinished
from pyro_align.discovery.signs.call import SignTensor
from pyro_align.discovery.signs.parity import EVEN, ZERO, Parities, on_host
from pyro_align.discovery.signs.registry import find_sign_rule
from pyro_align.discovery.signs.walk import walk
from pyro_align.errors import SymmetryError


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

    Args:
        operation: The operator, as for :func:`~pyro_align.discovery.check_rule`.
        args: Its arguments; small tensors without special structure.
        constants: Which of the tensors among the arguments, counted from 0, are constants of the model: a rule may look
            at their values.
        outputs: Which of several outputs the model uses, counted from 0; all by default.
        trials: Random choices of signs to try.
        seed: Seed of the signs.
        kwargs: Its keyword arguments.

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
    alone = _Alone(_overload(operation), args, kwargs, frozenset(constants), outputs)
    parities, offsets, count = Parities(), {}, 0
    for name, value in alone.values.items():
        offsets[name] = count
        count += value.numel() if value.is_floating_point() else 0

    @on_host
    def ids_of_input(name: str) -> Tensor:
        value = alone.values[name]
        if not value.is_floating_point():
            return torch.full((), EVEN, dtype=torch.int32).expand(value.shape)
        numbers = [parities.number(1 << (offsets[name] + i)) for i in range(value.numel())]
        return torch.tensor(numbers, dtype=torch.int32).reshape(value.shape)

    claimed = on_host(walk)(_Unfinished(alone.traced), parities, ids_of_input)
    basis = parities.equations.solutions(count)
    generator = torch.Generator().manual_seed(seed)
    before, error = alone.run(alone.values), 0.0
    for _ in range(trials if basis else 0):
        flips = 0
        for vector, use in zip(basis, torch.rand(len(basis), generator=generator).tolist(), strict=True):
            flips ^= vector if use < 0.5 else 0
        after = alone.run({k: _flipped(v, flips, offsets[k]) for k, v in alone.values.items()})
        for k, claim in zip(alone.used, claimed, strict=True):
            if f"output{k}" in before and isinstance(claim, SignTensor):
                gap = _gap(before[f"output{k}"], after[f"output{k}"], claim.ids, parities, flips)
                if not gap <= TOLERANCE:
                    shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in alone.values.items())
                    raise SymmetryError(
                        f"the rule of signs of {alone.operation} claims too much for {shapes}: a change of signs that "
                        f"it allows changes output {k} by {gap:.2g} of its size otherwise than it says"
                    )
                error = max(error, gap)
    return SignCheck(str(alone.operation), count, len(basis), find_sign_rule(alone.operation) is None, error)


def _flipped(value: Tensor, flips: int, offset: int) -> Tensor:
    if not value.is_floating_point():
        return value
    signs = [-1.0 if flips >> (offset + i) & 1 else 1.0 for i in range(value.numel())]
    return value * torch.tensor(signs, dtype=value.dtype, device=value.device).reshape(value.shape)


def _gap(before: Tensor, after: Tensor, ids: Tensor, parities: Parities, flips: int) -> float:
    """How far the new output is from the old one with the signs claimed."""
    if not before.is_floating_point():
        return _distance(before, after)
    before, after = before.cpu(), after.cpu()
    table = torch.tensor([-1.0 if (flips & total).bit_count() % 2 else 1.0 for total in parities.sums], device="cpu")
    nothing = ids == ZERO  # claimed to be zero
    return max(_distance(before * table[ids.long()].to(before.dtype), after), float(before[nothing].abs().sum()))
