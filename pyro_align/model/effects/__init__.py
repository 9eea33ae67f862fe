"""Effect handlers, one messenger a file."""

from pyro_align.model.effects.enumerate import EnumMessenger
from pyro_align.model.effects.permute import PermuteMessenger
from pyro_align.model.effects.substitute import SubstituteMessenger
from pyro_align.model.effects.temper import TemperMessenger

__all__ = ["EnumMessenger", "PermuteMessenger", "SubstituteMessenger", "TemperMessenger"]
