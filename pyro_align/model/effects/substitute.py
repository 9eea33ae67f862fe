"""Given values for latent sites, parameters and subsamples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor, nn

from pyro_align.errors import TraceError


class SubstituteMessenger(Messenger):
    """Gives sample sites, param sites and subsampling plates the values named, without marking them observed.

    Of a site in a subsampled plate the value may be that of all data; the model is given the subsample's rows.
    """

    def __init__(self, values: Mapping[str, Tensor], subsamples: Mapping[str, Tensor] | None = None):
        super().__init__()
        self.values = values  # site -> constrained value
        # plate -> its subsample; others are drawn
        self.subsamples: Mapping[str, Tensor] | dict[str, Tensor] = subsamples or {}
        self._drawn: dict[str, Any] = {}

    def _pyro_sample(self, msg):
        if isinstance(msg["fn"], _Subsample):
            if msg["name"] in self.subsamples and msg["value"] is None:
                msg["value"] = self.subsamples[msg["name"]]
                msg["done"] = True
        elif msg["name"] in self.values and not msg["is_observed"]:
            msg["infer"] = {**msg["infer"], "_rows": self._rows(msg, self.values[msg["name"]])}
            msg["value"] = taken(msg, self.values[msg["name"]])
            msg["done"] = True
            _check_shape(msg)

    def _pyro_post_sample(self, msg):
        if isinstance(msg["fn"], _Subsample):
            self._drawn[msg["name"]] = msg["value"]

    def _pyro_param(self, msg):
        if msg["name"] in self.values:
            msg["value"] = self.values[msg["name"]]
            msg["done"] = True
        elif self._is_weight(msg):  # it keeps its value, and need not enter the store
            msg["value"] = msg["args"][1]
            msg["done"] = True

    @staticmethod
    def _is_weight(msg) -> bool:
        """Whether a ``pyro.param`` statement registers a module's own weight, of which the store has no other value."""
        own = msg["args"][1] if len(msg["args"]) > 1 else None
        return isinstance(own, nn.Parameter) and pyro.get_param_store()._params.get(msg["name"], own) is own

    def _rows(self, msg, value: Tensor) -> tuple[tuple[int, Tensor], ...]:
        """Axis, from the right, and rows of each subsampled plate of which the value has all data."""
        rows = []
        for frame in msg["cond_indep_stack"]:
            if not frame.vectorized or frame.full_size in (None, frame.size):
                continue
            axis = frame.dim - msg["fn"].event_dim
            if value.dim() < -axis or value.shape[axis] != frame.full_size:
                continue
            index = self._drawn.get(frame.name)
            if not isinstance(index, Tensor) or index.dim() != 1 or index.is_floating_point():
                raise TraceError(
                    f"site '{msg['name']}' has a value for all {frame.full_size} data of plate '{frame.name}', and the "
                    f"model takes {frame.size} of them without saying which; give the plate indices, as in "
                    f"pyro.plate('{frame.name}', {frame.full_size}, subsample=indices)"
                )
            rows.append((axis, index))
        return tuple(rows)


def _check_shape(msg) -> None:
    """Refuses a value that broadcasting would let through, or that would fail later without saying where."""
    fn, value = msg["fn"], msg["value"]
    expected = torch.Size(fn.batch_shape) + torch.Size(fn.event_shape)
    dims = value.dim()
    if dims > len(expected) or any(
        n not in (1, e) for n, e in zip(value.shape, expected[len(expected) - dims :], strict=True)
    ):
        raise TraceError(
            f"site '{msg['name']}': the model samples shape {tuple(expected)}, the value given has {tuple(value.shape)}"
        )


def taken(msg: Mapping[str, Any], value: Tensor) -> Tensor:
    """The rows of a site's full value that the model's subsamples took, where it has more than these."""
    for axis, index in msg["infer"].get("_rows", ()):
        value = value.index_select(axis % value.dim(), index.to(value.device))
    return value


def full_shape(msg: Mapping[str, Any]) -> tuple[int, ...]:
    """Shape of a site's value for all data, subsampled plates in full."""
    fn = msg["fn"]
    shape = list(torch.Size(fn.batch_shape) + torch.Size(fn.event_shape))
    for frame in msg["cond_indep_stack"]:
        if frame.vectorized and frame.full_size is not None and len(shape) >= fn.event_dim - frame.dim:
            shape[frame.dim - fn.event_dim] = frame.full_size
    return tuple(shape)
