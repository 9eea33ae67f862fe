"""The command line: ``python -m pyro_align align-draws run.nc --symmetry symmetry.json --out aligned.nc``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from pyro_align.draws.align import align_draws
from pyro_align.draws.elsewhere import read_symmetry
from pyro_align.errors import PyroAlignError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m pyro_align", description="Align posteriors modulo symmetries.")
    commands = parser.add_subparsers(required=True)
    draws = commands.add_parser("align-draws", help="relabel draws in a netCDF file, Zarr store or Stan CSV files")
    draws.add_argument("run", nargs="+", help="netCDF file or Zarr store, or Stan CSV files, one a chain")
    draws.add_argument("--symmetry", required=True, help='JSON: {"axes": {"mu": ["k"], "w": ["k", null]}}')
    draws.add_argument("--out", required=True, help="netCDF file (.nc) or Zarr store (.zarr) to write")
    draws.add_argument("--method", default="pivot", help="see align_draws; default: %(default)s")
    draws.add_argument("--by", help="site that decides, for ordering, procrustes and varimax")
    draws.add_argument("--label", action="append", default=[], metavar="VARIABLE=ATOM", help="values number units")
    draws.add_argument("--restarts", type=int, default=0)
    draws.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        _align_draws(options)
    except (PyroAlignError, ValueError, TypeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _align_draws(options: argparse.Namespace) -> None:
    if os.path.exists(options.out):
        raise FileExistsError(f"'{options.out}' exists; give another path")
    bad = [text for text in options.label if "=" not in text]
    if bad:
        raise ValueError(f"--label {bad[0]}: expected VARIABLE=ATOM")
    labels: dict[str, str | None] = dict(text.split("=", 1) for text in options.label)
    aligned = align_draws(
        options.run[0] if len(options.run) == 1 else options.run,
        read_symmetry(options.symmetry),
        method=options.method,
        by=options.by,
        labels=labels,
        restarts=options.restarts,
        seed=options.seed,
    )
    if options.out.endswith(".zarr"):
        aligned.to_zarr(options.out)
    else:
        aligned.to_arviz().to_netcdf(options.out, engine="h5netcdf")
    print(aligned)
    print(aligned.summary().round(3).to_string())


if __name__ == "__main__":
    sys.exit(main())
