"""Curved paths, trained to be low: a quadratic Bezier curve or a chain of two pieces with a corner.

Two posteriors that a straight path joins only over a barrier may still be joined by a curved one (Garipov et al. 2018;
Draxler et al. 2018). The control point is a mean-field Gaussian of its own; it starts where the curve is the
displacement between the endpoints, and is trained on the negative ELBO averaged over tau (Garipov et al. 2018, eq. 2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from tqdm.auto import trange

from pyro_align.errors import GuideError, TraceError
from pyro_align.guides import MeanFieldNormal, check_distinct, read_guide
from pyro_align.guides.sites import check_tau
from pyro_align.model.density import Density
from pyro_align.model.enumerate import Enumerated
from pyro_align.model.forward import Records, record, with_rows
from pyro_align.model.guards import untouched
from pyro_align.model.keywords import options_apart
from pyro_align.model.normals import normal_kl, normal_log_prob
from pyro_align.model.observations import latent_terms, observations, scaled_by_hand
from pyro_align.paths.geodesic import PosteriorPath

Moments = dict[str, tuple[Tensor, Tensor]]

KINDS = ("bezier", "chain")


@dataclass(frozen=True, eq=False)
class Batches:
    """Random batches of a model's arguments.

    Attributes:
        args: Positional arguments, with all data.
        kwargs: Keyword arguments.
        size: Data in a batch, or None for all of them.
        full: Number of data.
        by_hand: Whether the model scales a batch's likelihood to that of all data itself, without a plate.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    size: int | None
    full: int
    by_hand: bool = False

    @classmethod
    def of(
        cls, model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], size: int | None
    ) -> Batches:
        """The batches of a model's arguments."""
        if size is None:
            return cls(args, kwargs, None, 0)
        full = next(
            (len(leaf) for leaf in tree_leaves((args, dict(kwargs))) if isinstance(leaf, Tensor) and leaf.dim()), 0
        )
        if not 1 <= size <= full:
            raise ValueError(f"batch_size: expected 1 to {full}, the length of the first tensor argument; got {size}")
        part = with_rows(args, kwargs, full, slice(size))
        with untouched(model, seed=0), torch.no_grad():
            by_hand = scaled_by_hand(record(model, args, kwargs, {}), record(model, *part, {}))
        return cls(args, kwargs, size, full, by_hand)

    def draw(self, generator: torch.Generator) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """The arguments of one batch."""
        if self.size is None:
            return self.args, self.kwargs
        rows = torch.randperm(self.full, generator=generator)[: self.size]
        return with_rows(self.args, self.kwargs, self.full, rows)

    def scale(self, stand: float) -> float:
        """How many times a batch's likelihood counts: as the model says, else by its share of the data."""
        return stand if self.size is None or stand != 1 else self.full / self.size


@dataclass(frozen=True, eq=False)
class LearnedPath(PosteriorPath):
    """A path between two mean-field Gaussians through, or towards, a third; tau -> guide, like any path.

    Attributes:
        start: The posterior at 0.
        control: The control point of the curve, or the corner of the chain.
        end: The posterior at 1.
        kind: ``"bezier"`` or ``"chain"``.
        losses: Negative ELBO of every training step, nats; noisy.
    """

    start: MeanFieldNormal = field(repr=False)
    control: MeanFieldNormal = field(repr=False)
    end: MeanFieldNormal = field(repr=False)
    kind: str = "bezier"
    losses: tuple[float, ...] = field(default=(), repr=False)

    def posterior(self, tau: float) -> MeanFieldNormal:
        tau = check_tau(tau)
        if tau in (0.0, 1.0):
            return cast(MeanFieldNormal, self.start.displace(self.end, tau))
        moments = blend(_moments(self.start), _moments(self.control), _moments(self.end), tau, self.kind)
        return self.start.with_moments(moments)


@options_apart
def learn_path(
    model: Callable[..., Any],
    guide_a: Any,
    guide_b: Any,
    *args: Any,
    kind: str = "bezier",
    max_steps: int = 500,
    learning_rate: float = 0.01,
    batch_size: int | None = None,
    temperature: float = 1.0,
    seed: int = 0,
    progress: bool = False,
    **kwargs: Any,
) -> LearnedPath:
    """Trains the control point of a path between two posteriors on the negative ELBO, averaged over tau.

    Args:
        model: The Pyro model.
        guide_a: The guide at ``tau = 0``: mean-field Gaussian, or a posterior read from one.
        guide_b: The guide at ``tau = 1``; align it first.
        *args: The model's arguments.
        kind: ``"bezier"``, a quadratic Bezier curve, or ``"chain"``, two straight pieces.
        max_steps: Steps of Adam; each takes one tau and one draw, the learning rate falls to a hundredth.
        learning_rate: Its learning rate.
        batch_size: Data in each step's batch, drawn anew without replacement from all tensors in the arguments that are
            as long as the first; None takes all data. The batch stands for all data, be it that the model scales its
            likelihood itself (``plate("data", size, subsample=x)``) or not. A model that subsamples by itself
            (``plate("data", n, subsample_size=m)``) draws again at every step, and needs no ``batch_size``.
        temperature: Weight of the KL.
        seed: Seed of taus and draws.
        progress: Whether to show a progress bar.
        **kwargs: The model's keyword arguments.

    Raises:
        GuideError: The guides are of another family, or do not fit each other.
        TraceError: The model cannot be run.

    Example:
        >>> import torch
        >>> from pyro_align.demo.network import bayesian_mlp
        >>> from pyro_align.demo.training import Recipe, fit
        >>> from pyro_align import learn_path
        >>> model, x, y = bayesian_mlp([4, 8, 3]), torch.randn(50, 4), torch.arange(50) % 3
        >>> a, b = (fit(model, x, y, seed=s, recipe=Recipe(epochs=1), progress=False) for s in range(2))
        >>> path = learn_path(model, a, b, x, y, kind="chain", max_steps=5)
        >>> len(path.losses), type(path(0.5)).__name__
        (5, 'AutoNormal')
    """
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    if max_steps < 1:
        raise ValueError(f"max_steps: expected at least 1, got {max_steps}")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature: expected a finite number >= 0, the weight of the KL; got {temperature!r}")
    check_distinct(guide_a, guide_b)
    start, end = _mean_field(guide_a), _mean_field(guide_b)
    start.check_compatible(end)
    density, batches = Density(model, args, kwargs), Batches.of(model, args, kwargs, batch_size)
    middle = cast(MeanFieldNormal, start.displace(end, 0.5))
    leaves = {k: (m.clone().requires_grad_(), s.log().requires_grad_()) for k, (m, s) in _moments(middle).items()}
    ends, generator, losses = (_moments(start), _moments(end)), torch.Generator().manual_seed(seed), []
    flat = [t for pair in leaves.values() for t in pair]
    optimizer = torch.optim.Adam(flat, lr=learning_rate)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.01 ** (1 / max_steps))
    with untouched(model, seed=seed):
        for _ in trange(max_steps, desc="path", disable=not progress):
            tau = float(torch.rand((), generator=generator, dtype=torch.float64, device="cpu"))
            control = {k: (m, log_s.exp()) for k, (m, log_s) in leaves.items()}
            moments = blend(ends[0], control, ends[1], tau, kind)
            loss = negative_elbo(density, start, moments, temperature, generator, batches)
            for leaf, gradient in zip(flat, torch.autograd.grad(loss, flat), strict=True):
                leaf.grad = gradient  # of the control point alone: the model's own parameters get none
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
    learned = {k: (m.detach(), log_s.detach().exp()) for k, (m, log_s) in leaves.items()}
    return LearnedPath(start, start.with_moments(learned), end, kind, tuple(losses))


def blend(start: Moments, control: Moments, end: Moments, tau: float, kind: str) -> Moments:
    """Location and standard deviation at ``tau``; both are blended linearly, so scales stay positive."""
    if kind == "bezier":
        weights = ((1 - tau) ** 2, 2 * tau * (1 - tau), tau**2)
    else:
        weights = (max(0.0, 1 - 2 * tau), 1 - abs(2 * tau - 1), max(0.0, 2 * tau - 1))
    a, b, c = weights
    mixed = {k: [a * x + b * y + c * z for x, y, z in zip(start[k], control[k], end[k], strict=True)] for k in start}
    return {k: (loc, scale) for k, (loc, scale) in mixed.items()}


def negative_elbo(
    density: Density,
    q: MeanFieldNormal,
    moments: Moments,
    temperature: float,
    generator: torch.Generator,
    batches: Batches,
) -> Tensor:
    """A draw's -log p(y | z) + T KL, nats, differentiable in the moments.

    The KL of a site with a Normal prior is in closed form, given the draws of the sites that its prior depends on. In a
    wide network most weights are at their prior; one draw's log q - log p of each would drown everything else.
    """
    noise, values, volume = q.noise(1, generator=generator), {}, {}
    for name, spec in q.sites.items():
        loc, scale = moments[name]
        latent = (loc + scale * noise[name][0])[None]
        values[name] = spec.constrain(latent)[0]
        volume[name] = spec.log_volume(latent, values[name][None]).sum()
    try:
        records = Records(density.resampled(*batches.draw(generator)).run(values))
    except TraceError as error:
        if batches.size is None:
            raise
        raise TraceError(
            f"{error}. batch_size= cuts the model's arguments; a model with latents for each datum takes its own "
            "subsample, pyro.plate(..., subsample_size=), and no batch_size"
        ) from error
    enumerated = Enumerated(records) if density.enumerated else None
    data = observations(records, enumerated, by_hand=batches.by_hand)
    terms, kl = latent_terms(records, enumerated), torch.zeros_like(data.total)
    for name, spec in q.sites.items():
        loc, scale = moments[name]
        known = spec.is_real and name in terms  # the prior depends on no discrete site
        closed = normal_kl(records.latent[name], loc, scale) if known else None
        if closed is None:
            kl = kl + normal_log_prob(loc + scale * noise[name][0], loc, scale) - volume[name]
        else:
            kl = kl + closed
            del terms[name]
    return temperature * (kl - sum(terms.values())) - data.total * batches.scale(data.stand)


def _mean_field(guide: Any) -> MeanFieldNormal:
    q = read_guide(guide)
    if not isinstance(q, MeanFieldNormal):
        raise GuideError(f"learn_path needs mean-field Gaussians, got {type(q).__name__}")
    return q


def _moments(q: MeanFieldNormal) -> Moments:
    return {name: q.marginal(name) for name in q.sites}
