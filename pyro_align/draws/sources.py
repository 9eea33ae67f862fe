"""Where draws come from: what every source offers is slices of draws, site by site.

Only names and shapes matter. Arrays are read a slice at a time, so they may lie on disk (Zarr, netCDF).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor, nn

from pyro_align.draws.columns import is_stan_csv, join_columns, join_variables, read_stan_csv, read_table
from pyro_align.draws.shapes import Array, Ranks, as_tensor, by_chain_and_draw, side_by_side
from pyro_align.errors import GuideError
from pyro_align.symmetry.stacks import Stacks, stacked

if TYPE_CHECKING:
    from pyro_align.guides import Posterior

_SLICE = 1 << 20  # numbers read at a time


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
    model: tuple[Callable[..., Any], tuple[Any, ...], Mapping[str, Any]] | None = None
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

    def stacked(self, stacks: Stacks) -> Source:
        """The same draws with the sites that change places as wholes as one, beside no original and no members.

        Raises:
            GuideError: The draws are posteriors.
        """
        if not stacks:
            return self
        if self.members is not None:
            raise GuideError(
                "sites that change places as wholes: align posteriors by align or align_many, or give their draws"
            )
        arrays = stacked(self.arrays, stacks, lambda parts: torch.stack([as_tensor(p[:]) for p in parts], 2))
        return replace(self, arrays=arrays, original=None, dims={k: v for k, v in self.dims.items() if k in arrays})

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

    def site_slices(self, site: str) -> list[tuple[int, slice]]:
        """All draws as ``(chain, slice)``, as many of one site's at a time as are held in memory."""
        return self.slices(max(1, _SLICE // max(1, math.prod(self.shapes[site]))))


def read_draws(draws: Any, ranks: Ranks | None = None) -> Source:
    """Reads draws of whatever kind :func:`align_draws` takes.

    Args:
        ranks: Site of the symmetry -> number of its own axes, by which the axes of draws are told from them.
    """
    ranks = ranks or {}
    if isinstance(draws, Source):
        return draws
    if _is_mcmc(draws):
        return _read_mcmc(draws, ranks)
    if hasattr(draws, "draws_xr"):  # CmdStanMCMC
        draws = draws.draws_xr(inc_warmup=False)
    if is_stan_csv(draws):
        return _read_columns(*read_stan_csv([draws]), ranks)
    if isinstance(draws, str | os.PathLike):
        draws = open_draws(draws)
    posterior = _posterior_group(draws)
    if posterior is not None:
        return _read_arviz(draws, posterior, ranks)
    if isinstance(draws, pd.DataFrame):
        return _read_columns(*read_table(draws), ranks)
    if isinstance(draws, Mapping):
        return _read_mapping(draws, ranks)
    if isinstance(draws, Sequence) and not isinstance(draws, bytes):
        return _read_list(draws, ranks)
    raise TypeError(
        f"expected a dict of draws (chain, draw, *site) or (draw, *site), a finished MCMC, InferenceData, DataTree, a "
        f"table, the path of a Zarr store, netCDF file or Stan CSV file, or a list of chains, guides or state dicts; "
        f"got {type(draws).__name__}"
    )


def open_draws(path: str | os.PathLike[str]) -> xr.DataTree | xr.Dataset:
    """The draws in a Zarr store or netCDF file, unread: a tree with a ``posterior`` group, or one data set."""
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


def _read_mapping(draws: Mapping[str, Any], ranks: Ranks) -> Source:
    named = {k: v for k, v in draws.items() if isinstance(v, xr.DataArray) and {"chain", "draw"} <= set(v.dims)}
    named = {k: v.transpose("chain", "draw", ...) for k, v in named.items()}
    arrays = by_chain_and_draw(join_columns({**draws, **named}), ranks)
    dims = {k: tuple(map(str, v.dims[2:])) for k, v in named.items() if arrays[k] is v}
    return Source(arrays, np.zeros(next(iter(arrays.values())).shape[:2], bool), original=draws, dims=dims)


def _read_columns(arrays: Mapping[str, Any], divergent: np.ndarray, ranks: Ranks) -> Source:
    return Source(by_chain_and_draw(arrays, dict.fromkeys(set(ranks) - set(arrays), 0)), divergent)


def _is_mcmc(value: Any) -> bool:
    """Whether a value is a run of Pyro or NumPyro; neither is loaded to find out."""
    named = [(kind.__module__.partition(".")[0], kind.__name__) for kind in type(value).__mro__]
    return ("pyro", "MCMC") in named or _is_numpyro(value)


def _is_numpyro(draws: Any) -> bool:
    return type(draws).__module__.split(".")[0] == "numpyro" and hasattr(draws, "get_samples")


def _read_mcmc(mcmc: Any, ranks: Ranks) -> Source:
    if _is_numpyro(mcmc):
        arrays = {k: np.asarray(v) for k, v in mcmc.get_samples(group_by_chain=True).items()}
        found = mcmc.get_extra_fields(group_by_chain=True).get("diverging")
        arrays = by_chain_and_draw(arrays, ranks)
        shape = next(iter(arrays.values())).shape[:2]
        return Source(arrays, np.zeros(shape, bool) if found is None else np.asarray(found), original=mcmc)
    if getattr(mcmc, "_samples", None) is None:
        raise ValueError("the MCMC has not been run: call mcmc.run(...) first")
    arrays = by_chain_and_draw(mcmc.get_samples(group_by_chain=True), ranks)
    divergent = np.zeros(next(iter(arrays.values())).shape[:2], bool)
    for chain, found in enumerate(mcmc._diagnostics):
        divergent[chain, list((found or {}).get("divergences", ()))] = True
    model = getattr(mcmc.kernel, "model", None)
    known = None if model is None else (model, tuple(mcmc._args), dict(mcmc._kwargs))
    return Source(arrays, divergent, known, mcmc)


def _read_list(draws: Sequence[Any], ranks: Ranks) -> Source:
    """Chains given one by one, or the members of an ensemble."""
    if not draws:
        raise ValueError("got no draws: the list is empty")
    if all(is_stan_csv(d) for d in draws):
        return _read_columns(*read_stan_csv(draws), ranks)
    if all(isinstance(d, Mapping) for d in draws) and _are_members(draws, ranks):
        return _read_state_dicts(draws)
    if all(isinstance(d, Mapping | pd.DataFrame | xr.Dataset) or _is_mcmc(d) for d in draws):
        return _side_by_side([read_draws(d, ranks) for d in draws])
    return _read_guides(draws)


def _are_members(draws: Sequence[Mapping[str, Any]], ranks: Ranks) -> bool:
    """Whether each dict holds a single value of every site: a state dict, and no chain."""
    shapes = {k: np.shape(v) for k, v in draws[0].items() if k in ranks and not isinstance(v, list)}
    return all(len(shape) == ranks[k] for k, shape in shapes.items())


def _side_by_side(runs: Sequence[Source]) -> Source:
    arrays = side_by_side([run.arrays for run in runs])
    draws = next(iter(arrays.values())).shape[1]
    divergent = np.concatenate([run.divergent[:, :draws] for run in runs])
    return Source(arrays, divergent, runs[0].model, dims=runs[0].dims)


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


def _read_arviz(draws: Any, posterior: xr.Dataset, ranks: Ranks) -> Source:
    if "sample" in posterior.dims and {"chain", "draw"} <= set(posterior.coords):
        draws = posterior = posterior.unstack("sample")  # as az.extract stacks them
    missing = {"chain", "draw"} - set(posterior.dims)
    if missing:
        raise ValueError(f"the posterior group has no dim {sorted(missing)}; it has {list(posterior.dims)}")
    joined = join_variables(posterior)
    if joined is not posterior:
        draws = posterior = joined
    arrays, dims = {}, {}
    for name, variable in posterior.data_vars.items():
        if {"chain", "draw"} <= set(variable.dims):
            arrays[name] = _without_plates_of_one(variable.transpose("chain", "draw", ...), ranks.get(str(name)))
            dims[name] = tuple(map(str, arrays[name].dims[2:]))
    stats = getattr(draws, "sample_stats", None)
    divergent = np.zeros((posterior.sizes["chain"], posterior.sizes["draw"]), bool)
    if stats is not None and "diverging" in stats:
        divergent = np.asarray(stats["diverging"].transpose("chain", "draw"), bool)
    return Source(arrays, divergent, original=draws, dims=dims)


def _without_plates_of_one(variable: xr.DataArray, rank: int | None) -> xr.DataArray:
    extra = 0 if rank is None else max(0, variable.ndim - 2 - rank)
    plates = variable.dims[2 : 2 + extra]
    return variable.squeeze(plates, drop=True) if all(variable.sizes[d] == 1 for d in plates) else variable


def _read_guides(members: Sequence[Any]) -> Source:
    from pyro_align.guides import read_guide  # Pyro is loaded where guides are given

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
    runs = [{name: as_tensor(value)[None, None] for name, value in member.items()} for member in members]
    arrays = {name: value.transpose(0, 1) for name, value in side_by_side(runs, "member").items()}
    return Source(arrays, np.zeros((1, len(members)), bool), original=members)
