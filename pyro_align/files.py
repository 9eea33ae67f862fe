"""Every file that the package writes: whole or not at all, under a digest, and read as if a stranger had written it.

A file of tensors is laid out as ``safetensors`` has it, so that other programs can look into it:

| bytes | hold |
|---|---|
| 8 | the length of the header, little-endian |
| header | JSON: tensor number -> ``dtype``, ``shape`` and ``data_offsets``; ``__metadata__`` has ``format``, ``version``, ``meta`` (JSON: everything but tensors) and ``sha256`` |
| rest | the tensors' values, little-endian, one after another |

``sha256`` is the digest of the whole file with zeros in its place. Nothing in a file is ever executed, a file that was
cut short or changed by a single bit is refused, and no more is allocated than the file is long.
"""  # noqa: E501 - a table

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from pyro_align.errors import FormatError

#: Name in a file -> what a tensor may hold.
DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
    "C128": torch.complex128,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_FORMAT, _VERSION = "pyro_align", "2"
_BLANK = "0" * 64
_PART = f".{platform.node() or 'host'}-{{}}.part"  # ends the name of what is not there yet: the host, the process
_STALE = 24 * 3600.0  # seconds after which nobody writes on an unfinished file any more


# -- whole or not at all -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A file to write to that appears under its name once it is complete and on the disk."""
    path = Path(path)
    clear_unfinished(path.parent)
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_PART.format(os.getpid()))
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def whole_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder, not made yet, that appears under its name once it is complete."""
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"'{path}' exists and is not empty; give another path")
    clear_unfinished(path.parent)
    part = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=_PART.format(os.getpid())))
    try:
        yield part / "whole"
        if path.is_dir():
            path.rmdir()
        os.replace(part / "whole", path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def clear_unfinished(folder: Path) -> None:
    """Removes what killed runs left unfinished in a folder: those of this machine now, others after a day."""
    for part in folder.glob(".*.part"):
        with contextlib.suppress(OSError):  # another run finished or removed it, or it is not ours to remove
            if _is_left(part):
                shutil.rmtree(part) if part.is_dir() else part.unlink()


def _is_left(part: Path) -> bool:
    host, _, process = part.stem.rpartition("-")
    if os.name == "posix" and host.endswith(f".{platform.node() or 'host'}") and process.isdigit():
        try:
            os.kill(int(process), 0)  # asks whether it is there
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
    return time.time() - part.stat().st_mtime > _STALE


# -- tensors and JSON under a digest -----------------------------------------------------------------------------------


def write_tensors(path: str | os.PathLike[str], meta: Mapping[str, Any], tensors: Sequence[Tensor]) -> None:
    """Writes tensors, and what JSON can say, to a file; the same values give the same bytes."""
    about = {"format": _FORMAT, "version": _VERSION, "sha256": _BLANK, "meta": json.dumps(meta, allow_nan=True)}
    parts = _laid_out(path, {str(i): tensor for i, tensor in enumerate(tensors)}, about)
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    parts[1] = parts[1].replace(_marked(_BLANK), _marked(digest.hexdigest()), 1)
    with whole_file(path) as file:
        file.writelines(parts)


def write_safetensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor]) -> None:
    """Writes named tensors, such as a state dict, as ``safetensors.torch.save_file`` does."""
    parts = _laid_out(path, tensors, {"format": "pt"})
    with whole_file(path) as file:
        file.writelines(parts)


def _laid_out(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> list[bytes]:
    """Length of the header, header, and values."""
    header: dict[str, Any] = {"__metadata__": dict(about)}
    start, contents = 0, []
    for name, tensor in tensors.items():
        if tensor.dtype not in _NAMES:
            raise FormatError(f"{path}: cannot write a tensor of dtype {tensor.dtype}; the format has {_known()}")
        contents.append(tensor_bytes(tensor))
        end = start + len(contents[-1])
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)  # so that values are aligned
    return [len(head).to_bytes(8, "little"), head, *contents]


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Reads the named tensors of a ``safetensors`` file."""
    try:
        content = Path(path).read_bytes()
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        header.pop("__metadata__", None)
        names = sorted(header, key=lambda name: tuple(header[name]["data_offsets"]))
        numbered = {str(i): header[name] for i, name in enumerate(names)}
        return dict(zip(names, _tensors(numbered, bytearray(content[8 + size :])), strict=True))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, RuntimeError) as error:
        raise FormatError(f"{path}: no safetensors file, or damaged ({error})") from error


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Any], list[Tensor]]:
    """Reads what :func:`write_tensors` wrote."""
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error})") from error
    size = int.from_bytes(content[:8], "little")
    head = content[8 : 8 + size]
    if len(content) < 8 or len(head) != size:
        raise FormatError(f"{path}: not a pyro_align file, or truncated")
    try:
        header = json.loads(head)
        about = header.pop("__metadata__")
        stated, version, ours = about["sha256"], about["version"], about["format"] == _FORMAT
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(f"{path}: not a pyro_align file, or damaged (it has no readable header)") from error
    if not ours:
        raise FormatError(f"{path}: not a pyro_align file")
    if version != _VERSION:
        raise FormatError(f"{path}: format version {version}, this pyro_align reads {_VERSION}; upgrade it")
    blank = head.replace(_marked(stated), _marked(_BLANK), 1) if isinstance(stated, str) else head
    if hashlib.sha256(content[:8] + blank + content[8 + size :]).hexdigest() != stated:
        raise FormatError(f"{path}: its contents do not match their digest: the file was damaged or changed")
    try:
        meta = json.loads(about["meta"])
        return dict(meta), _tensors(header, bytearray(content[8 + size :]))
    except (ValueError, KeyError, TypeError, RecursionError, RuntimeError) as error:
        raise FormatError(f"{path}: its contents cannot be read ({error})") from error


def _tensors(header: Mapping[str, Any], data: bytearray) -> list[Tensor]:
    out, start = [], 0
    for i in range(len(header)):
        entry = header[str(i)]
        if entry["dtype"] not in DTYPES:
            raise ValueError(f"tensor {i} is of dtype {entry['dtype']}; the format has {_known()}")
        dtype, shape, (begin, end) = DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
        if not all(isinstance(n, int) and n >= 0 for n in shape) or begin != start:
            raise ValueError(f"tensor {i} has shape {shape} and begins at {begin}")
        count = math.prod(shape)
        if end - begin != count * dtype.itemsize or end > len(data):
            raise ValueError(f"tensor {i} of shape {shape} and dtype {entry['dtype']} has {end - begin} bytes")
        own = data[begin:end]  # a copy, which begins where a number may, as a part of the file need not
        flat = torch.frombuffer(own, dtype=dtype) if count else torch.empty(0, dtype=dtype)
        out.append(flat.reshape(shape))
        start = end
    if start != len(data):
        raise ValueError(f"{len(data) - start} bytes are left over")
    return out


def tensor_bytes(tensor: Tensor) -> bytes:
    """A tensor's values, in the order of its indices."""
    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def _marked(digest: str) -> bytes:
    return f'"sha256":"{digest}"'.encode()


def _known() -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in _NAMES)


# -- Zarr --------------------------------------------------------------------------------------------------------------


def write_tree(tree: Any, folder: str | os.PathLike[str]) -> None:
    """Writes an ``xarray.DataTree`` to a Zarr folder, whole or not at all, with any Zarr that xarray takes."""
    with whole_folder(folder) as part:
        tree.to_zarr(os.fspath(part), mode="w", consolidated=False, zarr_format=2)


def write_trees(folder: str | os.PathLike[str], trees: Mapping[str, Callable[[], Any]]) -> None:
    """Writes trees to Zarr folders within a folder, each made, written and dropped before the next.

    What is there is kept, and not made again.

    Args:
        trees: Name of a folder -> function that makes a tree.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass
    for name, make in trees.items():
        if not (folder / name).exists():
            write_tree(make(), folder / name)
