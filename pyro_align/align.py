"""The front door: read two guides, match them, relabel the second."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pyro_align.errors import GuideError, SymmetryError
from pyro_align.guides import Posterior, check_distinct, read_guide
from pyro_align.matching import Match, Matcher, match
from pyro_align.symmetry import Permutation, Symmetry


@dataclass(frozen=True, eq=False)
class Alignment:
    """One posterior relabelled to lie near another.

    Attributes:
        permutation: The relabelling that was applied.
        posterior: The relabelled posterior, as a snapshot.
        distance_before: Wasserstein-2 distance of the two posteriors as they were given.
        distance: Wasserstein-2 distance after relabelling.
        site_distances: Site -> (distance before, distance after); their squares add up to the squares of the above.
        divergence: What was minimised.
        match: How the matcher went: objective, history, status, time by part.
    """

    permutation: Permutation
    posterior: Posterior = field(repr=False)
    distance_before: float
    distance: float
    site_distances: Mapping[str, tuple[float, float]] = field(repr=False)
    divergence: str
    match: Match = field(repr=False)

    @cached_property
    def guide(self):
        """The relabelled guide: of the type of the one given, owning its parameters."""
        return self.posterior.to_guide()

    def summary(self):
        """One row per site as a ``pandas.DataFrame``: W2 distance before and after relabelling, and their ratio."""
        import pandas as pd

        frame = pd.DataFrame.from_dict(self.site_distances, orient="index", columns=["before", "after"])
        frame.loc["(all sites)"] = [self.distance_before, self.distance]
        frame["after / before"] = frame["after"] / frame["before"]
        frame.index.name = "site"
        return frame

    def __str__(self) -> str:
        moved = ", ".join(
            f"{name} {count}/{self.permutation.indices[name].numel()}" for name, count in self.permutation.moved().items()
        )
        return (
            f"Alignment by {self.divergence}: W2 distance {self.distance_before:.6g} -> {self.distance:.6g}\n"
            f"units moved: {moved or 'none'}\n{self.match}"
        )


def align(
    guide_a: Any,
    guide_b: Any,
    symmetry: Symmetry,
    *,
    divergence: str = "w2",
    matcher: str | Matcher = "coordinate",
    init: Permutation | None = None,
    restarts: int = 0,
    max_sweeps: int = 100,
    time_limit: float | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Alignment:
    """Relabels ``guide_b`` so that it lies as near as possible to ``guide_a``.

    For diagonal Gaussians the squared Wasserstein-2 distance is ``|m0 - P m1|^2 + |s0 - P s1|^2``: minimising it over
    relabellings P is a sum of bilinear assignment problems (Rossi, Singh & Hannagan 2023, section 4), solved by one
    linear assignment per atom in turn. Both guides stay as they are.

    Args:
        guide_a: The guide that stays: a Pyro guide, or a :class:`~pyro_align.guides.Posterior` read from one.
        guide_b: The guide that is relabelled, over the same sites.
        symmetry: The model's symmetry, from :func:`~pyro_align.find_symmetry` or written by hand.
        divergence: What is minimised, one of the family's ``divergences``: for Gaussians ``"w2"``, ``"kl"``
            (q_a || P q_b), ``"reverse_kl"``, ``"jeffreys"``, ``"means"``, ``"snr"``.
        matcher: Name of a matcher, or one configured.
        init: Relabelling to start from.
        restarts: Further searches from random relabellings; the best is kept.
        max_sweeps: Sweeps over the atoms after which to stop.
        time_limit: Seconds after which to stop with the best so far.
        seed: Seed of the matcher.
        progress: Whether to print one line per sweep to standard error.

    Returns:
        The alignment; ``alignment.guide`` is the relabelled guide.

    Raises:
        GuideError: The guides share parameters, are untrained, differ in sites, shapes, dtype or device, or hold NaN.
        SymmetryError: The symmetry does not fit the guides' sites.
        MatchError: An option is out of range.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> from pyro.infer.autoguide import AutoNormal, init_to_sample
        >>> from pyro_align import align, find_symmetry
        >>> def model(x):
        ...     w1 = pyro.sample("w1", dist.Normal(0.0, 1.0).expand([8, 3]).to_event(2))
        ...     w2 = pyro.sample("w2", dist.Normal(0.0, 1.0).expand([2, 8]).to_event(2))
        ...     pyro.sample("y", dist.Normal(torch.tanh(x @ w1.T) @ w2.T, 1.0).to_event(2), obs=torch.zeros(5, 2))
        >>> x = torch.randn(5, 3)
        >>> def guide():
        ...     with pyro.get_param_store().scope():  # parameters of its own
        ...         made = AutoNormal(model, init_loc_fn=init_to_sample)
        ...         made(x)
        ...     return made
        >>> alignment = align(guide(), guide(), find_symmetry(model, x))
        >>> alignment.distance <= alignment.distance_before
        True
    """
    check_distinct(guide_a, guide_b)
    a, b = read_guide(guide_a), read_guide(guide_b)
    a.check_compatible(b)
    symmetry = fit_symmetry(symmetry, a)
    found = match(
        symmetry,
        a.features(divergence, "fixed"),
        b.features(divergence, "moving"),
        odd=a.feature_odd(divergence),
        matcher=matcher,
        init=init,
        seed=seed,
        restarts=restarts,
        max_sweeps=max_sweeps,
        time_limit=time_limit,
        progress=progress,
    )
    moved = b.permute(found.permutation)
    return Alignment(
        permutation=found.permutation,
        posterior=moved,
        distance_before=a.distance(b),
        distance=a.distance(moved),
        site_distances=_site_distances(a, b, moved),
        divergence=divergence,
        match=found,
    )


def fit_symmetry(symmetry: Symmetry, posterior: Posterior) -> Symmetry:
    """The symmetry with its sizes, checked against a posterior's sites.

    Raises:
        SymmetryError: A site's shape differs.
        GuideError: A site that carries a free atom is missing from the guide.
    """
    if not isinstance(symmetry, Symmetry):
        raise TypeError(
            f"expected a Symmetry, got {type(symmetry).__name__}; the order is align(guide_a, guide_b, symmetry)"
        )
    carrying = {site for places in symmetry.carriers.values() for site, _ in places}
    missing = sorted(carrying - set(posterior.sites))
    if missing:
        raise GuideError(
            f"the symmetry relabels sites that the guide does not have: {missing}; the guide has "
            f"{list(posterior.sites)}. Was the symmetry found for the guide's own model?"
        )
    if not symmetry.is_bound:
        return symmetry.bind(posterior.shapes)
    for site, shape in symmetry.shapes.items():
        if site in posterior.sites and posterior.shapes[site] != shape:
            raise SymmetryError(f"site '{site}': shape {shape} in the symmetry, {posterior.shapes[site]} in the guide")
    return symmetry


def _site_distances(a: Posterior, b: Posterior, moved: Posterior) -> dict[str, tuple[float, float]]:
    """The W2 distance site by site, where the family splits into sites."""
    try:
        before, after = a.site_distances(b), a.site_distances(moved)
    except AttributeError:
        return {}
    return {site: (before[site], after[site]) for site in before}
