"""SymmetrySpec: a symmetry written by hand, whose sizes wait for the values that it meets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

from pyro_align.axes import Axis, AxisLike
from pyro_align.errors import SymmetryError
from pyro_align.symmetry.group import SCOPES, Symmetry
from pyro_align.symmetry.stacks import refused
from pyro_align.symmetry.terms import carrying, collect_atoms, fill_sizes, read_axes


@dataclass(frozen=True, init=False, eq=False)
class SymmetrySpec:
    """A hand-written symmetry without sizes: which axes of which sites are relabeled alike.

    Every verb that takes a :class:`Symmetry` takes a spec too, and binds it to the shapes of the model, guide or draws
    at hand.

    Args:
        axes: Site -> one entry per axis: an atom's name, None for an axis that keeps its order, a tuple for a product
            (last factor fastest), a list for a sum (concatenation); see :mod:`pyro_align.axes`.
        within: Nested atom -> the atoms it is nested in, outermost first.
        scope: ``"joint"`` (priors included) or ``"likelihood"``.

    Attributes:
        sites: Site -> one axis term per axis.

    Raises:
        SymmetryError: The terms contradict each other.

    Example:
        >>> spec = SymmetrySpec({"w1": ("hidden", None), "b1": ("hidden",), "w2": (None, "hidden")})
        >>> print(spec)
        SymmetrySpec (scope: joint, sizes open)
          w1: hidden | fixed ?
          b1: hidden
          w2: fixed ? | hidden
        >>> spec.bind({"w1": (5, 3), "b1": (5,), "w2": (2, 5)}).atoms["hidden"].size
        5
    """

    sites: Mapping[str, tuple[Axis, ...]]
    scope: str

    def __init__(
        self,
        axes: Mapping[str, Sequence[AxisLike]],
        *,
        within: Mapping[str, str | Sequence[str]] | None = None,
        scope: str = "joint",
    ):
        if scope not in SCOPES:
            raise SymmetryError(f"scope must be one of {SCOPES}, got {scope!r}")
        sites = read_axes(axes, within)
        collect_atoms(sites)
        object.__setattr__(self, "sites", MappingProxyType(sites))
        object.__setattr__(self, "scope", scope)

    def __reduce__(self) -> tuple[Any, ...]:  # read-only mappings cannot be pickled or copied
        return partial(SymmetrySpec, scope=self.scope), (dict(self.sites),)

    def bind(self, shapes: Mapping[str, Iterable[int]]) -> Symmetry:
        """The symmetry of values with these shapes.

        Sites of ``shapes`` that the spec does not name are left out of it: they are not relabeled.

        Raises:
            SymmetryError: A site is missing, or a term does not fit its axis.
        """
        return Symmetry(fill_sizes(self.sites, shapes), scope=self.scope)

    def __str__(self) -> str:
        lines = [f"  {site}: {' | '.join(map(str, terms)) or 'scalar'}" for site, terms in self.sites.items()]
        return "\n".join([f"SymmetrySpec (scope: {self.scope}, sizes open)", *lines])


def check_symmetry(symmetry: Any) -> None:
    """Raises a :class:`TypeError` unless it is a symmetry, with or without sizes."""
    if not isinstance(symmetry, Symmetry | SymmetrySpec):
        raise TypeError(f"expected a Symmetry or a SymmetrySpec, got {type(symmetry).__name__}")


def bound(
    symmetry: Symmetry | SymmetrySpec,
    shapes: Mapping[str, Iterable[int]],  # site -> shape
    *,
    of: str,  # what has the shapes, for messages: "guide", "draws"
    error: type[Exception] = SymmetryError,  # raised where a site is missing that carries a free atom
) -> Symmetry:
    """The symmetry of values with these shapes: a spec gets its sizes, a ``Symmetry`` is checked."""
    check_symmetry(symmetry)
    shapes = {site: tuple(shape) for site, shape in shapes.items()}
    stacks = symmetry.stacks if isinstance(symmetry, Symmetry) else {}
    if moved := sorted(set(stacks) & carrying(symmetry.sites) - set(shapes)):
        raise error(f"the {of} cannot follow this symmetry, as {refused({k: stacks[k] for k in moved})}")
    if missing := sorted(carrying(symmetry.sites) - set(shapes)):
        raise error(
            f"the symmetry relabels sites that the {of} does not have: {missing}; there are {sorted(shapes)}. All "
            "sites that carry the same units belong together. Was the symmetry found for this model?"
            + (" Parameters learned beside a guide are given as parameters=" if of == "guide" else "")
        )
    if isinstance(symmetry, SymmetrySpec):
        return symmetry.bind(shapes)
    for site, shape in symmetry.shapes.items():
        if site in shapes and shapes[site] != shape:
            raise SymmetryError(f"site '{site}': shape {shape} in the symmetry, {shapes[site]} in the {of}")
    return symmetry
