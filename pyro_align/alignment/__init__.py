"""Find, match, relabel: two posteriors, or many."""

from pyro_align.alignment.many import ManyAlignments, align_many
from pyro_align.alignment.pair import Alignment, align

__all__ = ["Alignment", "ManyAlignments", "align", "align_many"]
