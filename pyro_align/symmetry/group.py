"""Symmetry: the group of relabelings of a model, with its sizes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from pyro_align.axes import OPEN, Atom, Axis, AxisLike, axis_size, leaves
from pyro_align.errors import SymmetryError
from pyro_align.symmetry.blocks import Block, site_blocks
from pyro_align.symmetry.element import Permutation, polar
from pyro_align.symmetry.findings import Certificate, OpaqueOperation, Reason, Resting, Why
from pyro_align.symmetry.scalings import Scaling
from pyro_align.symmetry.stacks import Stacks
from pyro_align.symmetry.terms import collect_atoms, fill_sizes, read_axes

if TYPE_CHECKING:
    import pandas as pd

SCOPES = ("joint", "likelihood")


@dataclass(frozen=True, eq=False)
class Symmetry:
    """The relabelings, with signs and rotations where it has them, that leave a model's log joint unchanged.

    Attributes:
        sites: Site name -> one axis term per axis of the site's constrained value.
        scope: ``"joint"`` (priors included) or ``"likelihood"``.
        opaque: Operations that fixed axes only for want of a rule.
        certificate: The numerical check that the symmetry passed, or None where none was made.
        rests: Parameters and buffers whose present values the symmetry takes for constant.
        scalings: Positive scalings of units that leave the model unchanged too; they are no part of the elements, see
            :func:`~pyro_align.canonical`.
        reasons: ``(site, axis)`` -> what made the axis, or parts of it, keep their order; see :meth:`why`.
        stacks: Site of ``sites`` that stands for several, stacked along its first axis -> their names: they change
            places as wholes where an atom permutes that axis.

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
    rests: tuple[Resting, ...] = ()
    reasons: Mapping[tuple[str, int], tuple[Reason, ...]] = field(default_factory=dict)
    scalings: tuple[Scaling, ...] = ()
    stacks: Stacks = field(default_factory=dict)
    _all_atoms: Mapping[str, Atom] = field(init=False, repr=False)
    _blocks: dict[str, tuple[Block, ...]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.scope not in SCOPES:
            raise SymmetryError(f"scope must be one of {SCOPES}, got {self.scope!r}")
        object.__setattr__(self, "sites", MappingProxyType({k: tuple(v) for k, v in self.sites.items()}))
        for name in ("opaque", "rests", "scalings"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "reasons", MappingProxyType(dict(self.reasons)))
        object.__setattr__(self, "stacks", MappingProxyType({k: v for k, v in self.stacks.items() if k in self.sites}))
        object.__setattr__(self, "_all_atoms", MappingProxyType(collect_atoms(self.sites)))
        object.__setattr__(self, "_blocks", {})
        for site, terms in self.sites.items():
            for i, term in enumerate(terms):
                if axis_size(term) == OPEN:
                    raise SymmetryError(
                        f"site '{site}', axis {i}: the size of '{term}' is open; write the symmetry as a SymmetrySpec "
                        "and bind it to shapes: SymmetrySpec({...}).bind(shapes)"
                    )
            if len(members := self.stacks.get(site, ())) not in (0, axis_size(terms[0]) if terms else 0):
                raise SymmetryError(f"site '{site}' stands for {len(members)} sites, its first axis is '{terms[0]}'")
            if any(a.within for t in terms for a in leaves(t) if not a.fixed):
                self.blocks(site)  # every part of the site must tell which outer index a nested unit belongs to

    def __reduce__(self) -> tuple[Any, ...]:  # read-only mappings cannot be pickled or copied
        kept = (self.scope, self.opaque, self.certificate, self.rests, dict(self.reasons), self.scalings)
        return Symmetry, (dict(self.sites), *kept, dict(self.stacks))

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
        """A hand-written symmetry of values whose shapes are known.

        Where they are not, a :class:`~pyro_align.SymmetrySpec` waits for them.

        Args:
            axes: Site -> one entry per axis: an atom's name, None for an axis that keeps its order, a tuple for a
                product (last factor fastest), a list for a sum (concatenation); see :mod:`pyro_align.axes`.
            shapes: Site -> shape of its value. Needed unless all sizes are written out.
            within: Nested atom -> the atoms it is nested in, outermost first.
            scope: ``"joint"`` or ``"likelihood"``.

        Raises:
            SymmetryError: The terms contradict each other or the shapes.
        """
        sites = read_axes(axes, within)
        return cls(sites if shapes is None else fill_sizes(sites, shapes), scope=scope)

    # -- what it is ------------------------------------------------------------------------------------------------

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Site -> shape."""
        return MappingProxyType({s: tuple(axis_size(t) for t in terms) for s, terms in self.sites.items()})

    @cached_property
    def atoms(self) -> Mapping[str, Atom]:
        """The free atoms by name, in the order in which the sites carry them; their kind says what moves."""
        return MappingProxyType({k: a for k, a in self._all_atoms.items() if not a.fixed})

    @cached_property
    def signed(self) -> frozenset[str]:
        """Names of the free atoms whose units also have signs."""
        return frozenset(name for name, atom in self.atoms.items() if atom.odd)

    @cached_property
    def rotated(self) -> frozenset[str]:
        """Names of the free atoms on which orthogonal matrices act."""
        return frozenset(name for name, atom in self.atoms.items() if atom.rotates)

    def blocks(self, site: str) -> tuple[Block, ...]:
        """The pieces of a site's value whose every dimension is one atom."""
        if site not in self._blocks:
            self._blocks[site] = site_blocks(site, self.sites[site])
        return self._blocks[site]

    def outer_shape(self, atom: str) -> tuple[int, ...]:
        """Sizes of the atoms in which an atom is nested: it has one relabeling per index of these."""
        return tuple(self._all_atoms[o].size for o in self._all_atoms[atom].within)

    @property
    def log_order(self) -> float:
        """Log of the number of relabelings, in nats: sum of log n! (and of n log 2 where signed).

        Rotations are not counted: there are infinitely many, see :attr:`dimension`.
        """
        return sum(
            math.prod(self.outer_shape(name))
            * (math.lgamma(atom.size + 1) + (atom.size * math.log(2) if atom.odd else 0.0))
            for name, atom in self.atoms.items()
            if not atom.rotates
        )

    @property
    def dimension(self) -> int:
        """Number of parameters of the rotations: sum of n (n - 1) / 2, n less by one where the ones are fixed."""
        return sum(
            math.prod(self.outer_shape(name)) * n * (n - 1) // 2
            for name in self.rotated
            for n in [self.atoms[name].size - self.atoms[name].centered]
        )

    @cached_property
    def carriers(self) -> Mapping[str, tuple[tuple[str, int], ...]]:
        """Free atom -> the ``(site, axis)`` pairs that carry it."""
        found: dict[str, list[tuple[str, int]]] = {name: [] for name in self.atoms}
        for site, terms in self.sites.items():
            for i, term in enumerate(terms):
                for name in dict.fromkeys(a.name for a in leaves(term) if a.name in found):
                    found[name].append((site, i))
        return MappingProxyType({k: tuple(v) for k, v in found.items()})

    # -- its elements ----------------------------------------------------------------------------------------------

    def permutation(
        self,
        indices: Mapping[str, Any] | None = None,
        signs: Mapping[str, Any] | None = None,
        rotations: Mapping[str, Any] | None = None,
    ) -> Permutation:
        """The element with these index tensors, signs and matrices; atoms left out stay as they are.

        Args:
            indices: Atom -> integers ``(*outer sizes, size)``, a permutation along the last axis.
            signs: Signed atom -> +-1, same shape.
            rotations: Rotatable atom -> orthogonal matrices ``(*outer sizes, size, size)``.

        Raises:
            SymmetryError: An unknown atom, a wrong shape, indices that are not a permutation, or matrices that are not
                orthogonal.
        """
        return Permutation(self, dict(indices or {}), dict(signs or {}), dict(rotations or {}))

    def identity(self) -> Permutation:
        """The element that changes nothing."""
        return self.permutation()

    def random(self, generator: torch.Generator | int = 0) -> Permutation:
        """A uniformly drawn element; rotations are drawn from the Haar measure of the orthogonal group.

        Args:
            generator: A CPU ``torch.Generator`` or a seed.
        """
        if not isinstance(generator, torch.Generator):
            generator = torch.Generator().manual_seed(generator)
        indices, signs, rotations = {}, {}, {}
        for name, atom in self.atoms.items():
            shape = (*self.outer_shape(name), atom.size)
            if atom.rotates:
                noise = torch.randn(*shape, atom.size, generator=generator, dtype=torch.float64, device="cpu")
                q, r = torch.linalg.qr(noise)  # Mezzadri 2007: with the diagonal of r made positive, q is uniform
                q = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
                rotations[name] = q if atom.kind == "rotation" else polar(noise, atom.kind)
                continue
            indices[name] = torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu").argsort(-1)
            if atom.odd:
                signs[name] = torch.randint(0, 2, shape, generator=generator, device="cpu") * 2 - 1
        return self.permutation(indices, signs, rotations)

    # -- reading it ------------------------------------------------------------------------------------------------

    def why(self, site: str, axis: int) -> Why:
        """Why an axis keeps its order, or that it does not: the operation, constant, data or output that fixed it.

        Args:
            site: Name of a site; for one of a stack, the answer is about the stack.
            axis: Number of one of its axes; negative ones count from the end.

        Returns:
            The reasons, which print as sentences; ``must`` says whether the axis must be fixed or whether discovery
            only has no rule.

        Raises:
            SymmetryError: There is no such site or axis.
        """
        stack = next((k for k, members in self.stacks.items() if site in members), None)
        if stack is None and site not in self.sites:
            raise SymmetryError(f"unknown site '{site}'; the symmetry has {list(self.sites)}")
        first = int(stack is not None)
        count = len(self.sites[stack or site]) - first
        if not -count <= axis < count:
            raise SymmetryError(f"site '{site}' has {count} axes, got axis {axis}")
        axis, site = axis % count + first, stack or site
        terms = self.sites[site]
        return Why(site, axis, str(terms[axis]), self.reasons.get((site, axis), ()))

    def to_dataframe(self) -> pd.DataFrame:
        """One row per site and axis as a ``pandas.DataFrame``: site, axis, size, term, atoms."""
        import pandas as pd

        rows = [
            [site, i, axis_size(t), str(t), [a.name for a in leaves(t) if a.name in self.atoms]]
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


def same_group(a: Symmetry, b: Symmetry) -> bool:
    """Whether two symmetries have the same sites with the same terms."""
    return a is b or dict(a.sites) == dict(b.sites)
