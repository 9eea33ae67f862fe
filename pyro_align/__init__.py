"""Align Bayesian posteriors modulo the permutation symmetries of their model."""

from pyro_align.symmetry import Permutation, Symmetry

__version__ = "0.1.0"

__all__ = ["Permutation", "Symmetry", "__version__"]
