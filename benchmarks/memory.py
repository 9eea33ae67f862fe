"""How much memory `evaluate_barrier` takes on data of MNIST's size, seen from outside: what the process grows by.

    python benchmarks/memory.py                           # 60,000 data in batches of 5,000, 3 taus x 8 draws
    python benchmarks/memory.py --batch 0                 # all data at once
    python benchmarks/memory.py --max-memory 64           # MiB

The network is that of `benchmarks/barrier.py --preset mnist`, with random weights and data: memory does not ask what
they are. Peaks are resident memory (ru_maxrss) above that of the same evaluation on 8 data.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time

import torch
from barrier import CLASSES, PRESETS, make_model, make_path, mlp, mlp_shapes

from pyro_align.barrier import evaluate_barrier

MIB = 2**20


def resident():
    """The most memory that the process has had so far, bytes; Linux counts it in KiB."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=int, default=60_000)
    parser.add_argument("--batch", type=int, default=5_000, help="0 for all data at once")
    parser.add_argument("--taus", type=int, default=3)
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--max-memory", type=int, default=256, help="MiB")
    parser.add_argument("--points", action="store_true", help="then write the log likelihood of every tau to Zarr")
    options = parser.parse_args()
    torch.manual_seed(0)
    preset = PRESETS["mnist"]
    x, y = torch.randn(options.data, preset["inputs"]), torch.randint(0, CLASSES, (options.data,))
    size = options.batch or options.data
    batches = [(x[lo : lo + size], y[lo : lo + size]) for lo in range(0, options.data, size)]
    model = make_model(mlp, mlp_shapes(preset["inputs"], preset["hidden"]))
    path = make_path(model, x, y)
    how = {"num_samples": options.draws, "max_memory": options.max_memory * MIB}
    evaluate_barrier(model, path, x[:8], y[:8], taus=3, **how)
    before, start = resident(), time.process_time()
    barrier = evaluate_barrier(model, path, evaluation={"train": batches}, taus=options.taus, **how)
    print(f"{options}: {barrier.num_data['train']:,} data, {time.process_time() - start:.0f} s of CPU time")
    print(f"grown by {(resident() - before) / MIB:.0f} MiB, max_memory {options.max_memory} MiB")
    if options.points:
        with tempfile.TemporaryDirectory() as folder:
            barrier.write_points(folder)
        print(f"grown by {(resident() - before) / MIB:.0f} MiB, with the log likelihood of every datum written to Zarr")


if __name__ == "__main__":
    main()
