"""What a matcher found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from pyro_align.symmetry.element import Permutation


@dataclass(frozen=True)
class Match:
    """What a matcher found.

    Attributes:
        permutation: The relabeling of the moving side.
        objective: Its exact objective: sum over sites and features of ``<fixed, permutation moving>``.
        history: Objective at the start of the sweeps and after each; never falls.
        sweeps: Sweeps done.
        status: ``"optimal"`` (no relabeling is better: all were tried, or one assignment settles each atom),
            ``"converged"`` (a local optimum), or cut short: ``"max_sweeps"``, ``"time_limit"`` or ``"interrupted"``.
            The permutation is valid whatever the status.
        seconds: Wall time by part: ``gain``, ``assignment``, ``rest``.
        matcher: The matcher's name.
        seed: The seed it ran with.
        loss: What ``select`` gave for the permutation, where it was given.
        margins: Atom -> what each unit's second-best partner would cost, ``(*outer sizes, size)``, where asked for.
        rises: How much each restart raised the best objective before it; empty where there was none.
        kept: Atoms that the objective says nothing of, such as those without activations on data: their order is kept.
    """

    permutation: Permutation
    objective: float
    history: tuple[float, ...]
    sweeps: int
    status: str
    seconds: Mapping[str, float] = field(default_factory=dict, compare=False)
    matcher: str = ""
    seed: int = 0
    loss: float | None = None
    margins: Mapping[str, Tensor] | None = field(default=None, compare=False)
    rises: tuple[float, ...] = ()
    kept: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = ", ".join(f"{k} {v:.3g} s" for k, v in self.seconds.items())
        text = f"{self.matcher}: objective {self.objective:.8g}, {self.status} after {self.sweeps} sweeps ({parts})"
        if self.rises:
            text += (
                f"; {sum(r > 0 for r in self.rises)} of {len(self.rises)} restarts raised it, by {sum(self.rises):.3g}"
            )
        if self.kept:
            text += f"; nothing compares the units of {', '.join(self.kept)}, which keep their order"
        return text
