"""Posteriors of other packages, through thin adapters that import none of them before they are used."""

from pyro_align.guides.adapters import laplace_torch as laplace_torch
from pyro_align.guides.adapters.mean_field import read_bayesian_module

__all__ = ["read_bayesian_module"]
