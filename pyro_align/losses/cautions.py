"""What a reader of a curve should be told: errors that are too small, and losses that hide another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from pyro_align.losses.curve import Curve

SETTLED = 0.4  # standard errors of an excess that may hang on too few draws: benchmarks/coverage.py
HIDDEN = "negative_elbo", ("expected_nll", "predictive_nll")  # the loss in which the KL may hide a rise of the others


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
