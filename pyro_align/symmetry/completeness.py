"""What a count of a model's linear symmetries says of the group that was found."""

from __future__ import annotations

from dataclasses import dataclass, field


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
