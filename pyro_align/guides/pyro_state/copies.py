"""Private copies of guides, for wrapping.

Pyro's guides are damaged by being copied: ``deepcopy`` sets ``_model`` to None on the *original*, copies the model and
the training data along, and leaves both under one name in the param store. A private copy shares the model, owns its
parameters, is free to be renamed, and leaves the original as it was.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import MethodType
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.nn import PyroModule
from pyro.nn.module import _Context
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_align.errors import GuideError
from pyro_align.guides.pyro_state.modules import RawParameter, slim_trace, write_parameter
from pyro_align.model.learnables import module_tensors, with_tensors

_FRAGILE = ("_model", "master")  # what Pyro's __getstate__ clears on the original


def private_copy(guide: PyroModule) -> PyroModule:
    """A copy with parameters of its own that can be put inside another module; the original stays as it is."""
    modules = list(guide.modules())
    kept = [{k: m.__dict__[k] for k in _FRAGILE if k in m.__dict__} for m in modules]
    weak = [(p, p.__dict__["unconstrained"]) for p in guide.parameters() if "unconstrained" in p.__dict__]
    memo = _shared(modules)
    try:
        twin = copy.deepcopy(guide, memo)
    except Exception as error:
        raise GuideError(
            f"this {type(guide).__name__} cannot be copied ({type(error).__name__}: {error}), so it cannot be wrapped; "
            "register a rule for its type with register_guide"
        ) from error
    finally:
        for module, values in zip(modules, kept, strict=True):
            module.__dict__.update(values)
        for parameter, reference in weak:
            parameter.__dict__["unconstrained"] = reference
    context = _Context()
    for module, values in zip(twin.modules(), kept, strict=True):
        if "_model" in values:
            module.__dict__["_model"] = values["_model"]
        if isinstance(module, GuideMessenger):
            module.__dict__["trace"] = slim_trace(memo["traces"][id(values["_model"])])
        if isinstance(module, PyroModule):
            module._pyro_context = context
    return twin


def _shared(modules: list[nn.Module]) -> dict[str, Any]:
    """A memo for deepcopy: models are shared, traces lose the data, tensors inside a graph are detached."""
    memo: dict = {"traces": {}}
    for module in modules:
        for key, value in module.__dict__.items():
            if key == "_model":
                memo[id(value)] = value
            elif isinstance(value, poutine.Trace):
                memo[id(value)] = slim_trace(value)
                memo["traces"][id(module.__dict__.get("_model"))] = value
            elif key not in ("_parameters", "_modules"):
                for tensor in _tensors_in(value):
                    if tensor.grad_fn is not None:
                        memo[id(tensor)] = tensor.detach().clone()
    return memo


def _tensors_in(value: Any, depth: int = 3) -> Iterator[Tensor]:
    """Tensors in containers and transforms: cached values of flows belong to the graph of the last training step."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, torch.distributions.Transform):
        value = vars(value)
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    for part in parts if depth else ():
        yield from _tensors_in(part, depth - 1)


def held_modules(guide: Any) -> list[nn.Module]:
    """The modules that a callable holds: the one whose method it is, under whatever handlers."""
    if isinstance(guide, nn.Module):
        return [guide]
    if isinstance(guide, MethodType):
        return held_modules(guide.__self__)
    if isinstance(guide, partial):
        return [m for part in (guide.func, *guide.args, *guide.keywords.values()) for m in held_modules(part)]
    return []


def private_callable(guide: Callable[..., Any]) -> Callable[..., Any]:
    """A callable with copies of the modules that it holds; the original stays as it is."""
    if isinstance(guide, PyroModule):
        return private_copy(guide)
    if not held_modules(guide):
        return guide
    try:
        return copy.deepcopy(guide)
    except Exception as error:
        raise GuideError(f"the guide's module cannot be copied ({type(error).__name__}: {error})") from error


class StoredGuide(PyroModule):
    """A guide whose ``pyro.param`` statements are answered from parameters of its own instead of the store.

    Args:
        parameters: Name in the code -> parameter, read from the param store.
        weights: Name, as in :func:`~pyro_align.model.learnables.module_tensors`, -> weight of a module that the
            function registers and finds outside of itself.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        parameters: Mapping[str, RawParameter],
        modules: Sequence[nn.Module] = (),
        weights: Mapping[str, Tensor] | None = None,
    ):
        super().__init__()
        self.held: nn.ModuleList = nn.ModuleList(modules)
        self._function = function
        self._names, self._weights = list(parameters), list(weights or {})
        for i, parameter in enumerate(parameters.values()):
            write_parameter(self, f"param_{i}", parameter)
        for i, weight in enumerate((weights or {}).values()):
            write_parameter(self, f"weight_{i}", RawParameter(weight, kind="parameter"))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        values = {name: getattr(self, f"param_{i}") for i, name in enumerate(self._names)}
        _ = self.held  # a module's parameters are parameters of the guide: looking at it says so to Pyro
        weights = {name: getattr(self, f"weight_{i}") for i, name in enumerate(self._weights)}
        function = with_tensors(self._function, weights) if weights else self._function
        with _OwnParameters(values, bool(len(self.held)) or bool(weights)):
            return function(*args, **kwargs)


def runs_model(guide: Any) -> bool:
    """Whether a guide runs the model inside, observed sites included."""
    return isinstance(guide._function if isinstance(guide, StoredGuide) else guide, GuideMessenger)


class _OwnParameters(Messenger):
    """Answers a function's ``pyro.param`` statements from given values instead of the store."""

    def __init__(self, values: Mapping[str, Tensor], owns_modules: bool):
        super().__init__()
        self.values, self.owns_modules = values, owns_modules

    def _pyro_param(self, msg):
        if msg["name"] in self.values:
            msg["value"] = self.values[msg["name"]]
            msg["done"] = msg["stop"] = True
        elif self.owns_modules and "$$$" in msg["name"]:
            msg["value"] = msg["args"][1]
            msg["done"] = msg["stop"] = True


def registered_weights(trace: poutine.Trace, guide: Callable[..., Any]) -> dict[str, Tensor]:
    """Weights of the modules that a run of a function registers with ``pyro.module``, and that the function reaches."""
    nodes = [node for name, node in trace.nodes.items() if node["type"] == "param" and "$$$" in name]
    registered = {id(node["args"][1]) for node in nodes if len(node["args"]) > 1}
    return {name: t for name, t in module_tensors(guide).items() if id(t) in registered} if registered else {}


def store_parameters(
    trace: poutine.Trace, own_name: str | None = None, *, owns_modules: bool = False
) -> dict[str, RawParameter]:
    """The parameters of a trace that live in the param store, and not in the module called ``own_name``."""
    store = pyro.get_param_store()
    parameters = {}
    for name, node in trace.nodes.items():
        if node["type"] != "param" or (own_name and name.startswith(own_name)):
            continue
        if "$$$" in name and owns_modules:
            continue
        if "$$$" in name:
            raise GuideError(
                f"the guide registers the module '{name.split('$$$')[0]}' with pyro.module, whose weights live outside "
                "the param store, and its code does not name it; make the guide a PyroModule that holds it, or a method"
            )
        if name not in store:
            raise GuideError(f"the guide's parameter '{name}' is not in the param store: fit the guide first")
        raw = store._params[name].detach().clone()
        parameters[name] = RawParameter(raw, store._constraints[name], node["kwargs"].get("event_dim"))
    return parameters
