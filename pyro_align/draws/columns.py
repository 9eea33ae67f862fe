"""Draws in columns: ``mu[1]``, ``mu[2]`` in a table, ``mu.1`` in the files that Stan writes.

Columns of one name are joined to one array. What a table calls a chain, an iteration or a draw, and what Stan says of
its sampler (names that end in ``__``), are no parameters.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from pyro_align.draws.shapes import Array, as_tensor, shortest

_BRACKETS = re.compile(r"^(?P<name>.+)\[(?P<index>\d+(?:\s*,\s*\d+)*)\]$")
_DOTS = re.compile(r"^(?P<name>[^.]+(?:\.[^.\d][^.]*)*)\.(?P<index>\d+(?:\.\d+)*)$")
_CHAIN = ("chain__", ".chain", "chain")
_COUNTERS = (*_CHAIN, "iter__", "draw__", ".iteration", ".draw", "iteration", "draw")


def is_stan_csv(value: Any) -> bool:
    """Whether a value is the path of a CSV file."""
    return isinstance(value, str | os.PathLike) and os.fspath(value).endswith(".csv")


def read_stan_csv(paths: Sequence[str | os.PathLike[str]]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The draws of files that Stan wrote, one chain each: as :func:`read_table` gives them."""
    tables = [pd.read_csv(path, comment="#") for path in paths]
    least = shortest([len(t) for t in tables])
    return read_table(pd.concat([t.iloc[:least].assign(chain__=k) for k, t in enumerate(tables)]))


def read_table(table: pd.DataFrame) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """A table with a row for each draw; its chains are told by a column ``chain__``, ``.chain`` or ``chain``.

    Returns:
        Parameter -> ``(chain, draw, *shape)``, and which draws diverged, ``(chain, draw)`` bool.
    """
    by = next((c for c in _CHAIN if c in table.columns), None)
    parts = [table] if by is None else [part for _, part in table.groupby(by, sort=True)]
    least = shortest([len(p) for p in parts])
    names = [str(c) for c in table.columns if c not in _COUNTERS and not str(c).endswith("__")]
    arrays = {n: np.stack([np.asarray(p[n])[:least] for p in parts]) for n in names}
    divergent = np.zeros((len(parts), least), bool)
    if "divergent__" in table.columns:
        divergent = np.stack([np.asarray(p["divergent__"])[:least] > 0 for p in parts])
    return join_columns(arrays), divergent


def join_columns(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """``mu[1]``, ``mu[2]`` ... joined to ``mu``, with the axes of the indices last; everything else as it is."""
    found: dict[str, dict[tuple[int, ...], str]] = {}
    for column in arrays:
        match = _BRACKETS.match(column) or _DOTS.match(column)
        if match and match["name"] not in arrays:
            index = tuple(int(i) for i in re.split(r"[,.]", match["index"]))
            found.setdefault(match["name"], {})[index] = column
    out = {k: v for k, v in arrays.items() if not any(k in columns.values() for columns in found.values())}
    for name, columns in found.items():
        out[name] = _joined(name, columns, arrays)
    return out


def _joined(name: str, columns: Mapping[tuple[int, ...], str], arrays: Mapping[str, Array]) -> np.ndarray:
    ranks = {len(index) for index in columns}
    if len(ranks) > 1:
        raise ValueError(f"the columns of '{name}' have different numbers of indices: {sorted(columns.values())}")
    first = min(min(index) for index in columns)
    shape = tuple(max(index[i] for index in columns) + 1 - first for i in range(ranks.pop()))
    places = {tuple(i - first for i in index): column for index, column in columns.items()}
    missing = [place for place in np.ndindex(*shape) if place not in places]
    if missing:
        lost = [f"{name}[{','.join(str(i + first) for i in place)}]" for place in missing[:5]]
        raise ValueError(f"the columns of '{name}' lack {', '.join(lost)}")
    parts = [as_tensor(arrays[places[place]]).numpy() for place in np.ndindex(*shape)]
    return np.stack(parts, -1).reshape(*parts[0].shape, *shape)


def join_variables(posterior: xr.Dataset) -> xr.Dataset:
    """The same for the variables of a posterior group; it is returned as it is where there is nothing to join."""
    plain = {str(k): v for k, v in posterior.data_vars.items() if set(v.dims) == {"chain", "draw"}}
    flat = {k: v for k, v in plain.items() if _BRACKETS.match(k) and _BRACKETS.match(k)["name"] not in posterior}
    if not flat:
        return posterior
    joined = join_columns({k: v.transpose("chain", "draw").values for k, v in flat.items()})
    dims = {n: ("chain", "draw", *(f"{n}_dim_{i}" for i in range(a.ndim - 2))) for n, a in joined.items()}
    return posterior.drop_vars(list(flat)).assign({n: (dims[n], a) for n, a in joined.items()})
