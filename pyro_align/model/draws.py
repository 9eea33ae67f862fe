"""The model's log joint and log likelihood at many draws, and the allocation probabilities of its discrete sites."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import config_enumerate
from pyro.infer.mcmc.util import TraceEinsumEvaluator
from pyro.poutine.enum_messenger import EnumMessenger
from torch import Tensor

from pyro_align.errors import SymmetryError, TraceError
from pyro_align.model.density import Density
from pyro_align.model.guards import untouched
from pyro_align.model.log_einsum import contract_logs

Values = Mapping[str, Tensor]
_CHUNK = 250


@dataclass
class DrawDensity:
    """A model with its data, evaluated at many draws by ``torch.func.vmap``, or one by one where that fails.

    Attributes:
        model: The Pyro model.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        chunk: Draws in one vectorized run.
    """

    model: Callable
    args: tuple = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    chunk: int = _CHUNK

    def __post_init__(self):
        self.density = Density(self.model, self.args, self.kwargs)
        self.vectorized = True
        self._found: tuple[str, ...] | None = None
        self._drawn: dict[tuple, Tensor] = {}

    @property
    def supports(self) -> dict[str, Any]:
        """Latent site -> support."""
        return {name: site.support for name, site in self.density.latents.items()}

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raises a :class:`TraceError` unless the draws have every latent site of the model, in its shape."""
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

    def log_probs(self, values: Values) -> tuple[Tensor, Tensor]:
        """Log joint and log likelihood of each draw, ``(units,)`` nats each, discrete sites summed out.

        Args:
            values: Site -> constrained draws ``(units, *site_shape)``.
        """
        return self.fingerprints(values)[:2]

    def fingerprints(self, values: Values) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`log_probs`, and the sum over data of their log likelihoods with random weights.

        Two draws with the same weighted sum have, but for chance, the same log likelihood of every single datum: the
        same posterior predictive density. Where discrete sites are summed out it is the plain sum.
        """

        def one(draw: Values) -> tuple[Tensor, Tensor, Tensor]:
            trace = self._trace(draw)
            if self.density.enumerated:
                joint = self._total(trace)
                for name in self.density.latents:
                    trace.remove_node(name)
                likelihood = self._total(trace)
                return joint, likelihood, likelihood
            nodes = trace.nodes
            sums = {k: n["log_prob_sum"] for k, n in nodes.items() if "log_prob_sum" in n}
            joint = sum(sums.values())
            weighted = joint - joint
            for name in self.density.observed:
                value = nodes[name]["log_prob"]
                weighted = weighted + (value * self._weights(name, value)).sum()
            return joint, joint - sum(v for k, v in sums.items() if k in self.density.latents), weighted

        return tuple(part.double() for part in self._map(one, values))

    def _weights(self, site: str, like: Tensor) -> Tensor:
        """Fixed random weights in [0.5, 1.5] of a site's data."""
        key = (site, tuple(like.shape))
        if key not in self._drawn:
            g = torch.Generator().manual_seed(zlib.crc32(site.encode()))
            self._drawn[key] = 0.5 + torch.rand(key[1], generator=g, dtype=torch.float64, device="cpu")
        return self._drawn[key].to(like.device, like.dtype)

    def tolerance(self, log_joint: Tensor) -> Tensor:
        """The change of a log joint that rounding allows in the model's own precision, nats."""
        low = any(site.dtype != torch.float64 for site in self.density.latents.values())
        return (2e-4 if low else 1e-9) * (1.0 + log_joint.abs())

    # -- allocations -----------------------------------------------------------------------------------------------

    def allocation_sites(self, site: str | None = None) -> tuple[str, ...]:
        """The discrete sites, or the marginalized mixtures, whose allocations are wanted.

        Raises:
            TraceError: The model has none, or none of that name.
        """
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

        def one(draw: Values) -> tuple[Tensor]:
            parts = self._marginals(draw, discrete) if discrete else []
            parts += [self._responsibilities(draw, s) for s in mixtures]
            sizes = {p.shape[-1] for p in parts}
            if len(sizes) > 1:
                raise TraceError(f"the sites {list(sites)} have different numbers of components; name one of them")
            return (torch.cat([p.reshape(-1, p.shape[-1]) for p in parts]),)

        return self._map(one, values)[0]

    def _mixtures(self) -> tuple[str, ...]:
        if self._found is None:
            nodes = self.density._prototype().nodes
            self._found = tuple(n for n in self.density.observed if _mixture(nodes[n]["fn"]) is not None)
        return self._found

    def _responsibilities(self, draw: Values, site: str) -> Tensor:
        node = self._trace(draw).nodes[site]
        mixture = _mixture(node["fn"])
        value = node["value"].unsqueeze(-1 - mixture._event_ndims)
        return torch.softmax(mixture.component_distribution.log_prob(value) + mixture.mixture_distribution.logits, -1)

    def _marginals(self, draw: Values, sites: Sequence[str]) -> list[Tensor]:
        nodes = self._trace(draw).nodes
        zeros = {s: torch.zeros_like(nodes[s]["log_prob"]) for s in sites}

        def normalizer(bumps: Values) -> Tensor:
            trace = self._trace(draw)
            for name, bump in bumps.items():
                trace.nodes[name]["log_prob"] = trace.nodes[name]["log_prob"] + bump
            return self._total(trace)

        gradients = torch.func.grad(normalizer)(zeros)
        return [self._own_axis_last(gradients[s], nodes[s]["infer"]["_enumerate_dim"]) for s in sites]

    def _trace(self, draw: Values):
        """As :meth:`Density.trace`, but with an enumeration that can be vectorized."""
        density = self.density
        if not density.enumerated:
            return density.trace(draw)
        plain = copy.copy(density)
        plain.enumerated = []
        plain.model = _VmapEnumMessenger(-1 - density.max_plate_nesting)(config_enumerate(density.model))
        return plain.trace(draw)

    def _total(self, trace) -> Tensor:
        """The log joint of a trace, discrete sites summed out exactly."""
        with pyro.validation_enabled(False):
            evaluator = TraceEinsumEvaluator(trace, True, self.density.max_plate_nesting)
            return contract_logs(evaluator._get_log_factors(trace), evaluator._enum_dims)

    def _own_axis_last(self, marginal: Tensor, own: int) -> Tensor:
        """A joint marginal of a site and its discrete parents as ``(*plates, components)``: the parents summed out."""
        marginal = marginal.movedim(own, -1)
        parents = range(marginal.dim() - 1 - self.density.max_plate_nesting)
        return marginal.sum(tuple(parents)) if len(parents) else marginal

    # -- mapping ---------------------------------------------------------------------------------------------------

    def _map(self, one: Callable, values: Values) -> tuple[Tensor, ...]:
        """The model runs where it lives; what it says comes back to where the draws lie."""
        latents = self.density.latents
        given = next(v for k, v in values.items() if k in latents)
        values = {k: v.to(latents[k].device, latents[k].dtype) for k, v in values.items() if k in latents}
        units, parts = len(given), []
        with untouched(self.model, seed=self.density.seed), torch.no_grad():
            for start in range(0, units, self.chunk):
                parts.append(self._run(one, {k: v[start : start + self.chunk] for k, v in values.items()}))
        return tuple(torch.cat([part[i] for part in parts]).to(given.device) for i in range(len(parts[0])))

    def _run(self, one: Callable, chunk: Values) -> tuple[Tensor, ...]:
        if self.vectorized:
            try:
                return torch.func.vmap(one, randomness="same")(chunk)
            except Exception:  # whatever vmap cannot do in a user's model, a loop can
                self.vectorized = False
        units = next(iter(chunk.values())).shape[0]
        rows = [one({k: v[i] for k, v in chunk.items()}) for i in range(units)]
        return tuple(torch.stack([row[i] for row in rows]) for i in range(len(rows[0])))


def check_invariance(
    scope: str, before: tuple[Tensor, ...], after: tuple[Tensor, ...], tolerance: Tensor, labels
) -> float:
    """The largest change of the log joint (but for a symmetry of the likelihood) and of log likelihoods, in nats.

    Raises:
        SymmetryError: A relabeled draw has another log joint or log likelihood than before, in all or of one datum.
    """
    worst = 0.0
    names = ("log joint", "log likelihood", "log likelihood of single data")
    for what, old, new in zip(names, before, after, strict=True):
        if what == "log joint" and scope == "likelihood":
            continue
        change = torch.where(old == new, 0.0, (new - old).abs())  # equal infinities are no change
        broken = ~(change <= tolerance)
        if bool(broken.any()):
            first = int(broken.nonzero()[0])
            raise SymmetryError(
                f"relabeling changes the {what} of {int(broken.sum())} of {len(old)} draws, first of chain, draw "
                f"{labels(first)}: {float(old[first]):.6g} became {float(new[first]):.6g} nats (rounding allows "
                f"{float(tolerance[first]):.1e}). The symmetry is not one of this model and data: find it with "
                "find_symmetry(model, ...), or check it with certify(symmetry, model, ...)"
            )
        worst = max(worst, float(change.max())) if len(change) else worst
    return worst


class _VmapEnumMessenger(EnumMessenger):
    """Enumeration that looks at shapes only: what it asks of a value besides, ``torch.func`` refuses."""

    def _pyro_post_sample(self, msg):
        value = msg["value"]
        if isinstance(value, Tensor):
            msg["value"] = SimpleNamespace(data=value, dim=value.dim)
        super()._pyro_post_sample(msg)
        msg["value"] = value


def _mixture(fn) -> dist.MixtureSameFamily | None:
    """The marginalized mixture inside a site's distribution, or None."""
    while hasattr(fn, "base_dist") and not isinstance(fn, torch.distributions.MixtureSameFamily):
        fn = fn.base_dist
    return fn if isinstance(fn, torch.distributions.MixtureSameFamily) else None
