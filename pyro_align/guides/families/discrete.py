"""``AutoDiscreteParallel``: independent categorical distributions, which Pyro sums over by enumeration.

Relabeling indexes the categories where they are labels (:mod:`pyro_align.guides.relabel`), and batch axes where these
stand for units. Labels have no geometry: distances and features leave them out, so an alignment is that of the
continuous sites, and labels follow. On a path probabilities are linear in tau.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from pyro.distributions import Bernoulli, OneHotCategorical
from pyro.infer.autoguide import AutoDiscreteParallel
from torch import Tensor

from pyro_align.guides.divergences import known_divergences
from pyro_align.guides.families.entrywise import Entrywise, read_entries
from pyro_align.guides.features import Features
from pyro_align.guides.posterior import Posterior
from pyro_align.guides.pyro_state.modules import Prototype, RawParameter, latent_nodes
from pyro_align.guides.registry import register_guide
from pyro_align.guides.relabel import Labels, Relabeling, check_labels, label_moves
from pyro_align.guides.sites import Noise, SiteSpec, Values, as_generator, check_draws, check_finite
from pyro_align.symmetry.element import Permutation


@dataclass(frozen=True, eq=False)
class Discrete(Entrywise):
    """Independent discrete sites.

    Attributes:
        sites: The sites.
        probs: Site -> parameter of the probabilities: ``(*batch, categories)``, or ``(*batch,)`` for Bernoulli sites.
        kinds: Site -> class of its distribution.
        write: Makes a Pyro guide of a member of the family.
        labels: Site -> the atom whose units its values number; None where they number none.
    """

    sites: Mapping[str, SiteSpec]
    probs: Mapping[str, RawParameter] = field(repr=False)
    kinds: Mapping[str, type[Any]] = field(repr=False)
    write: Callable[[Discrete], object] = field(repr=False)
    labels: Labels = field(default_factory=dict)

    entries = ("probs",)

    @property
    def divergences(self) -> tuple[str, ...]:
        return known_divergences()

    def __post_init__(self) -> None:
        for name, parameter in self.probs.items():
            check_finite("probabilities", name, parameter.raw)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the probabilities."""
        return next(iter(self.probs.values())).raw.dtype

    def with_labels(self, labels: Labels) -> Discrete:
        return replace(self, labels={**self.labels, **check_labels(labels, self.sites)})

    def log_table(self, site: str) -> Tensor:
        """Log probability of every value of a site, ``(*batch, categories)``, nats."""
        probs = self.probs[site].value
        if self.kinds[site] is Bernoulli:
            probs = torch.stack([1 - probs, probs], dim=-1)
        return probs.log()

    def _permute(self, p: Permutation) -> Discrete:
        act, moves = Relabeling(p, self.sites), label_moves(p, self.sites, self.labels)
        probs = {}
        for name, parameter in self.probs.items():
            raw = parameter.raw
            if self.kinds[name] is Bernoulli:
                raw = act.constrained(name, raw)
                if name in moves:  # two labels: either they stay, or they swap
                    raw = raw if int(moves[name][0]) == 0 else -raw
            else:
                raw = self._moved(act, moves, name, raw)
            probs[name] = parameter.with_raw(raw)
        return replace(self, probs=probs)

    def permute_noise(self, p: Permutation, noise: Noise) -> Noise:
        act, moves = Relabeling(p, self.sites), label_moves(p, self.sites, self.labels)
        return {k: self._moved(act, moves, k, v, draws=1) for k, v in noise.items()}

    def _moved(
        self, act: Relabeling, moves: Mapping[str, Tensor], name: str, table: Tensor, *, draws: int = 0
    ) -> Tensor:
        """A table ``(*draws, *batch, categories)`` with axes and categories relabeled."""
        if self.kinds[name] is OneHotCategorical:  # the categories are an axis of the value
            table = act.constrained(name, table, batch_dims=draws)
        else:
            table = act.constrained(name, table.movedim(-1, 0), batch_dims=draws + 1).movedim(0, -1)
        if name in moves:
            table = table[..., moves[name].to(table.device)]
        return table.contiguous()

    def noise(self, num_samples: int, *, generator: torch.Generator | int = 0) -> Noise:
        """Gumbel noise for every category: the largest sum of noise and log probability is drawn."""
        generator, num_samples = as_generator(generator), check_draws(num_samples)
        noise = {}
        for name in self.sites:
            table = self.log_table(name)
            uniform = torch.rand((num_samples, *table.shape), generator=generator, dtype=torch.float64, device="cpu")
            noise[name] = -(-uniform.clamp_min(1e-300).log()).log().to(table)
        return noise

    def push_with_log_prob(self, noise: Noise) -> tuple[Values, Tensor]:
        values, total = {}, 0.0
        for name, spec in self.sites.items():
            table = self.log_table(name).expand(noise[name].shape)
            picked = (table + noise[name]).argmax(-1, keepdim=True)
            total = total + table.gather(-1, picked).flatten(1).sum(-1)
            picked = picked.squeeze(-1)
            if self.kinds[name] is OneHotCategorical:
                picked = torch.nn.functional.one_hot(picked, table.shape[-1])
            values[name] = picked.to(spec.dtype)
        return values, total

    def _features(self, divergence: str, side: str) -> Features:
        zero = torch.zeros((), dtype=self.dtype, device=self.device)
        return Features(self.sites, lambda name: (zero.expand(self.sites[name].shape),), (False,))

    def distance(self, other: Posterior) -> float:
        """Zero: labels are not compared."""
        self.check_compatible(other)
        return 0.0


@register_guide(AutoDiscreteParallel)
def read_auto_discrete_parallel(guide: AutoDiscreteParallel) -> Discrete:
    """Reads ``<site>_probs`` of every site."""
    latent_nodes(guide)  # refuses one that has not run
    prototype = Prototype.of(guide)
    slim = [
        ({"name": site["name"]}, kind, [(name, None, constraint) for name, _, constraint in params])
        for site, kind, params in guide._discrete_sites
    ]
    prototype = replace(prototype, attributes={**prototype.attributes, "_discrete_sites": slim})
    kinds = {site["name"]: kind for site, kind, _ in guide._discrete_sites}
    return read_entries(Discrete, guide, {"probs": "{}_probs"}, full_plates=False, prototype=prototype, kinds=kinds)
