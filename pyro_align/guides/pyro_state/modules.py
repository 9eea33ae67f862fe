"""Reading and writing the parameters of Pyro modules without the global param store.

Reading an attribute of a :class:`~pyro.nn.PyroModule` while it runs copies values between the module and the store, and
even outside a run it may leave weak references on the parameter. Here the module's own tensors are read raw, and a new
module gets its tensors raw, so that nothing is rounded by a constraint's inverse and nothing else is touched.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from pyro import poutine
from pyro.nn import PyroModule
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn
from torch.distributions import constraints, transform_to

from pyro_align.errors import GuideError
from pyro_align.guides.sites import SiteSpec

UNTRAINED = "it has no parameters yet; call it once, guide(*args), or fit it first"


# -- single parameters -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RawParameter:
    """A parameter as its module stores it.

    Attributes:
        raw: The unconstrained tensor, detached and owned.
        constraint: The constraint of the value.
        event_dim: Number of rightmost axes that plates do not subsample.
        kind: ``"pyro"`` (a PyroParam), ``"parameter"`` (an nn.Parameter), ``"buffer"`` or ``"plain"`` (an attribute).
    """

    raw: Tensor
    constraint: Any = constraints.real
    event_dim: int | None = None
    kind: str = "pyro"

    @property
    def value(self) -> Tensor:
        """The constrained value."""
        return transform_to(self.constraint)(self.raw)

    def with_raw(self, raw: Tensor) -> RawParameter:
        """The same parameter with another unconstrained tensor."""
        return RawParameter(raw, self.constraint, self.event_dim, self.kind)

    def with_value(self, value: Tensor) -> RawParameter:
        """The same parameter with another constrained value."""
        return self.with_raw(transform_to(self.constraint).inv(value))

    def adopt(self, other: RawParameter) -> RawParameter:
        """This parameter with the other's value: bit for bit where both are stored alike."""
        alike = type(self.constraint) is type(other.constraint) and repr(self.constraint) == repr(other.constraint)
        return self.with_raw(other.raw) if alike else self.with_value(other.value)


def read_parameter(module: nn.Module, path: str) -> RawParameter:
    """The parameter at a dotted path, read from the module's own tensors."""
    *parents, name = path.split(".")
    owner = module
    for i, part in enumerate(parents):
        owner = owner._modules.get(part)
        if owner is None:
            raise GuideError(f"{type(module).__name__} has no '{'.'.join(parents[: i + 1])}': {UNTRAINED}")
    if name in getattr(owner, "_pyro_params", {}):
        constraint, event_dim = owner._pyro_params[name]
        return RawParameter(_own(owner._parameters[name + "_unconstrained"]), constraint, event_dim)
    if owner._parameters.get(name) is not None:
        return RawParameter(_own(owner._parameters[name]), kind="parameter")
    if owner._buffers.get(name) is not None:
        return RawParameter(_own(owner._buffers[name]), kind="buffer")
    if isinstance(owner.__dict__.get(name), Tensor):  # a constant in place of a parameter
        return RawParameter(_own(owner.__dict__[name]), kind="plain")
    raise GuideError(f"{type(module).__name__} has no parameter '{path}': {UNTRAINED}")


def write_parameter(module: PyroModule, path: str, parameter: RawParameter) -> None:
    """Puts a parameter at a dotted path of a module that has not run yet, bit for bit."""
    *parents, name = path.split(".")
    owner = module
    for part in parents:
        if part not in owner._modules:
            setattr(owner, part, PyroModule())
        owner = owner._modules[part]
    raw = _own(parameter.raw)
    if parameter.kind == "buffer":
        owner.register_buffer(name, raw)
    elif parameter.kind == "plain":
        owner.__dict__[name] = raw
    elif parameter.kind == "parameter":
        owner.register_parameter(name, nn.Parameter(raw))
    else:
        owner._pyro_params[name] = (parameter.constraint, parameter.event_dim)
        owner.register_parameter(name + "_unconstrained", nn.Parameter(raw))


def _own(tensor: Tensor) -> Tensor:
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def raw_parameters(values: Mapping[str, Tensor], constraint: Any = constraints.real) -> dict[str, RawParameter]:
    """Owned copies of unconstrained tensors, as parameters."""
    return {name: RawParameter(_own(value), constraint) for name, value in values.items()}


def sites_of(parameters: Mapping[str, RawParameter]) -> dict[str, SiteSpec]:
    """Sites of which these values are all that is known, all their axes event axes."""
    sites = {}
    for name, parameter in parameters.items():
        value, support = parameter.value, parameter.constraint
        if support is not constraints.real:
            support = constraints.independent(support, value.dim() - support.event_dim)
        sites[name] = SiteSpec(name, tuple(value.shape), support, value.dim(), value.dtype, value.device)
    return sites


# -- whole modules -----------------------------------------------------------------------------------------------------


def own_tensors(guide: Any) -> dict[str, Tensor]:
    """Every parameter and buffer that a guide owns, by name, without going through the param store."""
    if not isinstance(guide, nn.Module):
        return {}
    return {**dict(guide.named_parameters()), **dict(guide.named_buffers())}


# -- making a new guide ------------------------------------------------------------------------------------------------

_TORCH_INTERNALS = frozenset(PyroModule().__dict__)
_PER_CALL = frozenset({"master", "plates", "_outer_plates", "args_kwargs"})


@dataclass(frozen=True, eq=False)
class Prototype:
    """Everything of a guide but its parameters: what is needed to make another guide of its type.

    Attributes:
        cls: The guide's type.
        attributes: Its plain attributes, among them the model and a prototype trace without the training data.
        training: Its training flag.
    """

    cls: type[Any]
    attributes: Mapping[str, Any] = field(repr=False)
    training: bool = True

    @classmethod
    def of(cls, guide: PyroModule) -> Prototype:
        """The prototype of a guide that has run at least once."""
        kept = {k: v for k, v in guide.__dict__.items() if k not in _TORCH_INTERNALS | _PER_CALL}
        kept = {k: dict(v) if type(v) is dict else v for k, v in kept.items()}
        kept = {k: slim_trace(v) if isinstance(v, poutine.Trace) else v for k, v in kept.items()}
        return cls(type(guide), kept, guide.training)

    def __getstate__(self) -> dict[str, Any]:
        """Pickled without the model and the initialization, which are code, as Pyro pickles its own guides.

        A messenger guide runs its model and keeps it.
        """
        dropped = set() if issubclass(self.cls, GuideMessenger) else {"_model", "init_loc_fn"}
        attributes = {k: None if k in dropped else v for k, v in self.attributes.items()}
        return {"cls": self.cls, "attributes": attributes, "training": self.training}

    def build(self, parameters: Mapping[str, RawParameter]) -> PyroModule:
        """A new guide with these parameters by dotted path, under a name of its own in the param store.

        The name is new each time: two guides of one name would share their parameters through the store.
        """
        guide = self.cls.__new__(self.cls)
        PyroModule.__init__(guide, name=f"{self.cls.__name__}_{uuid.uuid4().hex[:12]}")
        if "master" not in guide.__dict__ and "prototype_trace" in self.attributes:
            guide.__dict__["master"] = None
        for key, value in self.attributes.items():
            guide.__dict__[key] = dict(value) if type(value) is dict else value
        for path, parameter in parameters.items():
            write_parameter(guide, path, parameter)
        return guide.train(self.training)


def latent_nodes(guide: Any) -> dict[str, dict[str, Any]]:
    """The latent sites of a guide's prototype trace."""
    trace = guide.__dict__.get("trace" if isinstance(guide, GuideMessenger) else "prototype_trace")
    nodes = {} if trace is None else latent_sites(trace)
    if not nodes:
        raise GuideError(f"this {type(guide).__name__} is untrained: {UNTRAINED}")
    return {name: {**node, "fn": prior_of(node)} for name, node in nodes.items()}


def latent_sites(trace: poutine.Trace) -> dict[str, dict[str, Any]]:
    """The sample sites of a trace that are neither observed, nor auxiliary, nor a plate's subsample."""
    return {
        name: node
        for name, node in trace.nodes.items()
        if node.get("type") == "sample"  # AutoStructured empties the nodes of its prototype trace
        and not node["is_observed"]
        and not site_is_subsample(node)
        and not node["infer"].get("is_auxiliary")
    }


def prior_of(node: Mapping[str, Any]) -> Any:
    """What is known of a latent site's prior: a guide that is a messenger records its posterior in the site itself."""
    return node["infer"].get("prior", node["fn"])


def site_specs(
    nodes: Mapping[str, dict[str, Any]], guide: nn.Module | None = None, *, full_plates: bool = True
) -> dict[str, SiteSpec]:
    """The sites of a prototype trace."""
    own = [t for t in own_tensors(guide).values() if t.is_floating_point()]
    dtypes, devices = {t.dtype for t in own}, {t.device for t in own}
    specs = {}
    for name, node in nodes.items():
        fn, value = node["fn"], node["value"]
        shape = list(value.shape)
        frames = [f for f in node["cond_indep_stack"] if f.vectorized]
        for frame in frames if full_plates else ():
            shape[frame.dim - fn.event_dim] = frame.full_size or frame.size
        plates = tuple((f.name, shape[f.dim - fn.event_dim], f.dim) for f in frames)
        enumerated = bool(node["infer"].get("enumerate"))
        dtype = next(iter(dtypes)) if len(dtypes) == 1 and value.is_floating_point() else value.dtype
        device = next(iter(devices)) if len(devices) == 1 else value.device
        specs[name] = SiteSpec(name, tuple(shape), fn.support, fn.event_dim, dtype, device, plates, enumerated)
    return specs


def slim_trace(trace: poutine.Trace) -> poutine.Trace:
    """The latent sites of a prototype trace without the training data, gradients and log probabilities."""
    nodes = {}
    for name, node in latent_sites(trace).items():
        fn = prior_of(node)
        nodes[name] = bare_node(name, fn, node["value"], node["value"].shape, node["cond_indep_stack"])
    return trace_of(nodes)


def bare_node(name: str, fn: Any, like: Tensor, shape: torch.Size, stack: Any) -> dict[str, Any]:
    """A latent site's node, with zeros like a value, and of its prior the support and shapes."""
    prior = SimpleNamespace(
        support=fn.support,
        event_dim=fn.event_dim,
        batch_shape=shape[: len(shape) - fn.event_dim],
        event_shape=shape[len(shape) - fn.event_dim :],
    )
    return {
        "name": name,
        "type": "sample",
        "fn": prior,
        "value": torch.zeros((), dtype=like.dtype, device=like.device).expand(shape),
        "is_observed": False,
        "cond_indep_stack": stack,
        "infer": {"prior": prior},
        "scale": 1.0,
        "mask": None,
    }


def trace_of(nodes: Mapping[str, Mapping[str, Any]]) -> poutine.Trace:
    """A trace that holds these nodes."""
    trace = poutine.Trace()
    for name, node in nodes.items():
        trace.add_node(name, **{**node, "name": name})
    return trace
