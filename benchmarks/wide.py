"""One wide atom: CPU seconds to match two layers of many units.

    python benchmarks/wide.py --units 8192

*Independent*: normal weights of two seeds. *Trained-like*: units drawn around 64 common directions with norms that
spread over orders of magnitude, so that many units want the same partner, which makes the assignment hard. *Planted*: a
relabeled copy with 5 % noise.
"""

from __future__ import annotations

import argparse
import time

import torch

from pyro_align import Symmetry
from pyro_align.matching import match

INPUTS, CLASSES, DIRECTIONS = 784, 10, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=8192)
    n = parser.parse_args().units
    torch.set_num_threads(1)
    symmetry = Symmetry.from_axes(
        {"w1": ("h", None), "w2": (None, "h")}, shapes={"w1": (n, INPUTS), "w2": (CLASSES, n)}
    )
    for draw in (independent, trained_like):
        report(draw.__name__, symmetry, draw(n, 1), draw(n, 2))
    moving, truth = independent(n, 1), symmetry.random(0)
    generator = torch.Generator().manual_seed(3)
    fixed = {}
    for site, (value,) in moving.items():
        noise = 0.05 * value.std() * torch.randn(value.shape, generator=generator)
        fixed[site] = (truth.apply_site(site, value) + noise,)
    found = report("planted", symmetry, fixed, moving)
    print(f"  recovered {float((found.permutation.indices['h'] == truth.indices['h']).float().mean()):.2%}")


def report(kind: str, symmetry: Symmetry, fixed, moving):
    start = time.process_time()
    found = match(symmetry, fixed, moving)
    print(f"{kind}: {time.process_time() - start:.1f} CPU s; {found}", flush=True)
    return found


def independent(n: int, seed: int):
    g = torch.Generator().manual_seed(seed)
    w1, w2 = torch.randn(n, INPUTS, generator=g) / INPUTS**0.5, torch.randn(CLASSES, n, generator=g) / n**0.5
    return {"w1": (w1,), "w2": (w2,)}


def trained_like(n: int, seed: int):
    common, g = torch.Generator().manual_seed(99), torch.Generator().manual_seed(seed)
    into = torch.randn(DIRECTIONS, INPUTS, generator=common) / 8
    out = torch.randn(CLASSES, DIRECTIONS, generator=common) / 8
    units = torch.randn(n, DIRECTIONS, generator=g) * torch.randn(n, 1, generator=g).exp()
    w1 = units @ into + 0.1 * torch.randn(n, INPUTS, generator=g)
    return {"w1": (w1,), "w2": (out @ units.T + 0.01 * torch.randn(CLASSES, n, generator=g),)}


if __name__ == "__main__":
    main()
