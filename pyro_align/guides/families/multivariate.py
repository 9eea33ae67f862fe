"""``AutoMultivariateNormal``, and what ``AutoLaplaceApproximation.laplace_approximation`` returns.

Both store the covariance's root as ``scale[:, None] * scale_tril``. A trained guide keeps parameters with a unit
diagonal in ``scale_tril``; a Laplace approximation keeps buffers, the rows of its ``scale_tril`` having unit norm.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from pyro.infer.autoguide import AutoLaplaceApproximation, AutoMultivariateNormal

from pyro_align.errors import GuideError
from pyro_align.guides.families.gaussian import DenseNormal
from pyro_align.guides.pyro_state.modules import Prototype, RawParameter, latent_nodes, read_parameter, site_specs
from pyro_align.guides.registry import register_guide

if TYPE_CHECKING:
    from pyro_align.guides.posterior import Guide


@register_guide(AutoMultivariateNormal)
def read_auto_multivariate_normal(guide: AutoMultivariateNormal) -> DenseNormal:
    """Reads ``loc``, ``scale`` and ``scale_tril``, whether they are parameters or buffers."""
    sites = site_specs(latent_nodes(guide), guide, full_plates=False)
    stored = {name: read_parameter(guide, name) for name in ("loc", "scale", "scale_tril")}
    root = stored["scale"].value.unsqueeze(-1) * stored["scale_tril"].value
    writer = MultivariateWriter(Prototype.of(guide), stored)
    return DenseNormal(sites, stored["loc"].value, root, writer, stored)


@register_guide(AutoLaplaceApproximation)
def read_auto_laplace_approximation(guide: AutoLaplaceApproximation) -> DenseNormal:
    """Refuses: before ``laplace_approximation`` there is a mode and no covariance."""
    raise GuideError(
        "an AutoLaplaceApproximation holds only the mode; fit its covariance and pass what it returns: "
        "guide.laplace_approximation(*args)"
    )


@dataclass(frozen=True, eq=False)
class MultivariateWriter:
    """Writes an ``AutoMultivariateNormal`` whose parameters are stored as in ``like``."""

    prototype: Prototype
    like: dict[str, RawParameter]

    def __call__(self, q: DenseNormal) -> Guide:
        if isinstance(q.stored, dict) and self._alike(q.stored):
            return self.prototype.build(q.stored)
        unit_diagonal = "UnitLowerCholesky" in type(self.like["scale_tril"].constraint).__name__
        scale = q.tril.diagonal() if unit_diagonal else q.tril.square().sum(-1).sqrt()
        values = {"loc": q.loc, "scale": scale.clone(), "scale_tril": q.tril / scale.unsqueeze(-1)}
        return self.prototype.build({name: self.like[name].with_value(value) for name, value in values.items()})

    def _alike(self, stored: dict[str, RawParameter]) -> bool:
        return all(self.like[k].adopt(v).raw is v.raw and self.like[k].kind == v.kind for k, v in stored.items())


def dense_writer(prototype: Prototype) -> MultivariateWriter:
    """Writes an ``AutoMultivariateNormal`` with the attributes of another guide's prototype."""
    nothing = torch.empty(0, device="cpu")
    like = {
        "loc": RawParameter(nothing, kind="parameter"),
        "scale": RawParameter(nothing, AutoMultivariateNormal.scale_constraint),
        "scale_tril": RawParameter(nothing, AutoMultivariateNormal.scale_tril_constraint),
    }
    return MultivariateWriter(replace(prototype, cls=AutoMultivariateNormal), like)
