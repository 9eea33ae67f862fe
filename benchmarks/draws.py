"""Time to relabel posterior draws, by number of draws.

python benchmarks/draws.py            # a table: seconds, and the share of units brought back to where they belong

Draws are a point plus independent noise, relabeled at random one by one: the time does not depend on where draws come
from. "share right" compares with the relabelings planted, relative to the pivot's.
"""

from __future__ import annotations

import argparse
import time

import torch

from pyro_align import Symmetry, align_draws
from pyro_align.axes import Odd
from pyro_align.draws.stack import per_unit


def mlp(width: int, signs: bool) -> Symmetry:
    """Two hidden layers, 8 inputs, one output."""
    h1, h2 = (Odd("h1"), Odd("h2")) if signs else ("h1", "h2")
    axes = {"w1": (h1, None), "b1": (h1,), "w2": (h2, h1), "b2": (h2,), "w3": (None, h2)}
    shapes = {"w1": (width, 8), "b1": (width,), "w2": (width, width), "b2": (width,), "w3": (1, width)}
    return Symmetry.from_axes(axes, shapes=shapes)


def mixture(components: int) -> Symmetry:
    """A Gaussian mixture in one dimension."""
    axes = {"weights": ("k",), "loc": ("k",), "scale": ("k",)}
    return Symmetry.from_axes(axes, shapes=dict.fromkeys(axes, (components,)))


def planted(symmetry: Symmetry, chains: int, draws: int, noise: float):
    g = torch.Generator().manual_seed(0)
    stack = per_unit(symmetry, chains * draws)
    move = stack.random(g)
    point = {k: torch.randn(shape, generator=g) for k, shape in symmetry.shapes.items()}
    near = {k: v + noise * torch.randn(chains * draws, *v.shape, generator=g) for k, v in point.items()}
    moved = {k: move.apply_site(k, v).reshape(chains, draws, *point[k].shape) for k, v in near.items()}
    return moved, move


CASES = {
    "MLP 8-64-64-1": (mlp(64, signs=False), 0.5),
    "MLP 8-64-64-1 with signs": (mlp(64, signs=True), 0.5),
    "mixture of 10": (mixture(10), 0.1),
}


def measure(name: str, draws: int, **options) -> tuple[float, float, float]:
    """Seconds to relabel 4 chains, by the clock and of CPU, and the share of units right."""
    symmetry, noise = CASES[name]
    given, move = planted(symmetry, 4, draws, noise)
    start, used = time.perf_counter(), time.process_time()
    aligned = align_draws(given, symmetry, reference=(0, 0), **options)
    _ = aligned.draws
    seconds, used = time.perf_counter() - start, time.process_time() - used
    right = []
    for atom, index in aligned.permutations.items():
        landed = move.indices[atom].gather(-1, index.flatten(0, 1).long())
        right.append((landed == landed[0]).double().mean())
    return seconds, used, float(torch.stack(right).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, nargs="+", default=[250, 1000], help="draws per chain, of 4 chains")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES), metavar="CASE")
    parser.add_argument("--methods", nargs="+", default=["pivot", "barycenter"])
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{'case':<28}{'draws':>8}{'method':>12}{'seconds':>10}{'of CPU':>10}{'share right':>13}")
    for name in options.cases:
        for draws in options.draws:
            for method in options.methods:
                seconds, used, right = measure(name, draws, method=method)
                print(f"{name:<28}{4 * draws:>8}{method:>12}{seconds:>10.2f}{used:>10.2f}{right:>13.4f}", flush=True)


if __name__ == "__main__":
    main()
