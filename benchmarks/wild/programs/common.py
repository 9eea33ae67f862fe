"""What the programs share."""

import pyro
import pyro.distributions as dist
import torch

S, plate = pyro.sample, pyro.plate
ENUMERATE = {"enumerate": "parallel"}


def normal(name, *shape, loc=0.0, scale=1.0):
    """Independent Gaussians, as one event."""
    return S(name, dist.Normal(loc, scale).expand(list(shape)).to_event(len(shape)))


def positive(name, *shape):
    """Independent Gammas."""
    return S(name, dist.Gamma(2.0, 1.0).expand(list(shape)).to_event(len(shape)))


def simplex(name, k, *batch, concentration=1.0):
    """A Dirichlet, or several."""
    return S(name, dist.Dirichlet(torch.full((*batch, k), concentration)).to_event(len(batch)))


def category(name, probs):
    """A category that is summed out."""
    return S(name, dist.Categorical(probs), infer=ENUMERATE)


def counts(*shape, high=5):
    return torch.randint(0, high, shape).to(torch.get_default_dtype())


def bits(*shape):
    return (torch.rand(shape) < 0.5).to(torch.get_default_dtype())
