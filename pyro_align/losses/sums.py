"""From what the model says about each draw to pseudo-values of each loss: sums over data, so that batches add up.

The predictive NLL is nonlinear in the average over draws. Leaving each draw out in turn gives the jackknife's
pseudo-values ``S L - (S - 1) L_(-s)``: their mean removes the bias of order 1/S, their spread gives the standard error.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from pyro_align.errors import BarrierError
from pyro_align.model.batch import Draws

#: Losses known by name, with their units.
UNITS = {
    "expected_nll": "nats per datum",
    "predictive_nll": "nats per datum",
    "elbo": "nats per datum",
    "kl": "nats per datum",
    "error_rate": "fraction of data",
}
DEFAULT = ("expected_nll", "predictive_nll", "elbo", "kl")

TaskLoss = Callable[[Tensor, Tensor], Tensor]


def read_losses(losses) -> dict[str, str | Callable]:
    """Name -> loss, in order.

    Raises:
        BarrierError: A loss that is not known.
    """
    if losses is None:
        return {name: name for name in DEFAULT}
    if isinstance(losses, str) or callable(losses) or hasattr(losses, "loss"):
        losses = (losses,)
    pairs = losses.items() if isinstance(losses, Mapping) else [(_name(loss), loss) for loss in losses]
    found: dict[str, str | Callable] = {}
    for name, loss in pairs:
        if isinstance(loss, str) and loss not in UNITS:
            raise BarrierError(
                f"unknown loss {loss!r}; known by name are {', '.join(UNITS)}; else give a callable "
                "(prediction, observed) -> loss per datum, or a Pyro ELBO object"
            )
        if name in found:
            raise BarrierError(f"loss '{name}' is given twice; give a mapping of distinct names to losses")
        found[name] = loss
    if not found:
        raise BarrierError("losses is empty; leave it out for the default ones")
    return found


def _name(loss) -> str:
    if isinstance(loss, str):
        return loss
    if not callable(loss) and not hasattr(loss, "loss"):
        raise BarrierError(f"a loss is a name, a callable or a Pyro ELBO object; got {type(loss).__name__}")
    return getattr(loss, "__name__", type(loss).__name__)


def is_pyro_loss(loss) -> bool:
    """Whether a loss is a Pyro ELBO object, evaluated on guides rather than on draws."""
    return not isinstance(loss, str) and callable(getattr(loss, "loss", None))


def is_task_loss(loss) -> bool:
    """Whether a loss is a callable that judges predictions."""
    return callable(loss) and not is_pyro_loss(loss)


@dataclass
class Sums:
    """Running sums over batches of one data set at one tau.

    Attributes:
        losses: Name -> loss.
        weights: Of the bootstrap over draws, ``(draws, draws)``; None once the sums are made.
        pseudo: Loss name -> sum over data of pseudo-values, ``(draws,)``, for the losses that are sums over data.
        likelihood: Sum over data of the scaled log likelihood, ``(draws,)``.
        effective: Sum over data of the effective number of draws behind the predictive likelihood.
        drift: Name of a predictive loss -> sum over data of how far its estimate moves from half the draws to all.
        seen: Number of data so far.
    """

    losses: Mapping[str, str | Callable]
    weights: Tensor | None
    pseudo: dict[str, np.ndarray] = field(default_factory=dict)
    likelihood: np.ndarray | float = 0.0
    effective: float = 0.0
    drift: dict[str, float] = field(default_factory=dict)
    seen: int = 0

    def add(self, draws: Draws) -> None:
        """Adds one batch."""
        self.likelihood = self.likelihood + to_numpy(draws.likelihood)
        self.add_log_likelihood(draws.log_likelihood.flatten(1).double())
        for name, loss in self.losses.items():
            if loss == "error_rate":
                self._add(name, task_pseudo_values(name, wrong_class, draws.prediction, draws.target, self.weights))
            elif is_task_loss(loss):
                self._add(name, task_pseudo_values(name, loss, draws.prediction, draws.target, self.weights))

    def add_log_likelihood(self, log_likelihood: Tensor) -> None:
        """Adds the losses that need nothing but the log likelihood ``(draws, data)`` of one batch, in nats."""
        self.seen += log_likelihood.shape[1]
        for name, loss in self.losses.items():
            if loss == "expected_nll":
                self._add(name, -log_likelihood.sum(1))
            elif loss == "predictive_nll":
                pseudo = predictive_pseudo_values(log_likelihood)
                self._add(name, pseudo)
                self.drift[name] = self.drift.get(name, 0.0) + float(pseudo.mean() - _by_halves(log_likelihood))
                self.effective += float(effective_draws(log_likelihood).sum())

    def _add(self, name: str, value: Tensor) -> None:
        self.pseudo[name] = self.pseudo.get(name, 0.0) + to_numpy(value)

    def merge(self, other: Sums) -> None:
        """Adds the sums over other data."""
        self.likelihood = self.likelihood + other.likelihood
        self.effective += other.effective
        self.seen += other.seen
        for mine, theirs in ((self.pseudo, other.pseudo), (self.drift, other.drift)):
            mine |= {name: mine.get(name, 0.0) + value for name, value in theirs.items()}

    def bare(self) -> Sums:
        """The sums alone, without losses and weights: what travels between processes."""
        return replace(self, losses={}, weights=None)

    def finish(self, kl: np.ndarray, data: int, temperature: float) -> dict[str, np.ndarray]:
        """Pseudo-values per datum of every loss, ``(draws,)``.

        Args:
            kl: KL of each draw, ``(draws,)`` nats.
            data: Number of data the model stands for.
            temperature: Weight of the KL in the negative ELBO.
        """
        out = {}
        for name, loss in self.losses.items():
            if loss == "kl":
                out[name] = kl / data
            elif loss == "elbo":
                out[name] = -self.likelihood / self.seen + temperature * kl / data
            elif name in self.pseudo:
                out[name] = self.pseudo[name] / self.seen
        return out


def predictive_pseudo_values(log_likelihood: Tensor) -> Tensor:
    """Jackknife pseudo-values of -sum_i log mean_s exp(log_likelihood[s, i]), ``(draws,)``, nats.

    Leaving out draw s needs the sum of all others; sums from the left and from the right give it without cancellation.

    Args:
        log_likelihood: ``(draws, data)``.
    """
    count = log_likelihood.shape[0]
    left = torch.logcumsumexp(log_likelihood, 0)
    right = torch.logcumsumexp(log_likelihood.flip(0), 0).flip(0)
    nothing = torch.full_like(left[:1], -torch.inf)
    others = torch.logaddexp(torch.cat([nothing, left[:-1]]), torch.cat([right[1:], nothing]))
    whole = -(left[-1] - np.log(count)).sum()
    without = -(others - np.log(count - 1)).sum(1)
    return count * whole - (count - 1) * without


def _by_halves(log_likelihood: Tensor) -> Tensor:
    """The jackknife's estimate from either half of the draws, averaged; NaN from fewer than 4 draws.

    What is linear in the draws is the same in the halves' mean and in the whole; what differs is the bias that is left,
    which falls at least with the square of the number of draws, and the weight of a tail that few draws reach.
    """
    halves = [log_likelihood[i::2] for i in range(2)]
    if min(len(half) for half in halves) < 2:
        return log_likelihood.new_full((), torch.nan)
    weights = [len(half) / len(log_likelihood) for half in halves]
    return sum(w * predictive_pseudo_values(half).mean() for w, half in zip(weights, halves, strict=True))


def effective_draws(log_likelihood: Tensor) -> Tensor:
    """Kish's effective number of draws behind each datum's mean likelihood, ``(data,)``."""
    weights = torch.softmax(log_likelihood, 0)
    return 1 / weights.square().sum(0)


def bootstrap_weights(count: int, seed: int) -> Tensor:
    """Weights of the Bayesian bootstrap (Rubin 1981), ``(count, count)``: each row re-weights the draws."""
    generator = torch.Generator().manual_seed(seed)
    raw = -torch.rand(count, count, generator=generator, dtype=torch.float64, device="cpu").log()
    return raw / raw.sum(1, keepdim=True)


def task_pseudo_values(name: str, loss: TaskLoss, prediction: Tensor, observed: Tensor, weights: Tensor) -> Tensor:
    """A task's loss of the averaged prediction, summed over data, with the spread of its bootstrap, ``(draws,)``.

    Task losses are steps in the prediction, for which the jackknife fails; re-weighting all draws at once does not. The
    replicates stand in for the draws: their mean is the loss of the plain average, and their spread over sqrt(draws) is
    the bootstrap's standard error. The same weights at every tau keep differences paired.

    Args:
        name: Name of the loss, for messages.
        loss: (mean prediction ``(*datum, ...)``, observed) -> loss per datum.
        prediction: ``(draws, *datum, ...)``.
        observed: ``(*datum, ...)``.
        weights: Of the bootstrap, ``(draws, draws)``.

    Raises:
        BarrierError: The loss is not one figure per datum.
    """
    count = prediction.shape[0]

    def judge(mean: Tensor) -> Tensor:
        out = loss(mean, observed)
        if not isinstance(out, Tensor) or out.dim() == 0 or out.shape[0] != mean.shape[0]:
            got = f"a tensor of shape {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
            raise BarrierError(
                f"loss '{name}': expected one loss per datum, a tensor ({mean.shape[0]}, ...), got {got}; "
                "the average over data is taken for you"
            )
        return out.double().sum()

    whole = judge(prediction.mean(0))
    mixed = torch.tensordot(weights.to(prediction), prediction, 1)
    replicates = torch.stack([judge(mean) for mean in mixed])
    spread = (count * (count + 1) / (count - 1)) ** 0.5  # a replicate's variance is that of a mean over count + 1
    return whole + spread * (replicates - replicates.mean())


def wrong_class(probabilities: Tensor, observed: Tensor) -> Tensor:
    """1 where the most probable class is not the observed one, ``(*datum)``."""
    return (probabilities.argmax(-1) != observed).double()


def kl_per_draw(draws: Draws, log_q: Tensor, sites: Collection[str]) -> np.ndarray:
    """KL(q || prior) of each draw, ``(draws,)`` nats: closed form where known, log q - log p elsewhere."""
    kl = draws.analytic.double() - draws.rest.double()
    if not set(sites) <= set(draws.closed):  # else the difference is zero, but for rounding
        kl = kl + log_q.double() - draws.log_q_closed.double()
    return to_numpy(kl)


def to_numpy(value: Tensor) -> np.ndarray:
    """A tensor's values in float64, on the host."""
    return value.detach().double().cpu().numpy()
