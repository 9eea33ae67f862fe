"""The model's log joint and log likelihood at many draws, and the allocation probabilities of its discrete sites."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_align.errors import TraceError
from pyro_align.model.batch import Runner
from pyro_align.model.density import Density
from pyro_align.model.enumerate import Enumerated
from pyro_align.model.forward import Records, masked_log_prob
from pyro_align.model.guards import untouched
from pyro_align.symmetry.stacks import Stacks, stacked, unstacked

Values = Mapping[str, Tensor]


@dataclass
class DrawDensity:
    """A model with its data, evaluated at many draws by ``torch.func.vmap``, or one by one where that fails."""

    model: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    stacks: Stacks = field(default_factory=dict)  # stack -> the model's latent sites that callers give and get as one
    chunk: int = 250  # draws that a caller should read and give at a time

    def __post_init__(self) -> None:
        self.density: Density = Density(self.model, self.args, self.kwargs)
        self.runner: Runner = Runner(self.model, self.density.seed)
        self._found: tuple[str, ...] | None = None
        self._drawn: dict[tuple, Tensor] = {}

    @property
    def vectorized(self) -> bool:
        """Whether draws go through the model together."""
        return self.runner.vectorized

    @property
    def supports(self) -> dict[str, Any]:
        """Latent site, or stack -> support."""
        return {name: sites[0].support for name, sites in self.latents.items()}

    @property
    def latents(self) -> dict[str, list[Any]]:
        """Name -> the latent site, or the latent sites of a stack."""
        alone = {name: [site] for name, site in self.density.latents.items()}
        return stacked(alone, self.stacks, lambda parts: [site for part in parts for site in part])

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raises a :class:`TraceError` unless the draws have every latent site of the model, in its shape."""
        shapes = {m: s[k in self.stacks :] for k, s in shapes.items() for m in self.stacks.get(k, (k,))}
        for name, site in self.density.latents.items():
            if name not in shapes:
                raise TraceError(
                    f"the model has a latent site '{name}' that the draws do not have; they have {sorted(shapes)}. "
                    "Give the model that the draws were made with, or none"
                )
            if tuple(shapes[name]) != site.shape:
                raise TraceError(
                    f"site '{name}': shape {site.shape} in the model, {tuple(shapes[name])} in the draws; give the "
                    "model's arguments as the sampler had them"
                )

    def deterministic(self, name: str, latents: Values) -> Tensor | None:
        """What the model's ``pyro.deterministic`` of that name is at one draw; None where there is none."""
        inner, latents = self.density, unstacked(latents, self.stacks)
        values = {k: v.to(inner.latents[k].device, inner.latents[k].dtype) for k, v in latents.items()}
        with untouched(inner.model, seed=inner.seed), torch.no_grad():
            node = inner.trace(values).nodes.get(name)
        if node is None or not node.get("infer", {}).get("_deterministic"):
            return None
        return node["value"].cpu()

    def log_probs(self, values: Values) -> tuple[Tensor, Tensor]:
        """Log joint and log likelihood of draws, ``(units,)`` nats each, discrete sites summed out."""
        return self.fingerprints(values)[:2]

    def fingerprints(self, values: Values) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`log_probs`, and the sum over data of their log likelihoods with random weights.

        Two draws with the same weighted sum have, except by chance, the same log likelihood of every datum: the same
        posterior predictive density.
        """

        device = next(iter(values.values())).device
        draws = self.runner(self._placed(values), self.args, self.kwargs)
        likelihood = draws.likelihood * draws.stand + draws.factors
        weights = self._weights(draws.log_likelihood)
        weighted = (draws.log_likelihood * weights).flatten(1).sum(1)
        found = (draws.log_prior - draws.factors + likelihood, likelihood, weighted)
        return tuple(part.double().to(device) for part in found)

    def _weights(self, log_likelihood: Tensor) -> Tensor:
        """Fixed random weights in [0.5, 1.5] of the data."""
        shape = tuple(log_likelihood.shape[1:])
        if shape not in self._drawn:
            g = torch.Generator().manual_seed(0)
            self._drawn[shape] = 0.5 + torch.rand(shape, generator=g, dtype=torch.float64, device="cpu")
        return self._drawn[shape].to(log_likelihood)

    def tolerance(self, log_joint: Tensor) -> Tensor:
        """The change of a log joint that rounding allows in the model's own precision, nats."""
        low = any(site.dtype != torch.float64 for site in self.density.latents.values())
        return (2e-4 if low else 1e-9) * (1.0 + log_joint.abs())

    # -- allocations -----------------------------------------------------------------------------------------------

    def allocation_sites(self, site: str | None = None) -> tuple[str, ...]:
        """The discrete sites, or the marginalized mixtures, whose allocations are wanted."""
        found = (*self.density.enumerated, *self._mixtures())
        if not found or (site is not None and site not in found):
            raise TraceError(
                f"no discrete latent or mixture site to take allocations from (asked for: {site!r}); the model has "
                f"{list(found)}. Give allocations= yourself"
            )
        return found if site is None else (site,)

    def allocations(self, values: Values, sites: Sequence[str]) -> Tensor:
        """Posterior probability of each component for each datum, given each draw: ``(units, data, components)``.

        For discrete sites these are their marginals under exact enumeration: the derivatives of the log normalizer
        with respect to the sites' log factors, which holds for chains (hidden Markov models) as for plates. For a
        ``MixtureSameFamily`` they follow from its components.
        """
        mixtures = [s for s in sites if s in self._mixtures()]
        discrete = [s for s in sites if s not in mixtures]
        placed = self._placed(values)
        record = self.runner.recorder(placed, self.args, self.kwargs)

        def one(draw: Values) -> dict[str, Tensor]:
            records = record(draw)
            parts = _marginals(records, discrete) if discrete else []
            parts += [_responsibilities(records.data[s]) for s in mixtures]
            sizes = {p.shape[-1] for p in parts}
            if len(sizes) > 1:
                raise TraceError(f"the sites {list(sites)} have different numbers of components; name one of them")
            return {"allocations": torch.cat([p.reshape(-1, p.shape[-1]) for p in parts])}

        return self.runner.many(one, placed)["allocations"].to(next(iter(values.values())).device)

    def _mixtures(self) -> tuple[str, ...]:
        if self._found is None:
            nodes = self.density._prototype()[0].nodes
            self._found = tuple(n for n in self.density.observed if _mixture(nodes[n]["fn"]) is not None)
        return self._found

    def _placed(self, values: Values) -> dict[str, Tensor]:
        """The latent sites' draws, where the model runs."""
        latents, values = self.density.latents, unstacked(values, self.stacks, 1)
        return {k: v.to(latents[k].device, latents[k].dtype) for k, v in values.items() if k in latents}


def _responsibilities(message: Mapping[str, Any]) -> Tensor:
    mixture = _mixture(message["fn"])
    value = message["value"].unsqueeze(-1 - mixture._event_ndims)
    return torch.softmax(mixture.component_distribution.log_prob(value) + mixture.mixture_distribution.logits, -1)


def _marginals(records: Records, sites: Sequence[str]) -> list[Tensor]:
    """Posterior marginals of discrete sites: derivatives of the log normalizer by their log factors."""
    enumerated = Enumerated(records)
    messages = [records.latent[s] for s in sites]
    zeros = {s: torch.zeros_like(masked_log_prob(m)) for s, m in zip(sites, messages, strict=True)}
    gradients = torch.func.grad(enumerated.total)(zeros)
    own = [gradients[m["name"]].movedim(m["infer"]["_enumerate_dim"], -1) for m in messages]
    # a joint marginal of a site and its discrete parents: the parents are summed out
    parents = [tuple(range(m.dim() - 1 - records.max_plate_nesting)) for m in own]
    return [m.sum(p) if p else m for m, p in zip(own, parents, strict=True)]


def _mixture(fn) -> dist.MixtureSameFamily | None:
    """The marginalized mixture inside a site's distribution, or None."""
    while hasattr(fn, "base_dist") and not isinstance(fn, torch.distributions.MixtureSameFamily):
        fn = fn.base_dist
    return fn if isinstance(fn, torch.distributions.MixtureSameFamily) else None
