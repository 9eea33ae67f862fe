"""``AutoStructured`` with normal conditionals and linear dependencies: a Gaussian stored as regressions.

In unconstrained coordinates it is a :class:`DenseNormal`, and so is its geometry. A relabeling moves rows and columns
of the regressions, so the relabeled guide has the type and the dependencies of the old one. Inside a geodesic sites
depend on each other in any way, and the guide is an ``AutoMultivariateNormal``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from pyro.infer.autoguide import AutoStructured
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_align.errors import GuideError
from pyro_align.guides.families.gaussian import DenseNormal, Rows, StoredForm, lower_root
from pyro_align.guides.families.multivariate import dense_writer_over, prototype_nodes
from pyro_align.guides.families.wrapped import wrap_guide
from pyro_align.guides.posterior import Posterior
from pyro_align.guides.pyro_state.modules import UNTRAINED, Prototype, RawParameter, read_parameter, site_specs
from pyro_align.guides.registry import register_guide
from pyro_align.guides.relabel import Relabeling
from pyro_align.guides.sites import SiteSpec
from pyro_align.symmetry.element import Permutation


@dataclass(frozen=True, eq=False)
class LinearRegressions(StoredForm):
    """``AutoStructured``: ``x_d = m_d + L_d eps_d + sum_u W_du (x_u - m_u)`` for each site d and its upstream sites u.

    Attributes:
        prototype: Makes the guide.
        sites: The sites, each after those it depends on.
        locs: Site -> location ``m``, flat.
        scales: Site -> scale ``s``, flat.
        trils: Site -> triangular ``T`` with ``L = diag(s) T``, where the conditional is not diagonal.
        weights: (downstream, upstream) -> ``W``.
    """

    prototype: Prototype
    sites: Mapping[str, SiteSpec]
    locs: Mapping[str, RawParameter] = field(repr=False)
    scales: Mapping[str, RawParameter] = field(repr=False)
    trils: Mapping[str, RawParameter] = field(repr=False)
    weights: Mapping[tuple[str, str], RawParameter] = field(repr=False)

    def permute(self, p: Permutation) -> LinearRegressions:
        act = Relabeling(p, self.sites)
        rows = {k: Rows(*act.flat([k])) for k in self.sites}
        trils = {k: v if rows[k].rest else v.with_value(lower_root(rows[k](v.value))) for k, v in self.trils.items()}
        return replace(
            self,
            locs={k: v.with_raw(rows[k](v.raw)) for k, v in self.locs.items()},
            scales={k: v.with_raw(rows[k](v.raw, signs=False)) for k, v in self.scales.items()},
            trils=trils,
            weights={(d, u): v.with_raw(rows[u](rows[d](v.raw).mT).mT) for (d, u), v in self.weights.items()},
        )

    def build(self) -> AutoStructured:
        parts = {"locs": self.locs, "scales": self.scales, "scale_trils": self.trils}
        guide = self.prototype.build({f"{part}.{k}": v for part, values in parts.items() for k, v in values.items()})
        for part in ("scales", "scale_trils", "conds", "deps"):
            if part not in guide._modules:
                setattr(guide, part, PyroModule())
        for k in self.sites:
            _set_module(guide.deps, k, PyroModule())
        for (d, u), weight in self.weights.items():
            _set_module(guide.deps.get_submodule(d), u, _linear(weight.raw))
        return guide.train(self.prototype.training)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Location ``(D,)`` and lower root ``(D, D)`` of the covariance."""
        size, offset = sum(spec.numel for spec in self.sites.values()), 0
        rows: dict[str, Tensor] = {}
        for name, spec in self.sites.items():
            scale = self.scales[name].value
            own = scale.unsqueeze(-1) * self.trils[name].value if name in self.trils else torch.diag(scale)
            rows[name] = nn.functional.pad(own, (offset, size - offset - spec.numel))
            for (d, u), weight in self.weights.items():
                if d == name:
                    rows[name] = rows[name] + weight.value @ rows[u]
            offset += spec.numel
        return torch.cat([v.value for v in self.locs.values()]), torch.cat(list(rows.values()))


def _linear(weight: Tensor) -> nn.Linear:
    rows, columns = weight.shape
    # without an initialization, which would draw random numbers
    made = nn.utils.skip_init(nn.Linear, columns, rows, bias=False, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        made.weight.copy_(weight)
    return made


def _set_module(root: nn.Module, path: str, module: nn.Module) -> None:
    """Puts a module at a dotted path; what is there on the way, or at its end, is kept."""
    *parents, name = path.split(".")
    for part in parents:
        if part not in root._modules:
            setattr(root, part, PyroModule())
        root = root._modules[part]
    if name not in root._modules:
        setattr(root, name, module)


@register_guide(AutoStructured)
def read_auto_structured(guide: AutoStructured) -> Posterior:
    """Reads a guide whose conditionals are normal and whose dependencies are linear; any other is wrapped."""
    latent = dict(guide.__dict__.get("_sorted_sites", ()))
    if not latent:
        raise GuideError(f"this AutoStructured is untrained: {UNTRAINED}")
    kinds = {guide.conditionals[k] if isinstance(guide.conditionals[k], str) else "callable" for k in latent}
    links = [(d, u, dep) for d in latent for u, dep in guide.dependencies.get(d, {}).items()]
    if not kinds <= {"normal", "mvn"} or any(dep != "linear" for *_, dep in links):
        return wrap_guide(guide)
    shapes = {k: (guide._batch_shapes[k], guide._unconstrained_event_shapes[k]) for k in latent}
    nodes = prototype_nodes(guide, latent, shapes)
    sites = site_specs(nodes, full_plates=False)
    form = LinearRegressions(
        Prototype.of(guide),
        sites,
        {k: read_parameter(guide, f"locs.{k}") for k in sites},
        {k: read_parameter(guide, f"scales.{k}") for k in sites},
        {k: read_parameter(guide, f"scale_trils.{k}") for k in sites if guide.conditionals[k] == "mvn"},
        {(d, u): read_parameter(guide, f"deps.{d}.{u}.weight") for d, u, _ in links},
    )
    return DenseNormal(sites, *form.moments(), dense_writer_over(form.prototype, nodes), form)
