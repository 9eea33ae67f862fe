"""``AutoGaussian``: a dense Gaussian whose precision is stored by its factors.

In unconstrained coordinates it is a :class:`DenseNormal`, and so is its geometry. A relabeling moves the blocks of the
factors, so the relabeled guide has the type and the sparsity of the old one. Inside a geodesic the sparsity is lost,
and the guide is an ``AutoMultivariateNormal``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from pyro.infer.autoguide.gaussian import AutoGaussianDense
from torch import Tensor

from pyro_align.errors import GuideError
from pyro_align.guides.families.gaussian import DenseNormal, StoredForm
from pyro_align.guides.families.multivariate import dense_writer_over, prototype_nodes
from pyro_align.guides.pyro_state.modules import Prototype, RawParameter, read_parameter, site_specs
from pyro_align.guides.registry import register_guide
from pyro_align.guides.relabel import Relabeling
from pyro_align.guides.sites import SiteSpec
from pyro_align.symmetry.element import Permutation


@dataclass(frozen=True, eq=False)
class PrecisionFactors(StoredForm):
    """``AutoGaussian``: scaled and shifted coordinates whose precision is the sum of ``A A^T`` over factors.

    Each factor is a stack of blocks, one for every index of its plates; ``places`` says which coordinates the rows of
    a block stand for.

    Attributes:
        prototype: Makes the guide.
        sites: The sites, in the order in which coordinates are concatenated.
        locs: Site -> location.
        scales: Site -> scale.
        places: Factor -> coordinate of each row, ``(blocks, rows)``.
        roots: Factor -> ``A``, ``(*plates, rows, columns)``.
        whites: Factor -> white vector ``w``, ``(*plates, columns)``; the information vector is the sum of ``A w``.
    """

    prototype: Prototype
    sites: Mapping[str, SiteSpec]
    locs: Mapping[str, RawParameter] = field(repr=False)
    scales: Mapping[str, RawParameter] = field(repr=False)
    places: Mapping[str, Tensor] = field(repr=False)
    roots: Mapping[str, RawParameter] = field(repr=False)
    whites: Mapping[str, RawParameter] = field(repr=False)

    def permute(self, p: Permutation) -> PrecisionFactors:
        act = Relabeling(p, self.sites)
        index, sign = act.flat(list(self.sites))
        moved = {d: self._move_factor(d, index, sign) for d in self.places}
        return replace(
            self,
            locs={k: v.with_raw(act.unconstrained(k, v.raw)) for k, v in self.locs.items()},
            scales={k: v.with_raw(act.unconstrained(k, v.raw, signs=False)) for k, v in self.scales.items()},
            roots={d: root for d, (root, _) in moved.items()},
            whites={d: white for d, (_, white) in moved.items()},
        )

    def _move_factor(self, name: str, index: Tensor, sign: Tensor | None) -> tuple[RawParameter, RawParameter]:
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
        if sign is not None:
            values = values * sign[places].to(values).unsqueeze(-1)
        whites = white.raw.reshape(len(places), white.raw.shape[-1])[block]
        return root.with_raw(values.reshape(root.raw.shape)), white.with_raw(whites.reshape(white.raw.shape))

    def build(self) -> AutoGaussianDense:
        parts = {"locs": self.locs, "scales": self.scales, "prec_sqrts": self.roots, "white_vecs": self.whites}
        return self.prototype.build({f"{part}.{k}": v for part, values in parts.items() for k, v in values.items()})

    def moments(self) -> tuple[Tensor, Tensor]:
        """Location ``(D,)`` and lower root ``(D, D)`` of the covariance, by QR: no condition number is squared."""
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
    """For each row of ``wanted`` the block and the row of ``places`` with these coordinates; None if there is none.

    Args:
        places: Coordinates of each block's rows, ``(blocks, rows)``.
        wanted: The coordinates to be found, ``(blocks, rows)``.

    Returns:
        ``block``, ``(blocks,)``, and ``row``, ``(blocks, rows)``.
    """
    have, want = places.sort(-1), wanted.sort(-1)
    kind = torch.unique(torch.cat([have.values, want.values]), dim=0, return_inverse=True)[1]
    here, there = (k.sort(stable=True) for k in kind.split(len(places)))
    if not torch.equal(here.values, there.values):
        return None
    block = torch.empty_like(here.indices)
    block[there.indices] = here.indices
    row = torch.empty_like(want.indices).scatter(-1, want.indices, have.indices[block])
    return block, row


@register_guide(AutoGaussianDense)
def read_auto_gaussian(guide: AutoGaussianDense) -> DenseNormal:
    """Reads locations, scales and every factor; ``AutoGaussian(model)`` makes guides of this type."""
    latent = {k: site for k, site in guide.__dict__.get("_factors", {}).items() if not site["is_observed"]}
    shapes = {k: (site["fn"].batch_shape, guide._unconstrained_event_shapes[k]) for k, site in latent.items()}
    nodes = prototype_nodes(guide, latent, shapes)
    sites = site_specs(nodes, full_plates=False)
    roots = {d: read_parameter(guide, f"prec_sqrts.{d}") for d in guide._factors}
    form = PrecisionFactors(
        Prototype.of(guide),
        sites,
        {k: read_parameter(guide, f"locs.{k}") for k in sites},
        {k: read_parameter(guide, f"scales.{k}") for k in sites},
        {d: guide._dense_scatter[d][0].cpu().reshape(-1, root.raw.shape[-2]) for d, root in roots.items()},
        roots,
        {d: read_parameter(guide, f"white_vecs.{d}") for d in guide._factors},
    )
    return DenseNormal(sites, *form.moments(), dense_writer_over(form.prototype, nodes), form)
