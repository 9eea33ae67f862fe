"""Hunts for symmetries that discovery invents: random networks and random Pyro programs.

    python -m benchmarks.soundness --networks 1000 --programs 1000 [--first 0] [--csv FILE] [--whole-sites]

Each seed draws a model and the options it is asked with. The group found is held against an own evaluation of the
model in float64: the module run at relabeled parameters, Pyro's own trace at relabeled sites.
"""

from __future__ import annotations

import argparse
import collections
import random
import sys
import time
import warnings
from pathlib import Path

import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from torch.nn import functional as F

from pyro_align import find_symmetry
from pyro_align.errors import PyroAlignError

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from architectures import ACTIVATIONS, ROTATED_ACTIVATIONS, SIGNED_ACTIVATIONS, RandomNet, random_net, run

ACTIVE = {"": ACTIVATIONS, "signs": SIGNED_ACTIVATIONS, "rotations": ROTATED_ACTIVATIONS}


class RandomProgram(RandomNet):
    """A Pyro program drawn from a seed: steps of a random network over sites, loops, priors and an observation."""

    def __init__(self, seed: int, activations=ACTIVATIONS):
        self.sampled = False
        super().__init__(seed, activations)
        self.data = torch.randn(8, 2)

    def weight(self, *shape):
        old = [n for n in self.reuse if self.sites[n].shape == shape] if self.reuse else []
        if old and self.rng.random() < 0.2:
            return self.sites[self.rng.choice(old)]
        name = f"p{self.count}"
        self.count += 1
        self.reuse.append(name)
        self.sites[name] = value = self.site(name, shape)
        return value

    def site(self, name, shape):
        fan_in = max(1, torch.Size(shape[1:]).numel())
        one, wide = torch.tensor(1.0), torch.tensor(1.0 / fan_in**0.5)
        kind = self.choose("normal", "normal", "normal", "laplace", "rows", "hyper", "param", "gaussian", "plate", "t")
        if kind == "param":
            return pyro.param(name, lambda: torch.randn(shape) * wide)
        if kind == "rows":  # scales that tell some rows apart
            scale = torch.tensor([self.choose(0.5, 1.0) for _ in range(shape[0])]).reshape(-1, *[1] * (len(shape) - 1))
            return pyro.sample(name, dist.Normal(0.0, (wide * scale).expand(shape)).to_event(len(shape)))
        if kind == "hyper":  # a scale for each row
            tall = pyro.sample(f"{name}_scale", dist.HalfNormal(one.expand(shape[:1])).to_event(1))
            scale = (0.1 + tall).reshape(-1, *[1] * (len(shape) - 1)).expand(shape)
            return pyro.sample(name, dist.Normal(0.0, scale).to_event(len(shape)))
        if kind == "gaussian":  # a joint prior over the last axis
            n = shape[-1]
            share = self.choose(0.0, 0.5)
            covariance = (1 - share) * torch.eye(n) + share
            if self.choose(0, 1):
                covariance = covariance + torch.diag(torch.arange(n) % 2 * 0.5)
            family = dist.MultivariateNormal(torch.zeros(n), covariance * wide**2)
            return pyro.sample(name, family.expand(shape[:-1]).to_event(len(shape) - 1))
        if kind == "plate":
            with pyro.plate(f"{name}_rows", shape[0]):
                family = dist.Normal(0.0, wide.expand(shape)).to_event(len(shape) - 1)
                return pyro.sample(name, family)
        family = {
            "normal": dist.Normal(0.0, wide),
            "laplace": dist.Laplace(0.0, wide),
            "t": dist.StudentT(4.0, 0.0, wide),
        }
        return pyro.sample(name, family[kind].expand(shape).to_event(len(shape)))

    # -- loops -----------------------------------------------------------------------------------------------------

    def dense_step(self, x):
        if x.dim() == 2 and self.rng.random() < 0.35:
            return self.loop(x)
        return super().dense_step(x)

    def loop(self, x):
        """Units, members or blocks one by one, all of them or not, from one site or from sites of their own."""
        n, k, act = x.shape[-1], self.choose(2, 3, 4), self.choose(*self.activations)
        order = list(range(k))
        if self.choose(0, 0, 1):
            order.reverse()
        if self.choose(0, 0, 0, 1):
            order = order[1:]
        if self.choose(0, 1):
            w, v = self.weight(k, 2, n), self.weight(k, 2)
            members = [(w[i], v[i]) for i in order]
        else:
            members = [(self.weight(2, n), self.weight(2)) for _ in order]
        hidden = [act(x @ w.T) * v for w, v in members]
        if self.choose(0, 0, 0, 1):
            hidden[0] = 2.0 * hidden[0]
        out = self.choose(
            lambda: sum(hidden),
            lambda: torch.cat(hidden, -1),
            lambda: torch.stack(hidden, -1).flatten(-2),
            lambda: torch.stack(hidden, 0).logsumexp(0),
            lambda: sum(
                h * g
                for h, g in zip(hidden, F.linear(x, self.weight(len(hidden), n)).softmax(-1).split(1, -1), strict=False)
            ),
            lambda: torch.stack(hidden, 0).mean(0) + hidden[-1],
        )()
        return self.say("loop", out)

    def dense_finish(self, x):
        return x

    def model(self):
        self.sites = {}
        out = self(self.input)
        out = out.flatten(1) if out.dim() > 1 else out[:, None]
        rows, n = out.shape
        kind = self.choose("normal", "counts", "classes", "mixture", "factors")
        if kind == "counts":
            family, y = dist.Poisson(F.softplus(out.sum(-1)) + 0.1), torch.arange(rows).double()
        elif kind == "classes":
            family, y = dist.Categorical(logits=F.linear(out, self.weight(3, n))), torch.arange(rows) % 3
        elif kind == "mixture":
            k = self.choose(2, 3)
            share = dist.Categorical(self.weight(k).softmax(-1).expand(rows, k))
            family = dist.MixtureSameFamily(share, dist.Normal(F.linear(out, self.weight(k, n)), 0.5))
            y = self.data[:rows, 0]
        elif kind == "normal":
            family, y = dist.Normal(F.linear(out, self.weight(2, n)), 0.5).to_event(1), self.data[:rows]
        else:
            mean = (out[:, :, None] * self.weight(n, 2)).sum(1)
            family, y = dist.StudentT(5.0, mean, 1.0).to_event(1), self.data[:rows]
        with pyro.plate("data", rows):
            pyro.sample("y", family, obs=y)

    def __call__(self, *args):
        if not self.sampled:  # made by the base class: nothing is run yet
            self.sampled = True
            return None
        return super().__call__(*args)


def random_program(seed: int, activations):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return RandomProgram(seed, activations)


def network_error(seed: int, kind: str, **options) -> tuple[float, float]:
    """The group's log order, and the largest relative change of the outputs under two random elements."""
    net = random_net(seed, ACTIVE[kind])
    symmetry = find_symmetry(net, net.input, trials=1, seed=seed, **({kind: True} if kind else {}), **options)
    values = {k: v.detach() for k, v in net.named_parameters()}
    before = run(net, values)
    return _worst(symmetry, seed, before, lambda p: run(net, p.apply(values)))


def program_error(seed: int, kind: str, **options) -> tuple[float, float]:
    """The same of a program's log joint, or log likelihood."""
    made = random_program(seed, ACTIVE[kind])
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    symmetry = find_symmetry(made.model, trials=1, seed=seed, **({kind: True} if kind else {}), **options)
    trace = pyro.poutine.trace(made.model).get_trace()
    sites = {member for site in symmetry.sites for member in symmetry.stacks.get(site, (site,))}
    values = {k: s["value"].detach() for k, s in trace.nodes.items() if k in sites}

    def density(given):
        learned = {k: v for k, v in given.items() if trace.nodes[k]["type"] == "param"}
        model = pyro.poutine.substitute(made.model, learned) if learned else made.model
        model = pyro.condition(model, {k: v for k, v in given.items() if k not in learned})
        again = pyro.poutine.trace(model).get_trace()
        if options.get("scope") != "likelihood":
            return again.log_prob_sum().detach()
        return sum(s["fn"].log_prob(s["value"]).sum() for k, s in again.nodes.items() if k == "y").detach()

    return _worst(symmetry, seed, density(values), lambda p: density({**values, **p.apply(values)}))


def _worst(symmetry, seed, before, after) -> tuple[float, float]:
    scale = 1.0 + float(before.abs().max())
    error = max(float((after(symmetry.random(seed + k)) - before).abs().max()) / scale for k in range(2))
    return symmetry.log_order + symmetry.dimension, error


def hunt(what: str, seeds, *, whole_sites: bool = False) -> list[dict]:
    """One row a seed: options, the group's log order and dimension, the error; failures by their sentence."""
    rows = []
    for seed in seeds:
        rng = random.Random(-1 - seed)
        kind = rng.choice(["", "", "signs", "rotations"])
        options = {"whole_sites": whole_sites or rng.random() < 0.3}
        if what == "programs":
            options |= {"scope": rng.choice(["joint", "likelihood"]), "parameters": rng.random() < 0.5}
        start = time.perf_counter()
        row = {"model": what, "seed": seed, "kind": kind, **options}
        try:
            found, error = (network_error if what == "networks" else program_error)(seed, kind, **options)
            row |= {"found": found, "error": error, "grade": "false" if not error <= 1e-8 else "sound"}
        except Exception as caught:
            grade = "refused" if isinstance(caught, PyroAlignError) else "error"
            row |= {"grade": grade, "why": f"{type(caught).__name__}: {str(caught).splitlines()[0][:150]}"}
        row["seconds"] = round(time.perf_counter() - start, 2)
        rows.append(row)
        if row["grade"] != "sound":
            print(row, flush=True)
        if len(rows) % 50 == 0:
            print(what, len(rows), summary(rows), flush=True)
    return rows


def summary(rows) -> str:
    grades = collections.Counter(r["grade"] for r in rows)
    moving = sum(r.get("found", 0.0) > 0 for r in rows)
    return ", ".join(f"{n} {g}" for g, n in grades.items()) + f"; {moving} with a group"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=0, help="number of random networks")
    parser.add_argument("--programs", type=int, default=0, help="number of random programs")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--whole-sites", action="store_true", help="always ask with whole_sites=True")
    parser.add_argument("--csv", help="file for the table")
    options = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = []
    for what in ("networks", "programs"):
        seeds = range(options.first, options.first + getattr(options, what))
        found = hunt(what, seeds, whole_sites=options.whole_sites)
        rows += found
        if found:
            print(f"{what}: {summary(found)}")
    if options.csv:
        pd.DataFrame(rows).to_csv(options.csv, index=False)


if __name__ == "__main__":
    main()
