"""Many draws through the model: vectorised with ``torch.func.vmap`` in chunks, or one by one where that fails."""

from __future__ import annotations

import contextlib
import math
import warnings
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from pyro_align._effects import seed_everywhere, untouched
from pyro_align.barrier import forward
from pyro_align.barrier.forward import Layout
from pyro_align.errors import BarrierError, DiagnosticWarning
from pyro_align.normals import normal_kl, normal_log_prob, normal_prior

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
        """E_q[log q - c log p] of a site, as :func:`pyro_align.normals.normal_kl` has it."""
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
        chunk: Draws in one vectorised run; None chooses it by ``max_memory``.
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
        with untouched(self.model, seed=self.seed), torch.inference_mode():
            size = self._chunk_size(one, values, args, kwargs, count) if self.vectorized else 1
            parts = [
                self._run(one, {k: v[lo : lo + size] for k, v in values.items()}, predict)
                for lo in range(0, count, size)
            ]
        stacked = {k: v if k in SHARED else torch.cat([part[k] for part in parts]) for k, v in parts[0].items()}
        return Draws(**stacked, closed=tuple(closed))

    def _run(self, one: Callable, chunk: dict[str, Tensor], predict: bool) -> dict[str, Tensor]:
        if self.vectorized and len(next(iter(chunk.values()))) > 1:  # one draw alone needs no vectorising
            try:
                seed_everywhere(self.seed)  # each chunk, and each draw below, sees the same subsample
                names = (*FIGURES, "prediction", *SHARED) if predict else FIGURES  # in the order of `_evaluate`
                out_dims = {k: None if k in SHARED else 0 for k in names}
                return torch.func.vmap(one, out_dims=out_dims, randomness="same")(chunk)
            except Exception as error:
                self.vectorized = False
                warnings.warn(
                    f"the model cannot be vectorised over draws ({type(error).__name__}: {_first_line(error)}); "
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


def call_shapes(args: tuple, kwargs: Mapping[str, Any]) -> tuple[tuple[int, ...], ...]:
    """The shapes of all tensors among a model's arguments, on which the memory of a run depends."""
    leaves, _ = tree_flatten((args, dict(kwargs)))
    return tuple(tuple(leaf.shape) for leaf in leaves if isinstance(leaf, Tensor))


def probe(
    model: Callable,
    args: tuple,
    kwargs: Mapping[str, Any],
    posterior,
    draw: Mapping[str, Tensor],
    seed: int,
    *,
    strict: bool = True,
    measure: bool = False,
) -> tuple[Layout, int | None]:
    """Runs the model once, at one draw, to learn its data and to find what is wrong before any work is done.

    Args:
        model: The Pyro model.
        args: Its arguments.
        kwargs: Its keyword arguments.
        posterior: The path's posterior at some tau.
        draw: One draw from it.
        seed: Seed of the model's own randomness.
        strict: Whether every latent site needs a value.
        measure: Whether to measure the memory that the run takes, which saves another run for that.

    Returns:
        The data's layout, and the peak bytes or None.

    Raises:
        BarrierError: The arguments do not fit the model, or the posterior's sites are not the model's.
    """
    _check_devices(posterior, args, kwargs)
    try:
        with untouched(model, seed=seed), torch.inference_mode():
            with _Live() if measure else contextlib.nullcontext() as live:
                records = forward.record(model, args, kwargs, draw)
                if strict:
                    _check_sites(records, posterior)
                layout = forward.read_layout(records)
                if measure:
                    forward.log_joint_terms(records)
            return layout, live.peak if measure else None
    except BarrierError:
        raise
    except Exception as error:
        _check_prior_draw(model, args, kwargs, posterior, seed)
        raise BarrierError(_explain(error, posterior, args, kwargs)) from error


def _check_prior_draw(model: Callable, args: tuple, kwargs: Mapping[str, Any], posterior, seed: int) -> None:
    """After a failure: whether a draw from the prior goes through, and then has other sites or shapes."""
    try:
        with untouched(model, seed=seed), torch.inference_mode():
            records = forward.record(model, args, kwargs, {})
    except Exception:
        return  # the model fails whatever the posterior is
    _check_sites(records, posterior)


def _check_sites(records: forward.Records, posterior) -> None:
    missing = [name for name in records.latent if name not in posterior.sites]
    extra = [name for name in posterior.sites if name not in records.latent]
    if missing:
        discrete = [n for n in missing if getattr(records.latent[n]["fn"], "has_enumerate_support", False)]
        advice = (
            f"{discrete} are discrete: marginalise them in the model, or give an enumerating Pyro loss such as "
            "losses=[TraceEnum_ELBO()]"
            if discrete
            else "if one of them is data, pass its observed values; else fit a guide that covers it"
        )
        raise BarrierError(f"the model's sites {missing} are neither observed nor in the path's posterior; {advice}")
    if extra:
        raise BarrierError(
            f"the path's posterior has sites {extra} that the model does not sample; the model samples "
            f"{list(records.latent)} with these arguments. Was the guide fitted to another model?"
        )
    for name, message in records.latent.items():
        expected, given = _site_shape(message["fn"]), tuple(posterior.sites[name].shape)
        if expected != given:
            raise BarrierError(
                f"site '{name}': the model samples shape {expected}, the path's posterior has {given}; "
                "was the guide fitted to a model of another size?"
            )


def _site_shape(fn) -> tuple[int, ...]:
    return tuple(fn.batch_shape) + tuple(fn.event_shape)


def _check_devices(posterior, args: tuple, kwargs: Mapping[str, Any]) -> None:
    for name, value in _tensors(args, kwargs):
        if value.device != torch.device(posterior.device) and value.dim() > 0:
            raise BarrierError(
                f"{name} is on device {value.device}, the path's posterior on {posterior.device}; "
                f"move it with .to('{posterior.device}')"
            )


def _explain(error: Exception, posterior, args: tuple, kwargs: Mapping[str, Any]) -> str:
    others = [
        f"{name} is {str(v.dtype).removeprefix('torch.')}"
        for name, v in _tensors(args, kwargs)
        if v.is_floating_point() and v.dtype != posterior.dtype
    ]
    if others:
        wanted = str(posterior.dtype).removeprefix("torch.")
        return (
            f"the model failed on data of another dtype: {', '.join(others)}, the path's posterior is {wanted}; "
            f"convert with .to(torch.{wanted}) ({type(error).__name__}: {_first_line(error)})"
        )
    given = ", ".join([*map(_describe, args), *(f"{k}={_describe(v)}" for k, v in kwargs.items())]) or "none"
    return (
        f"the model could not be run with the arguments given ({given}): {type(error).__name__}: {_first_line(error)}. "
        "Pass what you pass to the model itself, as *args, **kwargs or in evaluation="
    )


def _tensors(args: tuple, kwargs: Mapping[str, Any]) -> list[tuple[str, Tensor]]:
    named = [(f"argument {i}", a) for i, a in enumerate(args)] + [(f"argument '{k}'", v) for k, v in kwargs.items()]
    return [(name, leaf) for name, value in named for leaf in tree_flatten(value)[0] if isinstance(leaf, Tensor)]


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"tensor {tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    return type(value).__name__


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0].strip().rstrip(".") if lines else "no message"


# -- memory ------------------------------------------------------------------------------------------------------------


class _Live(TorchDispatchMode):
    """Follows the bytes of the tensors that operations create, while they live."""

    def __init__(self):
        super().__init__()
        self.now, self.peak, self._seen = 0, 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {leaf.untyped_storage()._cdata for leaf in tree_flatten((args, kwargs or {}))[0] if _dense(leaf)}
        out = func(*args, **(kwargs or {}))
        for leaf in tree_flatten(out)[0]:
            if _dense(leaf) and leaf.untyped_storage()._cdata not in given | self._seen:
                self._add(leaf)
        return out

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        self._seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def _dense(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.layout is torch.strided and leaf.device.type != "meta"


def peak_bytes(function: Callable[[], Any]) -> int:
    """The most bytes that the tensors made by ``function`` hold at one time."""
    with _Live() as live:
        result = function()
    held = sum(math.prod(t.shape) * t.element_size() for t in tree_flatten(result)[0] if isinstance(t, Tensor))
    return max(live.peak, held)
