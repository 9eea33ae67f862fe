"""Hand-written axes: the short notation read, sizes filled in from shapes, and what all sites must agree on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from pyro_align.axes import OPEN, Atom, Axis, AxisLike, as_axis, axis_size, leaves, map_atoms, with_sizes
from pyro_align.errors import SymmetryError

Sites = Mapping[str, tuple[Axis, ...]]


def read_axes(
    axes: Mapping[str, Sequence[AxisLike]], within: Mapping[str, str | Sequence[str]] | None = None
) -> dict[str, tuple[Axis, ...]]:
    """Site -> axis terms, from the short notation of :func:`~pyro_align.axes.as_axis`."""
    around = {k: (v,) if isinstance(v, str) else tuple(v) for k, v in (within or {}).items()}

    def nest(atom: Atom) -> Atom:
        return replace(atom, within=around[atom.name]) if atom.name in around else atom

    sites = {}
    for site, terms in axes.items():
        if isinstance(terms, str):
            raise SymmetryError(f"site '{site}': expected one entry per axis, e.g. ({terms!r},); got {terms!r}")
        sites[site] = tuple(map_atoms(as_axis(t), nest) for t in terms)
    missing = sorted(set(around) - {a.name for terms in sites.values() for t in terms for a in leaves(t)})
    if missing:
        raise SymmetryError(f"within= names atoms that no axis carries: {missing}")
    return sites


def fill_sizes(sites: Sites, shapes: Mapping[str, Iterable[int]]) -> dict[str, tuple[Axis, ...]]:
    """The terms with open sizes filled in from, and all sizes checked against, the sites' shapes."""
    shapes = {k: tuple(v) for k, v in shapes.items()}
    missing = sorted(set(sites) - set(shapes))
    if missing:
        raise SymmetryError(f"the symmetry names sites that are not there: {missing}; there are {sorted(shapes)}")
    for site, terms in sites.items():
        if len(terms) != len(shapes[site]):
            count = f"the symmetry has {len(terms)} axes"
            raise SymmetryError(f"site '{site}': {count}, the value has shape {shapes[site]}")
    sizes: dict[str, int] = {}
    filled = dict(sites)
    while True:  # each round solves at least one atom or is the last
        known = len(sizes)
        for site, terms in filled.items():
            pairs = zip(terms, shapes[site], strict=True)
            filled[site] = tuple(_filled(site, i, t, sizes, n) for i, (t, n) in enumerate(pairs))
        if len(sizes) == known:
            break
    for site, terms in filled.items():
        for i, term in enumerate(terms):
            if axis_size(term) == OPEN:
                raise SymmetryError(
                    f"site '{site}', axis {i}: the sizes in '{term}' cannot be told from the shapes; "
                    "write them out with Atom(name, size) or an int"
                )
    return filled


def _filled(site: str, i: int, term: Axis, sizes: dict[str, int], size: int) -> Axis:
    """One term with the sizes known so far, which it may add to."""
    try:
        term = with_sizes(term, sizes, size)
    except SymmetryError as error:
        raise SymmetryError(f"site '{site}', axis {i}: {error}") from None
    for atom in leaves(term):
        if atom.name and atom.size != OPEN:
            sizes.setdefault(atom.name, atom.size)
    return term


def carrying(sites: Sites) -> set[str]:
    """The sites that some element moves."""
    return {site for site, terms in sites.items() if any(not a.fixed for t in terms for a in leaves(t))}


def collect_atoms(sites: Sites) -> dict[str, Atom]:
    """The named atoms, each as all sites describe it; a signed one need not be odd at every axis."""
    found: dict[str, Atom] = {}
    for site, terms in sites.items():
        for i, term in enumerate(terms):
            for leaf in leaves(term):
                if leaf.name:
                    known = found.get(leaf.name)
                    found[leaf.name] = leaf if known is None else _merged(f"site '{site}', axis {i}", known, leaf)
    for name, atom in found.items():
        _check_outer(name, atom, found)
    return found


def _merged(where: str, known: Atom, leaf: Atom) -> Atom:
    a, b = ((x.fixed, x.within, x.kind if x.rotates else "") for x in (known, leaf))
    if a != b:
        raise SymmetryError(f"{where}: atom '{leaf.name}' is described in two ways, as {known} and as {leaf}")
    if OPEN not in (known.size, leaf.size) and leaf.size != known.size:
        raise SymmetryError(f"{where}: atom '{leaf.name}' has size {leaf.size} here and {known.size} elsewhere")
    return replace(known, size=max(known.size, leaf.size), kind=leaf.kind if leaf.odd else known.kind)


def _check_outer(name: str, atom: Atom, found: Mapping[str, Atom]) -> None:
    for outer in atom.within:
        if outer not in found:
            raise SymmetryError(f"atom '{name}' is nested in '{outer}', which no axis carries")
        if found[outer].rotates and not found[outer].fixed:
            raise SymmetryError(f"atom '{name}' is nested in '{outer}', which is rotated: its units have no identity")
        if not set(found[outer].within) <= set(atom.within[: atom.within.index(outer)]):
            raise SymmetryError(
                f"atom '{name}' is nested in {atom.within}; the atoms around '{outer}', "
                f"{found[outer].within}, must come before it"
            )
