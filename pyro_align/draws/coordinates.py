"""Coordinates in which draws are compared: unconstrained ones, as long as they commute with relabeling.

Elementwise bijections (the log of a scale, the logit of a probability) commute with any relabeling. The bijection of
the simplex (stick-breaking) does not; centered log-ratios do, and span the same space (Aitchison 1982). What is left
(Cholesky factors, ordered vectors) is compared as it is.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints
from torch.distributions.transforms import IndependentTransform

from pyro_align.axes import leaves
from pyro_align.symmetry.group import Symmetry

Coordinate = Callable[[Tensor], Tensor]


def coordinates(symmetry: Symmetry, supports: Mapping[str, constraints.Constraint]) -> dict[str, Coordinate]:
    """Site -> the map from its constrained draws ``(units, *site_shape)`` to tensors of the same shape.

    Args:
        supports: Site -> support, where it is known; other sites are compared as they are.
    """
    found = {}
    for site, terms in symmetry.sites.items():
        linear = any(a.odd or a.rotates for term in terms for a in leaves(term))  # they act on the values themselves
        found[site] = _identity if linear or site not in supports else coordinate(supports[site])
    return found


def coordinate(support: constraints.Constraint) -> Coordinate:
    """The coordinates of one support."""
    base = _base(support)
    if base is constraints.real:
        return _identity
    if base is constraints.simplex:
        return _centered_log_ratio
    try:
        transform = biject_to(base)
    except NotImplementedError:  # discrete supports
        return _identity
    while isinstance(transform, IndependentTransform):
        transform = transform.base_transform
    if transform.codomain.event_dim or transform.domain.event_dim:
        return _identity
    base = _on_host(base)

    def unconstrain(value: Tensor) -> Tensor:
        # a draw that rounding has put on the boundary is far out, not infinitely far
        limit = -math.log(torch.finfo(value.dtype).tiny)
        moved = biject_to(base).inv(value)
        return torch.where(value.isfinite(), torch.nan_to_num(moved, posinf=limit, neginf=-limit), value)

    return unconstrain


def check_support(site: str, values: Tensor, support: constraints.Constraint, chain: int) -> None:
    """Refuses draws ``(units, *site_shape)`` outside a support; its boundary counts as inside, as draws are rounded."""
    base = _base(support)
    lower, upper = getattr(base, "lower_bound", None), getattr(base, "upper_bound", None)
    if base is constraints.simplex:
        inside = (values >= 0).all(-1) & ((values.sum(-1) - 1).abs() < 1e-3)
    elif lower is None and upper is None:
        if not isinstance(base, constraints.Constraint) or not values.numel() or base.event_dim:
            return
        inside = base.check(values)
    else:
        lower, upper = (None if b is None else torch.as_tensor(b).cpu() for b in (lower, upper))
        inside = torch.ones_like(values, dtype=torch.bool)
        inside = inside if lower is None else inside & (values >= lower)
        inside = inside if upper is None else inside & (values <= upper)
    if not bool(inside.all()):
        raise ValueError(
            f"site '{site}': the support is {support}, but a draw of chain {chain} holds "
            f"{values[~inside].flatten()[:3].tolist()}; give the site's own support in supports=, or leave it out"
        )


def _base(support: constraints.Constraint) -> constraints.Constraint:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def _on_host(support: constraints.Constraint) -> constraints.Constraint:
    """The support with its bounds on the host, where draws are compared; the model may live elsewhere."""
    moved = copy.copy(support)
    for name, value in vars(support).items():
        if isinstance(value, Tensor):
            setattr(moved, name, value.cpu())
    return moved


def _identity(value: Tensor) -> Tensor:
    return value


def _centered_log_ratio(value: Tensor) -> Tensor:
    logs = value.clamp_min(torch.finfo(value.dtype).tiny).log()
    return logs - logs.mean(-1, keepdim=True)
