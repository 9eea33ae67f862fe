"""The group of a model's symmetries, its elements, and how they act on values. torch only."""

from pyro_align.symmetry.group import Certificate, OpaqueOperation, Permutation, Symmetry

__all__ = ["Certificate", "OpaqueOperation", "Permutation", "Symmetry"]
