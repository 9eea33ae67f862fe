"""A guide made symmetric: the equal mixture of its relabelings, and what that is worth in nats.

For a group G and a guide q, the mixture ``q_S(z) = 1/|S| sum over g in S of q(g^-1 z)`` over any set S of relabelings
has an ELBO between those of q and of the full mixture over G, because the KL to a symmetric posterior is convex and the
same for every term:

    ELBO(q) <= ELBO(q_S) <= ELBO(q) + log |S|      and      E over S of ELBO(q_S) <= ELBO(q_G) <= ELBO(q) + log |G|.

So a finite mixture bounds the full one from below, the more tightly the larger it is: the bound of Gelberg et al.
(2024), after the semi-implicit one of Yin & Zhou (2018).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_align.errors import GuideError
from pyro_align.guides import DenseNormal, LowRankNormal, MeanFieldNormal, read_guide
from pyro_align.matching import elements
from pyro_align.model.draws import DrawDensity
from pyro_align.model.keywords import options_apart
from pyro_align.symmetry.element import Permutation
from pyro_align.symmetry.group import Symmetry
from pyro_align.symmetry.spec import SymmetrySpec, bound

Gaussian = MeanFieldNormal | DenseNormal | LowRankNormal


@dataclass(frozen=True)
class SymmetrizedELBO:
    """What making a guide symmetric is worth. All in nats, for the whole data set.

    Attributes:
        elbo: ELBO of the guide as it is.
        elbo_se: Its standard error.
        mixture: ELBO of the mixture over the relabelings taken: a lower bound on that of the full mixture, in
            expectation over the relabelings.
        mixture_se: Its standard error.
        upper: Upper bound on the ELBO of the full mixture: ``elbo + log |G|``.
        components: Number of relabelings taken.
        exhaustive: Whether they are the whole group; then ``mixture`` is no bound but the ELBO itself.

    Example:
        >>> print(SymmetrizedELBO(-3.0, 0.01, -2.31, 0.01, -2.307, 2, True))
        ELBO -3 +- 0.01 nats, of the mixture over 2 relabelings -2.31 +- 0.01
    """

    elbo: float
    elbo_se: float
    mixture: float
    mixture_se: float
    upper: float
    components: int
    exhaustive: bool

    @property
    def gain(self) -> float:
        """How much the mixture's ELBO exceeds the guide's; at most ``log(components)``."""
        return self.mixture - self.elbo

    def summary(self) -> pd.DataFrame:
        """Rows ``guide`` and ``mixture``, columns ``elbo`` and ``se`` in nats, and the number of ``components``."""
        rows = {
            "guide": {"elbo": self.elbo, "se": self.elbo_se, "components": 1},
            "mixture": {"elbo": self.mixture, "se": self.mixture_se, "components": self.components},
        }
        return pd.DataFrame.from_dict(rows, orient="index")

    def __str__(self) -> str:
        bound = "" if self.exhaustive else f"; over all relabelings at most {self.upper:.6g}"
        return (
            f"ELBO {self.elbo:.6g} +- {self.elbo_se:.2g} nats, of the mixture over {self.components} relabelings "
            f"{self.mixture:.6g} +- {self.mixture_se:.2g}{bound}"
        )


@dataclass(frozen=True, eq=False)
class SymmetrizedGuide:
    """The equal mixture of a guide's relabelings, as a Pyro guide. Made by :func:`symmetrize`.

    Attributes:
        posterior: The guide that was made symmetric, as a snapshot.
        symmetry: The group.
        permutations: The relabelings, the identity first.
        exhaustive: Whether they are the whole group.
    """

    posterior: Gaussian
    symmetry: Symmetry
    permutations: tuple[Permutation, ...]
    exhaustive: bool

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draws once, as Pyro guides do: every site, with the mixture's log density on the first."""
        component = int(torch.randint(len(self.permutations), (), device="cpu"))
        seed = int(torch.randint(2**31, (), device="cpu"))
        values, log_q = self.sample(1, generator=torch.Generator().manual_seed(seed), component=component)
        out = {}
        for k, (name, value) in enumerate(values.items()):
            density = log_q[0] if k == 0 else torch.zeros_like(log_q[0])
            out[name] = pyro.sample(name, dist.Delta(value[0], log_density=density, event_dim=value.dim() - 1))
        return out

    def sample(
        self, num_samples: int, *, generator: torch.Generator | int = 0, component: int | None = None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Draws and their log density under the mixture.

        Args:
            num_samples: Number of draws, shared out evenly among the relabelings.
            generator: A CPU ``torch.Generator`` or a seed.
            component: Draw from this relabeling alone.

        Returns:
            Site -> ``(draws, *site_shape)``, and ``(draws,)`` nats.
        """
        values = self.posterior.push(self.posterior.noise(num_samples, generator=generator))
        values = self._shared_out(values) if component is None else self._act(self.permutations[component], values)
        return values, self.log_prob(values)

    def _shared_out(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Stratified: draw i is moved by relabeling i mod count."""
        moved = {s: v.clone() for s, v in values.items()}
        for k, p in enumerate(self.permutations):
            part = self._act(p, {s: v[k :: len(self.permutations)] for s, v in values.items()})
            for site, value in part.items():
                moved[site][k :: len(self.permutations)] = value
        return moved

    def log_prob(self, values: Mapping[str, Tensor]) -> Tensor:
        """Log density of constrained values ``(draws, *site_shape)`` under the mixture, ``(draws,)`` nats."""
        terms = [self.posterior.log_prob(self._act(p.inverse(), values)) for p in self.permutations]
        return torch.stack(terms).logsumexp(0) - math.log(len(terms))

    @options_apart
    def elbo(
        self, model: Callable[..., Any], *args: Any, num_samples: int = 1000, seed: int = 0, **kwargs: Any
    ) -> SymmetrizedELBO:
        """Estimates the ELBO of the guide and of the mixture from the same draws.

        Args:
            model: The Pyro model, symmetric under :attr:`symmetry`.
            args: Its arguments.
            num_samples: Number of draws.
            seed: Seed of the draws.
            kwargs: Its keyword arguments.
        """
        noise = self.posterior.noise(num_samples, generator=torch.Generator().manual_seed(seed))
        values, log_q = self.posterior.push_with_log_prob(noise)
        log_joint, _ = DrawDensity(model, args, kwargs).log_probs(values)
        plain, mixed = log_joint - log_q.double(), log_joint - self.log_prob(self._shared_out(values)).double()
        root = math.sqrt(num_samples)
        return SymmetrizedELBO(
            float(plain.mean()),
            float(plain.std()) / root,
            float(mixed.mean()),
            float(mixed.std()) / root,
            float(plain.mean()) + self.symmetry.log_order,
            len(self.permutations),
            self.exhaustive,
        )

    def _act(self, p: Permutation, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {k: p.apply_site(k, v, batch_dims=1) if k in self.symmetry.sites else v for k, v in values.items()}


def symmetrize(
    guide: Any, symmetry: Symmetry | SymmetrySpec, *, components: int = 120, seed: int = 0
) -> SymmetrizedGuide:
    """The equal mixture over relabelings of a guide: all of them where there are at most ``components``.

    Args:
        guide: A Gaussian guide, or the :class:`~pyro_align.guides.Posterior` read from one.
        symmetry: The group.
        components: Largest number of relabelings; of a larger group as many are drawn without replacement, with the
            identity.
        seed: Seed of that.

    Raises:
        GuideError: The family's density cannot be evaluated at given values, or the guide lacks a site.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> from pyro.infer.autoguide import AutoNormal
        >>> from pyro_align import SymmetrySpec, symmetrize
        >>> def model():
        ...     loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...     pyro.sample("y", dist.Normal(loc.square().sum(), 0.1), obs=torch.tensor(9.0))
        >>> guide = AutoNormal(model, init_loc_fn=lambda site: torch.tensor([0.0, 3.0]), init_scale=0.1)
        >>> _ = guide()
        >>> found = symmetrize(guide, SymmetrySpec({"loc": ("k",)})).elbo(model)
        >>> round(found.gain, 3), found.exhaustive  # log 2: the two copies do not overlap
        (0.693, True)
        >>> mixture = symmetrize(guide, SymmetrySpec({"loc": ("k",)}))
        >>> mixture()["loc"].shape
        torch.Size([2])
    """
    posterior = read_guide(guide)
    if not isinstance(posterior, Gaussian):
        raise GuideError(
            f"{type(posterior).__name__} has no density that can be evaluated at given values; use a Gaussian guide"
        )
    if components < 1:
        raise ValueError(f"components must be at least 1, got {components}")
    symmetry = bound(symmetry, posterior.shapes, of="guide", error=GuideError)
    if symmetry.log_order <= math.log(components) + 1e-9:
        return SymmetrizedGuide(posterior, symmetry, tuple(elements(symmetry)), True)
    generator = torch.Generator().manual_seed(seed)
    drawn = [symmetry.identity()]
    while len(drawn) < components:  # without replacement: a relabeling taken twice would weigh twice
        candidate = symmetry.random(generator)
        if not any(candidate == p for p in drawn):
            drawn.append(candidate)
    return SymmetrizedGuide(posterior, symmetry, tuple(drawn), False)
