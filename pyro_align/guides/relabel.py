"""How a relabeling of constrained values acts on the unconstrained coordinates in which a guide lives.

An elementwise bijection commutes with relabeling, so the action on the coordinates is the same indexing. A bijection
that mixes an axis (stick-breaking, ordered, Cholesky) commutes only with relabelings of the *other* axes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pyro_align.axes import Fixed, axis_size, leaves
from pyro_align.errors import GuideError, SymmetryError
from pyro_align.guides.sites import SiteSpec
from pyro_align.symmetry.element import Permutation
from pyro_align.symmetry.group import Symmetry

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
        if not self.moves(site):
            return value.clone()
        shape = tuple(value.shape[batch_dims:])
        stack, k = place_of(self.p.symmetry, site)
        if k is not None:
            return self._as_member(self.p, stack, k, value, batch_dims=batch_dims)
        return _fitted(self.p, site, shape).apply_site(site, value, batch_dims=batch_dims)

    def unconstrained(self, site: str, value: Tensor, *, batch_dims: int = 0, signs: bool = True) -> Tensor:
        """The relabeled coordinates ``(*batch, *unconstrained_shape)``, a new tensor."""
        if not self.moves(site):
            return value.clone()
        stack, k = place_of(self.p.symmetry, site)
        if k is not None:
            return self._as_member(self._action(site), stack, k, value, batch_dims=batch_dims, signs=signs)
        return self._action(site).apply_site(site, value, batch_dims=batch_dims, signs=signs)

    def _as_member(
        self, action: Permutation, stack: str, k: int, value: Tensor, *, batch_dims: int, signs: bool = True
    ) -> Tensor:
        """What a value becomes that has come to the k-th place of a stack."""
        count = len(self.p.symmetry.stacks[stack])
        whole = value.unsqueeze(batch_dims).expand(*value.shape[:batch_dims], count, *value.shape[batch_dims:])
        return action.apply_site(stack, whole, batch_dims=batch_dims, signs=signs).select(batch_dims, k).clone()

    def flat(self, order: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """The action on the concatenated, flattened coordinates: index ``(D,)``, and signs ``(D,)`` or None."""
        places, offset = {}, 1
        for site in order:
            spec = self.sites[site]
            numbers = torch.arange(offset, offset + spec.numel, device="cpu")
            places[site], offset = numbers.reshape(spec.unconstrained_shape), offset + spec.numel
        indices, signs = [], []
        for site, numbers in self.renamed(places).items():
            moved = self.unconstrained(site, numbers).flatten()
            indices.append(moved.abs() - 1)
            signs.append(moved.sign())
        sign = torch.cat(signs)
        return torch.cat(indices), None if bool((sign > 0).all()) else sign

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
