"""Diagnostics of one posterior: how many of a network's units are active.

A mean-field posterior prunes: a unit whose weights all sit at the prior costs no KL and adds nothing but noise. Two
posteriors of which most units are pruned are easy to align, and their barrier says little about the network's nominal
width, so the effective width belongs next to every barrier.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import pandas as pd
import torch
from torch import Tensor

from pyro_align.axes import Axis, coordinates
from pyro_align.errors import PyroAlignError
from pyro_align.guides import MeanFieldNormal, read_guide
from pyro_align.model.density import Density
from pyro_align.model.guards import untouched
from pyro_align.model.keywords import options_apart
from pyro_align.reporting.tables import text_table
from pyro_align.symmetry.group import Symmetry
from pyro_align.symmetry.spec import SymmetrySpec, bound


@dataclass(frozen=True, eq=False)
class EffectiveWidth:
    """KL of each unit from the prior.

    Attributes:
        kl: Atom -> KL of each unit, ``(*outer sizes, size)`` nats: the sum over all values that carry the unit.
        threshold: KL in nats above which a unit counts as active.
        skipped: Sites whose KL has no closed form; their values are left out.
    """

    kl: Mapping[str, Tensor]
    threshold: float
    skipped: tuple[str, ...] = ()

    @property
    def active(self) -> dict[str, int]:
        """Atom -> number of units above the threshold."""
        return {atom: int((kl > self.threshold).sum()) for atom, kl in self.kl.items()}

    def summary(self) -> pd.DataFrame:
        """One row per atom: units, active units, and the median and greatest KL of a unit in nats."""
        rows = {
            atom: {
                "units": kl.numel(),
                "active": self.active[atom],
                "median_kl": float(kl.median()),
                "max_kl": float(kl.max()),
            }
            for atom, kl in self.kl.items()
        }
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("atom")

    def __str__(self) -> str:
        rows = [
            [atom, str(kl.numel()), str(self.active[atom]), f"{float(kl.median()):.1f}"] for atom, kl in self.kl.items()
        ]
        table = text_table(["atom", "units", f"KL > {self.threshold:g} nats", "median KL"], rows, right=(1, 2, 3))
        return table + (f"\nwithout sites {', '.join(self.skipped)} (no closed-form KL)" if self.skipped else "")


@options_apart
def effective_width(
    model: Callable[..., Any],
    guide: Any,
    symmetry: Symmetry | SymmetrySpec,
    *args: Any,
    threshold: float = 5.0,
    **kwargs: Any,
) -> EffectiveWidth:
    """How many units of each atom are active: those whose KL(q || prior) exceeds a threshold.

    A unit's KL is the sum over every value that carries it: in a network, its incoming weights, bias and outgoing
    weights. Where a prior depends on other latents, it is taken at their posterior means.

    Args:
        model: The model with the priors.
        guide: A mean-field Gaussian guide, or a posterior read from one.
        symmetry: The symmetry whose atoms are counted.
        *args: The model's arguments.
        threshold: KL in nats above which a unit counts as active.
        **kwargs: The model's keyword arguments.

    Raises:
        PyroAlignError: The guide is of another family, or has none of the symmetry's sites.
        TraceError: The model cannot be run.

    Example:
        >>> import torch
        >>> from pyro_align import effective_width, find_symmetry
        >>> from pyro_align.demo.network import bayesian_mlp
        >>> from pyro_align.demo.training import Recipe, fit
        >>> model, x, y = bayesian_mlp([4, 8, 3]), torch.randn(50, 4), torch.arange(50) % 3
        >>> guide = fit(model, x, y, seed=0, recipe=Recipe(epochs=1, temperature=1.0), progress=False)
        >>> effective_width(model, guide, find_symmetry(model, x, y), x, y).active
        {'layer0': 8}
    """
    posterior = read_guide(guide)
    if not isinstance(posterior, MeanFieldNormal):
        raise PyroAlignError(
            f"effective_width needs a mean-field Gaussian (AutoNormal, AutoDiagonalNormal), got "
            f"{type(posterior).__name__}: only there does the KL belong to single units"
        )
    symmetry = bound(symmetry, posterior.shapes, of="guide", error=PyroAlignError)
    divergences = _elementwise_kl(posterior, model, args, kwargs)
    sites = [site for site in symmetry.sites if site in divergences]
    if not sites:
        raise PyroAlignError(f"none of the symmetry's sites {list(symmetry.sites)} has a Normal posterior and prior")
    kl = {}
    for name, atom in symmetry.atoms.items():
        if atom.rotates:  # its dimensions have no identity
            continue
        total = torch.zeros((*symmetry.outer_shape(name), atom.size), dtype=torch.float64, device="cpu")
        for site in sites:
            add_units(total, name, atom.within, symmetry.sites[site], divergences[site])
        kl[name] = total
    return EffectiveWidth(kl, threshold, tuple(s for s in symmetry.sites if s not in divergences))


def shares_off_prior(
    posterior: MeanFieldNormal,
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    nats: float = 0.05,
) -> dict[str, float]:
    """Site -> share of its values whose KL from the prior exceeds ``nats``; needs no symmetry.

    Only of sites with at least 8 values, Normal under posterior and prior. A share near 0 is a site that has collapsed
    to its prior.
    """
    divergences = _elementwise_kl(posterior, model, args, kwargs)
    return {name: float((kl > nats).double().mean()) for name, kl in divergences.items() if kl.numel() >= 8}


def _elementwise_kl(
    posterior: MeanFieldNormal, model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Tensor]:
    """KL of every value of the sites that are Normal under posterior and prior, site-shaped float64 nats."""
    density = Density(model, args, kwargs)
    center = {k: spec.constrain(posterior.marginal(k)[0][None])[0] for k, spec in posterior.sites.items()}
    with untouched(model, seed=0), torch.no_grad():
        nodes = cast(Mapping[str, Any], density.trace(center).nodes)
    out = {}
    for name, spec in posterior.sites.items():
        prior = _base(nodes[name]["fn"]) if name in nodes else None
        if spec.is_real and isinstance(prior, torch.distributions.Normal):
            loc, scale = (t.double() for t in posterior.marginal(name))
            sizes = zip(reversed(prior.batch_shape), reversed(loc.shape), strict=False)
            if len(prior.batch_shape) > loc.dim() or any(n not in (1, m) for n, m in sizes):
                continue  # a subsampled plate: the model shows the priors of a part of the values
            q = torch.distributions.Normal(loc, scale, validate_args=False)
            p = torch.distributions.Normal(prior.loc.double(), prior.scale.double(), validate_args=False)
            out[name] = torch.distributions.kl_divergence(q, p).cpu()
    return out


def _base(fn: Any) -> Any:
    """The distribution inside wrappers that only reshape; a transformed or masked one stays as it is."""
    while type(fn).__name__ in ("Independent", "ExpandedDistribution"):
        fn = fn.base_dist
    return fn


def add_units(total: Tensor, atom: str, within: tuple[str, ...], terms: tuple[Axis, ...], kl: Tensor) -> None:
    """Adds a site's KLs to the units that its values carry; a value counts once for a unit."""
    places = [coordinates(term) for term in terms]
    earlier: list[Tensor] = []
    for axis, place in enumerate(places):
        if atom not in place:
            continue
        unit = _along(place[atom], axis, len(terms))
        valid = unit >= 0
        for outer in within:
            source = next((j for j in (axis, *range(len(terms))) if outer in places[j]), None)
            if source is None:
                return
            index = _along(places[source][outer], source, len(terms))
            valid = valid & (index >= 0)
            unit = unit + index * total.stride(within.index(outer))
        unit, valid = unit.expand(kl.shape), valid.expand(kl.shape)
        for other in earlier:
            valid = valid & (unit != other)
        total.view(-1).index_add_(0, unit[valid], kl[valid])
        earlier.append(unit)


def _along(index: Tensor, axis: int, ndim: int) -> Tensor:
    return index.reshape([-1 if j == axis else 1 for j in range(ndim)])
