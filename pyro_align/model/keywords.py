"""Options of a verb and keywords of a model that share a name: told apart, or refused."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from torch import nn

from pyro_align.errors import KeywordError

P = ParamSpec("P")
R = TypeVar("R")

_FUNCTIONS = (types.FunctionType, types.MethodType, functools.partial, nn.Module)


def options_apart(verb: Callable[P, R]) -> Callable[P, R]:
    """Makes a verb ``(model, ..., *args, option=..., **kwargs)`` refuse an option that is also the model's keyword.

    Such a keyword would be taken by the option, and the model would run without it. An option that is not given, and a
    model's parameter that is given by position, are no clash.

    Raises:
        KeywordError: When called with such a keyword; the message says how to bind it to the model.

    Example:
        >>> def model(x, temperature=1.0): ...
        >>> @options_apart
        ... def verb(model, *args, temperature=1.0, **kwargs): ...
        >>> verb(model, 3, temperature=0.5)
        Traceback (most recent call last):
        ...
        pyro_align.errors.KeywordError: 'temperature' is an option of verb and a parameter of model: ...
    """
    signature = inspect.signature(verb)
    options = {name for name, p in signature.parameters.items() if p.kind is p.KEYWORD_ONLY}
    ours = "model" if "model" in signature.parameters else next(iter(signature.parameters))

    @functools.wraps(verb)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        given = options.intersection(kwargs)
        if given:
            model = signature.bind_partial(*args, **kwargs).arguments.get(ours)
            clash = sorted(name for name in given if takes_keyword(model, name))
            if clash:
                raise KeywordError(_explain(verb, model, clash, kwargs))
        return verb(*args, **kwargs)

    return checked


def takes_keyword(model: Any, name: str) -> bool:
    """Whether a model would make use of a keyword argument of this name."""
    return _takes(model, name, ())


def _takes(model: Any, name: str, seen: tuple[Any, ...]) -> bool:
    if not callable(model) or any(model is other for other in seen):
        return False
    seen = (*seen, model)
    if isinstance(model, functools.partial):  # what it binds already cannot be meant
        if name in model.keywords:
            return False
        inner = [model.func, *(a for a in model.args if isinstance(a, _FUNCTIONS))]
        return any(_takes(part, name, seen) for part in inner)
    if isinstance(model, nn.Module):
        return _takes(model.forward, name, seen)
    try:
        parameters = inspect.signature(model).parameters.values()
    except (TypeError, ValueError):  # built in
        return False
    if any(p.name == name and p.kind not in (p.POSITIONAL_ONLY, p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
        return True
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        return False
    function = model if inspect.isroutine(model) else type(model).__call__
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    if code is not None and name in code.co_consts:  # kwargs["name"], kwargs.get("name")
        return True
    return any(_takes(part, name, seen) for part in _wrapped(function))


def _wrapped(function: Any) -> list[Any]:
    """What a function that passes its keywords on may pass them to: what it closes over."""
    cells = getattr(getattr(function, "__func__", function), "__closure__", None) or ()
    found = []
    for cell in cells:
        try:
            found.append(cell.cell_contents)
        except ValueError:
            continue
    return [f for f in found if isinstance(f, _FUNCTIONS)]


def _explain(verb: Callable[..., Any], model: Any, clash: list[str], kwargs: dict[str, Any]) -> str:
    name = getattr(model, "__name__", type(model).__name__)
    call = verb.__qualname__.removesuffix(".__init__")
    bound = ", ".join(f"{k}={kwargs[k]!r}" if isinstance(kwargs[k], int | float | str) else f"{k}=..." for k in clash)
    what = ", ".join(map(repr, clash))
    return (
        f"{what} is an option of {call} and a parameter of {name}: one of them would not get it. Bind the model's, "
        f"{call}(functools.partial({name}, {bound}), ...); for {call}, bind the model's in the same way and give the "
        "option beside it"
    )
