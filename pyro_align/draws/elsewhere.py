"""Draws that no Pyro model made: relabeled as xarray objects, by a symmetry that is written down."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pyro_align.errors import FormatError

if TYPE_CHECKING:
    from pyro_align.axes import AxisLike
    from pyro_align.symmetry.group import Symmetry
    from pyro_align.symmetry.spec import SymmetrySpec


def relabel(dataset: Any, symmetry: Symmetry | SymmetrySpec | Mapping[str, Any], **options: Any) -> Any:
    """The draws of an xarray object relabeled, as another of the same kind.

    Short for ``align_draws(dataset, symmetry, ...).to_arviz()``.

    Args:
        dataset: ``Dataset`` with the dims ``chain`` and ``draw``, ``InferenceData`` or ``DataTree``.
        symmetry: A symmetry, or variable -> its axes as for a ``SymmetrySpec``.
        options: Those of :func:`align_draws`.

    Raises:
        SymmetryError: The symmetry does not fit the draws.
        ValueError: The draws have no chains and draws, or an option is out of range.

    Example:
        >>> import numpy as np, xarray as xr
        >>> from pyro_align.draws import relabel
        >>> loc = np.array([[[0.0, 5.0], [5.1, 0.2]]])
        >>> relabel(xr.Dataset({"loc": (("chain", "draw", "k"), loc)}), {"loc": ("k",)})["loc"].values.tolist()
        [[[0.0, 5.0], [0.2, 5.1]]]
    """
    from pyro_align.draws.align import align_draws  # inside: whoever only imports this waits for no PyTorch
    from pyro_align.symmetry.spec import SymmetrySpec

    if isinstance(symmetry, Mapping):
        symmetry = SymmetrySpec(symmetry)
    return align_draws(dataset, symmetry, **options).to_arviz()


def read_symmetry(path: str | os.PathLike[str]) -> SymmetrySpec:
    """A symmetry from a JSON file: ``{"axes": {"mu": ["k"], "w1": ["±unit", null]}, "within": {}}``.

    An axis is a name, ``"±name"`` where its values change sign with their units, null or a number where the order is
    kept, ``{"product": [...]}`` or ``{"sum": [...]}``.

    Raises:
        FormatError: The file is no such JSON.
    """
    from pyro_align.symmetry.spec import SymmetrySpec

    try:
        with open(path, encoding="utf-8") as file:
            given = json.load(file)
        axes = {site: tuple(_axis(a) for a in terms) for site, terms in given["axes"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(
            f"'{os.fspath(path)}' is no symmetry: {type(error).__name__}: {error}. Expected "
            '{"axes": {"variable": ["name", null, ...]}}'
        ) from error
    return SymmetrySpec(axes, within=given.get("within"), scope=given.get("scope", "joint"))


def _axis(given: Any) -> AxisLike:
    from pyro_align.axes import Odd, Product, Sum

    if isinstance(given, dict) and set(given) <= {"product", "sum"} and len(given) == 1:
        ((kind, parts),) = given.items()
        return (Product if kind == "product" else Sum)(*(_axis(p) for p in parts))
    if isinstance(given, str) and given.startswith("±"):
        return Odd(given[1:])
    if given is None or isinstance(given, str | int):
        return given
    raise TypeError(f"an axis is a name, null, a number, a product or a sum; got {given!r}")
