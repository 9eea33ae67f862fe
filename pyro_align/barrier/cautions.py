"""What a reader of a barrier's table should be told: values that mislead, and errors that are too small."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pyro_align.diagnostics import EffectiveWidth, effective_width, shares_off_prior
from pyro_align.guides import MeanFieldNormal
from pyro_align.losses.cautions import curve_cautions
from pyro_align.symmetry.group import Symmetry

if TYPE_CHECKING:
    from pyro_align.barrier.result import Barrier


def cautions(barrier: Barrier, symmetry: Symmetry | None = None) -> Iterator[str]:
    """Texts of warnings, one for each thing to be wary of."""
    yield from barrier.notes
    yield from curve_cautions(barrier.curves)
    yield from _collapse(barrier, symmetry)


def _collapse(barrier: Barrier, symmetry: Symmetry | None) -> Iterator[str]:
    for tau, (shares, width) in _off_prior(barrier, symmetry).items():
        found = [f"{share:.0%} of the values of '{site}'" for site, share in shares.items() if share < 0.25]
        if width is not None:
            units = {atom: (active, width.kl[atom].numel()) for atom, active in width.active.items()}
            found += [f"{n} of {size} units of '{atom}'" for atom, (n, size) in units.items() if n < size / 2]
        if found:
            yield (
                f"the posterior at tau={tau:g} has collapsed to the prior: only {', '.join(found)} have left it. "
                "Networks pruned so far are easy to align, and their barrier says little of their nominal width; "
                "see effective_width"
            )


def _off_prior(
    barrier: Barrier, symmetry: Symmetry | None
) -> dict[float, tuple[dict[str, Any], EffectiveWidth | None]]:
    """Of either end: site -> share of values away from the prior, and the effective width."""
    if barrier.problem is None:
        return {}
    args, kwargs = next(barrier.problem.data[0].batches())
    model, out = barrier.problem.model, {}
    for tau in (0.0, 1.0):
        end = barrier.problem.path.posterior(tau)
        if isinstance(end, MeanFieldNormal):
            width = None if symmetry is None else effective_width(model, end, symmetry, *args, **kwargs)
            out[tau] = shares_off_prior(end, model, args, kwargs), width
    return out
