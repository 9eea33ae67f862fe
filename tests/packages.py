"""Packages whose networks are looked at."""

from __future__ import annotations

import contextlib
import importlib
import sys
import warnings

import pytest
import torch


def installed(name: str):
    """A package, or a skipped test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _without_compiled_operators()  # timm and transformers import torchvision where they find it
        return pytest.importorskip(name)


def _without_compiled_operators() -> None:
    """Lets torchvision be imported where its compiled operators do not fit this build of torch (CPU against CUDA).

    They serve detection; no network here calls one, so naming them is enough.
    """
    with contextlib.suppress(ImportError):
        try:
            importlib.import_module("torchvision")
        except RuntimeError:
            for module in [m for m in sys.modules if m.partition(".")[0] == "torchvision"]:
                del sys.modules[module]
            for operator in ("nms", "qnms"):
                torch.library.define(f"torchvision::{operator}", "(Tensor boxes, Tensor scores, float iou) -> Tensor")
            importlib.import_module("torchvision")
