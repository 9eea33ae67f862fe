"""Counts all linear symmetries of every model at hand, and holds what discovery finds against the count.

The models are those of the tests (``tests/zoo``) and of ``benchmarks/wild``. Run it from the root:

python -m benchmarks.count [--lists NAME ...] [--only NAME ...] [--limit SECONDS] [--entries NUMBER] [--csv FILE]
"""

from __future__ import annotations

import argparse
import collections
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyro
import torch

from benchmarks.wild.__main__ import load
from pyro_align import find_symmetry
from pyro_align.errors import PyroAlignError

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))


LISTS = ("zoo", "programs", "networks")


def models(lists: Sequence[str]) -> Iterator[tuple[str, str, Callable[[], tuple[Any, tuple]], dict[str, Any]]]:
    """``(list, name, make, options of find_symmetry)``."""
    import zoo  # noqa: F401
    from problems import PROBLEMS

    for kind in lists:
        if kind == "zoo":
            yield from ((kind, p.name, p.build, dict(p.options)) for p in PROBLEMS.values())
        else:
            yield from ((kind, name, e.make, dict(e.options)) for name, e in load(kind).items())


class OutOfTime(BaseException):
    """Raised by a timer, and caught by nothing on its way."""


def stop(*_: Any) -> None:
    raise OutOfTime


def counted(make: Callable[[], tuple[Any, tuple]], options: dict[str, Any], limit: int, entries: int) -> dict[str, Any]:
    """The row of one model: its verdict, and the dimensions counted and found."""
    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, limit)
    try:
        torch.manual_seed(0)
        pyro.set_rng_seed(0)
        pyro.clear_param_store()
        model, args = make()
        if (size := entries_of(model, args)) > entries:
            return {"verdict": "not counted", "what": f"{size} entries, more than {entries}"}
        symmetry = find_symmetry(model, *args, **options, signs=True, rotations=True, scalings=True, count=True)
    except OutOfTime:
        return {"verdict": "not counted", "what": f"more than {limit} s"}
    except PyroAlignError as error:
        return {"verdict": "not counted", "what": str(error).splitlines()[0][:160]}
    except Exception as error:
        return {"verdict": "error", "what": f"{type(error).__name__}: {error}".splitlines()[0][:160]}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    found = symmetry.certificate.completeness
    row = {"counted": found.dimension, "found": found.found, "unknowns": found.generators}
    row["verdict"] = "differs" if found.missing else "equal" if not found.left_out else "equal where counted"
    return {**row, "what": "; ".join(map(str, found.missing))}


def entries_of(model: Any, args: tuple) -> int:
    """How many numbers all sites hold."""
    nodes = pyro.poutine.trace(model).get_trace(*args).nodes.values()
    sites = [n["value"] for n in nodes if n["type"] == "sample" and not n["is_observed"] and "value" in n]
    found = [v for v in sites if isinstance(v, torch.Tensor)]
    return sum(v.numel() for v in found or (model.parameters() if isinstance(model, torch.nn.Module) else ()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lists", nargs="+", choices=LISTS, default=LISTS)
    parser.add_argument("--only", nargs="+", default=None, help="names to run, or beginnings of names")
    parser.add_argument("--limit", type=int, default=60, help="CPU seconds that a model may take")
    parser.add_argument("--entries", type=int, default=5000, help="entries of all sites above which none is counted")
    parser.add_argument("--csv", type=Path, help="file for the table")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    rows = []
    for group, name, make, given in models(options.lists):
        if options.only and not name.startswith(tuple(options.only)):
            continue
        start = time.process_time()
        row = {"list": group, "model": name, **counted(make, given, options.limit, options.entries)}
        rows.append({**row, "seconds": round(time.process_time() - start, 1)})
        dimensions = f"{row.get('counted', ''):>5}{row.get('found', ''):>5}"
        print(f"{group:10s}{name:34s}{dimensions}  {row['verdict']:20s}{row['what']}", flush=True)
        if options.csv:
            pd.DataFrame(rows).to_csv(options.csv, index=False)
    for group in dict.fromkeys(r["list"] for r in rows):
        verdicts = collections.Counter(r["verdict"] for r in rows if r["list"] == group)
        print(f"{group}: " + ", ".join(f"{n} {verdict}" for verdict, n in verdicts.most_common()))


if __name__ == "__main__":
    main()
