"""A function of one draw at many draws: by ``torch.func.vmap`` in chunks, or draw by draw where that fails."""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from pyro_align.errors import DiagnosticWarning, first_line
from pyro_align.model.guards import seed_everywhere, untouched

CPU_CACHE = 2**23  # on a CPU, larger chunks only leave its caches

One = Callable[[dict[str, Tensor]], dict[str, Tensor]]


@dataclass
class Many:
    """The one way in which this package runs a model at many draws."""

    model: Callable[..., Any]  # the Pyro model, left as it is
    seed: int = 0  # seed of whatever randomness the model itself uses (subsampling); the same for every draw
    chunk: int | None = None  # draws in one vectorized run; None chooses it by ``max_memory``
    max_memory: int = 2**30  # bytes that the model's intermediate tensors may take
    sizes: dict[Hashable, int] = field(default_factory=dict)  # bytes of one draw's run, by ``key`` of the call
    vectorized: bool = True  # whether vmap is in use; falls to False for good when it fails
    _told: bool = False

    def __call__(self, one: One, values: Mapping[str, Tensor], key: Hashable = None) -> dict[str, Tensor]:
        """The function at every draw, name -> ``(draws, ...)``, from site -> draws ``(draws, *site_shape)``.

        ``key`` says of what the memory of a run depends on besides the draw's shapes.
        """
        count = next(iter(values.values())).shape[0]
        with untouched(self.model, seed=self.seed), torch.no_grad():
            size = self._chunk_size(one, values, key, count) if self.vectorized else 1
            parts = [self._run(one, {k: v[lo : lo + size] for k, v in values.items()}) for lo in range(0, count, size)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _run(self, one: One, chunk: dict[str, Tensor]) -> dict[str, Tensor]:
        count = len(next(iter(chunk.values())))
        if self.vectorized and count > 1:  # one draw alone needs no vectorizing
            try:
                seed_everywhere(self.seed)  # each chunk, and each draw below, sees the same subsample
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", message="There is a performance drop")
                    return torch.func.vmap(one, randomness="same")(chunk)
            except Exception as error:  # whatever vmap cannot do in a user's model, a loop can
                failure = error
            rows = self._one_by_one(one, chunk, count)  # what is wrong with the model itself, it says
            self.vectorized = False
            warnings.warn(
                f"the model cannot be vectorized over draws ({type(failure).__name__}: {first_line(failure)}); "
                "it is run draw by draw, which is slower. Data-dependent Python control flow, .item() and "
                "in-place updates of buffers are the usual reasons",
                DiagnosticWarning,
                stacklevel=2,
            )
        else:
            rows = self._one_by_one(one, chunk, count)
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def _one_by_one(self, one: One, chunk: dict[str, Tensor], count: int) -> list[dict[str, Tensor]]:
        rows = []
        for s in range(count):
            seed_everywhere(self.seed)
            rows.append(one({k: v[s] for k, v in chunk.items()}))
        return rows

    def _chunk_size(self, one: One, values: Mapping[str, Tensor], key: Hashable, count: int) -> int:
        if self.chunk is not None:
            return min(self.chunk, count)
        if key not in self.sizes:
            seed_everywhere(self.seed)
            self.sizes[key] = peak_bytes(lambda: one({k: v[0] for k, v in values.items()}))
        size = self.sizes[key]
        on_cpu = next(iter(values.values())).device.type == "cpu"
        budget = min(self.max_memory, CPU_CACHE) if on_cpu else self.max_memory
        if size > self.max_memory and not self._told:
            self._told = True
            warnings.warn(
                f"one draw of the model on one batch of data takes {size / 2**20:.3g} MiB, more than "
                f"max_memory, {self.max_memory / 2**20:.3g} MiB: draws go one by one. Give the "
                "data in smaller batches, as evaluation={'train': DataLoader(...)}",
                DiagnosticWarning,
                stacklevel=2,
            )
        # vmap may hold copies laid out otherwise (batched convolutions, transposes), hence the factor
        return max(1, min(count, budget // max(1, 2 * size)))


def is_batched(value: object) -> bool:
    """Whether a tensor differs between the draws of a vectorized run."""
    return isinstance(value, Tensor) and torch._C._functorch.is_batchedtensor(value)


# -- memory -----------------------------------------------------------------------------------------------------------


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
