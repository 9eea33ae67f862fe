"""How near to the optimum searches end: small problems, medium ones, draws.

    python benchmarks/optimum.py                 # all three; some ten CPU minutes
    python benchmarks/optimum.py --only medium --seeds 0 1 2

*Small* problems have exact optima, by trying every relabeling of all layers but one: the share in which a search ends
there. *Medium* networks of three layers are held against the best of a long search: how many per cent below it a search
ends. *Draws* have planted labels: the share that ends farther from the reference than planted.
"""

from __future__ import annotations

import argparse
import itertools
import time

import problems
import torch

from pyro_align import Symmetry, align_draws
from pyro_align.axes import Odd
from pyro_align.matching import Coordinate, match

KINDS = ("independent", "noisy", "crowded")
SMALL = ((4, 4), (5, 5), (3, 4, 5), (4, 4, 4, 4))
MEDIUM = (24, 48, 64)
LONG = 40  # restarts of the long search


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=("small", "medium", "draws"), default=["small", "medium", "draws"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="of medium networks")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for part in options.only:
        if part == "medium":
            medium(options.seeds, options.kinds)
        else:
            {"small": small, "draws": draws}[part](options.seeds)


def pair(network: problems.Network, kind: str, seed: int):
    """Fixed and moving features of a kind; noisy ones are a relabeled copy with noise of 1.5 times its size."""
    if kind == "crowded":
        return problems.crowded(network, seed)
    if kind == "noisy":
        return problems.planted(network, seed, noise=1.5, gain=1.0)[:2]
    return problems.independent(network, seed, gain=1.0)


# -- small -------------------------------------------------------------------------------------------------------------


def small(seeds, count: int = 5) -> None:
    """Share of the optimum, over independent problems and noisy ones; beside it that of the searches without proofs."""
    print("| hidden units | kind | default | without proofs | without proofs, `restarts=8` |\n|---|---|---|---|---|")
    searches = ({}, {"matcher": Coordinate(prove=False)}, {"matcher": Coordinate(prove=False), "restarts": 8})
    for sizes, kind in itertools.product(SMALL, ("independent", "noisy")):
        hits = [0] * len(searches)
        for seed in range(count * len(seeds)):
            network = chain(sizes)
            fixed, moving = pair(network, kind, seed)
            best = enumerated(sizes, fixed, moving)
            for k, how in enumerate(searches):
                hits[k] += match(network.symmetry(), fixed, moving, **how).objective > best - 1e-5 * abs(best)
        shares = " | ".join(f"{h / (count * len(seeds)):.2f}" for h in hits)
        print(f"| {', '.join(map(str, sizes))} | {kind} | {shares} |", flush=True)


def chain(sizes, inputs: int = 3, classes: int = 2) -> problems.Network:
    """A perceptron with these hidden layers."""
    b = problems._Builder()
    names, widths = [None, *(f"h{k}" for k in range(len(sizes))), None], [inputs, *sizes, classes]
    for k in range(len(sizes) + 1):
        b.linear(f"layers.{k}", names[k + 1], names[k], widths[k + 1], widths[k])
    return b.done()


def enumerated(sizes, fixed, moving) -> float:
    """The best objective over all relabelings of a perceptron, layer by layer: nothing of the library is used."""
    value = torch.zeros(1)
    rows = torch.arange(3).unsqueeze(0)  # the inputs' only order
    for k, n in enumerate((*sizes, 2)):
        orders = torch.tensor(list(itertools.permutations(range(n)))) if k < len(sizes) else torch.arange(n)[None]
        (weight,), (other,) = fixed[f"layers.{k}.weight"], moving[f"layers.{k}.weight"]
        (bias,), (shift,) = fixed[f"layers.{k}.bias"], moving[f"layers.{k}.bias"]
        turned = other[:, rows].permute(1, 0, 2)  # (before, old unit, input)
        gain = torch.einsum("ui,pvi->puv", weight, turned) + torch.outer(bias, shift)
        both = gain[:, torch.arange(n), orders].sum(-1)  # (before, here)
        value, rows = (value.unsqueeze(1) + both).amax(0), orders
    return float(value.max())


# -- medium ------------------------------------------------------------------------------------------------------------


def medium(seeds, kinds) -> None:
    """Per cent below the best known: mean and worst over seeds."""
    print("| network | kind | default | CPU s | `restarts=8` | CPU s |\n|---|---|---|---|---|---|")
    for width, kind in itertools.product(MEDIUM, kinds):
        network = problems.NETWORKS[f"mlp-{width}"]()
        symmetry, below, spent = network.symmetry(), ([], []), ([], [])
        for seed in seeds:
            fixed, moving = pair(network, kind, seed)
            match(symmetry, fixed, moving)
            found = []
            for k, restarts in enumerate((0, 8)):
                start = time.process_time()
                found.append(match(symmetry, fixed, moving, restarts=restarts).objective)
                spent[k].append(time.process_time() - start)
            best = max(*found, match(symmetry, fixed, moving, restarts=LONG, seed=1).objective)
            for k in (0, 1):
                below[k].append(100 * (1 - found[k] / best))
        cells = " | ".join(
            f"{sum(b) / len(b):.2f} ({max(b):.2f}) | {sum(s) / len(s):.2f}" for b, s in zip(below, spent, strict=True)
        )
        print(f"| {width} x 3 | {kind} | {cells} |", flush=True)


# -- draws -------------------------------------------------------------------------------------------------------------


def draws(seeds, count: int = 200, hidden: int = 8, noise: float = 0.5) -> None:
    """Draws of a tanh network with two layers, each relabeled and flipped at random, against the labels planted."""
    print("| method | restarts | planted labels | farther than planted | improved |\n|---|---|---|---|---|")
    shapes = {"w1": (hidden, 2), "b1": (hidden,), "w2": (hidden, hidden), "b2": (hidden,), "w3": (1, hidden)}
    a, b = Odd("a"), Odd("b")
    axes = {"w1": (a, None), "b1": (a,), "w2": (b, a), "b2": (b,), "w3": (None, b)}
    symmetry = Symmetry.from_axes(axes, shapes=shapes)
    for method, restarts in itertools.product(("pivot", "barycenter"), (0, 16)):
        same = farther = improved = 0.0
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            base = {k: torch.randn(s, generator=generator, dtype=torch.float64) for k, s in shapes.items()}
            true = {
                k: v + noise * torch.randn(count, *v.shape, generator=generator, dtype=torch.float64)
                for k, v in base.items()
            }
            elements = [symmetry.random(1000 * seed + k) for k in range(count)]
            shuffled = {
                k: torch.stack([p.apply_site(k, x) for p, x in zip(elements, v, strict=True)])[None]
                for k, v in true.items()
            }
            found = align_draws(shuffled, symmetry, method=method, restarts=restarts, reference=base, seed=seed)
            ours = {k: torch.as_tensor(v).reshape(count, *shapes[k]) for k, v in found.draws.items()}
            scores = [sum((v[k] * base[k]).flatten(1).sum(1) for k in base) for v in (ours, true)]
            farther += float((scores[0] < scores[1] - 1e-9).double().mean()) / len(seeds)
            hits = torch.stack([torch.isclose(ours[k], true[k]).flatten(1).all(1) for k in base]).all(0)
            same += float(hits.double().mean()) / len(seeds)
            improved += (found.improved or 0.0) / len(seeds)
        share = f"{same:.3f} | {farther:.3f} | {improved:.3f}"
        print(f"| `{method}` | {restarts} | {share} |", flush=True)


if __name__ == "__main__":
    main()
