"""Relabelings of the R package label.switching 1.8 (Papastamoulis 2016) beside ours, draw by draw.

python validation/label_switching.py          # ours beside the package's answers, which lie in label_switching.npz
python validation/label_switching.py --quick  # 100 draws of each example
python validation/label_switching.py --make   # samples and runs the package again: needs Rscript and label.switching

Examples: the package's own ``data_list``, three and five normal components of the velocities of 82 galaxies (Roeder
1990), and three Poisson components of the movements of a fetal lamb (Leroux & Puterman 1992). Gibbs samples from
several starts, labels as they came.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
import warnings
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.special import gammaln, softmax

from pyro_align import SymmetrySpec, align_draws

ANSWERS = Path(__file__).with_suffix(".npz")
# velocities of 82 galaxies in km/s (Roeder 1990), as printed in Table 3 of Chib (1995, JASA 90:1313-1321)
GALAXIES = """
9172 9350 9483 9558 9775 10227 10406 16084 16170 18419 18552 18600 18927 19052 19070 19330 19343 19349 19440 19473 19529
19541 19547 19663 19846 19856 19863 19914 19918 19973 19989 20166 20175 20179 20196 20215 20221 20415 20629 20795 20821
20846 20875 20986 21137 21492 21701 21814 21921 21960 22185 22209 22242 22249 22314 22374 22495 22746 22747 22888 22914
23206 23241 23263 23484 23538 23542 23666 23706 23711 24129 24285 24289 24366 24717 24990 25633 26960 26995 32065 32789
34279
"""
# movements of a fetal lamb in 240 intervals of 5 seconds (Leroux & Puterman 1992, Biometrics 48:545-558)
LAMB = (
    "000001010000001010000220000100110011100100000000000000000020100000000000000000100000732324000010000000102000010000"
    "100000000000000100000210010001011000100100012000101101002012112101100110001110400200000000000000000000000000000000"
    "000000000000"
)
PARAMETERS = SymmetrySpec({"parameters": ("component", None)})
METHODS = {  # ours: what the package calls it
    "pivot": "PRA",
    "ecr": "ECR",
    "ecr_iterative_1": "ECR-ITERATIVE-1",
    "ecr_iterative_2": "ECR-ITERATIVE-2",
    "stephens": "STEPHENS",
    "ordering": "AIC",
}
R = """
suppressMessages(library(label.switching))
folder <- commandArgs(TRUE)[1]
at <- function(name) as.matrix(read.csv(file.path(folder, name), header=FALSE))
shape <- as.integer(at("shape.csv")); m <- shape[1]; n <- shape[2]; K <- shape[3]; J <- shape[4]; pivot <- shape[5]
pars <- array(at("pars.csv"), c(m, K, J)); p <- array(at("p.csv"), c(m, n, K)); z <- at("z.csv"); hard <- at("hard.csv")
put <- function(name, run) {
  seconds <- system.time(found <- run())[1]
  write.table(found$permutations, file.path(folder, name), sep=",", row.names=FALSE, col.names=FALSE)
  cat(name, seconds, "\\n")
}
put("pivot", function() pra(pars, pars[pivot,,]))
put("ecr", function() ecr(z[pivot,], z, K))
put("ecr_iterative_1", function() ecr.iterative.1(z, K))
put("ecr_iterative_2", function() ecr.iterative.2(hard, K, p))
put("stephens", function() stephens(p))
put("ordering", function() aic(pars, 1))
"""


@dataclass(frozen=True)
class Example:
    """Draws of a mixture and what R made of them.

    Attributes:
        pars: ``(draws, components, kinds)``, the location first.
        z: Sampled allocations ``(draws, data)``, from 0.
        p: Their probabilities ``(draws, data, components)``.
        pivot: The draw of highest likelihood.
        answers: Method -> R's permutations ``(draws, components)``, new -> old, from 0.
    """

    pars: np.ndarray
    z: np.ndarray
    p: np.ndarray
    pivot: int
    answers: dict[str, np.ndarray]

    def head(self, count: int) -> Example:
        if self.pivot >= count:
            count = self.pivot + 1
        return Example(
            self.pars[:count],
            self.z[:count],
            self.p[:count],
            self.pivot,
            {k: v[:count] for k, v in self.answers.items()},
        )


def log_densities(kind: str, y: np.ndarray, pars: np.ndarray) -> np.ndarray:
    """Log of weight times density of each datum in each component, ``(draws, data, components)``."""
    location, weight = pars[..., 0][:, None], pars[..., -1][:, None]
    if kind == "poisson":
        return np.log(weight) + y[:, None] * np.log(location) - location - gammaln(y + 1)[:, None]
    variance = pars[..., 1][:, None]
    return np.log(weight) - 0.5 * np.log(2 * np.pi * variance) - 0.5 * (y[:, None] - location) ** 2 / variance


def gibbs(kind: str, y: np.ndarray, size: int, starts: int, draws: int, warmup: int) -> tuple[np.ndarray, np.ndarray]:
    """Parameters and allocations of Gibbs samples from several starts, one after another.

    Normal components as Fruehwirth-Schnatter (2001): means N(mean, range^2), variances InverseGamma(2, range^2 / 50);
    Poisson rates Gamma(1, 1); weights Dirichlet(1).
    """
    pars, labels, spread = [], [], np.ptp(y)
    for seed in range(starts):
        rng = np.random.default_rng(seed)
        z = rng.integers(size, size=len(y))
        variance = np.full(size, (spread / 5) ** 2)
        for step in range(warmup + draws):
            count = np.bincount(z, minlength=size)
            weight = rng.dirichlet(1.0 + count)
            total = np.bincount(z, y, size)
            if kind == "poisson":
                location = rng.gamma(1.0 + total, 1.0 / (1.0 + count))
                kinds = [location, weight]
            else:
                precision = count / variance + 1 / spread**2
                location = (total / variance + y.mean() / spread**2) / precision + rng.normal(
                    size=size
                ) / precision**0.5
                rest = np.bincount(z, (y - location[z]) ** 2, size)
                variance = 1 / rng.gamma(2.0 + count / 2, 1 / (spread**2 / 50 + rest / 2))
                kinds = [location, variance, weight]
            now = np.stack(kinds, -1)
            p = softmax(log_densities(kind, y, now[None])[0], -1)
            z = (p.cumsum(1) > rng.random((len(y), 1))).argmax(1)
            if step >= warmup:
                pars.append(now)
                labels.append(z)
    return np.stack(pars), np.stack(labels)


def examples_to_sample() -> dict[str, tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """Name -> kind of component, data, parameters, allocations."""
    galaxies, lamb = np.array(GALAXIES.split(), float) / 1000, np.array(list(LAMB), float)
    return {
        "galaxies, 3": ("normal", galaxies, *gibbs("normal", galaxies, 3, 10, 40, 100)),
        "galaxies, 5": ("normal", galaxies, *gibbs("normal", galaxies, 5, 10, 40, 100)),
        "fetal lamb, 3": ("poisson", lamb, *gibbs("poisson", lamb, 3, 10, 40, 100)),
    }


def made_by_r(example: Example) -> dict[str, np.ndarray]:
    """The package's permutations; prints its seconds of CPU."""
    with tempfile.TemporaryDirectory() as folder:
        m, n, size = example.p.shape
        files = {
            "shape": np.array([m, n, size, example.pars.shape[2], example.pivot + 1]),
            "pars": example.pars.ravel("F"),
            "p": example.p.ravel("F"),
            "z": example.z + 1,
            "hard": example.p.argmax(-1) + 1,
        }
        for name, values in files.items():
            np.savetxt(f"{folder}/{name}.csv", values, delimiter=",", fmt="%.17g")
        Path(folder, "run.R").write_text(R)
        done = subprocess.run(["Rscript", f"{folder}/run.R", folder], check=True, capture_output=True, text=True)
        print(done.stdout)
        return {k: np.loadtxt(f"{folder}/{k}", delimiter=",", dtype=int) - 1 for k in METHODS}


def make(data_list: Path | None) -> None:
    """Samples, asks R, and writes the answers.

    Args:
        data_list: CSV of the package's example: parameters, then allocations.
    """
    out = {}
    sampled = examples_to_sample()
    if data_list is not None:
        table = pd.read_csv(data_list).to_numpy()
        pars = table[:, :6].reshape(-1, 3, 2).swapaxes(1, 2)
        data = np.array([3.460093108, -1.618817453, -0.007898479, 0.632063399, 3.129197913])
        sampled["data_list, 2"] = ("normal", data, pars, table[:, 6:].astype(int) - 1)
    for name, (kind, y, pars, z) in sampled.items():
        pars = pars.astype(np.float32)
        print(name)
        answers = made_by_r(_example(kind, y, pars, z, {}))
        out |= {f"{name}/pars": pars, f"{name}/z": z.astype(np.int8), f"{name}/y": y, f"{name}/kind": np.array(kind)}
        out |= {f"{name}/{k}": v.astype(np.int8) for k, v in answers.items()}
    np.savez_compressed(ANSWERS, **out)


def _example(kind: str, y: np.ndarray, pars: np.ndarray, z: np.ndarray, answers: dict) -> Example:
    pars = pars.astype(float)
    logs = log_densities(kind, y, pars)
    likelihood = np.logaddexp.reduce(logs, -1).sum(-1)
    return Example(pars, z.astype(int), softmax(logs, -1), int(likelihood.argmax()), answers)


def examples() -> dict[str, Example]:
    stored = np.load(ANSWERS)
    names = dict.fromkeys(key.split("/")[0] for key in stored)
    return {
        name: _example(
            str(stored[f"{name}/kind"]),
            stored[f"{name}/y"],
            stored[f"{name}/pars"],
            stored[f"{name}/z"],
            {k: stored[f"{name}/{k}"].astype(int) for k in METHODS},
        )
        for name in names
    }


def ours(example: Example, method: str) -> np.ndarray:
    """Our permutations ``(draws, components)``."""
    options: dict = {"method": method, "reference": (0, example.pivot)}
    if method == "ordering":
        options = {"method": method, "by": "parameters"}
    elif method != "pivot":
        z = {"ecr_iterative_2": example.p, "stephens": example.p}.get(method, example.z)
        options["allocations"] = torch.as_tensor(z)[None]
    draws = {"parameters": torch.as_tensor(example.pars)[None]}
    return align_draws(draws, PARAMETERS, **options).permutations["component"][0].long().numpy()


def objective(example: Example, method: str, index: np.ndarray) -> float | None:
    """What the method minimizes, at a labeling: disagreements with the pivot, nats, or minus an inner product."""
    if method == "ordering":
        return None
    draws = np.arange(len(index))[:, None]
    pars = example.pars[draws, index]
    if method == "pivot":
        return -float((pars * pars[example.pivot]).sum())
    p = np.take_along_axis(example.p, index[:, None], -1)
    if method == "stephens":
        safe = p.clip(1e-10, 1.0)
        return float((safe * (np.log(safe) - np.log(safe.mean(0)))).sum())
    z = example.p.argmax(-1) if method == "ecr_iterative_2" else example.z
    named = np.take_along_axis(index.argsort(-1), z, -1)
    if method == "ecr":
        pivot = named[example.pivot]
    elif method == "ecr_iterative_1":
        pivot = np.stack([(named == k).sum(0) for k in range(index.shape[1])], -1).argmax(-1)
    else:
        pivot = p.mean(0).argmax(-1)
    return float((named != pivot).sum())


def agreement(one: np.ndarray, other: np.ndarray) -> float:
    """Fraction of draws with the same labels, up to one relabeling of all."""
    orders = [list(g) for g in permutations(range(one.shape[1]))]
    return float(max((one[:, g] == other).all(1).mean() for g in orders))


def compare(example: Example) -> pd.DataFrame:
    """One row per method."""
    rows = []
    for method, theirs in METHODS.items():
        start = time.process_time()
        index = ours(example, method)
        seconds = time.process_time() - start
        known = example.answers[method]
        values = [objective(example, method, i) for i in (known, index)]
        rows.append((method, theirs, agreement(index, known), *values, seconds))
    return pd.DataFrame(rows, columns=["ours", "R", "same draws", "objective in R", "objective here", "CPU s"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--make", action="store_true")
    parser.add_argument("--data-list", type=Path, help="with --make: CSV of the package's data_list")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if options.make:
        make(options.data_list)
        return
    for name, example in examples().items():
        part = example.head(100) if options.quick else example
        print(f"\n{name} components, {len(part.pars)} draws, {part.z.shape[1]} data")
        print(compare(part).round(4).to_string(index=False))


if __name__ == "__main__":
    main()
