"""The check that relabeling left the model's densities alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_align.errors import SymmetryError


@dataclass(frozen=True)
class Invariance:
    """The numerical proof that relabeling left the model's densities alone.

    Attributes:
        draws: Number of relabeled draws that were checked.
        error: Largest change of their log joint, their log likelihood, or the sum over data of log likelihoods with
            random weights, which tells whether each datum's has changed. In nats.
        tolerance: Smallest change that would have been refused, in nats.
    """

    draws: int
    error: float
    tolerance: float

    def __str__(self) -> str:
        return (
            f"log joint and log likelihood of {self.draws} relabeled draws changed by at most {self.error:.1e} nats "
            f"(rounding allows {self.tolerance:.1e})"
        )


def check_invariance(
    scope: str,
    before: tuple[Tensor, ...],
    after: tuple[Tensor, ...],
    tolerance: Tensor,
    place: Callable[[int], tuple[int, int]],
) -> float:
    """The largest change of the log joint (except for a symmetry of the likelihood) and of log likelihoods, in nats.

    Args:
        before: Log joint, log likelihood, and its sum with random weights of each draw, ``(draws,)`` nats each.
        tolerance: Largest change that rounding allows, ``(draws,)``.
        place: Position in these -> chain and draw, for messages.
    """
    worst = 0.0
    names = ("log joint", "log likelihood", "log likelihood of single data")
    for what, old, new in zip(names, before, after, strict=True):
        if what == "log joint" and scope == "likelihood":
            continue
        change = torch.where(old == new, 0.0, (new - old).abs())  # equal infinities are no change
        broken = ~(change <= tolerance)
        if bool(broken.any()):
            first = int(broken.nonzero()[0])
            raise SymmetryError(
                f"relabeling changes the {what} of {int(broken.sum())} of {len(old)} draws, first of chain, draw "
                f"{place(first)}: {float(old[first]):.6g} became {float(new[first]):.6g} nats (rounding allows "
                f"{float(tolerance[first]):.1e}). The symmetry is not one of this model and data: find it with "
                "find_symmetry(model, ...), or check it with certify(model, symmetry, ...)"
            )
        worst = max(worst, float(change.max())) if len(change) else worst
    return worst
