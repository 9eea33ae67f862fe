"""How many bytes a run of the model takes at its peak."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten


class Live(TorchDispatchMode):
    """Follows the bytes of the tensors that operations create, while they live."""

    def __init__(self):
        super().__init__()
        self.now: int = 0
        self.peak: int = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {leaf.untyped_storage()._cdata for leaf in tree_flatten((args, kwargs or {}))[0] if _dense(leaf)}
        out = func(*args, **(kwargs or {}))
        for leaf in tree_flatten(out)[0]:
            if _dense(leaf) and leaf.untyped_storage()._cdata not in given | self._seen:
                self._add(leaf)
        return out

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        self._seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def _dense(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.layout is torch.strided and leaf.device.type != "meta"


def peak_bytes(function: Callable[[], Any]) -> int:
    """The most bytes that the tensors made by ``function`` hold at one time."""
    with Live() as live:
        result = function()
    held = sum(math.prod(t.shape) * t.element_size() for t in tree_flatten(result)[0] if isinstance(t, Tensor))
    return max(live.peak, held)
