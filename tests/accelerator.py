"""An accelerator in host memory: what a device of its own demands, on machines that have none.

``torch.device("accel")`` is PyTorch's own device for accelerators from elsewhere (PrivateUse1), with its dispatch key,
device type and autograd thread, so that vmap, autograd, tracing and modules treat its tensors as they treat CUDA's. The
numbers lie in host memory and the CPU's kernels compute with them, behind the rules that CUDA enforces:

- An operation whose tensors lie on two devices fails. As in PyTorch, elementwise operations take scalar tensors of the
  host, and ``x[i]`` takes an index of the host.
- ``numpy()`` fails; a host's generator fails; the device draws from a stream of its own.

:func:`transfers` lists what travels between the device and the host meanwhile. What an emulation cannot tell: the
kernels of a real device (which operations and dtypes they have, how they round), its memory, its streams, its speed.

Importing this registers the device, before the first backward pass of the process: PyTorch counts devices then.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map, tree_map_only

NAME = "accel"


@dataclass(frozen=True)
class Transfer:
    """A tensor that went from one memory to the other, or a number that the host waited for.

    Attributes:
        to_host: Whether it went to the host.
        shape: Its shape; ``()`` for a number.
        dtype: Its dtype; None for a number that is no tensor.
        op: The operation that moved it.
    """

    to_host: bool
    shape: tuple[int, ...]
    dtype: torch.dtype | None
    op: str


_LOGS: list[list[Transfer]] = []


@contextlib.contextmanager
def transfers() -> Iterator[list[Transfer]]:
    """A list that fills, inside the block, with what travels between the device and the host."""
    log: list[Transfer] = []
    _LOGS.append(log)
    try:
        yield log
    finally:
        _LOGS.remove(log)


def _note(to_host: bool, shape: Any, dtype: torch.dtype | None, op: str) -> None:
    for log in _LOGS:
        log.append(Transfer(to_host, tuple(shape), dtype, op))


# -- one memory, two devices -------------------------------------------------------------------------------------------

_CPU, _ACCEL = 1, 12  # DLPack's numbers of the device types
_address = ctypes.pythonapi.PyCapsule_GetPointer
_address.restype, _address.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


def _as(tensor: Tensor, device: int) -> Tensor:
    """The same memory as a tensor of the other device: DLPack's struct names it after the address of the data."""
    capsule = torch._C._to_dlpack(tensor)
    ctypes.c_int32.from_address(_address(capsule, b"dltensor") + ctypes.sizeof(ctypes.c_void_p)).value = device
    return torch._C._from_dlpack(capsule)


def _here(device: torch.device | None) -> bool:
    return device is not None and device.type == NAME


# -- the rules ---------------------------------------------------------------------------------------------------------

aten = torch.ops.aten


def _convolution_backward(output: Tensor, x: Tensor, weight: Tensor, *rest, **kwargs):
    return aten.convolution_backward.default(output, x, weight, [weight.shape[0]], *rest, **kwargs)


def _lstm_cell(x: Tensor, h: Tensor, c: Tensor, *biases: Tensor | None):
    i, f, g, o = (x + h + sum(b for b in biases if b is not None)).split(c.shape[-1], -1)
    new = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(new), new, torch.cat([i, f, g, o], -1)


def _gru_cell(x: Tensor, h: Tensor, old: Tensor, x_bias: Tensor | None = None, h_bias: Tensor | None = None):
    xr, xz, xn = (x if x_bias is None else x + x_bias).split(old.shape[-1], -1)
    hr, hz, hn = (h if h_bias is None else h + h_bias).split(old.shape[-1], -1)
    z, new = torch.sigmoid(xz + hz), torch.tanh(xn + torch.sigmoid(xr + hr) * hn)
    return (1 - z) * new + z * old, x.new_zeros(len(x), 5 * old.shape[-1])


_PUT = ("aten::index_put_", "aten::_index_put_impl_")
_INDEXED = {"aten::index", *_PUT}  # their indices may lie on the host
_TAKE_SCALARS = {"aten::fill_", "aten::masked_fill_", "aten::masked_fill", "aten::floor_divide", *_PUT}
_METADATA = {  # kernels that only make another view, whatever the device
    *(aten.as_strided.default, aten.view.default, aten._reshape_alias.default, aten.unfold.default),
    *(aten.view_as_real.default, aten.view_as_complex.default),
    *(aten.set_.source_Storage, aten.set_.source_Storage_storage_offset, aten.set_.source_Tensor, aten.set_.default),
}
_INSTEAD = {  # what a device from elsewhere is asked for in place of what the CPU calls by another name
    aten.convolution_overrideable.default: aten.convolution.default,
    aten._thnn_fused_lstm_cell.default: _lstm_cell,
    aten._thnn_fused_gru_cell.default: _gru_cell,
    aten.convolution_backward_overrideable.default: _convolution_backward,
}
_HOST_KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
_STREAM = torch.Generator()  # of the device's random numbers


def _check_devices(op, named: list[tuple[str, Any]]) -> None:
    name = op._schema.name
    scalars = name in _TAKE_SCALARS or _is_pointwise(op)
    written = {a.name for a in op._schema.arguments if a.alias_info is not None and a.alias_info.is_write}
    for label, value in named:
        for tensor in value if isinstance(value, list | tuple) else (value,):
            if not isinstance(tensor, Tensor) or _here(tensor.device):
                continue
            if label == "indices" and name in _INDEXED:
                continue
            if scalars and tensor.dim() == 0 and label not in written:
                continue
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but got {label} is on {tensor.device}, different from "
                f"other tensors on {DEVICE} (when checking argument in {name})"
            )


@functools.cache
def _is_pointwise(op) -> bool:
    """Whether an operation is elementwise; the tag is not on overloads that write to a given tensor."""
    name = op.overloadpacket.__name__
    packets = [getattr(aten, n) for n in (name, name.removesuffix("_")) if hasattr(aten, n)]
    return any(torch.Tag.pointwise in getattr(packet, o).tags for packet in packets for o in packet.overloads())


def _kernel(op, *args, **kwargs):
    """Every operation on the device that PyTorch does not itself compose of others."""
    if op in _METADATA:
        return op.redispatch(_HOST_KEYS, *args, **kwargs)
    args = _numbers(op, args)
    _check_devices(op, [*zip((a.name for a in op._schema.arguments), args, strict=False), *kwargs.items()])
    args, kwargs = _with_own_stream(op, args, kwargs)
    seen: dict[int, tuple[Tensor, Tensor]] = {}  # the host's view by identity: the device's tensor, and the view

    def to_host(value):
        if isinstance(value, torch.device):
            return torch.device("cpu") if _here(value) else value
        if not isinstance(value, Tensor):
            return value
        if not _here(value.device):
            if value.dim():  # a scalar goes along with the operation
                _note(False, value.shape, value.dtype, op._schema.name)
            return value
        # memory that came from elsewhere cannot grow: a tensor without elements gets some that can
        host = _as(value, _CPU) if value.numel() else value.new_empty(value.shape, device="cpu")
        seen[id(host)] = (value, host)
        return host

    def back(value: Tensor) -> Tensor:
        if id(value) in seen:
            return seen[id(value)][0]
        if value.numel() and value.untyped_storage().data_ptr() in {
            h.untyped_storage().data_ptr() for _, h in seen.values()
        }:
            raise NotImplementedError(f"{op._schema.name} gives a view, which the emulated device has no kernel for")
        return _as(value, _ACCEL)

    args, kwargs = tree_map(to_host, args), tree_map(to_host, kwargs)
    result = _INSTEAD.get(op, op)(*args, **kwargs)
    for tensor, host in seen.values():
        if tensor.shape != host.shape:  # an output that was resized
            tensor.set_(_as(host, _ACCEL))
    if torch.Tag.dynamic_output_shape in op.tags or not isinstance(result, Tensor | list | tuple | None):
        _note(True, (), None, op._schema.name)  # the host waits for a size, or for a number
    return tree_map_only(Tensor, back, result)


def _with_own_stream(op, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """The arguments with the device's own generator in place of none; the host's is refused."""
    names = [a.name for a in op._schema.arguments]
    if "generator" not in names:
        return args, kwargs
    place = names.index("generator")
    given = args[place] if place < len(args) else kwargs.get("generator")
    if given is not None:
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but found '{given.device.type}'")
    if place < len(args):
        return (*args[:place], _STREAM, *args[place + 1 :]), kwargs
    return args, {**kwargs, "generator": _STREAM}


def _numbers(op, args: tuple) -> tuple:
    """Python numbers where an operation says tensor: PyTorch hands over its wrapped numbers like that."""
    like = next((a for a in args if isinstance(a, Tensor)), None)
    return tuple(
        torch.tensor(a, dtype=torch.result_type(like, a), device="cpu")
        if isinstance(a, bool | int | float | complex) and isinstance(s.type, torch.TensorType)
        else a
        for s, a in zip(op._schema.arguments, args, strict=False)
    )


def _resize(tensor: Tensor, size, *, memory_format=None) -> Tensor:
    if math.prod(size) <= math.prod(tensor.shape) and tensor.is_contiguous():
        return tensor.set_(tensor.untyped_storage(), tensor.storage_offset(), size)
    grown = torch.empty(size, dtype=tensor.dtype, device="cpu")
    return tensor.set_(_as(grown, _ACCEL))


def _copy(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    """The one way from memory to memory."""
    there, here = _here(source.device), _here(target.device)
    if there != here:
        _note(there, source.shape, source.dtype, "aten::_copy_from")
    (_as(target, _CPU) if here else target).copy_(_as(source, _CPU) if there else source)
    return target


def _number(tensor: Tensor):
    _note(True, (), tensor.dtype, "aten::_local_scalar_dense")
    return _as(tensor, _CPU).item()


_OWN = {"aten::_copy_from": _copy, "aten::_local_scalar_dense": _number, "aten::resize_": _resize}

_new_storage = torch.UntypedStorage.__new__


def _storage(cls, *args, device: Any = None, **kwargs):
    """Storage by itself, which copies and ``torch.load`` ask for: the device has no allocator but its ``empty``."""
    if device is not None and _here(torch.device(device)):
        return torch.empty(*args, dtype=torch.uint8, device=device, **kwargs).untyped_storage()
    return _new_storage(cls, *args, **kwargs) if device is None else _new_storage(cls, *args, device=device, **kwargs)


# -- registration ------------------------------------------------------------------------------------------------------


class _Module:
    """``torch.accel``."""

    @staticmethod
    def is_available() -> bool:
        return True

    is_initialized = is_available

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def device_count() -> int:
        return 1

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def device(device: Any) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

    @staticmethod
    def manual_seed_all(seed: int) -> None:
        _STREAM.manual_seed(seed)

    manual_seed = manual_seed_all

    @staticmethod
    def get_rng_state(device: Any = NAME) -> Tensor:
        return _STREAM.get_state()

    @staticmethod
    def set_rng_state(state: Tensor, device: Any = NAME) -> None:
        _STREAM.set_state(state)


def _with_kernels_of_the_cpu() -> Iterator[torch._ops.OpOverload]:
    for name in torch._C._dispatch_get_registrations_for_dispatch_key("CPU"):
        if name.startswith("aten::") and name not in _OWN:
            packet, _, overload = name.removeprefix("aten::").partition(".")
            yield getattr(getattr(aten, packet), overload or "default")


def _register() -> list[torch.library.Library]:
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    anything, some = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    anything.fallback(_kernel, "PrivateUse1")
    for op in (*_with_kernels_of_the_cpu(), *_INSTEAD):  # by name: a fallback is not found while a mode is on
        some.impl(op, functools.partial(_kernel, op), "PrivateUse1")
    for name, function in _OWN.items():
        some.impl(name.removeprefix("aten::"), function, "PrivateUse1")
    torch.UntypedStorage.__new__ = _storage
    return [anything, some]


_LIBRARIES = _register()  # they end with the process
DEVICE = torch.device(NAME, 0)
