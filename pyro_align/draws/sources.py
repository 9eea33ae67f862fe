"""Where draws come from: what every source offers is slices of draws, site by site.

Only names and shapes matter. Arrays are read a slice at a time, so they may lie on disk (Zarr, netCDF).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import xarray as xr
from pyro.infer import MCMC
from torch import Tensor, nn

from pyro_align.errors import GuideError
from pyro_align.guides import Posterior, read_guide

Array = Any  # a torch.Tensor, a numpy array or an xarray.DataArray, (chain, draw, *site_shape)


@dataclass(frozen=True, eq=False)
class Source:
    """Draws in chains.

    Attributes:
        arrays: Site -> ``(chain, draw, *site_shape)``.
        divergent: Which draws the sampler marked as divergent, ``(chain, draw)`` bool.
        model: ``(model, args, kwargs)`` where the source knows it.
        original: What the user gave.
        members: The posteriors of an ensemble of guides, or None.
        dims: Site -> names of the site's own dims, where they have names.
    """

    arrays: Mapping[str, Array]
    divergent: np.ndarray
    model: tuple[Callable, tuple, Mapping[str, Any]] | None = None
    original: Any = None
    members: tuple[Posterior, ...] | None = None
    dims: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of chains and of draws per chain."""
        return self.divergent.shape

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Site -> shape of one draw."""
        return {name: tuple(a.shape[2:]) for name, a in self.arrays.items()}

    def read(self, site: str, chain: int, draws: slice) -> Tensor:
        """Draws of one site in one chain, ``(units, *site_shape)``."""
        value = self.arrays[site][chain, draws]
        if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
            raise ValueError(f"site '{site}': draws are masked; fill them, or leave the site out, before relabeling")
        return as_tensor(value)

    def slices(self, size: int) -> list[tuple[int, slice]]:
        """All draws as ``(chain, slice)`` of at most ``size`` draws each."""
        chains, draws = self.shape
        return [(c, slice(lo, min(lo + size, draws))) for c in range(chains) for lo in range(0, draws, size)]


def as_tensor(value: Array) -> Tensor:
    """A detached CPU tensor of whatever kind of array."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    value = np.asarray(value)
    return torch.from_numpy(np.array(value) if not value.flags.writeable else np.ascontiguousarray(value))


def read_draws(draws: Any) -> Source:
    """Reads a dict, a finished ``MCMC``, an ArviZ object, a file of one, or a list of guides or state dicts.

    Raises:
        TypeError: It is none of these.
        ValueError: Shapes disagree, or the run is not finished.
    """
    if isinstance(draws, Source):
        return draws
    if isinstance(draws, MCMC):
        return _read_mcmc(draws)
    if isinstance(draws, str | os.PathLike):
        draws = open_draws(draws)
    posterior = _posterior_group(draws)
    if posterior is not None:
        return _read_arviz(draws, posterior)
    if isinstance(draws, Mapping):
        return _read_mapping(draws)
    if isinstance(draws, Sequence) and not isinstance(draws, bytes):
        return _read_ensemble(draws)
    raise TypeError(
        f"expected a dict of draws (chain, draw, *site), a finished MCMC, InferenceData, DataTree, the path of a "
        f"Zarr store or netCDF file, or a list of guides or state dicts; got {type(draws).__name__}"
    )


def open_draws(path: str | os.PathLike) -> xr.DataTree | xr.Dataset:
    """The draws in a Zarr store or netCDF file, unread: a tree with a ``posterior`` group, or one data set.

    Raises:
        FileNotFoundError: There is nothing there.
        ValueError: There is no posterior, or what is there was not written by xarray or ArviZ.
    """
    name = os.fspath(path)
    if "://" not in name and not os.path.exists(name):
        raise FileNotFoundError(f"there is no Zarr store or netCDF file '{name}'")
    options = {"engine": "h5netcdf"} if os.path.isfile(name) else {"engine": "zarr", "consolidated": False}
    try:
        tree = xr.open_datatree(name, **options)
    except (KeyError, ValueError) as e:
        raise ValueError(
            f"'{name}' was not written by xarray or ArviZ: its arrays do not name their dims. Give the arrays "
            "themselves, site -> (chain, draw, *site_shape): align_draws(dict(zarr.open_group(path).arrays()), ...)"
        ) from e
    if "posterior" in tree.children:
        return tree
    root = tree.to_dataset()
    if {"chain", "draw"} <= set(root.dims):
        return root
    raise ValueError(
        f"'{name}' has no group 'posterior', and no dims 'chain' and 'draw' at its root; it has the groups "
        f"{list(tree.children)}"
    )


def _read_mapping(draws: Mapping[str, Any]) -> Source:
    arrays = {}
    for name, value in draws.items():
        if isinstance(value, list | tuple):
            value = _stack_chains(name, value)
        if not isinstance(value, Tensor | np.ndarray | xr.DataArray) and not hasattr(value, "shape"):
            raise TypeError(f"site '{name}': expected an array (chain, draw, *site_shape), got {type(value).__name__}")
        if len(value.shape) < 2:
            raise ValueError(
                f"site '{name}': expected shape (chain, draw, *site_shape), got {tuple(value.shape)}; "
                "a single chain needs a leading axis: value[None]"
            )
        arrays[name] = value
    if not arrays:
        raise ValueError("got no draws: the dict is empty")
    lead = {name: tuple(a.shape[:2]) for name, a in arrays.items()}
    first = next(iter(lead.values()))
    for name, given in lead.items():
        if given != first:
            raise ValueError(
                f"site '{name}': {given[0]} chains of {given[1]} draws, but '{next(iter(lead))}' has {first[0]} of "
                f"{first[1]}; every site needs the same chains and draws (chain, draw, *site_shape)"
            )
    if 0 in first:
        raise ValueError(f"got no draws: {first[0]} chains of {first[1]} draws")
    return Source(arrays, np.zeros(first, bool), original=draws)


def _stack_chains(name: str, chains: Sequence[Array]) -> Array:
    shapes = [tuple(np.shape(c)) for c in chains]
    if len(set(shapes)) != 1:
        raise ValueError(
            f"site '{name}': the chains have shapes {shapes}; cut them to the same number of draws, chain[:shortest]"
        )
    return torch.stack([as_tensor(c) for c in chains])


def _read_mcmc(mcmc: MCMC) -> Source:
    if getattr(mcmc, "_samples", None) is None:
        raise ValueError("the MCMC has not been run: call mcmc.run(...) first")
    arrays = mcmc.get_samples(group_by_chain=True)
    source = _read_mapping(arrays)
    divergent = np.zeros(source.shape, bool)
    for chain, found in enumerate(mcmc._diagnostics):
        divergent[chain, list((found or {}).get("divergences", ()))] = True
    model = getattr(mcmc.kernel, "model", None)
    known = None if model is None else (model, tuple(mcmc._args), dict(mcmc._kwargs))
    return Source(arrays, divergent, known, mcmc)


def _posterior_group(draws: Any) -> xr.Dataset | None:
    """The posterior of InferenceData or DataTree, or a Dataset itself; told apart by what they offer."""
    if isinstance(draws, xr.Dataset):
        return draws
    if isinstance(draws, nn.Module | Mapping) and not hasattr(draws, "posterior"):
        return None
    group = getattr(draws, "posterior", None)
    if group is None or not hasattr(group, "data_vars"):
        return None
    return group if isinstance(group, xr.Dataset) else group.to_dataset()


def _read_arviz(draws: Any, posterior: xr.Dataset) -> Source:
    missing = {"chain", "draw"} - set(posterior.dims)
    if missing:
        raise ValueError(f"the posterior group has no dim {sorted(missing)}; it has {list(posterior.dims)}")
    arrays, dims = {}, {}
    for name, variable in posterior.data_vars.items():
        if {"chain", "draw"} <= set(variable.dims):
            arrays[name] = variable.transpose("chain", "draw", ...)
            dims[name] = arrays[name].dims[2:]
    stats = getattr(draws, "sample_stats", None)
    divergent = np.zeros((posterior.sizes["chain"], posterior.sizes["draw"]), bool)
    if stats is not None and "diverging" in stats:
        divergent = np.asarray(stats["diverging"].transpose("chain", "draw"), bool)
    return Source(arrays, divergent, original=draws, dims=dims)


def _read_ensemble(members: Sequence[Any]) -> Source:
    if not members:
        raise ValueError("got no draws: the list is empty")
    if all(isinstance(m, Mapping) for m in members):
        return _read_state_dicts(members)
    posteriors = tuple(read_guide(m) for m in members)
    for other in posteriors[1:]:
        posteriors[0].check_compatible(other)
    try:
        locations = [p.features("means", "moving") for p in posteriors]
    except GuideError:
        locations = [p.features(p.divergences[0], "moving") for p in posteriors]
    arrays = {k: torch.stack([m[k][0] for m in locations]).unsqueeze(0) for k in posteriors[0].sites}
    return Source(arrays, np.zeros((1, len(posteriors)), bool), original=members, members=posteriors)


def _read_state_dicts(members: Sequence[Mapping[str, Any]]) -> Source:
    names = list(members[0])
    for k, member in enumerate(members):
        if set(member) != set(names):
            raise ValueError(f"member {k}: keys {sorted(set(member) ^ set(names))} are not common to all state dicts")
        for name in names:
            if np.shape(member[name]) != np.shape(members[0][name]):
                raise ValueError(
                    f"member {k}, '{name}': shape {tuple(np.shape(member[name]))}, in member 0 "
                    f"{tuple(np.shape(members[0][name]))}"
                )
    arrays = {n: torch.stack([as_tensor(m[n]) for m in members]).unsqueeze(0) for n in names}
    return Source(arrays, np.zeros((1, len(members)), bool), original=members)
