"""The tensors of a model that training may change: parameters and buffers of its modules, and the param store's."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyro_align.model.reached import reached_modules


def saved_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Floating-point buffers that ``state_dict`` saves, by name.

    One that it does not save (rotary frequencies, a table of sines) is built again by every module of the class: a
    relabeled copy of it would be lost on the way through a checkpoint, so it is a constant of the architecture.
    """
    unsaved = {
        f"{prefix}.{name}" if prefix else name
        for prefix, part in module.named_modules()
        for name in part._non_persistent_buffers_set
    }
    return {n: b for n, b in module.named_buffers() if b.is_floating_point() and n not in unsaved}


def _roots(model: Callable[..., Any]) -> list[tuple[str, nn.Module]]:
    """The outermost modules that a model reaches, each with a prefix for the names of its tensors."""
    reached = reached_modules(model)
    inner = {id(part) for module in reached for part in module.modules() if part is not module}
    function = _unwrapped(model)
    own = {id(function), id(getattr(function, "__self__", None))}
    names = _variables(getattr(function, "__func__", function))
    return [
        ("" if id(m) in own else f"{names.get(id(m), type(m).__name__)}.", m) for m in reached if id(m) not in inner
    ]


def _variables(function: Any) -> dict[int, str]:
    """Identity -> name of what a function closes over or may read from its globals."""
    code = getattr(function, "__code__", None)
    scope = getattr(function, "__globals__", {})
    found = {id(scope[name]): name for name in getattr(code, "co_names", ()) if name in scope}
    for name, cell in zip(getattr(code, "co_freevars", ()), getattr(function, "__closure__", None) or (), strict=False):
        with contextlib.suppress(ValueError):  # not assigned yet
            found[id(cell.cell_contents)] = name
    return found


def _unwrapped(model: Any) -> Any:
    """The function beneath effect handlers, ``functools.partial`` and decorators that name what they wrap."""
    while not isinstance(model, nn.Module):
        inner = getattr(model, "__wrapped__", None)
        if isinstance(model, functools.partial):
            inner = next((a for a in reversed(model.args) if callable(a)), model.func)
        if inner is None or inner is model:
            break
        model = inner
    return model


def module_tensors(model: Callable[..., Any]) -> dict[str, Tensor]:
    """Parameters and saved floating-point buffers of a model's modules, by name."""
    found: dict[str, Tensor] = {}
    for prefix, module in _roots(model):
        for name, tensor in (*module.named_parameters(), *saved_buffers(module).items()):
            if tensor.is_floating_point():
                found.setdefault(prefix + name, tensor)
    return found


def learnables(model: Callable[..., Any]) -> dict[str, Tensor]:
    """:func:`module_tensors`, and the (unconstrained) parameters of the param store as it now is."""
    return {**pyro.get_param_store()._params, **module_tensors(model)}


def with_tensors(model: Callable[..., Any], values: Mapping[str, Tensor]) -> Callable[..., Any]:
    """A model that runs with tensors of its modules at other values; the modules stay as they are."""
    caller, named = _Caller(model), {}
    for i, (prefix, module) in enumerate(_roots(model)):
        caller.add_module(str(i), module)
        own = {name for name, _ in (*module.named_parameters(), *module.named_buffers())}
        for name in values:
            inner = name.removeprefix(prefix)
            if name.startswith(prefix) and inner in own and name not in named.values():
                named[f"{i}.{inner}"] = name
    given = {place: values[name] for place, name in named.items()}

    def run(*args: Any, **kwargs: Any) -> Any:
        with warnings.catch_warnings():  # pyro.module says of values that they are not trained
            warnings.filterwarnings("ignore", message=".*was not registered in the param store")
            return torch.func.functional_call(caller, given, args, kwargs)

    return run


class _Caller(nn.Module):
    """Holds the modules that a model reaches, and calls the model."""

    def __init__(self, model: Callable[..., Any]):
        super().__init__()
        self.__dict__["_model"] = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._model(*args, **kwargs)
