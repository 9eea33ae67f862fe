"""Matching against its peers: CPU seconds, objectives, where the time goes.

    python benchmarks/matching.py --networks mlp-512 resnet20-x4 --out matching.json
    python benchmarks/matching.py --ablate
    python benchmarks/matching.py --peer-python PATH --rebasin   # a Python in which the `rebasin` package is installed
    python benchmarks/matching.py --peer-python PATH --checkouts nnperm=FOLDER pleas=FOLDER git-re-basin=FOLDER

Each network (see problems.py) is matched with *independent* weights of two seeds and with a *planted* relabeling;
``--kinds trained --data-dir MNIST --cache FOLDER`` fits two of an MLP to MNIST first (see trained.py). CPU
seconds on one thread: medians over seeds, and of up to five runs that take two seconds together, after one that is not
counted. The floor is the matrix products and assignments that the default matcher made, replayed alone: the products on
random matrices of the same shapes, the assignments on the same matrices.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import problems
import torch
from ablation import KINDS as KINDS_ABLATED
from ablation import NETWORKS, ablate
from peers import plain_form, textbook, textbook_frank_wolfe
from trained import trained_mlp

from pyro_align.matching import Coordinate, assignment, match, objective
from pyro_align.matching.evidence import Gains

KINDS = ["independent", "planted", "trained"]
DEFAULT = ["mlp-512", "resnet20-x1", "resnet20-x4", "lstm-512", "vgg16"]


def main() -> None:
    options = read_options()
    torch.set_num_threads(1)
    if options.ablate is not None:
        return ablate(options.networks or NETWORKS, KINDS_ABLATED, options.ablate)
    rows = []
    for name in options.networks or DEFAULT:
        network = problems.NETWORKS[name]()
        for kind in options.kinds:
            row = median([compare(name, network, kind, seed, options) for seed in options.seeds])
            rows.append(row)
            print(describe(row), flush=True)
    if options.out:
        setup = {
            "torch": torch.__version__,
            "machine": platform.machine(),
            "gain": options.gain,
            "noise": options.noise,
        }
        Path(options.out).write_text(json.dumps({"setup": setup, "rows": rows}, indent=1) + "\n")


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=sorted(problems.NETWORKS), default=None)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS[:2])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--ablate", nargs="*", default=None, metavar="TRICK", help="switch speed tricks off in turn, see ablation.py"
    )
    parser.add_argument("--gain", type=float, default=1.0, help="variance of weights times their fan-in")
    parser.add_argument("--noise", type=float, default=0.05, help="planted: noise over each site's root mean square")
    parser.add_argument("--restarts", type=int, default=0, help="also run with this many restarts")
    parser.add_argument("--anneal", type=int, nargs="*", default=[], help="also run with so many rounds of annealing")
    parser.add_argument("--frank-wolfe", action="store_true", help="also run frank_wolfe")
    parser.add_argument("--textbook-frank-wolfe", action="store_true", help="also run it as published: minutes")
    parser.add_argument("--no-textbook", action="store_true")
    parser.add_argument("--peer-python", default=sys.executable, help="Python with the packages that peers need")
    parser.add_argument("--rebasin", action="store_true", help="also run the rebasin package")
    parser.add_argument("--checkouts", nargs="+", default=[], help="also run NAME=FOLDER, see checkout_peer.py")
    parser.add_argument("--data-dir", default="", help="trained: folder with MNIST's published files")
    parser.add_argument("--cache", default="", help="trained: folder in which fitted weights are kept")
    parser.add_argument("--out", default="", help="JSON file to write")
    return parser.parse_args()


def compare(name: str, network, kind: str, seed: int, options) -> dict:
    """One problem, every method."""
    symmetry, truth = network.symmetry(), None
    if kind == "planted":
        fixed, moving, truth = problems.planted(network, seed, options.noise, options.gain)
    elif kind == "trained":
        if not name.startswith("mlp-") or not options.data_dir or not options.cache:
            raise SystemExit("trained weights need an MLP, --data-dir and --cache")
        folders = Path(options.data_dir), Path(options.cache)
        fixed, moving = (trained_mlp(int(name[4:]), 2 * seed + k, *folders) for k in (0, 1))
    else:
        fixed, moving = problems.independent(network, seed, options.gain)
    row = {"network": name, "kind": kind, "parameters": network.size, "methods": {}}
    methods = row["methods"]
    with recorded() as work:
        match(symmetry, fixed, moving)
    methods["coordinate"] = ours(symmetry, fixed, moving, truth)
    row["floor_cpu_s"] = statistics.median(replay(work) for _ in range(3))
    if options.restarts:
        methods[f"coordinate, restarts={options.restarts}"] = ours(
            symmetry, fixed, moving, truth, restarts=options.restarts
        )
    for rounds in options.anneal:
        methods[f"coordinate, anneal={rounds}"] = ours(
            symmetry, fixed, moving, truth, matcher=Coordinate(anneal=rounds)
        )
    if options.frank_wolfe:
        methods["frank_wolfe"] = ours(symmetry, fixed, moving, truth, matcher="frank_wolfe")
    form = plain_form(network)
    if form is not None and not options.no_textbook:
        methods["textbook"] = run_peer(textbook, form, symmetry, fixed, moving, truth, seed=seed)
    if form is not None and options.textbook_frank_wolfe:
        methods["textbook frank_wolfe"] = run_peer(textbook_frank_wolfe, form, symmetry, fixed, moving, truth)
    if options.rebasin:
        methods["rebasin"] = run_rebasin(options.peer_python, name, fixed, moving)
    for peer, folder in (text.split("=", 1) for text in options.checkouts if form is not None):
        methods[peer] = run_checkout(options, peer, folder, form, symmetry, fixed, moving, truth)
    row["methods"] = {k: v for k, v in methods.items() if v}
    return row


def timed(call):
    """What a call gives, and its CPU seconds: the median of up to five calls that take two seconds together."""
    spent: list[float] = []
    while len(spent) < 5 and sum(spent) < 2:
        start = time.process_time()
        found = call()
        spent.append(time.process_time() - start)
    return found, statistics.median(spent)


def ours(symmetry, fixed, moving, truth, **options) -> dict:
    found, spent = timed(lambda: match(symmetry, fixed, moving, **options))
    result = {"cpu_s": spent, "objective": found.objective, "sweeps": found.sweeps, "wall": dict(found.seconds)}
    if truth is not None:
        result["recovered"] = problems.recovered(found.permutation.indices, truth)
    return result


def run_peer(peer, form, symmetry, fixed, moving, truth, **options) -> dict:
    axes, shapes = form
    plain = [{k: v[0] for k, v in side.items()} for side in (fixed, moving)]
    (indices, sweeps, *_), spent = timed(lambda: peer(axes, shapes, *plain, **options))
    return judged(indices, spent, symmetry, fixed, moving, truth) | {"sweeps": sweeps}


def judged(indices, spent: float, symmetry, fixed, moving, truth) -> dict:
    value = objective(symmetry, fixed, moving, symmetry.permutation(indices))
    result = {"cpu_s": spent, "objective": value}
    if truth is not None:
        result["recovered"] = problems.recovered(indices, truth)
    return result


def run_checkout(options, peer: str, folder: str, form, symmetry, fixed, moving, truth) -> dict | None:
    axes, shapes = form
    sides = [{k: v[0].reshape(shapes[k]) for k, v in side.items()} for side in (fixed, moving)]
    problem = {"axes": axes, "fixed": sides[0], "moving": sides[1]}
    with elsewhere(options.peer_python, "checkout_peer.py", problem, peer, folder) as (done, path):
        if done.returncode:
            return failed(peer, done)
        found = torch.load(path, weights_only=True)
    return judged(found["indices"], found["cpu_s"], symmetry, fixed, moving, truth)


def run_rebasin(python: str, name: str, fixed, moving) -> dict | None:
    values = {"fixed": {k: v[0] for k, v in fixed.items()}, "moving": {k: v[0] for k, v in moving.items()}}
    with elsewhere(python, "rebasin_peer.py", {"name": name, **values}) as (done, _):
        return failed("rebasin", done) if done.returncode else json.loads(done.stdout.splitlines()[-1])


@contextmanager
def elsewhere(python: str, script: str, problem: dict, *arguments: str):
    """Runs a script next to this one on a saved problem; gives how it ended and where the problem lies."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "problem.pt")
        torch.save(problem, path)
        command = [python, str(Path(__file__).with_name(script)), *arguments, str(path)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        yield subprocess.run(command, capture_output=True, text=True, check=False, env=environment), path


def failed(peer: str, done) -> None:
    print(f"{peer} failed: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)


# -- the floor -------------------------------------------------------------------------------------------------------


@contextmanager
def recorded():
    """Notes the shapes of all gain products and copies the matrices of all assignments while the block runs."""
    work = {"products": [], "assignments": []}
    add, solve, solve_small = Gains.add, assignment._solve, assignment.assigned

    def noted_add(self, node, odd, left, right):
        work["products"].append((left.shape, right.shape, left.dtype))
        add(self, node, odd, left, right)

    def noted_solve(gain, wanted):
        work["assignments"].append((gain.clone(), wanted))
        return solve(gain, wanted)

    def noted_small(gain):
        work["assignments"] += [(matrix.clone(), 1.0) for matrix in gain]
        return solve_small(gain)

    Gains.add, assignment._solve, assignment.assigned = noted_add, noted_solve, noted_small
    try:
        yield work
    finally:
        Gains.add, assignment._solve, assignment.assigned = add, solve, solve_small


def replay(work) -> float:
    """CPU seconds of the noted products and assignments alone."""
    spent = 0.0
    for left, right, dtype in work["products"]:
        a, b = torch.randn(left, dtype=dtype), torch.randn(right, dtype=dtype)
        start = time.process_time()
        _ = a @ b.transpose(1, 2)
        spent += time.process_time() - start
    for matrix, wanted in work["assignments"]:
        start = time.process_time()
        assignment._solve(matrix, wanted)
        spent += time.process_time() - start
    return spent


# -- the report ------------------------------------------------------------------------------------------------------


def median(rows: list[dict]) -> dict:
    """One row of medians."""
    out = {k: rows[0][k] for k in ("network", "kind", "parameters")}
    out["floor_cpu_s"] = statistics.median(r["floor_cpu_s"] for r in rows)
    out["methods"] = {
        name: {
            k: statistics.median(r["methods"][name][k] for r in rows)
            for k, v in method.items()
            if not isinstance(v, dict)
        }
        for name, method in rows[0]["methods"].items()
        if all(name in r["methods"] for r in rows)
    }
    out["methods"]["coordinate"]["wall"] = rows[0]["methods"]["coordinate"]["wall"]
    return out


def describe(row: dict) -> str:
    mine = row["methods"]["coordinate"]
    wall = mine["wall"]
    total = sum(wall.values()) or 1.0
    shares = ", ".join(f"{k} {v / total:.0%}" for k, v in wall.items())
    lines = [
        f"{row['network']}, {row['kind']}, {row['parameters'] / 1e6:.2f} M parameters: floor "
        f"{row['floor_cpu_s']:.3g} s, total {mine['cpu_s'] / max(row['floor_cpu_s'], 1e-9):.2f} x the floor ({shares})"
    ]
    for name, method in row["methods"].items():
        text = f"  {name:26s} {method['cpu_s']:8.3f} s ({mine['cpu_s'] / method['cpu_s']:4.2f})"
        text += f"  objective {method['objective']:.6g}"
        if "recovered" in method:
            text += f"  recovered {method['recovered']:.1%}"
        lines.append(text)
    return "\n".join(lines)


if __name__ == "__main__":
    main()
