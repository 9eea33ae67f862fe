"""What decides an evaluation, as digests that are the same in another process: model, path, data, losses, options."""

from __future__ import annotations

import functools
import hashlib
import inspect
import types
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyro_align.barrier.problem import Problem
from pyro_align.files import tensor_bytes

_BY_NAME = ("builtins", "torch", "pyro", "numpy", "abc", "typing", "functools", "collections")


def fingerprint(problem: Problem) -> dict[str, str]:
    """What decides the result: the path's draws, the data, the model at one draw, the losses, and the options."""
    return {
        "path": digest_of([problem.path.posterior(tau).push(problem.noise) for tau in (0.0, 0.5, 1.0)]),
        "data": _data_digest(problem),
        "model": _model_digest(problem),
        "losses": digest_of(dict(problem.losses)),
        "num_samples": str(problem.num_samples),
        "seed": str(problem.seed),
        "temperature": float(problem.temperature).hex(),
        "num_data": str(problem.num_data),
        "chunk and memory": f"{problem.chunk}, {problem.max_memory}",
    }


def _data_digest(problem: Problem) -> str:
    """Of all data, read once, a batch at a time."""
    out = hashlib.sha256()
    for data in problem.data:
        out.update(data.name.encode())
        for batch in data.batches():
            out.update(digest_of(batch).encode())
    return out.hexdigest()


def _model_digest(problem: Problem) -> str:
    """What the model says of one draw on the first batch; the model's code where it cannot be asked so."""
    if not problem.on_draws:
        return digest_of(problem.model)
    values = {k: v[:1] for k, v in problem.path.posterior(0.5).push(problem.noise).items()}
    said = []
    for data in problem.data:
        args, kwargs = next(iter(data.batches()))
        draws = problem.runner(values, args, kwargs)
        said.append([draws.log_likelihood.double(), draws.likelihood.double(), draws.log_prior.double()])
    return digest_of(said)


def digest_of(value: Any) -> str:
    """A digest of tensors, numbers, text, collections, functions and objects of these.

    Functions go by their code, their defaults and what they close over, objects by their class and attributes: nothing
    that differs between processes, such as an address, counts.
    """
    out = hashlib.sha256()
    _update(out, value, ())
    return out.hexdigest()


def _update(out: Any, value: Any, within: tuple[int, ...]) -> None:
    """Adds a value; ``within`` are the ids of what holds it, as things may hold themselves."""
    out.update(f"<{type(value).__qualname__}>".encode())
    if id(value) in within:
        return
    within = (*within, id(value))
    if isinstance(value, Tensor):
        out.update(f"{value.dtype}{tuple(value.shape)}".encode())
        out.update(tensor_bytes(value))
    elif isinstance(value, np.ndarray) and value.dtype != object:
        out.update(f"{value.dtype}{value.shape}".encode())
        out.update(np.ascontiguousarray(value).tobytes())
    elif value is None or isinstance(value, str | bytes | int | float | complex | bool | torch.dtype | torch.device):
        out.update(repr(value).encode())
    else:
        for part in _parts(value):
            _update(out, part, within)


def _parts(value: Any) -> Iterable[Any]:
    """What a value that is no leaf is made of."""
    if isinstance(value, Mapping):
        return [part for item in value.items() for part in item]
    if isinstance(value, set | frozenset):
        return sorted(map(digest_of, value))
    if isinstance(value, list | tuple):
        return value
    if isinstance(value, types.CodeType):
        return [value.co_code, value.co_consts, value.co_names, value.co_varnames]
    if isinstance(value, types.FunctionType):
        cells = inspect.getclosurevars(value).nonlocals if value.__closure__ else {}
        return [value.__code__, value.__defaults__, value.__kwdefaults__, cells, _read_globals(value)]
    if isinstance(value, types.MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, type):
        return _class_parts(value)
    if isinstance(value, types.ModuleType | types.BuiltinFunctionType) or not hasattr(value, "__dict__"):
        return [getattr(value, "__module__", None), getattr(value, "__qualname__", getattr(value, "__name__", ""))]
    if isinstance(value, nn.Module):
        return [type(value), dict(value.state_dict()), {k: v for k, v in vars(value).items() if k[0] != "_"}]
    return [type(value), dict(vars(value))]


def _read_globals(function: types.FunctionType) -> dict[str, Any]:
    """The numbers and functions of its own module that a function reads by name."""
    found = {name: function.__globals__.get(name) for name in function.__code__.co_names}
    plain = (int, float, str, bool, tuple, Tensor)
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, plain) or getattr(value, "__module__", None) == function.__module__ is not None
    }


def _class_parts(cls: type[Any]) -> list[Any]:
    """A class's name, and the functions of it and its bases, except those of libraries."""
    parts: list[Any] = [f"{cls.__module__}.{cls.__qualname__}"]
    for base in cls.__mro__:
        if base.__module__.split(".")[0] not in _BY_NAME:
            parts += [value for value in vars(base).values() if isinstance(value, types.FunctionType)]
    return parts
