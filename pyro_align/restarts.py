"""Restarts of one model: are the fits the same, and which of their units or factors come back?

Fits that differ by labels alone are one fit. What is left after alignment tells how far they agree: the distances
between them, and for every unit how near it lies to its partners, as against the other units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyro_align.alignment import ManyAlignments, align_many
from pyro_align.diagnostics import add_units
from pyro_align.errors import PyroAlignError
from pyro_align.symmetry.group import Symmetry
from pyro_align.symmetry.spec import SymmetrySpec

_OTHERS = 8  # most other units that a unit is compared with


@dataclass(frozen=True, eq=False)
class Stability:
    """How far the restarts of a model agree, labels apart.

    Attributes:
        alignments: The fits brought to one frame; ``alignments.guides`` are the relabeled ones.
        names: Their names.
        ratios: Atom -> for each pair of fits and each unit of the common frame, the distance of the unit's two versions
            over their median distance to other units, ``(fits, fits, *outer sizes, size)``: 0 for the same unit, about
            1 for two that have nothing to do with each other.
        threshold: Ratio below which a unit counts as the same.

    Example:
        >>> import torch
        >>> from pyro_align import SymmetrySpec
        >>> from pyro_align.restarts import stability
        >>> loadings = torch.tensor([[5.0, 0.0], [0.0, 5.0], [9.0, 9.0]])
        >>> other = torch.tensor([[9.0, 9.1], [5.1, 0.0], [-4.0, -5.0]])  # one factor is another one
        >>> fits = [{"w": w + 0.1 * torch.randn(50, 3, 2)} for w in (loadings, loadings[[2, 0, 1]], other)]
        >>> found = stability(fits, SymmetrySpec({"w": ("factor", None)}), reference=0)
        >>> sorted(found.units()["fits"])
        [2, 3, 3]
    """

    alignments: ManyAlignments
    names: tuple[str, ...]
    ratios: Mapping[str, Tensor] = field(repr=False)
    threshold: float

    @property
    def distances(self) -> np.ndarray:
        """W2 distance of each pair of fits after alignment, ``(fits, fits)``."""
        return self.alignments.distances

    @property
    def distances_before(self) -> np.ndarray:
        """The same before alignment."""
        return self.alignments.distances_before

    def units(self) -> pd.DataFrame:
        """Which units come back: one row per atom and unit.

        Columns: ``ratio``, the median over pairs of fits of :attr:`ratios`; ``fits``, the number of fits that have the
        unit, of those that agree best; ``recurs``, whether more than half of the fits are among them.
        """
        frames = {}
        for atom, ratios in self.ratios.items():
            flat = ratios.flatten(2)
            pairs = torch.stack([flat[i, j] for i, j in permutations(range(len(flat)), 2)])
            count = (flat < self.threshold).sum(1).max(0).values.numpy()
            columns = {"ratio": pairs.median(0).values.numpy(), "fits": count, "recurs": 2 * count > len(flat)}
            frames[atom] = pd.DataFrame(columns).rename_axis("unit")
        return pd.concat(frames, names=["atom"])

    def summary(self) -> pd.DataFrame:
        """One row per fit.

        Columns: mean W2 distance to the other fits, ``before`` and ``aligned``; ``shared``, the fraction of its units
        that more than half of the other fits have too.
        """
        others = len(self.names) - 1
        same = torch.cat([(r.flatten(2) < self.threshold) for r in self.ratios.values()], -1).sum(1) - 1
        columns = {
            "before": self.distances_before.sum(1) / others,
            "aligned": self.distances.sum(1) / others,
            "shared": (2 * same > others).double().mean(1).numpy(),
        }
        return pd.DataFrame(columns, index=pd.Index(self.names, name="fit"))

    def plot(self, ax: Any = None) -> Any:
        """A dendrogram of the aligned distances; see :func:`pyro_align.plots.plot_stability`."""
        from pyro_align import plots

        return plots.plot_stability(self, ax=ax)

    def __str__(self) -> str:
        upper = np.triu_indices(len(self.names), 1)
        units = self.units()
        recurring = ", ".join(
            f"{atom} {int(part.sum())}/{len(part)}" for atom, part in units["recurs"].groupby(level="atom", sort=False)
        )
        return (
            f"Stability of {len(self.names)} fits: mean W2 distance {self.distances_before[upper].mean():.4g} -> "
            f"{self.distances[upper].mean():.4g}\nunits that most fits have: {recurring}"
        )


def stability(
    fits: Sequence[Any] | Mapping[str, Any],
    symmetry: Symmetry | SymmetrySpec,
    *,
    threshold: float = 0.3,
    **options: Any,
) -> Stability:
    """Whether restarts of one model are the same fit, and which of their units come back.

    Args:
        fits: Guides, networks, state dicts, or draws of the sites, two or more; or name -> fit.
        symmetry: The model's symmetry.
        threshold: A unit counts as the same in two fits where its distance is less than this part of the distance to
            other units.
        options: Those of :func:`~pyro_align.align_many`. Sets of draws have no barycenter: they need ``reference=``.

    Raises:
        PyroAlignError: There are fewer than two fits, or nothing in them can be relabeled.
        SymmetryError: The symmetry does not fit them.

    Example:
        >>> import torch
        >>> from pyro_align import find_symmetry
        >>> from pyro_align.restarts import stability
        >>> def network():
        ...     return torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
        >>> nets = {f"seed {k}": network() for k in range(3)}
        >>> list(stability(nets, find_symmetry(nets["seed 0"], torch.randn(5, 2))).summary().columns)
        ['before', 'aligned', 'shared']
    """
    names = tuple(fits) if isinstance(fits, Mapping) else tuple(str(k) for k in range(len(fits)))
    given = list(fits.values()) if isinstance(fits, Mapping) else list(fits)
    if len(given) < 2:
        raise PyroAlignError(f"stability compares fits with one another: give two or more, got {len(given)}")
    if not threshold > 0:
        raise PyroAlignError(f"threshold: expected a ratio of distances > 0, got {threshold!r}")
    many = align_many(given, symmetry, **options)
    group = many.permutations[0].symmetry
    locations = [{site: q.features("means")[site][0].double() for site in group.sites} for q in many.posteriors]
    atoms = [name for name, atom in group.atoms.items() if not atom.rotates and atom.size > 1]
    if not atoms:
        raise PyroAlignError("the symmetry has no units of which there are two or more: there is nothing to compare")
    return Stability(many, names, {atom: _ratios(group, atom, locations) for atom in atoms}, threshold)


def _ratios(symmetry: Symmetry, atom: str, fits: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """Distance of each unit's versions in two fits over that to others, ``(fits, fits, *outer, size)``."""
    shape = (*symmetry.outer_shape(atom), symmetry.atoms[atom].size)
    size = shape[-1]
    steps = sorted({round(s) for s in np.linspace(1, size - 1, min(size - 1, _OTHERS))})
    units = torch.arange(size, device="cpu")
    turned = [symmetry.permutation({atom: ((units + s) % size).expand(shape)}) for s in steps]
    carriers = dict.fromkeys(site for site, _ in symmetry.carriers[atom])

    def apart(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Tensor:
        total = torch.zeros(shape, dtype=torch.float64, device="cpu")
        for site in carriers:
            gap = (one[site] - other[site]).square().cpu()
            add_units(total, atom, symmetry.atoms[atom].within, symmetry.sites[site], gap)
        return total

    out = torch.zeros(len(fits), len(fits), *shape, dtype=torch.float64, device="cpu")
    for i, j in permutations(range(len(fits)), 2):
        moved = [{site: p.apply_site(site, fits[j][site]) for site in carriers} for p in turned]
        chance = torch.stack([apart(fits[i], m) for m in moved]).median(0).values
        out[i, j] = (apart(fits[i], fits[j]) / chance.clamp_min(1e-300)).sqrt()
    return torch.maximum(out, out.transpose(0, 1))
