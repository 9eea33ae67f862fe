"""Why an axis keeps its order: what is being read when a variable is fixed is noted in the variable."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, replace

from torch.fx import Node


@dataclass(frozen=True, eq=False)
class Cause:
    """What fixed a variable."""

    # ``"data"``, ``"constant"``, ``"output"``, ``"support"``, ``"operation"`` (whose result depends on the order of the
    # axis), ``"no rule"``, or ``"structure"`` (two descriptions of it do not fit together)
    kind: str
    node: Node | None = None  # the operation, or the constant
    detail: str = ""  # what else there is to say
    through: Node | None = None  # the operation that tied the axis to one that was fixed


_NOW: ContextVar[Cause | None] = ContextVar("cause", default=None)


def current() -> Cause | None:
    """The cause of whatever is fixed now."""
    return _NOW.get()


def reading(cause: Cause | None) -> None:
    """Sets the cause of what is fixed from now on."""
    _NOW.set(cause)


@contextlib.contextmanager
def blaming(cause: Cause) -> Iterator[None]:
    """The cause of what is fixed inside the block."""
    token = _NOW.set(cause)
    try:
        yield
    finally:
        _NOW.reset(token)


@contextlib.contextmanager
def giving_up() -> Iterator[None]:
    """Inside the block axes are fixed because their descriptions do not fit together, not because they must be."""
    now = _NOW.get()
    with blaming(Cause("structure") if now is None else replace(now, kind="structure")):
        yield


def tied(cause: Cause | None) -> Cause | None:
    """The cause of an axis that is tied to one that was fixed before."""
    now = _NOW.get()
    if cause is None or cause.through is not None or now is None:
        return cause or now
    return replace(cause, through=now.node)
