"""What a model says about its data: which entries are one datum, how many there are, and each one's log likelihood.

A datum is an unmasked cell of the plates that all observed sites share, and, where discrete latents are summed out, all
of these. Without such plates every batch index of every observed site is a datum, and an observation without batch
indices is one whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_align.errors import BarrierError
from pyro_align.model.enumerate import Enumerated, plates_of
from pyro_align.model.forward import (
    Message,
    Records,
    masked_log_prob,
    own_scale,
    site_mask,
    site_sum,
    subsampled,
)
from pyro_align.model.normals import unwrapped


@dataclass(frozen=True)
class Layout:
    """What a model says about its data."""

    plates: tuple[str, ...]  # names of the datum's dimensions, in order
    shape: tuple[int, ...]  # their sizes in this run
    seen: int  # number of data in this run, masked ones left out
    full: int  # number of data that the model stands for; greater than ``seen`` under subsampling
    categorical: str | None  # the observed site whose class probabilities a task loss can judge, or None
    observed: tuple[str, ...]  # names of the observed sites
    by_hand: bool = False  # whether the model scales its likelihood by ``full / seen`` without a plate that says so


@dataclass(frozen=True)
class Observations:
    """The data of one run."""

    log_likelihood: Tensor  # log likelihood of each datum, ``(*datum)`` nats; unscaled, zero where masked
    total: Tensor  # the data's contribution to the ELBO, ``()`` nats: scaled, without subsampling's part
    mask: Tensor | None  # which data are observed, ``(*datum)``, or None where all are
    plates: tuple[str, ...]  # names of the plates whose cells are the data, in order; none where there are none
    stand: float  # for how many data each stands, by the subsampling plates; their mean


def scaled_by_hand(whole: Records, part: Records) -> bool:
    """Whether a model scales its likelihood so that some data stand for all: by N / n for n data, without a plate."""
    for name in whole.data:
        sizes = [math.prod(torch.Size(r.data[name]["fn"].batch_shape)) for r in (whole, part) if name in r.data]
        scales = [own_scale(r.data[name]) for r in (whole, part) if name in r.data]
        if len(sizes) < 2 or sizes[0] == sizes[1] or not all(isinstance(s, int | float) for s in scales):
            return False
        if not math.isclose(scales[0] * sizes[0], scales[1] * sizes[1], rel_tol=1e-6):
            return False
    return bool(whole.data)


def latent_terms(
    records: Records, enumerated: Enumerated | None, log_scales: Mapping[str, Tensor | None] | None = None
) -> dict[str, Tensor]:
    """Scaled log probability of each latent and factor site, in nats; sites that share discrete latents as one.

    ``log_scales`` are those of :func:`site_sum`, as far as they are known.
    """
    messages, known = {**records.latent, **records.factors}, log_scales or {}
    depends = frozenset() if enumerated is None else enumerated.depends
    terms = {name: site_sum(m, known.get(name)) for name, m in messages.items() if name not in depends}
    for component in () if enumerated is None else enumerated.components:
        if component.latent:
            scale = enumerated.scale(component, [messages[n]["scale"] for n in component.latent])
            plates = _in_order(component.plates, messages[component.latent[0]])
            log_prob = enumerated.log_prob(component.latent, plates)
            terms[" & ".join(component.latent)] = (log_prob * _on(scale, messages[component.latent[0]], plates)).sum()
    return terms


def observations(records: Records, enumerated: Enumerated | None, *, by_hand: bool = False) -> Observations:
    """The data of a run, discrete latents summed out for each; ``by_hand`` where scales stand for data left out."""
    groups = _groups(records, enumerated)
    if not groups:
        nothing = torch.zeros((), device=next((m["value"].device for m in records.latent.values()), "cpu"))
        return Observations(nothing.expand(0), nothing, None, (), 1.0)
    shared = frozenset.intersection(*(plates for _, plates in groups))
    plates = _in_order(shared, records.data[groups[0][0][0]])
    parts, masks, total, count = [], [], 0.0, 0.0
    for names, own in groups:
        first = records.data[names[0]]
        kept = plates or (_in_order(own, first) if enumerated is not None else None)
        log_prob, scaled = _group_log_prob(records, enumerated, names, kept, by_hand)
        parts.append(log_prob)
        masks.append(_group_mask(records, names, kept, log_prob))
        factor = float(first["scale"]) if by_hand else subsampled(first)
        total = total + scaled * factor
        count = count + factor * log_prob.numel()
    stand = count / sum(part.numel() for part in parts)
    if all(mask is None for mask in masks):
        whole = None
    else:
        whole = [torch.ones_like(p, dtype=torch.bool) if m is None else m for p, m in zip(parts, masks, strict=True)]
    if plates:
        log_likelihood, mask = sum(parts[1:], parts[0]), whole and torch.stack(whole).any(0)
    else:
        log_likelihood, mask = _joined(parts), whole and _joined(whole)
    total = total if stand == 1 else total / stand
    return Observations(log_likelihood, total, mask, plates, stand)


def _joined(parts: list[Tensor]) -> Tensor:
    """One tensor of what is known of each datum; a single group keeps its shape."""
    return torch.atleast_1d(parts[0]) if len(parts) == 1 else torch.cat([part.reshape(-1) for part in parts])


def _groups(records: Records, enumerated: Enumerated | None) -> list[tuple[list[str], frozenset[str]]]:
    """Observed sites that share discrete latents, and the plates that they and these latents share."""
    components = [] if enumerated is None else [c for c in enumerated.components if c.data]
    together = {name for c in components for name in c.data}
    alone = [([n], plates_of(m)) for n, m in records.data.items() if n not in together]
    return alone + [(c.data, c.plates) for c in components]


def _group_log_prob(
    records: Records, enumerated: Enumerated | None, names: list[str], plates: tuple[str, ...] | None, by_hand: bool
) -> tuple[Tensor, Tensor]:
    """Log likelihood of each datum of a group of observed sites, and its scaled sum."""
    message = records.data[names[0]]
    if enumerated is None or names[0] not in enumerated.depends:
        log_prob, scale = masked_log_prob(message), 1.0 if by_hand else own_scale(message)
        scaled = log_prob.sum() if isinstance(scale, float | int) and scale == 1 else (log_prob * scale).sum()
        return (log_prob if plates is None else onto_plates(message, log_prob, plates)), scaled
    component = next(c for c in enumerated.components if names[0] in c.data)
    own = _in_order(component.plates, message)
    joint = enumerated.log_prob(component.latent + component.data, own)
    log_prob = joint - enumerated.log_prob(component.latent, own)
    messages = {**records.latent, **records.data}
    scale = enumerated.scale(component, [own_scale(messages[n]) for n in component.latent + component.data])
    scale = 1.0 if by_hand else scale
    scaled = (log_prob * _on(scale, message, own)).sum()
    drop = tuple(i for i, p in enumerate(own) if p not in (plates or own))
    return (log_prob.sum(drop) if drop else log_prob), scaled


def _group_mask(records: Records, names: list[str], plates: tuple[str, ...] | None, log_prob: Tensor) -> Tensor | None:
    masks = []
    for name in names:
        message = records.data[name]
        mask = site_mask(message)
        if mask is None:
            return None
        mask = mask.expand(torch.Size(message["fn"].batch_shape)) if plates is None else mask
        masks.append(mask if plates is None else onto_plates(message, mask, plates).bool())
    return torch.stack([m.expand(log_prob.shape) for m in masks]).any(0)


def onto_plates(message: Message, value: Tensor, plates: tuple[str, ...], event_dims: int = 0) -> Tensor:
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


def _on(scale: float | Tensor, message: Message, plates: tuple[str, ...]) -> float | Tensor:
    """A site's scale as a factor of what has the plates' dims."""
    return onto_plates(message, scale, plates) if isinstance(scale, Tensor) and scale.dim() else scale


def _in_order(plates: frozenset[str], message: Message) -> tuple[str, ...]:
    frames = [f for f in message["cond_indep_stack"] if f.vectorized and f.name in plates]
    return tuple(f.name for f in sorted(frames, key=lambda f: f.dim))


# -- predictions -------------------------------------------------------------------------------------------------------


def read_layout(records: Records, enumerated: Enumerated | None = None, *, by_hand: bool = False) -> Layout:
    """The datum's dimensions and the number of data."""
    if not records.data:
        remedy = "pass the observed values with its arguments, such as evaluate_barrier(model, path, x, y)"
        if records.factors:
            remedy = (
                f"its factors {list(records.factors)} count as prior: where one is likelihood, say so with "
                'poutine.infer_config(model, lambda site: {"likelihood": True} if site["name"] == NAME else {})'
            )
        raise BarrierError(f"the model observes no data (latent sites: {list(records.latent)}); {remedy}")
    data = observations(records, enumerated, by_hand=by_hand)
    shape = tuple(data.log_likelihood.shape)
    seen = math.prod(shape) if data.mask is None else int(data.mask.sum())
    if not seen:
        raise BarrierError(f"every observation of {list(records.data)} is masked: there are no data")
    named = data.plates if len(data.plates) == len(shape) else None
    plates = named or (("datum",) if len(shape) == 1 else tuple(f"datum_dim_{i}" for i in range(len(shape))))
    categorical = _categorical_site(records, math.prod(shape))
    return Layout(plates, shape, seen, round(seen * data.stand), categorical, tuple(records.data), by_hand)


def _categorical_site(records: Records, data: int) -> str | None:
    """The one observed site with finitely many classes and one value per datum, if there is just one."""
    if len(records.data) != 1:
        return None
    ((name, message),) = records.data.items()
    value = message["value"]
    cells = value.numel() if class_kind(message["fn"]) != "OneHotCategorical" else value[..., 0].numel()
    return name if class_kind(message["fn"]) is not None and cells == data else None


def class_kind(fn: Any) -> str | None:
    """The kind of a distribution over classes, or None."""
    name = type(unwrapped(fn)).__name__
    if fn.event_shape and name != "OneHotCategorical":
        return None
    return name if name in ("Categorical", "OneHotCategorical", "Bernoulli") else None


def predict(records: Records, enumerated: Enumerated | None = None) -> Tensor:
    """The mean of the observed site's distribution, ``(*datum, ...)``; class probabilities where it has classes."""
    ((name, message),) = list(records.data.items())[:1]
    fn = message["fn"]
    base, kind = unwrapped(fn), class_kind(fn)
    if kind is None:
        mean, events = fn.mean, len(fn.event_shape)
    else:
        if kind == "Bernoulli":
            mean = torch.stack([1 - base.probs, base.probs], -1)
        else:
            inner = getattr(base, "_categorical", base)
            # logits are normalized at construction; a softmax of its own would take as long as a small layer
            mean = inner.probs if "probs" in inner.__dict__ else inner.logits.exp()
        mean, events = mean.expand(*torch.Size(fn.batch_shape), mean.shape[-1]), 1
    if enumerated is not None:
        mean = enumerated.mean(name, mean, events)
    return mean[None] if mean.dim() == events else mean


def target(records: Records) -> Tensor:
    """The observed values that a prediction is judged against; class numbers where the site has classes."""
    message = next(iter(records.data.values()))
    kind, value = class_kind(message["fn"]), message["value"]
    value = value if isinstance(value, Tensor) else torch.as_tensor(value, device="cpu")
    if kind == "OneHotCategorical":
        value = value.argmax(-1)
    elif kind is not None:
        value = value.long()
    whole = value.dim() == (0 if kind is not None else len(message["fn"].event_shape))
    return value[None] if whole else value
