"""How a guide is read, relabelled and moved. The only room that knows Pyro's guide classes."""

from pyro_align.guides.barycenter import barycenter
from pyro_align.guides.discrete import Discrete
from pyro_align.guides.empirical import Empirical, EmpiricalGuide
from pyro_align.guides.gaussian import DenseNormal
from pyro_align.guides.guide_list import Independent
from pyro_align.guides.hand_written import mean_field_guide
from pyro_align.guides.low_rank import LowRankNormal
from pyro_align.guides.mean_field import MeanFieldNormal
from pyro_align.guides.messengers import Messenger, messenger_guide
from pyro_align.guides.outside import read_bayesian_module
from pyro_align.guides.point import Point
from pyro_align.guides.posterior import Posterior, SiteSpec
from pyro_align.guides.precision import PrecisionFactors
from pyro_align.guides.registry import check_distinct, permute_guide, read_guide, register_guide, registered_guides
from pyro_align.guides.regressions import LinearRegressions
from pyro_align.guides.wrapped import RelabelledGuide, Wrapped, wrap_guide

__all__ = [
    "DenseNormal",
    "Discrete",
    "Empirical",
    "EmpiricalGuide",
    "Independent",
    "LinearRegressions",
    "LowRankNormal",
    "MeanFieldNormal",
    "Messenger",
    "Point",
    "Posterior",
    "PrecisionFactors",
    "RelabelledGuide",
    "SiteSpec",
    "Wrapped",
    "barycenter",
    "check_distinct",
    "mean_field_guide",
    "messenger_guide",
    "permute_guide",
    "read_bayesian_module",
    "read_guide",
    "register_guide",
    "registered_guides",
    "wrap_guide",
]
