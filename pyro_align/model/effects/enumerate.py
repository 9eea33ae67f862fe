"""Parallel enumeration of discrete sites that ``torch.func`` can transform."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from pyro.poutine.enum_messenger import EnumMessenger as _PyroEnumMessenger
from torch import Tensor


class EnumMessenger(_PyroEnumMessenger):
    """Enumerates every discrete latent site of finite support that has no value yet.

    It looks at shapes only: what Pyro's messenger asks of a value besides, ``torch.func`` refuses.
    """

    def _pyro_sample(self, msg):
        given = msg["done"]
        if is_enumerable(msg):
            msg["infer"] = {**msg["infer"], "enumerate": None if given else "parallel", "num_samples": None}
        msg["done"] = False  # else the dims of the discrete sites that it depends on would not be noted
        super()._pyro_sample(msg)
        msg["done"] = given or msg["done"]

    def _pyro_post_sample(self, msg):
        value = msg["value"]
        if isinstance(value, Tensor):
            msg["value"] = SimpleNamespace(data=value, dim=value.dim)
        super()._pyro_post_sample(msg)
        msg["value"] = value


def is_enumerable(msg: Mapping[str, Any]) -> bool:
    """Whether a sample message is a latent with finitely many values."""
    return not msg["is_observed"] and getattr(msg["fn"], "has_enumerate_support", False)
