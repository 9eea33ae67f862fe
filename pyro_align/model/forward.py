"""One run of the model at given latent values: everything that any loss needs, from one forward pass.

Messages are recorded as they leave Pyro's effect stack, so scales, masks, plates and subsamples are those of the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor, nn

from pyro_align.errors import BarrierError
from pyro_align.model.effects.no_validation import without_validation
from pyro_align.model.effects.substitute import SubstituteMessenger
from pyro_align.model.normals import LOG_TWO_PI, normal_prior, unwrapped


@dataclass(frozen=True)
class Layout:
    """What a model says about its data.

    Attributes:
        plates: Names of the datum's dimensions, in order.
        shape: Their sizes in this run.
        full: Number of data that the model stands for; greater than the product of ``shape`` under subsampling.
        categorical: The observed site whose class probabilities a task loss can judge, or None.
        observed: Names of the observed sites.
    """

    plates: tuple[str, ...]
    shape: tuple[int, ...]
    full: int
    categorical: str | None
    observed: tuple[str, ...]

    @property
    def seen(self) -> int:
        """Number of data in this run."""
        return math.prod(self.shape)


@dataclass
class Records:
    """The sample messages of one run, sorted by their part in the log joint."""

    latent: dict[str, dict[str, Any]] = field(default_factory=dict)
    data: dict[str, dict[str, Any]] = field(default_factory=dict)
    factors: dict[str, dict[str, Any]] = field(default_factory=dict)
    parameters: set[str] = field(default_factory=set)

    def add(self, message: dict[str, Any]) -> None:
        if message["infer"].get("_deterministic"):
            return
        if not message["is_observed"]:
            self.latent[message["name"]] = message
        elif _is_factor(message["fn"]) and not any(f.vectorized for f in message["cond_indep_stack"]):
            self.factors[message["name"]] = message
        else:
            self.data[message["name"]] = message


class _Recorder(Messenger):
    def __init__(self):
        super().__init__()
        self.records = Records()

    def _pyro_post_sample(self, message):
        if not isinstance(message["fn"], _Subsample):
            self.records.add(dict(message))

    def _pyro_post_param(self, message):
        self.records.parameters.add(message["name"])


def record(model: Callable, args: tuple, kwargs: Mapping[str, Any], values: Mapping[str, Tensor]) -> Records:
    """Runs the model with its latent sites at ``values`` and validation off."""
    with pyro.validation_enabled(False), _Recorder() as recorder, SubstituteMessenger(values):
        recorder.records.parameters |= _call(model, args, kwargs, values)
    return recorder.records


def _call(model: Callable, args: tuple, kwargs: Mapping[str, Any], values: Mapping[str, Tensor]) -> set[str]:
    """Runs the model, a module with its own parameters at the values named: no message of Pyro's answers for them.

    Returns:
        The names of these parameters.
    """
    if isinstance(model, nn.Module):
        names = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
        own = {name: value for name, value in values.items() if name in names}
        if own:
            torch.func.functional_call(model, own, args, dict(kwargs))
            return set(own)
    model(*args, **kwargs)
    return set()


# -- log probabilities -------------------------------------------------------------------------------------------------


def site_log_prob(message: dict[str, Any]) -> Tensor:
    """Log probability of one site, before scale and mask."""
    return without_validation(message["fn"]).log_prob(message["value"], *message["args"], **message["kwargs"])


def _masked(message: dict[str, Any], log_prob: Tensor, scale: float | Tensor = 1.0) -> Tensor:
    return scale_and_mask(log_prob, scale, message["mask"])


def _own_scale(message: dict[str, Any]) -> float | Tensor:
    """The site's scale without the part that stands for data left out by subsampling."""
    scale = message["scale"]
    for frame in message["cond_indep_stack"]:
        if frame.full_size is not None and frame.full_size != frame.size:
            scale = scale * (frame.size / frame.full_size)
    return scale


def log_joint_terms(records: Records) -> dict[str, Tensor]:
    """Each latent and factor site's scaled log probability, summed, in nats."""
    messages = {**records.latent, **records.factors}
    return {name: _site_sum(m) for name, m in messages.items()}


def _site_sum(message: dict[str, Any]) -> Tensor:
    """One site's scaled log probability, summed; a Normal's without the terms that each of its entries repeats."""
    prior = normal_prior(message)
    if prior is None or isinstance(prior[2], Tensor) or prior[2] != 1:
        return _masked(message, site_log_prob(message), message["scale"]).sum()
    loc, scale, _ = prior
    value = message["value"]
    if value.shape != scale.shape:
        return site_log_prob(message).sum()
    once = unexpanded(scale)
    log_scale = once.log().sum() * (value.numel() / once.numel())
    return -0.5 * ((value - loc) / scale).square().sum() - log_scale - 0.5 * LOG_TWO_PI * value.numel()


def unexpanded(value: Tensor) -> Tensor:
    """A tensor without the entries that `expand` repeats: size 1 where the stride is 0."""
    return value[tuple(slice(0, 1) if step == 0 else slice(None) for step in value.stride())]


# -- data --------------------------------------------------------------------------------------------------------------


def datum_plates(records: Records) -> tuple[str, ...] | None:
    """Names of the plates that all observed sites share: one cell of them is one datum. None where there are none."""
    shared: set[str] | None = None
    for message in records.data.values():
        names = {f.name for f in message["cond_indep_stack"] if f.vectorized}
        shared = names if shared is None else shared & names
    if not shared:
        return None
    first = next(iter(records.data.values()))
    frames = [f for f in first["cond_indep_stack"] if f.name in shared]
    return tuple(f.name for f in sorted(frames, key=lambda f: f.dim))


def read_layout(records: Records) -> Layout:
    """The datum's dimensions and the number of data.

    Raises:
        BarrierError: The model observes nothing.
    """
    if not records.data:
        raise BarrierError(
            f"the model observes no data (latent sites: {list(records.latent)}); pass the observed values with its "
            "arguments, such as evaluate_barrier(model, path, x, y)"
        )
    plates = datum_plates(records)
    shape = tuple(per_datum(records)[0].shape)
    full = math.prod(shape)
    if plates is not None:
        first = next(iter(records.data.values()))
        for frame in first["cond_indep_stack"]:
            if frame.name in plates and frame.full_size is not None:
                full = full // frame.size * frame.full_size
    else:
        names = [f.name for m in records.data.values() for f in m["cond_indep_stack"] if f.vectorized]
        plates = tuple(names) if len(names) == len(shape) == 1 else tuple(f"datum_dim_{i}" for i in range(len(shape)))
    return Layout(plates, shape, full, _categorical_site(records, shape), tuple(records.data))


def per_datum(records: Records) -> tuple[Tensor, Tensor]:
    """Log likelihood of every datum, and the data's scaled contribution to the ELBO.

    Sites that share the datum's plates are added up; sites without a common plate are separate data.

    Returns:
        ``(log_likelihood (*datum), scaled sum ())`` in nats. The sum bears the sites' scales, subsampling's left out.
    """
    plates = datum_plates(records)
    parts, total = [], 0.0
    for message in records.data.values():
        log_prob = _masked(message, site_log_prob(message))
        scale = _own_scale(message)
        total = total + (log_prob.sum() if isinstance(scale, float | int) and scale == 1 else (log_prob * scale).sum())
        parts.append(log_prob if plates is None else _onto_plates(message, log_prob, plates))
    if plates is not None:
        return sum(parts[1:], parts[0]), total
    return (parts[0] if len(parts) == 1 else torch.cat([p.reshape(-1) for p in parts])), total


def _onto_plates(message: dict[str, Any], value: Tensor, plates: tuple[str, ...], event_dims: int = 0) -> Tensor:
    """A site's batch-shaped tensor with the datum's plates as its leading dims; all other batch dims summed out."""
    frames = {f.name: f for f in message["cond_indep_stack"]}
    width = max([value.dim() - event_dims] + [-f.dim for f in frames.values() if f.vectorized])
    value = value.reshape((1,) * (width + event_dims - value.dim()) + tuple(value.shape))
    dims = [width + frames[name].dim for name in plates]
    for name, dim in zip(plates, dims, strict=True):
        if value.shape[dim] == 1 != frames[name].size:
            value = value.expand(*value.shape[:dim], frames[name].size, *value.shape[dim + 1 :])
    rest = [d for d in range(width) if d not in dims]
    value = value.permute(*dims, *rest, *range(width, width + event_dims))
    return value.sum(tuple(range(len(dims), width))) if rest else value


# -- predictions -------------------------------------------------------------------------------------------------------


def _categorical_site(records: Records, shape: tuple[int, ...]) -> str | None:
    """The one observed site with finitely many classes and one value per datum, if there is just one."""
    found = []
    for name, message in records.data.items():
        kind = _class_kind(message["fn"])
        if kind is not None and math.prod(torch.Size(message["fn"].batch_shape)) == math.prod(shape):
            found.append(name)
    return found[0] if len(found) == 1 and len(records.data) == 1 else None


def _class_kind(fn) -> str | None:
    base = unwrapped(fn)
    name = type(base).__name__
    if fn.event_shape and name != "OneHotCategorical":
        return None
    return name if name in ("Categorical", "OneHotCategorical", "Bernoulli") else None


def predict(records: Records) -> Tensor:
    """The mean of the observed site's distribution, ``(*datum, ...)``; class probabilities where it has classes."""
    message = next(iter(records.data.values()))
    base, kind = unwrapped(message["fn"]), _class_kind(message["fn"])
    if kind in ("Categorical", "OneHotCategorical"):
        inner = getattr(base, "_categorical", base)
        # logits are normalized at construction; a softmax of its own would take as long as a small layer
        mean = inner.probs if "probs" in inner.__dict__ else inner.logits.exp()
    elif kind == "Bernoulli":
        mean = torch.stack([1 - base.probs, base.probs], -1)
    else:
        return message["fn"].mean
    batch = torch.Size(message["fn"].batch_shape)
    return mean.expand(*batch, mean.shape[-1])


def target(records: Records) -> Tensor:
    """The observed values that a prediction is judged against; class numbers where the site has classes."""
    message = next(iter(records.data.values()))
    kind = _class_kind(message["fn"])
    value = message["value"]
    if kind == "OneHotCategorical":
        return value.argmax(-1)
    return value.long() if kind is not None else value


def _is_factor(fn) -> bool:
    return type(unwrapped(fn)).__name__ in ("Unit", "Delta")
