"""The entry point: read the draws, choose a reference, relabel, check that nothing but labels has changed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pyro_align.axes import AxisLike
from pyro_align.draws.carried import find_carried
from pyro_align.draws.coordinates import coordinates
from pyro_align.draws.methods import BY_ALLOCATION, Outcome
from pyro_align.draws.reference import choose_pivot
from pyro_align.draws.result import AlignedDraws, nonfinite, only_atom
from pyro_align.draws.rotations import BY_ROTATION, rotating
from pyro_align.draws.sources import Source, read_draws
from pyro_align.draws.stack import Labels, restricted
from pyro_align.draws.task import Options, Task
from pyro_align.errors import DiagnosticWarning, SymmetryError
from pyro_align.symmetry.group import Symmetry
from pyro_align.symmetry.spec import SymmetrySpec, bound
from pyro_align.symmetry.stacks import Stacks

if TYPE_CHECKING:
    from pyro_align.model.draws import DrawDensity


def align_draws(
    draws: Any,
    symmetry: Symmetry | SymmetrySpec,
    *,
    method: str = "pivot",
    level: str = "draw",
    reference: str | tuple[int, int] | Mapping[str, Any] | None = None,
    weights: str | Mapping[str, float] = "equal",
    model: Callable[..., Any] | None = None,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    supports: Mapping[str, Any] | None = None,
    labels: Mapping[str, str | None] | None = None,
    derived: Mapping[str, Sequence[AxisLike]] | None = None,
    allocations: Any = None,
    allocation_site: str | None = None,
    atom: str | None = None,
    by: str | None = None,
    restarts: int = 0,
    max_iterations: int = 50,
    certify: bool = True,
    seed: int = 0,
) -> AlignedDraws:
    """Relabels every draw (or every chain) so that all speak of the same units by the same names.

    Nothing of the input is changed.

    Args:
        draws: Site -> ``(chain, draw, *site_shape)``, or ``(draw, *site_shape)`` for one chain: the symmetry says how
            many axes are the site's own. Or a finished ``MCMC`` of Pyro or NumPyro; ``InferenceData``, ``DataTree`` or
            its posterior ``Dataset``, whoever made it; a fit of CmdStanPy; a table with columns ``mu[1]``; the path of
            a Zarr store or netCDF file, read a slice at a time, or of a CSV file of Stan; a list of any of these with
            a run or chain each, cut to the shortest with a warning; or a list of guides or of state dicts (one chain).
        symmetry: The model's symmetry, found or written by hand. Variables that it does not name are left as they are,
            unless they are derived from those that it names: see ``derived`` and ``labels``.
        method: ``"pivot"`` brings every draw as near as possible to one reference draw. ``"barycenter"`` then replaces
            the reference by the mean of the relabeled draws and starts again until nothing changes. ``"stephens"``,
            ``"ecr"``, ``"ecr_iterative_1"`` and ``"ecr_iterative_2"`` compare allocations of the data to components
            (Stephens 2000; Papastamoulis & Iliopoulos 2010). ``"ordering"`` sorts the units by ``by``: for
            comparison, as it breaks where the values of two units overlap. ``"procrustes"`` and ``"varimax"`` rotate
            an atom's units, as factors may be: each draw to the reference, or without one to the mean of all; or to the
            axes on which its loadings are simplest, in the order and with the signs that agree best.
        level: ``"draw"``, or ``"chain"`` for one relabeling per chain, where labels do not switch within chains.
        reference: The pivot: ``"map"`` (the draw of highest log joint; the default where the model is known),
            ``"medoid"`` (the draw nearest to the mean after a first alignment; the default elsewhere), a pair
            ``(chain, draw)``, or constrained values site -> ``site_shape``.
        weights: What squared distances are divided by: ``"equal"`` nothing, ``"pooled"`` each site's variance about the
            reference, ``"diagonal"`` each entry's; or site -> weight.
        model: The Pyro model; a finished MCMC brings its own.
        args: The model's arguments.
        kwargs: Its keyword arguments.
        supports: Site -> ``torch.distributions.constraints`` object, where the model is not known: distances are taken
            in unconstrained coordinates.
        labels: Variable -> the atom whose units its integer *values* number (a mixture's assignments), from 0 or, as in
            Stan, from 1; None where they number none. They are renumbered draw by draw.
        derived: Variable -> its axes, written as for a ``SymmetrySpec``, for quantities beside the symmetry's
            sites that there is one of for each unit: they are relabeled, and take no part in the distances. Those that
            share a dim with a site of the symmetry, and ``pyro.deterministic`` of the model, are recognized;
            ``{"x": (None,)}`` says that a variable carries no units.
        allocations: For the methods that compare allocations: probabilities ``(chain, draw, data, components)``, or
            integer labels ``(chain, draw, data)``. By default they are computed from the model by enumeration.
        allocation_site: The discrete site (or marginalized mixture site) they belong to; by default all.
        atom: The atom whose units are the components, or are ordered; may be left out where there is one.
        by: For ``"ordering"``: the site to order by. For ``"procrustes"`` and ``"varimax"``: the site whose entries
            decide, the loadings; by default all that carry the atom.
        restarts: Further searches per draw from random relabelings, where one assignment does not settle a draw.
        max_iterations: Passes over the draws after which to stop.
        certify: Whether to check, where the model is known, that every relabeled draw has the log joint and the log
            likelihood that it had before.
        seed: Seed of the matcher.

    Raises:
        TypeError: The draws are of no kind that can be read.
        ValueError: Chains or sites disagree in shape, no draw is finite, or an option is out of range.
        SymmetryError: The symmetry does not fit the draws, or relabeling by it changes the model's log joint.
        TraceError: The model given does not fit the draws.

    Example:
        >>> import torch
        >>> from pyro_align import SymmetrySpec, align_draws
        >>> loc = torch.tensor([-4.0, 0.0, 5.0]) + 0.1 * torch.randn(4, 100, 3)
        >>> order = torch.rand(4, 100, 3).argsort(-1)  # labels that switch at every draw
        >>> switching = {"loc": loc.gather(-1, order)}
        >>> aligned = align_draws(switching, SymmetrySpec({"loc": ("component",)}), reference=(0, 0))
        >>> aligned.draws["loc"].std((0, 1)).max() < 0.2
        tensor(True)
    """
    options = Options(method, level, weights, restarts, max_iterations, seed)
    if not hasattr(symmetry, "sites"):
        raise TypeError(
            f"expected a Symmetry, got {type(symmetry).__name__}; the order is align_draws(draws, symmetry)"
        )
    stacks = symmetry.stacks if isinstance(symmetry, Symmetry) else {}
    source, symmetry = _read(draws, symmetry, stacks)
    if atom is not None:
        only_atom(symmetry, atom)
    _named(None if by is None else {by: None}, "by", symmetry.sites)
    if method in BY_ROTATION:
        atom = only_atom(symmetry, atom)
        symmetry = rotating(symmetry, atom)
    elif symmetry.rotated:
        raise SymmetryError(
            f"the symmetry rotates {sorted(symmetry.rotated)}: use method='procrustes' or 'varimax', or a symmetry "
            "that was found without rotations=True"
        )
    density = _density(
        source, stacks, model, tuple(args), dict(kwargs or {}), needed=certify or method in BY_ALLOCATION
    )
    known = {**({} if density is None else density.supports), **_named(supports, "supports", source.arrays)}
    _named(None if isinstance(weights, str) else weights, "weights", symmetry.sites)
    carried = find_carried(source, symmetry, density, labels or {}, derived or {})
    maps = {} if source.members else coordinates(restricted(symmetry), known)
    bad = nonfinite(source, symmetry, {k: v for k, v in known.items() if k in maps})
    flagged = source.divergent | bad
    if bad.all():
        raise ValueError("every draw is NaN or infinite in a site of the symmetry: there is nothing to relabel")
    task = Task(source, symmetry, carried, density, maps, ~bad, ~flagged if not flagged.all() else ~bad, options)
    log_probs = task.log_probs() if density is not None else None
    outcome, pivot = _relabeled(task, reference, log_probs, atom, by, (allocations, allocation_site))
    result = task.result(outcome, pivot, flagged, log_probs)
    _warn_of_unsettled(result)
    if not certify or density is None:
        return result
    return task.certified(result, log_probs, atom if method in BY_ROTATION else None)


def _relabeled(
    task: Task, reference: Any, log_probs: Any, atom: str | None, by: str | None, allocations: tuple[Any, str | None]
) -> tuple[Outcome, tuple[int, int] | None]:
    """The outcome, and the draw that is the pivot, if one is."""
    method = task.options.method
    if not task.symmetry.atoms:  # nothing to relabel
        return Outcome(Labels({}, {}), {}, 0, True), None
    if method == "ordering":
        return task.order(by, atom), None
    if method in BY_ROTATION:
        fixed = reference is not None
        given = reference if fixed or log_probs is not None else task.first_trusted()
        pivot, start = choose_pivot(task, given, log_probs)
        return task.relabel_by_rotation(start, atom, by, fixed=fixed), pivot if fixed else None
    pivot, start = choose_pivot(task, reference, log_probs)
    if method in BY_ALLOCATION:
        return task.relabel_by_allocations(pivot, task.component_atom(atom), *allocations), pivot
    return task.relabel_by_values(start), pivot


def _named(given: Mapping[str, Any] | None, option: str, known: Iterable[str]) -> Mapping[str, Any]:
    """An option by site, once every site that it names is there."""
    unknown = sorted(set(given or ()) - set(known))
    if unknown:
        raise ValueError(f"{option}= names {unknown}; there are {sorted(known)}")
    return given or {}


def _warn_of_unsettled(result: AlignedDraws) -> None:
    """Names the variables that may speak of units and were left as they were."""
    if not result.carried.unsettled or not result.relabeled.any():
        return
    reasons = "; ".join(f"'{name}': {why}" for name, why in result.carried.unsettled.items())
    atom = next(iter(result.symmetry.atoms))
    warnings.warn(
        f"draws were relabeled, and variables that may speak of the same units were left as they were: {reasons}. Say "
        f"what they are: derived={{name: axes}}, such as ('{atom}',), for values by unit, (None,) where an axis has "
        f"none; labels={{name: '{atom}'}} for values that number units, or None where they do not",
        DiagnosticWarning,
        stacklevel=3,
    )


def _read(draws: Any, symmetry: Symmetry | SymmetrySpec, stacks: Stacks) -> tuple[Source, Symmetry]:
    """The draws, and the symmetry with its sizes over their sites, checked against them."""
    ranks = {m: len(terms) - (k in stacks) for k, terms in symmetry.sites.items() for m in stacks.get(k, (k,))}
    source = read_draws(draws, ranks).stacked(stacks)
    symmetry = bound(symmetry, source.shapes, of="set of draws")
    return source, replace(symmetry, sites={k: v for k, v in symmetry.sites.items() if k in source.arrays})


def _density(source: Source, stacks: Stacks, model, args, kwargs, *, needed: bool) -> DrawDensity | None:
    if model is None:
        if source.model is None or not needed:
            return None
        model, args, kwargs = source.model
    from pyro_align.model.draws import DrawDensity  # Pyro is loaded where a model is given

    density = DrawDensity(model, args, kwargs, stacks)
    density.check(source.shapes)
    return density
