"""Models and paths whose barriers are known, or quick to evaluate."""

import math
from dataclasses import dataclass

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal, init_to_sample

from pyro_align.paths.geodesic import displacement

NOISE = 0.7
PRIOR = 1.5


def make_guide(model, *args, seed=0, scale=0.1, guide_type=AutoNormal, **kwargs):
    """A guide with parameters of its own, at a random place."""
    pyro.set_rng_seed(seed)
    with pyro.get_param_store().scope():
        guide = guide_type(model, init_loc_fn=init_to_sample, init_scale=scale)
        guide(*args, **kwargs)
    return guide


def make_path(model, *args, scales=(0.1, 0.1), **kwargs):
    """The displacement between two guides at random places."""
    ends = [make_guide(model, *args, seed=i + 1, scale=s, **kwargs) for i, s in enumerate(scales)]
    return displacement(*ends)


def linear(x, y=None):
    """Bayesian linear regression with known noise."""
    w = pyro.sample("w", dist.Normal(0.0, PRIOR).expand([x.shape[1]]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, NOISE), obs=y)


def linear_data(n=12, d=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator)
    return x, x.sum(1) + NOISE * torch.randn(n, generator=generator)


@dataclass
class Truth:
    """Closed forms of every loss of `linear` at one tau, per datum."""

    expected_nll: float
    predictive_nll: float
    kl: float

    def elbo(self, temperature=1.0):
        return self.expected_nll + temperature * self.kl


def linear_truth(path, tau, x, y):
    """Expected NLL: E N(w; m, s^2) of the quadratic; predictive: the marginal N(y; x m, noise^2 + x^2 s^2)."""
    loc, scale = path.posterior(tau).marginal("w")
    spread, residual = (x**2) @ scale**2, (y - x @ loc) ** 2
    expected = 0.5 * math.log(2 * math.pi * NOISE**2) + (residual + spread).mean() / (2 * NOISE**2)
    variance = NOISE**2 + spread
    predictive = (0.5 * (2 * math.pi * variance).log() + residual / (2 * variance)).mean()
    kl = ((PRIOR / scale).log() + (scale**2 + loc**2) / (2 * PRIOR**2) - 0.5).sum() / len(x)
    return Truth(float(expected), float(predictive), float(kl))


def true_curve(path, taus, x, y, loss, temperature=1.0):
    truths = [linear_truth(path, float(tau), x, y) for tau in taus]
    return np.array([t.elbo(temperature) if loss == "negative_elbo" else getattr(t, loss) for t in truths])


def excess_of(curve, taus):
    return curve - (1 - taus) * curve[0] - taus * curve[-1]


def classifier(x, y=None):
    """A network with one hidden layer and three classes."""
    w1 = pyro.sample("w1", dist.Normal(0.0, 1.0).expand([x.shape[1], 6]).to_event(2))
    b1 = pyro.sample("b1", dist.Normal(0.0, 1.0).expand([6]).to_event(1))
    w2 = pyro.sample("w2", dist.Normal(0.0, 0.7).expand([6, 3]).to_event(2))
    logits = torch.relu(x @ w1 + b1) @ w2
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Categorical(logits=logits), obs=y)


def classifier_data(n=40, d=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator)
    return x, torch.randint(0, 3, (n,), generator=generator)
