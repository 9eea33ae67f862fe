"""Relabeled draws written to a Zarr store, a slice at a time: they need not fit into memory.

Zarr is imported by xarray, here and where draws are opened, and nowhere else.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from pyro_align.axes import leaves
from pyro_align.draws.shapes import as_tensor
from pyro_align.files import whole_folder

if TYPE_CHECKING:
    from pyro_align.draws.result import AlignedDraws

_SLICE = 1 << 20  # numbers in one slice of a group
_OF_THE_OLD_STORE = ("chunks", "preferred_chunks", "compressor", "compressors", "filters", "shards", "serializer")


def write_draws(aligned: AlignedDraws, path: str | os.PathLike[str]) -> None:
    """See :meth:`AlignedDraws.to_zarr`."""
    with whole_folder(path) as folder:  # a store cut short would read as one of fewer draws
        unfinished = os.fspath(folder)
        for k, (group, dataset) in enumerate(_groups(aligned).items()):
            if k == 0 and group is not None:
                given = aligned.source.original
                known = isinstance(given, xr.DataTree) or hasattr(given, "groups")
                attrs = dict(getattr(given, "attrs", {})) if known else {}
                xr.Dataset(attrs=attrs).to_zarr(unfinished, mode="w", consolidated=False)
            for n, part in enumerate(_parts(aligned, group, dataset)):
                _append(part, unfinished, group, first=n == 0)
        _consolidate(unfinished)


def _groups(aligned: AlignedDraws) -> dict[str | None, xr.Dataset | None]:
    """Group -> its data as they are, unread; None for a posterior that was not given as xarray."""
    given = aligned.source.original
    if isinstance(given, xr.Dataset):
        return {None: given}
    if isinstance(given, xr.DataTree):
        nodes = {node.path.strip("/"): node.to_dataset(inherit=False) for node in given.subtree}
        return {name: dataset for name, dataset in nodes.items() if name}
    if hasattr(given, "groups") and hasattr(given, "posterior"):  # InferenceData
        return {name: given[name] for name in given.groups()}
    return {"posterior": None, "sample_stats": sample_stats(aligned)}


def sample_stats(aligned: AlignedDraws) -> xr.Dataset:
    """What is known of each draw beside its values."""
    stats = {
        "diverging": (("chain", "draw"), aligned.source.divergent),
        "relabeled": (("chain", "draw"), aligned.relabeled),
    }
    if aligned.log_joint is not None:
        stats["lp"] = (("chain", "draw"), aligned.log_joint)
    return xr.Dataset(stats, counted(aligned.source.shape))


def counted(shape: tuple[int, int], start: int = 0) -> dict[str, np.ndarray]:
    """Coordinates of chains and draws that are numbered."""
    return {"chain": np.arange(shape[0]), "draw": np.arange(start, start + shape[1])}


def plain_part(arrays: Mapping[str, Any], start: int, stop: int) -> xr.Dataset:
    """Draws ``start`` to ``stop`` of arrays ``(chain, draw, *site_shape)``."""
    variables, chains = {}, 0
    for name, array in arrays.items():
        value = as_tensor(array[:, start:stop]).numpy()
        chains = len(value)
        variables[name] = (("chain", "draw", *(f"{name}_dim_{i}" for i in range(value.ndim - 2))), value)
    return xr.Dataset(variables, counted((chains, stop - start), start))


def _parts(aligned: AlignedDraws, group: str | None, dataset: xr.Dataset | None) -> Iterator[xr.Dataset]:
    """The group in slices of draws, its sites relabeled if it is the posterior."""
    if dataset is None:
        draws, numel = aligned.source.shape[1], sum(int(np.prod(s)) for s in aligned.source.shapes.values())
        numel *= aligned.source.shape[0]
    else:
        draws = dataset.sizes.get("draw", 0)
        numel = sum(v.size // max(1, draws) for v in dataset.variables.values() if "draw" in v.dims)
    step, stacks = min(max(1, _SLICE // max(1, numel)), draws), aligned.symmetry.stacks
    for start in range(0, max(1, draws), max(1, step)):
        stop = min(start + step, draws)
        if dataset is None:
            part = plain_part(aligned.draws if stacks else aligned.source.arrays, start, stop)
        else:
            part = (dataset.isel(draw=slice(start, stop)) if draws else dataset).copy().load()
        if group in (None, "posterior") and not stacks:
            part = relabeled_part(aligned, part, start, stop)
        for variable in part.variables.values():
            variable.encoding = {k: v for k, v in variable.encoding.items() if k not in _OF_THE_OLD_STORE}
            if "draw" in variable.dims:  # later slices are added along draws, whole chunks at a time
                sizes = {"chain": 1, "draw": max(1, step)}
                variable.encoding["chunks"] = tuple(sizes.get(d, n) for d, n in variable.sizes.items())
        yield part


def relabeled_part(aligned: AlignedDraws, part: xr.Dataset, start: int, stop: int) -> xr.Dataset:
    """Draws ``start`` to ``stop`` of the posterior, in memory, relabeled.

    Coordinates that name units are left out: the unit that a name stood for is no longer at its place.
    """
    changed, dims = {}, set()
    for site in aligned.carried.moved:
        given = part[site].transpose("chain", "draw", ...)
        value = np.empty(given.shape, given.dtype)
        for chain in range(len(value)):
            own = as_tensor(given[chain]).reshape(-1, *aligned.source.shapes[site])  # without plates of one
            moved = aligned.relabel({site: own}, chain, slice(start, stop))
            value[chain] = moved[site].numpy().reshape(value[chain].shape)
        changed[site] = given.copy(data=value).transpose(*part[site].dims)
        names, terms = aligned.source.dims.get(site, ()), aligned.carried.symmetry.sites.get(site, ())
        for dim, term in zip(names, terms, strict=False):
            if any(a.name in aligned.symmetry.atoms for a in leaves(term)):
                dims.add(dim)
    return part.assign(changed).drop_vars([n for n, c in part.coords.items() if dims & set(c.dims) and not _numbers(c)])


def _numbers(coordinate: xr.DataArray) -> bool:
    """Whether a coordinate only counts the places of its dim."""
    values = coordinate.values
    return values.ndim == 1 and values.dtype.kind in "iu" and bool((values == np.arange(len(values)) + values[0]).all())


def _append(part: xr.Dataset, path: str, group: str | None, *, first: bool) -> None:
    if first:
        part.to_zarr(path, group=group, mode="w", consolidated=False)
        return
    part = part.drop_vars([name for name, v in part.variables.items() if "draw" not in v.dims])
    for variable in part.variables.values():
        variable.encoding = {}  # that of the array is kept
    part.to_zarr(path, group=group, append_dim="draw", consolidated=False)


def _consolidate(path: str) -> None:
    """One file of metadata for the whole store: xarray looks for it first, and warns where there is none."""
    import zarr

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Zarr 3: not yet part of the format's specification
        zarr.consolidate_metadata(path)
