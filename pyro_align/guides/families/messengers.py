"""``AutoHierarchicalNormalMessenger`` and ``AutoRegressiveMessenger``: guides that run the model's priors inside.

Their parameters are a location, a scale and a weight per entry, and indexing them relabels the guide exactly if the
priors do not tell units apart: given relabeled values upstream, the prior of a site must be the relabeled one. A
symmetry of the log joint does not quite say so, hence it is checked: the density of relabeled draws under the
relabeled guide must be the old one.

A path moves the parameters on straight lines. It is *not* the Wasserstein-2 geodesic, which has no closed form here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from pyro.infer.autoguide import AutoRegressiveMessenger
from pyro.infer.autoguide.effect import AutoHierarchicalNormalMessenger, AutoMessenger

from pyro_align.errors import GuideError
from pyro_align.guides.families.mean_field import own_plates_only
from pyro_align.guides.families.wrapped import Wrapped, wrap_guide
from pyro_align.guides.posterior import Posterior
from pyro_align.guides.pyro_state.modules import Prototype, RawParameter, latent_nodes, read_parameter, site_specs
from pyro_align.guides.registry import register_guide
from pyro_align.guides.relabel import Relabeling
from pyro_align.model.effects import SubstituteMessenger
from pyro_align.model.guards import untouched
from pyro_align.symmetry.element import Permutation

_CHECKED_DRAWS = 3


@dataclass(frozen=True, eq=False)
class Messenger(Wrapped):
    """A guide that runs the model, with parameters for every entry of every site.

    Draws are those of the guide that was read, relabeled; the guide that is written has relabeled parameters.

    Attributes:
        prototype: Makes the guide.
        parameters: Dotted path -> parameter, before the relabelings of ``chain``.
    """

    prototype: Prototype | None = field(default=None, repr=False)
    parameters: Mapping[str, RawParameter] = field(default_factory=dict, repr=False)

    def _permute(self, p: Permutation) -> Messenger:
        moved = super()._permute(p)
        if moved is not self:
            moved._check()
        return moved

    @cached_property
    def relabeled(self) -> dict[str, RawParameter]:
        """The parameters of the relabeled guide."""
        parameters = dict(self.parameters)
        for p in self.chain:
            act = Relabeling(p, self.sites)
            for path, parameter in parameters.items():
                part, site = path.split(".", 1)
                if parameter.raw.shape == self.sites[site].unconstrained_shape:  # a scalar weight stays
                    raw = act.unconstrained(site, parameter.raw, signs=part == "locs")
                    parameters[path] = parameter.with_raw(raw)
        return parameters

    def _check(self) -> None:
        """Raises a :class:`GuideError` unless relabeled parameters make the relabeled guide."""
        noise = self.noise(_CHECKED_DRAWS)
        values, expected = self.push_with_log_prob(noise)
        guide, (args, kwargs) = self.to_guide(), self.arguments
        rounding = torch.finfo(self.dtype).eps ** 0.4  # 6e-7 in float64
        for i in range(_CHECKED_DRAWS):
            with untouched(), torch.no_grad(), SubstituteMessenger({k: v[i] for k, v in values.items()}):
                guide(*args, **kwargs)
                found = guide.get_traces()[1].log_prob_sum()
            if not torch.allclose(found, expected[i], rtol=rounding, atol=rounding):
                raise GuideError(
                    f"relabeling the parameters of this {self.prototype.cls.__name__} does not relabel the guide: the "
                    f"log density of a relabeled draw is {float(found):.6g}, of the draw {float(expected[i]):.6g}. The "
                    "priors that it runs tell the units apart; relabel it by wrapping: wrap_guide(guide, *args)"
                )

    def _displace(self, other: Messenger, tau: float) -> Posterior:
        """Parameters linear in tau, not the geodesic; the endpoints are the guides themselves."""
        if tau == 1.0:
            return other
        here, there = self.relabeled, other.relabeled
        between = {
            k: v.with_value(torch.lerp(v.value, there[k].value, tau)) if k in there else v for k, v in here.items()
        }
        guide = self.prototype.build(between)
        return replace(self, guide=guide, chain=(), parameters=between)

    def path_notes(self, other: Posterior) -> tuple[str, ...]:
        return ("the path moves the guides' parameters on straight lines; it is not a Wasserstein-2 geodesic",)

    def check_compatible(self, other: Posterior) -> None:
        super().check_compatible(other)
        if type(other) is not Messenger:
            raise GuideError(f"one guide is read as a Messenger, the other as a {type(other).__name__}; wrap both")
        if other.prototype.cls is not self.prototype.cls or other.parameters.keys() != self.parameters.keys():
            raise GuideError(
                f"the guides are a {self.prototype.cls.__name__} and a {other.prototype.cls.__name__} with "
                "other parameters; fit both with guides of one type and the same options"
            )

    def to_guide(self) -> AutoMessenger:
        return self.prototype.build(self.relabeled)


@register_guide(AutoHierarchicalNormalMessenger, AutoRegressiveMessenger, runs=True)
def messenger_guide(guide: AutoMessenger, *args: Any, **kwargs: Any) -> Messenger:
    """Reads a hierarchical or a regressive messenger, whose relabeled guides are of its own type.

    Args:
        guide: An ``AutoHierarchicalNormalMessenger`` or an ``AutoRegressiveMessenger`` that has run once.
        args: Arguments to run it with: such a guide runs the model.
        kwargs: Keyword arguments to run it with.

    Raises:
        GuideError: The guide is of another type, is untrained, shares parameters along a plate, or does not run with
            these arguments.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer.autoguide import AutoRegressiveMessenger
        >>> from pyro_align import Symmetry, permute_guide
        >>> from pyro_align.guides import messenger_guide
        >>> def model(n):
        ...     scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        ...     pyro.sample("w", dist.Normal(0.0, scale).expand([n]).to_event(1))
        >>> with pyro.get_param_store().scope():
        ...     guide = AutoRegressiveMessenger(model)
        ...     _ = guide(4)
        >>> p = Symmetry.from_axes({"w": ("unit",)}, shapes={"w": (4,)}).permutation({"unit": [3, 2, 1, 0]})
        >>> type(permute_guide(messenger_guide(guide, 4), p)).__name__
        'AutoRegressiveMessenger'
    """
    if type(guide) not in (AutoHierarchicalNormalMessenger, AutoRegressiveMessenger):
        raise GuideError(
            f"messenger_guide reads an AutoHierarchicalNormalMessenger or an AutoRegressiveMessenger, not "
            f"{type(guide).__name__}; use read_guide(guide), or wrap_guide(guide, *args)"
        )
    known = site_specs(latent_nodes(guide), guide)
    hierarchical = getattr(guide, "_hierarchical_sites", ()) if hasattr(guide, "_init_weight") else ()
    parameters, sites = {}, {}
    for name, spec in known.items():
        weighted = hierarchical is None or name in hierarchical
        for part in ("locs", "scales", "weights") if weighted else ("locs", "scales"):
            parameters[f"{part}.{name}"] = read_parameter(guide, f"{part}.{name}")
        sites[name] = own_plates_only(guide, spec, parameters[f"locs.{name}"].raw)
    q = wrap_guide(guide, *args, **kwargs)
    return Messenger(sites, q.guide, q.arguments, prototype=Prototype.of(guide), parameters=parameters)
