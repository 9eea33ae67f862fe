"""Posteriors that are known by their draws: given ones, those of a guide that can only be run, and points between.

They are matched by means and standard deviations of each coordinate, which need no pairing of draws. The path between
two of them moves the draws of either on the straight lines of one map (:mod:`~pyro_align.guides.transport`), fitted on
draws of both: at ``tau`` a draw comes from the first posterior with probability ``1 - tau`` and is moved forwards, and
from the second with probability ``tau`` and is moved backwards. Both ends are exact; where the map carries one law into
the other, both sides agree, and what it does not carry over is crossed by mixing. Every point can be drawn from without
limit. Its density is that of the side that a draw comes from, with the change of volume: where the sides differ, the KL
estimated with it is too large by their Jensen-Shannon divergence, at most log 2 nats for all data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.distributions.constraints import simplex

from pyro_align.errors import GuideError
from pyro_align.guides.drawing import SEEDS, SampledGuide
from pyro_align.guides.features import Features
from pyro_align.guides.posterior import Posterior
from pyro_align.guides.registry import register_guide
from pyro_align.guides.relabel import Labels, Relabeling, check_labels, label_moves, move_labels
from pyro_align.guides.sites import Noise, SiteSpec, Values, as_generator, check_draws, split_flat
from pyro_align.guides.transport import Transport, energy_coefficient, fit_transport, squared_distance
from pyro_align.model.supports import base_support, centered_log_ratio
from pyro_align.symmetry.element import Permutation

NUM_DRAWS = 256  # draws on which moments and maps are fitted, where a posterior makes its own
REMAINDER = 0.02  # energy coefficient above which a path says that its map does not carry one law into the other


class KnownByDraws(Posterior):
    """What all posteriors that are known by draws have in common."""

    labels: Labels
    known_by_draws = True
    moves_whole_sites = True

    def noise(self, num_samples: int, *, generator: torch.Generator | int = 0) -> Noise:
        """For each draw a seed, a place among given draws, and the side of a path that it comes from.

        Places are evenly spaced from a common offset, so that no given draw is taken twice where there are enough.
        """
        generator, n = as_generator(generator), check_draws(num_samples)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu")

        return {
            "_seed": torch.randint(0, SEEDS, (n,), generator=generator, device="cpu"),
            "_draw": (uniform(n).argsort() + uniform()) / n,
            "_side": (uniform(n).argsort() + uniform(n)) / n,
        }

    def with_labels(self, labels: Labels) -> KnownByDraws:
        return replace(self, labels={**self.labels, **check_labels(labels, self.sites)})

    def drawn(self, seed: int) -> Values:
        """Draws on which moments and maps are fitted; kept."""
        if seed not in self._kept:
            count = min(NUM_DRAWS, self.max_samples or NUM_DRAWS)
            self._kept[seed] = self.push(self.noise(count, generator=seed))
        return self._kept[seed]

    @cached_property
    def _kept(self) -> dict[int, Values]:
        return {}

    def marginal(self, site: str) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of one site's unconstrained coordinates, estimated from draws."""
        spec = self.sites[site]
        if spec.is_discrete:
            raise GuideError(f"site '{site}' is discrete: it has no location and scale")
        latent = spec.unconstrain(self.drawn(0)[site])
        return latent.mean(0), latent.std(0, correction=0)

    def _features(self, divergence: str, side: str) -> Features:
        values = self.drawn(int(side == "moving"))  # independent noise: a common one would favor the present labels
        odd = (True, False) if divergence == "w2" else (True,)

        def make(name: str) -> tuple[Tensor, ...]:
            found = self._linear(name, values[name])
            return (found.mean(0), found.std(0, correction=0))[: len(odd)]

        return Features(self.sites, make, odd)

    def distance(self, other: Posterior) -> float:
        """The W2 distance of Gaussian marginals with the draws' moments, a lower bound; 0 within two errors of 0."""
        squared, error = self._squared_distance(other)
        return math.sqrt(squared) if squared > 2 * error else 0.0

    def distance_error(self, other: Posterior) -> float:
        squared, error = self._squared_distance(other)
        return math.sqrt(max(squared, 0.0) + error) - math.sqrt(max(squared, 0.0))

    def _squared_distance(self, other: Posterior) -> tuple[float, float]:
        self.check_compatible(other)
        return squared_distance(*_evened(self.coordinates, other._coordinates_like(self)))

    def _linear(self, site: str, values: Tensor) -> Tensor:
        """Coordinates of the site's shape in which every relabeling is linear."""
        spec = self.sites[site]
        return centered_log_ratio(values) if base_support(spec.support) is simplex else straight(spec, values)

    @cached_property
    def coordinates(self) -> Tensor:
        return self._coordinates_like(self)

    def _coordinates_like(self, other: KnownByDraws) -> Tensor:
        """Draws in coordinates in which relabeling is linear, ``(draws, D)``, sites in the order of another's."""
        values = self.drawn(0)
        return torch.cat([self._linear(k, values[k]).double().reshape(len(values[k]), -1) for k in other.sites], dim=-1)

    def _displace(self, other: KnownByDraws, tau: float) -> Posterior:
        return other if tau == 1.0 else Between(self, other, tau, self._transport(other)[0])

    def _transport(self, other: KnownByDraws) -> tuple[Transport, float]:
        """The map to another posterior, and the energy coefficient of what it does not carry over."""

        def fit() -> tuple[Transport, float]:
            x, y = _evened(*(flat(self.sites, q.drawn(0)) for q in (self, other)))
            found = fit_transport(x, y, [spec.numel for spec in movable(self.sites).values()])
            moved, scale = found.displace(x, 1.0)[0], y.std(0, correction=0)
            scale = torch.where(scale > 0, scale, 1.0)
            return found, energy_coefficient(moved / scale, y / scale)

        return self._toward(other, fit)

    def path_notes(self, other: Posterior) -> tuple[str, ...]:
        notes, remainder = [], self._transport(other)[1]
        if not (self.has_density and other.has_density):
            notes.append(
                "kl and the negative ELBO are absent: the posterior is known by draws alone, which have no density"
            )
        if remainder > REMAINDER:
            notes.append(
                f"the path's map does not carry one end into the other (energy coefficient {remainder:.2g} of 1 is "
                "left): what is left is crossed by mixing the two sides, which shows no barrier of its own"
                + ("; kl between the ends is too large, by at most log 2 nats for all data" if self.has_density else "")
            )
        return tuple(notes)

    def check_compatible(self, other: Posterior) -> None:
        if not isinstance(other, KnownByDraws):
            raise GuideError(
                f"the posteriors are a {type(self).__name__}, known by draws, and a {type(other).__name__}; wrap the "
                "second too: wrap_guide(guide, *args)"
            )
        self.check_sites(other)

    def to_guide(self) -> SampledGuide:
        return SampledGuide(self)


@dataclass(frozen=True, eq=False)
class Between(KnownByDraws):
    """A point on the path between two posteriors that are known by draws.

    Attributes:
        start: The posterior at 0.
        end: The posterior at 1.
        tau: Where on the path.
        transport: The map from start to end, in unconstrained coordinates.
        chain: Relabelings, applied one after the other.
    """

    start: KnownByDraws
    end: KnownByDraws
    tau: float
    transport: Transport = field(repr=False)
    chain: tuple[Permutation, ...] = ()
    labels: Labels = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", {**self.start.labels, **self.labels})

    @property
    def sites(self) -> Mapping[str, SiteSpec]:
        return self.start.sites

    @property
    def has_density(self) -> bool:
        return self.start.has_density and self.end.has_density

    @property
    def max_samples(self) -> int | None:
        return min((q.max_samples for q in (self.start, self.end) if q.max_samples is not None), default=None)

    def _permute(self, p: Permutation) -> Between:
        label_moves(p, self.sites, self.labels)  # refuses what cannot be relabeled
        return replace(self, chain=(*self.chain, p))

    def push_with_log_prob(self, noise: Noise) -> tuple[Values, Tensor]:
        first = (noise["_side"] >= self.tau).to(self.device)
        sides = [self._side(q, noise, q is self.end) for q in (self.start, self.end)]
        values = {k: v.where(first.reshape(-1, *(1,) * (v.dim() - 1)), sides[1][0][k]) for k, v in sides[0][0].items()}
        for p in self.chain:
            values = relabeled(p, self.sites, self.labels, values)
        return values, sides[0][1].where(first, sides[1][1])

    def _side(self, q: KnownByDraws, noise: Noise, from_end: bool) -> tuple[Values, Tensor]:
        """All draws of one side, moved to where they are at tau, and their log density."""
        values, log_prob = q.push_with_log_prob(noise)
        moved, volume = self.transport.displace(flat(self.sites, values), self.tau, from_end=from_end)
        out = dict(values)
        for name, latent in split_flat(movable(self.sites), moved).items():
            spec, latent = self.sites[name], latent.to(self.sites[name].dtype)
            out[name] = spec.constrain(latent)
            before = spec.log_volume(spec.unconstrain(values[name]), values[name])
            log_prob = log_prob + before - spec.log_volume(latent, out[name])
        return {k: out[k] for k in self.sites}, log_prob - volume.to(log_prob)


def movable(sites: Mapping[str, SiteSpec]) -> dict[str, SiteSpec]:
    """The sites that a path moves: labels have no geometry, they come with the side that a draw comes from."""
    return {name: spec for name, spec in sites.items() if not spec.is_discrete}


def flat(sites: Mapping[str, SiteSpec], values: Values) -> Tensor:
    """The draws' unconstrained coordinates, ``(draws, D)`` in float64."""
    parts = [s.unconstrain(values[k]).double().reshape(len(values[k]), -1) for k, s in movable(sites).items()]
    return torch.cat(parts, dim=-1) if parts else torch.zeros(len(next(iter(values.values()))), 0, dtype=torch.float64)


def relabeled(p: Permutation, sites: Mapping[str, SiteSpec], labels: Labels, values: Values) -> Values:
    """The relabeled draws, labels in their values included."""
    act, moves = Relabeling(p, sites), label_moves(p, sites, labels)
    draws = {k: act.constrained(k, v, batch_dims=1) for k, v in act.renamed(values).items()}
    return {**draws, **{k: move_labels(sites[k], index, draws[k]) for k, index in moves.items()}}


def straight(spec: SiteSpec, values: Tensor) -> Tensor:
    """Unconstrained coordinates where the bijection is elementwise, constrained ones elsewhere; zeros for labels."""
    if spec.is_discrete:
        return values.new_zeros((), dtype=torch.get_default_dtype()).expand(values.shape)
    return values if spec.core_event_dims[0] else spec.unconstrain(values)


def _evened(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Equally many draws of either, evenly spaced among those of the longer."""
    count = min(len(x), len(y))
    return tuple(z[torch.arange(count, device=z.device) * len(z) // count] for z in (x, y))


@register_guide(SampledGuide)
def read_sampled_guide(guide: SampledGuide) -> Posterior:
    """The posterior that the guide draws from."""
    return guide.posterior
