"""How a relabeling acts on one site's tensor: axis by axis, outer atoms before what is nested in them.

A plain axis is one ``index_select``. An axis nested in an atom of *another* axis is gathered with an index that varies
along that axis too; it is gathered after the outer axis has moved, as its index speaks of new positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from pyro_align.axes import (
    Atom,
    Axis,
    Product,
    axis_index,
    axis_sign,
    axis_size,
    children,
    coordinates,
    external,
    leaves,
)
from pyro_align.errors import SymmetryError


def plan(
    terms: Sequence[Axis], indices: Mapping[str, Tensor], signs: Mapping[str, Tensor]
) -> Iterator[tuple[int, Tensor, Tensor | None]]:
    """The steps of the action on one site: ``(axis, index, sign)``, outer axes first; axes that stay are left out.

    An index has one axis per axis of the site: the gathered axis and the axes of its outer atoms have their sizes, all
    others have size one.

    Args:
        terms: The site's axis terms.
        indices: Free atom -> index tensor ``(*outer sizes, size)``.
        signs: Signed atom -> +-1, same shape.
    """
    moved = {name for name, index in indices.items() if not is_identity_index(index)} | set(signs)
    for axis in outer_first(terms):
        term = terms[axis]
        if not any(a.name in moved for a in leaves(term)):
            continue
        outer, batch_axes = outer_coordinates(terms, axis)
        index = axis_index(term, indices, outer)
        sign = axis_sign(term, signs, outer)
        around = (*batch_axes, axis)
        shape = [1] * len(terms)
        for j in around:
            shape[j] = axis_size(terms[j])
        order = [around.index(j) for j in sorted(around)]
        yield (
            axis,
            index.permute(order).reshape(shape),
            None if sign is None else sign.permute(order).reshape(shape),
        )


def is_identity_index(index: Tensor) -> bool:
    """Whether an index tensor ``(*outer sizes, size)`` keeps every place."""
    return bool((index == torch.arange(index.shape[-1], device="cpu")).all())


def gather(value: Tensor, batch_dims: int, axis: int, index: Tensor, sign: Tensor | None) -> Tensor:
    """One step of a plan, on a tensor ``(*batch, *site_shape)``."""
    index = index.to(value.device)
    if index.numel() == index.shape[axis]:
        value = value.index_select(batch_dims + axis, index.flatten())
    else:
        value = take(value, index.reshape((1,) * batch_dims + tuple(index.shape)), batch_dims + axis)
    if sign is not None:
        value = value * sign.to(value.device, value.dtype)
    return value


def take(value: Tensor, index: Tensor, dim: int) -> Tensor:
    """``torch.take_along_dim`` of an index that broadcasts; whole rows at a time where it is alike along later dims."""
    if index.dim() != value.dim() or index.shape[dim + 1 :].numel() > 1 or value.shape[dim + 1 :].numel() == 1:
        return torch.take_along_dim(value, index, dim)
    lead, tail, kept = value.shape[:dim], value.shape[dim + 1 :], index.shape[dim]
    index = index.reshape(index.shape[: dim + 1]).expand(*lead, kept).reshape(lead.numel(), kept)
    rows = index + value.shape[dim] * torch.arange(lead.numel(), device=index.device).unsqueeze(1)
    taken = value.reshape(lead.numel() * value.shape[dim], *tail).index_select(0, rows.flatten())
    return taken.reshape(*lead, kept, *tail)


def outer_first(terms: Sequence[Axis]) -> list[int]:
    """The axes in an order in which those that carry an outer atom come before those nested in it."""
    done: list[int] = []
    waiting = list(range(len(terms)))
    while waiting:
        for axis in waiting:
            needs = external(terms[axis])
            blockers = [j for j in waiting if j != axis and needs & {a.name for a in leaves(terms[j])}]
            if not blockers:
                done.append(axis)
                waiting.remove(axis)
                break
        else:
            raise SymmetryError(f"the nesting of the axes {[str(t) for t in terms]} goes in a circle")
    return done


def outer_coordinates(terms: Sequence[Axis], axis: int) -> tuple[dict[str, Tensor], tuple[int, ...]]:
    """Coordinates of the outer atoms that an axis needs from other axes, on the grid of those axes."""
    needs = external(terms[axis])
    sources = {}
    for name in sorted(needs):
        carriers = [j for j, t in enumerate(terms) if j != axis and any(a.name == name for a in leaves(t))]
        if len(carriers) != 1:
            raise SymmetryError(
                f"an atom nested in '{name}' needs exactly one other axis with '{name}' in the same site, "
                f"found {len(carriers)} in {[str(t) for t in terms]}"
            )
        index = coordinates(terms[carriers[0]])[name]
        if bool((index < 0).any()):
            raise SymmetryError(f"'{name}' is missing, or stands twice, on part of the axis '{terms[carriers[0]]}'")
        sources[name] = (carriers[0], index)
    batch_axes = tuple(sorted({j for j, _ in sources.values()}))
    outer = {}
    for name, (j, index) in sources.items():
        shape = [1] * len(batch_axes)
        shape[batch_axes.index(j)] = -1
        outer[name] = index.reshape(shape).expand([axis_size(terms[b]) for b in batch_axes])
    return outer, batch_axes


def check_nesting(sites: Mapping[str, Sequence[Axis]], atoms: Mapping[str, Atom]) -> None:
    """Every site must tell, for each nested atom, the index of each atom around it."""
    if not any(a.within for a in atoms.values()):
        return
    for site, terms in sites.items():
        try:
            for axis in outer_first(terms):
                outer, _ = outer_coordinates(terms, axis)
                identity = {
                    n: torch.arange(a.size, device="cpu").expand(*(atoms[o].size for o in a.within), a.size)
                    for n, a in atoms.items()
                    if a.within and not a.fixed
                }
                axis_index(terms[axis], identity, outer)
                _check_inner(terms[axis], frozenset(outer))
        except SymmetryError as error:
            raise SymmetryError(f"site '{site}': {error}") from None


def _check_inner(term: Axis, seen: frozenset[str]) -> None:
    if isinstance(term, Atom):
        return
    for child in children(term):
        _check_inner(child, seen)
        if isinstance(term, Product):
            index = coordinates(child)
            inside = {o for f in term.factors for a in leaves(f) if not a.fixed for o in a.within}
            for name in inside & set(index):
                if bool((index[name] < 0).any()):
                    raise SymmetryError(f"'{name}' is missing, or stands twice, on part of the factor '{child}'")
            seen = seen | set(index)
