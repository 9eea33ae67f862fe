"""What a reader of a barrier's table should be told: figures that mislead, and errors that are too small."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pyro_align.diagnostics import EffectiveWidth, effective_width, shares_off_prior
from pyro_align.guides import MeanFieldNormal
from pyro_align.symmetry.group import Symmetry

if TYPE_CHECKING:
    from pyro_align.barrier.result import Barrier

SETTLED = 0.4  # standard errors that an excess may move from half the draws to all
DRAWN = ("expected_nll", "predictive_nll", "elbo", "kl")  # losses whose pseudo-values belong to single draws


def cautions(barrier: Barrier, symmetry: Symmetry | None = None) -> Iterator[str]:
    """Texts of warnings, one for each thing to be wary of.

    Args:
        barrier: The barrier.
        symmetry: The model's symmetry, with which pruned units can be told from inputs that carry nothing.
    """
    yield from barrier.notes
    yield from _dominance(barrier)
    yield from _few_draws(barrier)
    yield from _collapse(barrier, symmetry)
    for evaluation in barrier.evaluations:
        yield from _hidden_loss(barrier, evaluation)


def _dominance(barrier: Barrier) -> Iterator[str]:
    shares = {k: curve.dominance for k, curve in barrier.curves.items() if k[1] in DRAWN and curve.num_draws >= 8}
    carried = [f"{loss} on '{evaluation}'" for (evaluation, loss), share in shares.items() if share > 0.8]
    if carried:
        yield (
            f"one of {barrier.num_samples} draws carries more than 80% of the variance of {', '.join(carried)}: the "
            "errors are too small; raise num_samples"
        )


def _few_draws(barrier: Barrier) -> Iterator[str]:
    moving = {key: curve.settling for key, curve in barrier.curves.items() if curve.settling > SETTLED}
    if moving:
        which = ", ".join(f"{loss} on '{evaluation}'" for evaluation, loss in moving)
        yield (
            f"{which}: from half of the {barrier.num_samples} draws to all, the excess over the chord moves by "
            f"{max(moving.values()):.1g} of its standard error: the band covers less than it says. Single data's "
            "likelihoods differ by many nats between draws; raise num_samples"
        )


def _collapse(barrier: Barrier, symmetry: Symmetry | None) -> Iterator[str]:
    for tau, (shares, width) in _off_prior(barrier, symmetry).items():
        found = [f"{share:.0%} of the values of '{site}'" for site, share in shares.items() if share < 0.25]
        if width is not None:
            units = {atom: (alive, width.kl[atom].numel()) for atom, alive in width.alive.items()}
            found += [f"{n} of {size} units of '{atom}'" for atom, (n, size) in units.items() if n < size / 2]
        if found:
            yield (
                f"the posterior at tau={tau:g} has collapsed to the prior: only {', '.join(found)} have left it. "
                "Networks pruned so far are easy to align, and their barrier says little of their nominal width; "
                "see effective_width"
            )


def _off_prior(barrier: Barrier, symmetry: Symmetry | None) -> dict[float, tuple[dict, EffectiveWidth | None]]:
    """Of either end: site -> share of values that have left the prior, and the effective width."""
    if barrier.problem is None:
        return {}
    args, kwargs = next(barrier.problem.data[0].batches())
    model, out = barrier.problem.model, {}
    for tau in (0.0, 1.0):
        end = barrier.problem.path.posterior(tau)
        if isinstance(end, MeanFieldNormal):
            width = None if symmetry is None else effective_width(end, symmetry, model, *args, **kwargs)
            out[tau] = shares_off_prior(end, model, args, kwargs), width
    return out


def _hidden_loss(barrier: Barrier, evaluation: str) -> Iterator[str]:
    elbo = barrier.curves.get((evaluation, "elbo"))
    if elbo is None:
        return
    low = elbo.barrier.height
    for name in ("expected_nll", "predictive_nll"):
        curve = barrier.curves.get((evaluation, name))
        if curve is not None and curve.band().positive and low < 0.1 * curve.barrier.height:
            yield (
                f"evaluation '{evaluation}': the negative ELBO shows a barrier of {low:.2g} nats per datum, the "
                f"{name} one of {curve.barrier.height:.2g}: the KL dips along the path and hides a loss of "
                "likelihood. Report both"
            )
            return
