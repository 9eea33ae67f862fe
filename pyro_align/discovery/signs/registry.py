"""The registry of rules of signs: what an operation does to its inputs' signs.

A rule takes the :class:`~pyro_align.discovery.signs.call.SignCall` and the operation's own arguments, with a
``SignTensor`` in place of each tensor, and returns a ``SignTensor`` (a list of these for several outputs). What it
must guarantee: if the entries of the inputs change sign as their parities say, and what the rule requires holds, then
the entries of the output change sign as the returned parities say. An operation without a rule lets no sign through:
nothing that goes in may change sign.

Example: an odd function of one's own.

    >>> from pyro_align.discovery import sign_rule
    >>> @sign_rule("mylib.cube_root")
    ... def cube_root(call, x):
    ...     return x
"""

from __future__ import annotations

from collections.abc import Callable

SIGN_RULES: dict[str, Callable] = {}


def sign_rule(*names: str) -> Callable:
    """Registers a rule of signs by name: ``"aten.mm"`` (every overload) or ``"aten.mm.default"`` (that one)."""

    def register(function: Callable) -> Callable:
        for name in names:
            SIGN_RULES[name] = function
        return function

    return register


def find_sign_rule(operation) -> Callable | None:
    """The rule of an operator: by overload, then by name."""
    name = str(operation)
    return SIGN_RULES.get(name) or SIGN_RULES.get(name.rsplit(".", 1)[0])
