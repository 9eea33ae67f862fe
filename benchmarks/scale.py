"""Memory and time of aligning two mean-field posteriors of a transformer, by the number of parameters.

    python benchmarks/scale.py                          # four sizes up to GPT-2 small: 124 M parameters a posterior
    python benchmarks/scale.py --shares 1.0 --modes disk --kinds independent

The posteriors are synthetic, with the shapes of GPT-2 small: token and position embeddings, twelve blocks, heads and
the dimensions within them as nested atoms, the output tied to the token embedding. Locations are those of problems.py;
scales are log-normal around a tenth of each site's root mean square. A size of share s has s times the blocks and s
times the vocabulary. *Planted*: the fixed posterior is the moving one relabeled, with 5 % noise on locations and
scales. *Independent*: two seeds.

Three modes, each in a process of its own:

- ``memory``: locations and scales lie in memory, ``match`` alone;
- ``disk``: ``match`` reads them site by site, whenever it needs them, from two safetensors files;
- ``align``: `align` on two posteriors in memory, the relabeled posterior, half the size of the inputs, included.

*Beyond* is the peak of the process's resident memory less what it held when the inputs were there and nothing had been
done; on disk the inputs are not resident, so it is the whole of the work.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import problems
import torch
from pyro.distributions import constraints
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pyro_align.alignment.pair import align
from pyro_align.guides import MeanFieldNormal
from pyro_align.guides.pyro_state.modules import RawParameter
from pyro_align.guides.sites import SiteSpec
from pyro_align.matching import match
from pyro_align.symmetry.element import Permutation

BLOCKS, VOCABULARY, NOISE = 12, 50257, 0.05
PARTS = ("loc", "scale")


def main() -> None:
    options = read_options()
    torch.set_num_threads(1)
    if options.child:
        print(json.dumps(work(options.child, Path(options.folder), options.shares[0])))
        return
    rows = []
    for share in options.shares:
        for kind in options.kinds:
            with tempfile.TemporaryDirectory(dir=options.folder or None) as folder:
                write(Path(folder), share, kind)
                for mode in options.modes:
                    row = {"kind": kind, "mode": mode, **run_child(mode, folder, share)}
                    rows.append(row)
                    print(describe(row), flush=True)
    if options.out:
        Path(options.out).write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1) + "\n")


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shares", nargs="+", type=float, default=[0.25, 0.5, 0.75, 1.0])
    parser.add_argument("--kinds", nargs="+", choices=["planted", "independent"], default=["planted", "independent"])
    parser.add_argument("--modes", nargs="+", choices=["memory", "disk", "align"], default=["memory", "disk", "align"])
    parser.add_argument("--folder", default="", help="where to write the inputs: 2 GB at full size")
    parser.add_argument("--out", default="", help="JSON file to write")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


def network(share: float) -> problems.Network:
    return problems.gpt2(round(BLOCKS * share), round(VOCABULARY * share))


# -- the inputs --------------------------------------------------------------------------------------------------------


def write(folder: Path, share: float, kind: str) -> None:
    """Writes both posteriors, ``fixed.safetensors`` and ``moving.safetensors``: ``<site>.loc``, ``<site>.scale``."""
    shape = network(share)
    if kind == "independent":
        fixed, moving = (problems.mean_field(shape, seed) for seed in (0, 1))
    else:
        fixed, moving, truth = problems.planted_mean_field(shape, NOISE)
        torch.save(dict(truth.indices), folder / "truth.pt")
    for name, side in (("fixed", fixed), ("moving", moving)):
        parts = {f"{site}.{part}": v for site, pair in side.items() for part, v in zip(PARTS, pair, strict=True)}
        save_file(parts, folder / f"{name}.safetensors")


class OnDisk(Mapping):
    """Site -> (location, scale), read from a safetensors file again at each look."""

    def __init__(self, path: Path, sites):
        self.path, self.sites = path, tuple(sites)

    def __getitem__(self, site: str) -> tuple[torch.Tensor, torch.Tensor]:
        with safe_open(self.path, framework="pt") as file:
            return file.get_tensor(f"{site}.loc"), file.get_tensor(f"{site}.scale")

    def __iter__(self) -> Iterator[str]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)


def in_memory(path: Path) -> dict[str, torch.Tensor]:
    """The file's tensors, read: a file that is only mapped would not count as resident before it is looked at."""
    return {name: value.clone() for name, value in load_file(path).items()}


# -- the work ----------------------------------------------------------------------------------------------------------


def work(mode: str, folder: Path, share: float) -> dict:
    """One alignment, in a process that does nothing else."""
    shape = network(share)
    symmetry = shape.symmetry()
    paths = [folder / "fixed.safetensors", folder / "moving.safetensors"]
    if mode == "disk":
        sides = [OnDisk(path, symmetry.sites) for path in paths]
    else:
        values = [in_memory(path) for path in paths]
        sides = [{s: (v[f"{s}.loc"], v[f"{s}.scale"]) for s in symmetry.sites} for v in values]
    if mode == "align":
        sides = [mean_field(side) for side in sides]
    before, cpu, wall = resident(), time.process_time(), time.perf_counter()
    found = align(*sides, symmetry).match if mode == "align" else match(symmetry, *sides)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {
        "parameters": shape.size,
        "inputs_gb": 4 * 4 * shape.size / 1e9,
        "beyond_gb": (peak() - before) / 1e9,
        "cpu_s": cpu,
        "wall_s": wall,
        "parts": dict(found.seconds),
        "sweeps": found.sweeps,
        "status": found.status,
        "objective": found.objective,
        "recovered": recovered(found.permutation, folder / "truth.pt"),
    }


def mean_field(features: Mapping) -> MeanFieldNormal:
    """A posterior as it is read from an ``AutoNormal``, without a model of 124 M parameters to trace."""
    sites, locs, scales = {}, {}, {}
    for name, (loc, scale) in features.items():
        sites[name] = SiteSpec(name, tuple(loc.shape), constraints.real, 0, loc.dtype, loc.device)
        locs[name] = RawParameter(loc)
        scales[name] = RawParameter(scale.expm1_().log_(), constraints.softplus_positive)
    return MeanFieldNormal(sites, locs, scales, write=None)


def recovered(found: Permutation, path: Path) -> float | None:
    """Fraction of the planted units that were found."""
    if not path.exists():
        return None
    return problems.recovered(found.indices, found.symmetry.permutation(torch.load(path)))


def resident() -> int:
    """Bytes of the process that are in memory."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return peak()


def peak() -> int:
    """Largest number of bytes that were in memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run_child(mode: str, folder: str, share: float) -> dict:
    command = [sys.executable, __file__, "--child", mode, "--folder", folder, "--shares", str(share)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{mode} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def describe(row: dict) -> str:
    text = (
        f"{row['parameters'] / 1e6:6.1f} M x 4, {row['kind']:11s} {row['mode']:6s}: inputs {row['inputs_gb']:.2f} GB, "
        f"beyond {row['beyond_gb']:.2f} GB, {row['cpu_s']:6.1f} CPU s, {row['wall_s']:6.1f} s wall, "
        f"{row['sweeps']} sweeps, {row['status']}"
    )
    return text if row["recovered"] is None else text + f", recovered {row['recovered']:.2%}"


if __name__ == "__main__":
    main()
