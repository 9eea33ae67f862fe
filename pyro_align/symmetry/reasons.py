"""Why an axis keeps its order, and what was given up on the way."""

from __future__ import annotations

from dataclasses import dataclass

WHOLE_SITES = "sites of equal role"


@dataclass(frozen=True)
class OpaqueOperation:
    """An operation that fixed axes only for want of a rule: symmetries that pass through it are missed.

    ``"sites of equal role"`` stands for a family of sites that are used alike wherever they are used, such as the
    experts of a ``ModuleList``: they may well change places as wholes, which no axis says.

    Attributes:
        operation: The operation's ATen name.
        where: Source line that called it, where known.
        sites: Sites whose axes it fixed.
    """

    operation: str
    where: str
    sites: tuple[str, ...] = ()

    @property
    def is_family(self) -> bool:
        """Whether it stands for a family of sites instead of an operation."""
        return self.operation == WHOLE_SITES


@dataclass(frozen=True)
class Reason:
    """What made an axis keep its order, or a part of it.

    Attributes:
        kind: ``"data"``, ``"constant"``, ``"output"``, ``"support"``, ``"operation"``, ``"no rule"``, ``"structure"``;
            of an axis that moves, ``"form"`` (it is read as a product or a sum) or ``"tied"`` (it moves alike for all
            indices of another).
        operation: The operation at fault, by its ATen name; empty where there is none.
        where: Source line, where known.
        must: Whether the axis must keep its order; False where discovery only has no rule, so that a symmetry may have
            been missed.
        detail: What else there is to say: which data, which constant, which support.
        through: The operation that tied the axis to the data or constant.
    """

    kind: str
    operation: str
    where: str
    must: bool
    detail: str = ""
    through: str = ""

    def __str__(self) -> str:
        where = f" ({self.where})" if self.where else ""
        if self.kind == "form":
            by = self.operation or "what it meets"
            return f"{by} reads it in this form{where}: orders that do not keep the form are not looked for"
        if self.kind == "tied":
            return f"{self.operation} has it without {self.detail}{where}: it moves alike for every index of that"
        said = {
            "data": f"it is tied to {self.detail}",
            "constant": f"it is tied to {self.detail} that varies along it",
            "output": "it is an axis of what the model returns, whose order is kept",
            "support": f"the support {self.detail} distinguishes its entries",
            "operation": f"{self.operation} distinguishes its entries",
            "no rule": f"{self.operation} has no rule",
            "structure": f"at {self.operation or 'its use'} two descriptions of it do not fit together",
        }[self.kind]
        through = f", through {self.through}" if self.through else ""
        verdict = "it must keep its order" if self.must else "a symmetry may have been missed"
        return f"{said}{through}{where}: {verdict}"


@dataclass(frozen=True)
class Why:
    """Why an axis of a site moves or keeps its order.

    Attributes:
        site: Name of the site.
        axis: Number of the axis.
        term: The axis's term.
        reasons: What fixed its parts, one reason for each, and what restricts parts that move.
    """

    site: str
    axis: int
    term: str
    reasons: tuple[Reason, ...] = ()

    @property
    def must(self) -> bool:
        """Whether all that is fixed must be."""
        return all(reason.must for reason in self.reasons)

    def __str__(self) -> str:
        head = f"{self.site}[{self.axis}] is {self.term}"
        return "\n".join([head, *(f"  {reason}" for reason in self.reasons)])
