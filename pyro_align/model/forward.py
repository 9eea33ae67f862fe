"""One run of the model at given latent values: the one way in which this package runs a model.

Messages are recorded as they leave Pyro's effect stack, so scales, masks, plates and subsamples are those of the model.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.subsample_messenger import _Subsample
from pyro.poutine.trace_messenger import TraceMessenger
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pyro_align.errors import DiagnosticWarning, TraceError, first_line
from pyro_align.model.effects import EnumMessenger, SubstituteMessenger
from pyro_align.model.effects.enumerate import is_enumerable
from pyro_align.model.guards import LOCK
from pyro_align.model.learnables import module_tensors, with_tensors
from pyro_align.model.normals import LOG_TWO_PI, has_mask, layers, normal_prior, unwrapped

Message = dict[str, Any]


def run(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    # site or parameter -> value ``site_shape``; sites in subsampled plates may have all data
    values: Mapping[str, Tensor],
    *,
    subsamples: Mapping[str, Tensor] | None = None,  # plate -> its subsample; others are drawn
    # where given, discrete latents without a value hold their whole support along dims left of that many plates; None
    # samples them
    max_plate_nesting: int | None = None,
) -> Any:
    """The trace of a run with latent sites at ``values`` and validation off; it has no log probabilities.

    Distributions are the model's own, which may outlive the run and validate: see :func:`without_validation`.
    """
    tracer, substitute = TraceMessenger(), SubstituteMessenger(values, subsamples)
    with LOCK, pyro.validation_enabled(False), tracer:
        enum = nullcontext() if max_plate_nesting is None else EnumMessenger(-1 - max_plate_nesting)
        with enum, substitute:
            model(*args, **kwargs)
    return tracer.trace


@dataclass
class Records:
    """The sample messages of one run, sorted by their part in the log joint."""

    trace: Any
    latent: dict[str, Message] = field(default_factory=dict)  # latent site -> message, enumerated ones among them
    data: dict[str, Message] = field(default_factory=dict)  # observed site -> message
    # ``pyro.factor`` outside plates -> message; those with ``infer={"likelihood": True}`` are data
    factors: dict[str, Message] = field(default_factory=dict)
    parameters: frozenset[str] = frozenset()  # names of the model's own parameters that were given values

    def __post_init__(self) -> None:
        for name, message in self.trace.nodes.items():
            if message["type"] != "sample" or is_subsample(message) or message["infer"].get("_deterministic"):
                continue
            if not message["is_observed"]:
                self.latent[name] = message
                continue
            message["fn"] = without_validation(message["fn"])
            # masked whatever its value: what a reparameterization leaves behind, say
            if message["mask"] is False or any(getattr(f, "_mask", None) is False for f in layers(message["fn"])):
                continue
            factor = type(unwrapped(message["fn"])).__name__ in ("Unit", "Delta")
            if factor and not (message["infer"].get("likelihood") or _in_plates(message)):
                self.factors[name] = message
            else:
                self.data[name] = _by_entry(message)

    @property
    def answered(self) -> list[str]:
        """``pyro.param`` statements that can be given another value; those of a module's weights cannot."""
        params = {name: m for name, m in self.trace.nodes.items() if m["type"] == "param"}
        return [name for name, m in params.items() if not any(isinstance(a, nn.Parameter) for a in m["args"])]

    @property
    def discrete(self) -> list[str]:
        """Latent sites with finitely many values that were not given one."""
        return [name for name, m in self.latent.items() if is_enumerable(m) and "_rows" not in m["infer"]]

    @property
    def max_plate_nesting(self) -> int:
        """How many dims from the right plates take."""
        messages = (m for group in (self.latent, self.data, self.factors) for m in group.values())
        return max((-f.dim for m in messages for f in m["cond_indep_stack"] if f.vectorized), default=0)


def record(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    values: Mapping[str, Tensor],
    max_plate_nesting: int | None = None,
) -> Records:
    """A run's messages, sorted; arguments as in :func:`run`. Parameters of the model are values like any other."""
    records = Records(run(model, args, kwargs, values, max_plate_nesting=max_plate_nesting))
    placed = {*records.latent, *records.data, *records.answered}
    if placed.issuperset(values):
        return records
    own = {name: values[name] for name in module_tensors(model) if name in values and name not in placed}
    if not own:
        return records
    trace = run(with_tensors(model, own), args, kwargs, values, max_plate_nesting=max_plate_nesting)
    return Records(trace, parameters=frozenset(own))


def with_rows(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], full: int, rows: slice | Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A model's arguments on some of the data: these rows of all tensors of that length."""

    def cut(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.dim() == 0 or len(leaf) != full:
            return leaf
        return leaf[rows.to(leaf.device) if isinstance(rows, Tensor) else rows]

    return tree_map(cut, (tuple(args), dict(kwargs)))


def is_enumerated(message: Mapping[str, Any]) -> bool:
    """Whether a latent site of a run holds its whole support."""
    return message["infer"].get("_enumerate_dim") is not None


def is_subsample(message: Mapping[str, Any]) -> bool:
    """Whether a sample site of a trace is a plate's choice of data, which has no density of its own."""
    return isinstance(message["fn"], _Subsample)


def check_observed(records: Records) -> None:
    """Refuses observed values that broadcasting would repeat, which runs without validation let by; warns of one."""
    for name, message in records.data.items():
        value, fn = message["value"], message["fn"]
        if not isinstance(value, Tensor):
            continue
        batch, given = torch.Size(fn.batch_shape), value.shape[: value.dim() - len(fn.event_shape)]
        while len(given) > len(batch) and given[0] == 1:
            given = given[1:]
        if not _fits(given, batch):
            raise TraceError(
                f"observed site '{name}': expected values of shape {tuple(batch + torch.Size(fn.event_shape))}, as the "
                f"model says, got {tuple(value.shape)}; each would be compared with several. Reshape them, for example "
                "with .squeeze(-1)"
            )
        if value.numel() == 1 < batch.numel():
            warnings.warn(
                f"observed site '{name}': one value stands for all {batch.numel()} of shape {tuple(batch)}, as Pyro "
                "reads it. If it is one observation, drop the plate; if it is meant for each, write .expand(...)",
                DiagnosticWarning,
                stacklevel=2,
            )


def not_run(args: tuple[Any, ...], kwargs: Mapping[str, Any], error: Exception) -> str:
    """Says that the model failed with these arguments."""

    def described(value: object) -> str:
        if isinstance(value, Tensor):
            return f"tensor {tuple(value.shape)} {str(value.dtype).removeprefix('torch.')} on {value.device}"
        return type(value).__name__

    given = ", ".join([*map(described, args), *(f"{k}={described(v)}" for k, v in kwargs.items())]) or "none"
    return f"the model could not be run with the arguments given ({given}): {type(error).__name__}: {first_line(error)}"


def _fits(given: torch.Size, expected: torch.Size) -> bool:
    """Whether a shape broadcasts to another without enlarging it."""
    try:
        return torch.broadcast_shapes(given, expected) == expected
    except RuntimeError:
        return False


# -- log probabilities -------------------------------------------------------------------------------------------------


def site_log_prob(message: Message) -> Tensor:
    """Log probability of one site, before scale and mask."""
    return without_validation(message["fn"]).log_prob(message["value"], *message["args"], **message["kwargs"])


def without_validation(fn: Any) -> Any:
    """A shallow copy of a distribution, and of those inside it, that does not check its arguments.

    What it computes once, it keeps to itself: that of the model's own would be left without gradients, or traced.
    """
    if not isinstance(fn, torch.distributions.Distribution):
        return fn
    made = object.__new__(type(fn))  # as `copy.copy`, in a fraction of its time: for sites of each draw
    inside = {k: without_validation(v) for k, v in vars(fn).items() if isinstance(v, torch.distributions.Distribution)}
    made.__dict__.update(vars(fn), **inside, _validate_args=False)
    return made


def masked_log_prob(message: Message, scale: Any = 1.0) -> Tensor:
    """Log probability of one site, its mask applied."""
    return scale_and_mask(site_log_prob(message), scale, message["mask"])


def subsampled(message: Message) -> float:
    """For how many data each of the site's stands, by its subsampled plates, sequential ones among them."""
    factor = 1.0
    for frame in message["cond_indep_stack"]:
        if frame.full_size is not None and frame.full_size != frame.size:
            factor *= frame.full_size / frame.size
    return factor


def own_scale(message: Message) -> float | Tensor:
    """The site's scale without the part that stands for data left out by subsampling."""
    factor = subsampled(message)
    return message["scale"] if factor == 1 else message["scale"] / factor


def site_sum(message: Message, log_scale: Tensor | None = None) -> Tensor:
    """One site's scaled log probability, summed; a Normal's without the terms that each of its entries repeats.

    ``log_scale`` is :func:`sum_log` of the prior's scale, where it is known.
    """
    prior = normal_prior(message)
    if prior is None or isinstance(prior[2], Tensor) or prior[2] != 1:
        return masked_log_prob(message, message["scale"]).sum()
    loc, scale, _ = prior
    value = message["value"]
    if value.shape != scale.shape:
        return site_log_prob(message).sum()
    log_scale = sum_log(scale) if log_scale is None else log_scale
    return -0.5 * ((value - loc) / scale).square().sum() - log_scale - 0.5 * LOG_TWO_PI * value.numel()


def sum_log(value: Tensor) -> Tensor:
    """The sum of a tensor's logarithms, of entries that `expand` repeats taken once."""
    once = unexpanded(value)
    return once.log().sum() * (value.numel() / once.numel())


def unexpanded(value: Tensor) -> Tensor:
    """A tensor without the entries that `expand` repeats: size 1 where the stride is 0."""
    return value[tuple(slice(0, 1) if step == 0 else slice(None) for step in value.stride())]


def site_mask(message: Message) -> Tensor | None:
    """Which cells of a site are observed, broadcastable to its batch shape; None where all are."""
    fn, mask = message["fn"], message["mask"]
    if mask is not None and not isinstance(mask, Tensor):
        device = message["value"].device if isinstance(message["value"], Tensor) else "cpu"
        mask = None if mask else torch.zeros(torch.Size(fn.batch_shape), dtype=torch.bool, device=device)
    if not has_mask(fn):
        return mask
    event = 0
    for layer in layers(fn):
        if type(layer).__name__ == "MaskedDistribution" and isinstance(layer._mask, Tensor):
            own = layer._mask.expand(torch.Size(layer.batch_shape))
            own = own.flatten(own.dim() - event).any(-1) if event else own
            mask = own if mask is None else mask & own
        event += getattr(layer, "reinterpreted_batch_ndims", 0)
    return mask


def _in_plates(message: Message) -> bool:
    return any(f.vectorized for f in message["cond_indep_stack"])


def _by_entry(message: Message) -> Message:
    """An observed site whose leading event dims are data, where it says so by ``infer={"data_dims": n}``."""
    dims = message["infer"].get("data_dims", 0)
    if not dims:
        return message
    fn = message["fn"]
    while type(fn).__name__ == "Independent" and type(fn.base_dist).__name__ == "Independent":
        inner = fn.base_dist
        both = fn.reinterpreted_batch_ndims + inner.reinterpreted_batch_ndims
        fn = type(fn)(inner.base_dist, both, validate_args=False)
    most = fn.reinterpreted_batch_ndims if type(fn).__name__ == "Independent" else 0
    if dims > most or _in_plates(message):
        raise TraceError(
            f"site '{message['name']}': data_dims is {dims}, and it has {most} event dims made by .to_event()"
            + (" and plates, whose cells are the data" if _in_plates(message) else "")
        )
    return {**message, "fn": type(fn)(fn.base_dist, most - dims, validate_args=False)}
