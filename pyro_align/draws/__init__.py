"""Draws and ensembles relabeled one by one, so that their summaries and diagnostics mean something."""

from pyro_align.draws.align import align_draws
from pyro_align.draws.diagnostics import Modes
from pyro_align.draws.elsewhere import read_symmetry, relabel
from pyro_align.draws.result import AlignedDraws, Invariance
from pyro_align.draws.symmetrized import SymmetrizedELBO, SymmetrizedGuide, symmetrize

__all__ = [
    "AlignedDraws",
    "Invariance",
    "Modes",
    "SymmetrizedELBO",
    "SymmetrizedGuide",
    "align_draws",
    "read_symmetry",
    "relabel",
    "symmetrize",
]
