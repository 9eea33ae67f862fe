"""Running a caller's model without leaving a trace of having done so, one thread at a time.

Pyro's effect handlers, validation flags and param store are global to the process, and so is the random state that is
put back afterwards: two threads that ran models at once would give wrong numbers without an error. Whatever runs a
model here therefore holds one re-entrant lock.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyro_align.model.reached import reached_modules

#: Held by every run of a model; a thread of yours that runs Pyro code beside this package may hold it too.
LOCK = threading.RLock()
if hasattr(os, "register_at_fork"):  # a child forked while another thread held it would wait forever
    os.register_at_fork(after_in_child=LOCK._at_fork_reinit)  # pyright: ignore[reportAttributeAccessIssue]


@contextlib.contextmanager
def untouched(*roots: object, seed: int | None = None) -> Iterator[None]:
    """Leaves the RNG state, the param store and the modules that a run reaches as they were.

    The store's own dictionaries are put back, not copies of their tensors, so that parameters keep their identity. Of
    modules, buffers, training flags and all attributes are put back. The block holds the lock of this module.
    """
    with LOCK:
        store = pyro.get_param_store()
        saved = (dict(store._params), dict(store._param_to_name), dict(store._constraints))
        states = [_State(module) for module in reached_modules(*roots)]
        with _forked_rng():
            if seed is not None:
                seed_everywhere(seed)
            try:
                yield
            finally:
                store._params, store._param_to_name, store._constraints = saved
                for state in states:
                    state.restore()


def gradless(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls a function without recording gradients, unless it takes gradients itself and fails for want of them."""
    try:
        with torch.no_grad():
            return function(*args, **kwargs)
    except RuntimeError as error:
        if "does not require grad" not in str(error):
            raise
    with torch.enable_grad():
        return function(*args, **kwargs)


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Without Python's search for cycles, which looks at all of PyTorch again for every few hundred new nodes."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """What ``torch.compile`` compiled runs as it was written."""
    compiled = "torch._dynamo" in sys.modules
    with torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext():
        yield


class _State:
    """What a run may change of one module, its children apart."""

    def __init__(self, module: nn.Module):
        self.module, self.training = module, module.training
        self.attributes = dict(module.__dict__)
        self.containers = [(v, copy.copy(v)) for v in self.attributes.values() if type(v) in _CONTAINERS]
        tensors = [*module._buffers.values(), *(v for v in self.attributes.values() if type(v) is Tensor)]
        self.tensors = [(t, t.detach().clone()) for t in tensors if t is not None]

    def restore(self) -> None:
        present = self.module.__dict__
        if not _same(present, self.attributes):
            present.clear()
            present.update(self.attributes)
        for container, content in self.containers:
            if not _same(container, content):
                container.clear()
                container.extend(content) if isinstance(container, list) else container.update(content)
        if self.module.training != self.training:  # of a scripted module, no attribute
            self.module.training = self.training
        with torch.no_grad():
            for tensor, value in self.tensors:  # batch normalization changes its statistics without counting a version
                if not torch.equal(tensor, value):
                    tensor.copy_(value)


_CONTAINERS = (dict, OrderedDict, list, set)


def _same(a, b) -> bool:
    """Whether two containers hold the same objects."""
    if len(a) != len(b):
        return False
    if isinstance(a, dict):
        return all(k in a and a[k] is v for k, v in b.items())
    return a == b if isinstance(a, set) else all(x is y for x, y in zip(a, b, strict=True))


@contextlib.contextmanager
def _forked_rng() -> Iterator[None]:
    """`torch.random.fork_rng` of the host and of every device of the accelerator, where it is in use."""
    kind = _accelerator()
    module = None if kind is None else torch.get_device_module(kind)
    used = module is not None and getattr(module, "is_initialized", module.is_available)()
    with torch.random.fork_rng(range(module.device_count()) if used else (), device_type=kind or "cuda"):
        yield


def _accelerator() -> str | None:
    """Device type of this machine's accelerator (``"cuda"``, ``"mps"``, ``"xpu"``, ...), or None."""
    return str(torch.accelerator.current_accelerator().type) if torch.accelerator.is_available() else None


def seed_everywhere(seed: int) -> None:
    """`torch.manual_seed` of what is in use; for every kind of device that is not, that formats the whole stack."""
    torch.default_generator.manual_seed(seed)
    if (kind := _accelerator()) is not None:
        module = torch.get_device_module(kind)
        if not getattr(module, "_is_in_bad_fork", bool)():  # a forked process cannot use the device
            getattr(module, "manual_seed_all", module.manual_seed)(seed)
