"""Hand-written mean-field guides: found from the trace, or by a declared mapping from sites to parameters.

A guide that draws every latent site from a normal (or a log-normal) whose parameters do not depend on other draws is a
mean-field guide, however it is written. It is read as a :class:`MeanFieldNormal` and written back as an ``AutoNormal``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal, init_to_feasible
from pyro.nn import PyroModule
from torch import Tensor
from torch.distributions import constraints

from pyro_align.errors import GuideError
from pyro_align.guides.families.entrywise import write_entries
from pyro_align.guides.families.mean_field import AUTO_NORMAL, MeanFieldNormal
from pyro_align.guides.families.wrapped import trace_guide
from pyro_align.guides.pyro_state.modules import Prototype, RawParameter, latent_sites, site_specs, trace_of
from pyro_align.guides.sites import SiteSpec
from pyro_align.model.keywords import options_apart

# By exact type: a subclass may mean another law by the same parameters, as a radial one does.
_NORMALS = (torch.distributions.Normal, dist.Normal)
_AROUND = tuple(
    getattr(module, name)
    for module in (torch.distributions, dist)
    for name in ("LogNormal", "TransformedDistribution", "Independent", "ExpandedDistribution", "MaskedDistribution")
    if hasattr(module, name)
)


@options_apart
def mean_field_guide(
    guide: Any, *args: Any, parameters: Mapping[str, Sequence[str]] | None = None, **kwargs: Any
) -> MeanFieldNormal:
    """Reads a hand-written mean-field guide.

    Args:
        guide: The guide: a function or a PyroModule.
        args: Arguments to run it with.
        parameters: Site -> names of its location and scale in the param store, both of the unconstrained value (of
            the log of a positive site, say). Needed where plates are subsampled. Without it, both are found from the
            trace.
        kwargs: Keyword arguments to run it with.

    Returns:
        A posterior whose guides are ``AutoNormal``.

    Raises:
        GuideError: A site is not drawn from a normal of its own, or a parameter is missing. Such a guide can still be
            relabeled with ``wrap_guide``.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> from pyro_align import mean_field_guide
        >>> def guide():
        ...     loc = pyro.param("loc", torch.zeros(3))
        ...     scale = pyro.param("scale", torch.ones(3), constraint=dist.constraints.positive)
        ...     pyro.sample("w", dist.Normal(loc, scale).to_event(1))
        >>> mean_field_guide(guide).marginal("w")
        (tensor([0., 0., 0.]), tensor([1., 1., 1.]))
    """
    nodes = latent_sites(trace_guide(guide, args, kwargs, seed=0))
    again = latent_sites(trace_guide(guide, args, kwargs, seed=1))
    if not nodes:
        raise GuideError("the guide has no latent sites")
    if parameters is not None and set(parameters) != set(nodes):
        raise GuideError(f"parameters= names the sites {sorted(parameters)}, the guide has {sorted(nodes)}")
    sites = site_specs(nodes, full_plates=parameters is not None)
    locs, scales = {}, {}
    for name, spec in sites.items():
        if parameters is None:
            pair = _from_trace(spec, nodes[name], again[name])
        else:
            pair = tuple(_from_store(spec, parameter) for parameter in parameters[name])
            if len(pair) != 2:
                raise GuideError(f"site '{name}': expected the names of a location and a scale, got {parameters[name]}")
        locs[name] = RawParameter(pair[0], constraints.real, spec.event_dim)
        scales[name] = RawParameter(pair[0], AutoNormal.scale_constraint, spec.event_dim).with_value(pair[1])
    return MeanFieldNormal(sites, locs, scales, partial(write_entries, _prototype(nodes, guide), AUTO_NORMAL))


def _from_trace(spec: SiteSpec, node: Mapping[str, Any], again: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    if any(f.vectorized and (f.full_size or f.size) != f.size for f in node["cond_indep_stack"]):
        raise GuideError(
            f"site '{spec.name}' stands in a subsampled plate, so a trace shows a part of its parameters; name them: "
            "mean_field_guide(guide, *args, parameters={site: (location, scale)})"
        )
    first, second = _normal_of(spec, node["fn"]), _normal_of(spec, again["fn"])
    if not all(torch.equal(a, b) for a, b in zip(first, second, strict=True)):
        raise GuideError(
            f"site '{spec.name}': its normal depends on other draws, so the guide is not mean-field; "
            "relabel it by wrapping: wrap_guide(guide, *args)"
        )
    return first


def _normal_of(spec: SiteSpec, fn: Any) -> tuple[Tensor, Tensor]:
    """Location and scale of a site's distribution in unconstrained coordinates."""
    base, transforms = fn, []
    while type(base) not in _NORMALS:
        transforms = [*getattr(base, "transforms", []), *transforms]
        inner = getattr(base, "base_dist", None) if type(base) in _AROUND else None
        if inner is None:
            raise GuideError(
                f"site '{spec.name}': drawn from {type(base).__name__}, not from a normal, so the guide is not "
                "mean-field; relabel it by wrapping: wrap_guide(guide, *args)"
            )
        base = inner
    probe = torch.linspace(-2, 2, spec.numel, dtype=spec.dtype, device=spec.device).reshape(spec.unconstrained_shape)
    value = probe
    for transform in transforms:
        value = transform(value)
    alike = value.shape == spec.shape and torch.allclose(value, spec.constrain(probe))
    if not alike:
        raise GuideError(
            f"site '{spec.name}': drawn from a transformed normal that is not normal in Pyro's unconstrained "
            "coordinates; relabel the guide by wrapping: wrap_guide(guide, *args)"
        )
    shape = spec.unconstrained_shape
    return tuple(t.detach().expand(shape).clone() for t in (base.loc, base.scale))


def _from_store(spec: SiteSpec, name: str) -> Tensor:
    store = pyro.get_param_store()
    if name not in store:
        raise GuideError(f"site '{spec.name}': there is no parameter '{name}' in the param store")
    value = RawParameter(store._params[name], store._constraints[name]).value.detach()
    try:
        return value.expand(spec.unconstrained_shape).clone()
    except RuntimeError:
        raise GuideError(
            f"site '{spec.name}': parameter '{name}' has shape {tuple(value.shape)}, "
            f"expected {spec.unconstrained_shape}"
        ) from None


def _prototype(nodes: Mapping[str, dict[str, Any]], guide: Any) -> Prototype:
    """An ``AutoNormal`` over the sites, without a model: it never needs to look at one again."""
    frames = {f.name: f for node in nodes.values() for f in node["cond_indep_stack"] if f.vectorized}
    template = AutoNormal(lambda *args, **kwargs: None, init_loc_fn=init_to_feasible)
    template.__dict__.update(
        prototype_trace=trace_of(nodes),
        _prototype_frames=frames,
        _event_dims={name: node["fn"].event_dim for name, node in nodes.items()},
        _model=(None,),
    )
    return Prototype.of(template.train(guide.training if isinstance(guide, PyroModule) else True))
