"""How each kind of posterior is made: by SVI, at a mode, by SGD's iterates, of several modes, by NUTS."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import pyro
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoLowRankMultivariateNormal, AutoMultivariateNormal, AutoNormal
from torch import Tensor

import pyro_align
from pyro_align.demo.network import he_initialization
from pyro_align.guides import Posterior


@dataclass(frozen=True)
class Task:
    """What all families are fitted to.

    Attributes:
        model: The model ``(x, y, size)``.
        x: Training inputs.
        y: Training classes.
        epochs: Passes over the data.
        draws: Draws of the families that are sets of draws.
        warmup: Steps of NUTS before them.
        batch_size: Data per step.
        rate: Adam's first step; it decays to a hundredth.
    """

    model: Callable
    x: Tensor
    y: Tensor
    epochs: int
    draws: int
    warmup: int
    batch_size: int = 256
    rate: float = 0.02

    @cached_property
    def symmetry(self) -> pyro_align.Symmetry:
        """The network's relabelings."""
        return pyro_align.find_symmetry(self.model, self.x[:32], self.y[:32])

    def steps(self, svi: SVI, epochs: int):
        """Passes over the data; yields after each."""
        for _ in range(epochs):
            for batch in torch.randperm(len(self.x)).split(self.batch_size):
                svi.step(self.x[batch], self.y[batch], len(self.x))
            yield


def variational(task: Task, seed: int, make: Callable) -> Posterior:
    """A guide fitted by Pyro's SVI and ELBO, the KL at full weight."""
    with pyro.get_param_store().scope():
        return pyro_align.guides.read_guide(_fitted(task, seed, make))


def laplace(task: Task, seed: int) -> Posterior:
    """A Gaussian at the mode, its precision the prior's plus the generalized Gauss-Newton matrix of all the data.

    The Hessian itself, of which Pyro's ``AutoLaplaceApproximation`` takes the inverse, has negative eigenvalues at the
    modes of networks with ReLU, whose kinks keep the gradient from vanishing; with the Gauss-Newton matrix it is usual
    for networks (Ritter et al. 2018).
    """
    with pyro.get_param_store().scope():
        guide = _fitted(task, seed, AutoDelta)
        mode = _values(guide)
        root = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(gauss_newton(task, mode))))
        made = AutoMultivariateNormal(task.model)
        made(task.x[:2], task.y[:2], 2)
        made.loc = torch.nn.Parameter(torch.cat([value.reshape(-1) for value in mode.values()]))
        made.scale, made.scale_tril = root.diagonal(), root / root.diagonal()[:, None]
        return pyro_align.guides.read_guide(made)


def gauss_newton(task: Task, mode: dict[str, Tensor]) -> Tensor:
    """Sum over data of J' (diag p - p p') J, J the logits' Jacobian, plus the precision of the Normal priors."""
    sizes = [value.numel() for value in mode.values()]
    center = torch.cat([value.reshape(-1) for value in mode.values()])

    def logits(flat: Tensor, x: Tensor) -> Tensor:
        values = {k: v.view(mode[k].shape) for k, v in zip(mode, flat.split(sizes), strict=True)}
        return poutine.condition(task.model, data=values)(x[None], task.y[:1])[0]

    trace = poutine.trace(poutine.condition(task.model, data=mode)).get_trace(task.x[:2])
    made = torch.cat([trace.nodes[k]["fn"].base_dist.scale.reshape(-1) for k in mode]).pow(-2).diag()
    jacobian = torch.func.vmap(torch.func.jacrev(logits), (None, 0))
    with pyro.validation_enabled(False), torch.no_grad():
        for x in task.x.split(128):
            j, p = jacobian(center, x), torch.func.vmap(logits, (None, 0))(center, x).softmax(-1)
            root = p.sqrt()[:, :, None] * (j - (p[:, None] @ j))  # rows of a root of J' (diag p - p p') J
            made += root.flatten(0, 1).mT @ root.flatten(0, 1)
    return made


def sgd_iterates(task: Task, seed: int) -> Posterior:
    """Points passed by SGD with constant steps from the mode, one a pass (Mandt et al. 2017; Maddox et al. 2019)."""
    with pyro.get_param_store().scope():
        guide = _fitted(task, seed, AutoDelta)
        sgd = pyro.optim.SGD({"lr": 0.1 / len(task.x), "momentum": 0.9})
        svi = SVI(task.model, guide, sgd, Trace_ELBO())
        points = [_values(guide) for _ in task.steps(svi, task.draws)]
    return pyro_align.guides.read_guide(points)


def ensemble(task: Task, seed: int) -> Posterior:
    """Modes found from starts of their own (Lakshminarayanan et al. 2017); an eighth as many as the others' draws."""
    points = []
    for member in range(max(2, task.draws // 8)):
        with pyro.get_param_store().scope():
            points.append(_values(_fitted(task, 1000 * (seed + 1) + member, AutoDelta)))
    return pyro_align.guides.read_guide(points)


def nuts(task: Task, seed: int) -> Posterior:
    """One chain of NUTS from a random start."""
    pyro.set_rng_seed(seed)
    kernel = NUTS(task.model, jit_compile=True, ignore_jit_warnings=True, max_tree_depth=6)
    thinned = 5
    sampler = MCMC(kernel, num_samples=thinned * task.draws, warmup_steps=task.warmup, disable_progbar=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns of constants
        sampler.run(task.x, task.y)
    return pyro_align.guides.read_guide({k: v[thinned - 1 :: thinned] for k, v in sampler.get_samples().items()})


FAMILIES: dict[str, Callable[[Task, int], Posterior]] = {
    "point": partial(variational, make=AutoDelta),
    "mean-field": partial(variational, make=partial(AutoNormal, init_scale=0.01)),
    "low rank": partial(variational, make=partial(AutoLowRankMultivariateNormal, init_scale=0.01, rank=10)),
    "full covariance": partial(variational, make=partial(AutoMultivariateNormal, init_scale=0.01)),
    "Laplace": laplace,
    "SGD iterates": sgd_iterates,
    "ensemble": ensemble,
    "NUTS": nuts,
}


def _fitted(task: Task, seed: int, make: Callable):
    count = task.epochs * -(-len(task.x) // task.batch_size)
    pyro.set_rng_seed(seed)
    guide = make(task.model, init_loc_fn=he_initialization)
    adam = pyro.optim.ClippedAdam({"lr": task.rate, "lrd": 0.01 ** (1 / count)})
    with pyro.validation_enabled(False):
        svi = SVI(task.model, guide, adam, Trace_ELBO())
        for _ in task.steps(svi, task.epochs):
            pass
    return guide


def _values(guide: AutoDelta) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in guide.median().items()}
