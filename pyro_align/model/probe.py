"""One run of the model before any work is done: what its data look like, and what is wrong with the arguments."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pyro
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from pyro_align.errors import BarrierError, DiagnosticWarning, TraceError, first_line
from pyro_align.model import forward
from pyro_align.model.effects.substitute import full_shape
from pyro_align.model.enumerate import Enumerated
from pyro_align.model.guards import seed_everywhere, untouched
from pyro_align.model.many import Live
from pyro_align.model.observations import Layout, latent_terms, read_layout, scaled_by_hand
from pyro_align.model.reached import reached_modules

if TYPE_CHECKING:
    from pyro_align.guides.posterior import Posterior


def probe(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    posterior: Posterior,  # the path's posterior at some tau
    draw: Mapping[str, Tensor],  # one draw from it
    seed: int,  # seed of the model's own randomness
    *,
    strict: bool = True,  # whether every latent site needs a value
    measure: bool = False,  # whether to measure the memory that the run takes, which saves another run for that
) -> tuple[Layout, int | None]:
    """Runs the model once, at one draw, to learn its data and to find what is wrong before any work is done."""
    _check_devices(posterior, args, kwargs)
    try:
        with untouched(model, seed=seed), torch.no_grad():
            stored = set(pyro.get_param_store().keys())
            records, enumerated = forward.record(model, args, kwargs, draw), None
            _warn_of_unlearned(model, records, stored.union(draw))
            forward.check_observed(records)
            if strict:
                _check_sites(records, posterior)
            nesting = records.max_plate_nesting if records.discrete else None
            seed_everywhere(seed)
            with Live() if measure else contextlib.nullcontext() as live:
                if nesting is not None or measure:
                    records = forward.record(model, args, kwargs, draw, nesting)
                enumerated = None if nesting is None else Enumerated(records)
                by_hand = _by_hand(model, args, kwargs, draw, seed, records)
                layout = read_layout(records, enumerated, by_hand=by_hand)
                if measure:
                    latent_terms(records, enumerated)
            return layout, live.peak if measure else None
    except BarrierError:
        raise
    except TraceError as error:
        _check_prior_draw(model, args, kwargs, posterior, seed)
        raise BarrierError(str(error)) from error
    except Exception as error:
        _check_prior_draw(model, args, kwargs, posterior, seed)
        raise BarrierError(_explain(error, posterior, args, kwargs)) from error


def _warn_of_unlearned(model: Callable[..., Any], records: forward.Records, given: set[str]) -> None:
    """Warns of ``pyro.param`` statements whose learned values are nowhere: the run has made them again."""
    made = [n for n, m in records.trace.nodes.items() if m["type"] == "param" and n not in given and "$$$" not in n]
    if not made:
        return
    held = {t.data_ptr() for m in reached_modules(model) for t in m._parameters.values() if t is not None}
    store = pyro.get_param_store()._params
    new = [name for name in made if name in store and store[name].data_ptr() not in held]
    if new:
        warnings.warn(
            f"the model's learnable parameters {new} have no value in the param store, and are taken at their initial "
            "values. If they were learned together with the guide, in a scope of the store or before it was cleared, "
            "evaluate inside that scope, or load what was saved of it: pyro.get_param_store().load(...)",
            DiagnosticWarning,
            stacklevel=2,
        )


def _by_hand(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    draw,
    seed: int,
    records: forward.Records,
) -> bool:
    """Whether the model scales the likelihood of a batch to that of all data, found from half of it."""
    first = next(iter(records.data.values()), None)
    scale = 1.0 if first is None else forward.own_scale(first)
    sizes = () if first is None else torch.as_tensor(first["value"]).shape
    if isinstance(scale, Tensor) or scale == 1 or not sizes or sizes[0] < 2:
        return False
    try:
        seed_everywhere(seed)
        whole = forward.record(model, args, kwargs, draw)
        seed_everywhere(seed)
        part = forward.record(model, *forward.with_rows(args, kwargs, sizes[0], slice(sizes[0] // 2)), draw)
    except Exception:  # the model does not run on half of its data: it is not fitted on batches
        return False
    return scaled_by_hand(whole, part)


def _check_prior_draw(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], posterior, seed: int
) -> None:
    """After a failure: whether a draw from the prior goes through, and then has other sites or shapes."""
    try:
        with untouched(model, seed=seed), torch.no_grad():
            records = forward.record(model, args, kwargs, {})
    except Exception:
        return  # the model fails whatever the posterior is
    _check_sites(records, posterior)


def _check_sites(records: forward.Records, posterior) -> None:
    missing = [n for n in records.latent if n not in posterior.sites and n not in records.discrete]
    known = {*records.latent, *records.parameters, *records.answered}
    extra = [name for name in posterior.sites if name not in known]
    if missing:
        raise BarrierError(
            f"the model's sites {missing} are neither observed nor in the path's posterior; if one of them is data, "
            "pass its observed values; else fit a guide that covers it"
        )
    if extra:
        raise BarrierError(
            f"the path's posterior has sites {extra} that the model does not sample; the model samples "
            f"{list(records.latent)} with these arguments. Was the guide fitted to another model?"
        )
    for name, message in records.latent.items():
        if name not in posterior.sites:
            continue  # summed out
        fn, given = message["fn"], tuple(posterior.sites[name].shape)
        expected = (*fn.batch_shape, *fn.event_shape)
        if given not in (expected, full_shape(message)):
            raise BarrierError(
                f"site '{name}': the model samples shape {expected}, the path's posterior has {given}; "
                "was the guide fitted to a model of another size?"
                + (" Draws by chain are given as value.flatten(0, 1)" if given[1:] == expected else "")
            )


def _check_devices(posterior, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    for name, value in _tensors(args, kwargs):
        if value.device != torch.device(posterior.device) and value.dim() > 0:
            raise BarrierError(
                f"{name} is on device {value.device}, the path's posterior on {posterior.device}; "
                f"move it with .to('{posterior.device}')"
            )


def _explain(error: Exception, posterior, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    others = [
        f"{name} is {str(v.dtype).removeprefix('torch.')}"
        for name, v in _tensors(args, kwargs)
        if v.is_floating_point() and v.dtype != posterior.dtype
    ]
    if others:
        wanted = str(posterior.dtype).removeprefix("torch.")
        return (
            f"the model failed on data of another dtype: {', '.join(others)}, the path's posterior is {wanted}; "
            f"convert with .to(torch.{wanted}) ({type(error).__name__}: {first_line(error)})"
        )
    return (
        f"{forward.not_run(args, kwargs, error)}. Pass what you pass to the model itself, as *args, **kwargs or in "
        "evaluation="
    )


def _tensors(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[tuple[str, Tensor]]:
    named = [(f"argument {i}", a) for i, a in enumerate(args)] + [(f"argument '{k}'", v) for k, v in kwargs.items()]
    return [(name, leaf) for name, value in named for leaf in tree_flatten(value)[0] if isinstance(leaf, Tensor)]
