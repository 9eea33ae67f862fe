"""Distributions that do not check their arguments, for transformations that cannot look at values."""

from __future__ import annotations

import copy
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample


class NoValidationMessenger(Messenger):
    """Switches validation off on the distributions themselves: one built earlier keeps its own flag otherwise."""

    def _pyro_sample(self, msg):
        if not isinstance(msg["fn"], _Subsample):
            msg["fn"] = without_validation(msg["fn"])


def without_validation(fn: Any) -> Any:
    """A shallow copy of a distribution, and of those inside it, that does not check its arguments."""
    if not isinstance(fn, torch.distributions.Distribution):
        return fn
    fn = copy.copy(fn)
    for key, value in list(fn.__dict__.items()):
        if isinstance(value, torch.distributions.Distribution):
            fn.__dict__[key] = without_validation(value)
    fn.__dict__["_validate_args"] = False
    return fn
