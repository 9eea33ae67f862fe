"""One registry of rules a domain: what an operation, or a family of operations, does to the domain's values.

A rule takes the domain's call and the operation's own arguments, with the domain's value in place of each tensor, and
returns the domain's value of the output (a list of these for several outputs).

Example: an operator of one's own that mixes the last axis and treats the others alike.

    >>> from pyro_align.discovery import rule
    >>> @rule("mylib.mix_last")
    ... def mix_last(call, x):
    ...     call.fix(x.axes[-1])
    ...     return x.axes
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro_align.discovery import ops


class Registry:
    """Rules by operation and by family.

    Attributes:
        domain: What the rules speak of, for messages.
        rules: Name of an operation, or ``"family.<name>"`` -> rule.
    """

    def __init__(self, domain: str):
        self.domain = domain
        self.rules: dict[str, Callable[..., Any]] = {}

    def __call__(self, *names: str, family: str | None = None) -> Callable[..., Any]:
        """Registers a rule.

        Args:
            names: Operations by name: ``"aten.mm"`` (every overload), ``"aten.mm.default"`` (that one), or
                ``"family.view"`` (every operation of a family that has no rule of its own).
            family: Declares the operations to be of this family, which other domains have a rule for: ``"view"`` for
                one that lays out entries of one tensor in another way.
        """
        if family is not None:
            ops.declare(family, *names)

        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            for name in names:
                self.rules[name] = function
            return function

        return register

    def find(self, operation: Any) -> Callable[..., Any] | None:
        """The rule of an operator: by overload, by name, then by family."""
        keys = (*ops.names_of(operation), *(f"family.{name}" for name in ops.families_of(operation)))
        return next((self.rules[key] for key in keys if key in self.rules), None)

    def operations(self) -> dict[str, Callable[..., Any]]:
        """Every operation with a rule, by the name under which it stands in the tables; ``family.pointwise`` is one."""
        by_family = {name: self.rules[f"family.{f}"] for name, f in ops.FAMILIES.items() if f"family.{f}" in self.rules}
        own = {name: rule for name, rule in self.rules.items() if not name.startswith("family.")}
        tagged = {name: rule for name, rule in self.rules.items() if name == "family.pointwise"}
        return {**by_family, **own, **tagged}


rule: Registry = Registry("axes")
sign_rule: Registry = Registry("signs")
rotation_rule: Registry = Registry("rotations")
scale_rule: Registry = Registry("scalings")
