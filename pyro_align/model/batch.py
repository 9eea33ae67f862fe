"""What the model says about each of many draws on one batch of data: everything that any loss needs."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pyro_align.model import forward
from pyro_align.model.enumerate import Enumerated
from pyro_align.model.guards import untouched
from pyro_align.model.many import Many, is_batched
from pyro_align.model.normals import normal_kl, normal_log_prob, normal_prior
from pyro_align.model.observations import latent_terms, observations, predict, target


@dataclass(frozen=True)
class Normals:
    """The sites that are independent Normals under one posterior, and their KLs as far as they are known."""

    moments: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)  # site -> location and scale
    # site -> prior, the KL to it, and the sum of its scale's logarithms; the prior of most sites is the same for every
    # draw and batch
    known: dict[str, tuple[Any, Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def kl(self, name: str, message: dict[str, Any]) -> tuple[Tensor | None, Tensor | None]:
        """E_q[log q - c log p] of a site, as :func:`~pyro_align.model.normals.normal_kl` has it, and its ``log_scale``
        for :func:`~pyro_align.model.forward.site_sum`; None where they are not known.
        """
        prior = normal_prior(message)
        if prior is None:
            return None, None
        if any(map(is_batched, prior)) or message["infer"].get("_rows"):
            return normal_kl(message, *self.moments[name]), None
        if name not in self.known or not all(map(_same, self.known[name][0], prior)):
            kl = normal_kl(message, *self.moments[name])
            self.known[name] = prior, kl, forward.sum_log(prior[1])
        return self.known[name][1:]


def _same(x: Any, y: Any) -> bool:
    """Whether two parameters of priors are equal, number by number; of expanded tensors, the numbers that are there."""
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        return type(x) is type(y) and x == y
    steps = x.stride()
    if 0 not in steps or steps != y.stride():  # one of them may repeat what the other spells out
        return torch.equal(x, y)
    if x.shape != y.shape:
        return False
    shape = [1 if step == 0 else n for n, step in zip(x.shape, steps, strict=True)]
    return torch.equal(*(v.as_strided(shape, steps, v.storage_offset()) for v in (x, y)))


@dataclass(frozen=True)
class Draws:
    """What the model says about each draw on one batch of data, in nats, discrete latents summed out."""

    # per draw and datum, ``(draws, *datum)``, or ``(draws, data)`` where some are masked and left out; unscaled
    log_likelihood: Tensor
    likelihood: Tensor  # the data's contribution to the ELBO, ``(draws,)``: scaled, without subsampling's part
    log_prior: Tensor  # scaled log density of all latent and factor sites, ``(draws,)``
    factors: Tensor  # scaled log density of the factor sites among them, ``(draws,)``
    analytic: Tensor  # sum of the closed-form KLs, ``(draws,)``, of the sites named in :attr:`closed`
    rest: Tensor  # log density of the other latent and factor sites, ``(draws,)``
    log_q_closed: Tensor  # log posterior density of the sites in :attr:`closed`, ``(draws,)``; zero where these are all
    closed: tuple[str, ...]  # sites whose KL is in closed form
    # mean of the observed site's distribution, ``(draws, *datum, ...)``, or None where no loss wants it
    prediction: Tensor | None = None
    target: Tensor | None = None  # the observed values that it is judged against, ``(*datum, ...)``, or None
    mask: Tensor | None = None  # which data are observed, ``(*datum)``, or None where all are
    stand: float = 1.0  # for how many data each stands, by subsampling


@dataclass
class _Aside:
    """What one batch says that is the same for every draw."""

    closed: tuple[str, ...] = ()
    target: Tensor | None = None
    mask: Tensor | None = None
    stand: float = 1.0


@dataclass
class Runner:
    """Runs one model on many draws."""

    model: Callable[..., Any]
    seed: int = 0  # seed of whatever randomness the model itself uses (subsampling); the same for every draw and tau
    chunk: int | None = None  # draws in one vectorized run; None chooses it by ``max_memory``
    max_memory: int = 2**30  # bytes that the model's intermediate tensors may take
    sizes: dict[Hashable, int] = field(default_factory=dict)  # bytes of one draw's run, by the data's shapes

    def __post_init__(self) -> None:
        self.many: Many = Many(self.model, self.seed, self.chunk, self.max_memory, self.sizes)
        self._nesting: list[int | None] = []
        self._parameters: dict[str, Tensor] = {}

    @property
    def vectorized(self) -> bool:
        """Whether draws go through the model together."""
        return self.many.vectorized

    def __call__(
        self,
        values: Mapping[str, Tensor],  # site -> constrained draws ``(draws, *site_shape)``
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        # location and scale of the sites that are independent Normals under the posterior
        normals: Normals | None = None,
        predict: bool = False,  # whether predictions are wanted
        # whether the values of the latent sites are wanted; zeros else. They do not depend on the data, so the first
        # batch gives them
        prior: bool = True,
        # whether the model's scales stand for data left out, see :func:`~pyro_align.model.observations.scaled_by_hand`
        by_hand: bool = False,
    ) -> Draws:
        """Runs the model on every draw."""
        normals, key, aside = Normals() if normals is None else normals, call_shapes(args, kwargs), _Aside()

        def one(draw: dict[str, Tensor]) -> dict[str, Tensor]:
            return _evaluate(record(draw), draw, normals, predict, prior, aside, by_hand)

        record = self.recorder(values, args, kwargs)
        out = self.many(one, values, key)
        if aside.mask is not None:
            out, aside.target = _observed(out, aside.target, aside.mask)
        return Draws(**out, closed=aside.closed, target=aside.target, mask=aside.mask, stand=aside.stand)

    def recorder(
        self, values: Mapping[str, Tensor], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Callable[[Mapping[str, Tensor]], forward.Records]:
        """One draw's run, discrete latents enumerated; arguments as for a call."""
        if not self._nesting:  # discrete sites do not come and go with the data
            stored = set(pyro.get_param_store().keys())
            with untouched(self.model, seed=self.seed), torch.no_grad():
                records = forward.record(self.model, args, kwargs, {k: v[0] for k, v in values.items()})
            self._nesting.append(records.max_plate_nesting if records.discrete else None)
            # a parameter that is not in the store would be made again in every run, which vmap does not allow
            made = [(n, m) for n, m in records.trace.nodes.items() if m["type"] == "param" and n not in stored]
            self._parameters = {name: m["value"].detach() for name, m in made}
        nesting, parameters = self._nesting[0], self._parameters
        return lambda draw: forward.record(self.model, args, kwargs, {**parameters, **draw}, nesting)


def _evaluate(
    records: forward.Records,
    draw: dict[str, Tensor],
    normals: Normals,
    predict_: bool,
    prior: bool,
    aside: _Aside,
    by_hand: bool,
) -> dict[str, Tensor]:
    """Everything about one draw."""
    enumerated = Enumerated(records) if any(map(forward.is_enumerated, records.latent.values())) else None
    data = observations(records, enumerated, by_hand=by_hand)
    zero = data.log_likelihood.new_zeros(())
    depends = frozenset() if enumerated is None else enumerated.depends
    own = {name: normals.kl(name, records.latent[name]) for name in normals.moments if name not in depends and prior}
    kls = {name: kl for name, (kl, _) in own.items() if kl is not None}
    terms = latent_terms(records, enumerated, {name: found[1] for name, found in own.items()}) if prior else {}
    log_q = zero
    if len(kls) < len(draw):  # else nothing is left for which the rest of log q would be wanted
        log_q = zero + sum(normal_log_prob(draw[name], *normals.moments[name]) for name in kls)
    if is_batched(data.mask):
        raise RuntimeError("the mask of the data depends on latent values")
    aside.closed, aside.mask, aside.stand = tuple(kls), data.mask, data.stand
    out = {
        "log_likelihood": data.log_likelihood,
        "likelihood": zero + data.total,
        "log_prior": zero + sum(terms.values()),
        "factors": zero + sum(term for name, term in terms.items() if name in records.factors),
        "analytic": zero + sum(kls.values()),
        "rest": zero + sum(term for name, term in terms.items() if name not in kls),
        "log_q_closed": log_q,
    }
    if predict_:
        out["prediction"], aside.target = predict(records, enumerated), target(records)
    return out


def _observed(out: dict[str, Tensor], target: Tensor | None, mask: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:
    """Without the masked data."""
    keep, dims = mask.flatten().nonzero().squeeze(1), mask.dim()
    out = {**out, "log_likelihood": out["log_likelihood"].flatten(1).index_select(1, keep)}
    if "prediction" in out:
        out["prediction"] = out["prediction"].flatten(1, dims).index_select(1, keep)
    if target is not None:
        target = target.flatten(0, dims - 1).index_select(0, keep)
    return out, target


def call_shapes(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[int, ...], ...]:
    """The shapes of all tensors among a model's arguments, on which the memory of a run depends."""
    return tuple(tuple(leaf.shape) for leaf in tree_leaves((args, dict(kwargs))) if isinstance(leaf, Tensor))
