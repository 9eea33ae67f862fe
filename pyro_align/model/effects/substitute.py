"""Given values for latent sites, parameters and subsamples."""

from __future__ import annotations

from collections.abc import Mapping

from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor


class SubstituteMessenger(Messenger):
    """Gives sample sites, param sites and subsampling plates the values named, without marking them observed."""

    def __init__(self, values: Mapping[str, Tensor], subsamples: Mapping[str, Tensor] | None = None):
        super().__init__()
        self.values = values
        self.subsamples = subsamples or {}

    def _pyro_sample(self, msg):
        if isinstance(msg["fn"], _Subsample):
            if msg["name"] in self.subsamples and msg["value"] is None:
                msg["value"] = self.subsamples[msg["name"]]
                msg["done"] = True
        elif msg["name"] in self.values and not msg["is_observed"]:
            msg["value"] = self.values[msg["name"]]
            msg["done"] = True

    def _pyro_param(self, msg):
        if msg["name"] in self.values:
            msg["value"] = self.values[msg["name"]]
            msg["done"] = True
