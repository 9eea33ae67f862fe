"""Correlated Gaussians that a guide stores in a form of its own: ``AutoGaussian`` and ``AutoStructured``.

In unconstrained coordinates either is a :class:`DenseNormal`, and so is its geometry. A relabeling moves the blocks of
the stored form, so the relabeled guide has the type and the dependencies of the old one. Inside a geodesic sites depend
on each other in any way, and the guide is an ``AutoMultivariateNormal``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from pyro.infer.autoguide import AutoStructured
from pyro.infer.autoguide.gaussian import AutoGaussianDense
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.distributions import biject_to

from pyro_align.errors import GuideError
from pyro_align.guides.families.gaussian import DenseNormal, StoredForm, lower_root
from pyro_align.guides.families.multivariate import dense_writer
from pyro_align.guides.families.wrapped import wrap_guide
from pyro_align.guides.posterior import Posterior
from pyro_align.guides.pyro_state.modules import (
    UNTRAINED,
    Prototype,
    RawParameter,
    bare_node,
    read_parameter,
    site_specs,
    trace_of,
)
from pyro_align.guides.registry import register_guide
from pyro_align.guides.relabel import Relabeling
from pyro_align.symmetry.element import Permutation


@dataclass(frozen=True, eq=False)
class PrecisionFactors(StoredForm):
    """``AutoGaussian``: scaled and shifted coordinates whose precision is the sum of ``A A^T`` over factors.

    Each factor is a stack of blocks, one for every index of its plates; ``places`` says which coordinates the rows of
    a block stand for.

    Attributes:
        places: Factor -> coordinate of each row, ``(blocks, rows)``.
        roots: Factor -> ``A``, ``(*plates, rows, columns)``.
        whites: Factor -> white vector ``w``, ``(*plates, columns)``; the information vector is the sum of ``A w``.
    """

    places: Mapping[str, Tensor] = field(repr=False)
    roots: Mapping[str, RawParameter] = field(repr=False)
    whites: Mapping[str, RawParameter] = field(repr=False)

    def permute(self, p: Permutation) -> PrecisionFactors:
        act = Relabeling(p, self.sites)
        index, sign = act.flat()
        moved = {d: self._move_factor(d, index, sign) for d in self.places}
        return replace(
            self,
            locs={k: v.with_raw(act.unconstrained(k, v.raw)) for k, v in self.locs.items()},
            scales={k: v.with_raw(act.unconstrained(k, v.raw, signs=False)) for k, v in self.scales.items()},
            roots={d: root for d, (root, _) in moved.items()},
            whites={d: white for d, (_, white) in moved.items()},
        )

    def _move_factor(self, name: str, index: Tensor, sign: Tensor) -> tuple[RawParameter, RawParameter]:
        places, root, white = self.places[name], self.roots[name], self.whites[name]
        source = _matching_blocks(places, index[places])
        if source is None:
            raise GuideError(
                f"the relabeling does not respect the sparsity of this AutoGaussian: it takes the coordinates of a "
                f"block of factor '{name}' to coordinates of several blocks; relabel the guide by "
                "wrapping: wrap_guide(guide, *args)"
            )
        block, row = (t.to(root.raw.device) for t in source)
        values = root.raw.reshape(*places.shape, root.raw.shape[-1])[block.unsqueeze(-1), row]
        values = values * sign[places].to(values).unsqueeze(-1)
        whites = white.raw.reshape(len(places), white.raw.shape[-1])[block]
        return root.with_raw(values.reshape(root.raw.shape)), white.with_raw(whites.reshape(white.raw.shape))

    def build(self) -> AutoGaussianDense:
        parts = {"locs": self.locs, "scales": self.scales, "prec_sqrts": self.roots, "white_vecs": self.whites}
        return self.prototype.build({f"{part}.{k}": v for part, values in parts.items() for k, v in values.items()})

    def moments(self) -> tuple[Tensor, Tensor]:
        # by QR, so that no condition number is squared
        scale = torch.cat([v.value.flatten() for v in self.scales.values()]).double()
        loc = torch.cat([v.value.flatten() for v in self.locs.values()])
        columns, white = [], []
        for name, places in self.places.items():
            values = self.roots[name].value.reshape(*places.shape, -1).double()
            spread = values.new_zeros(len(values), values.shape[-1], len(loc))
            where = places.to(values.device).unsqueeze(1).expand(-1, values.shape[-1], -1)
            columns.append(spread.scatter(-1, where, values.mT).flatten(0, 1))
            white.append(self.whites[name].value.double().flatten())
        # With coordinates reversed, the upper R of a QR decomposition becomes the lower K of P = K^T K, whose inverse
        # is a lower root of the covariance.
        q, r = torch.linalg.qr(torch.cat(columns).flip(-1))
        if not bool((r.diagonal().abs() > 0).all()):
            raise GuideError("the guide's precision is singular; refit it, or in float64")
        mean = torch.linalg.solve_triangular(r, (q.mT @ torch.cat(white)).unsqueeze(-1), upper=True).squeeze(-1).flip(0)
        one = torch.eye(len(r), dtype=r.dtype, device=r.device)
        lower = torch.linalg.solve_triangular(r.flip(0, 1), one, upper=False)
        root = scale.unsqueeze(-1) * lower * lower.diagonal().sign()
        return loc + (scale * mean).to(loc.dtype), root.to(loc.dtype)


def _matching_blocks(places: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor] | None:
    """The block ``(blocks,)`` and rows ``(blocks, rows)`` of ``places`` that hold the wanted coordinates, or None."""
    have, want = places.sort(-1), wanted.sort(-1)
    kind = torch.unique(torch.cat([have.values, want.values]), dim=0, return_inverse=True)[1]
    here, there = (k.sort(stable=True) for k in kind.split(len(places)))
    if not torch.equal(here.values, there.values):
        return None
    block = torch.empty_like(here.indices)
    block[there.indices] = here.indices
    row = torch.empty_like(want.indices).scatter(-1, want.indices, have.indices[block])
    return block, row


@dataclass(frozen=True, eq=False)
class LinearRegressions(StoredForm):
    """``AutoStructured``: ``x_d = m_d + L_d eps_d + sum_u W_du (x_u - m_u)`` for each site d and its upstream sites u.

    Attributes:
        trils: Site -> triangular ``T`` with ``L = diag(s) T``, where the conditional is not diagonal.
        weights: (downstream, upstream) -> ``W``.
    """

    trils: Mapping[str, RawParameter] = field(repr=False)
    weights: Mapping[tuple[str, str], RawParameter] = field(repr=False)

    def permute(self, p: Permutation) -> LinearRegressions:
        move = {k: Relabeling(p, {k: spec}).rows for k, spec in self.sites.items()}
        trils = {}
        for k, tril in self.trils.items():
            moved = move[k](tril.value)
            trils[k] = tril if torch.equal(moved, tril.value) else tril.with_value(lower_root(moved))
        return replace(
            self,
            locs={k: v.with_raw(move[k](v.raw)) for k, v in self.locs.items()},
            scales={k: v.with_raw(move[k](v.raw, signs=False)) for k, v in self.scales.items()},
            trils=trils,
            weights={(d, u): v.with_raw(move[u](move[d](v.raw).mT).mT) for (d, u), v in self.weights.items()},
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


@register_guide(AutoGaussianDense)
def read_auto_gaussian(guide: AutoGaussianDense) -> DenseNormal:
    """Reads locations, scales and every factor; ``AutoGaussian(model)`` makes guides of this type."""
    latent = {k: site for k, site in guide.__dict__.get("_factors", {}).items() if not site["is_observed"]}
    nodes = _nodes(guide, latent)
    roots = {d: read_parameter(guide, f"prec_sqrts.{d}") for d in guide._factors}
    places = {d: guide._dense_scatter[d][0].cpu().reshape(-1, root.raw.shape[-2]) for d, root in roots.items()}
    whites = {d: read_parameter(guide, f"white_vecs.{d}") for d in guide._factors}
    return _dense(PrecisionFactors(*_common(guide, nodes), places, roots, whites), nodes)


@register_guide(AutoStructured)
def read_auto_structured(guide: AutoStructured) -> Posterior:
    """Reads a guide whose conditionals are normal and whose dependencies are linear; any other is wrapped."""
    latent = dict(guide.__dict__.get("_sorted_sites", ()))
    kinds = {guide.conditionals[k] if isinstance(guide.conditionals[k], str) else "callable" for k in latent}
    links = [(d, u, dep) for d in latent for u, dep in guide.dependencies.get(d, {}).items()]
    if not kinds <= {"normal", "mvn"} or any(dep != "linear" for *_, dep in links):
        return wrap_guide(guide)
    trils = {k: read_parameter(guide, f"scale_trils.{k}") for k in latent if guide.conditionals[k] == "mvn"}
    weights = {(d, u): read_parameter(guide, f"deps.{d}.{u}.weight") for d, u, _ in links}
    nodes = _nodes(guide, latent)
    return _dense(LinearRegressions(*_common(guide, nodes), trils, weights), nodes)


def _nodes(guide: PyroModule, latent: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Nodes of a prototype trace for the latent sites: these guides empty theirs."""
    if not latent:
        raise GuideError(f"this {type(guide).__name__} is untrained: {UNTRAINED}")
    nodes = {}
    for name, site in latent.items():
        batch = guide._batch_shapes[name] if hasattr(guide, "_batch_shapes") else site["fn"].batch_shape
        latent_shape = torch.Size((*batch, *guide._unconstrained_event_shapes[name]))
        shape = biject_to(site["fn"].support).forward_shape(latent_shape)
        like = read_parameter(guide, f"locs.{name}").raw
        nodes[name] = bare_node(name, site["fn"], like, shape, site["cond_indep_stack"])
    return nodes


def _common(guide: PyroModule, nodes: Mapping[str, dict[str, Any]]) -> tuple[Any, ...]:
    """What every :class:`StoredForm` has."""
    parts = ({k: read_parameter(guide, f"{part}.{k}") for k in nodes} for part in ("locs", "scales"))
    return Prototype.of(guide), site_specs(nodes, full_plates=False), *parts


def _dense(form: StoredForm, nodes: Mapping[str, dict[str, Any]]) -> DenseNormal:
    """The Gaussian, which a guide of its own type or an ``AutoMultivariateNormal`` over the same sites stores."""
    kept = ("_model", "create_plates", "_prototype_frames", "_init_scale")
    shapes = {k: biject_to(n["fn"].support).inverse_shape(n["value"].shape) for k, n in nodes.items()}
    attributes = {
        **{k: form.prototype.attributes[k] for k in kept if k in form.prototype.attributes},
        "prototype_trace": trace_of(nodes),
        "_unconstrained_shapes": shapes,
        "_cond_indep_stacks": {k: n["cond_indep_stack"] for k, n in nodes.items()},
        "latent_dim": sum(math.prod(shape) for shape in shapes.values()),
    }
    writer = dense_writer(replace(form.prototype, attributes=attributes))
    return DenseNormal(form.sites, *form.moments(), writer, form)
