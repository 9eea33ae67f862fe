"""Arrays of draws brought to ``(chain, draw, *site_shape)`` from the shapes that samplers and people give them.

The rule: a site's own axes come last, and the symmetry says how many they are. One axis before them is a chain's draws,
as in ``MCMC.get_samples()``; two are chains and draws. Further axes of size one between them are plates of one and are
dropped. Where that can be read in two ways it is refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_align.errors import DiagnosticWarning

Array = Any  # a torch.Tensor, a numpy array or an xarray.DataArray, (chain, draw, *site_shape); it may lie on disk
Ranks = Mapping[str, int]  # site of the symmetry -> number of its own axes


def as_tensor(value: Array) -> Tensor:
    """A detached CPU tensor of whatever kind of array."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    value = np.asarray(value)
    return torch.from_numpy(np.array(value) if not value.flags.writeable else np.ascontiguousarray(value))


def by_chain_and_draw(arrays: Mapping[str, Array], ranks: Ranks) -> dict[str, Array]:
    """Every array with the axes ``(chain, draw, *site_shape)``; those that have them already are passed on unread."""
    if not arrays:
        raise ValueError("got no draws: the dict is empty")
    arrays = {name: _array(name, value) for name, value in arrays.items()}
    lead = leading_axes({n: tuple(a.shape) for n, a in arrays.items()}, ranks)
    out = {name: _trimmed(array, lead, ranks.get(name)) for name, array in arrays.items()}
    sizes = {name: tuple(a.shape[:2]) for name, a in out.items()}
    first, shape = next(iter(sizes.items()))
    for name, given in sizes.items():
        if given != shape:
            raise ValueError(
                f"site '{name}': {given[0]} chains of {given[1]} draws, but '{first}' has {shape[0]} of {shape[1]}; "
                "every site needs the same chains and draws (chain, draw, *site_shape)"
            )
    if 0 in shape:
        raise ValueError(f"got no draws: {shape[0]} chains of {shape[1]} draws")
    return out


def leading_axes(shapes: Mapping[str, tuple[int, ...]], ranks: Ranks) -> int:
    """How many axes come before the sites' own: 1 (draws) or 2 (chains and draws)."""
    known = {name: shape for name, shape in shapes.items() if name in ranks}
    if not known:
        return 2
    fits = [lead for lead in (1, 2) if all(_fits(shape, lead, ranks[name]) for name, shape in known.items())]
    if fits == [1, 2] and all(shape[:2] == (1, 1) for shape in known.values()):
        return 2
    name, shape = next(iter(known.items()))
    if len(fits) == 2:
        raise ValueError(
            f"site '{name}': shape {shape} can be read as {shape[0]} chains of one draw, or as {shape[0]} draws in a "
            "plate of one. Give the second as value[None] and the first with more than one draw in a chain"
        )
    if not fits:
        wrong = [n for n, s in known.items() if not any(_fits(s, lead, ranks[n]) for lead in (1, 2))]
        name = wrong[0] if wrong else name
        raise ValueError(
            f"site '{name}': expected shape (chain, draw, *site_shape), or (draw, *site_shape) for one chain, and the "
            f"symmetry gives the site itself {ranks[name]} axes; got {dict(known)}"
        )
    return fits[0]


def _fits(shape: tuple[int, ...], lead: int, rank: int) -> bool:
    plates = len(shape) - rank - lead
    return plates >= 0 and all(n == 1 for n in shape[lead : lead + plates])


def _trimmed(array: Array, lead: int, rank: int | None) -> Array:
    shape = tuple(array.shape)
    own = shape[lead:] if rank is None else shape[len(shape) - rank :]
    wanted = (*((1,) if lead == 1 else ()), *shape[:lead], *own)
    if wanted == shape:
        return array
    return array.reshape(wanted) if isinstance(array, Tensor) else np.asarray(array).reshape(wanted)


def _array(name: str, value: Any) -> Array:
    if isinstance(value, list | tuple):
        shapes = {np.shape(_plain(chain)) for chain in value}
        if len(shapes) > 1:
            return stack_chains(name, [as_tensor(_plain(chain)) for chain in value])
        value = torch.stack([as_tensor(_plain(chain)) for chain in value]) if value else np.zeros(0)
    if not hasattr(value, "shape"):
        raise TypeError(f"site '{name}': expected an array (chain, draw, *site_shape), got {type(value).__name__}")
    if len(value.shape) < 1:
        raise ValueError(f"site '{name}': expected shape (chain, draw, *site_shape), got a single number")
    return value


def _plain(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else np.asarray(value)


def stack_chains(name: str, chains: Sequence[Array]) -> Tensor:
    """Chains ``(draw, *site_shape)`` side by side, cut to the shortest with a warning."""
    if len({tuple(c.shape[1:]) for c in chains}) > 1:
        raise ValueError(f"site '{name}': the chains have shapes {[tuple(c.shape) for c in chains]}")
    return torch.stack([as_tensor(c)[: shortest([len(c) for c in chains])] for c in chains])


def shortest(lengths: Sequence[int]) -> int:
    """The length that all chains have; the shortest, with a warning, where they differ."""
    least = min(lengths)
    if max(lengths) > least:
        warnings.warn(
            f"the chains have {', '.join(str(n) for n in lengths)} draws; all are cut to the first {least}",
            DiagnosticWarning,
            stacklevel=2,
        )
    return least


def side_by_side(runs: Sequence[Mapping[str, Array]], what: str = "run") -> dict[str, Tensor]:
    """Several runs ``(chain, draw, *site_shape)`` as one with the chains of all."""
    names = list(runs[0])
    for k, run in enumerate(runs):
        if set(run) != set(names):
            raise ValueError(f"{what} {k}: the sites {sorted(set(run) ^ set(names))} are not common to all {what}s")
        for name in names:
            if tuple(run[name].shape[2:]) != tuple(runs[0][name].shape[2:]):
                raise ValueError(
                    f"{what} {k}, '{name}': shape {tuple(run[name].shape[2:])}, in {what} 0 "
                    f"{tuple(runs[0][name].shape[2:])}"
                )
    least = shortest([run[names[0]].shape[1] for run in runs])
    return {name: torch.cat([as_tensor(run[name][:, :least]) for run in runs]) for name in names}
