"""Symmetry: the group of relabelings of a model. Permutation: one element of it.

The action is on the *constrained* values that the model sees: with ``p`` a permutation and ``v`` a site's value,
``p.apply`` gives ``new[i, j, ...] == v[index_i[i], index_j[j], ...]``, where each axis's index is read off its term.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, TypeVar, overload

import torch
from torch import Tensor, nn

from pyro_align.axes import (
    Atom,
    Axis,
    AxisLike,
    as_axis,
    axis_size,
    leaves,
    map_atoms,
    with_sizes,
)
from pyro_align.errors import SymmetryError
from pyro_align.symmetry.action import check_nesting, gather, is_identity_index, plan

_Module = TypeVar("_Module", bound=nn.Module)


@dataclass(frozen=True)
class Certificate:
    """The numerical proof that a symmetry holds for one model and its data.

    Attributes:
        trials: Number of random relabelings tried.
        log_joint: Log joint (nats) of the draw that was relabeled; NaN for a module, whose outputs are compared.
        error: Largest absolute change of the log joint over the trials, in nats.
        tolerance: The change that float64 rounding allows, in nats.
        seed: Seed of the draw and of the relabelings.
    """

    trials: int
    log_joint: float
    error: float
    tolerance: float
    seed: int

    def __str__(self) -> str:
        what = "outputs" if math.isnan(self.log_joint) else f"log joint {self.log_joint:.6g} nats"
        return (
            f"certified by {self.trials} random relabelings: {what} changed by at most "
            f"{self.error:.1e} (float64 rounding allows {self.tolerance:.1e})"
        )


@dataclass(frozen=True)
class OpaqueOperation:
    """An operation without a rule, whose axes were fixed: symmetries that pass through it are missed.

    Attributes:
        operation: The operation's ATen name.
        where: Source line that called it, where known.
        sites: Sites whose axes it fixed.
    """

    operation: str
    where: str
    sites: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Symmetry:
    """The relabelings that leave a model's log joint unchanged.

    Attributes:
        sites: Site name -> one axis term per axis of the site's constrained value.
        scope: ``"joint"`` (priors included) or ``"likelihood"``.
        opaque: Operations that discovery did not know and therefore fixed.
        certificate: The numerical check that the symmetry passed, or None where none was made.

    Example:
        >>> symmetry = Symmetry.from_axes(
        ...     {"w1": ("hidden", None), "b1": ("hidden",), "w2": (None, "hidden")},
        ...     shapes={"w1": (5, 3), "b1": (5,), "w2": (2, 5)},
        ... )
        >>> symmetry.atoms["hidden"].size
        5
        >>> round(symmetry.log_order, 4)  # log 5!
        4.7875
    """

    sites: Mapping[str, tuple[Axis, ...]]
    scope: str = "joint"
    opaque: tuple[OpaqueOperation, ...] = ()
    certificate: Certificate | None = None
    _all_atoms: Mapping[str, Atom] = field(init=False, repr=False)

    def __post_init__(self):
        if self.scope not in ("joint", "likelihood"):
            raise SymmetryError(f"scope must be 'joint' or 'likelihood', got {self.scope!r}")
        object.__setattr__(self, "sites", MappingProxyType({k: tuple(v) for k, v in self.sites.items()}))
        object.__setattr__(self, "opaque", tuple(self.opaque))
        object.__setattr__(self, "_all_atoms", MappingProxyType(_collect_atoms(self.sites)))
        if self.is_bound:
            check_nesting(self.sites, self._all_atoms)

    def __reduce__(self):  # read-only mappings cannot be pickled or copied
        return Symmetry, (dict(self.sites), self.scope, self.opaque, self.certificate)

    # -- making one ------------------------------------------------------------------------------------------------

    @classmethod
    def from_axes(
        cls,
        axes: Mapping[str, Sequence[AxisLike]],
        *,
        shapes: Mapping[str, Iterable[int]] | None = None,
        within: Mapping[str, str | Sequence[str]] | None = None,
        scope: str = "joint",
    ) -> Symmetry:
        """A hand-written symmetry.

        Args:
            axes: Site -> one entry per axis: an atom's name, None for an axis that keeps its order, a tuple for a
                product (last factor fastest), a list for a sum (concatenation); see :mod:`pyro_align.axes`.
            shapes: Site -> shape of its value. Without it the sizes are filled in by :meth:`bind` when the symmetry
                meets a model or a guide.
            within: Nested atom -> the atoms it is nested in, outermost first.
            scope: ``"joint"`` or ``"likelihood"``.

        Raises:
            SymmetryError: The terms contradict each other or the shapes.
        """
        within = {k: (v,) if isinstance(v, str) else tuple(v) for k, v in (within or {}).items()}

        def nest(atom: Atom) -> Atom:
            return replace(atom, within=within[atom.name]) if atom.name in within else atom

        sites = {}
        for site, terms in axes.items():
            if isinstance(terms, str):
                raise SymmetryError(f"site '{site}': expected one entry per axis, e.g. ({terms!r},); got {terms!r}")
            sites[site] = tuple(map_atoms(as_axis(t), nest) for t in terms)
        unbound = cls(sites, scope=scope)
        missing = sorted(set(within) - set(unbound._all_atoms))
        if missing:
            raise SymmetryError(f"within= names atoms that no axis carries: {missing}")
        return unbound if shapes is None else unbound.bind(shapes)

    def bind(self, shapes: Mapping[str, Iterable[int]]) -> Symmetry:
        """The same symmetry with sizes filled in from, and checked against, the sites' shapes.

        Sites of ``shapes`` that the symmetry does not name are left out of it: they are not relabeled.

        Raises:
            SymmetryError: A site is missing, or a term does not fit its axis.
        """
        shapes = {k: tuple(v) for k, v in shapes.items()}
        missing = sorted(set(self.sites) - set(shapes))
        if missing:
            raise SymmetryError(f"the symmetry names sites that are not there: {missing}; there are {sorted(shapes)}")
        for site, terms in self.sites.items():
            if len(terms) != len(shapes[site]):
                raise SymmetryError(
                    f"site '{site}': the symmetry has {len(terms)} axes, the value has shape {shapes[site]}"
                )
        sizes: dict[str, int] = {}
        sites = dict(self.sites)
        for _ in range(1 + len(self._all_atoms)):  # each round solves at least one atom or is the last
            known = len(sizes)
            for site, terms in sites.items():
                filled = []
                for i, (term, n) in enumerate(zip(terms, shapes[site], strict=True)):
                    try:
                        filled.append(with_sizes(term, sizes, n))
                    except SymmetryError as error:
                        raise SymmetryError(f"site '{site}', axis {i}: {error}") from None
                    for atom in leaves(filled[-1]):
                        if atom.name and atom.size is not None:
                            sizes.setdefault(atom.name, atom.size)
                sites[site] = tuple(filled)
            if len(sizes) == known:
                break
        for site, terms in sites.items():
            for i, term in enumerate(terms):
                if axis_size(term) is None:
                    raise SymmetryError(
                        f"site '{site}', axis {i}: the sizes in '{term}' cannot be told from the shapes; "
                        "write them out with Atom(name, size) or an int"
                    )
        return replace(self, sites=sites)

    # -- what it is ------------------------------------------------------------------------------------------------

    @property
    def is_bound(self) -> bool:
        """Whether every size is known."""
        return all(axis_size(t) is not None for terms in self.sites.values() for t in terms)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Site -> shape."""
        return {site: tuple(axis_size(t) for t in terms) for site, terms in self.sites.items()}

    @cached_property
    def atoms(self) -> Mapping[str, Atom]:
        """The free atoms by name, in the order in which the sites carry them."""
        return MappingProxyType({k: a for k, a in self._all_atoms.items() if not a.fixed})

    @cached_property
    def signed(self) -> frozenset[str]:
        """Names of the free atoms whose units also have signs."""
        odd = {a.name for terms in self.sites.values() for t in terms for a in leaves(t) if a.odd}
        return frozenset(odd & set(self.atoms))

    def outer_shape(self, atom: str) -> tuple[int, ...]:
        """Sizes of the atoms in which an atom is nested: it has one relabeling per index of these."""
        return tuple(self._all_atoms[o].size for o in self._all_atoms[atom].within)

    @property
    def log_order(self) -> float:
        """Log of the number of relabelings in the group, in nats: sum of log n! (and of n log 2 where signed)."""
        self._require_bound("count relabelings")
        total = 0.0
        for name, atom in self.atoms.items():
            one = math.lgamma(atom.size + 1) + (atom.size * math.log(2) if name in self.signed else 0.0)
            total += math.prod(self.outer_shape(name)) * one
        return total

    @cached_property
    def carriers(self) -> Mapping[str, tuple[tuple[str, int], ...]]:
        """Free atom -> the ``(site, axis)`` pairs that carry it."""
        found: dict[str, list[tuple[str, int]]] = {name: [] for name in self.atoms}
        for site, terms in self.sites.items():
            for i, term in enumerate(terms):
                for name in dict.fromkeys(a.name for a in leaves(term) if a.name in found):
                    found[name].append((site, i))
        return MappingProxyType({k: tuple(v) for k, v in found.items()})

    def _require_bound(self, what: str) -> None:
        if not self.is_bound:
            raise SymmetryError(f"cannot {what}: sizes are unknown; call symmetry.bind(shapes) first")

    # -- its elements ----------------------------------------------------------------------------------------------

    def permutation(
        self, indices: Mapping[str, Any] | None = None, signs: Mapping[str, Any] | None = None
    ) -> Permutation:
        """The element with these index tensors (and signs); atoms left out keep their order.

        Args:
            indices: Atom -> integers ``(*outer sizes, size)``, a permutation along the last axis.
            signs: Signed atom -> +-1, same shape.

        Raises:
            SymmetryError: An unknown atom, a wrong shape, or indices that are not a permutation.
        """
        self._require_bound("build a permutation")
        return Permutation(self, dict(indices or {}), dict(signs or {}))

    def identity(self) -> Permutation:
        """The element that changes nothing."""
        return self.permutation()

    def random(self, generator: torch.Generator | int = 0) -> Permutation:
        """A uniformly drawn element.

        Args:
            generator: A CPU ``torch.Generator`` or a seed.
        """
        self._require_bound("draw a permutation")
        if not isinstance(generator, torch.Generator):
            generator = torch.Generator().manual_seed(generator)
        indices, signs = {}, {}
        for name, atom in self.atoms.items():
            shape = (*self.outer_shape(name), atom.size)
            indices[name] = torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu").argsort(-1)
            if name in self.signed:
                signs[name] = torch.randint(0, 2, shape, generator=generator, device="cpu") * 2 - 1
        return self.permutation(indices, signs)

    # -- reading it ------------------------------------------------------------------------------------------------

    def to_dataframe(self):
        """One row per site and axis as a ``pandas.DataFrame``: site, axis, size, term, atoms."""
        import pandas as pd

        rows = [
            {"site": site, "axis": i, "size": axis_size(t), "term": str(t), "atoms": [a.name for a in _free(t)]}
            for site, terms in self.sites.items()
            for i, t in enumerate(terms)
        ]
        return pd.DataFrame(rows, columns=["site", "axis", "size", "term", "atoms"])

    def plot(self, ax: Any = None, *, sites: Sequence[str] | None = None) -> Any:
        """Draws which sites share which atoms.

        One row per site. On the left stand its axes as boxes: a letter is an atom, a grey number an axis that keeps
        its order, ``×`` a flattened product, ``+`` a concatenation, and a box inside a box a nested atom. On the right
        every atom has a line, with a dot at each site that carries it, and in the dot how often where more than once.

        Args:
            ax: Matplotlib axes to draw in; by default a new figure, as large as the rows and atoms need.
            sites: Which sites, in which order; by default all.

        Returns:
            The axes. Nothing is shown or saved.

        Raises:
            ValueError: A site that the symmetry does not have, or no site at all.
            ImportError: Matplotlib is missing; the extra ``plots`` brings it.
        """
        from pyro_align.reporting.symmetry_figure import plot_symmetry

        return plot_symmetry(self, ax=ax, sites=sites)

    def __str__(self) -> str:
        from pyro_align.reporting.tables import symmetry_table

        return symmetry_table(self)

    def __repr__(self) -> str:
        return f"Symmetry({len(self.atoms)} atoms, {len(self.sites)} sites, scope={self.scope!r})"


@dataclass(frozen=True, eq=False)
class Permutation:
    """One relabeling: an index tensor for each free atom of a :class:`Symmetry`.

    ``(p @ q).apply(v) == p.apply(q.apply(v))``.

    Attributes:
        symmetry: The group it belongs to.
        indices: Atom -> int64 tensor ``(*outer sizes, size)`` on the CPU: new position -> old position.
        signs: Signed atom -> int8 tensor of +-1, same shape, by new position.

    Example:
        >>> symmetry = Symmetry.from_axes({"w": ("unit",)}, shapes={"w": (3,)})
        >>> p = symmetry.permutation({"unit": [2, 0, 1]})
        >>> p.apply({"w": torch.tensor([10, 20, 30])})
        {'w': tensor([30, 10, 20])}
        >>> p @ p.inverse() == symmetry.identity()
        True
    """

    symmetry: Symmetry
    indices: Mapping[str, Tensor]
    signs: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self):
        indices, signs = {}, {}
        unknown = sorted((set(self.indices) | set(self.signs)) - set(self.symmetry.atoms))
        if unknown:
            raise SymmetryError(f"unknown atoms {unknown}; the symmetry has {list(self.symmetry.atoms)}")
        for name, atom in self.symmetry.atoms.items():
            shape = (*self.symmetry.outer_shape(name), atom.size)
            identity = torch.arange(atom.size, device="cpu").expand(shape)
            index = torch.as_tensor(self.indices.get(name, identity), dtype=torch.int64, device="cpu").detach()
            if index.shape != shape:
                raise SymmetryError(f"atom '{name}': expected indices of shape {shape}, got {tuple(index.shape)}")
            if not torch.equal(index.sort(-1).values, identity):
                raise SymmetryError(f"atom '{name}': the indices are not a permutation of 0..{atom.size - 1}")
            indices[name] = index.contiguous()
            if name in self.signs:
                if name not in self.symmetry.signed:
                    raise SymmetryError(f"atom '{name}' has no signs in this symmetry")
                sign = torch.as_tensor(self.signs[name], dtype=torch.int8, device="cpu").detach()
                if sign.shape != shape or not bool((sign.abs() == 1).all()):
                    raise SymmetryError(f"atom '{name}': expected signs +-1 of shape {shape}")
                if bool((sign < 0).any()):
                    signs[name] = sign
        object.__setattr__(self, "indices", MappingProxyType(indices))
        object.__setattr__(self, "signs", MappingProxyType(signs))

    def __reduce__(self):  # read-only mappings cannot be pickled or copied
        return Permutation, (self.symmetry, dict(self.indices), dict(self.signs))

    # -- the action ------------------------------------------------------------------------------------------------

    @overload
    def apply(self, values: _Module, *, batch_dims: int = 0) -> _Module: ...

    @overload
    def apply(self, values: Mapping[str, Tensor], *, batch_dims: int = 0) -> dict[str, Tensor]: ...

    def apply(self, values: Any, *, batch_dims: int = 0) -> Any:
        """The relabeled values, as new tensors; devices and dtypes are kept.

        Args:
            values: Site -> tensor ``(*batch, *site_shape)``. Sites may be left out. Or a state dict, whose counters of
                batches stay as they are; or a network, of which a relabeled copy is returned.
            batch_dims: Number of leading axes (draws, chains) that are not the site's.

        Raises:
            SymmetryError: A site that the symmetry does not know, or a wrong shape.
        """
        if isinstance(values, nn.Module):
            made = copy.deepcopy(values)
            made.load_state_dict(self.apply(values.state_dict()))
            return made
        return {
            site: value.clone() if _is_counter(site) else self.apply_site(site, value, batch_dims=batch_dims)
            for site, value in values.items()
        }

    def apply_site(self, site: str, value: Tensor, *, batch_dims: int = 0, signs: bool = True) -> Tensor:
        """The relabeled value of one site; with ``signs=False`` only the order changes (for scales, say)."""
        self._check(site, value, batch_dims)
        for axis, index, sign in self._gathers(site):
            value = gather(value, batch_dims, axis, index, sign if signs else None)
        return value

    def flat_index(self, site: str) -> Tensor:
        """For every element of a site's flattened value, the flat position it comes from, ``(numel,)`` int64."""
        shape = self.symmetry.shapes[site]
        return self.apply_site(site, torch.arange(math.prod(shape), device="cpu").reshape(shape), signs=False).flatten()

    def flat_sign(self, site: str) -> Tensor | None:
        """Sign of every element of the site's flattened new value, ``(numel,)``, or None if all are +1."""
        if not self.signs:
            return None
        shape = self.symmetry.shapes[site]
        moved = self.apply_site(site, torch.arange(1, math.prod(shape) + 1, device="cpu").reshape(shape)).flatten()
        sign = moved.sign()
        return None if bool((sign > 0).all()) else sign

    def _check(self, site: str, value: Tensor, batch_dims: int) -> None:
        terms = self.symmetry.sites.get(site)
        if terms is None:
            raise SymmetryError(
                f"site '{site}' is not part of the symmetry, which has {list(self.symmetry.sites)}; "
                "leave it out, or name its axes"
            )
        expected = tuple(axis_size(t) for t in terms)
        if tuple(value.shape[batch_dims:]) != expected:
            raise SymmetryError(
                f"site '{site}': expected shape (*{batch_dims} batch axes, *{expected}), got {tuple(value.shape)}"
            )

    def _gathers(self, site: str) -> tuple[tuple[int, Tensor, Tensor | None], ...]:
        """The axis-wise steps of the action on one site: ``(axis, index, sign)``, outer axes first.

        An index has one axis per axis of the site: the gathered axis and the axes of its outer atoms have their
        sizes, all others have size one.
        """
        cache = self.__dict__.setdefault("_cache", {})
        if site not in cache:
            cache[site] = tuple(plan(self.symmetry.sites[site], self.indices, self.signs))
        return cache[site]

    # -- the group -------------------------------------------------------------------------------------------------

    def __matmul__(self, other: Permutation) -> Permutation:
        if not isinstance(other, Permutation):
            return NotImplemented
        if other.symmetry is not self.symmetry and not same_group(self.symmetry, other.symmetry):
            raise SymmetryError("permutations of two different symmetries cannot be composed")
        indices, signs = {}, {}
        for name, index in self.indices.items():
            moves = self._outer_moves(name)
            inner = other.indices[name][moves] if moves else other.indices[name]
            indices[name] = inner.gather(-1, index)
            if name in self.signs or name in other.signs:
                mine = self.signs.get(name, torch.ones_like(index, dtype=torch.int8))
                theirs = other.signs.get(name, torch.ones_like(index, dtype=torch.int8))
                signs[name] = mine * (theirs[moves] if moves else theirs).gather(-1, index)
        return Permutation(self.symmetry, indices, signs)

    def inverse(self) -> Permutation:
        """The relabeling that undoes this one."""
        indices, signs = {}, {}
        for name, index in self.indices.items():
            moves = self._outer_moves(name)
            back = torch.empty_like(index)
            back[moves if moves else ...] = index.argsort(-1)
            indices[name] = back
            if name in self.signs:
                sign = torch.empty_like(self.signs[name])
                sign[moves if moves else ...] = self.signs[name].gather(-1, index.argsort(-1))
                signs[name] = sign
        return Permutation(self.symmetry, indices, signs)

    def _outer_moves(self, atom: str) -> tuple[Tensor, ...]:
        """Where each new index of the atoms around ``atom`` comes from, one tensor ``(*outer sizes,)`` per atom."""
        outers = self.symmetry.atoms[atom].within
        if not outers:
            return ()
        sizes = self.symmetry.outer_shape(atom)
        grid = dict(
            zip(outers, torch.meshgrid(*(torch.arange(n, device="cpu") for n in sizes), indexing="ij"), strict=True)
        )
        moves = []
        for name in outers:
            index = self.indices.get(name)
            if index is None:  # a fixed atom
                moves.append(grid[name])
                continue
            around = self.symmetry.atoms[name].within
            moves.append(index[(*(grid[o] for o in around), grid[name])])
        return tuple(moves)

    @property
    def is_identity(self) -> bool:
        """Whether nothing moves."""
        return not self.signs and all(is_identity_index(index) for index in self.indices.values())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Permutation):
            return NotImplemented
        return (
            self.indices.keys() == other.indices.keys()
            and all(torch.equal(v, other.indices[k]) for k, v in self.indices.items())
            and self.signs.keys() == other.signs.keys()
            and all(torch.equal(v, other.signs[k]) for k, v in self.signs.items())
        )

    __hash__ = None

    def moved(self) -> dict[str, int]:
        """Atom -> number of its units that change place or sign."""
        out = {}
        for name, index in self.indices.items():
            change = index != torch.arange(index.shape[-1], device="cpu")
            if name in self.signs:
                change = change | (self.signs[name] < 0)
            out[name] = int(change.sum())
        return out

    def __repr__(self) -> str:
        moved = ", ".join(f"{k}: {v}/{self.indices[k].numel()}" for k, v in self.moved().items())
        return f"Permutation(moved {moved or 'nothing'})"


def same_group(a: Symmetry, b: Symmetry) -> bool:
    """Whether two symmetries have the same sites with the same terms."""
    return a is b or dict(a.sites) == dict(b.sites)


def _free(term: Axis) -> list[Atom]:
    return [a for a in leaves(term) if a.name and not a.fixed]


def _collect_atoms(sites: Mapping[str, Sequence[Axis]]) -> dict[str, Atom]:
    found: dict[str, Atom] = {}
    for site, terms in sites.items():
        for i, term in enumerate(terms):
            for leaf in leaves(term):
                if not leaf.name:
                    continue
                atom = replace(leaf, odd=False)
                known = found.setdefault(leaf.name, atom)
                if (known.fixed, known.within) != (atom.fixed, atom.within):
                    raise SymmetryError(f"site '{site}', axis {i}: atom '{leaf.name}' is described in two ways")
                if known.size is None:
                    found[leaf.name] = atom
                elif atom.size is not None and atom.size != known.size:
                    raise SymmetryError(
                        f"site '{site}', axis {i}: atom '{leaf.name}' has size {atom.size} here "
                        f"and {known.size} elsewhere"
                    )
    for name, atom in found.items():
        for outer in atom.within:
            if outer not in found:
                raise SymmetryError(f"atom '{name}' is nested in '{outer}', which no axis carries")
            if not set(found[outer].within) <= set(atom.within[: atom.within.index(outer)]):
                raise SymmetryError(
                    f"atom '{name}' is nested in {atom.within}; the atoms around '{outer}', "
                    f"{found[outer].within}, must come before it"
                )
    return found


def _is_counter(name: str) -> bool:
    """Whether an entry of a state dict counts the batches that batch normalization has seen."""
    return name.rpartition(".")[2] == "num_batches_tracked"
