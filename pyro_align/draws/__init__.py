"""Draws and ensembles relabeled one by one, so that their summaries and diagnostics mean something."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyro_align.lazy import on_request

if TYPE_CHECKING:
    from pyro_align.draws.align import align_draws
    from pyro_align.draws.diagnostics import Modes
    from pyro_align.draws.elsewhere import read_symmetry, relabel
    from pyro_align.draws.invariance import Invariance
    from pyro_align.draws.result import AlignedDraws
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

# Imported when first asked for, as at the top level: PyTorch with the first draws relabeled, Pyro where needed.
_HOMES = {
    "pyro_align.draws.align": ("align_draws",),
    "pyro_align.draws.diagnostics": ("Modes",),
    "pyro_align.draws.elsewhere": ("read_symmetry", "relabel"),
    "pyro_align.draws.invariance": ("Invariance",),
    "pyro_align.draws.result": ("AlignedDraws",),
    "pyro_align.draws.symmetrized": ("SymmetrizedELBO", "SymmetrizedGuide", "symmetrize"),
}

if not TYPE_CHECKING:
    __getattr__, __dir__ = on_request(__name__, _HOMES)
