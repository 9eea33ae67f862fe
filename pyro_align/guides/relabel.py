"""How a relabeling of constrained values acts on the unconstrained coordinates in which a guide lives.

An elementwise bijection commutes with relabeling, so the action on the coordinates is the same indexing. A bijection
that mixes an axis (stick-breaking, ordered, Cholesky) commutes only with relabelings of the *other* axes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_align.axes import Fixed, axis_size, leaves
from pyro_align.errors import GuideError, SymmetryError
from pyro_align.guides.sites import SiteSpec, split_flat
from pyro_align.symmetry.element import Permutation
from pyro_align.symmetry.group import Symmetry

Labels = Mapping[str, str | None]  # discrete site -> the atom whose units its values number

REMEDY = (
    "use a parametrization in which relabeling is linear (softmax or exponentials of real sites), "
    "or relabel the guide exactly by wrapping it: wrap_guide(guide)"
)


@dataclass(frozen=True, eq=False)
class Relabeling:
    """One permutation, acting on the coordinates of a guide's sites.

    A site that changes places with others takes the value of another first (:meth:`renamed`), and is then relabeled
    like any other.
    """

    p: Permutation
    sites: Mapping[str, SiteSpec]

    def renamed(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """For each site the value that comes to its place, not yet relabeled."""
        come = {site: self._comes.get(site, site) for site in values}
        if missing := sorted(set(come.values()) - set(values)):
            raise GuideError(f"the sites {missing} change places with others that this part of the guide does not have")
        return {site: values[source] for site, source in come.items()}

    @cached_property
    def _comes(self) -> dict[str, str]:
        """Member of a stack -> the member whose value comes to its place."""
        found = {}
        for stack, members in self.p.symmetry.stacks.items():
            axis = _restricted(self.p, stack, self.p.symmetry.sites[stack][:1])
            order = axis.apply_site(stack, torch.arange(len(members), device="cpu"), signs=False).tolist()
            found.update(zip(members, (members[k] for k in order), strict=True))
        return found

    def moves(self, site: str) -> bool:
        """Whether the site's values change at all."""
        stack, _ = place_of(self.p.symmetry, site)
        terms = self.p.symmetry.sites.get(stack, ())
        moved = self.p.moved()
        return any(moved.get(atom.name) and not atom.fixed for term in terms for atom in leaves(term))

    def constrained(self, site: str, value: Tensor, *, batch_dims: int = 0) -> Tensor:
        """The relabeled constrained values ``(*batch, *shape)``, a new tensor."""
        shape = tuple(value.shape[batch_dims:])

        def action(stack: str, lead: tuple[int, ...]) -> Permutation:
            return _fitted(self.p, stack, (*lead, *shape))

        return self._moved(site, value, action, batch_dims)

    def unconstrained(self, site: str, value: Tensor, *, batch_dims: int = 0, signs: bool = True) -> Tensor:
        """The relabeled coordinates ``(*batch, *unconstrained_shape)``, a new tensor."""
        return self._moved(site, value, lambda *_: self._action(site), batch_dims, signs)

    def _moved(
        self, site: str, value: Tensor, action: Callable[..., Permutation], batch_dims: int, signs: bool = True
    ) -> Tensor:
        """What a value becomes at a site; of a stack's member, one that has come to its place."""
        if not self.moves(site):
            return value.clone()
        stack, k = place_of(self.p.symmetry, site)
        if k is None:
            return action(site, ()).apply_site(site, value, batch_dims=batch_dims, signs=signs)
        count = len(self.p.symmetry.stacks[stack])
        whole = value.unsqueeze(batch_dims).expand(*value.shape[:batch_dims], count, *value.shape[batch_dims:])
        moved = action(stack, (count,)).apply_site(stack, whole, batch_dims=batch_dims, signs=signs)
        return moved.select(batch_dims, k).clone()

    def rows(self, tensor: Tensor, *, signs: bool = True) -> Tensor:
        """The relabeled rows of a tensor ``(D, ...)`` over the concatenated, flattened coordinates."""
        parts = self.renamed(split_flat(self.sites, tensor.reshape(len(tensor), -1).T))
        moved = [self.unconstrained(k, v, batch_dims=1, signs=signs).reshape(len(v), -1) for k, v in parts.items()]
        return torch.cat(moved, dim=-1).T.reshape(tensor.shape).contiguous()

    def flat(self) -> tuple[Tensor, Tensor]:
        """The action on these coordinates as an index ``(D,)`` and signs ``(D,)``."""
        moved = self.rows(torch.arange(1, 1 + sum(spec.numel for spec in self.sites.values()), device="cpu"))
        return moved.abs() - 1, moved.sign()

    def _action(self, site: str) -> Permutation:
        spec = stacked_spec(self.p.symmetry, self.sites[site])
        cache = self.__dict__.setdefault("_cache", {})
        if site not in cache:
            cache[site] = _unconstrained_action(self.p, spec)
        return cache[site]


def place_of(symmetry: Symmetry, site: str) -> tuple[str, int | None]:
    """The stack that a site is a member of, and its place there; the site itself and None where it is of none."""
    return next(((k, m.index(site)) for k, m in symmetry.stacks.items() if site in m), (site, None))


def stacked_spec(symmetry: Symmetry, spec: SiteSpec) -> SiteSpec:
    """The site, or the stack that it is a member of."""
    stack, k = place_of(symmetry, spec.name)
    return spec if k is None else replace(spec, name=stack, shape=(len(symmetry.stacks[stack]), *spec.shape))


def mixed_axis(symmetry: Symmetry, spec: SiteSpec) -> int | None:
    """The first axis that the symmetry relabels and that the site's bijection mixes; None where there is none."""
    spec = stacked_spec(symmetry, spec)
    terms, mixed = symmetry.sites.get(spec.name, ()), spec.core_event_dims[0]
    for axis in range(max(0, len(terms) - mixed), len(terms)):  # none of a site that the symmetry does not name
        if any(not atom.fixed for atom in leaves(terms[axis])):
            return axis
    return None


def _unconstrained_action(p: Permutation, spec: SiteSpec) -> Permutation:
    """The permutation with the site's terms rewritten for its unconstrained coordinates, checked to commute."""
    terms = p.symmetry.sites[spec.name]
    mixed, stored = spec.core_event_dims
    inner = p
    if mixed:
        split = len(terms) - mixed
        axis = mixed_axis(p.symmetry, spec)
        if axis is not None:
            raise GuideError(
                f"site '{spec.name}', axis {axis} ({terms[axis]}): its support {spec.support} is reached by a "
                f"bijection that mixes this axis, so the relabeled posterior leaves the guide's family; {REMEDY}"
            )
        sizes = spec.unconstrained_shape[len(spec.unconstrained_shape) - stored :]
        inner = _restricted(p, spec.name, (*terms[:split], *(Fixed(n) for n in sizes)))
    action = _fitted(inner, spec.name, spec.unconstrained_shape)
    if not spec.is_real:
        _check_commutes(_fitted(p, spec.name, spec.shape), action, spec)
    return action


def _check_commutes(p: Permutation, action: Permutation, spec: SiteSpec) -> None:
    """Tries the bijection on one point: its bounds may differ along the axis, or it may not be odd under signs."""
    point = torch.sin(torch.arange(1, spec.numel + 1, dtype=torch.float64, device=spec.device))
    point = point.reshape(spec.unconstrained_shape)
    before = p.apply_site(spec.name, spec.constrain(point))
    after = spec.constrain(action.apply_site(spec.name, point))
    if torch.allclose(before, after, rtol=1e-9, atol=1e-9):
        return
    if any(atom.odd and atom.name in p.signs for term in p.symmetry.sites[spec.name] for atom in leaves(term)):
        raise GuideError(
            f"site '{spec.name}': its support {spec.support} does not allow a change of sign; "
            "leave the signs out of this site's axes, or use a symmetry without signs"
        )
    raise GuideError(
        f"site '{spec.name}': its support {spec.support} is not the same for all interchangeable entries; {REMEDY}"
    )


def _fitted(p: Permutation, site: str, shape: tuple[int, ...]) -> Permutation:
    """The permutation with the sizes of the site's fixed axes taken from ``shape`` (full or subsampled plates)."""
    terms = p.symmetry.sites[site]
    if tuple(axis_size(t) for t in terms) == shape:
        return p
    if len(terms) == len(shape):
        fixed = [all(a.fixed for a in leaves(t)) for t in terms]
        if all(f or axis_size(t) == n for f, t, n in zip(fixed, terms, shape, strict=True)):
            new = tuple(t if axis_size(t) == n else Fixed(n) for t, n in zip(terms, shape, strict=True))
            return _restricted(p, site, new)
    raise SymmetryError(
        f"site '{site}': the symmetry has shape {tuple(axis_size(t) for t in terms)} and axes "
        f"{[str(t) for t in terms]}, the guide has shape {shape}"
    )


def _restricted(p: Permutation, site: str, terms: tuple[Any, ...]) -> Permutation:
    """The permutation of one site with these terms."""
    symmetry = replace(p.symmetry, sites={site: terms}, certificate=None)
    return Permutation(
        symmetry,
        {name: index for name, index in p.indices.items() if name in symmetry.atoms},
        {name: sign for name, sign in p.signs.items() if name in symmetry.signed},
        {name: matrix for name, matrix in p.rotations.items() if name in symmetry.atoms},
    )


# -- labels ------------------------------------------------------------------------------------------------------------
#
# A symmetry says which axes of a site's value stand for units. Where the value itself is the number of a unit,
# relabeling the units must change the value; whether it is one, nothing in a guide tells. So it has to be said.


def check_labels(labels: Labels, sites: Mapping[str, SiteSpec]) -> dict[str, str | None]:
    """The labels, checked against a guide's sites."""
    for name in labels:
        if name not in sites or not sites[name].is_discrete:
            discrete = [k for k, spec in sites.items() if spec.is_discrete]
            raise GuideError(f"labels= names the site '{name}'; the guide's discrete sites are {discrete}")
    return dict(labels)


def label_moves(p: Permutation, sites: Mapping[str, SiteSpec], labels: Labels) -> dict[str, Tensor]:
    """Site -> which old unit each new unit is, for the discrete sites whose values a relabeling changes."""
    moved = {name for name, count in p.moved().items() if count}
    found: dict[str, Tensor] = {}
    for name, spec in sites.items():
        if not moved or not spec.is_discrete:
            continue
        if name not in labels:
            if any(not atom.fixed for term in p.symmetry.sites.get(name, ()) for atom in leaves(term)):
                continue  # its axes stand for units: its values say something of them
            raise GuideError(
                f"site '{name}' is discrete, and its values may be labels of the relabeled units "
                f"({', '.join(sorted(moved))}), which would have to change, too. Say so: "
                f"read_guide(guide, labels={{'{name}': '{min(moved)}'}}), or labels={{'{name}': None}} if they are not"
            )
        atom = labels[name]
        if atom is None:
            continue
        if atom not in p.indices:
            raise GuideError(
                f"labels= says that the values of '{name}' are units of '{atom}'; the symmetry has {list(p.indices)}"
            )
        if p.indices[atom].dim() != 1:
            raise GuideError(f"the values of '{name}' cannot be units of '{atom}', which is nested in another atom")
        if atom in moved:
            found[name] = p.indices[atom]
            size = _categories(spec)
            if size is not None and size != len(found[name]):
                raise GuideError(
                    f"the values of '{name}' cannot be units of '{atom}': there are {size} values and "
                    f"{len(found[name])} units"
                )
    return found


def move_labels(spec: SiteSpec, index: Tensor, value: Tensor) -> Tensor:
    """The values of a discrete site after its labels have moved; ``index`` says which old unit each new one is."""
    index = index.to(value.device)
    if spec.event_dim:  # one entry per unit: one-hot vectors, counts
        return value[..., index]
    return index.argsort()[value.long()].to(value.dtype)


def _categories(spec: SiteSpec) -> int | None:
    """How many values a site has, where its support tells."""
    support = spec.support
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    if support is constraints.boolean:
        return 2
    if spec.event_dim:
        return spec.shape[-1]
    bound = getattr(support, "upper_bound", None)
    return None if bound is None else int(bound) + 1
