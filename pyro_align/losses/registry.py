"""Losses known by name, and what a user may write in ``losses=``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

from pyro_align.errors import BarrierError
from pyro_align.losses.calibrated import CalibratedNLL
from pyro_align.losses.elbo import KL, NegativeELBO, PyroLoss
from pyro_align.losses.likelihood import ExpectedNLL, PredictiveNLL
from pyro_align.losses.protocol import Label, Loss
from pyro_align.losses.task import ErrorRate, Judge, TaskLoss

if TYPE_CHECKING:
    from pyro_align.model.observations import Layout

_KNOWN: dict[str, Loss] = {}
_DEFAULT: list[str] = []


def register_loss(loss: Loss, *, default: bool = False) -> Loss:
    """Makes a loss known by its name, in ``losses=``, tables, plots and ArviZ objects.

    Args:
        loss: The loss; one of the same name is replaced.
        default: Whether it is evaluated where no losses are named and the model has it.

    Returns:
        The loss.

    Example:
        >>> from pyro_align.losses import TaskLoss, register_loss
        >>> def squared_error(prediction, observed):
        ...     return (prediction - observed) ** 2
        >>> register_loss(TaskLoss("mse", squared_error, title="mean squared error", unit="squared units")).label.unit
        'squared units'
    """
    if not isinstance(loss, Loss):
        raise BarrierError(f"register_loss: expected a Loss, got {type(loss).__name__}; wrap a function in a TaskLoss")
    _KNOWN[loss.name] = loss
    if default and loss.name not in _DEFAULT:
        _DEFAULT.append(loss.name)
    return loss


register_loss(CalibratedNLL())
for _loss in (ExpectedNLL(), PredictiveNLL(), NegativeELBO(), KL(), ErrorRate()):
    register_loss(_loss, default=True)


def read_losses(losses: Any, layouts: Mapping[str, Layout] | None = None) -> dict[str, Loss]:
    """Name -> loss, in order.

    Args:
        losses: None for the default ones, a loss, or an iterable or a mapping of names to losses; each a known name, a
            :class:`Loss`, a callable ``(prediction, observed) -> loss per datum`` or a Pyro ELBO object.
        layouts: Data set -> layout of its data, by which losses that the model does not have are found.
    """
    asked = losses is not None
    if losses is None:
        losses = [_KNOWN[name] for name in _DEFAULT]
    elif isinstance(losses, str | Loss) or callable(losses) or hasattr(losses, "loss"):
        losses = (losses,)
    if not isinstance(losses, Iterable):
        raise BarrierError(f"losses: expected names, callables or Pyro ELBO objects, got {type(losses).__name__}")
    pairs = losses.items() if isinstance(losses, Mapping) else [(None, loss) for loss in losses]
    found: dict[str, Loss] = {}
    for name, given in pairs:
        loss = _read(given) if name is None else _read(given).named(name)
        if loss.name in found:
            raise BarrierError(f"loss '{loss.name}' is given twice; give a mapping of distinct names to losses")
        reasons = [loss.unsuited(layout) for layout in (layouts or {}).values()]
        if not any(reasons):
            found[loss.name] = loss
        elif asked:
            raise BarrierError(next(reason for reason in reasons if reason))
    if not found:
        raise BarrierError("losses is empty; leave it out for the default ones")
    return found


def _read(loss: Any) -> Loss:
    if isinstance(loss, Loss):
        return loss
    if isinstance(loss, str):
        if loss not in _KNOWN:
            raise BarrierError(
                f"unknown loss {loss!r}; known by name are {', '.join(_KNOWN)}; else give a callable "
                "(prediction, observed) -> loss per datum, a pyro_align.losses.Loss or a Pyro ELBO object"
            )
        return _KNOWN[loss]
    if callable(getattr(loss, "loss", None)):
        return PyroLoss(loss)
    if callable(loss):
        return TaskLoss(getattr(loss, "__name__", type(loss).__name__), cast(Judge, loss))
    raise BarrierError(f"a loss is a name, a callable or a Pyro ELBO object; got {type(loss).__name__}")


def label_of(name: str) -> Label:
    """How a loss is written, by its name; one that is not known goes by its name."""
    return _KNOWN[name].label if name in _KNOWN else Label(name, "per datum")
