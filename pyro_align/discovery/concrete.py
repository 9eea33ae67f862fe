"""What a model may do while it is traced: look at its data, not at its latents.

``int(lengths.max())`` has a value, ``float(weight[0])`` has none.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyro.distributions.stable as stable
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from pyro_align.discovery.recording import Recording
from pyro_align.errors import TraceError

_LOOKS = {
    Tensor.item,
    Tensor.tolist,
    Tensor.numpy,
    Tensor.__array__,
    Tensor.__bool__,
    Tensor.__int__,
    Tensor.__float__,
    Tensor.__index__,
}
# What these return has a shape that values decide.
_FINDS = {
    torch.nonzero,
    Tensor.nonzero,
    torch.argwhere,
    Tensor.argwhere,
    torch.unique,
    Tensor.unique,
    torch.unique_consecutive,
    Tensor.unique_consecutive,
    torch.bincount,
    Tensor.bincount,
}
_SIZED = {torch.arange, torch.linspace, torch.zeros, torch.ones, torch.empty, torch.eye, torch.narrow}
_SIZED |= {Tensor.narrow, Tensor.repeat, Tensor.new_zeros, Tensor.new_ones, Tensor.expand, Tensor.view, Tensor.reshape}
_UNDECIDED = (GuardOnDataDependentSymNode, DataDependentOutputException, DynamicOutputShapeException, TypeError)


class ConcreteData(TorchFunctionMode):
    """Answers a request for a tensor's value from the graph so far, if no latent site went into it.

    So the data may be looked at (``int(lengths.max())``), sizes may be tensors (``x[:length]``), and observed entries
    may be selected (``x[mask]``).
    """

    def __init__(self, recording: Recording, sites: Sequence[str], data: Sequence[Tensor]):
        """Of a recording whose first placeholders are the named sites, and the following the data."""
        super().__init__()
        self.recording, self.sites, self.data = recording, list(sites), list(data)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in REPLACED:
            with self:
                return REPLACED[func](*args, **kwargs)
        if func in _SIZED:
            numbers = _Numbers(self._known)
            own = args[: getattr(Tensor, func.__name__, None) is func]  # of a method, not the tensor itself
            args, kwargs = (*own, *numbers(args[len(own) :])), numbers(kwargs)
        if func in _LOOKS or func in _FINDS or (func is torch.where and len(args) == 1):
            args, kwargs = pytree.tree_map_only(Tensor, self._known, (args, kwargs))
            with torch.utils._python_dispatch._disable_current_modes():
                return func(*args, **kwargs)
        if func in _SELECTS:
            args = _SELECTS[func](args, self._known)
        try:
            return func(*args, **kwargs)
        except _UNDECIDED:
            numbers = _Numbers(self._known)
            args, kwargs = numbers(args), numbers(kwargs)
            if not numbers.count:
                raise
            return func(*args, **kwargs)

    def _known(self, tensor: Tensor) -> Tensor:
        """A tensor's value; the tensor itself where it is not part of the graph."""
        node = self.recording.node_of(tensor)
        if node is None:
            return tensor
        with torch.utils._python_dispatch._disable_current_modes():
            return self._value(node)

    def _value(self, node: Node) -> Any:
        placeholders = [n for n in node.graph.nodes if n.op == "placeholder"]
        known = dict(zip(placeholders[len(self.sites) :], self.data, strict=True))
        names = dict(zip(placeholders, self.sites, strict=False))

        def value(n: Node):
            if n in names:
                raise TraceError(
                    f"the model looks at the value of the latent site '{names[n]}' to decide what to do next, so its "
                    "trace at one draw does not hold at another. If it cannot be written without this (torch.where "
                    "instead of if), write the symmetry by hand with SymmetrySpec({site: (axis, ...)}) "
                    "and certify it, which needs no graph."
                )
            if n not in known:
                if n.op == "get_attr":
                    known[n] = getattr(self.recording.root, n.target)
                else:
                    a, k = torch.fx.node.map_arg((n.args, n.kwargs), value)
                    known[n] = n.target(*a, **k)
            return known[n]

        return value(node)


class _Numbers:
    """Replaces tensors that stand for one integer by that integer, in slices too, and counts them."""

    def __init__(self, known: Callable[[Tensor], Tensor]):
        self.known, self.count = known, 0

    def __call__(self, value):
        if isinstance(value, slice):
            return slice(self(value.start), self(value.stop), self(value.step))
        if isinstance(value, tuple | list):
            return type(value)(map(self, value)) if type(value) in (tuple, list) else value
        if isinstance(value, dict):
            return {k: self(v) for k, v in value.items()}
        if isinstance(value, Tensor) and value.dim() == 0 and value.dtype in _INTEGERS:
            self.count += 1
            return int(self.known(value))
        return value


_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def _places(mask: Tensor, known: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
    """Where a mask is true, which only data may decide."""
    found = known(mask)
    with torch.utils._python_dispatch._disable_current_modes():
        return found.nonzero(as_tuple=True)


def _selected(args: tuple[Any, ...], known: Callable[[Tensor], Tensor]) -> tuple[Any, ...]:
    """The arguments of ``x[index]`` with the places of true entries for each boolean tensor of data."""
    source, index = args
    parts = index if isinstance(index, tuple) else (index,)
    if not any(isinstance(p, Tensor) and p.dtype == torch.bool and p.dim() for p in parts):
        return args
    out: list = []
    for part in parts:
        out += _places(part, known) if isinstance(part, Tensor) and part.dtype == torch.bool and part.dim() else (part,)
    return source, tuple(out)


def _masked_select(source: Tensor, mask: Tensor) -> Tensor:
    source, mask = torch.broadcast_tensors(source, mask)
    return source[mask]


def _covariance(x: Tensor, *, correction: int = 1, fweights: Tensor | None = None, aweights: Tensor | None = None):
    if fweights is not None or aweights is not None:
        raise TraceError("torch.cov with weights cannot be traced; write out the weighted sums of products")
    x = torch.atleast_2d(x)
    centered = x - x.mean(-1, keepdim=True)
    return (centered @ centered.mT / (x.shape[-1] - correction)).squeeze()


def _gaussian_nll(x, target, var, full: bool = False, eps: float = 1e-6, reduction: str = "mean"):
    """Without the check that variances are positive, which would look at them."""
    var = torch.as_tensor(var, dtype=x.dtype)
    var = var if var.dim() in (0, x.dim()) else var.unsqueeze(-1)
    loss = 0.5 * (var.clamp(min=eps).log() + (x - target) ** 2 / var.clamp(min=eps))
    loss = loss + (0.5 * math.log(2 * math.pi) if full else 0.0)
    return loss if reduction == "none" else getattr(loss, reduction)()


def _rrelu(x, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, inplace: bool = False):
    if training:
        raise TraceError("RReLU draws random slopes in training mode; call .eval() on the model first")
    return torch.nn.functional.leaky_relu(x, (lower + upper) / 2)


def _pack(*_: object):
    raise TraceError(
        "packed sequences cannot be traced; give the recurrent layer the padded tensor and mask what follows, or write "
        "the symmetry by hand as a SymmetrySpec and certify it, which runs the model itself"
    )


# Functions that look at values, or draw random numbers that they do not use, where another way to write them does not.
REPLACED: dict[str, Any] = {
    torch.cov: _covariance,
    torch.masked_select: _masked_select,
    Tensor.masked_select: _masked_select,
    torch.nn.functional.gaussian_nll_loss: _gaussian_nll,
    torch.nn.functional.rrelu: _rrelu,
    torch._VF._pack_padded_sequence: _pack,
}
_SELECTS = {Tensor.__getitem__: _selected}


@functools.cache
def is_library(path: str) -> bool:
    """Whether a source file is an installed package's, Python's or this one's, and not the caller's."""
    return "site-packages" in path or path.startswith((_PACKAGE, _STANDARD, "<frozen"))


_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_STANDARD = os.path.dirname(os.__file__)


def calling_line() -> str:
    """The innermost line outside libraries, in the form of a traceback's; in a log density the site's name."""
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_name == "compute_log_prob" and "name" in frame.f_locals:
            return f"log density of site '{frame.f_locals['name']}'"
        if not is_library(code.co_filename):
            return f'File "{code.co_filename}", line {frame.f_lineno}, in {code.co_name}'
        frame = frame.f_back
    return ""


# -- log densities that look at the values that they are given ---------------------------------------------------------

# A stable law's log density chooses between formulas by where its argument lies, so its trace at one value does not
# hold at another. It is elementwise, and that is all that a symmetry has to know of it: it is one operation.
_LIBRARY = torch.library.Library("pyro_align", "FRAGMENT")
_LIBRARY.define(
    "stable_log_prob(Tensor alpha, Tensor beta, Tensor value, str coords) -> Tensor", tags=(torch.Tag.pointwise,)
)
_log_prob = stable._stable_log_prob


def _stable(alpha: Tensor, beta: Tensor, value: Tensor, coords: str) -> Tensor:
    with torch.no_grad():
        return _log_prob(alpha, beta, value, coords)


_LIBRARY.impl("stable_log_prob", _stable, "CompositeExplicitAutograd")


@torch.library.register_fake("pyro_align::stable_log_prob", lib=_LIBRARY)
def _shape_of(alpha: Tensor, beta: Tensor, value: Tensor, coords: str) -> Tensor:
    return torch.empty_like(torch.broadcast_tensors(alpha, beta, value)[2])


@contextlib.contextmanager
def densities_as_operations() -> Iterator[None]:
    """Pyro's own log densities of this kind, as operations while a model is traced."""
    stable._stable_log_prob = torch.ops.pyro_align.stable_log_prob
    try:
        yield
    finally:
        stable._stable_log_prob = _log_prob
