"""One tau in full: per-datum log likelihood and draws, for ArviZ."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_align.barrier.problem import Problem
from pyro_align.errors import BarrierError
from pyro_align.guides import MeanFieldNormal
from pyro_align.model import forward
from pyro_align.model.guards import seed_everywhere, untouched


def evaluate_point(problem: Problem, tau: float, evaluation: str, posterior: bool, predictive: bool) -> dict[str, Any]:
    """The arguments of :func:`pyro_align.reporting.arviz.point_to_arviz`."""
    if not 0.0 <= tau <= 1.0:
        raise BarrierError(f"tau: expected a value in [0, 1], got {tau!r}")
    found = [data for data in problem.data if data.name == evaluation]
    if not found:
        raise BarrierError(f"no data set '{evaluation}'; there are {[data.name for data in problem.data]}")
    data, q = found[0], problem.path.posterior(tau)
    with torch.no_grad():
        values, log_q = q.push_with_log_prob(problem.noise)
    runs = [run for _, run in problem.draws(data, tau, posterior=q, values=values)]
    layout = problem.layouts[evaluation]
    log_likelihood = torch.cat([run.log_likelihood.flatten(1) for run in runs], 1)
    seen = log_likelihood.shape[1]
    full = layout.full if layout.full != layout.seen else seen
    if len(runs) == 1:
        log_likelihood = runs[0].log_likelihood
    lp = runs[0].log_prior + sum(run.likelihood for run in runs) * (full / seen)
    observed, drawn = _data_values(problem, data, values, [run.mask for run in runs], predictive)
    plates = layout.plates if len(layout.plates) == log_likelihood.dim() - 1 else ("datum",)
    return {
        "tau": float(tau),
        "evaluation": evaluation,
        "name": layout.observed[0] if len(layout.observed) == 1 else "joint",
        "plates": plates,
        "log_likelihood": log_likelihood.cpu().numpy(),
        "observed": observed,
        "predictive": drawn,
        "posterior": {k: v.cpu().numpy() for k, v in values.items()} if posterior else None,
        "lp": lp.cpu().numpy(),
        "log_prior": runs[0].log_prior.cpu().numpy(),
        "log_q": log_q.cpu().numpy(),
    }


def evaluate_mixture(problem: Problem, evaluation: str) -> dict[str, Any]:
    """The equal mixture of the path's ends, with every draw of either, as arguments of ``report.point_to_arviz``.

    ``log_q`` is the density of the mixture for mean-field Gaussians. Other families give no density of another
    member's draws: there it is half the density of the draw's own end, which holds where the endpoints hardly overlap.
    """
    first, second = (evaluate_point(problem, tau, evaluation, False, False) for tau in (0.0, 1.0))
    both = {k: np.concatenate([first[k], second[k]]) for k in ("log_likelihood", "lp", "log_prior")}
    ends = [problem.path.posterior(tau) for tau in (0.0, 1.0)]
    own = [torch.as_tensor(first["log_q"], device="cpu"), torch.as_tensor(second["log_q"], device="cpu")]
    if all(isinstance(end, MeanFieldNormal) for end in ends):
        other = [ends[1 - i].log_prob(ends[i].push(problem.noise)).cpu() for i in range(2)]
        own = [torch.logaddexp(mine, theirs) for mine, theirs in zip(own, other, strict=True)]
    log_q = (torch.cat(own) - math.log(2)).numpy()
    return {**first, **both, "log_q": log_q, "tau": math.nan}


def _data_values(problem: Problem, data, values, masks: list[Tensor | None], predictive: bool):
    """Observed values, ``(*datum, *event)``, and one draw of the data per posterior draw, or None; no masked ones."""
    observed: dict[str, list] = {}
    drawn: dict[str, list] = {}
    count = problem.num_samples if predictive else 1
    for b, (args, kwargs) in enumerate(data.batches()):
        batch: dict[str, list] = {}
        with untouched(problem.model, seed=problem.seed), torch.no_grad():
            subsamples = None  # the same for every draw
            for s in range(count):
                draw = {k: v[s] for k, v in values.items()}
                trace = forward.run(problem.model, args, kwargs, draw, subsamples=subsamples)
                if subsamples is None:
                    nodes = trace.nodes.items()
                    subsamples = {k: m["value"] for k, m in nodes if m["type"] == "sample" and forward.is_subsample(m)}
                for name, message in forward.Records(trace).data.items():
                    if s == 0:
                        value = torch.as_tensor(message["value"])
                        observed.setdefault(name, []).append(_kept(value, masks[b]).cpu())
                    if predictive:
                        batch.setdefault(name, []).append(_kept(message["fn"].sample(), masks[b]).cpu())
                # of each draw and batch: noise that batches shared would add up in their mean
                own = np.random.SeedSequence([part % 2**63 for part in (problem.seed, s + 1, b)])
                seed_everywhere(int(own.generate_state(1, np.uint64)[0]) >> 1)
        for name, samples in batch.items():
            drawn.setdefault(name, []).append(torch.stack(samples))
    joined = {
        name: torch.cat(parts).numpy() if parts[0].dim() else parts[0].numpy() for name, parts in observed.items()
    }
    return joined, {name: torch.cat(parts, 1).numpy() for name, parts in drawn.items()} if predictive else None


def _kept(value: Tensor, mask: Tensor | None) -> Tensor:
    """A site's values without the masked data, where its leading dims are those of the data."""
    if mask is None or tuple(value.shape[: mask.dim()]) != tuple(mask.shape):
        return value
    return value.flatten(0, mask.dim() - 1)[mask.flatten()]
