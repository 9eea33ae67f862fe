"""The command line: draws relabeled, and the weights of two networks aligned and merged.

python -m pyro_align align-draws run.nc --symmetry symmetry.json --out aligned.nc
python -m pyro_align align-weights a.safetensors b.safetensors --module package:Class --input 1,784 --out c.safetensors
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence

import torch

from pyro_align.draws.align import align_draws
from pyro_align.draws.elsewhere import read_symmetry
from pyro_align.errors import PyroAlignError
from pyro_align.files import read_safetensors, write_safetensors


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
    draws.set_defaults(run_command=_align_draws)
    weights = commands.add_parser("align-weights", help="align a network with another, and merge them")
    weights.add_argument("weights", nargs=2, metavar=("A", "B"), help="state dicts: .safetensors, or .pt of torch.save")
    weights.add_argument("--module", required=True, help="package.module:Class, or a function that makes the network")
    weights.add_argument("--kwargs", default="{}", help="JSON: what the network is made with")
    weights.add_argument("--input", action="append", help="shape of an example input, 1,3,32,32; or 1,16:int of tokens")
    weights.add_argument("--symmetry", help="JSON, instead of --input: the symmetry by hand")
    weights.add_argument("--out", required=True, help=".safetensors file to write")
    weights.add_argument("--tau", type=float, default=0.5, help="0 is A, 1 is B aligned with A; default: %(default)s")
    weights.add_argument("--progress", action="store_true")
    weights.set_defaults(run_command=_align_weights)
    for command in (draws, weights):
        command.add_argument("--restarts", type=int, default=0)
        command.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        if os.path.exists(options.out):
            raise FileExistsError(f"'{options.out}' exists; give another path")
        options.run_command(options)
    except (PyroAlignError, ValueError, TypeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _align_draws(options: argparse.Namespace) -> None:
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


def _align_weights(options: argparse.Namespace) -> None:
    from pyro_align.alignment import align  # Pyro is loaded for networks, not for draws
    from pyro_align.discovery import find_symmetry

    if not 0 <= options.tau <= 1:
        raise ValueError(f"--tau: expected a number from 0 to 1, got {options.tau}")
    a, b = (_network(options, path) for path in options.weights)
    if options.symmetry:
        symmetry = read_symmetry(options.symmetry)
    elif options.input:
        symmetry = find_symmetry(a, *(_example(text) for text in options.input))
    else:
        raise ValueError("give --input, the shape of an example input such as 1,784, or --symmetry")
    how = {"restarts": options.restarts, "seed": options.seed, "progress": options.progress}
    alignment = align(a, b, symmetry, **how)
    merged = alignment.path(options.tau)
    write_safetensors(options.out, merged.state_dict())
    print(alignment)
    if any(isinstance(layer, torch.nn.modules.batchnorm._BatchNorm) for layer in merged.modules()):
        print("running statistics of batch normalization were averaged: measure them again, see reset_batch_norm")


def _network(options: argparse.Namespace, path: str) -> torch.nn.Module:
    """The network that ``--module`` makes, with the weights of a file."""
    place, _, name = options.module.partition(":")
    try:
        make = getattr(importlib.import_module(place), name)
        network = make(**json.loads(options.kwargs))
    except (ImportError, AttributeError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"--module {options.module} --kwargs {options.kwargs}: {error}") from error
    if not isinstance(network, torch.nn.Module):
        raise ValueError(f"--module {options.module}: expected a torch.nn.Module, got {type(network).__name__}")
    state = read_safetensors(path) if path.endswith(".safetensors") else torch.load(path, weights_only=True)
    try:
        network.load_state_dict(state)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"'{path}' does not fit {options.module}: {error}") from error
    return network.eval()


def _example(text: str) -> torch.Tensor:
    """``1,3,32,32`` random numbers, or zeros of whole numbers for ``1,16:int``."""
    shape, _, kind = text.partition(":")
    try:
        sizes = [int(n) for n in shape.split(",")]
    except ValueError:
        raise ValueError(f"--input {text}: expected sizes such as 1,3,32,32 or 1,16:int") from None
    return torch.zeros(sizes, dtype=torch.long) if kind == "int" else torch.randn(sizes, generator=torch.Generator())


if __name__ == "__main__":
    sys.exit(main())
