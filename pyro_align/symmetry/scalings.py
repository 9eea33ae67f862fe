"""Positive scalings of units: what a ReLU lets pass from one layer to the next.

They keep a likelihood and, under the usual priors, not the joint. They are no part of a group's elements: a posterior
is brought to the one scale that a gauge chooses, by :func:`~pyro_align.canonical`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_align.axes import Axis, coordinates


@dataclass(frozen=True)
class Scaling:
    """One positive number a unit: values along the axes of an atom are multiplied by its powers.

    Attributes:
        atom: The atom whose units are scaled.
        exponents: ``(site, axis, exponent)``; axes left out do not change.
    """

    atom: str
    exponents: tuple[tuple[str, int, float], ...]

    def powers(self, sites: Mapping[str, tuple[Axis, ...]], site: str) -> Tensor:
        """The exponent of every unit in every entry of a site, ``(*site_shape, size)`` by broadcasting."""
        size = next(n for s, i, _ in self.exponents if (n := _units(sites[s][i], self.atom)))
        out = torch.zeros(*(1,) * len(sites[site]), size, dtype=torch.float64, device="cpu")
        for name, axis, exponent in self.exponents:
            if name == site:
                index = coordinates(sites[site][axis])[self.atom]
                hot = torch.nn.functional.one_hot(index.clamp_min(0), size) * (index >= 0).unsqueeze(-1)
                shape = [len(index) if i == axis else 1 for i in range(len(sites[site]))]
                out = out + exponent * hot.double().reshape(*shape, size)
        return out

    def apply(
        self, sites: Mapping[str, tuple[Axis, ...]], values: Mapping[str, Tensor], log_scale: Tensor
    ) -> dict[str, Tensor]:
        """Site -> value scaled.

        Args:
            sites: The axes of the sites.
            values: Site -> ``site_shape``.
            log_scale: The logarithm of each unit's scale, ``(size,)``.
        """
        out = dict(values)
        for site in {s for s, _, _ in self.exponents} & set(values):
            factor = (self.powers(sites, site) @ log_scale.double().cpu()).exp()
            out[site] = values[site] * factor.to(values[site])
        return out

    def __str__(self) -> str:
        parts = (f"{site}[{axis}]{'' if k == 1 else f'^{k:g}'}" for site, axis, k in self.exponents)
        return f"{self.atom}: " + ", ".join(parts)


def _units(axis: Axis, atom: str) -> int:
    index = coordinates(axis).get(atom)
    return 0 if index is None else int(index.max()) + 1
