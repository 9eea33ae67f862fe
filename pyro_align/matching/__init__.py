"""Matching: which relabeling makes one set of tensors most like another. Plain tensors; knows nothing of Pyro.

:func:`match` is the entry point. A matcher is one algorithm in one file; ``MATCHERS`` holds them by name.
"""

from pyro_align.matching.coordinate import Coordinate
from pyro_align.matching.enumeration import Exhaustive, elements
from pyro_align.matching.frank_wolfe import FrankWolfe
from pyro_align.matching.matcher import MATCHERS, Matcher, Run, register
from pyro_align.matching.problem import Features, Problem, objective
from pyro_align.matching.result import Match
from pyro_align.matching.sinkhorn import Sinkhorn
from pyro_align.matching.solve import margins, match
from pyro_align.matching.straight_through import StraightThrough

__all__ = [
    "MATCHERS",
    "Coordinate",
    "Exhaustive",
    "Features",
    "FrankWolfe",
    "Match",
    "Matcher",
    "Problem",
    "Run",
    "Sinkhorn",
    "StraightThrough",
    "elements",
    "margins",
    "match",
    "objective",
    "register",
]
