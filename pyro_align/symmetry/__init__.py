"""The group of a model's symmetries, its elements, and how they act on values. torch only."""

from pyro_align.symmetry.element import Permutation
from pyro_align.symmetry.findings import Certificate, OpaqueOperation
from pyro_align.symmetry.group import Symmetry
from pyro_align.symmetry.spec import SymmetrySpec

__all__ = ["Certificate", "OpaqueOperation", "Permutation", "Symmetry", "SymmetrySpec"]
