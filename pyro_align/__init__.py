"""Align Bayesian posteriors modulo the symmetries of their model.

The verbs are here; the rest is in public submodules: `axes`, `alignment`, `objectives`, `paths`, `losses`, `barrier`,
`draws`, `guides`, `diagnostics`, `restarts`, `matching`, `discovery`, `plots`, `io` and `errors`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyro_align.lazy import on_request

if TYPE_CHECKING:
    from pyro_align.alignment import align, align_many
    from pyro_align.barrier import evaluate_barrier, evaluate_plane
    from pyro_align.diagnostics import effective_width
    from pyro_align.discovery import certify, find_symmetry, find_symmetry_of_density
    from pyro_align.draws import align_draws, symmetrize
    from pyro_align.guides import canonical, mean_field_guide, permute_guide, wrap_guide
    from pyro_align.io import load, save
    from pyro_align.model.effects.permute import permute_model
    from pyro_align.paths import displacement, learn_path, repair
    from pyro_align.symmetry import Permutation, Symmetry, SymmetrySpec

__version__ = "0.2.0.dev0"

__all__ = [
    "Permutation",
    "Symmetry",
    "SymmetrySpec",
    "__version__",
    "align",
    "align_draws",
    "align_many",
    "canonical",
    "certify",
    "displacement",
    "effective_width",
    "evaluate_barrier",
    "evaluate_plane",
    "find_symmetry",
    "find_symmetry_of_density",
    "learn_path",
    "load",
    "mean_field_guide",
    "permute_guide",
    "permute_model",
    "repair",
    "save",
    "symmetrize",
    "wrap_guide",
]

# Where each name is: imported when it is first asked for (PEP 562), so that relabeling draws does not load the rest.
_HOMES = {
    "pyro_align.alignment": ("align", "align_many"),
    "pyro_align.barrier": ("evaluate_barrier", "evaluate_plane"),
    "pyro_align.diagnostics": ("effective_width",),
    "pyro_align.discovery": ("certify", "find_symmetry", "find_symmetry_of_density"),
    "pyro_align.draws": ("align_draws", "symmetrize"),
    "pyro_align.guides": ("canonical", "mean_field_guide", "permute_guide", "wrap_guide"),
    "pyro_align.io": ("load", "save"),
    "pyro_align.model.effects.permute": ("permute_model",),
    "pyro_align.paths": ("displacement", "learn_path", "repair"),
    "pyro_align.symmetry": ("Permutation", "Symmetry", "SymmetrySpec"),
}
_SUBMODULES = (
    "alignment",
    "axes",
    "barrier",
    "diagnostics",
    "discovery",
    "draws",
    "errors",
    "guides",
    "io",
    "losses",
    "matching",
    "objectives",
    "path_losses",
    "paths",
    "plots",
    "restarts",
    "symmetry",
)

if not TYPE_CHECKING:  # type checkers see the names above and no others
    __getattr__, __dir__ = on_request(__name__, _HOMES, _SUBMODULES)
