"""Sites that change places as wholes, as one site: stacked along a new first axis, which an atom may permute.

``loc_0, loc_1, loc_2`` are stacked as ``loc_*`` of shape ``(3, *site_shape)``. A symmetry over the stack is over its
members: values go in and come out by their own names. A stack of one gives a single number an axis that has a sign.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import takewhile
from typing import Any, TypeVar

import torch
from torch import Tensor

from pyro_align.errors import SymmetryError

Stacks = Mapping[str, tuple[str, ...]]  # stacked site -> its members, in the order of its first axis
_T = TypeVar("_T")


def stack_name(members: Sequence[str], taken: Iterable[str]) -> str:
    """A name for a stack: what its members' names have in common.

    Example:
        >>> stack_name(["experts.0.weight", "experts.1.weight"], ())
        'experts.*.weight'
        >>> stack_name(["mean", "other"], ())
        'mean & other'
    """
    start = _common_start(members)
    end = _common_start([m[len(start) :][::-1] for m in members])[::-1]
    name = f"{start}*{end}" if start or end else " & ".join(members)
    return name if name not in taken else " & ".join(members)


def refused(stacks: Stacks) -> str:
    """What the sites of some stacks do, and how to find a symmetry in which they do not: for messages."""
    moved = "; ".join(", ".join(members) for members in stacks.values())
    if all(len(members) == 1 for members in stacks.values()):
        return f"{moved} changes sign with other sites: use a symmetry that was found without signs=True"
    return f"{moved} change places as wholes: use a symmetry that was found without whole_sites=True"


def _common_start(names: Sequence[str]) -> str:
    alike = takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    return "".join(letters[0] for letters in alike)


def stacked(values: Mapping[str, _T], stacks: Stacks, join: Callable[[list[_T]], _T]) -> dict[str, _T]:
    """The values with the members of each stack joined; stacks of which no member is there are left out."""
    owner = {member: name for name, members in stacks.items() for member in members}
    out: dict[str, _T] = {}
    for site, value in values.items():
        name = owner.get(site)
        if name is None:
            out[site] = value
        elif name not in out:
            if missing := [m for m in stacks[name] if m not in values]:
                raise SymmetryError(f"site '{site}' may change places with {missing}, which are missing: give all")
            out[name] = join([values[m] for m in stacks[name]])
    return out


def stack_tensors(values: Mapping[str, Tensor], stacks: Stacks, batch_dims: int = 0) -> dict[str, Tensor]:
    """Tensors ``(*batch, *site_shape)`` with the members of each stack as one, ``(*batch, members, *site_shape)``."""
    return stacked(values, stacks, lambda parts: torch.stack(parts, batch_dims)) if stacks else dict(values)


def unstacked(values: Mapping[str, Any], stacks: Stacks, batch_dims: int = 0) -> dict[str, Any]:
    """The values of the members by their own names."""
    out = {}
    for site, value in values.items():
        parts = value.unbind(batch_dims) if site in stacks else (value,)
        out.update(zip(stacks.get(site, (site,)), parts, strict=True))
    return out
