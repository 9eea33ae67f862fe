"""Align Bayesian posteriors modulo the permutation symmetries of their model."""

from pyro_align.alignment.many import ManyAlignments, align_many
from pyro_align.alignment.pair import Alignment, align
from pyro_align.axes import Atom, Fixed, Odd, Product, Sum
from pyro_align.barrier import Barrier, Surface, evaluate_barrier, evaluate_plane
from pyro_align.diagnostics import EffectiveWidth, effective_width
from pyro_align.discovery import certify, find_symmetry
from pyro_align.draws import AlignedDraws, Modes, SymmetrizedELBO, SymmetrizedGuide, align_draws, symmetrize
from pyro_align.errors import (
    BarrierError,
    DiagnosticWarning,
    GuideError,
    MatchError,
    PyroAlignError,
    SymmetryError,
    TraceError,
)
from pyro_align.guides import mean_field_guide, messenger_guide, permute_guide, read_guide, wrap_guide
from pyro_align.io import load, save
from pyro_align.model.effects.permute import permute_model
from pyro_align.objectives import Activations
from pyro_align.path_losses import MidpointLoss, PathLoss
from pyro_align.paths.geodesic import Path, PiecewisePath, displacement, path_through
from pyro_align.paths.learned import BentPath, learn_path
from pyro_align.paths.planes import Plane, plane
from pyro_align.paths.repaired import RepairedPath, repair
from pyro_align.symmetry.group import Permutation, Symmetry

__version__ = "0.1.0"

__all__ = [
    "Activations",
    "AlignedDraws",
    "Alignment",
    "Atom",
    "Barrier",
    "BarrierError",
    "BentPath",
    "DiagnosticWarning",
    "EffectiveWidth",
    "Fixed",
    "GuideError",
    "ManyAlignments",
    "MatchError",
    "MidpointLoss",
    "Modes",
    "Odd",
    "Path",
    "PathLoss",
    "Permutation",
    "PiecewisePath",
    "Plane",
    "Product",
    "PyroAlignError",
    "RepairedPath",
    "Sum",
    "Surface",
    "SymmetrizedELBO",
    "SymmetrizedGuide",
    "Symmetry",
    "SymmetryError",
    "TraceError",
    "__version__",
    "align",
    "align_draws",
    "align_many",
    "certify",
    "displacement",
    "effective_width",
    "evaluate_barrier",
    "evaluate_plane",
    "find_symmetry",
    "learn_path",
    "load",
    "mean_field_guide",
    "messenger_guide",
    "path_through",
    "permute_guide",
    "permute_model",
    "plane",
    "read_guide",
    "repair",
    "save",
    "symmetrize",
    "wrap_guide",
]
