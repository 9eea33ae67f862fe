"""Signs: which units may change sign, by linear algebra over GF(2) on the graph of the log joint.

Once the relabelings are known, one unit of every atom is turned at every place where a site carries it, by an
unknown of its own. The graph says how parities pass from inputs to outputs, and which of them must agree; what is left
free are the signs.
"""

from pyro_align.discovery.signs import rules  # noqa: F401
from pyro_align.discovery.signs.analysis import SignAnalysis
from pyro_align.discovery.signs.choose import add_signs

__all__ = ["SignAnalysis", "add_signs"]
