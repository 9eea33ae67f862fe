"""Matching on a device beside matching on the host: wall seconds, what travels, memory, and whether they agree.

    python benchmarks/devices.py --device cuda --out devices.json
    python benchmarks/devices.py --device cuda --networks mlp-2048 vgg16 gpt2-small --threads 8

The problems are those of problems.py, and ``gpt2-small``: two mean-field posteriors (location and scale) of a GPT-2
small of 124 M parameters, those of scale.py. Seconds are medians of up to five runs, after one that is not counted
unless it took five seconds; the inputs lie where the matching is done. *Traveled* counts the tensors that the matching
copied between the device and the host, and the numbers that the host waited for; *largest* is the largest of them
beside the largest square matrix of one atom. *Beyond* is the peak of the device's memory less what the inputs take.
Products on a device are rounded in another order, so the two may part where partners are as good as each other.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
from pathlib import Path

import problems
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyro_align.matching import match

SMALL = "gpt2-small"


def main() -> None:
    options = read_options()
    torch.set_num_threads(options.threads)
    rows = []
    for name in options.networks:
        for kind in options.kinds:
            rows.append(compare(name, kind, options))
            print(describe(rows[-1]), flush=True)
    if options.out:
        named = torch.cuda.get_device_name() if options.device.startswith("cuda") else platform.machine()
        setup = {"torch": torch.__version__, "device": named, "threads": options.threads, "noise": options.noise}
        Path(options.out).write_text(json.dumps({"setup": setup, "rows": rows}, indent=1) + "\n")


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*problems.NETWORKS, SMALL]
    parser.add_argument("--networks", nargs="+", choices=names, default=names)
    parser.add_argument("--kinds", nargs="+", choices=["independent", "planted"], default=["independent", "planted"])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, mps, ...")
    parser.add_argument("--threads", type=int, default=1, help="threads of the host")
    parser.add_argument("--noise", type=float, default=0.05, help="planted: noise over each site's root mean square")
    parser.add_argument("--repeats", type=int, default=5, help="at most so many runs, which take five seconds together")
    parser.add_argument("--out", default="", help="JSON file to write")
    return parser.parse_args()


def compare(name: str, kind: str, options) -> dict:
    """One problem on the host and on the device."""
    symmetry, fixed, moving, truth = problem(name, kind, options.noise)
    here, host_s = timed(lambda: match(symmetry, fixed, moving), options.repeats)
    fixed, moving = ({k: tuple(t.to(options.device) for t in v) for k, v in side.items()} for side in (fixed, moving))
    there, device_s = timed(lambda: match(symmetry, fixed, moving), options.repeats)
    found = there.permutation.indices
    row = {
        "network": name,
        "kind": kind,
        "numbers": sum(t.numel() for v in fixed.values() for t in v),
        "host_s": host_s,
        "device_s": device_s,
        "parts": dict(there.seconds),
        "host_objective": here.objective,
        "device_objective": there.objective,
        "same": problems.recovered(found, here.permutation),
        "recovered": None if truth is None else problems.recovered(found, truth),
        "beyond_gb": beyond(options.device, lambda: match(symmetry, fixed, moving)),
    }
    with Travel() as travel:
        match(symmetry, fixed, moving)
    sizes = [sum(t.numel() for t in v) for v in fixed.values()]
    row |= {
        "traveled_gb": travel.bytes / 1e9,
        "waits": travel.count,
        "largest": travel.largest,
        "largest_square": max(atom.size**2 for atom in symmetry.atoms.values()),
        "largest_site": max(sizes),
    }
    return row


def problem(name: str, kind: str, noise: float):
    """Symmetry, fixed and moving features on the host, and the planted relabeling or None."""
    if name == SMALL:
        network = problems.gpt2(vocabulary=50257)
        if kind == "independent":
            return network.symmetry(), problems.mean_field(network, 0), problems.mean_field(network, 1), None
        return network.symmetry(), *problems.planted_mean_field(network, noise)
    network = problems.NETWORKS[name]()
    if kind == "independent":
        return network.symmetry(), *problems.independent(network, 0, 1.0), None
    return network.symmetry(), *problems.planted(network, 0, noise, 1.0)


def timed(call, repeats: int):
    """What a call gives, and its wall seconds. A matching ends on the host, so the device has nothing left to do."""
    spent: list[float] = []
    start = time.perf_counter()
    found = call()
    if (first := time.perf_counter() - start) > 5:  # what a first call loads weighs little in it
        return found, first
    while len(spent) < repeats and sum(spent) < 5:
        start = time.perf_counter()
        found = call()
        spent.append(time.perf_counter() - start)
    return found, statistics.median(spent)


def beyond(device: str, call) -> float | None:
    """Gigabytes of the device's memory that a call takes at its peak, beyond what was there before."""
    if not device.startswith("cuda"):
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    return (torch.cuda.max_memory_allocated() - before) / 1e9


class Travel(TorchDispatchMode):
    """Counts what goes from a device to the host or back."""

    def __init__(self):
        super().__init__()
        self.bytes, self.count, self.largest = 0, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        devices = {t.device.type for t in tensors if t.ndim}  # an operation takes numbers of the host as it finds them
        made = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        moved = [t for t in made if devices and devices != {t.device.type}]
        if not made and devices - {"cpu"}:
            self.count += 1  # the host waits for a number
        for t in moved:
            self.count += 1
            self.bytes += t.numel() * t.element_size()
            self.largest = max(self.largest, t.numel())
        return out


def describe(row: dict) -> str:
    gap = row["device_objective"] / row["host_objective"] - 1
    text = (
        f"{row['network']}, {row['kind']}, {row['numbers'] / 1e6:.2f} M numbers a side: host {row['host_s']:.4g} s, "
        f"device {row['device_s']:.4g} s ({row['host_s'] / row['device_s']:.2f} x); objective apart by {gap:.1e}, "
        f"{row['same']:.2%} matched alike"
    )
    if row["recovered"] is not None:
        text += f", recovered {row['recovered']:.2%}"
    text += f"\n  traveled {row['traveled_gb'] * 1e3:.4g} MB in {row['waits']} waits, largest {row['largest']:,} of "
    text += f"{row['largest_square']:,} in a square matrix and {row['largest_site']:,} in a site"
    if row["beyond_gb"] is not None:
        text += f"; {row['beyond_gb']:.3g} GB beyond the inputs"
    total = sum(row["parts"].values()) or math.inf
    return text + "\n  " + ", ".join(f"{k} {v / total:.0%}" for k, v in row["parts"].items())


if __name__ == "__main__":
    main()
