"""Draws brought to one frame by rotations: for factor models, whose posteriors do not change when the factors rotate.

*Procrustes* rotates each draw as near as possible to a reference: given, or the mean of the rotated draws, renewed
until it stays (Schoenemann 1966; Gower 1975). *Varimax* rotates each draw to the axes on which its loadings are
simplest (Kaiser 1958), which every draw finds by itself up to the order and signs of the factors; one assignment a draw
settles these, as in the rotation-sign-permutation algorithm (Papastamoulis & Ntzoufras 2022). Each Varimax begins from
that of the mean, so that draws do not end at different local optima, and an assignment takes the place of the search
over signs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import one_hot

from pyro_align.axes import Atom, Kind, map_atoms
from pyro_align.draws.methods import Outcome
from pyro_align.draws.stack import Features, Labels
from pyro_align.draws.units import Units
from pyro_align.errors import SymmetryError
from pyro_align.symmetry.element import polar
from pyro_align.symmetry.group import Symmetry

if TYPE_CHECKING:
    from pyro_align.model.draws import DrawDensity

BY_ROTATION = ("procrustes", "varimax")
_STEPS, _SETTLED = 200, 1e-7  # of Varimax: most steps, and the relative rise of its criterion at which it has ended
_STILL = 1e-6  # change of the mean, over its size, below which it stays

Rule = Callable[
    [Tensor, Tensor, Tensor], Tensor
]  # draws, their present rotations, reference -> matrices from the right


def rotating(symmetry: Symmetry, atom: str, kind: Kind = "rotation") -> Symmetry:
    """The symmetry whose ``atom`` may be rotated: as it says itself, or in a given way."""
    for site, axis in symmetry.carriers[atom]:
        term = symmetry.sites[site][axis]
        if not isinstance(term, Atom) or term.within:
            raise SymmetryError(
                f"site '{site}': its axis {axis} is '{term}', not plainly '{atom}': it cannot be rotated"
            )
    holding = [n for n, a in symmetry.atoms.items() if atom in a.within]
    if holding:
        raise SymmetryError(f"atom '{atom}' holds {holding}, and cannot be rotated")

    def rotated(leaf: Atom) -> Atom:
        return replace(leaf, kind=kind) if leaf.name == atom and not leaf.rotates else leaf

    return replace(
        symmetry, sites={s: tuple(map_atoms(t, rotated) for t in terms) for s, terms in symmetry.sites.items()}
    )


@dataclass(frozen=True)
class Rows:
    """The draws' entries laid out as ``(units, rows, factors)``.

    Attributes:
        atom: The factors.
        axes: Site -> its axis that carries them.
        weights: Site -> weight of its squared distances.
    """

    atom: str
    axes: dict[str, int]
    weights: dict[str, float]

    @classmethod
    def of(cls, symmetry: Symmetry, atom: str, by: str | None, weights: str | Mapping[str, float], method: str) -> Rows:
        """What decides: one site, or all that carry the factors."""
        places = dict.fromkeys(s for s, _ in symmetry.carriers[atom])
        if by is not None and by not in places:
            raise SymmetryError(f"by='{by}': the sites that carry '{atom}' are {list(places)}")
        if method == "varimax" and symmetry.atoms[atom].centered:
            raise SymmetryError(f"the rotations of '{atom}' leave the vector of ones as it is: use method='procrustes'")
        if by is None and method == "varimax" and len(places) > 1:
            raise SymmetryError(f"'varimax' makes one site simple: which? by= must be one of {list(places)}")
        axes = {}
        for site, axis in symmetry.carriers[atom]:
            if by is not None and site != by:
                continue
            if site in axes:
                raise SymmetryError(f"site '{site}' carries '{atom}' on two axes: name another with by=")
            axes[site] = axis
        given = {} if isinstance(weights, str) else weights
        return cls(atom, axes, {s: float(given.get(s, 1.0)) for s in axes})

    def __call__(self, features: Features) -> Tensor:
        """Of a stack of draws, in float64."""
        parts = []
        for site, axis in self.axes.items():
            value = features[site][0].double().movedim(axis + 1, -1)
            parts.append(self.weights[site] ** 0.5 * value.reshape(len(value), -1, value.shape[-1]))
        return torch.cat(parts, 1)

    def one(self, features: Features) -> Tensor:
        """Of one draw, ``(rows, factors)``."""
        return self({site: tuple(f[None] for f in parts) for site, parts in features.items()})[0]


def by_rotation(
    units: Units, rows: Rows, symmetry: Symmetry, method: str, start: Features, *, fixed: bool, max_iterations: int
) -> Outcome:
    """Rotates every unit; see the head of this file."""
    labels = Labels.identity(symmetry, units.count)
    frame = Frame(units, rows, labels.rotations[rows.atom], fixed, max_iterations)
    kind = symmetry.atoms[rows.atom].kind
    center, passes, still = frame.settle(rows.one(start), lambda value, _, center: procrustes(value, center, kind))
    if method == "varimax":
        simple = varimax(center[None])[0]

        def simplify(value: Tensor, now: Tensor, center: Tensor) -> Tensor:
            own = now.mT @ simple
            own = own @ varimax(value @ own)
            return own @ signed_order(value @ own, center)

        def reorder(value: Tensor, now: Tensor, center: Tensor) -> Tensor:
            return now.mT @ signed_order(value @ now.mT, center)

        center = frame.rotate(center @ simple, simplify)
        center, more, still = frame.settle(center, reorder)
        passes += 1 + more
    return Outcome(labels, {f"({rows.atom})": center}, passes, still)


@dataclass(frozen=True)
class Frame:
    """The rotations of all units, and the passes that renew them.

    Attributes:
        table: The rotations, changed in place, ``(units, n, n)``.
        fixed: Whether the reference stays.
    """

    units: Units
    rows: Rows
    table: Tensor
    fixed: bool
    most: int

    def settle(self, center: Tensor, rule: Rule) -> tuple[Tensor, int, bool]:
        """Rotates all units by a rule and makes their mean the reference, until it stays.

        Returns:
            The reference, the number of passes, and whether it stays.
        """
        for k in range(1, self.most + 1):
            mean = self.rotate(center, rule)
            if self.fixed:
                return center, k, True
            if bool((mean - center).abs().max() <= _STILL * center.abs().max()):
                return mean, k, True
            center = mean
        return center, self.most, False

    def rotate(self, center: Tensor, rule: Rule) -> Tensor:
        """Renews the rotations of all valid units; returns the mean of the trusted ones rotated."""
        total, count = torch.zeros_like(center), max(1, int(self.units.trusted.sum()))
        for here, features in self.units.chunks():
            value, valid = self.rows(features), self.units.valid[here].reshape(-1, 1, 1)
            self.table[here] = torch.where(valid, rule(value, self.table[here], center).mT, self.table[here])
            total += (value @ self.table[here].mT)[self.units.trusted[here]].sum(0)
        return center if self.fixed else total / count


def procrustes(value: Tensor, reference: Tensor, kind: Kind = "rotation") -> Tensor:
    """The orthogonal matrices ``(units, n, n)`` that bring ``value @ q`` nearest to a reference (Schoenemann 1966).

    They are of the kind that the atom has.
    """
    return polar(value.mT @ reference, kind)


def varimax(value: Tensor) -> Tensor:
    """The orthogonal matrices ``(units, n, n)`` for which the squares of ``value @ q`` vary most (Kaiser 1958).

    Rows are not normalized. The ascent is that of Magnus and Neudecker: the polar factor of the criterion's gradient.
    """
    units = len(value)
    rotation = torch.eye(value.shape[-1], dtype=value.dtype, device="cpu").repeat(units, 1, 1)
    last = torch.zeros(units, dtype=value.dtype, device="cpu")
    for _ in range(_STEPS):
        moved = value @ rotation
        gradient = value.mT @ (moved**3 - moved * moved.square().mean(1, keepdim=True))
        u, s, vh = torch.linalg.svd(gradient)
        rotation, now = u @ vh, s.sum(1)
        if bool((now - last <= _SETTLED * now).all()):
            break
        last = now
    return rotation


def signed_order(value: Tensor, reference: Tensor) -> Tensor:
    """The signed permutation matrices ``(units, n, n)`` that bring ``value @ s`` nearest to a reference."""
    gain = value.mT @ reference  # of old column i at place j
    places = [linear_sum_assignment(g, maximize=True)[1] for g in gain.abs().numpy()]
    index = torch.stack([torch.from_numpy(p) for p in places])
    sign = torch.where(gain.gather(2, index.unsqueeze(-1)) < 0, -1.0, 1.0)
    return one_hot(index, gain.shape[-1]).to(value.dtype) * sign


def rotations_left(
    symmetry: Symmetry, density: DrawDensity, draws: Sequence[dict[str, Tensor]], undone: str | None = None
) -> tuple[str, ...]:
    """The atoms whose rotations leave the log joint unchanged: relabeling them leaves a continuous group behind.

    Where not every rotation does, those that leave the vector of ones as it is may. Atoms that the symmetry rotates or
    scales itself are among them, but for the one whose rotations were undone.

    Args:
        draws: A few draws, site -> ``site_shape``.
    """
    scaled = {scaling.atom for scaling in symmetry.scalings if symmetry.scope == "joint"}
    values = {k: torch.stack([d[k] for d in draws]) for k in draws[0]}

    def free(name: str, kind: Kind) -> bool:
        element = rotating(symmetry, name, kind).random(0).only(name)
        sites = {s for s, _ in symmetry.carriers[name]} & values.keys()
        if any(not values[s].is_floating_point() or bool((values[s] >= 0).all()) for s in sites):
            return False
        moved = {k: element.apply_site(k, v, batch_dims=1) if k in sites else v for k, v in values.items()}
        before, after = density.log_probs(values)[0], density.log_probs(moved)[0]
        return bool(((after - before).abs() <= density.tolerance(before)).all())

    found = []
    for name, atom in symmetry.atoms.items():
        if name == undone:
            continue
        if atom.rotates or name in scaled:
            found.append(name)
        elif atom.size > 1:
            try:
                if free(name, "rotation") or (atom.size > 2 and free(name, "centered rotation")):
                    found.append(name)
            except SymmetryError:  # a part of an axis, or nested: it cannot be rotated
                continue
    return tuple(found)
