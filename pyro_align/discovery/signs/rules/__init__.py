"""Rules of signs, by kind of operation."""

from pyro_align.discovery.signs.rules import elementwise, linalg, moves, sums  # noqa: F401
