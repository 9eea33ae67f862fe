"""Runs the weight matching of a published repository on one problem. It may need a Python of its own.

    python checkout_peer.py NAME CHECKOUT PROBLEM.pt      # the problem is written by matching.py

``NAME`` is a key of `PEERS`, ``CHECKOUT`` a clone of that repository. Writes to the file what was found: indices by
permutation, and CPU seconds, the median of up to five runs that take two seconds together. One goes before them, as JAX
compiles in it, unless it takes longer than half a minute. What a repository imports beyond its matching (training,
integer programs) is replaced by empty modules.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import time
from pathlib import Path
from unittest.mock import MagicMock

import torch


def nnperm(checkout: Path, axes: dict, fixed: dict, moving: dict):
    """Kwok's nnperm (github.com/devinkwok/nnperm)."""
    sys.path.insert(0, str(checkout))
    for name in ("open_lth", "open_lth.api"):
        sys.modules[name] = MagicMock()
    from nnperm.align.weight_align import WeightAlignment
    from nnperm.perm import PermutationSpec

    sides = [{k: v.numpy() for k, v in side.items()} for side in (fixed, moving)]

    def run():
        return WeightAlignment(PermutationSpec(axes), seed=0).fit(*sides)[0]

    return run


def pleas(checkout: Path, axes: dict, fixed: dict, moving: dict):
    """PLeaS (Nasery et al. 2024; github.com/SewoongLab/PLeaS-Merging)."""
    sys.path.insert(0, str(checkout))
    for name in ("torchvision", "torchvision.ops", "torchmetrics", "gurobipy"):
        sys.modules[name] = MagicMock()
    from pleas.core.utils import Axis, PermutationGroup
    from pleas.methods.weight_matching import weight_matching

    sizes, places = {}, {}
    for tensor, names in axes.items():
        for axis, name in enumerate(names):
            if name:
                sizes[name] = fixed[tensor].shape[axis]
                places.setdefault(name, set()).add(Axis(tensor, axis))
    keys = {name: Axis(name, 0) for name in sizes}
    spec = {keys[n]: PermutationGroup(sizes[n], places[n], set()) for n in sizes}

    def run():
        # its matching relabels copies in place, one level deep
        found = weight_matching(spec, fixed, {k: v.clone() for k, v in moving.items()}, verbose=False)
        return {name: found[key] for name, key in keys.items()}

    return run


def git_re_basin(checkout: Path, axes: dict, fixed: dict, moving: dict):
    """The reference of Ainsworth et al. 2023 (github.com/samuela/git-re-basin), in JAX."""
    sys.path.insert(0, str(checkout / "src"))
    import jax

    for name in ("flax", "flax.core"):
        sys.modules[name] = MagicMock()
    jax.tree_map = jax.tree_util.tree_map  # moved since
    from weight_matching import permutation_spec_from_axes_to_perm, weight_matching

    spec = permutation_spec_from_axes_to_perm(axes)
    sides = [{k: jax.numpy.asarray(v.numpy()) for k, v in side.items()} for side in (fixed, moving)]

    def run():
        return weight_matching(jax.random.PRNGKey(0), spec, *sides, silent=True)

    return run


PEERS = {"nnperm": nnperm, "pleas": pleas, "git-re-basin": git_re_basin}


def main() -> None:
    name, checkout, path = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    problem = torch.load(path, weights_only=True)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        run = PEERS[name](checkout, problem["axes"], problem["fixed"], problem["moving"])
        found, first = timed(run)
        spent = [first] if first > 30 else []
        while len(spent) < 5 and sum(spent) < 2:
            found, seconds = timed(run)
            spent.append(seconds)
    indices = {k: torch.as_tensor(list(map(int, v))) for k, v in found.items()}
    torch.save({"indices": indices, "cpu_s": statistics.median(spent)}, path)


def timed(run):
    start = time.process_time()
    return run(), time.process_time() - start


if __name__ == "__main__":
    main()
