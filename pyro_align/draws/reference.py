"""What draws are compared with: the pivot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_align.draws.methods import by_values
from pyro_align.draws.shapes import as_tensor
from pyro_align.draws.stack import Features
from pyro_align.draws.task import Task
from pyro_align.draws.units import Units


def choose_pivot(
    task: Task, reference: Any, log_probs: tuple[Tensor, ...] | None
) -> tuple[tuple[int, int] | None, Features]:
    """Which draw is the pivot, if one is, and its features."""
    if reference is None:
        reference = "medoid" if log_probs is None else "map"
    if isinstance(reference, Mapping):
        return None, _given(task, reference)
    units = task.value_units()
    if reference == "map":
        if log_probs is None:
            raise ValueError("reference='map' needs the model: pass model= and args=, or use 'medoid'")
        score = np.where(task.trusted, np.nan_to_num(log_probs[0].numpy(), nan=-np.inf), -np.inf)
        unit = int(score.argmax())
    elif reference == "medoid":
        unit = _medoid(task, units)
    else:
        unit = _unit_of(task, reference)
    return divmod(unit, task.source.shape[1]), units.one(unit)


def _unit_of(task: Task, reference: Any) -> int:
    chains, draws = task.source.shape
    try:
        chain, draw = (int(i) for i in reference)
    except (TypeError, ValueError):
        raise ValueError(
            f"reference must be 'map', 'medoid', a pair (chain, draw), or values by site; got {reference!r}"
        ) from None
    if not (0 <= chain < chains and 0 <= draw < draws):
        raise ValueError(f"reference={reference}: there are {chains} chains of {draws} draws")
    if not task.trusted[chain, draw]:
        raise ValueError(f"reference={reference}: that draw is divergent, NaN or infinite; choose another")
    return chain * draws + draw


def _given(task: Task, reference: Mapping[str, Any]) -> Features:
    if task.source.members:
        raise TypeError("for guides, give reference=(0, member) or leave it out")
    out = {}
    for site, map_to in task.maps.items():
        if site not in reference:
            raise ValueError(f"reference= lacks site '{site}'; it has {sorted(reference)}")
        value = as_tensor(reference[site])
        if tuple(value.shape) != task.source.shapes[site]:
            raise ValueError(
                f"reference=, site '{site}': expected shape {task.source.shapes[site]}, got {tuple(value.shape)}"
            )
        if not bool(value.isfinite().all()):
            raise ValueError(f"reference=, site '{site}': holds NaN or infinity")
        value = map_to(value.to(torch.float64)[None])[0]
        out[site] = (value, value.square()) if task.options.weights == "diagonal" else (value,)
    return out


def _medoid(task: Task, units: Units) -> int:
    """The trusted draw nearest to the mean of all, after aligning them to the first trusted one."""
    first = int(units.trusted.nonzero()[0])
    outcome = by_values(units, task.matcher(units), units.one(first), averaged=True, weights="equal", max_iterations=2)
    best, chosen = np.inf, first
    matcher = task.matcher(units)
    for here, features in units.chunks():
        p = outcome.labels.permutation(matcher.stack(here.stop - here.start), here)
        far = sum(
            (p.apply_site(s, f[0]).double() - outcome.reference[s]).flatten(1).square().sum(1)
            for s, f in features.items()
        )
        far = torch.where(units.trusted[here], far, np.inf)
        if float(far.min()) < best:
            best, chosen = float(far.min()), here.start + int(far.argmin())
    return chosen
