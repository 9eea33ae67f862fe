"""What is evaluated, and the work at one tau: independent of all other taus, so that pieces can run anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial, reduce
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyro_align.barrier.data import Data, digest
from pyro_align.errors import BarrierError
from pyro_align.guides import MeanFieldNormal
from pyro_align.losses.elbo import kl_per_draw
from pyro_align.losses.protocol import Estimate, GuideLoss, Loss, Sums, finish, merge, sums_of, to_numpy
from pyro_align.losses.task import bootstrap_weights
from pyro_align.model import forward
from pyro_align.model.batch import Draws, Normals, Runner, call_shapes
from pyro_align.model.effects import TemperMessenger
from pyro_align.model.guards import untouched
from pyro_align.model.observations import Layout
from pyro_align.model.probe import probe

if TYPE_CHECKING:
    from pyro_align.guides.posterior import Posterior


@dataclass(frozen=True, eq=False)
class Piece:
    """Everything at one tau.

    Attributes:
        tau: Where on the path.
        estimates: (evaluation, loss) -> the loss there.
        likelihood: Evaluation -> the data's term of the log joint, ``(draws,)`` nats, for all data.
        log_prior: Log prior density of each draw, ``(draws,)`` nats.
        log_q: Log posterior density of each draw, ``(draws,)`` nats.
        num_data: Evaluation -> number of data.
        vectorized: Whether the draws went through the model together.
    """

    tau: float
    estimates: Mapping[tuple[str, str], Estimate]
    likelihood: Mapping[str, np.ndarray]
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
        num_data: Number of data that the posterior was fitted to, or None for :attr:`fitted`'s.
        notes: What should be told of the path and of the losses left out.
    """

    model: Callable[..., Any]
    path: Any
    data: tuple[Data, ...]
    losses: Mapping[str, Loss]
    num_samples: int
    seed: int
    temperature: float
    chunk: int | None
    max_memory: int
    nonfinite: str = "raise"
    num_data: int | None = None
    notes: tuple[str, ...] = ()
    _cache: dict[str, Any] = field(default_factory=dict, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        # layouts travel with the problem; noise and the runner are made again where it arrives
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
        return Runner(self.model, self.seed, self.chunk, self.max_memory, sizes=self._cache.setdefault("sizes", {}))

    @property
    def on_draws(self) -> bool:
        """Whether any loss looks at draws, rather than at guides."""
        return any(not isinstance(loss, GuideLoss) for loss in self.losses.values())

    @property
    def fitted(self) -> str:
        """The data set that the posterior was fitted to: that named "train", or else the first."""
        names = [data.name for data in self.data]
        return "train" if "train" in names else names[0]

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
            measure = self.chunk is None and self.on_draws
            options = {"strict": self.on_draws, "measure": measure}
            layout, size = probe(self.model, args, kwargs, posterior, draw, self.seed, **options)
            self._check_same(data, 0, args, kwargs)
            if measure:
                self._cache.setdefault("sizes", {})[call_shapes(args, kwargs)] = size
            return layout
        raise BarrierError(f"evaluation '{data.name}' holds no batch of data")

    def _check_same(self, data: Data, number: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Refuses data that differ from pass to pass: every tau is to be judged on the same."""
        if data.streamed:
            found = digest(args, kwargs)
            if self._cache.setdefault("digests", {}).setdefault((data.name, number), found) != found:
                raise BarrierError(
                    f"evaluation '{data.name}': batch {number} holds other data than when it was read before, and "
                    "every tau is to be judged on the same; give the batches as a list, or a data set whose randomness "
                    "is seeded by the index of the item"
                )

    def draws(
        self,
        data: Data,
        tau: float,
        *,
        predict: bool = False,
        posterior: Posterior | None = None,
        values: Mapping[str, Tensor] | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> Iterator[tuple[int, Draws]]:
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
        normals, by_hand = Normals(), self.layouts[data.name].by_hand
        if isinstance(posterior, MeanFieldNormal):  # sites that are Normals independent of all others
            real = [name for name, spec in posterior.sites.items() if spec.is_real]
            normals = Normals({name: posterior.marginal(name) for name in real})
        for i, (args, kwargs) in enumerate(data.batches()):
            if i % share[1] == share[0]:
                self._check_same(data, i, args, kwargs)
                yield i, self.runner(values, args, kwargs, normals, predict, prior=i == 0, by_hand=by_hand)


@dataclass
class Part:
    """What some of the batches give at one tau.

    Attributes:
        log_prior: As all that a :class:`Piece` has too, but NaN where another part, or none, has it.
        kl: Evaluation -> KL of each draw, ``(draws,)`` nats, in the part that has its first batch.
        sums: (evaluation, number of the batch) -> its sums.
    """

    tau: float
    log_q: np.ndarray
    log_prior: np.ndarray
    kl: dict[str, np.ndarray] = field(default_factory=dict)
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
    part = Part(tau, to_numpy(log_q), np.full(problem.num_samples, np.nan))
    of_guide = {name: loss for name, loss in problem.losses.items() if isinstance(loss, GuideLoss)}
    for data in problem.data:
        each = {k: {"draws": _guide_loss(problem, data, tau, loss)} for k, loss in of_guide.items() if share[0] == 0}
        if problem.on_draws:
            _add_batches(problem, part, data, share, posterior, values, log_q)
        if each:
            nothing = Sums({}, np.full(problem.num_samples, np.nan), problem.layouts[data.name].seen)
            ran = part.sums.get((data.name, 0), nothing)
            part.sums[data.name, 0] = replace(ran, losses={**ran.losses, **each})
    part.vectorized = problem.runner.vectorized
    return part


def _add_batches(problem: Problem, part: Part, data: Data, share, posterior, values, log_q) -> None:
    predict = any(loss.predicts for loss in problem.losses.values())
    runs = problem.draws(data, part.tau, predict=predict, posterior=posterior, values=values, share=share)
    for i, draws in runs:
        _check_finite(problem, data, part.tau, draws, values)
        part.sums[data.name, i] = sums_of(problem.losses, draws, problem.weights)
        if i == 0:  # the prior does not depend on the data
            part.kl[data.name] = kl_per_draw(draws, log_q, posterior.sites)
            part.log_prior = to_numpy(draws.log_prior)


def joined(problem: Problem, parts: Sequence[Part]) -> Piece:
    """All batches at one tau, added in the order of the batches whichever part they come from."""
    first = next((part for part in parts if part.kl), parts[0])  # that of the first batches
    every = {key: value for part in parts for key, value in part.sums.items()}
    sums, num_data = {}, {}
    for name, layout in problem.layouts.items():
        mine = [every[key] for key in sorted(every) if key[0] == name]
        sums[name] = reduce(partial(merge, problem.losses), mine)
        # what the model says under subsampling, else what was seen
        num_data[name] = layout.full if layout.full != layout.seen else sums[name].seen
    fitted = num_data[problem.fitted] if problem.num_data is None else problem.num_data
    estimates: dict[tuple[str, str], Estimate] = {}
    likelihood = {}
    for name, total in sums.items():
        kl = first.kl.get(name, first.log_prior)  # NaN where no loss looks at draws
        done = finish(problem.losses, total, fitted, kl, problem.temperature)
        likelihood[name] = total.likelihood * (num_data[name] / total.seen)
        estimates |= {(name, loss): done[loss] for loss in problem.losses}
    vectorized = all(part.vectorized for part in parts)
    return Piece(first.tau, estimates, likelihood, first.log_prior, first.log_q, num_data, vectorized)


def _guide_loss(problem: Problem, data: Data, tau: float, loss: GuideLoss) -> np.ndarray:
    """A loss of the guide ``path(tau)``, once per draw with the draw's own seed, ``(draws,)`` per datum."""
    if not callable(problem.path):
        raise BarrierError(f"{loss.name} needs a guide: the path must be callable, path(tau) -> guide")
    batches = list(islice(data.batches(), 2))
    if len(batches) > 1:
        raise BarrierError(
            f"evaluation '{data.name}': {loss.name} counts the KL in every batch, so it takes data in one piece; got "
            "several batches"
        )
    args, kwargs = batches[0]
    seeds = [(problem.seed + s) % 2**63 for s in range(problem.num_samples)]
    model, guide, layout = problem.model, problem.path(tau), problem.layouts[data.name]
    share = layout.full / (problem.num_data or problem.layouts[problem.fitted].full)
    if share != 1:  # the posterior was fitted to more data or fewer: of its KL, these have their share
        temper = TemperMessenger(share, plates=layout.plates)
        model, guide = temper(model), temper(guide)
    return loss.values(model, guide, args, kwargs, seeds) / layout.full


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
