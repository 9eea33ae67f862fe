"""Axes: which sets of indices are one, and which may be relabeled."""

from pyro_align.discovery.axes import rules  # noqa: F401
