"""One run of :func:`align_draws`: the draws, what is known of them, what is asked, and the steps between."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from pyro_align.axes import Atom, Fixed
from pyro_align.draws.allocations import allocations
from pyro_align.draws.carried import Carried, component_axes
from pyro_align.draws.invariance import Invariance, check_invariance
from pyro_align.draws.methods import BY_VALUE, METHODS, WEIGHTS, Outcome, by_allocations, by_ordering, by_values
from pyro_align.draws.result import AlignedDraws, only_atom
from pyro_align.draws.rotations import BY_ROTATION, Rows, by_rotation, rotations_left
from pyro_align.draws.search import UnitMatcher, is_exhaustive, least_loss
from pyro_align.draws.shapes import as_tensor
from pyro_align.draws.sources import Source
from pyro_align.draws.stack import Features, Labels, restricted
from pyro_align.draws.units import Units, by_chain, cut
from pyro_align.errors import GuideError, SymmetryError
from pyro_align.symmetry.group import Symmetry

if TYPE_CHECKING:
    from pyro_align.model.draws import DrawDensity

_ALLOCATIONS = "allocations"


@dataclass(frozen=True)
class Options:
    method: str
    level: str
    weights: str | Mapping[str, float]
    restarts: int
    max_iterations: int
    seed: int

    def __post_init__(self) -> None:
        if self.method not in (*METHODS, *BY_ROTATION):
            raise ValueError(f"method must be one of {', '.join((*METHODS, *BY_ROTATION))}; got {self.method!r}")
        if self.level not in ("draw", "chain"):
            raise ValueError(f"level must be 'draw' or 'chain', got {self.level!r}")
        if isinstance(self.weights, str) and self.weights not in WEIGHTS:
            raise ValueError(f"weights must be one of {', '.join(WEIGHTS)} or a mapping; got {self.weights!r}")
        if self.level == "chain" and self.method == "ordering":
            raise ValueError("method='ordering' orders draws one by one; use level='draw'")
        if self.level == "chain" and self.weights == "pooled":
            raise ValueError("weights='pooled' needs the spread of single draws; use level='draw', or a mapping")
        if not isinstance(self.weights, str) and not all(w >= 0 and math.isfinite(w) for w in self.weights.values()):
            raise ValueError(f"weights must be finite and not negative, got {dict(self.weights)}")
        if self.method in BY_ROTATION and self.weights in ("pooled", "diagonal"):
            raise ValueError(f"method='{self.method}' takes weights='equal', or site -> weight")
        if self.restarts < 0 or self.max_iterations < 1:
            raise ValueError(
                f"expected restarts >= 0 and max_iterations >= 1, got {self.restarts} and {self.max_iterations}"
            )


@dataclass(frozen=True, eq=False)
class Task:
    """Draws, what is known of them, and what is asked."""

    source: Source
    symmetry: Symmetry
    carried: Carried
    density: DrawDensity | None
    maps: Mapping[str, Callable[[Tensor], Tensor]]
    finite: np.ndarray
    trusted: np.ndarray
    options: Options

    def first_trusted(self) -> tuple[int, int]:
        """The first draw that may serve as a reference."""
        chain, draw = np.argwhere(self.trusted)[0]
        return int(chain), int(draw)

    # -- features --------------------------------------------------------------------------------------------------

    def value_units(self) -> Units:
        """The draws as they are compared by value."""
        symmetry = restricted(self.symmetry)
        if self.source.members:
            return self._guide_units(symmetry)
        squares = self.options.weights == "diagonal"
        draws = self.source.shape[1]

        def read(start: int, stop: int) -> Features:
            chain, lo = divmod(start, draws)
            out = {}
            for site, map_to in self.maps.items():
                value = self.source.read(site, chain, slice(lo, lo + stop - start))
                value = map_to(value if value.is_floating_point() else value.to(torch.get_default_dtype()))
                value = value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
                out[site] = (value, value.square()) if squares else (value,)
            return out

        numel = sum(int(np.prod(self.source.shapes[s])) for s in self.maps) * (1 + squares)
        return self._units(symmetry, (True, False) if squares else (True,), numel, read)

    def _guide_units(self, symmetry: Symmetry) -> Units:
        members = self.source.members
        divergence = members[0].divergences[0]
        if not members[0].divergences:
            raise GuideError(f"{type(members[0]).__name__} has no features to match by")
        features = [q.features(divergence, "moving") for q in members]
        odd = max((features[0].odd[s] for s in symmetry.sites), key=len)  # locations first, in every family
        stacked = {}
        for s in symmetry.sites:
            own = [as_tensor(torch.stack(f)) for f in zip(*(m[s] for m in features), strict=True)]
            stacked[s] = (*own, *(torch.zeros_like(own[0]) for _ in range(len(odd) - len(own))))

        def read(start: int, stop: int) -> Features:
            return {s: tuple(f[start:stop] for f in v) for s, v in stacked.items()}

        return self._units(symmetry, odd, 1, read)

    def _units(self, symmetry: Symmetry, odd: tuple[bool, ...], numel: int, read) -> Units:
        valid, trusted = (torch.from_numpy(mask.reshape(-1).copy()) for mask in (self.finite, self.trusted))
        return Units(symmetry, odd, valid, trusted, cut(*self.source.shape, numel), read)

    def _levelled(self, units: Units) -> Units:
        return by_chain(units, self.source.shape[0]) if self.options.level == "chain" else units

    def matcher(self, units: Units) -> UnitMatcher:
        return UnitMatcher(units.symmetry, units.odd, self.options.restarts, self.options.seed)

    # -- relabeling -----------------------------------------------------------------------------------------------

    def relabel_by_values(self, start: Features) -> Outcome:
        """``pivot`` and ``barycenter``."""
        units = self._levelled(self.value_units())
        found = by_values(
            units,
            self.matcher(units),
            start,
            averaged=self.options.method == "barycenter",
            weights=self.options.weights,
            max_iterations=self.options.max_iterations,
        )
        return replace(found, log_odds=self._log_odds(units, found))

    def relabel_by_rotation(self, start: Features, atom: str, by: str | None, *, fixed: bool) -> Outcome:
        """``procrustes`` and ``varimax``."""
        rows = Rows.of(self.symmetry, atom, by, self.options.weights, self.options.method)
        units = self._levelled(self.value_units())
        method, most = self.options.method, self.options.max_iterations
        return by_rotation(units, rows, self.symmetry, method, start, fixed=fixed, max_iterations=most)

    def _log_odds(self, units: Units, found: Outcome) -> Callable[[], np.ndarray]:
        """Log odds of each draw's labeling against the second best, ``(chain, draw)``, computed when asked for."""
        matcher, shape = self.matcher(units), self.source.shape
        labels = Labels(dict(found.labels.indices), dict(found.labels.signs))

        def read() -> np.ndarray:
            losses = [
                least_loss(
                    matcher, found.fixed, features, labels.permutation(matcher.stack(here.stop - here.start), here)
                )
                for here, features in units.chunks()
            ]
            odds = torch.cat(losses).numpy() / found.scale
            return np.broadcast_to(odds.reshape(shape[0], -1), shape)

        return read

    def component_atom(self, atom: str | None) -> str:
        """The atom whose units are the components that data are allocated to."""
        atom = only_atom(self.symmetry, atom)
        if self.symmetry.outer_shape(atom):
            raise SymmetryError(f"atom '{atom}' is nested; allocations need one that is not")
        return atom

    def relabel_by_allocations(self, pivot: tuple[int, int] | None, atom: str, given: Any, site: str | None) -> Outcome:
        """The methods that compare allocations, given or else taken from the model's ``site``."""
        if pivot is None:
            raise ValueError("methods that compare allocations need a draw as pivot: 'map', 'medoid' or (chain, draw)")
        draws, method = self.source.shape[1], self.options.method
        usable = torch.from_numpy(self.finite)
        terms = component_axes(self.symmetry, atom)
        probabilities = allocations(self.source, tuple(terms), usable, self.density, given, site, method)
        data, size = probabilities.data, probabilities.size
        symmetry = Symmetry({_ALLOCATIONS: (Fixed(data), terms[size])})

        def read(start: int, stop: int) -> Features:
            chain, lo = divmod(start, draws)
            p = probabilities.read(chain, lo, lo + stop - start)
            hard = one_hot(p.argmax(-1), size).to(p.dtype)
            return {_ALLOCATIONS: {"stephens": (p,), "ecr_iterative_2": (hard, p)}.get(method, (hard,))}

        odd = (False,) * (2 if method == "ecr_iterative_2" else 1)
        units = self._units(symmetry, odd, data * size * len(odd), read)
        first = units.one(pivot[0] * self.source.shape[1] + pivot[1])
        units = self._levelled(units)
        found = by_allocations(units, self.matcher(units), method, first, max_iterations=self.options.max_iterations)
        labels = Labels.identity(self.symmetry, units.count)  # atoms that are no components keep their labels
        labels.indices[atom] = found.labels.indices[atom]
        return replace(found, labels=labels, log_odds=self._log_odds(units, found))

    def order(self, site: str | None, atom: str | None) -> Outcome:
        """The artificial constraint."""
        if site is None or site not in self.symmetry.sites:
            raise ValueError(f"method='ordering' needs by=, one of {list(self.symmetry.sites)}; got {site!r}")
        carried = {a: axis for a, places in self.symmetry.carriers.items() for s, axis in places if s == site}
        if atom is None and len(carried) == 1:
            atom = next(iter(carried))
        if atom not in carried:
            raise SymmetryError(f"site '{site}' carries the atoms {list(carried)}; name one with atom=, got {atom!r}")
        term = self.symmetry.sites[site][carried[atom]]
        if not isinstance(term, Atom):
            raise SymmetryError(f"site '{site}': its axis {carried[atom]} is '{term}', not plainly '{atom}'")
        chains, draws = self.source.shape
        labels = Labels.identity(self.symmetry, chains * draws)
        for chain, part in self.source.slices(1 << 14):
            here = slice(chain * draws + part.start, chain * draws + part.stop)
            valid = torch.from_numpy(self.finite[chain, part].copy())
            by_ordering(self.source.read(site, chain, part), self.symmetry, atom, carried[atom], labels, here, valid)
        return Outcome(labels, {}, 1, True)

    # -- the model -------------------------------------------------------------------------------------------------

    def density_slices(self) -> list[tuple[int, slice]]:
        return self.source.slices(self.density.chunk)

    def latents(self, chain: int, part: slice) -> dict[str, Tensor]:
        return {k: self.source.read(k, chain, part) for k in self.density.latents}

    def log_probs(self) -> tuple[Tensor, ...]:
        """Log joint, log likelihood, and its sum with random weights, of every draw, ``(chain, draw)`` nats each."""
        parts = [self.density.fingerprints(self.latents(c, s)) for c, s in self.density_slices()]
        return tuple(torch.cat(part).reshape(self.source.shape) for part in zip(*parts, strict=True))

    def certified(self, result: AlignedDraws, before: tuple[Tensor, ...], undone: str | None) -> AlignedDraws:
        """The result, once every relabeled draw has the log joint that it had before; with the groups that are left."""
        count, worst, smallest = 0, 0.0, np.inf
        for chain, part in self.density_slices():
            moved = torch.from_numpy(result.relabeled[chain, part] & self.finite[chain, part])
            if not bool(moved.any()):
                continue
            latents = self.latents(chain, part)
            changed = {k: v for k, v in latents.items() if k in self.symmetry.sites}
            latents.update(result.relabel(changed, chain, part))
            after = self.density.fingerprints({k: v[moved] for k, v in latents.items()})
            old = tuple(b[chain, part][moved] for b in before)
            tolerance = self.density.tolerance(old[0])
            places = (part.start + moved.nonzero().flatten()).tolist()
            error = check_invariance(
                self.symmetry.scope, old, after, tolerance, lambda i, c=chain, at=places: (c, at[i])
            )
            count, worst = count + int(moved.sum()), max(worst, error)
            smallest = min(smallest, float(tolerance.min()))
        usable = [
            (int(c), slice(int(d), int(d) + 1)) for c, d in np.argwhere(self.finite)[:: max(1, self.finite.sum() // 2)]
        ]
        draws = [{k: v[0] for k, v in self.latents(*at).items()} for at in usable[:2]]
        result = replace(result, continuous=rotations_left(self.symmetry, self.density, draws, undone))
        return replace(result, invariance=Invariance(count, worst, 0.0 if count == 0 else smallest))

    def result(
        self, outcome: Outcome, pivot: tuple[int, int] | None, flagged: np.ndarray, log_probs: tuple[Tensor, ...] | None
    ) -> AlignedDraws:
        """The outcome laid out by chain and draw."""
        chains, draws = self.source.shape

        def spread(table: Tensor) -> Tensor:
            if self.options.level == "chain":
                return table.unsqueeze(1).expand(chains, draws, *table.shape[1:]).contiguous()
            return table.reshape(chains, draws, *table.shape[1:])

        labels = outcome.labels
        certain = self.options.method not in BY_VALUE or is_exhaustive(restricted(self.symmetry))
        count = len(next(iter({**labels.indices, **labels.rotations}.values()), ()))
        return AlignedDraws(
            symmetry=self.symmetry,
            carried=self.carried,
            method=self.options.method,
            level=self.options.level,
            permutations={k: spread(v) for k, v in labels.indices.items()},
            signs={k: spread(v) for k, v in labels.signs.items()},
            rotations={k: spread(v) for k, v in labels.rotations.items()},
            continuous=(),
            reference=outcome.reference,
            reference_draw=pivot,
            flagged=flagged,
            log_joint=None if log_probs is None else log_probs[0].numpy(),
            invariance=None,
            iterations=outcome.iterations,
            converged=outcome.converged,
            improved=None if certain else outcome.improved / max(1, count),
            log_odds=outcome.log_odds,
            source=self.source,
            coordinates=self.maps,
        )
