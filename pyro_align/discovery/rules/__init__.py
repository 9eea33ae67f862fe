"""One rule per operation: how its axes are related.

A rule takes the :class:`~pyro_align.discovery.infer.Call` and the operation's own arguments, with an ``AxisTensor`` in
place of each tensor, and returns one term per axis of the output (a list of these for several outputs). What it must
guarantee: if every input is relabeled as its terms say, then the output is relabeled as the returned terms say.

Example: an operator of one's own that mixes the last axis and treats the others alike.

    >>> from pyro_align.discovery import rule
    >>> @rule("mylib.mix_last")
    ... def mix_last(call, x):
    ...     call.fix(x.axes[-1])
    ...     return x.axes
"""

from __future__ import annotations

from collections.abc import Callable

import torch

RULES: dict[str, Callable] = {}


def rule(*names: str) -> Callable:
    """Registers a rule for operations by name: ``"aten.mm"`` (every overload) or ``"aten.mm.default"`` (that one)."""

    def register(function: Callable) -> Callable:
        for name in names:
            RULES[name] = function
        return function

    return register


def find_rule(operation) -> Callable | None:
    """The rule of an ATen (or custom) operator: by overload, by name, then by its pointwise tag."""
    name = str(operation)
    found = RULES.get(name) or RULES.get(name.rsplit(".", 1)[0])
    if found is not None:
        return found
    tags = getattr(operation, "tags", ())
    if torch.Tag.pointwise in tags:
        return RULES["tag.pointwise"]
    return None


from pyro_align.discovery.rules import contraction, elementwise, indexing, linalg, spatial, views  # noqa: E402, F401
