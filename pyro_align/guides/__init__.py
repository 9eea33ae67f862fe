"""How a guide is read, relabeled and moved. The only subpackage that knows Pyro's guide classes."""

from pyro_align.guides.adapters import read_bayesian_module
from pyro_align.guides.barycenter import barycenter
from pyro_align.guides.canonical import canonical
from pyro_align.guides.divergences import Divergence, register_divergence
from pyro_align.guides.drawing import SampledGuide
from pyro_align.guides.families.discrete import Discrete
from pyro_align.guides.families.draws import Between, Draws
from pyro_align.guides.families.ensemble import Ensemble
from pyro_align.guides.families.entrywise import Point
from pyro_align.guides.families.gaussian import DenseNormal
from pyro_align.guides.families.guide_list import Independent
from pyro_align.guides.families.hand_written import mean_field_guide
from pyro_align.guides.families.low_rank import LowRankNormal
from pyro_align.guides.families.mean_field import MeanFieldNormal
from pyro_align.guides.families.messengers import Messenger, messenger_guide
from pyro_align.guides.families.network import GuideAndModel, permute_guide
from pyro_align.guides.families.structured import LinearRegressions, PrecisionFactors
from pyro_align.guides.families.wrapped import RelabeledGuide, Wrapped, wrap_guide
from pyro_align.guides.posterior import Guide, Posterior
from pyro_align.guides.registry import check_distinct, read_guide, register_guide, registered_guides
from pyro_align.guides.sites import SiteSpec

__all__ = [
    "DenseNormal",
    "Discrete",
    "Between",
    "Draws",
    "Ensemble",
    "SampledGuide",
    "Guide",
    "GuideAndModel",
    "Divergence",
    "Independent",
    "LinearRegressions",
    "LowRankNormal",
    "MeanFieldNormal",
    "Messenger",
    "Point",
    "Posterior",
    "PrecisionFactors",
    "RelabeledGuide",
    "SiteSpec",
    "Wrapped",
    "barycenter",
    "canonical",
    "check_distinct",
    "mean_field_guide",
    "messenger_guide",
    "permute_guide",
    "read_bayesian_module",
    "read_guide",
    "register_divergence",
    "register_guide",
    "registered_guides",
    "wrap_guide",
]
