"""What is known of a group beside its elements: the check it passed, what it rests on, what was given up, and why."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

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


@dataclass(frozen=True)
class Missing:
    """Linear symmetries that the model has and the group does not.

    Attributes:
        kind: ``"rotations"``, ``"scalings"``, or ``"linear maps"``.
        dimension: How many parameters they have.
        places: The ``(site, axis)`` pairs on which they act.
    """

    kind: str
    dimension: int
    places: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        shown = ", ".join(f"{site}[{axis}]" for site, axis in self.places[:6])
        more = f" and {len(self.places) - 6} more" if len(self.places) > 6 else ""
        return f"{self.kind} of dimension {self.dimension} on {shown}{more}"


@dataclass(frozen=True)
class Completeness:
    """The dimension of all linear symmetries of a model along the axes of its sites, beside that of the group found.

    Attributes:
        dimension: Of all linear symmetries along the axes that the count covers.
        found: Of those of them that the group has.
        missing: What it does not have, and where.
        left_out: Axes that were too long to be covered.
        generators: How many entries of matrices were unknown.
        gap: The smallest singular value that counts as not zero, over the largest that counts as zero: the count is
            clear where it is many orders of magnitude.
        seconds: What the count took.
    """

    dimension: int
    found: int
    missing: tuple[Missing, ...]
    left_out: tuple[tuple[str, int], ...]
    generators: int
    gap: float
    seconds: float = field(default=0.0, compare=False)

    @property
    def complete(self) -> bool:
        """Whether nothing is missing along the axes covered."""
        return not self.missing

    def __str__(self) -> str:
        text = f"linear symmetries of dimension {self.dimension}, "
        if self.complete:
            text += "all of them in the group" if self.dimension else "as in the group"
        else:
            text += f"{self.found} of it in the group; missing: " + "; ".join(map(str, self.missing))
        if self.left_out:
            text += "; not covered: " + ", ".join(f"{site}[{axis}]" for site, axis in self.left_out)
        return f"{text} ({self.generators} generators, {self.seconds:.1f} s)"


@dataclass(frozen=True)
class Certificate:
    """The numerical check that a symmetry passed for one model and its data.

    Attributes:
        trials: Number of random relabelings tried.
        log_joint: Log joint (nats) of the draw that was relabeled; NaN for a module, whose outputs are compared.
        error: Largest absolute change of the log joint over the trials, in nats.
        tolerance: The change that float64 rounding allows, in nats.
        seed: Seed of the draw and of the relabelings.
        completeness: How the group compares with all linear symmetries of the model; None where they were not counted.
    """

    trials: int
    log_joint: float
    error: float
    tolerance: float
    seed: int
    completeness: Completeness | None = None

    def __str__(self) -> str:
        what = "outputs" if math.isnan(self.log_joint) else f"log joint {self.log_joint:.6g} nats"
        text = (
            f"certified by {self.trials} random relabelings: {what} changed by at most "
            f"{self.error:.1e} (rounding allows {self.tolerance:.1e})"
        )
        return text if self.completeness is None else f"{text}\n{self.completeness}"


@dataclass(frozen=True)
class Resting:
    """Something learnable that a symmetry takes for constant: the symmetry ends where training changes it.

    Attributes:
        tensor: Name of a parameter or buffer.
        axis: Axis along which it is constant.
        runs: Lengths of the runs along which it is constant; empty where it is a multiple of the identity.
        atoms: Atoms whose units it would distinguish.
    """

    tensor: str
    axis: int
    runs: tuple[int, ...]
    atoms: tuple[str, ...]

    @property
    def described(self) -> str:
        """What it was, in words."""
        if not self.runs:
            return "a multiple of the identity"
        return "constant" if len(self.runs) == 1 else f"constant in runs of {', '.join(map(str, self.runs))}"
