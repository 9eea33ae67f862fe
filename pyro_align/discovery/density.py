"""Relabelings, signs and rotations of a posterior that is known by its log density alone.

There is no graph: what is a symmetry is asked of the density itself. A relabeling of units moves entries along some
axes of some sites together; the smallest sets of axes along which two neighboring entries may change places and leave
the density as it is at several points are the atoms. Signs and rotations are tried on these. Every answer is a
difference that vanishes to rounding at generic points, so a false one has probability zero; what takes more evaluations
than allowed is not found, and the search says so.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyro_align.axes import Atom, Fixed, Kind, Sum
from pyro_align.discovery.certify import certify_function
from pyro_align.discovery.signs.loose import marked
from pyro_align.errors import DiagnosticWarning, TraceError
from pyro_align.symmetry.group import Symmetry

_POINTS = 3
_ROUNDING = 1e-9  # of the log density's magnitude

Values = Mapping[str, Tensor]
Place = tuple[str, int]
Places = tuple[Place, ...]
Move = Callable[[Tensor, int], Tensor]  # a site's value and an axis -> the value moved


def find_symmetry_of_density(
    log_density: Callable[[dict[str, Tensor]], float | Tensor],
    shapes: Mapping[str, Iterable[int]],
    *,
    draws: Mapping[str, Tensor] | None = None,
    signs: bool = False,
    rotations: bool = False,
    max_evaluations: int = 10_000,
    trials: int = 3,
    seed: int = 0,
) -> Symmetry:
    """Finds the relabelings that leave a log density unchanged, from its values alone.

    For posteriors without a Pyro model: of NumPyro, PyMC or Stan, through their log density. What is found are atoms
    along whole axes, or along runs of an axis; flattened products and nested atoms, which :func:`find_symmetry` reads
    off a model's graph, are not looked for. The search tries sets of axes of equal length, small ones first: their
    number doubles with each such axis that belongs to no atom.

    Args:
        log_density: Site -> value of its shape, in float64, to the log density (nats, up to a constant): a number.
            Values are those whose density it is; a density of constrained values needs ``draws``.
        shapes: Site -> shape.
        draws: Site -> a few draws ``(draws, *shape)`` at which to compare; at least three. Without them points are
            standard normal noise, which suits densities of unconstrained values.
        signs: Whether units may change sign too, and single indices and whole sites.
        rotations: Whether to look for atoms on which every orthogonal matrix acts, or every one that leaves the vector
            of ones as it is.
        max_evaluations: Evaluations of the density after which to stop, with a warning.
        trials: Random elements in the certificate.
        seed: Seed of the points and the certificate.

    Returns:
        The symmetry, with its certificate; atoms are named after the first axis that carries them.

    Raises:
        TraceError: The density is not finite at the points.

    Example:
        >>> import torch
        >>> y = torch.randn(20, dtype=torch.float64)
        >>> def log_density(v):  # a mixture of two normals with equal weights
        ...     return torch.logsumexp(-0.5 * (y[:, None] - v["mu"]) ** 2, 1).sum() - 0.5 * (v["mu"] ** 2).sum()
        >>> find_symmetry_of_density(log_density, {"mu": (2,)}).atoms["mu[0]"].size
        2
    """
    shapes = {site: tuple(shape) for site, shape in shapes.items()}
    search = _Search(log_density, _points(shapes, draws, seed), max_evaluations)
    try:
        symmetry = _relabelings(search, shapes)
        real = _real(search.points if draws is None else [{k: torch.as_tensor(v) for k, v in draws.items()}], shapes)
        if rotations:
            symmetry = _rotations(search, symmetry, real)
        if signs:
            symmetry = _signs(search, symmetry, real)
    except _Exhausted as stop:
        symmetry = stop.found
        warnings.warn(
            f"the search for symmetries stopped after {max_evaluations} evaluations of the log density: there may be "
            "more than it found; raise max_evaluations",
            DiagnosticWarning,
            stacklevel=2,
        )
    function = _Function(log_density)
    return replace(
        symmetry, certificate=certify_function(symmetry, function, search.points[0], trials=trials, seed=seed)
    )


class _Function:
    """The density as the certificate runs it."""

    rounding = _ROUNDING
    supports: Mapping[str, Any] = {}

    def __init__(self, log_density: Callable[..., Any]):
        self._log_density = log_density

    def __call__(self, values: Values, back=None) -> Tensor:
        with torch.no_grad():
            return torch.as_tensor(self._log_density(dict(values))).double().reshape(1)


class _Exhausted(Exception):
    """No more evaluations are allowed; holds what was found."""

    def __init__(self, found: Symmetry):
        super().__init__()
        self.found = found


class _Search:
    """The density at a few points, and whether it stays the same when they are moved."""

    def __init__(self, log_density: Callable[..., Any], points: Sequence[dict[str, Tensor]], most: int):
        self._function, self.points, self._most, self.evaluations = _Function(log_density), points, most, 0
        self.found: Symmetry | None = None
        self._before = [float(self._function(p)) for p in points]
        if not all(math.isfinite(value) for value in self._before):
            raise TraceError(
                "the log density is not finite at the points tried; give draws= from the posterior, site -> "
                "(draws, *shape)"
            )

    def keeps(self, moved: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> bool:
        """Whether a move leaves the density as it is at every point."""
        for point, before in zip(self.points, self._before, strict=True):
            if self.evaluations >= self._most:
                assert self.found is not None
                raise _Exhausted(self.found)
            self.evaluations += 1
            try:
                after = float(self._function({**point, **moved(point)}))
            except (ValueError, ArithmeticError, RuntimeError):  # what is outside of the support is no symmetry
                return False
            if not abs(after - before) <= _ROUNDING * (1 + abs(before)):
                return False
        return True

    def keeps_along(self, places: Places, move: Move) -> bool:
        """The same of one move made along several axes."""

        def moved(point: dict[str, Tensor]) -> dict[str, Tensor]:
            out = dict(point)
            for site, axis in places:
                out[site] = move(out[site], axis)
            return out

        return self.keeps(moved)


def _points(
    shapes: Mapping[str, tuple[int, ...]], draws: Mapping[str, Tensor] | None, seed: int
) -> list[dict[str, Any]]:
    if draws is None:
        g = torch.Generator().manual_seed(seed)
        return [
            {k: torch.randn(s, generator=g, dtype=torch.float64, device="cpu") for k, s in shapes.items()}
            for _ in range(_POINTS)
        ]
    given = {k: torch.as_tensor(draws[k]) for k in shapes if k in draws}
    wrong = [
        k for k, s in shapes.items() if k not in given or tuple(given[k].shape[1:]) != s or len(given[k]) < _POINTS
    ]
    if wrong:
        raise ValueError(
            f"draws= must hold at least {_POINTS} draws (draws, *shape) of every site; those of {wrong} do not fit "
            f"{ {k: shapes[k] for k in wrong} }"
        )
    count = min(len(v) for v in given.values())
    chosen = torch.linspace(0, count - 1, _POINTS, device="cpu").long().tolist()
    return [{k: v[i].double() if v.is_floating_point() else v[i] for k, v in given.items()} for i in chosen]


def _swap(i: int, j: int) -> Move:
    def move(value: Tensor, axis: int) -> Tensor:
        order = torch.arange(value.shape[axis], device=value.device)
        order[i], order[j] = j, i
        return value.index_select(axis, order)

    return move


def _flip(indices: slice | int) -> Move:
    def move(value: Tensor, axis: int) -> Tensor:
        sign = torch.ones(value.shape[axis], dtype=value.dtype, device=value.device)
        sign[indices] = -1
        return value * sign.reshape([-1 if a == axis else 1 for a in range(value.dim())])

    return move


def _subsets(places: Sequence[Place]) -> Iterator[Places]:
    for count in range(1, len(places) + 1):
        yield from itertools.combinations(places, count)


def _relabelings(search: _Search, shapes: Mapping[str, tuple[int, ...]]) -> Symmetry:
    """For axes of one length, the sets along which neighbors may change places, and how far these runs reach."""
    runs: list[tuple[Places, int, int]] = []  # axes, first index, length
    search.found = _symmetry(shapes, runs)
    for size in sorted({n for shape in shapes.values() for n in shape if n > 1}):
        places = [(site, axis) for site, shape in shapes.items() for axis, n in enumerate(shape) if n == size]
        reached: dict[Place, int] = dict.fromkeys(places, 0)  # no run may begin before
        for first in range(size - 1):
            left = [p for p in places if reached[p] <= first]
            for found in _disjoint(search, left, _swap(first, first + 1)):
                end = first + 1
                while end < size - 1 and search.keeps_along(found, _swap(end, end + 1)):
                    end += 1
                runs.append((found, first, end - first + 1))
                reached.update(dict.fromkeys(found, end))
                search.found = _symmetry(shapes, runs)
    return _symmetry(shapes, runs)


def _symmetry(shapes: Mapping[str, tuple[int, ...]], runs: Sequence[tuple[Places, int, int]]) -> Symmetry:
    along: dict[Place, list[tuple[int, Atom]]] = {}
    names: set[str] = set()
    for places, first, length in runs:
        name = f"{places[0][0]}[{places[0][1]}]"
        name = name if name not in names else f"{name}/{first}"
        names.add(name)
        for place in places:
            along.setdefault(place, []).append((first, Atom(name, length)))
    sites = {}
    for site, shape in shapes.items():
        terms = []
        for axis, size in enumerate(shape):
            parts, at = [], 0
            for first, atom in sorted(along.get((site, axis), []), key=lambda pair: pair[0]):
                parts += [Fixed(first - at)] if first > at else []
                parts.append(atom)
                at = first + atom.size
            parts += [Fixed(size - at)] if at < size or not parts else []
            terms.append(parts[0] if len(parts) == 1 else Sum(*parts))
        sites[site] = tuple(terms)
    return Symmetry(sites)


def _real(points: Sequence[Values], shapes: Mapping[str, tuple[int, ...]]) -> frozenset[str]:
    """The sites whose values are not all positive."""
    return frozenset(
        k for k in shapes if points[0][k].is_floating_point() and any(bool((p[k] < 0).any()) for p in points)
    )


def _rotations(search: _Search, symmetry: Symmetry, real: frozenset[str]) -> Symmetry:
    """Atoms along whole axes on which a random orthogonal matrix acts, or one that leaves the mean."""
    kinds: tuple[Kind, ...] = ("rotation", "centered rotation")
    for (name, atom), kind in itertools.product(symmetry.atoms.items(), kinds):
        sites = {s for s, _ in symmetry.carriers[name]}
        whole = all(isinstance(symmetry.sites[s][i], Atom) for s, i in symmetry.carriers[name])
        if not whole or not sites <= real or symmetry.atoms[name].rotates or (kind != "rotation" and atom.size < 3):
            continue
        trial = _marked(symmetry, {name: replace(atom, kind=kind)}, dict.fromkeys(symmetry.carriers[name], True))
        element = trial.random(0).only(name)
        if search.keeps(lambda point, e=element, s=sites: {k: e.apply_site(k, point[k]) for k in s}):
            symmetry = search.found = trial
    return symmetry


def _marked(symmetry: Symmetry, kinds: Mapping[str, Atom], where: Mapping[Place, bool]) -> Symmetry:
    """The symmetry with atoms of another kind at some of the axes."""

    def kept(site: str, axis: int, term):
        if isinstance(term, Sum):
            return Sum(*(kept(site, axis, part) for part in term.terms))
        return kinds[term.name] if term.name in kinds and where.get((site, axis)) else term

    sites = {site: tuple(kept(site, i, term) for i, term in enumerate(terms)) for site, terms in symmetry.sites.items()}
    return replace(symmetry, sites=sites)


def _signs(search: _Search, symmetry: Symmetry, real: frozenset[str]) -> Symmetry:
    """The largest set of axes along which a unit of each atom may change sign; then indices that no atom carries."""
    for name, atom in symmetry.atoms.items():
        if atom.rotates:
            continue
        first = next(_starts(symmetry, name))
        carriers = [place for place in symmetry.carriers[name] if place[0] in real]
        for chosen in sorted(_subsets(carriers), key=len, reverse=True):
            if search.keeps_along(chosen, _flip(first)):
                odd = {name: replace(atom, kind="signed")}
                symmetry = search.found = _marked(symmetry, odd, dict.fromkeys(chosen, True))
                break
    return _loose_signs(search, symmetry, real)


def _starts(symmetry: Symmetry, name: str) -> Iterator[int]:
    """The first index of an atom on the axes that carry it."""
    for site, axis in symmetry.carriers[name]:
        term, at = symmetry.sites[site][axis], 0
        for part in term.terms if isinstance(term, Sum) else (term,):
            if part.name == name:
                yield at
            at += part.size


def _loose_signs(search: _Search, symmetry: Symmetry, real: frozenset[str]) -> Symmetry:
    """Single indices of axes of one length that carry no atom, and whole sites."""
    free = {
        site: [i for i, term in enumerate(terms) if isinstance(term, Atom) and not term.name]
        for site, terms in symmetry.sites.items()
        if site in real
    }
    axes: dict[int, list[Place]] = {}
    for site, here in free.items():
        for i in here:
            axes.setdefault(symmetry.shapes[site][i], []).append((site, i))
    marks: dict[Place, dict[int, str]] = {}
    for size, places in axes.items():
        for index in range(size):
            for chosen in _disjoint(search, places, _flip(index)):
                name = f"sign of {chosen[0][0]}[{chosen[0][1]}]/{index}"
                for place in chosen:
                    marks.setdefault(place, {})[index] = name
    symmetry = search.found = _with_signs(symmetry, marks)
    covered = {site for site, _ in marks} | {
        s for name in symmetry.signed | symmetry.rotated for s, _ in symmetry.carriers[name]
    }
    whole = [(site, here[0]) for site, here in free.items() if here and site not in covered]
    marks = {}
    for chosen in _disjoint(search, whole, _flip(slice(None))):
        for place in chosen:
            size = symmetry.shapes[place[0]][place[1]]
            marks[place] = dict.fromkeys(range(size), f"sign of {chosen[0][0]}")
    return _with_signs(symmetry, marks)


def _disjoint(search: _Search, places: Sequence[Place], move: Move) -> Iterator[Places]:
    """The smallest sets of axes along which a move may be made; no two of them meet."""
    taken: set[Place] = set()
    for chosen in _subsets(places):
        if taken.isdisjoint(chosen) and search.keeps_along(chosen, move):
            taken.update(chosen)
            yield chosen


def _with_signs(symmetry: Symmetry, marks: Mapping[Place, Mapping[int, str]]) -> Symmetry:
    sites = {site: list(terms) for site, terms in symmetry.sites.items()}
    for (site, axis), told in marks.items():
        along = {
            name: torch.tensor([told.get(k) == name for k in range(symmetry.shapes[site][axis])])
            for name in dict.fromkeys(told.values())
        }
        sites[site][axis] = marked(sites[site][axis], list(along.items()))
    return replace(symmetry, sites={site: tuple(terms) for site, terms in sites.items()})
