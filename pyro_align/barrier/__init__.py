"""Losses along a path, with common random numbers and standard errors."""

from pyro_align.barrier.evaluate import evaluate_barrier, evaluate_loss
from pyro_align.barrier.result import Barrier
from pyro_align.barrier.surface import Surface, evaluate_plane
from pyro_align.losses import Band, Curve, Peak

__all__ = ["Band", "Barrier", "Curve", "Peak", "Surface", "evaluate_barrier", "evaluate_loss", "evaluate_plane"]
