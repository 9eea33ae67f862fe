"""What every study does: read its options, skip the cells its table holds, append rows as they come."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch

from studies.data import ENVIRONMENT

Row = dict[str, object]


def parser(description: str, *, seeds: Sequence[int]) -> argparse.ArgumentParser:
    """The options that all studies share; a study adds its own.

    Args:
        description: What the study measures.
        seeds: Default seeds of the fits.
    """
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    made.add_argument("--data-dir", default=os.environ.get(ENVIRONMENT), help=f"data folder; or {ENVIRONMENT}")
    made.add_argument("--seeds", type=int, nargs="+", default=list(seeds), help="seeds of the fits, at least two")
    made.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    made.add_argument("--threads", type=int, default=1, help="CPU threads")
    made.add_argument("--quick", action="store_true", help="the smallest run that exercises everything; no evidence")
    made.add_argument("--out", default="studies-out", help="folder of table, figures and fits")
    made.add_argument("--fits", default=None, help="folder of the fits, shared between studies; default OUT/fits")
    return made


def read(made: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked."""
    options = made.parse_args(argv)
    if len(set(options.seeds)) < 2:
        made.error(f"--seeds: expected at least two different seeds, got {options.seeds}")
    options.out = Path(options.out)
    options.out.mkdir(parents=True, exist_ok=True)
    options.fits = Path(options.fits) if options.fits else options.out / "fits"
    torch.set_num_threads(options.threads)
    return options


def pairs(seeds: Sequence[int]) -> list[tuple[int, int]]:
    """Neighbors on a ring: as many pairs as seeds, each seed in two of them; two seeds make one pair."""
    ring = list(zip(seeds, [*seeds[1:], seeds[0]], strict=True))
    return ring[:1] if len(seeds) == 2 else ring


class Table:
    """A tidy CSV file to which cells are appended; a cell is the rows that share the key columns.

    Args:
        path: The file.
        key: Names of the columns that tell cells apart.
    """

    def __init__(self, path: Path, key: Sequence[str]):
        self.path = Path(path)
        self.key = list(key)

    def frame(self) -> pd.DataFrame:
        """All rows so far."""
        return pd.read_csv(self.path) if self.path.exists() else pd.DataFrame(columns=self.key)

    def holds(self, cell: Mapping[str, object]) -> bool:
        """Whether the cell's rows are there."""
        frame = self.frame()
        same = pd.Series(True, index=frame.index)
        for name in self.key:
            value = cell[name]
            if isinstance(value, float):  # 1.0 comes back from the file as the integer 1
                same &= pd.to_numeric(frame[name], errors="coerce") == value
            else:
                same &= frame[name].astype(str) == str(value)
        return bool(same.any())

    def append(self, cell: Mapping[str, object], rows: Iterable[Row]) -> None:
        """Adds a cell. All its rows are written at once, so that a run cut short leaves no half cell."""
        new = pd.DataFrame([{**cell, **row} for row in rows])
        if self.path.exists():
            new = pd.concat([self.frame(), new], ignore_index=True)
        part = self.path.with_suffix(".part")
        new.to_csv(part, index=False, float_format="%.6g")
        part.replace(self.path)


def run(table: Table, cells: Iterable[Mapping[str, object]], compute: Callable[..., Iterable[Row]]) -> pd.DataFrame:
    """Computes the cells that the table lacks; ``compute(**cell)`` gives a cell's rows."""
    for cell in cells:
        named = " ".join(f"{k}={v}" for k, v in cell.items())
        if table.holds(cell):
            print(f"have {named}", file=sys.stderr, flush=True)
            continue
        started = time.monotonic()
        table.append(cell, compute(**cell))
        print(f"done {named} in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return table.frame()


def markdown(frame: pd.DataFrame) -> str:
    """A Markdown table of a frame's columns, text as it is."""
    head = [str(c) for c in frame.columns]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(str(v) for v in row) + " |" for row in frame.itertuples(index=False)]
    return "\n".join(lines) + "\n"


def write_table(frame: pd.DataFrame, path: Path) -> None:
    """Writes a page's table and prints it."""
    text = markdown(frame)
    Path(path).write_text(text, encoding="utf-8")
    print(text)
