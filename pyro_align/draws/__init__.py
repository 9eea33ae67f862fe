"""Draws and ensembles relabeled one by one, so that their summaries and diagnostics mean something."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyro_align.draws.align import align_draws
from pyro_align.draws.diagnostics import Modes
from pyro_align.draws.elsewhere import read_symmetry, relabel
from pyro_align.draws.invariance import Invariance
from pyro_align.draws.result import AlignedDraws

if TYPE_CHECKING:
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

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name in ("SymmetrizedELBO", "SymmetrizedGuide", "symmetrize"):  # they need Pyro, the rest does not
            from pyro_align.draws import symmetrized

            return getattr(symmetrized, name)
        raise AttributeError(f"module 'pyro_align.draws' has no attribute '{name}'")
