"""The modules that a model can reach: what it is, holds, closes over, or finds among its globals."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Iterator, Mapping

from torch import Tensor, nn

# Code of these packages has no modules of the caller's in its globals.
_LIBRARIES = frozenset({"torch", "pyro", "numpy", "scipy", "pandas", "xarray", "pyro_align"}) | sys.stdlib_module_names
_ENTRIES = 1000  # of a container: longer ones are data


def reached_modules(*roots: object) -> list[nn.Module]:
    """Every ``nn.Module`` that running the roots may touch, children included."""
    found: dict[int, nn.Module] = {}
    seen: dict[int, object] = {}  # holds what was seen, so that no id is given twice
    todo = list(roots)
    while todo:
        value = todo.pop()
        if id(value) in seen or isinstance(value, Tensor | str | bytes | int | float | type | None):
            continue
        seen[id(value)] = value
        if isinstance(value, nn.Module):
            found[id(value)] = value
        todo += _inside(value)
    return list(found.values())


def _inside(value: object) -> Iterator[object]:
    if isinstance(value, types.FunctionType):
        yield from _of_function(value)
    elif isinstance(value, types.MethodType):
        yield from (value.__self__, value.__func__)
    elif isinstance(value, functools.partial):
        yield from (value.func, value.args, value.keywords)
    elif isinstance(value, nn.Module):
        yield from value._modules.values()
        yield from _attributes(value)
    elif isinstance(value, Mapping):
        if type(value) is dict and len(value) <= _ENTRIES:
            yield from value.values()
    elif isinstance(value, list | tuple | set | frozenset):
        if len(value) <= _ENTRIES:
            yield from value
    elif not isinstance(value, types.ModuleType):
        yield from _attributes(value)


def _attributes(value: object) -> Iterator[object]:
    """What an object holds, and the code that calling it runs."""
    cls = type(value)
    if not _is_library(cls.__module__):
        yield from (getattr(cls, name, None) for name in ("forward", "model", "__call__"))
    elif not isinstance(value, nn.Module) and not callable(value):
        return
    yield from vars(value).values() if hasattr(value, "__dict__") else ()


def _of_function(function: types.FunctionType) -> Iterator[object]:
    yield getattr(function, "__wrapped__", None)
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    if _is_library(function.__module__):
        return
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    names = set(_names(function.__code__))
    for name in names & function.__globals__.keys():
        value = function.__globals__[name]
        if isinstance(value, types.ModuleType) and not _is_library(value.__name__):
            yield from (vars(value)[n] for n in names & vars(value).keys())
        else:
            yield value


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _is_library(module: str | None) -> bool:
    return (module or "").split(".")[0] in _LIBRARIES
