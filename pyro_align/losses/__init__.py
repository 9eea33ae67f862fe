"""Losses of a posterior, their estimates and bands; a loss is one class and one registration."""

from pyro_align.losses.band import Band
from pyro_align.losses.curve import Curve, Peak
from pyro_align.losses.protocol import Batch, Estimate, GuideLoss, Label, Loss, Totals
from pyro_align.losses.registry import register_loss
from pyro_align.losses.task import TaskLoss

__all__ = [
    "Band",
    "Batch",
    "Curve",
    "Estimate",
    "GuideLoss",
    "Label",
    "Loss",
    "Peak",
    "TaskLoss",
    "Totals",
    "register_loss",
]
