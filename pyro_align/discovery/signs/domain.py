"""The domain of signs: a tensor's value is the number of a parity for every entry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from pyro_align.discovery.registry import Registry, sign_rule
from pyro_align.discovery.signs.call import SignCall, SignTensor, ids_of_constant
from pyro_align.discovery.signs.parity import EVEN, Parities
from pyro_align.discovery.walk import Constants, Domain


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
