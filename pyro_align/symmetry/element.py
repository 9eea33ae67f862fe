"""Permutation: one element of a model's group, with signs and rotations where the group has them.

The action is on the *constrained* values that the model sees: with ``p`` a permutation and ``v`` a site's value,
``p.apply`` gives ``new[i, j, ...] == v[index_i[i], index_j[j], ...]`` for plain atoms; signed units multiply by +-1,
and along a rotatable atom ``new[r] == sum_s rotation[r, s] v[s]``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, overload

import torch
from torch import Tensor, nn

from pyro_align.axes import Atom, Kind
from pyro_align.errors import SymmetryError
from pyro_align.symmetry.action import Tables, act
from pyro_align.symmetry.stacks import stack_tensors, unstacked

if TYPE_CHECKING:
    from pyro_align.symmetry.group import Symmetry

_ORTHOGONAL = 1e-4  # how far from orthogonal a given matrix may be: float32 matrices are, and are made so
_SAME = 1e-9  # entries of rotations that differ by less are equal: products of matrices are rounded


_Module = TypeVar("_Module", bound=nn.Module)


@dataclass(frozen=True, eq=False)
class Permutation:
    """One relabeling: an index tensor, or an orthogonal matrix, for each free atom of a :class:`Symmetry`.

    ``(p @ q).apply(v) == p.apply(q.apply(v))``.

    Attributes:
        symmetry: The group it belongs to.
        indices: Atom that is not rotated -> int64 tensor ``(*outer sizes, size)`` on the CPU: new position -> old.
        signs: Signed atom -> int8 tensor of +-1, same shape, by new position; absent where all are +1.
        rotations: Rotatable atom -> orthogonal matrices ``(*outer sizes, size, size)`` in float64 on the CPU.

    Example:
        >>> from pyro_align import Symmetry
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
    rotations: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        indices, signs, rotations = {}, {}, {}
        atoms = self.symmetry.atoms
        unknown = sorted({*self.indices, *self.signs, *self.rotations} - set(atoms))
        if unknown:
            raise SymmetryError(f"unknown atoms {unknown}; the symmetry has {list(atoms)}")
        for name, atom in atoms.items():
            shape = (*self.symmetry.outer_shape(name), atom.size)
            if atom.rotates:
                if name in self.indices or name in self.signs:
                    raise SymmetryError(f"atom '{name}' is rotated: give its matrices in rotations=")
                rotations[name] = _rotation(atom, self.rotations.get(name), shape)
                continue
            if name in self.rotations:
                raise SymmetryError(f"atom '{name}' is not rotated in this symmetry, but a {atom.kind}")
            indices[name] = _index(name, self.indices.get(name), shape)
            if name in self.signs:
                if not atom.odd:
                    raise SymmetryError(f"atom '{name}' has no signs in this symmetry")
                sign = torch.as_tensor(self.signs[name], dtype=torch.int8, device="cpu").detach()
                if sign.shape != shape or not bool((sign.abs() == 1).all()):
                    raise SymmetryError(f"atom '{name}': expected signs +-1 of shape {shape}")
                if bool((sign < 0).any()):
                    signs[name] = sign
        for name, table in {"indices": indices, "signs": signs, "rotations": rotations}.items():
            object.__setattr__(self, name, MappingProxyType(table))

    def __reduce__(self) -> tuple[Any, ...]:  # read-only mappings cannot be pickled or copied
        return Permutation, (self.symmetry, dict(self.indices), dict(self.signs), dict(self.rotations))

    # -- the action ------------------------------------------------------------------------------------------------

    @overload
    def apply(self, values: _Module, *, batch_dims: int = 0) -> _Module: ...

    @overload
    def apply(self, values: Mapping[str, Tensor], *, batch_dims: int = 0) -> dict[str, Tensor]: ...

    def apply(self, values: Any, *, batch_dims: int = 0) -> Any:
        """The relabeled values, as new tensors; devices and dtypes are kept.

        Args:
            values: Site -> tensor ``(*batch, *site_shape)``. Sites may be left out, but of those that change places as
                wholes either all or none. Or a state dict, whose counters of batches stay as they are; or a network,
                of which a relabeled copy is returned.
            batch_dims: Number of leading axes (draws, chains) that are not the site's.

        Raises:
            SymmetryError: A site that the symmetry does not know, a wrong shape, or integers that would be rotated.
        """
        if isinstance(values, nn.Module):
            made = copy.deepcopy(values)
            made.load_state_dict(self.apply(values.state_dict()))
            return made
        moved = {}
        for site, value in stack_tensors(values, self.symmetry.stacks, batch_dims).items():
            counts = site.rpartition(".")[2] == "num_batches_tracked"  # batches seen by batch normalization
            moved[site] = value.clone() if counts else self.apply_site(site, value, batch_dims=batch_dims)
        if self.symmetry.stacks:
            parted = unstacked(moved, self.symmetry.stacks, batch_dims)
            moved = {site: parted[site] if site in parted else moved[site] for site in values}
        return moved

    def apply_site(self, site: str, value: Tensor, *, batch_dims: int = 0, signs: bool = True) -> Tensor:
        """The relabeled value of one site; with ``signs=False`` only the order changes (for scales, say)."""
        if site not in self.symmetry.sites:
            raise SymmetryError(
                f"site '{site}' is not part of the symmetry, which has {list(self.symmetry.sites)}; "
                "leave it out, or name its axes"
            )
        expected = self.symmetry.shapes[site]
        if tuple(value.shape[batch_dims:]) != expected:
            raise SymmetryError(
                f"site '{site}': expected shape (*{batch_dims} batch axes, *{expected}), got {tuple(value.shape)}"
            )
        return act(self.symmetry.blocks(site), value, self.moving, batch_dims=batch_dims, signs=signs)

    def flat_index(self, site: str) -> Tensor:
        """For every element of a site's flattened value, the flat position it comes from, ``(numel,)`` int64.

        Raises:
            SymmetryError: The site is rotated, which is no reordering.
        """
        shape = self.symmetry.shapes[site]
        return self.apply_site(site, torch.arange(math.prod(shape), device="cpu").reshape(shape), signs=False).flatten()

    @cached_property
    def moving(self) -> Tables:
        """The tables of the atoms that move."""
        return Tables(
            {k: v for k, v in self.indices.items() if bool((v != torch.arange(v.shape[-1], device="cpu")).any())},
            self.signs,
            {k: v for k, v in self.rotations.items() if self.moved()[k]},
        )

    # -- the group -------------------------------------------------------------------------------------------------

    def __matmul__(self, other: Permutation) -> Permutation:
        if not isinstance(other, Permutation):
            return NotImplemented
        if other.symmetry is not self.symmetry and dict(self.symmetry.sites) != dict(other.symmetry.sites):
            raise SymmetryError("permutations of two different symmetries cannot be composed")
        indices, signs, rotations = {}, {}, {}
        for name, index in self.indices.items():
            moves = self._outer_moves(name)
            indices[name] = other.indices[name][moves].gather(-1, index)
            if name in self.signs or name in other.signs:
                mine, theirs = (p.signs.get(name, torch.ones_like(index, dtype=torch.int8)) for p in (self, other))
                signs[name] = mine * theirs[moves].gather(-1, index)
        for name, matrix in self.rotations.items():
            rotations[name] = matrix @ other.rotations[name][self._outer_moves(name)]
        return Permutation(self.symmetry, indices, signs, rotations)

    def inverse(self) -> Permutation:
        """The relabeling that undoes this one."""
        indices, signs, rotations = {}, {}, {}
        for name, index in self.indices.items():
            moves, order = self._outer_moves(name), index.argsort(-1)
            indices[name] = _put(moves, order)
            if name in self.signs:
                signs[name] = _put(moves, self.signs[name].gather(-1, order))
        for name, matrix in self.rotations.items():
            rotations[name] = _put(self._outer_moves(name), matrix.mT.contiguous())
        return Permutation(self.symmetry, indices, signs, rotations)

    def only(self, *atoms: str) -> Permutation:
        """The element that moves these atoms as this one does, and nothing else."""
        kept = ({k: v for k, v in t.items() if k in atoms} for t in (self.indices, self.signs, self.rotations))
        return Permutation(self.symmetry, *kept)

    def _outer_moves(self, atom: str) -> tuple[Any, ...]:
        """Where each new index of the atoms around ``atom`` comes from, one tensor ``(*outer sizes,)`` per atom."""
        outers = self.symmetry.atoms[atom].within
        if not outers:
            return (...,)
        ranges = (torch.arange(n, device="cpu") for n in self.symmetry.outer_shape(atom))
        grid = dict(zip(outers, torch.meshgrid(*ranges, indexing="ij"), strict=True))
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
        return not any(self.moved().values())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Permutation):
            return NotImplemented

        def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor], equal) -> bool:
            return a.keys() == b.keys() and all(equal(v, b[k]) for k, v in a.items())

        return (
            same(self.indices, other.indices, torch.equal)
            and same(self.signs, other.signs, torch.equal)
            and same(self.rotations, other.rotations, lambda a, b: torch.allclose(a, b, rtol=0, atol=_SAME))
        )

    __hash__: ClassVar[None] = None  # pyright: ignore[reportIncompatibleMethodOverride]

    def moved(self) -> dict[str, int]:
        """Atom -> number of its units that change place or sign, or of its dimensions that are rotated."""
        return dict(self._counts)

    @cached_property
    def _counts(self) -> dict[str, int]:
        out = {}
        for name in self.symmetry.atoms:
            if (matrix := self.rotations.get(name)) is not None:
                change = ((matrix - torch.eye(matrix.shape[-1], dtype=matrix.dtype, device="cpu")).abs() > _SAME).any(
                    -1
                )
            else:
                index = self.indices[name]
                change = index != torch.arange(index.shape[-1], device="cpu")
                if name in self.signs:
                    change = change | (self.signs[name] < 0)
            out[name] = int(change.sum())
        return out

    def __repr__(self) -> str:
        shapes = {name: (*self.symmetry.outer_shape(name), atom.size) for name, atom in self.symmetry.atoms.items()}
        moved = ", ".join(f"{k}: {v}/{math.prod(shapes[k])}" for k, v in self.moved().items())
        return f"Permutation(moved {moved or 'nothing'})"


def _index(name: str, given, shape: tuple[int, ...]) -> Tensor:
    identity = torch.arange(shape[-1], device="cpu").expand(shape)
    index = torch.as_tensor(identity if given is None else given, dtype=torch.int64, device="cpu").detach()
    if index.shape != shape:
        raise SymmetryError(f"atom '{name}': expected indices of shape {shape}, got {tuple(index.shape)}")
    if given is not None and not bool(is_permutation(index).all()):
        raise SymmetryError(f"atom '{name}': the indices are not a permutation of 0..{shape[-1] - 1}")
    return index.contiguous()


def is_permutation(index: Tensor) -> Tensor:
    """Which rows of ``(*batch, n)`` are permutations of 0..n-1, ``(*batch,)`` bool.

    Example:
        >>> is_permutation(torch.tensor([[1, 0, 2], [1, 1, 2], [0, 1, 3], [-1, 1, 2]]))
        tensor([ True, False, False, False])
    """
    n = index.shape[-1]
    inside = index.clamp(0, max(0, n - 1))
    seen = torch.zeros(index.shape, dtype=torch.bool, device=index.device).scatter_(-1, inside, True)
    return (seen & (inside == index)).all(-1)


def _rotation(atom: Atom, given, shape: tuple[int, ...]) -> Tensor:
    """Matrices checked to be orthogonal; of those that are so up to rounding, the nearest that are."""
    identity = torch.eye(shape[-1], dtype=torch.float64, device="cpu").expand(*shape, shape[-1])
    if given is None:
        return identity.contiguous()
    matrix = torch.as_tensor(given, device="cpu").detach().to(torch.float64)
    if matrix.shape != identity.shape:
        raise SymmetryError(
            f"atom '{atom.name}': expected matrices of shape {tuple(identity.shape)}, got {tuple(matrix.shape)}"
        )
    error = float((matrix @ matrix.mT - identity).abs().max()) if matrix.numel() else 0.0
    if not error <= _ORTHOGONAL:
        raise SymmetryError(f"atom '{atom.name}': the matrices are not orthogonal: R R' differs from 1 by {error:.2g}")
    if atom.centered and not bool(((matrix.sum(-1) - 1).abs() <= _ORTHOGONAL).all()):
        raise SymmetryError(
            f"atom '{atom.name}': its rotations leave the vector of ones as it is, so rows add up to one"
        )
    if atom.kind == "plane rotation" and bool((torch.linalg.det(matrix) < 0).any()):
        raise SymmetryError(f"atom '{atom.name}': a plane is rotated by an angle, and the matrices reflect it")
    return (polar(matrix, atom.kind) if error > 1e-14 * shape[-1] else matrix).contiguous()


def polar(gain: Tensor, kind: Kind = "rotation") -> Tensor:
    """The orthogonal matrices R that maximize ``<R, gain>``, ``(*batch, n, n)`` (Schoenemann 1966).

    Args:
        gain: The matrices.
        kind: That of the atom. A centered rotation leaves the vector of ones as it is, so that a positive gain stands
            for the one along it; a plane is rotated by the one angle that is best.

    Example:
        >>> polar(torch.tensor([[0.0, -2.0], [3.0, 0.0]]))
        tensor([[ 0., -1.],
                [ 1.,  0.]])
    """
    if kind == "plane rotation":
        angle = torch.atan2(gain[..., 1, 0] - gain[..., 0, 1], gain[..., 0, 0] + gain[..., 1, 1])
        cos, sin = angle.cos(), angle.sin()
        return torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
    if kind == "centered rotation" and gain.numel():
        size = gain.flatten(-2).norm(dim=-1)[..., None, None]
        gain = gain - gain.mean(-1, keepdim=True)
        gain = gain - gain.mean(-2, keepdim=True) + torch.where(size > 0, size, 1.0) / gain.shape[-1]
    left, _, right = torch.linalg.svd(gain)
    return left @ right


def _put(moves: tuple[Any, ...], table: Tensor) -> Tensor:
    out = torch.empty_like(table)
    out[moves] = table
    return out
