"""Losses on a path by which to choose a relabeling: a number for a finished path, or a gradient on the way to one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_align.barrier.evaluate import loss_at
from pyro_align.errors import GuideError, MatchError
from pyro_align.guides import MeanFieldNormal, read_guide
from pyro_align.guides.sites import check_tau
from pyro_align.model.density import Density
from pyro_align.model.guards import untouched
from pyro_align.model.keywords import options_apart
from pyro_align.model.probe import probe
from pyro_align.paths.geodesic import Path
from pyro_align.paths.learned import Batches, negative_elbo


@dataclass(frozen=True, eq=False, init=False)
class PathLoss:
    """A loss at one point of a path, by which :func:`~pyro_align.align` can choose among restarts.

    The Wasserstein distance is an imperfect proxy of the barrier: among local optima the nearest need not be the one
    with the lowest loss on the way. This looks at the loss itself.

    Args:
        model: The Pyro model.
        args: Its arguments, data included.
        loss: ``"predictive_nll"``, ``"expected_nll"`` or ``"negative_elbo"``, in nats per datum.
        tau: Where on the path.
        num_samples: Posterior draws.
        temperature: Weight of the KL in ``"negative_elbo"``.
        seed: Seed of the draws; the same for every path, so that differences count.
        kwargs: The model's keyword arguments.

    Example:
        >>> import torch
        >>> from pyro_align.objectives import PathLoss
        >>> from pyro_align.demo.network import bayesian_mlp
        >>> x, y = torch.randn(50, 4), torch.arange(50) % 3
        >>> PathLoss(bayesian_mlp([4, 8, 3]), x, y, num_samples=4).tau
        0.5
    """

    model: Callable[..., Any] = field(repr=False)
    args: tuple[Any, ...] = field(repr=False)
    kwargs: Mapping[str, Any] = field(repr=False)
    loss: Any
    tau: float
    num_samples: int
    temperature: float
    seed: int

    @options_apart
    def __init__(
        self,
        model: Callable[..., Any],
        *args: Any,
        loss: Any = "predictive_nll",
        tau: float = 0.5,
        num_samples: int = 8,
        temperature: float = 1.0,
        seed: int = 0,
        **kwargs: Any,
    ):
        values = {"model": model, "args": args, "kwargs": kwargs, "loss": loss, "tau": check_tau(tau)}
        values |= {"num_samples": num_samples, "temperature": temperature, "seed": seed}
        self.__dict__.update(values)

    def __call__(self, path: Path) -> float:
        """The loss on a path, nats per datum."""
        options = {"num_samples": self.num_samples, "temperature": self.temperature, "seed": self.seed}
        return loss_at(self.model, path, self.tau, self.args, self.kwargs, loss=self.loss, **options)


@dataclass(frozen=True, eq=False, init=False)
class MidpointLoss:
    """The negative ELBO per datum half-way to a relabeled posterior, differentiable: for matchers that use gradients.

    :class:`~pyro_align.matching.Sinkhorn` and :class:`~pyro_align.matching.StraightThrough` take it as their ``loss``.
    They search with the features of ``divergence="w2"``, the default, for mean-field Gaussians.

    Args:
        model: The Pyro model.
        guide_a: The guide that stays, or a posterior read from one: mean-field Gaussian.
        args: The model's arguments, data included.
        tau: Where on the path, 0.5 for the middle.
        num_samples: Draws, the same at every call, so that the loss is a function of the relabeling. A search fits
            itself to few draws: judge what it finds on others, by :class:`PathLoss` with another seed.
        batch_size: Data that each draw is judged on, see :func:`~pyro_align.learn_path`; None takes all.
        temperature: Weight of the KL; 0 leaves the expected NLL.
        seed: Seed of draws and data.
        kwargs: The model's keyword arguments.

    Raises:
        GuideError: The guide is of another family.
        MatchError: ``num_samples`` is no positive number.
        TraceError, BarrierError: The model cannot be run with these arguments.

    Example:
        >>> import torch
        >>> from pyro_align import align, find_symmetry
        >>> from pyro_align.objectives import MidpointLoss
        >>> from pyro_align.demo.network import bayesian_mlp
        >>> from pyro_align.demo.training import Recipe, fit
        >>> from pyro_align.matching import Sinkhorn
        >>> model, x, y = bayesian_mlp([4, 8, 3]), torch.randn(50, 4), torch.arange(50) % 3
        >>> a, b = (fit(model, x, y, seed=s, recipe=Recipe(epochs=5), progress=False) for s in (0, 1))
        >>> matcher = Sinkhorn(loss=MidpointLoss(model, a, x, y, num_samples=4), max_steps=10)
        >>> align(a, b, find_symmetry(model, x, y), matcher=matcher).match.status
        'converged'
    """

    start: MeanFieldNormal = field(repr=False)
    density: Density = field(repr=False)
    batches: Batches = field(repr=False)
    tau: float
    num_samples: int
    temperature: float
    seed: int
    num_data: int

    @options_apart
    def __init__(
        self,
        model: Callable[..., Any],
        guide_a: Any,
        *args: Any,
        tau: float = 0.5,
        num_samples: int = 16,
        batch_size: int | None = None,
        temperature: float = 1.0,
        seed: int = 0,
        **kwargs: Any,
    ):
        if not (isinstance(num_samples, int) and num_samples >= 1):
            raise MatchError(f"num_samples: expected at least 1, got {num_samples!r}")
        start = read_guide(guide_a)
        if not isinstance(start, MeanFieldNormal):
            raise GuideError(f"MidpointLoss needs a mean-field Gaussian, got {type(start).__name__}")
        values = {"start": start, "density": Density(model, args, kwargs), "tau": check_tau(tau)}
        values |= {"batches": Batches.of(model, args, kwargs, batch_size), "num_samples": num_samples}
        values |= {"temperature": temperature, "seed": seed}
        draw = {site: value[0] for site, value in start.push(start.noise(1, generator=seed)).items()}
        values["num_data"] = probe(model, args, kwargs, start, draw, seed)[0].full
        self.__dict__.update(values)

    def __call__(self, relabeled: Mapping[str, tuple[Tensor, ...]]) -> Tensor:
        """The negative ELBO, nats per datum.

        Args:
            relabeled: Site -> location and standard deviation of the relabeled posterior, ``unconstrained_shape``.

        Raises:
            MatchError: There is not a location and a standard deviation for every site.
        """
        moments = {}
        for site in self.start.sites:
            if len(there := relabeled.get(site, ())) != 2:
                raise MatchError(
                    f"site '{site}': expected a location and a standard deviation, got {len(there)} features; "
                    "MidpointLoss goes with divergence='w2' and mean-field Gaussians"
                )
            here = self.start.marginal(site)
            moments[site] = tuple((1 - self.tau) * h + self.tau * t.to(h) for h, t in zip(here, there, strict=True))
        generator = torch.Generator().manual_seed(self.seed)
        with untouched(self.density.model, seed=self.seed):
            losses = [
                negative_elbo(self.density, self.start, moments, self.temperature, generator, self.batches)
                for _ in range(self.num_samples)
            ]
        return torch.stack(losses).mean() / self.num_data
