"""The domain of signs: a tensor's value is the number of a parity for every entry."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from pyro_align.discovery.registry import Registry, sign_rule
from pyro_align.discovery.signs.parity import EVEN, ZERO, Parities
from pyro_align.discovery.walk import Call, Constants, Domain


@dataclass(frozen=True, eq=False)
class SignTensor:
    """A tensor in the graph: the number of a parity for every entry.

    Attributes:
        ids: int32, in the tensor's shape; see :mod:`pyro_align.discovery.signs.parity`.
        dtype: The tensor's own dtype.
        constant: Returns the value of a tensor that depends on neither sites nor data, and None for any other.
    """

    ids: Tensor
    dtype: torch.dtype = torch.float64
    constant: Callable[[], Tensor | None] = field(default=lambda: None)

    @property
    def shape(self) -> torch.Size:
        """Its shape."""
        return self.ids.shape

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self.ids.dim()


Operand = SignTensor | float | int | bool | complex


class SignCall(Call):
    """What a rule may ask and say. Operands are tensors, or the numbers that operators take in their place.

    Attributes:
        parities: The table of parities.
    """

    def __init__(self, parities: Parities, node: Node):
        super().__init__(node)
        self.parities = parities

    def even(self, shape: Sequence[int] | None = None) -> SignTensor:
        """An output that no sign reaches."""
        return _filled(EVEN, self.shape if shape is None else shape)

    def zero(self, shape: Sequence[int] | None = None) -> SignTensor:
        """An output of zeros: it goes along with any sign."""
        return _filled(ZERO, self.shape if shape is None else shape)

    def hold(self, *operands: Operand) -> SignTensor:
        """Requires that no entry changes sign; returns the output that then no sign reaches."""
        for x in operands:
            if isinstance(x, SignTensor):
                self.parities.hold(x.ids)
        return self.even()

    def add(self, *operands: Operand) -> SignTensor:
        """A sum, entry by entry: what is added must change sign together."""
        return self._fold(self.parities.add, operands)

    def multiply(self, *operands: Operand) -> SignTensor:
        """A product, entry by entry: the output changes sign where an odd number of factors do."""
        return self._fold(self.parities.multiply, operands)

    def alike(self, x: SignTensor, dims: Sequence[int], *, keepdim: bool = False) -> SignTensor:
        """Requires that entries along some axes change sign together; returns what a sum along them does."""
        dims = sorted({d % x.ndim for d in dims})
        ids = self.parities.alike(x.ids, dims)
        return SignTensor(ids if keepdim else ids.squeeze(dims))

    def multiply_along(self, x: SignTensor, dims: Sequence[int], *, keepdim: bool = False) -> SignTensor:
        """A product of the entries along some axes."""
        dims = sorted({d % x.ndim for d in dims})
        ids = self.parities.multiply_along(x.ids, dims)
        return SignTensor(ids if keepdim else ids.squeeze(dims))

    def contract(self, left: SignTensor, left_labels: str, right: SignTensor, right_labels: str, out: str) -> Any:
        """A two-operand einsum."""
        return SignTensor(self.parities.contract(left.ids, left_labels, right.ids, right_labels, out))

    def number(self, x: Any) -> float:
        """The one finite number that an operand is: given as such, or as a constant."""
        if isinstance(x, SignTensor):
            value = x.constant()
            if value is None or not value.numel() or not bool((value == value.flatten()[0]).all()):
                raise self.unsupported("not one number")
            x = value.flatten()[0].item()
        if not isinstance(x, numbers.Real) or not math.isfinite(x):
            raise self.unsupported()
        return x

    def rearrange(self, *args: Any, **kwargs: Any) -> SignTensor | list[SignTensor]:
        """The operation itself, which only moves entries, drops some, or fills in zeros, applied to the parities."""
        args, kwargs = pytree.tree_map(lambda a: a.ids if isinstance(a, SignTensor) else a, (args, kwargs))
        out = self.node.target(*args, **kwargs)
        return [SignTensor(t) for t in out] if isinstance(out, tuple | list) else SignTensor(out)

    def expand(self, x: SignTensor, shape: Sequence[int] | None = None) -> SignTensor:
        """Broadcasts to a shape, by default the output's."""
        return SignTensor(x.ids.expand(self.shape if shape is None else tuple(shape)))

    def _fold(self, combine, operands: Sequence[Operand]) -> SignTensor:
        ids = [x.ids if isinstance(x, SignTensor) else torch.tensor(number_of(x), dtype=torch.int32) for x in operands]
        out = ids[0]
        for other in ids[1:]:
            out = combine(out, other)
        return SignTensor(out)


def number_of(value: Any) -> int:
    """The parity of a plain number."""
    return ZERO if value == 0 else EVEN


def ids_of_constant(value: Tensor) -> Tensor:
    """The parities of a constant's entries: those that are exactly zero go along with any sign."""
    return torch.where(value.detach().cpu() == 0, ZERO, EVEN).to(torch.int32)


def _filled(number: int, shape: Sequence[int]) -> SignTensor:
    return SignTensor(torch.full((), number, dtype=torch.int32).expand(tuple(shape)))


class SignDomain(Domain):
    """Parities of tensors, from those of the sites; what the graph requires is added to the table.

    Outputs must not change sign, unless ``keep`` asks for their parities instead.
    """

    parities: Parities  # the table, and where equations go

    rules: Registry = sign_rule

    def __init__(self, parities: Parities, ids_of_site: Callable[[str], Tensor], *, keep: bool = False):
        self.parities, self._ids_of_site, self._keep = parities, ids_of_site, keep
        self.outputs: list[Any] = []

    def call(self, node: Node) -> SignCall:
        return SignCall(self.parities, node)

    def site(self, name: str, value: Tensor) -> SignTensor:
        return SignTensor(self._ids_of_site(name), value.dtype)

    def data(self, value: Tensor) -> SignTensor:
        return SignTensor(torch.full((), EVEN, dtype=torch.int32).expand(value.shape), value.dtype)

    def constant(self, constants: Constants, node: Node, like: Tensor) -> SignTensor:
        return _Constant(constants, node, like)

    def results(self, call: SignCall, found: list[Any]) -> list[Any] | None:
        if any(value is None and shape is not None for value, shape in zip(found, call.shapes, strict=True)):
            return None
        for k, (value, like, shape) in enumerate(zip(found, call.outputs, call.shapes, strict=True)):
            if shape is not None:
                assert tuple(value.shape) == shape, f"the rule of signs of {call.node.target} returned the wrong shape"
                found[k] = replace(value, dtype=like.dtype)
        return found

    def without_rule(self, call: SignCall, sources: Sequence[Any]) -> list[Any]:
        call.hold(*sources)
        return self.results(call, [None if s is None else call.even(s) for s in call.shapes])

    def finish(self, outputs: Sequence[Any], states: Mapping[str, Any]) -> None:
        self.outputs = list(outputs)
        for out in outputs:
            if isinstance(out, SignTensor) and not self._keep:
                self.parities.hold(out.ids)
        for name, out in states.items():
            self.parities.add(out.ids, self._ids_of_site(name))


class _Constant(SignTensor):
    """A constant, whose values are looked at only when something that is not constant meets it."""

    def __init__(self, constants: Constants, node: Node, like: Tensor):
        object.__setattr__(self, "_constants", constants)
        object.__setattr__(self, "_node", node)
        object.__setattr__(self, "_like", like)
        object.__setattr__(self, "dtype", like.dtype)

    def constant(self) -> Tensor:  # type: ignore[override]
        return self._constants.value(self._node)

    @property
    def ids(self) -> Tensor:  # type: ignore[override]
        return ids_of_constant(self.constant())

    @property
    def shape(self) -> torch.Size:
        return self._like.shape

    @property
    def ndim(self) -> int:
        return self._like.dim()
