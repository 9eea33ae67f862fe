"""The entry point: read two guides, match them, relabel the second."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pyro_align.alignment.coupled import is_coupled, match_coupled
from pyro_align.axes import Fixed, axis_size, leaves
from pyro_align.diagnostics import EffectiveWidth
from pyro_align.discovery.resting import check_resting
from pyro_align.errors import GuideError, MatchError
from pyro_align.guides import Guide, MeanFieldNormal, Point, Posterior, SiteSpec, check_distinct, read_guide
from pyro_align.guides.canonical import Scales, has_gauge, one_scale
from pyro_align.guides.families.network import beside, by_axes
from pyro_align.guides.registry import alike, relabelable
from pyro_align.matching import Match, Matcher, match
from pyro_align.objectives import Activations, build_objective
from pyro_align.paths.geodesic import Path
from pyro_align.symmetry.element import Permutation
from pyro_align.symmetry.group import Symmetry
from pyro_align.symmetry.spec import SymmetrySpec, bound
from pyro_align.symmetry.stacks import stacked

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Alignment:
    """One posterior relabeled to lie near another.

    Attributes:
        permutation: The relabeling that was applied, after the scales where there are any.
        posterior: The relabeled posterior, as a snapshot.
        distance_before: Wasserstein-2 distance of the two posteriors as they were given.
        distance: Wasserstein-2 distance after relabeling.
        site_distances: Site -> (distance before, distance after); their squares add up to the squares of the above.
            Empty for families with correlations between sites.
        divergence: What was minimized.
        match: How the matcher went: objective, history, status, time by part.
        reference: The posterior that stayed, at its one scale where there are scalings.
        distance_error: Standard error of ``distance``, where it is estimated from draws; 0 elsewhere.
        scales: For the posterior that stays and the other, scaling -> the factor of each unit by which the posterior
            was brought to one scale before they were matched, as by :func:`~pyro_align.canonical`; empty where the
            symmetry has no scalings, or the family no such scale in closed form.

    Example:
        >>> from pyro_align import Symmetry, align, permute_guide
        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer.autoguide import AutoNormal, init_to_sample
        >>> def model():
        ...     pyro.sample("w", dist.Normal(0.0, 1.0).expand([6, 2]).to_event(2))
        >>> with pyro.get_param_store().scope():
        ...     guide = AutoNormal(model, init_loc_fn=init_to_sample)
        ...     _ = guide()
        >>> symmetry = Symmetry.from_axes({"w": ("unit", None)}, shapes={"w": (6, 2)})
        >>> alignment = align(guide, permute_guide(guide, symmetry.random(0)), symmetry)
        >>> alignment.distance
        0.0
    """

    permutation: Permutation
    posterior: Posterior = field(repr=False)
    distance_before: float
    distance: float
    site_distances: Mapping[str, tuple[float, float]] = field(repr=False)
    divergence: Any
    match: Match = field(repr=False)
    distance_error: float = 0.0
    reference: Posterior | None = field(default=None, repr=False)
    scales: tuple[Scales, ...] = ()

    @property
    def status(self) -> str:
        """That of the match: proven optimal, a local optimum, or cut short (:class:`~pyro_align.matching.Match`).

        ``"optimal"`` is about the divergence that was minimized. ``alignment.match.rises`` has what each restart added.
        """
        return self.match.status

    @property
    def path(self) -> Path:
        """The displacement from the posterior that stays to the relabeled one.

        Raises:
            GuideError: The alignment was read from a file, which does not hold the posterior that stays.
        """
        if self.reference is None:
            raise GuideError("this alignment was loaded: give displacement(guide_a, alignment.guide)")
        return Path(self.reference, self.posterior)

    @cached_property
    def guide(self) -> Guide:
        """The relabeled guide: of the type of the one given, owning its parameters."""
        return self.posterior.to_guide()

    def summary(self) -> pd.DataFrame:
        """One row per site as a ``pandas.DataFrame``: W2 distance before and after relabeling, and their ratio."""
        import pandas as pd

        distances = self.site_distances
        frame = pd.DataFrame(list(distances.values()), index=list(distances), columns=["before", "after"])
        frame.loc["(all sites)"] = [self.distance_before, self.distance]
        frame["after / before"] = frame["after"] / frame["before"]
        frame.index.name = "site"
        return frame

    def units(self, width: EffectiveWidth | None = None, *, share: float = 0.01) -> pd.DataFrame:
        """Which matches mean something: one row per unit as a ``pandas.DataFrame``, indexed by atom and new position.

        Columns: ``partner``, the old position that came here; ``margin``, what the cheapest swap of partners would cost
        in units of the objective (half the squared distance for ``"w2"``); ``distinct``, whether that is more than
        ``share`` of the largest margin of the atom; with ``width`` also ``kl``, the fixed unit's KL from the prior in
        nats, and ``active``, whether that exceeds the threshold. The match of a unit that is not both is
        one of many that are as good.

        Args:
            width: The :func:`~pyro_align.effective_width` of the guide that stays.
            share: Fraction of an atom's largest margin above which a unit is distinct.

        Raises:
            MatchError: The alignment was made without margins.
        """
        import pandas as pd

        if self.match.margins is None:
            raise MatchError("the alignment has no margins; call align(..., with_margins=True)")
        frames = {}
        for atom, margin in self.match.margins.items():
            finite = margin[margin.isfinite()]
            largest = float(finite.max()) if finite.numel() else 0.0
            columns = {
                "partner": self.permutation.indices[atom],
                "margin": margin,
                "distinct": margin > share * largest,
            }
            if width is not None and atom in width.kl:
                columns |= {"kl": width.kl[atom], "active": width.kl[atom] > width.threshold}
            frames[atom] = pd.DataFrame({k: v.flatten().cpu().numpy() for k, v in columns.items()})
        return pd.concat(frames, names=["atom", "unit"])

    def __str__(self) -> str:
        atoms, group = self.permutation.symmetry.atoms, self.permutation.symmetry
        moved = ", ".join(
            f"{name} {count}/{math.prod(group.outer_shape(name)) * atoms[name].size}"
            for name, count in self.permutation.moved().items()
        )
        error = f" +- {self.distance_error:.2g}" if self.distance_error else ""
        return (
            f"Alignment by {self.divergence}: W2 distance {self.distance_before:.6g} -> {self.distance:.6g}{error}\n"
            f"units moved: {moved or 'none'}\n{self._scaled()}{self.match}"
        )

    def _scaled(self) -> str:
        if not self.scales:
            return ""
        largest = (max(float(f.log().abs().max()) for f in side.values()) for side in self.scales)
        here, there = (f"{math.exp(log):.3g}" for log in largest)
        return (
            f"brought to one scale first, by factors up to {here} here and {there} there: {', '.join(self.scales[0])}\n"
        )


def align(
    guide_a: Any,
    guide_b: Any,
    symmetry: Symmetry | SymmetrySpec,
    *,
    parameters: tuple[Callable[..., Any], Callable[..., Any]] | None = None,
    divergence: str | Activations | Mapping[Any, float] = "w2",
    matcher: str | Matcher = "coordinate",
    init: Permutation | None = None,
    restarts: int = 0,
    max_sweeps: int = 100,
    time_limit: float | None = None,
    select: Callable[[Path], float] | None = None,
    with_margins: bool = False,
    seed: int = 0,
    progress: bool = False,
) -> Alignment:
    """Relabels ``guide_b`` so that it lies as near as possible to ``guide_a``.

    For diagonal Gaussians the squared Wasserstein-2 distance is ``|m0 - P m1|^2 + |s0 - P s1|^2``: minimizing it over
    relabelings P is a sum of bilinear assignment problems (Rossi, Singh & Hannagan 2023, section 4), solved by one
    linear assignment per atom in turn. Both guides stay as they are.

    Where the symmetry has scalings, points and mean-field posteriors are brought to one scale first, as by
    :func:`~pyro_align.canonical`, which leaves the likelihood as it is: ``alignment.scales`` has the factors, and
    ``alignment.reference`` the guide that stays, at that scale.

    Args:
        guide_a: The guide that stays: a Pyro guide, or a :class:`~pyro_align.guides.Posterior` read from one; or a
            plain network, or its state dict; or site -> draws ``(draws, *site_shape)`` or ``(chains, draws, ...)``.
        guide_b: The guide that is relabeled, over the same sites.
        symmetry: The model's symmetry, from :func:`~pyro_align.find_symmetry` or written by hand.
        parameters: The two models, where parameters were learned beside the guides: they are matched and relabeled with
            them, ``alignment.guide`` is a :class:`~pyro_align.guides.GuideAndModel`, and ``alignment.path`` goes into
            ``evaluate_barrier(model, ...)``. The symmetry is then that of ``find_symmetry(..., parameters=True)``.
        divergence: What is minimized: one of the family's ``divergences`` (for diagonal Gaussians ``"w2"``, ``"kl"``
            (q_a || P q_b), ``"reverse_kl"``, ``"jeffreys"``, ``"means"``, ``"snr"``), an
            :class:`~pyro_align.objectives.Activations`, or a mapping of these to positive weights.
        matcher: Name of a matcher, or one configured.
        init: Relabeling to start from.
        restarts: Further searches, from kicked, random and annealed relabelings; the best is kept.
        max_sweeps: Sweeps over the atoms after which to stop.
        time_limit: Seconds after which to stop with the best so far.
        select: Loss of the path to a relabeled posterior, lower is better, by which to choose among the restarts in
            place of the divergence: a :class:`~pyro_align.objectives.PathLoss`, say.
        with_margins: Whether to compute how sure each unit's match is, for :meth:`Alignment.units`.
        seed: Seed of the matcher.
        progress: Whether to show a progress bar with the objective.

    Returns:
        The alignment; ``alignment.guide`` is the relabeled guide.

    Raises:
        GuideError: The guides share parameters, are untrained, differ in sites, shapes, dtype or device, or hold NaN.
        SymmetryError: The symmetry does not fit the guides' sites.
        MatchError: An option is out of range.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> from pyro.infer.autoguide import AutoNormal, init_to_sample
        >>> from pyro_align import align, find_symmetry
        >>> def model(x, y):
        ...     w1 = pyro.sample("w1", dist.Normal(0.0, 1.0).expand([8, 3]).to_event(2))
        ...     w2 = pyro.sample("w2", dist.Normal(0.0, 1.0).expand([2, 8]).to_event(2))
        ...     pyro.sample("y", dist.Normal(torch.tanh(x @ w1.T) @ w2.T, 1.0).to_event(2), obs=y)
        >>> x, y = torch.randn(5, 3), torch.randn(5, 2)
        >>> def guide():
        ...     with pyro.get_param_store().scope():  # parameters of its own
        ...         made = AutoNormal(model, init_loc_fn=init_to_sample)
        ...         _ = made(x, y)
        ...     return made
        >>> alignment = align(guide(), guide(), find_symmetry(model, x, y))
        >>> alignment.distance <= alignment.distance_before
        True
    """
    if select is not None and not callable(select):
        raise GuideError(
            f"select: expected a callable path -> loss, such as PathLoss(...), got {type(select).__name__}"
        )
    if parameters is not None:
        check_distinct(*parameters)
        guide_a, guide_b = (beside(g, model) for g, model in zip((guide_a, guide_b), parameters, strict=True))
    guide_a, guide_b = (by_axes(g, symmetry) for g in (guide_a, guide_b))
    check_distinct(guide_a, guide_b)
    a, b = alike(read_guide(guide_a), read_guide(guide_b))
    a.check_compatible(b)
    symmetry = fit_symmetry(symmetry, a)
    check_resting(symmetry, guide_a, guide_b)
    a, b = relabelable(a, symmetry), relabelable(b, symmetry)
    before, sites_before = _distances(a, b)
    scales: tuple[Scales, ...] = ()
    if has_gauge(b, symmetry):
        (a, here), (b, there) = one_scale(a, symmetry), one_scale(b, symmetry)
        scales = here, there
    limits = {"restarts": restarts, "max_sweeps": max_sweeps, "time_limit": time_limit}
    options = {"matcher": matcher, "seed": seed, "with_margins": with_margins, "progress": progress, **limits}
    found = match_posteriors(a, b, symmetry, divergence=divergence, init=init, select=select, **options)
    moved = b.permute(found.permutation)
    after, sites_after = _distances(a, moved)
    return Alignment(
        permutation=found.permutation,
        posterior=moved,
        distance_before=before,
        distance=after,
        site_distances={site: (sites_before[site], sites_after[site]) for site in sites_before},
        divergence=divergence,
        match=found,
        distance_error=a.distance_error(moved),
        reference=a,
        scales=scales,
    )


def match_posteriors(
    a: Posterior,
    b: Posterior,
    symmetry: Symmetry,
    *,
    divergence: Any,
    init: Permutation | None = None,
    select: Callable[[Path], float] | None = None,
    **options: Any,
) -> Match:
    """Finds the relabeling of ``b`` that brings it nearest to ``a``.

    Args:
        a: The posterior that stays.
        b: The posterior to relabel.
        symmetry: The group, with its sizes.
        divergence: What is minimized.
        init: Relabeling to start from.
        select: Loss of the path to a relabeled ``b``, by which to choose among restarts.
        options: Options of ``match``.
    """
    if symmetry.rotated and is_coupled(a, divergence):  # marginals cannot follow a rotation: couplings from the start
        chosen = None if select is None else lambda p: select(Path(a, b.permute(p)))
        start = Match(symmetry.identity() if init is None else init, 0.0, (), 0, "converged")
        return match_coupled(a, b, symmetry, start, select=chosen, **options)
    goal = build_objective(a, b, symmetry, divergence)
    if select is not None:
        options["select"] = lambda p: select(Path(a, b.permute(goal.as_element(p))))
    found = goal.finish(
        match(goal.symmetry, goal.fixed, goal.moving, odd=goal.fixed.odd, init=goal.start(init), **options)
    )
    return match_coupled(a, b, symmetry, found, **options) if is_coupled(a, divergence) else found


def fit_symmetry(symmetry: Symmetry | SymmetrySpec, posterior: Posterior) -> Symmetry:
    """The symmetry with its sizes, checked against a posterior's sites.

    Raises:
        SymmetryError: A site's shape differs.
        GuideError: A site that carries a free atom is missing from the guide.
    """
    if isinstance(symmetry, Symmetry):
        resized = {k: _resized(terms, posterior.sites.get(k)) for k, terms in symmetry.sites.items()}
        if any(resized[k] is not terms for k, terms in symmetry.sites.items()):
            symmetry = replace(symmetry, sites=resized, certificate=None)
    shapes = posterior.shapes
    if isinstance(symmetry, Symmetry):
        shapes = stacked(shapes, symmetry.stacks, lambda members: (len(members), *members[0]))
    return bound(symmetry, shapes, of="guide", error=GuideError)


def _resized(terms: tuple[Any, ...], spec: SiteSpec | None) -> tuple[Any, ...]:
    """A site's terms with the sizes of its plates in the guide: a symmetry found on a subsample knows fewer data."""
    if spec is None or len(terms) != len(spec.shape):
        return terms
    plates = {len(spec.shape) - spec.event_dim + dim for _, _, dim in spec.frames}
    wrong = {i for i in plates if axis_size(terms[i]) != spec.shape[i] and all(a.fixed for a in leaves(terms[i]))}
    return tuple(Fixed(spec.shape[i]) if i in wrong else t for i, t in enumerate(terms)) if wrong else terms


def _distances(a: Posterior, b: Posterior) -> tuple[float, dict[str, float]]:
    """The W2 distance, and that of each site for families in which its square is a sum over sites."""
    if not isinstance(a, MeanFieldNormal | Point):
        return a.distance(b), {}
    parts = a.site_distances(b)
    return math.sqrt(sum(part**2 for part in parts.values())), parts
