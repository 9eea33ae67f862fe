"""What the support of a site allows: a relabeling must not take a value out of it.

A prior's density says this too where it is part of the log joint. It is not where priors are left out, where they are
flat, or where a site is a learnable parameter with a constraint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyro.distributions.constraints as pyro_constraints
from torch import Tensor
from torch.distributions import constraints

from pyro_align.discovery.axes import terms
from pyro_align.discovery.axes.terms import ONE, Term
from pyro_align.discovery.axes.unify import merge
from pyro_align.discovery.constants import constant_axes
from pyro_align.errors import SymmetryError
from pyro_align.model.supports import base_support, is_real

# entries of the event axis may change places
_EXCHANGEABLE = tuple(
    type(c) for c in (constraints.simplex, constraints.one_hot, constraints.square, pyro_constraints.sphere)
) + (type(constraints.multinomial(1)),)
# rows and columns may change places together
_TIED = tuple(
    type(c)
    for c in (
        constraints.positive_definite,
        constraints.positive_semidefinite,
        constraints.symmetric,
        pyro_constraints.corr_matrix,
    )
)


def restrict(axes: Sequence[Term], support: constraints.Constraint) -> None:
    """Takes from a site's axes the freedom that would lead out of its support."""
    base = base_support(support)
    if isinstance(base, constraints.cat | constraints.stack):
        terms.fix(axes[base.dim])
        for part in base.cseq:
            _restrict_event(axes, base_support(part))
        return
    _restrict_event(axes, base)
    batch = axes[: len(axes) - base.event_dim]
    for bound in vars(base).values():
        if isinstance(bound, Tensor) and bound.dim() <= len(batch):
            for axis, found in zip(batch[len(batch) - bound.dim() :], constant_axes(bound.detach()), strict=True):
                if found is not ONE:
                    merge(axis, found)


def _restrict_event(axes: Sequence[Term], base: constraints.Constraint) -> None:
    if not base.event_dim or isinstance(base, _EXCHANGEABLE):
        return
    event = axes[len(axes) - base.event_dim :]
    if isinstance(base, _TIED):
        merge(event[0], event[1])
        return
    for axis in event:
        terms.fix(axis)


def check_support(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], supports: Mapping[str, constraints.Constraint]
) -> None:
    """Refuses a relabeling that takes a site's value out of its support."""
    for name, value in after.items():
        support = supports.get(name)
        if support is None or is_real(support) or value is before[name]:
            continue
        if bool(support.check(before[name]).all()) and not bool(support.check(value).all()):
            raise SymmetryError(
                f"site '{name}': the relabeled value leaves the site's support, {support}; a symmetry may not exchange "
                "(or flip the sign of) what the support distinguishes"
            )
