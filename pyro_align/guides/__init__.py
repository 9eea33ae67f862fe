"""How a guide is read, relabelled and moved. The only room that knows Pyro's guide classes."""

from pyro_align.guides.gaussian import DenseNormal
from pyro_align.guides.low_rank import LowRankNormal
from pyro_align.guides.mean_field import MeanFieldNormal
from pyro_align.guides.point import Point
from pyro_align.guides.posterior import Posterior, SiteSpec
from pyro_align.guides.registry import check_distinct, permute_guide, read_guide, register_guide, registered_guides

__all__ = [
    "DenseNormal",
    "LowRankNormal",
    "MeanFieldNormal",
    "Point",
    "Posterior",
    "SiteSpec",
    "check_distinct",
    "permute_guide",
    "read_guide",
    "register_guide",
    "registered_guides",
]
