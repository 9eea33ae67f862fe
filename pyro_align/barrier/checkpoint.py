"""Finished pieces in a folder, so that an evaluation that was killed goes on where it stopped.

A piece is there whole or not at all, under a digest. A file with the fingerprint of model, path, data, losses and
options keeps pieces of another problem from being taken for this one's.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
import tempfile
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyro_align.barrier.problem import Piece, Problem
from pyro_align.errors import BarrierError, FormatError
from pyro_align.files import clear_unfinished, read_tensors, tensor_bytes, write_tensors
from pyro_align.losses.protocol import Estimate

_BY_NAME = ("builtins", "torch", "pyro", "numpy", "abc", "typing", "functools", "collections")
_HEAD, _PIECE = "problem.safetensors", "tau_{}.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A folder of pieces."""

    folder: Path

    @classmethod
    def open(cls, folder: str | os.PathLike[str], problem: Problem, taus: int = 1) -> Checkpoint:
        """The checkpoint of a problem, made where there is none."""
        checkpoint, mark = cls(Path(folder)), fingerprint(problem)
        head = checkpoint.folder / _HEAD
        try:
            checkpoint.folder.mkdir(parents=True, exist_ok=True)
            clear_unfinished(checkpoint.folder)
            if not head.exists():
                if any(p for p in checkpoint.folder.iterdir() if not p.name.startswith(".")):
                    raise BarrierError(f"checkpoint: the folder '{folder}' is not empty and not a checkpoint")
                write_tensors(head, {"kind": "evaluation", **mark}, [])
            with tempfile.TemporaryFile(dir=checkpoint.folder) as file:  # fails now rather than after the first piece
                file.write(bytes(taus * _piece_bytes(problem)))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise BarrierError(f"checkpoint: the folder '{folder}' cannot be written: {error}") from error
        there, _ = _read(head)
        differing = [key for key in mark if there.get(key) != mark[key]]
        if differing:
            raise BarrierError(
                f"checkpoint: the folder '{folder}' belongs to another evaluation, with other {', '.join(differing)}; "
                "give another folder, or delete this one"
            )
        return checkpoint

    def write(self, piece: Piece) -> None:
        """Keeps a piece, whole or not at all."""
        arrays = [piece.log_prior, piece.log_q, *piece.likelihood.values()]
        estimates = []
        for key, one in piece.estimates.items():
            estimates.append([*key, one.drift, one.effective, one.fragile is not None])
            arrays += [one.draws] if one.fragile is None else [one.draws, one.fragile]
        meta = {"tau": piece.tau, "vectorized": piece.vectorized, "num_data": dict(piece.num_data)}
        meta |= {"estimates": estimates, "evaluations": list(piece.likelihood)}
        try:
            path = self.folder / _PIECE.format(float(piece.tau).hex())
            write_tensors(path, meta, [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays])
        except OSError as error:
            kept = len(self._pieces())
            raise BarrierError(
                f"checkpoint: tau={piece.tau:g} cannot be written to '{self.folder}': {error}; the {kept} taus before "
                "it are kept: make room, and run the same again"
            ) from error

    def read(self) -> dict[float, Piece]:
        """Tau -> piece, of all pieces there."""
        pieces = [_read_piece(path) for path in self._pieces()]
        return {piece.tau: piece for piece in pieces}

    def _pieces(self) -> list[Path]:
        return sorted(self.folder.glob(_PIECE.format("*")))


def _piece_bytes(problem: Problem) -> int:
    """What a piece takes in a file, at most: its arrays over draws, and names and headers."""
    arrays = 2 + len(problem.data) * (2 + len(problem.losses))  # a predictive loss has two
    names = sum(map(len, problem.losses)) + sum(len(data.name) for data in problem.data) * (1 + len(problem.losses))
    return 8 * problem.num_samples * arrays + 130 * arrays + 2 * names + 1024


def _read(path: Path) -> tuple[Mapping[str, Any], list[np.ndarray]]:
    try:
        meta, tensors = read_tensors(path)
    except (FormatError, OSError) as error:
        raise BarrierError(f"checkpoint: the file '{path}' is damaged ({error}); delete it and run again") from error
    return meta, [tensor.numpy() for tensor in tensors]


def _read_piece(path: Path) -> Piece:
    meta, arrays = _read(path)
    rest = iter(arrays)
    try:
        log_prior, log_q = next(rest), next(rest)
        likelihood = {name: next(rest) for name in meta["evaluations"]}
        estimates = {
            (evaluation, loss): Estimate(next(rest), drift, effective, next(rest) if fragile else None)
            for evaluation, loss, drift, effective, fragile in meta["estimates"]
        }
        return Piece(meta["tau"], estimates, likelihood, log_prior, log_q, meta["num_data"], meta["vectorized"])
    except (StopIteration, ValueError, KeyError, TypeError) as error:
        raise BarrierError(f"checkpoint: the file '{path}' is no piece of an evaluation; delete it") from error


# -- what decides an evaluation, as digests that are the same in another process ---------------------------------------


def fingerprint(problem: Problem) -> dict[str, str]:
    """What decides the result: the path's draws, the data, the model at one draw, the losses, and the options."""
    return {
        "path": digest_of([problem.path.posterior(tau).push(problem.noise) for tau in (0.0, 0.5, 1.0)]),
        "data": digest_of([[data.name, *map(digest_of, data.batches())] for data in problem.data]),
        "model": _model_digest(problem),
        "losses": digest_of(dict(problem.losses)),
        "num_samples": str(problem.num_samples),
        "seed": str(problem.seed),
        "temperature": float(problem.temperature).hex(),
        "num_data": str(problem.num_data),
        "chunk and memory": f"{problem.chunk}, {problem.max_memory}",
    }


def _model_digest(problem: Problem) -> str:
    """What the model says of one draw on the first batch; the model's code where it cannot be asked so."""
    if not problem.on_draws:
        return digest_of(problem.model)
    values = {k: v[:1] for k, v in problem.path.posterior(0.5).push(problem.noise).items()}
    said = []
    for data in problem.data:
        args, kwargs = next(iter(data.batches()))
        draws = problem.runner(values, args, kwargs)
        said.append([draws.log_likelihood.double(), draws.likelihood.double(), draws.log_prior.double()])
    return digest_of(said)


def digest_of(value: Any) -> str:
    """A digest of tensors, numbers, text, collections, functions and objects of these.

    Functions go by their code, their defaults and what they close over, objects by their class and attributes: nothing
    that differs between processes, such as an address, counts.
    """
    out = hashlib.sha256()
    _update(out, value, ())
    return out.hexdigest()


def _update(out: Any, value: Any, within: tuple[int, ...]) -> None:
    """Adds a value; ``within`` are the ids of what holds it, as things may hold themselves."""
    out.update(f"<{type(value).__qualname__}>".encode())
    if id(value) in within:
        return
    within = (*within, id(value))
    if isinstance(value, Tensor):
        out.update(f"{value.dtype}{tuple(value.shape)}".encode())
        out.update(tensor_bytes(value))
    elif isinstance(value, np.ndarray) and value.dtype != object:
        out.update(f"{value.dtype}{value.shape}".encode())
        out.update(np.ascontiguousarray(value).tobytes())
    elif value is None or isinstance(value, str | bytes | int | float | complex | bool | torch.dtype | torch.device):
        out.update(repr(value).encode())
    else:
        for part in _parts(value):
            _update(out, part, within)


def _parts(value: Any) -> Iterable[Any]:
    """What a value that is no leaf is made of."""
    if isinstance(value, Mapping):
        return [part for item in value.items() for part in item]
    if isinstance(value, set | frozenset):
        return sorted(map(digest_of, value))
    if isinstance(value, list | tuple):
        return value
    if isinstance(value, types.CodeType):
        return [value.co_code, value.co_consts, value.co_names, value.co_varnames]
    if isinstance(value, types.FunctionType):
        cells = inspect.getclosurevars(value).nonlocals if value.__closure__ else {}
        return [value.__code__, value.__defaults__, value.__kwdefaults__, cells, _read_globals(value)]
    if isinstance(value, types.MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, type):
        return _class_parts(value)
    if isinstance(value, types.ModuleType | types.BuiltinFunctionType) or not hasattr(value, "__dict__"):
        return [getattr(value, "__module__", None), getattr(value, "__qualname__", getattr(value, "__name__", ""))]
    if isinstance(value, nn.Module):
        return [type(value), dict(value.state_dict()), {k: v for k, v in vars(value).items() if k[0] != "_"}]
    return [type(value), dict(vars(value))]


def _read_globals(function: types.FunctionType) -> dict[str, Any]:
    """The numbers and functions of its own module that a function reads by name."""
    found = {name: function.__globals__.get(name) for name in function.__code__.co_names}
    plain = (int, float, str, bool, tuple, Tensor)
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, plain) or getattr(value, "__module__", None) == function.__module__ is not None
    }


def _class_parts(cls: type[Any]) -> list[Any]:
    """A class's name, and the functions of it and its bases, except those of libraries."""
    parts: list[Any] = [f"{cls.__module__}.{cls.__qualname__}"]
    for base in cls.__mro__:
        if base.__module__.split(".")[0] not in _BY_NAME:
            parts += [value for value in vars(base).values() if isinstance(value, types.FunctionType)]
    return parts
