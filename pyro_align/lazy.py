"""Names of a package that are imported when they are first asked for (PEP 562)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from typing import Any


def on_request(
    package: str, homes: Mapping[str, Collection[str]], submodules: Collection[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The ``__getattr__`` and ``__dir__`` of a package.

    Args:
        package: Its name.
        homes: Module -> the names that the package has from there.
        submodules: Those that are its attributes, too.
    """
    where = {name: module for module, names in homes.items() for name in names}
    own = vars(sys.modules[package])

    def get(name: str) -> Any:
        if name in where:
            value = getattr(import_module(where[name]), name)
        elif name in submodules:
            value = import_module(f"{package}.{name}")
        else:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        own[name] = value
        return value

    return get, lambda: sorted({*own, *where, *submodules})
