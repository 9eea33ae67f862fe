"""Finished pieces in a folder, so that an evaluation that was killed goes on where it stopped.

A piece is written under another name, flushed to the disk and renamed, so that it is there whole or not at all. A file
with a fingerprint of model, path, data and options keeps pieces of another problem from being taken for this one's.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from pyro_align.barrier.problem import Piece, Problem
from pyro_align.errors import BarrierError
from pyro_align.losses.protocol import Estimate

_HEAD = "problem.json"


@dataclass(frozen=True)
class Checkpoint:
    """A folder of pieces.

    Attributes:
        folder: Where.
    """

    folder: Path

    @classmethod
    def open(cls, folder: str | os.PathLike, problem: Problem, taus: int = 1) -> Checkpoint:
        """The checkpoint of a problem, made where there is none.

        Args:
            folder: Where.
            problem: What is evaluated.
            taus: How many pieces there will be; whether there is room for them is found now, by writing as much.

        Raises:
            BarrierError: The folder belongs to another problem, is no checkpoint, or cannot be written.
        """
        checkpoint, mark = cls(Path(folder)), fingerprint(problem)
        head = checkpoint.folder / _HEAD
        try:
            checkpoint.folder.mkdir(parents=True, exist_ok=True)
            if not head.exists():
                if any(p for p in checkpoint.folder.iterdir() if not p.name.startswith(".")):
                    raise BarrierError(f"checkpoint: the folder '{folder}' is not empty and not a checkpoint")
                checkpoint._put(_HEAD, lambda file: file.write(json.dumps(mark, indent=1).encode()))
            with tempfile.TemporaryFile(dir=checkpoint.folder) as file:  # fails now rather than after the first piece
                file.write(bytes(taus * _piece_bytes(problem)))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise BarrierError(f"checkpoint: the folder '{folder}' cannot be written: {error}") from error
        there = json.loads(head.read_text())
        differing = [key for key in mark if there.get(key) != mark[key]]
        if differing:
            raise BarrierError(
                f"checkpoint: the folder '{folder}' belongs to another evaluation, with other {', '.join(differing)}; "
                "give another folder, or delete this one"
            )
        return checkpoint

    def write(self, piece: Piece) -> None:
        """Keeps a piece, whole or not at all.

        Raises:
            BarrierError: The folder cannot be written any more.
        """
        arrays: dict[str, Any] = {"log_prior": piece.log_prior, "log_q": piece.log_q}
        names: dict[str, Any] = {"tau": piece.tau, "vectorized": piece.vectorized, "num_data": dict(piece.num_data)}
        names["evaluations"] = list(piece.likelihood)
        names["estimates"] = [[*key, one.drift, one.effective] for key, one in piece.estimates.items()]
        arrays |= {f"draws{i}": one.draws for i, one in enumerate(piece.estimates.values())}
        arrays |= {f"likelihood{i}": value for i, value in enumerate(piece.likelihood.values())}
        arrays["names"] = np.frombuffer(json.dumps(names).encode(), np.uint8)
        try:
            self._put(f"{float(piece.tau).hex()}.npz", lambda file: np.savez(file, **arrays))
        except OSError as error:
            kept = len(list(self.folder.glob("*.npz")))
            raise BarrierError(
                f"checkpoint: tau={piece.tau:g} cannot be written to '{self.folder}': {error}; the {kept} taus before "
                "it are kept: make room, and run the same again"
            ) from error

    def read(self) -> dict[float, Piece]:
        """Tau -> piece, of all pieces there."""
        pieces = [_read_piece(path) for path in sorted(self.folder.glob("*.npz"))]
        return {piece.tau: piece for piece in pieces}

    def _put(self, name: str, write) -> None:
        handle, temporary = tempfile.mkstemp(dir=self.folder, prefix=".", suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.folder / name)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def _piece_bytes(problem: Problem) -> int:
    """What a piece takes in a file, at most: its arrays over draws, and names and headers."""
    arrays = 2 + len(problem.data) * (1 + len(problem.losses))
    return 8 * problem.num_samples * arrays + 512 * (arrays + 2) + 2048


def _read_piece(path: Path) -> Piece:
    try:
        with path.open("rb") as handle, np.load(handle) as file:
            names = json.loads(file["names"].tobytes())
            return Piece(
                tau=names["tau"],
                estimates={
                    (evaluation, loss): Estimate(file[f"draws{i}"], drift, effective)
                    for i, (evaluation, loss, drift, effective) in enumerate(names["estimates"])
                },
                likelihood={name: file[f"likelihood{i}"] for i, name in enumerate(names["evaluations"])},
                log_prior=file["log_prior"],
                log_q=file["log_q"],
                num_data=names["num_data"],
                vectorized=names["vectorized"],
            )
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise BarrierError(f"checkpoint: the file '{path}' is damaged ({error}); delete it and run again") from error


def fingerprint(problem: Problem) -> dict[str, str]:
    """What decides the figures: the path's draws, the data, the model's log joint at one draw, and the options."""
    model = hashlib.sha256()
    for data in problem.data:
        for args, kwargs in data.batches():
            values = {k: v[:1] for k, v in problem.path.posterior(0.5).push(problem.noise).items()}
            draws = problem.runner(values, args, kwargs)
            model.update(draws.log_likelihood.double().cpu().numpy().tobytes())
            model.update(draws.log_prior.double().cpu().numpy().tobytes())
            break
    return {
        "path": _hash([problem.path.posterior(tau).push(problem.noise) for tau in (0.0, 0.5, 1.0)]),
        "data": _hash([[data.name, *data.batches()] for data in problem.data]),
        "model": model.hexdigest(),
        "losses": ", ".join(problem.losses),
        "num_samples": str(problem.num_samples),
        "seed": str(problem.seed),
        "num_data": str(problem.num_data),
        "temperature": float(problem.temperature).hex(),
        "chunk and memory": f"{problem.chunk}, {problem.max_memory}",
    }


def _hash(tree: Any) -> str:
    out = hashlib.sha256()
    for leaf in tree_flatten(tree)[0]:
        if isinstance(leaf, Tensor):
            leaf = leaf.detach().cpu()
            out.update(f"{leaf.dtype}{tuple(leaf.shape)}".encode())
            out.update(leaf.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        else:
            out.update(repr(leaf).encode())
    return out.hexdigest()
