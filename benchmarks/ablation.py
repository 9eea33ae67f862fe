"""What each speed trick of matching buys: each is switched off in turn (``python benchmarks/matching.py --ablate``).

A row holds CPU seconds without the trick over those with all, and how much the objective changes. All are run in turn,
the least of several runs counts. What buys less than a tenth on every row does not belong in the package.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import problems
import torch

from pyro_align.matching import (
    Coordinate,
    assignment,
    coordinate,
    evidence,
    match,
    moves,
    nested,
    parts,
    population,
    problem,
    searches,
    updates,
)
from pyro_align.matching import annealing as softly
from pyro_align.symmetry import blocks as cuts

_NEVER = 1 << 62


def _put(owner, **values):
    return lambda: _all(patch.object(owner, name, value) for name, value in values.items())


@contextmanager
def _all(patches) -> Iterator[None]:
    with ExitStack() as stack:
        for one in patches:
            stack.enter_context(one)
        yield


def _solve_all(gain: torch.Tensor) -> torch.Tensor:
    matrices = gain.reshape(-1, *gain.shape[-2:])
    wide = gain.shape[-1] >= assignment._WIDE  # smaller ones are never priced
    flat = [assignment._solve(m.cpu(), assignment.share_wanted(m) if wide else 1.0) for m in matrices]
    return torch.stack([torch.from_numpy(f) for f in flat]).reshape(gain.shape[:-1]).to(gain.device)


def _eager(symmetry, root, inside, gains, device, dtype):
    chosen: dict = {}
    nested._best(symmetry, root, {root: inside, **dict.fromkeys(inside, ())}, gains, 1, 1, chosen, device, dtype, None)
    return chosen


def _unkept(self, problem, parts, *, keep):
    _INIT(self, problem, parts, keep=False)


_INIT = evidence.Evidence.__init__

TRICKS: dict[str, Callable] = {
    "certified parts and alike anchors": _put(updates, _WIDE=_NEVER),
    "alike anchors": _put(updates.Update, _anchor_alike=lambda *_: None),
    "prices before assignments": _put(assignment, _EASY=-1.0),
    "no solver where the argmax is a permutation": lambda: _all(
        patch.object(room, "assign", _solve_all) for room in (updates, nested)
    ),
    "gains kept while neighbors stand still": _put(evidence.Evidence, __init__=_unkept),
    "products over moved units alone": _put(parts.Part, moved=lambda *_: None),
    "small parts as one product": _put(evidence, SMALL=-1),
    "views kept": _put(problem.Problem, views=lambda self, b: self._cut(b)),
    "sums in slabs": _put(cuts, _SLAB=_NEVER),
    "layouts by NumPy": _put(parts, laid_out=lambda value: value.contiguous()),
    "argmax by NumPy": _put(assignment, _argmax=lambda gain: gain.argmax(-1)),
    "objective from gains at hand": _put(searches, _values=lambda run, _, f=searches._values: f(run, ())),
    "second order of moves": _put(moves, is_plain=lambda *_: False),
    "swaps": _put(updates.Update, _swap=lambda *_: 0.0),
    "heads solved when asked for": _put(nested, _lazily=_eager),
    "sparse annealing": _put(softly, _SPARSE=-1.0),
    "annealing": _put(coordinate, anneal=lambda *_: True),
    "population": _put(population, fits=lambda _: False),
    "anchored pass": _put(Coordinate, __init__=lambda self, f=Coordinate.__init__: f(self, anchored=False)),
}
NETWORKS = ("mlp-48", "rnn-48", "mlp-512", "resnet20-x1", "resnet20-x4", "vgg16", "lstm-512", "gpt2-2")
KINDS: dict[str, Callable] = {
    "independent": problems.independent,
    "planted": lambda network: problems.planted(network)[:2],
    "crowded": problems.crowded,
}


def ablate(networks, kinds, tricks=()) -> None:
    """Prints one row for each problem and trick, then the most that each trick buys."""
    most: dict[str, float] = dict.fromkeys(tricks or TRICKS, 0.0)
    for name in networks:
        network = problems.NETWORKS[name]()
        for kind in kinds:
            if kind == "crowded" and not name.startswith("mlp"):
                continue
            fixed, moving = KINDS[kind](network)
            print(f"{name}, {kind}", flush=True)
            for trick in most:
                ratio, change = compare(network, fixed, moving, trick)
                most[trick] = max(most[trick], ratio - 1, -change * 10)
                print(f"  without {trick:44s} {ratio:5.2f} x the time, objective {change:+.2%}", flush=True)
    print("\nmost that each buys, share of the time (or ten times that of the objective):")
    for trick, gain in sorted(most.items(), key=lambda item: item[1]):
        print(f"  {trick:44s} {gain:.2f}")


def compare(network, fixed, moving, trick: str, seconds: float = 1.0) -> tuple[float, float]:
    """Time without a trick over that with it, and the change of the objective; the least of runs by turns counts."""
    spent: dict[str, list[float]] = {"": [], trick: []}
    value: dict[str, float] = {}
    while len(spent[trick]) < 3 or (len(spent[trick]) < 12 and sum(spent[trick]) < seconds):
        for switched in spent:
            with TRICKS[switched]() if switched else ExitStack():
                symmetry = network.symmetry()
                match(symmetry, fixed, moving, max_sweeps=1)  # which works out how sites are cut
                start = time.process_time()
                value[switched] = match(symmetry, fixed, moving).objective
                spent[switched].append(time.process_time() - start)
    return min(spent[trick]) / min(spent[""]), value[trick] / value[""] - 1
