"""What a model may do while it is traced: look at its data, not at its latents.

``int(lengths.max())`` has a value, ``float(weight[0])`` has none.

The same mode notes from which line of the model each operation comes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import get_proxy_mode, get_proxy_slot
from torch.overrides import TorchFunctionMode

from pyro_align.errors import TraceError

_LOOKS = {
    torch.Tensor.item,
    torch.Tensor.tolist,
    torch.Tensor.__bool__,
    torch.Tensor.__int__,
    torch.Tensor.__float__,
    torch.Tensor.__index__,
}


class ConcreteData(TorchFunctionMode):
    """Answers a request for a tensor's value from the graph so far, if no latent site went into it.

    Args:
        sites: Names of the sites, whose placeholders come first.
        data: Values of the placeholders that follow.
        locate: Whether to write the line of the model into each node's ``stack_trace``.
    """

    def __init__(self, sites: Sequence[str], data: Sequence[Tensor], *, locate: bool = False):
        super().__init__()
        self.sites, self.data, self.locate = list(sites), list(data), locate

    def __torch_function__(self, func, types, args=(), kwargs=None):
        mode = get_proxy_mode()
        if mode is None:
            return func(*args, **(kwargs or {}))
        if func in _LOOKS:
            slot = get_proxy_slot(args[0], mode.tracer, None)
            if slot is not None:
                with torch.utils._python_dispatch._disable_current_modes():
                    return func(self._value(slot.proxy.node, mode.tracer))
        if not self.locate:
            return func(*args, **(kwargs or {}))
        nodes = mode.tracer.graph.nodes
        before = next(iter(reversed(nodes)), None)
        result = func(*args, **(kwargs or {}))
        where = _caller()
        for node in reversed(nodes):
            if node is before:
                break
            node.stack_trace = where
        return result

    def _value(self, node: Node, tracer):
        placeholders = [n for n in node.graph.nodes if n.op == "placeholder"]
        known = dict(zip(placeholders[len(self.sites) :], self.data, strict=True))
        names = dict(zip(placeholders, self.sites, strict=False))

        def value(n: Node):
            if n in names:
                raise TraceError(
                    f"the model looks at the value of the latent site '{names[n]}' to decide what to do next, so its "
                    "trace at one draw does not hold at another. If it cannot be written without this (torch.where "
                    "instead of if), write the symmetry by hand with SymmetrySpec({site: (axis, ...)}); it "
                    "passes the same certificate."
                )
            if n not in known:
                if n.op == "get_attr":
                    found = tracer.root
                    for part in n.target.split("."):
                        found = getattr(found, part)
                    known[n] = found
                else:
                    a, k = torch.fx.node.map_arg((n.args, n.kwargs), value)
                    known[n] = n.target(*a, **k)
            return known[n]

        return value(node)


def is_library(path: str) -> bool:
    """Whether a source file is an installed package's, Python's or this one's, and not the caller's."""
    return "site-packages" in path or path.startswith((_PACKAGE, _STANDARD, "<frozen"))


_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_STANDARD = os.path.dirname(os.__file__)


def _caller() -> str:
    """The innermost line outside libraries, in the form of a traceback's."""
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if not is_library(code.co_filename):
            return f'File "{code.co_filename}", line {frame.f_lineno}, in {code.co_name}'
        frame = frame.f_back
    return ""
