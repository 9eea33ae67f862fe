"""Draws and ensembles relabeled one by one, so that their summaries and diagnostics mean something."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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

    def __getattr__(name: str) -> Any:
        from importlib import import_module

        home = next((module for module, names in _HOMES.items() if name in names), None)
        if home is None:
            raise AttributeError(f"module 'pyro_align.draws' has no attribute '{name}'")
        globals()[name] = value = getattr(import_module(home), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
