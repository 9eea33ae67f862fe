"""Paths between posteriors: a path maps tau in [0, 1] to a Pyro guide."""

from pyro_align.paths.geodesic import Path, PiecewisePath, displacement, path_through
from pyro_align.paths.learned import LearnedPath, learn_path
from pyro_align.paths.networks import evaluate_networks, reset_batch_norm
from pyro_align.paths.planes import Plane, plane
from pyro_align.paths.repaired import RepairedPath, repair

__all__ = [
    "LearnedPath",
    "Path",
    "PiecewisePath",
    "Plane",
    "RepairedPath",
    "displacement",
    "evaluate_networks",
    "learn_path",
    "path_through",
    "plane",
    "repair",
    "reset_batch_norm",
]
