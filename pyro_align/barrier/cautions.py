"""What a reader of a barrier's table should be told: values that mislead, and errors that are too small."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_align.diagnostics import EffectiveWidth, effective_width, shares_off_prior
from pyro_align.guides import MeanFieldNormal
from pyro_align.losses.curve import Curve
from pyro_align.symmetry.group import Symmetry

if TYPE_CHECKING:
    from pyro_align.barrier.result import Barrier

SETTLED = 0.4  # standard errors of an excess that may hang on too few draws: benchmarks/coverage.py
HIDDEN = "negative_elbo", ("expected_nll", "predictive_nll")  # the loss in which the KL may hide a rise of the others


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


def curve_cautions(curves: Mapping[tuple[str, str], Curve]) -> Iterator[str]:
    """Texts of warnings, one for each thing to be wary of.

    Args:
        curves: (evaluation, loss) -> curve.
    """
    yield from _dominance(curves)
    yield from _few_draws(curves)
    for evaluation in dict.fromkeys(evaluation for evaluation, _ in curves):
        yield from _hidden_loss(curves, evaluation)


def _named(curves: Iterable[Curve]) -> str:
    return ", ".join(f"{curve.loss} on '{curve.evaluation}'" for curve in curves)


def _dominance(curves: Mapping[tuple[str, str], Curve]) -> Iterator[str]:
    judged = [curve for curve in curves.values() if curve.label.per_draw and curve.num_samples >= 8]
    carried = [curve for curve in judged if curve.dominance > 0.8]
    if carried:
        yield (
            f"one of {judged[0].num_samples} draws carries more than 80% of the variance of {_named(carried)}: the "
            "errors are too small; raise num_samples"
        )


def _few_draws(curves: Mapping[tuple[str, str], Curve]) -> Iterator[str]:
    for curve in curves.values():
        if curve.settling > SETTLED:
            draws, least = curve.num_samples, np.inf if curve.effective is None else np.nanmin(curve.effective)
            if least < draws**0.5:
                why = f"as few as {least:.1f} of {draws} draws count for some observations, which moves the excess"
            else:
                why = f"the excess over the chord moves from half of the {draws} draws to all"
            yield (
                f"{_named([curve])}: {why}, by {curve.settling:.1g} of its standard error: the band covers less than "
                "it says. Likelihoods of single observations differ by many nats between draws; raise num_samples, or "
                "doubt the posterior there"
            )


def _hidden_loss(curves: Mapping[tuple[str, str], Curve], evaluation: str) -> Iterator[str]:
    hiding, hidden = HIDDEN
    if (evaluation, hiding) not in curves:
        return
    low = curves[evaluation, hiding].barrier.height
    for name in hidden:
        curve = curves.get((evaluation, name))
        if curve is not None and curve.band().positive and low < 0.1 * curve.barrier.height:
            yield (
                f"evaluation '{evaluation}': the negative ELBO shows a barrier of {low:.2g} nats per datum, the "
                f"{name} one of {curve.barrier.height:.2g}: the KL dips along the path and hides a loss of "
                "likelihood. Report both"
            )
            return
