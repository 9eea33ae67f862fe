"""TyXe's own guide, ``tyxe.guides.AutoNormal``: a location and a scale a site, as in Pyro's, under other names."""

from __future__ import annotations

from functools import partial
from typing import Any

from pyro import poutine
from torch import Tensor
from torch.distributions import constraints

from pyro_align.guides.families.mean_field import MeanFieldNormal
from pyro_align.guides.pyro_state.modules import Prototype, RawParameter, latent_nodes, read_parameter, site_specs
from pyro_align.guides.registry import register_outside


@register_outside("tyxe.guides.AutoNormal")
def read_tyxe_auto_normal(guide: Any) -> MeanFieldNormal:
    """Reads ``<site>.loc`` and ``<site>.scale``, either of which may be a constant instead of a parameter.

    Raises:
        GuideError: The guide has not run yet.
    """
    sites = site_specs(latent_nodes(guide), guide, full_plates=False)
    locs = {k: _read(guide, f"{k}.loc") for k in sites}
    scales = {k: _read(guide, f"{k}.scale") for k in sites}
    prototype = Prototype.of(guide)
    _unwrap_supports(prototype.attributes["prototype_trace"])
    return MeanFieldNormal(sites, {k: v.value for k, v in locs.items()}, scales, partial(_write, prototype, locs))


def _read(guide, path: str) -> RawParameter:
    *parents, name = path.split(".")
    owner = guide
    for part in parents:
        owner = owner._modules.get(part)
    fixed = None if owner is None else owner.__dict__.get(name)
    if isinstance(fixed, Tensor):  # train_loc=False, train_scale=False
        return RawParameter(fixed.detach().clone(), kind="plain")
    return read_parameter(guide, path)


def _unwrap_supports(trace: poutine.Trace) -> None:
    """TyXe looks whether a site's innermost distribution is real, and a slim trace knows the outermost support only.

    Without this its sites would be transformed normals, for which its ELBO finds no closed-form divergence.
    """
    for node in trace.nodes.values():
        support = node["fn"].support
        while isinstance(support, constraints.independent):
            support = support.base_constraint
        if support is constraints.real:
            node["fn"].support = support


def _write(prototype: Prototype, like: dict[str, RawParameter], q: MeanFieldNormal) -> Any:
    locs = {f"{k}.loc": like[k].with_value(v) for k, v in q.locs.items()}
    return prototype.build({**locs, **{f"{k}.scale": v for k, v in q.scales.items()}})
