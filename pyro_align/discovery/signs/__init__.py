"""Signs: which units may change sign, by linear algebra over GF(2) on the graph of the log joint.

Once the relabelings are known, one unit of every atom is turned at every place where a site carries it, by an
unknown of its own. The graph says how parities pass from inputs to outputs, and which of them must agree; what is left
free are the signs.
"""

from __future__ import annotations

from collections.abc import Sequence

from pyro_align.discovery.axes.inference import Inference
from pyro_align.discovery.signs import rules  # noqa: F401
from pyro_align.discovery.signs.analysis import SignAnalysis
from pyro_align.discovery.signs.choose import signed
from pyro_align.symmetry.group import Symmetry

__all__ = ["SignAnalysis", "add_signs"]


def add_signs(symmetry: Symmetry, inference: Inference, *, real: Sequence[str]) -> Symmetry:
    """The symmetry with the signs that its units may have; the values of ``real`` sites may change sign."""
    return signed(SignAnalysis(inference, symmetry, real))
