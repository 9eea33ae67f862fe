"""What is evaluated, and the work at one tau: independent of all other taus, so that pieces can run anywhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_align.barrier.data import Data
from pyro_align.errors import BarrierError
from pyro_align.guides import MeanFieldNormal
from pyro_align.losses.sums import Sums, bootstrap_weights, is_pyro_loss, is_task_loss, kl_per_draw, to_numpy
from pyro_align.model import forward
from pyro_align.model.batch import Draws, Normals, Runner
from pyro_align.model.forward import Layout
from pyro_align.model.guards import untouched
from pyro_align.model.probe import call_shapes, probe


@dataclass(frozen=True, eq=False)
class Piece:
    """All figures at one tau.

    Attributes:
        tau: Where on the path.
        pseudo: (evaluation, loss) -> pseudo-values per datum ``(draws,)``.
        likelihood: Evaluation -> the data's term of the log joint, ``(draws,)`` nats, for all data.
        effective: Evaluation -> mean over data of the effective number of draws behind the predictive likelihood.
        drift: (evaluation, predictive loss) -> how far its estimate moves from half the draws to all, per datum.
        log_prior: Log prior density of each draw, ``(draws,)`` nats.
        log_q: Log posterior density of each draw, ``(draws,)`` nats.
        num_data: Evaluation -> number of data.
        vectorized: Whether the draws went through the model together.
    """

    tau: float
    pseudo: Mapping[tuple[str, str], np.ndarray]
    likelihood: Mapping[str, np.ndarray]
    effective: Mapping[str, float]
    drift: Mapping[tuple[str, str], float]
    log_prior: np.ndarray
    log_q: np.ndarray
    num_data: Mapping[str, int]
    vectorized: bool


@dataclass(frozen=True, eq=False)
class Problem:
    """A model, a path, data and losses.

    Attributes:
        model: The Pyro model.
        path: Anything with ``posterior(tau)``.
        data: The data sets.
        losses: Name -> loss.
        num_samples: Draws per tau.
        seed: Seed of the draws.
        temperature: Weight of the KL in the negative ELBO.
        chunk: Draws in one vectorized run, or None.
        max_memory: Bytes for the model's intermediate tensors.
        nonfinite: ``"raise"`` or ``"keep"``.
    """

    model: Callable
    path: Any
    data: tuple[Data, ...]
    losses: Mapping[str, Any]
    num_samples: int
    seed: int
    temperature: float
    chunk: int | None
    max_memory: int
    nonfinite: str = "raise"
    _cache: dict = field(default_factory=dict, repr=False)

    def __getstate__(self) -> dict:
        # layouts travel with the problem; noise and the runner are made anew where it arrives
        return {k: v for k, v in self.__dict__.items() if k not in ("noise", "runner", "weights")}

    @cached_property
    def noise(self) -> dict[str, Tensor]:
        """The one set of standard noise that is pushed through every tau."""
        generator = torch.Generator().manual_seed(self.seed)
        return self.path.posterior(0.0).noise(self.num_samples, generator=generator)

    @cached_property
    def weights(self) -> Tensor:
        """Of the bootstrap over draws, the same at every tau."""
        return bootstrap_weights(self.num_samples, self.seed)

    @cached_property
    def runner(self) -> Runner:
        return Runner(self.model, self.seed, self.chunk, self.max_memory, _sizes=self._cache.setdefault("sizes", {}))

    @property
    def layouts(self) -> dict[str, Layout]:
        """Data set -> layout of its first batch; finds what is wrong with the problem."""
        if "layouts" not in self._cache:
            posterior = self.path.posterior(0.0)
            draw = {k: v[0] for k, v in posterior.push({k: v[:1] for k, v in self.noise.items()}).items()}
            self._cache["layouts"] = {d.name: self._probe(d, posterior, draw) for d in self.data}
        return self._cache["layouts"]

    def _probe(self, data: Data, posterior, draw: Mapping[str, Tensor]) -> Layout:
        for args, kwargs in data.batches():
            strict = any(not is_pyro_loss(loss) for loss in self.losses.values())
            measure = self.chunk is None and strict
            layout, size = probe(self.model, args, kwargs, posterior, draw, self.seed, strict=strict, measure=measure)
            if measure:
                self._cache.setdefault("sizes", {})[call_shapes(args, kwargs)] = size
            return layout
        raise BarrierError(f"evaluation '{data.name}' holds no batch of data")

    def draws(self, data: Data, tau: float, *, predict: bool = False, posterior=None, values=None, share=(0, 1)):
        """Runs the model on batches of a data set at one tau: yields each batch's number and :class:`Draws`.

        Args:
            data: The data set.
            tau: Where on the path.
            predict: Whether predictions are wanted.
            posterior: The path's posterior there, if it is at hand.
            values: Its draws, if they are.
            share: ``(k, n)`` for the batches with numbers k, k + n, ...
        """
        posterior = self.path.posterior(tau) if posterior is None else posterior
        values = posterior.push(self.noise) if values is None else values
        normals = independent_normals(posterior)
        for i, (args, kwargs) in enumerate(data.batches()):
            if i % share[1] == share[0]:
                yield i, self.runner(values, args, kwargs, normals, predict, prior=i == 0)


def independent_normals(posterior) -> Normals:
    """Location and scale of the sites that are Normals independent of all others under the posterior."""
    if not isinstance(posterior, MeanFieldNormal):
        return Normals()
    return Normals({name: posterior.marginal(name) for name, spec in posterior.sites.items() if spec.is_real})


@dataclass
class Part:
    """What some of the batches give at one tau.

    Attributes:
        tau: Where on the path.
        log_q: Log posterior density of each draw, ``(draws,)`` nats.
        log_prior: Log prior density of each draw; NaN where another part, or none, has it.
        kl: Evaluation -> KL of each draw, ``(draws,)`` nats, in the part that has its first batch.
        pyro: (evaluation, Pyro loss) -> its values per datum, ``(draws,)``, in the part that has the first batches.
        sums: (evaluation, number of the batch) -> its sums.
        vectorized: Whether the draws went through the model together.
    """

    tau: float
    log_q: np.ndarray
    log_prior: np.ndarray
    kl: dict[str, np.ndarray] = field(default_factory=dict)
    pyro: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    sums: dict[tuple[str, int], Sums] = field(default_factory=dict)
    vectorized: bool = True


def evaluate_tau(problem: Problem, tau: float) -> Piece:
    """Every loss on every data set at one tau."""
    return joined(problem, [evaluate_part(problem, tau)])


def evaluate_part(problem: Problem, tau: float, share: tuple[int, int] = (0, 1)) -> Part:
    """Every loss at one tau on a share of the batches: ``(k, n)`` for those with numbers k, k + n, ..."""
    posterior = problem.path.posterior(tau)
    with torch.no_grad():
        values, log_q = posterior.push_with_log_prob(problem.noise)
    predict = any(loss == "error_rate" or is_task_loss(loss) for loss in problem.losses.values())
    part = Part(tau, to_numpy(log_q), np.full(problem.num_samples, np.nan))
    for data in problem.data:
        if share[0] == 0:
            for name, loss in problem.losses.items():
                if is_pyro_loss(loss):
                    full = problem.layouts[data.name].full
                    part.pyro[data.name, name] = _pyro_loss(problem, data, tau, loss) / full
        if all(is_pyro_loss(loss) for loss in problem.losses.values()):
            continue
        runs = problem.draws(data, tau, predict=predict, posterior=posterior, values=values, share=share)
        for i, draws in runs:
            _check_finite(problem, data, tau, draws, values)
            sums = Sums(problem.losses, problem.weights)
            sums.add(draws)
            part.sums[data.name, i] = sums.bare()
            if i == 0:  # the prior does not depend on the data
                part.kl[data.name] = kl_per_draw(draws, log_q, posterior.sites)
                part.log_prior = to_numpy(draws.log_prior)
    part.vectorized = problem.runner.vectorized
    return part


def joined(problem: Problem, parts: Sequence[Part]) -> Piece:
    """The figures of all batches at one tau, added in the order of the batches whichever part they come from."""
    first = next((part for part in parts if part.kl), parts[0])  # that of the first batches
    sums = {key: value for part in parts for key, value in part.sums.items()}
    figures: dict[str, dict] = {name: {} for name in ("pseudo", "likelihood", "effective", "drift", "num_data")}
    for part in parts:
        figures["pseudo"] |= part.pyro
    for data in problem.data:
        name, layout, total = data.name, problem.layouts[data.name], Sums(problem.losses, None)
        for key in sorted(key for key in sums if key[0] == name):
            total.merge(sums[key])
        if not total.seen:
            figures["num_data"][name], figures["effective"][name] = layout.full, np.nan
            figures["likelihood"][name] = np.full(problem.num_samples, np.nan)
            continue
        count = layout.full if layout.full != layout.seen else total.seen
        losses = total.finish(first.kl[name], count, problem.temperature)
        figures["pseudo"] |= {(name, loss): value for loss, value in losses.items()}
        figures["num_data"][name] = count
        figures["likelihood"][name] = np.asarray(total.likelihood) * (count / total.seen)
        figures["effective"][name] = total.effective / total.seen
        figures["drift"] |= {(name, loss): value / total.seen for loss, value in total.drift.items()}
    vectorized = all(part.vectorized for part in parts)
    return Piece(first.tau, **figures, log_prior=first.log_prior, log_q=first.log_q, vectorized=vectorized)


def _pyro_loss(problem: Problem, data: Data, tau: float, loss: Any) -> np.ndarray:
    """A Pyro ELBO on ``path(tau)``, once per draw with the draw's own seed, ``(draws,)`` nats for all data."""
    if not callable(problem.path):
        raise BarrierError(f"{type(loss).__name__} needs a guide: the path must be callable, path(tau) -> guide")
    batches = list(data.batches())
    if len(batches) > 1:
        raise BarrierError(
            f"evaluation '{data.name}': {type(loss).__name__} counts the KL in every batch, so it takes data in one "
            f"piece; got {len(batches)} batches"
        )
    (args, kwargs), guide, values = batches[0], problem.path(tau), []
    for s in range(problem.num_samples):
        with untouched(problem.model, seed=(problem.seed + s) % 2**63), torch.no_grad():
            values.append(float(loss.loss(problem.model, guide, *args, **kwargs)))
    return np.array(values)


def _check_finite(problem: Problem, data: Data, tau: float, draws: Draws, values: Mapping[str, Tensor]) -> None:
    if problem.nonfinite == "keep":
        return
    for figure in (draws.likelihood, draws.log_prior, draws.analytic):
        bad = (~torch.isfinite(figure)).nonzero()
        if len(bad):
            draw = int(bad[0])
            site = _culprit(problem, data, {k: v[draw] for k, v in values.items()})
            raise BarrierError(
                f"evaluation '{data.name}', tau={tau:g}, draw {draw}: {site} "
                f"({len(bad)} of {len(figure)} draws are not finite). Check the guide's scales and the data's range; "
                "nonfinite='keep' carries them into the curves"
            )


def _culprit(problem: Problem, data: Data, draw: Mapping[str, Tensor]) -> str:
    """Which site's log probability is not finite."""
    for name, value in draw.items():
        if not bool(torch.isfinite(value).all()):
            return f"the value of site '{name}' is not finite"
    for args, kwargs in data.batches():
        with untouched(problem.model, seed=problem.seed), torch.no_grad():
            records = forward.record(problem.model, args, kwargs, draw)
            for kind, messages in (("observed", records.data), ("latent", {**records.latent, **records.factors})):
                for name, message in messages.items():
                    total = float(forward.site_log_prob(message).sum())
                    if not np.isfinite(total):
                        return f"the log probability of {kind} site '{name}' is {total}"
    return "the log joint is not finite"
