"""Plain networks and state dicts, as point masses at their values; and a model's learned parameters beside a guide."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_align.errors import GuideError
from pyro_align.guides.adapters.mean_field import mu_rho_pairs
from pyro_align.guides.families.entrywise import Point
from pyro_align.guides.families.given import read_draws
from pyro_align.guides.families.guide_list import Independent
from pyro_align.guides.families.wrapped import trace_guide, wrapped_run
from pyro_align.guides.posterior import Guide, Posterior
from pyro_align.guides.pyro_state.copies import private_callable
from pyro_align.guides.pyro_state.modules import raw_parameters, read_parameter, sites_of
from pyro_align.guides.registry import read_guide, register_guide, relabelable
from pyro_align.model.learnables import module_tensors, with_tensors
from pyro_align.symmetry.element import Permutation
from pyro_align.symmetry.group import Symmetry
from pyro_align.symmetry.spec import SymmetrySpec


@register_guide(nn.Module, runs=True)
def read_module(module: nn.Module, *args: Any, **kwargs: Any) -> Posterior:
    """Reads a module without a rule of its own: a network where it samples nothing with these arguments, else a guide.

    One that does not run without any is a network, too: ``forward(self, *inputs)`` or ``forward(self, tokens=None)``.
    """
    try:
        inspect.signature(module.forward).bind(*args, **kwargs)
    except TypeError:
        return read_network(module)
    try:
        trace = trace_guide(module, args, kwargs)
    except GuideError:
        if args or kwargs:
            raise
        return read_network(module)
    samples = any(node["type"] == "sample" for node in trace.nodes.values())
    return wrapped_run(module, trace, args, kwargs) if samples else read_network(module)


def read_network(module: nn.Module) -> Point:
    """Reads the parameters and the floating-point buffers that a state dict holds, one site each, by name."""
    if mu_rho_pairs(module):
        raise GuideError(f"this {type(module).__name__} holds Bayesian layers; give read_bayesian_module(module)")
    points = {}
    parts = [(f"{prefix}." if prefix else "", m) for prefix, m in module.named_modules() if isinstance(m, PyroModule)]
    constrained = {f"{prefix}{name}_unconstrained" for prefix, part in parts for name in part._pyro_params}
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            site = name.removesuffix("_unconstrained") if name in constrained else name
            points[site] = read_parameter(module, site)
    if not points:
        raise GuideError(f"this {type(module).__name__} has no parameters")
    return Point(sites_of(points), points, partial(_write_network, private_callable(module)))


@register_guide(OrderedDict)
def read_state_dict(state: Mapping[str, Tensor]) -> Point:
    """Reads the floating-point tensors of a state dict, one site each; the others are kept as they are."""
    points = raw_parameters({k: v for k, v in state.items() if v.is_floating_point()})
    if not points:
        raise GuideError("the state dict has no floating-point tensors")
    kept = OrderedDict((k, v.detach().clone()) for k, v in state.items())
    return Point(sites_of(points), points, partial(_write_state_dict, kept))


def by_axes(guide: Any, symmetry: Symmetry | SymmetrySpec) -> Any:
    """A dict of tensors as what the symmetry's axes say it is: a state dict, draws, or draws by chain."""
    if type(guide) is not dict:
        return guide
    sites = symmetry.sites.items()
    lead = {guide[k].dim() - len(terms) for k, terms in sites if isinstance(guide.get(k), Tensor)}
    if lead == {0}:
        return OrderedDict(guide)
    if lead == {2}:
        guide = {k: v.flatten(0, 1) for k, v in guide.items()}
    return read_draws(guide, known=True) if lead in ({1}, {2}) else guide


def _write_network(module: nn.Module, q: Point) -> nn.Module:
    made = private_callable(module)
    held = {**dict(made.named_parameters()), **dict(made.named_buffers())}
    with torch.no_grad():
        for name, point in q.points.items():
            held[name if name in held else f"{name}_unconstrained"].copy_(point.raw)
    return made


def _write_state_dict(state: Mapping[str, Tensor], q: Point) -> dict[str, Tensor]:
    return OrderedDict((k, q.points[k].raw.clone() if k in q.points else v.clone()) for k, v in state.items())


@dataclass(frozen=True, eq=False)
class GuideAndModel:
    """A guide, and the model whose parameters were learned with it: relabeled together, they are one posterior.

    Attributes:
        guide: The guide.
        model: The model, with parameters of its own: a copy of the module, or a :class:`ModelAt`.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> from pyro.infer.autoguide import AutoNormal
        >>> from pyro.nn import PyroModule, PyroSample
        >>> from pyro_align import find_symmetry, permute_guide
        >>> class LastLayer(PyroModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.inner = PyroModule[torch.nn.Linear](1, 4)
        ...         self.out = PyroSample(dist.Normal(0.0, 1.0).expand([4]).to_event(1))
        ...
        ...     def forward(self, x):
        ...         mean = torch.tanh(self.inner(x)) @ self.out
        ...         with pyro.plate("data", len(x)):
        ...             pyro.sample("y", dist.Normal(mean, 1.0), obs=x[:, 0])
        >>> model, x = LastLayer(), torch.randn(5, 1)
        >>> with pyro.get_param_store().scope():
        ...     guide = AutoNormal(model)
        ...     _ = guide(x)
        >>> symmetry = find_symmetry(model, x, parameters=True)
        >>> moved = permute_guide(guide, symmetry.random(0), parameters=model)
        >>> moved.model.inner.weight.shape, moved.guide.median()["out"].shape
        (torch.Size([4, 1]), torch.Size([4]))
    """

    guide: Any
    model: Callable[..., Any] = field(repr=False)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the guide."""
        return self.guide(*args, **kwargs)


@register_guide(GuideAndModel)
def read_guide_and_model(both: GuideAndModel) -> Independent:
    """The guide's posterior and a point mass at the model's parameters."""
    model = read_network(both.model) if isinstance(both.model, nn.Module) else _read_model(both.model)
    return Independent((read_guide(both.guide), model), _write_both, separate=True)


def _read_model(model: Callable[..., Any]) -> Point:
    """Reads the tensors of the modules that a model reaches: those that it is a method of, closes over, and so on."""
    inner, tensors = (model.model, model.tensors) if type(model) is ModelAt else (model, module_tensors(model))
    if not tensors:
        raise GuideError(
            "parameters: the model reaches no modules with parameters; what pyro.param keeps in the param store is not "
            "reached: make it an attribute (PyroParam) of a PyroModule"
        )
    points = raw_parameters(tensors)
    return Point(sites_of(points), points, lambda q: ModelAt(inner, {k: v.raw for k, v in q.points.items()}))


class ModelAt:
    """A model with the tensors of its modules at other values; the modules themselves stay as they are."""

    tensors: dict[str, Tensor]

    def __init__(self, model: Callable[..., Any], tensors: Mapping[str, Tensor]):
        self.model: Callable[..., Any] = model
        self.tensors = dict(tensors)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the model."""
        return with_tensors(self.model, self.tensors)(*args, **kwargs)


def _write_both(q: Independent) -> GuideAndModel:
    return GuideAndModel(*(part.to_guide() for part in q.parts))


def beside(guide: Any, model: Any) -> GuideAndModel:
    """A guide together with its model's parameters."""
    if not callable(model):
        raise GuideError(f"parameters: expected the model, a module or a callable, got {type(model).__name__}")
    if isinstance(guide, GuideAndModel):
        raise GuideError("parameters: the guide comes with its model already")
    return GuideAndModel(guide, model)


def permute_guide(guide: Any, p: Permutation, *, parameters: Callable[..., Any] | None = None) -> Guide:
    """A new guide of the same type whose draws are the relabeled draws of ``guide``, exactly.

    Its log density at a relabeled draw equals the old one at the draw. The old guide stays as it is.

    Args:
        guide: The guide, or a plain network, a state dict, or a dict of draws.
        p: The relabeling.
        parameters: The model, where parameters were learned beside the guide: they are relabeled with it, and the
            result is a :class:`~pyro_align.guides.GuideAndModel`.

    Raises:
        GuideError: The guide cannot be read, or not be relabeled exactly; the message names the site and a remedy.

    Example:
        >>> from pyro_align import Symmetry, permute_guide
        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer.autoguide import AutoNormal, init_to_sample
        >>> def model():
        ...     pyro.sample("w", dist.Normal(0.0, 1.0).expand([6, 2]).to_event(2))
        >>> with pyro.get_param_store().scope():
        ...     guide = AutoNormal(model, init_loc_fn=init_to_sample)
        ...     _ = guide()
        >>> symmetry = Symmetry.from_axes({"w": ("unit", None)}, shapes={"w": (6, 2)})
        >>> moved = permute_guide(guide, symmetry.permutation({"unit": [5, 4, 3, 2, 1, 0]}))
        >>> bool((moved.median()["w"] == guide.median()["w"].flip(0)).all())
        True
    """
    guide = by_axes(guide, p.symmetry)
    q = read_guide(guide if parameters is None else beside(guide, parameters))
    return (q if p.is_identity else relabelable(q, p.symmetry)).permute(p).to_guide()
