"""A small Bayesian perceptron with two hidden layers, its data, and guides of it at random places."""

import pyro
import torch
from pyro.infer.autoguide import AutoNormal, init_to_sample

from pyro_align.demo.network import bayesian_mlp

X = torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.arange(40) % 2
MODEL = bayesian_mlp([3, 7, 5, 2], activation="tanh")


def make_guide(seed=0, scale=0.01, guide_type=AutoNormal):
    """A guide with parameters of its own."""
    options = {"init_scale": scale} if guide_type is AutoNormal else {}
    with pyro.get_param_store().scope():
        pyro.set_rng_seed(seed)
        guide = guide_type(MODEL, init_loc_fn=init_to_sample, **options)
        guide(X, Y)
    return guide
