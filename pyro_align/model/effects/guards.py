"""Effect handlers and guards: run a caller's model without leaving a trace of having done so."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping

import pyro
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor, nn


@contextlib.contextmanager
def untouched(*modules: object, seed: int | None = None) -> Iterator[None]:
    """Leaves the RNG state, the param store and the modules' buffers and training flags as they were.

    The store's own dictionaries are put back, not copies of their tensors, so that parameters keep their identity.

    Args:
        modules: Models or guides; those that are ``nn.Module`` are guarded.
        seed: Seed of the global generators inside the block; None leaves the stream where it is.
    """
    store = pyro.get_param_store()
    saved = (dict(store._params), dict(store._param_to_name), dict(store._constraints))
    guarded = {id(m): m for root in modules if isinstance(root, nn.Module) for m in root.modules()}
    flags = {i: m.training for i, m in guarded.items()}
    buffers = [
        (m, name, b, b.detach().clone()) for m in guarded.values() for name, b in m._buffers.items() if b is not None
    ]
    with _forked_rng():
        if seed is not None:
            seed_everywhere(seed)
        try:
            yield
        finally:
            store._params, store._param_to_name, store._constraints = saved
            for i, module in guarded.items():
                module.training = flags[i]
            with torch.no_grad():
                for module, name, buffer, value in buffers:
                    if not torch.equal(buffer, value):
                        buffer.copy_(value)
                    module._buffers[name] = buffer


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
    if hasattr(torch, "accelerator"):  # torch 2.6
        return str(torch.accelerator.current_accelerator().type) if torch.accelerator.is_available() else None
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else None


def seed_everywhere(seed: int) -> None:
    """`torch.manual_seed`, which on machines without an accelerator formats the whole stack at each call."""
    if _accelerator() is not None:
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


class SubstituteMessenger(Messenger):
    """Gives sample sites, param sites and subsampling plates the values named, without marking them observed."""

    def __init__(self, values: Mapping[str, Tensor], subsamples: Mapping[str, Tensor] | None = None):
        super().__init__()
        self.values = values
        self.subsamples = subsamples or {}

    def _pyro_sample(self, msg):
        if isinstance(msg["fn"], _Subsample):
            if msg["name"] in self.subsamples and msg["value"] is None:
                msg["value"] = self.subsamples[msg["name"]]
                msg["done"] = True
        elif msg["name"] in self.values and not msg["is_observed"]:
            msg["value"] = self.values[msg["name"]]
            msg["done"] = True

    def _pyro_param(self, msg):
        if msg["name"] in self.values:
            msg["value"] = self.values[msg["name"]]
            msg["done"] = True


class NoValidationMessenger(Messenger):
    """Switches validation off on the distributions themselves: one built earlier keeps its own flag otherwise."""

    def _pyro_sample(self, msg):
        if not isinstance(msg["fn"], _Subsample):
            msg["fn"] = without_validation(msg["fn"])


def without_validation(fn):
    """A shallow copy of a distribution, and of those inside it, that does not check its arguments."""
    if not isinstance(fn, torch.distributions.Distribution):
        return fn
    fn = copy.copy(fn)
    for key, value in list(fn.__dict__.items()):
        if isinstance(value, torch.distributions.Distribution):
            fn.__dict__[key] = without_validation(value)
    fn.__dict__["_validate_args"] = False
    return fn
