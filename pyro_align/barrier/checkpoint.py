"""Finished pieces in a folder, so that an evaluation that was killed goes on where it stopped.

A piece is there whole or not at all, under a digest. A file with the fingerprint of model, path, data, losses and
options keeps pieces of another problem from being taken for this one's.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyro_align.barrier.fingerprint import fingerprint
from pyro_align.barrier.problem import Piece, Problem
from pyro_align.errors import BarrierError, FormatError
from pyro_align.files import clear_unfinished, read_tensors, write_tensors
from pyro_align.losses.protocol import Estimate

_HEAD, _PIECE = "problem.safetensors", "tau_{}.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A folder of pieces.

    Attributes:
        folder: Where.
    """

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
