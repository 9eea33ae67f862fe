"""The problem that every matcher solves: maximize the sum of ``<fixed, P moving>`` over sites and features."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from pyro_align.errors import MatchError
from pyro_align.matching.sums import UnitSums, inner
from pyro_align.symmetry.blocks import Block
from pyro_align.symmetry.element import Permutation
from pyro_align.symmetry.group import Symmetry
from pyro_align.symmetry.spec import SymmetrySpec, bound

Features = Mapping[str, Sequence[Tensor]]
_SMALL = 1 << 16  # views of up to this many entries are kept: looking them up again would cost more than holding them
_KEPT: WeakKeyDictionary[Symmetry, tuple[Block, ...]] = WeakKeyDictionary()  # neither ever changes
_EXACT = (torch.float32, torch.float64)


class Problem:
    """Checked input of a matcher.

    The tensors are read site by site when they are needed and never copied as a whole, so the mappings may read from
    disk.

    Args:
        symmetry: The group.
        fixed: Site -> features, tensors of the site's shape.
        moving: Site -> as many features; these are relabeled.
        odd: Which features change sign with the units of signed atoms (locations do, scales do not): one bool per
            feature, or site -> such a sequence. Needed only where the symmetry has signs.

    Attributes:
        as_given: The objective of the identity.
        all_blocks: The blocks of all sites.
        blocks: Those that carry a free atom.

    Raises:
        MatchError: A site is missing, shapes or devices differ, a value is not finite.
    """

    all_blocks: tuple[Block, ...]
    blocks: tuple[Block, ...]

    def __init__(self, symmetry: Symmetry | SymmetrySpec, fixed: Features, moving: Features, odd: Any = None):
        if not isinstance(symmetry, Symmetry):
            symmetry = bound(symmetry, {s: f[0].shape for s, f in fixed.items()}, of="features", error=MatchError)
        self.symmetry = symmetry
        self._fixed, self._moving = fixed, moving
        self._read_odd = _read_odd(symmetry, odd)
        self._odd: dict[str, tuple[bool, ...]] = {}
        self.device: torch.device | None = None
        self.dtype: torch.dtype | None = None
        self.counts: dict[str, int] = {}
        self._views: dict[Block, list[tuple[Tensor, Tensor, bool]]] = {}
        # a plain dict gives the same tensors at each look, so that their views may be kept without holding more
        self._plain = type(fixed) is dict and type(moving) is dict
        with torch.no_grad():
            self.as_given = sum(self._check(site, shape) for site, shape in symmetry.shapes.items())
        self.device = self.device or torch.device("cpu")
        self.dtype = self.dtype or torch.get_default_dtype()
        self.all_blocks = symmetry_blocks(symmetry)
        self.blocks = tuple(b for b in self.all_blocks if b.names)

    @property
    def odd(self) -> Mapping[str, tuple[bool, ...]]:
        """Site -> which of its features change sign with signed units."""
        return self._odd

    @property
    def work_dtype(self) -> torch.dtype:
        """The dtype of gain matrices: that of the features, but at least float32."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    @property
    def rounding(self) -> float:
        """Relative changes of the objective below this are rounding."""
        return 8 * torch.finfo(self.work_dtype).eps

    @cached_property
    def touching(self) -> Mapping[str, tuple[Block, ...]]:
        """Free atom -> the blocks that carry it."""
        return {name: tuple(b for b in self.blocks if name in b.names) for name in self.symmetry.atoms}

    @cached_property
    def sums(self) -> UnitSums:
        """Sums over blocks by unit, kept while their atoms stand still."""
        return UnitSums(self)

    def features(self, site: str) -> list[tuple[Tensor, Tensor, bool]]:
        """``(fixed, moving, odd)`` for each feature of a site."""
        pairs = zip(self._fixed[site], self._moving[site], self._odd[site], strict=True)
        return [(self._cast(f), self._cast(m), o) for f, m, o in pairs]

    def views(self, block: Block) -> list[tuple[Tensor, Tensor, bool]]:
        """``(fixed, moving, odd)`` for each feature of a block, as views."""
        found = self._views.get(block)
        if found is None:
            found = self._cut(block)
            if (self._plain and self.dtype in _EXACT) or all(f.numel() <= _SMALL for f, _, _ in found):
                self._views[block] = found
        return found

    def _cut(self, block: Block) -> list[tuple[Tensor, Tensor, bool]]:
        return [(block.view(f), block.view(m), o) for f, m, o in self.features(block.site)]

    def objective(self, permutation: Permutation) -> float:
        """The exact objective of one relabeling, up to rounding; every matcher is held against it."""
        return math.fsum(
            inner(f, permutation.apply_site(site, m, signs=odd))
            for site in self.symmetry.sites
            for f, m, odd in self.features(site)
        )

    def contents(self) -> tuple[Symmetry, dict[str, Any], dict[str, Any], dict[str, Any]]:
        """The arguments that make the same problem elsewhere, read from wherever they lie."""
        fixed, moving = ({s: tuple(side[s]) for s in self.symmetry.sites} for side in (self._fixed, self._moving))
        return self.symmetry, fixed, moving, dict(self._odd)

    def _check(self, site: str, shape: tuple[int, ...]) -> float:
        """Checks the features of a site, and returns what it adds to the objective of the identity."""
        for side, given in (("fixed", self._fixed), ("moving", self._moving)):
            if site not in given:
                raise MatchError(f"site '{site}' is missing from {side}=, which has {sorted(given)}")
        fixed, moving = self._fixed[site], self._moving[site]
        if isinstance(fixed, Tensor) or isinstance(moving, Tensor):
            raise MatchError(f"site '{site}': expected a sequence of feature tensors, got one tensor: wrap it")
        if len(fixed) != len(moving):
            raise MatchError(f"site '{site}': {len(fixed)} features in fixed=, {len(moving)} in moving=")
        self.counts[site] = len(fixed)
        self._odd[site] = self._read_odd(site, len(fixed))
        for side, features in (("fixed", fixed), ("moving", moving)):
            for k, value in enumerate(features):
                if wrong := self._wrong(value, shape):
                    raise MatchError(f"site '{site}', feature {k} of {side}=: {wrong}")
        # one product tells of any NaN or infinity on either side; only a suspect one, which may be an overflow, pays
        # for the full check
        value = sum(inner(self._cast(f), self._cast(m)) for f, m in zip(fixed, moving, strict=True))
        if not math.isfinite(value):
            for side, features in (("fixed", fixed), ("moving", moving)):
                for k, tensor in enumerate(features):
                    if bad := int((~tensor.isfinite()).sum()):
                        what = f"site '{site}', feature {k} of {side}="
                        raise MatchError(f"{what}: {bad} of {tensor.numel()} values are NaN or infinite")
        return value

    def _wrong(self, value: Tensor, shape: tuple[int, ...]) -> str | None:
        """What is wrong with a feature; the first one says which device the others must have."""
        if not isinstance(value, Tensor) or not value.is_floating_point():
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            return f"expected a tensor of real floating point numbers, got {kind}"
        if value.shape != shape:
            return f"expected shape {shape}, as in the symmetry, got {tuple(value.shape)}"
        self.device = self.device or value.device
        self.dtype = torch.promote_types(self.dtype or value.dtype, value.dtype)
        if value.device != self.device:
            return f"lies on {value.device}, the first site on {self.device}; move one of them"
        return None

    def _cast(self, value: Tensor) -> Tensor:
        """A feature in the widest dtype there is, and at least float32."""
        value = value.detach().to(self.dtype)
        return value if value.dtype in _EXACT else value.float()


def objective(
    symmetry: Symmetry | SymmetrySpec, fixed: Features, moving: Features, permutation: Permutation, *, odd: Any = None
) -> float:
    """The quantity that matchers maximize: sum over sites and features of ``<fixed, permutation moving>``.

    Args:
        symmetry: The group.
        fixed: Site -> features, tensors of the site's shape.
        moving: Site -> as many features.
        permutation: The relabeling of ``moving``.
        odd: Which features change sign with signed units; see :func:`match`.

    Example:
        >>> symmetry = Symmetry.from_axes({"w": ("unit",)}, shapes={"w": (3,)})
        >>> w = torch.tensor([1.0, 2.0, 3.0])
        >>> objective(symmetry, {"w": (w,)}, {"w": (w,)}, symmetry.identity())
        14.0
    """
    return Problem(symmetry, fixed, moving, odd).objective(permutation)


def _read_odd(symmetry: Symmetry, odd):
    if odd is None:
        if marked := sorted(symmetry.signed | symmetry.rotated):
            raise MatchError(
                f"the atoms {marked} have signs or are rotated, so odd= must say which features change sign with "
                "them, one bool per feature: for locations and scales odd=(True, False)"
            )
        return lambda site, count: (False,) * count

    def read(site: str, count: int) -> tuple[bool, ...]:
        given = odd.get(site) if isinstance(odd, Mapping) else odd
        if given is None or len(given) != count:
            raise MatchError(f"site '{site}': odd= must hold one bool for each of its {count} features, got {given}")
        return tuple(bool(o) for o in given)

    return read


def symmetry_blocks(symmetry: Symmetry) -> tuple[Block, ...]:
    """The blocks of all sites, which live as long as the symmetry, with all that is planned on them."""
    if symmetry not in _KEPT:
        _KEPT[symmetry] = tuple(b for site in symmetry.sites for b in symmetry.blocks(site))
    return _KEPT[symmetry]
