"""Many draws through the model: vectorized with ``torch.func.vmap`` in chunks, or one by one where that fails."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_align.errors import DiagnosticWarning
from pyro_align.model import forward
from pyro_align.model.guards import seed_everywhere, untouched
from pyro_align.model.memory import peak_bytes
from pyro_align.model.normals import normal_kl, normal_log_prob, normal_prior
from pyro_align.model.probe import call_shapes, first_line

FIGURES = ("log_likelihood", "likelihood", "log_prior", "analytic", "rest", "log_q_closed")
CPU_CACHE = 2**23  # on a CPU, larger chunks only leave its caches
SHARED = ("target",)  # the same for every draw


@dataclass(frozen=True)
class Normals:
    """The sites that are independent Normals under one posterior, and their KLs as far as they are known.

    Attributes:
        moments: Site -> location and scale.
        known: Site -> prior, and the KL to it; the prior of most sites is the same for every draw and batch.
    """

    moments: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    known: dict[str, tuple] = field(default_factory=dict, repr=False)

    def kl(self, name: str, message: dict[str, Any]) -> Tensor | None:
        """E_q[log q - c log p] of a site, as :func:`pyro_align.model.normals.normal_kl` has it."""
        prior = normal_prior(message)
        if prior is None:
            return None
        fixed = not any(isinstance(part, Tensor) and torch._C._functorch.is_batchedtensor(part) for part in prior)
        if fixed and name in self.known and _same(self.known[name][0], prior):
            return self.known[name][1]
        kl = normal_kl(message, *self.moments[name])
        if fixed:
            self.known[name] = prior, kl
        return kl


def _same(a: tuple, b: tuple) -> bool:
    """Whether two priors are equal, number by number; of expanded tensors, the numbers that are there."""
    return all(
        isinstance(x, Tensor) == isinstance(y, Tensor) and (_equal(x, y) if isinstance(x, Tensor) else x == y)
        for x, y in zip(a, b, strict=True)
    )


def _equal(x: Tensor, y: Tensor) -> bool:
    if x.stride() == y.stride():  # else one of them may repeat what the other spells out
        return x.shape == y.shape and torch.equal(forward.unexpanded(x), forward.unexpanded(y))
    return torch.equal(x, y)


@dataclass(frozen=True)
class Draws:
    """What the model says about each draw on one batch of data, in nats.

    Attributes:
        log_likelihood: Per draw and datum, ``(draws, *datum)``; unscaled.
        likelihood: The data's contribution to the ELBO, ``(draws,)``: scaled, without subsampling's part.
        log_prior: Scaled log density of all latent and factor sites, ``(draws,)``.
        analytic: Sum of the closed-form KLs, ``(draws,)``, of the sites named in :attr:`closed`.
        rest: Log density of the other latent and factor sites, ``(draws,)``.
        log_q_closed: Log posterior density of the sites in :attr:`closed`, ``(draws,)``; zero where these are all.
        closed: Sites whose KL is in closed form.
        prediction: Mean of the observed site's distribution, ``(draws, *datum, ...)``, or None where no loss wants it.
        target: The observed values that it is judged against, ``(*datum, ...)``, or None.
    """

    log_likelihood: Tensor
    likelihood: Tensor
    log_prior: Tensor
    analytic: Tensor
    rest: Tensor
    log_q_closed: Tensor
    closed: tuple[str, ...]
    prediction: Tensor | None = None
    target: Tensor | None = None


@dataclass
class Runner:
    """Runs one model on many draws.

    Attributes:
        model: The Pyro model.
        seed: Seed of whatever randomness the model itself uses (subsampling); the same for every draw and tau.
        chunk: Draws in one vectorized run; None chooses it by ``max_memory``.
        max_memory: Bytes that the model's intermediate tensors may take.
        vectorized: Whether vmap is in use; falls to False for good when it fails.
    """

    model: Callable
    seed: int = 0
    chunk: int | None = None
    max_memory: int = 2**30
    vectorized: bool = True
    _sizes: dict[tuple, int] = field(default_factory=dict)  # bytes of one draw's run, by the data's shapes
    _told: bool = False

    def __call__(
        self,
        values: Mapping[str, Tensor],
        args: tuple,
        kwargs: Mapping[str, Any],
        normals: Normals | None = None,
        predict: bool = False,
        prior: bool = True,
    ) -> Draws:
        """Runs the model on every draw.

        Args:
            values: Site -> constrained draws ``(draws, *site_shape)``.
            args: The model's arguments.
            kwargs: Its keyword arguments.
            normals: Location and scale of the sites that are independent Normals under the posterior.
            predict: Whether predictions are wanted.
            prior: Whether the figures of the latent sites are wanted; zeros else. They do not depend on the data, so
                the first batch gives them.
        """
        closed: list[str] = []
        normals = Normals() if normals is None else normals

        def one(draw: dict[str, Tensor]) -> dict[str, Tensor]:
            out, names = _evaluate(self.model, args, kwargs, draw, normals, predict, prior)
            closed[:] = names
            return out

        count = next(iter(values.values())).shape[0]
        with untouched(self.model, seed=self.seed), torch.no_grad():
            size = self._chunk_size(one, values, args, kwargs, count) if self.vectorized else 1
            parts = [
                self._run(one, {k: v[lo : lo + size] for k, v in values.items()}, predict)
                for lo in range(0, count, size)
            ]
        stacked = {k: v if k in SHARED else torch.cat([part[k] for part in parts]) for k, v in parts[0].items()}
        return Draws(**stacked, closed=tuple(closed))

    def _run(self, one: Callable, chunk: dict[str, Tensor], predict: bool) -> dict[str, Tensor]:
        if self.vectorized and len(next(iter(chunk.values()))) > 1:  # one draw alone needs no vectorizing
            try:
                seed_everywhere(self.seed)  # each chunk, and each draw below, sees the same subsample
                names = (*FIGURES, "prediction", *SHARED) if predict else FIGURES  # in the order of `_evaluate`
                out_dims = {k: None if k in SHARED else 0 for k in names}
                return torch.func.vmap(one, out_dims=out_dims, randomness="same")(chunk)
            except Exception as error:
                self.vectorized = False
                warnings.warn(
                    f"the model cannot be vectorized over draws ({type(error).__name__}: {first_line(error)}); "
                    "it is run draw by draw, which is slower. Data-dependent Python control flow, .item() and "
                    "in-place updates of buffers are the usual reasons",
                    DiagnosticWarning,
                    stacklevel=2,
                )
        outs = []
        for s in range(next(iter(chunk.values())).shape[0]):
            seed_everywhere(self.seed)
            outs.append(one({k: v[s] for k, v in chunk.items()}))
        return {k: v if k in SHARED else torch.stack([out[k] for out in outs]) for k, v in outs[0].items()}

    def _chunk_size(self, one: Callable, values: Mapping[str, Tensor], args: tuple, kwargs: Mapping, count: int) -> int:
        if self.chunk is not None:
            return min(self.chunk, count)
        key = call_shapes(args, kwargs)
        if key not in self._sizes:
            seed_everywhere(self.seed)
            self._sizes[key] = peak_bytes(lambda: one({k: v[0] for k, v in values.items()}))
        on_cpu = next(iter(values.values())).device.type == "cpu"
        budget = min(self.max_memory, CPU_CACHE) if on_cpu else self.max_memory
        if self._sizes[key] > self.max_memory and not self._told:
            self._told = True
            warnings.warn(
                f"one draw of the model on one batch of data takes {self._sizes[key] / 2**20:.3g} MiB, more than "
                f"max_memory, {self.max_memory / 2**20:.3g} MiB: draws go one by one. Give the "
                "data in smaller batches, as evaluation={'train': DataLoader(...)}",
                DiagnosticWarning,
                stacklevel=2,
            )
        # vmap may hold copies laid out anew (batched convolutions, transposes), hence the factor
        return max(1, min(count, budget // max(1, 2 * self._sizes[key])))


def _evaluate(
    model: Callable,
    args: tuple,
    kwargs: Mapping[str, Any],
    draw: dict[str, Tensor],
    normals: Normals,
    predict: bool,
    prior: bool,
) -> tuple[dict[str, Tensor], list[str]]:
    """All figures of one draw, and the names of the sites whose KL is in closed form."""
    records = forward.record(model, args, kwargs, draw)
    log_likelihood, likelihood = forward.per_datum(records)
    terms = forward.log_joint_terms(records) if prior else {}
    zero = log_likelihood.new_zeros(())
    kls = {name: normals.kl(name, records.latent[name]) for name in normals.moments} if prior else {}
    closed = [name for name, kl in kls.items() if kl is not None]
    analytic, log_q = zero + sum(kls[name] for name in closed), zero
    if len(closed) < len(draw):  # else nothing is left for which the rest of log q would be wanted
        log_q = zero + sum(normal_log_prob(draw[name], *normals.moments[name]) for name in closed)
    out = {
        "log_likelihood": log_likelihood,
        "likelihood": zero + likelihood,
        "log_prior": zero + sum(terms.values()),
        "analytic": analytic,
        "rest": zero + sum(term for name, term in terms.items() if name not in closed),
        "log_q_closed": log_q,
    }
    if predict:
        out["prediction"] = forward.predict(records)
        out["target"] = forward.target(records)
    return out, closed
